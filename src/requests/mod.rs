//! Container requests and the tokens that stand for them.

mod token;

pub use token::{Token, TokenError};
