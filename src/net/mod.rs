//! Sockets: listening, finding and dialling hosts, TLS towards registries, and moving a file to a socket.

mod connect;
mod listener;
mod resolve;
mod stream;
mod tls;
mod transfer;

pub use connect::{ConnectError, Dialer};
pub use listener::{Listener, bind};
pub use resolve::{Addresses, ResolveError, is_public, look_up};
pub use stream::Stream;
pub use tls::{Trust, TrustError};
pub use transfer::Transfer;

pub use crate::sys::{More, reset_on_close};
