//! What is on disk of a container request, and the two things made of it: the grant and the record.
//!
//! ```text
//! {"format":1, "registry":…, "repository":…, "version":…,
//!  "user":{"name":…,"workspace":…,"access_token":<sealed>,              absent: anonymous
//!          "platform":{"endpoint":…,"refresh_token":<sealed>,"workflow_id":…}},
//!  "run":<id>,                                                           absent: lives for itself
//!  "details":{…}, "created":<ns since 1970>, "expires":…, "revoked":…,
//!  "resolved_digest":…, "source_digest":…, "served_digest":…,
//!  "overlay":{…},                                  see stored_overlay.rs
//!  "durable":{"kind":…,"target":…,"job":…}}        absent: a name that can be pulled
//! ```

use std::{sync::Arc, time::SystemTime};

use serde::{Deserialize, Serialize};

use super::{
    AtPlatform, Caller, Durable, Grant, Lease, RequestDetails, RunId, Tenant, Token,
    client_time::unix_nanoseconds, stored_overlay::StoredOverlay,
};
use crate::{
    augment::{NamedOverlay, Overlay},
    oci::{Digest, DigestError, PlatformError, Reference, ReferenceError},
    seal::{SealingKey, UnsealError},
};

/// What is told about a container request: all but the caller's access token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub token: Token,
    /// The source, with the defaults of its registry filled in.
    pub image: Reference,
    /// `None`: an anonymous caller.
    pub user: Option<RecordedUser>,
    pub details: RequestDetails,
    pub created: SystemTime,
    pub expires: SystemTime,
    /// When it was revoked.
    pub revoked: Option<SystemTime>,
    /// What the image named when the request was submitted.
    pub resolved_digest: Option<Digest>,
    /// What it named when it was first pulled.
    pub source_digest: Option<Digest>,
    /// What was served then: another digest if the request has an overlay.
    pub served_digest: Option<Digest>,
    pub overlay: Option<Overlay>,
    /// Something else than a name that can be pulled.
    pub durable: Option<Durable>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedUser {
    pub name: String,
    pub workspace: Option<i64>,
}

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("it has format {format}, and this tidegate knows {FORMAT}")]
    UnknownFormat { format: u32 },
    #[error("it is damaged")]
    Damaged(#[from] serde_json::Error),
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error(transparent)]
    Digest(#[from] DigestError),
    #[error(transparent)]
    Platform(#[from] PlatformError),
    #[error("its access token cannot be unsealed")]
    Sealed(#[from] UnsealError),
}

const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
pub(super) struct Entry {
    format: u32,
    registry: String,
    repository: String,
    version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<User>,
    /// The run on whose lease it hangs, see runs.rs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    run: Option<String>,
    details: RequestDetails,
    created: u64,
    expires: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revoked: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    resolved_digest: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source_digest: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    served_digest: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    overlay: Option<StoredOverlay>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    durable: Option<Durable>,
}

/// A caller with a name. Sealed with a context: his tokens are of no use in another record.
#[derive(Serialize, Deserialize)]
pub(super) struct User {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    workspace: Option<i64>,
    access_token: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    platform: Option<Platform>,
}

#[derive(Serialize, Deserialize)]
struct Platform {
    endpoint: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    workflow_id: Option<String>,
}

impl User {
    /// `None`: an anonymous caller.
    pub(super) fn sealed(caller: &Caller, context: &str, key: &SealingKey) -> Option<Self> {
        let Caller::User {
            name,
            workspace,
            access_token,
            platform,
        } = caller
        else {
            return None;
        };
        let platform = platform.as_ref().map(|platform| {
            let refresh_token = platform.refresh_token.as_ref();
            Platform {
                endpoint: platform.endpoint.clone(),
                refresh_token: refresh_token
                    .map(|secret| key.seal(secret, &refresh_context(context))),
                workflow_id: platform.workflow_id.clone(),
            }
        });
        Some(Self {
            name: name.clone(),
            workspace: *workspace,
            access_token: key.seal(access_token, context),
            platform,
        })
    }

    pub(super) fn unsealed(self, context: &str, key: &SealingKey) -> Result<Caller, UnsealError> {
        let platform = self.platform.map(|platform| {
            let sealed = platform.refresh_token.as_deref();
            let refresh_token = sealed
                .map(|sealed| key.unseal(sealed, &refresh_context(context)))
                .transpose()?;
            Ok(AtPlatform {
                endpoint: platform.endpoint,
                refresh_token,
                workflow_id: platform.workflow_id,
            })
        });
        Ok(Caller::User {
            name: self.name,
            workspace: self.workspace,
            access_token: key.unseal(&self.access_token, context)?,
            platform: platform.transpose()?,
        })
    }
}

/// Not the access token's: neither seal fits the other's place.
fn refresh_context(context: &str) -> String {
    format!("refresh {context}")
}

impl Entry {
    pub(super) fn new(
        grant: &Grant,
        run: Option<&RunId>,
        details: RequestDetails,
        resolved: Option<Digest>,
        key: &SealingKey,
    ) -> Self {
        Self {
            format: FORMAT,
            registry: grant.image.registry.to_string(),
            repository: grant.image.repository.to_string(),
            version: grant.image.version.to_string(),
            user: User::sealed(&grant.caller, grant.token.as_str(), key),
            run: run.map(|id| id.as_str().to_owned()),
            details: details.shortened(),
            created: unix_nanoseconds::from_time(grant.created),
            expires: unix_nanoseconds::from_time(grant.expires),
            revoked: None,
            resolved_digest: resolved.map(|digest| digest.to_string()),
            source_digest: None,
            served_digest: None,
            overlay: grant
                .overlay
                .as_deref()
                .map(|overlay| StoredOverlay::from(&**overlay)),
            durable: grant.durable.as_deref().cloned(),
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        // First alone, since the rest may have changed with it.
        let Format { format } = serde_json::from_slice(bytes)?;
        if format != FORMAT {
            return Err(RecordError::UnknownFormat { format });
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and numbers are always JSON")
    }

    pub(super) fn is_valid(&self, now: SystemTime) -> bool {
        self.revoked.is_none() && unix_nanoseconds::from_time(now) < self.expires
    }

    pub(super) fn tenant(&self) -> Tenant {
        match &self.user {
            None => Tenant::anonymous(),
            Some(user) => {
                let platform = user.platform.as_ref();
                let endpoint = platform.map(|platform| platform.endpoint.as_str());
                Tenant::of_user(&user.name, user.workspace, endpoint)
            }
        }
    }

    pub(super) fn revoke(&mut self, now: SystemTime) {
        self.revoked = Some(unix_nanoseconds::from_time(now));
    }

    pub(super) fn has_source_digest(&self) -> bool {
        self.source_digest.is_some()
    }

    pub(super) fn note_pull(&mut self, source: Digest, served: Digest) {
        self.source_digest = Some(source.to_string());
        self.served_digest = Some(served.to_string());
    }

    /// The run on whose lease it hangs.
    pub(super) fn run(&self) -> Option<RunId> {
        self.run.as_deref().map(RunId::parse)
    }

    /// Whether its caller's access token can be refreshed, and no run sees to that.
    pub(super) fn is_refreshable(&self) -> bool {
        let platform = self.user.as_ref().and_then(|user| user.platform.as_ref());
        self.run.is_none() && platform.is_some_and(|it| it.refresh_token.is_some())
    }

    pub(super) fn grant(
        self,
        token: &Token,
        lease: Option<Arc<Lease>>,
        key: &SealingKey,
    ) -> Result<Grant, RecordError> {
        Ok(Grant {
            token: *token,
            image: self.image()?,
            overlay: self
                .overlay
                .map(StoredOverlay::overlay)
                .transpose()?
                .map(|overlay| Arc::new(NamedOverlay::from(overlay))),
            durable: self.durable.map(Arc::new),
            created: unix_nanoseconds::to_time(self.created),
            expires: unix_nanoseconds::to_time(self.expires),
            lease,
            caller: Arc::new(match self.user {
                None => Caller::Anonymous,
                Some(user) => user.unsealed(token.as_str(), key)?,
            }),
        })
    }

    pub(super) fn record(self, token: &Token) -> Result<Record, RecordError> {
        Ok(Record {
            token: *token,
            image: self.image()?,
            created: unix_nanoseconds::to_time(self.created),
            expires: unix_nanoseconds::to_time(self.expires),
            revoked: self.revoked.map(unix_nanoseconds::to_time),
            resolved_digest: parse_digest(self.resolved_digest.as_deref())?,
            source_digest: parse_digest(self.source_digest.as_deref())?,
            served_digest: parse_digest(self.served_digest.as_deref())?,
            overlay: self.overlay.map(StoredOverlay::overlay).transpose()?,
            durable: self.durable,
            details: self.details,
            user: self.user.map(|user| RecordedUser {
                name: user.name,
                workspace: user.workspace,
            }),
        })
    }

    fn image(&self) -> Result<Reference, RecordError> {
        Ok(Reference {
            registry: self.registry.parse()?,
            repository: self.repository.parse()?,
            version: self.version.parse()?,
        })
    }
}

fn parse_digest(text: Option<&str>) -> Result<Option<Digest>, RecordError> {
    Ok(text.map(str::parse).transpose()?)
}
