//! A submitted container request: the image, for whom, and what is kept only to describe it later.

use std::{fmt, net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{ClientTime, Purpose};
use crate::{
    augment::NamedOverlay,
    oci::{Algorithm, Digest, Hasher, Reference},
    secret::Secret,
};

#[derive(Clone, Debug)]
pub struct ContainerRequest {
    /// The source, with the defaults of its registry filled in.
    pub image: Reference,
    /// Shared with the grant that comes of it.
    pub caller: Arc<Caller>,
    pub overlay: Option<Arc<NamedOverlay>>,
    /// The layers that came with it.
    pub layers: Vec<InlineLayer>,
    pub purpose: Purpose,
    pub details: RequestDetails,
}

/// A layer's bytes, which have this digest.
#[derive(Clone)]
pub struct InlineLayer {
    pub digest: Digest,
    pub bytes: Vec<u8>,
}

impl fmt::Debug for InlineLayer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} with {} bytes", self.digest, self.bytes.len())
    }
}

/// On whose behalf an image is pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    Anonymous,
    User {
        name: String,
        /// `None`: the user's personal workspace.
        workspace: Option<i64>,
        access_token: Secret<String>,
        /// `None`: of the embedded directory.
        platform: Option<AtPlatform>,
    },
}

/// A caller whom a Platform knows.
#[derive(Clone, Copy)]
pub struct PlatformUser<'a> {
    pub access_token: &'a Secret<String>,
    /// `None`: the personal one.
    pub workspace: Option<i64>,
    pub platform: &'a AtPlatform,
}

impl Caller {
    pub fn platform_user(&self) -> Option<PlatformUser<'_>> {
        match self {
            Self::User {
                workspace,
                access_token,
                platform: Some(platform),
                ..
            } => Some(PlatformUser {
                access_token,
                workspace: *workspace,
                platform,
            }),
            Self::User { platform: None, .. } | Self::Anonymous => None,
        }
    }
}

/// A name that tells nothing of the secrets among its parts, which are not copied for it.
pub(super) fn name_of(parts: &[&str]) -> String {
    let mut hash = Hasher::new(Algorithm::Sha256);
    for (place, part) in parts.iter().enumerate() {
        if place > 0 {
            hash.update(&[0]);
        }
        hash.update(part.as_bytes());
    }
    hash.finish().hex()
}

/// Where a caller is known who is not of the embedded directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtPlatform {
    /// The base URL of its API.
    pub endpoint: String,
    /// Replaces the access token when that has expired.
    pub refresh_token: Option<Secret<String>>,
    /// The run for which the image is pulled.
    pub workflow_id: Option<String>,
}

/// For logs. A name alone, since a workspace's number says little without it.
impl fmt::Display for Caller {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => formatter.write_str("anonymous"),
            Self::User { name, .. } => formatter.write_str(name),
        }
    }
}

/// Nothing is decided by these. Texts are the client's own; very long ones are cut when they are recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestDetails {
    /// As the client wrote it: `alpine`.
    pub container_image: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tower_endpoint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<ClientTime>,
    /// Where the request came from.
    pub address: IpAddr,
}

impl RequestDetails {
    /// A request's body may have megabytes; a record is kept for days, and for anyone who asks.
    pub(super) fn shortened(mut self) -> Self {
        let optional = [
            self.platform.as_mut(),
            self.tower_endpoint.as_mut(),
            self.workflow_id.as_mut(),
            self.fingerprint.as_mut(),
        ];
        for text in optional
            .into_iter()
            .flatten()
            .chain([&mut self.container_image])
        {
            shorten(text);
        }
        self
    }
}

/// Guessed: known clients' texts are below 200 bytes.
const LONGEST_DETAIL: usize = 1024;

fn shorten(text: &mut String) {
    text.truncate(text.floor_char_boundary(LONGEST_DETAIL));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        for (text, kept) in [
            ("short".to_owned(), 5),
            ("x".repeat(5000), LONGEST_DETAIL),
            (format!("x{}", "é".repeat(5000)), LONGEST_DETAIL - 1),
        ] {
            let mut cut = text.clone();
            shorten(&mut cut);
            assert_eq!(cut.len(), kept, "{text}");
            assert!(text.starts_with(&cut), "{text}");
        }
    }

    #[test]
    fn a_caller_does_not_show_the_access_token() {
        let caller = Caller::User {
            name: "ada".to_owned(),
            workspace: Some(1),
            access_token: Secret::new("hunter2".to_owned()),
            platform: Some(AtPlatform {
                endpoint: "https://platform.example.com".to_owned(),
                refresh_token: Some(Secret::new("hunter2".to_owned())),
                workflow_id: None,
            }),
        };
        assert!(!format!("{caller:?} {caller}").contains("hunter2"));
    }
}
