//! Pushing a manifest: byte for byte, as its digest is its name.

use bytes::Bytes;

use super::{
    PushError, Target, UploadError,
    blob::expect_digest,
    pusher::{Answer, Ask, Pusher},
};
use crate::{
    http::Method,
    oci::{Digest, TagOrDigest},
    upstream::{
        Upstream,
        rights::{Actions, Rights},
    },
};

pub struct PushedManifest {
    /// `OCI-Subject`: the registry lists it among the subject's referrers itself.
    pub subject: Option<Digest>,
}

impl Upstream {
    /// After all that it names. `digest` is that of `bytes`.
    pub async fn push_manifest(
        &self,
        target: Target<'_>,
        version: &TagOrDigest,
        digest: &Digest,
        media_type: &str,
        bytes: &Bytes,
    ) -> Result<PushedManifest, PushError> {
        // It comes from a manifest, which may say anything, and goes into a head.
        let is_type = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
        if media_type.is_empty() || !media_type.bytes().all(is_type) {
            let error = UploadError {
                cause: format!("the type of manifest {version} is none"),
                is_transient: false,
            };
            return Err(error.into());
        }
        let rights = Rights::of(target.repository, Actions::Push);
        let mut pusher = Pusher::new(self, target, rights)?;
        let url = pusher.url(&format!("manifests/{version}"));
        let ask = Ask {
            method: Method::Put,
            url: &url,
            body: Some((Some(media_type), bytes)),
        };
        let separator = match version {
            TagOrDigest::Tag(_) => ':',
            TagOrDigest::Digest(_) => '@',
        };
        let what = format!("manifest {}{separator}{version}", target.repository);
        match pusher.ask(&ask).await? {
            Answer::Yes { head, .. } if (200..300).contains(&head.status) => {
                expect_digest(target, &head, digest)?;
                let subject = head.headers.get("oci-subject");
                Ok(PushedManifest {
                    subject: subject.and_then(|text| text.trim().parse().ok()),
                })
            }
            Answer::Yes { head, .. } => Err(pusher.malformed(format!(
                "a redirect ({}) for {what}, which is not followed",
                head.status
            ))),
            Answer::No(refusal) => Err(PushError::of_refusal(refusal, target, what)),
        }
    }
}
