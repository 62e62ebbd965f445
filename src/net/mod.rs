//! Sockets: listening, finding and dialling hosts, TLS on both sides, and moving a file to a client or a registry.

mod connect;
mod detached;
mod identity;
mod listener;
mod network;
mod patience;
mod piece;
mod remembered;
mod resolve;
mod sealing;
mod socket;
mod stream;
mod tls;
mod tls_session;
mod transfer;
mod trust;
mod upload;

pub use connect::{ConnectError, Dialer};
pub use detached::Detached;
pub use identity::{Identity, IdentityError, Renewed};
pub use listener::{Listener, bind};
pub use network::{Network, NetworkError};
pub use patience::{Clock, Deadline};
pub use piece::Piece;
pub use resolve::{Addresses, ResolveError, is_public, look_up};
pub use socket::{Refused, Socket};
pub use stream::Stream;
pub use transfer::{FilePart, Transfer, pipes_for_each};
pub use trust::{Trust, TrustError};
pub use upload::Uploaded;

pub use crate::sys::More;
