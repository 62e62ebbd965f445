//! The values of the OCI specifications: references, digests, descriptors, manifests, error codes.
//! Everything here is pure; whoever holds a value holds a good one.

mod credentials;
mod descriptor;
mod digest;
mod error_code;
mod manifest;
pub mod media_type;
mod platform;
mod platforms;
mod reference;
mod registry_pattern;

pub use credentials::Credentials;
pub use descriptor::Descriptor;
pub use digest::{Algorithm, Digest, DigestError, Hasher};
pub use error_code::ErrorCode;
pub use manifest::{Manifest, ManifestError};
pub use platform::{Platform, PlatformError};
pub use platforms::Platforms;
pub use reference::{Reference, ReferenceError, Registry, Repository, Tag, TagOrDigest};
pub use registry_pattern::RegistryPattern;
