//! What a token allows.

use std::{sync::Arc, time::SystemTime};

use super::{Caller, Durable, Lease, Token};
use crate::{
    augment::NamedOverlay,
    oci::{Reference, Repository},
};

/// Whoever has `token` may pull from one repository of one registry, on the caller's behalf, until `expires`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub token: Token,
    /// The source, with the defaults of its registry filled in.
    pub image: Reference,
    /// Shared, because each pull by this grant takes it along.
    pub caller: Arc<Caller>,
    /// What is put on the image.
    pub overlay: Option<Arc<NamedOverlay>>,
    /// Something else than a name that can be pulled.
    pub durable: Option<Arc<Durable>>,
    pub created: SystemTime,
    /// At the latest.
    pub expires: SystemTime,
    /// Of the workflow run that it belongs to.
    pub lease: Option<Arc<Lease>>,
}

impl Grant {
    pub fn is_expired(&self, now: SystemTime) -> bool {
        self.expires <= now || self.lease.as_ref().is_some_and(|lease| lease.is_over(now))
    }

    /// All tags and digests of the repository are allowed: an index names its manifests by digest.
    pub fn allows(&self, repository: &Repository) -> bool {
        self.durable.is_none() && self.image.repository == *repository
    }
}
