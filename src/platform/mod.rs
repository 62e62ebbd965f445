//! Seqera Platform, whose users' workspaces hold logins for registries.
//!
//! A Platform is known by its *endpoint*, the base URL of its API exactly as clients name it. All of this is plain
//! blocking Rust, for the pool and for threads of its own.

mod keys;
mod options;
pub mod packet;
mod transport;

pub use keys::{KeyRecords, KeysError, PublicRecord};
pub use options::{LicenseOptions, Options, TransportKind};
pub use packet::PacketError;
pub use transport::{Request, Response, Transport, TransportError};
