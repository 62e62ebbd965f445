//! Seqera Platform, whose users' workspaces hold logins for registries.
//!
//! A Platform is known by its *endpoint*, the base URL of its API exactly as clients name it. All of this is plain
//! blocking Rust, for the pool and for threads of its own.

mod answers;
mod client;
mod families;
mod https;
mod keys;
mod license;
pub mod messages;
mod options;
pub mod packet;
mod pairing;
pub mod session;
mod transport;

pub use answers::{AwsKeys, ComputeEnvironment, Keys, ListedCredentials, RunStatus, User};
pub use client::{CallError, Client};
pub use families::{Family, FamilyId, Session};
pub use https::Https;
pub use keys::{KeyRecords, KeysError, PublicRecord};
pub use options::{LicenseOptions, Options, TransportKind};
pub use packet::PacketError;
pub use pairing::{Admission, Pairing, Refusal};
pub use session::Stream;
pub use transport::{Request, Response, Transport, TransportError};
