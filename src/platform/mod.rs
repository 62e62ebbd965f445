//! Seqera Platform, whose users' workspaces hold logins for registries.
//!
//! A Platform is known by its *endpoint*, the base URL of its API exactly as clients name it. All of this is plain
//! blocking Rust, for the pool.

mod transport;

pub use transport::{Request, Response, Transport, TransportError};
