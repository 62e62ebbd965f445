//! HTTP/1.1 as bytes and values: heads, the framing of bodies, ranges, challenges, URLs.
//!
//! Everything here is pure: sockets, deadlines and buffers belong to the callers (`server` and
//! `upstream`). What can be read in two ways is refused, because whoever stands before or behind us may
//! read it in the other: that is how requests are smuggled. A head is copied once and its fields are
//! slices of that copy.

mod challenge;
mod chunked;
mod forwarded;
mod framing;
mod head;
mod headers;
mod method;
mod range;
mod target;
mod url;
mod websocket;

pub use challenge::{Challenge, parse_challenges};
pub use chunked::{ChunkDecoder, ChunkError};
pub use forwarded::{ForwardedField, client_behind};
pub use framing::BodyLength;
pub use head::{
    HeadError, MAX_HEAD_SIZE, MAX_HEADERS, RequestHead, ResponseHead, head_end, looks_like_tls,
    parse_request, parse_response,
};
pub use headers::Headers;
pub use method::{Method, Version};
pub use range::{ContentRange, RangeWish, parse_content_range, parse_range};
pub use target::Target;
pub use url::{Origin, Scheme, Url, UrlError, percent_decode, percent_encode_query};
pub use websocket::{HandshakeError, accept_websocket};
