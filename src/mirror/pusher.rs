//! The destination's registry, as its caller comes before it.

use std::rc::Rc;

use bytes::Bytes;

use super::{CopyError, Destination};
use crate::{
    credentials::{OwnOptions, Side},
    net::Addresses,
    oci::{Digest, Repository, TagOrDigest, media_type},
    pull::{Pull, PullError},
    upstream::{
        FetchError, Login, Mount, PushError, PushedManifest, Session, Source, Target, Upload,
    },
};

#[derive(Clone, Copy)]
pub(super) struct Pusher<'a> {
    pub pull: &'a Rc<Pull>,
    pub rule: &'a PushRule,
    pub destination: &'a Destination,
}

/// What is the operator's and not for his callers to push with. They are judged whenever something is sent, and not only when
/// they ask for a copy: a login may go meanwhile, and the operator's would take its place.
#[derive(Clone, Debug, Default)]
pub struct PushRule {
    /// Repositories that nobody pushes to.
    pub own: OwnOptions,
    /// His logins, and his place in the network, are for everybody.
    pub is_shared: bool,
}

impl Pusher<'_> {
    /// For each question anew: a copy may take longer than a login lives.
    pub(super) async fn login(&self) -> Result<Login, CopyError> {
        let Destination {
            registry,
            repository,
            caller,
            ..
        } = self.destination;
        if self.rule.own.covers(registry, repository) {
            return Err(CopyError::OperatorsRepository {
                registry: registry.clone(),
                repository: repository.clone(),
            });
        }
        let login = self.pull.login_and_side(caller, registry, repository).await;
        let (login, side) = login.map_err(CopyError::Destination)?;
        let registry = || registry.clone();
        match (&login.credentials, side) {
            _ if self.rule.is_shared => Ok(login),
            (Some(_), Side::Tenant) => Ok(login),
            (Some(_), Side::Operator) => Err(CopyError::OperatorsLogin {
                registry: registry(),
            }),
            (None, _) if self.is_in_operators_network() => Err(CopyError::OperatorsNetwork {
                registry: registry(),
            }),
            (None, _) => Ok(login),
        }
    }

    /// Only because the operator lists it, it can be reached at a private address. There, many a registry is open to all who
    /// get so far.
    fn is_in_operators_network(&self) -> bool {
        let endpoint = self.pull.upstream().endpoint(&self.destination.registry);
        endpoint.is_ok_and(|endpoint| endpoint.way.addresses == Addresses::Any)
    }

    /// What it means there now, as far as the registry can tell. Of what it was writing when it was killed it may be unable to
    /// tell, until that is pushed again.
    pub(super) async fn standing(
        &self,
        version: &TagOrDigest,
    ) -> Result<Option<Digest>, CopyError> {
        match self.meaning(version).await {
            Err(CopyError::Destination(PullError::Fetch(FetchError::Unreachable {
                status: Some(_),
                ..
            }))) => Ok(None),
            standing => standing,
        }
    }

    /// Where a repository does not exist, many registries say that it is forbidden: as long as nothing is pushed that comes to
    /// the same.
    async fn meaning(&self, version: &TagOrDigest) -> Result<Option<Digest>, CopyError> {
        let head = self
            .reading(async |source| self.pull.upstream().manifest_head(source, version).await)
            .await?;
        let digest = match (head, version) {
            (None, _) => None,
            (Some(Some(_)), TagOrDigest::Digest(digest)) => Some(*digest),
            (Some(Some(head)), TagOrDigest::Tag(_)) if head.digest.is_some() => head.digest,
            // It knows no HEAD, or answers it without a digest.
            (Some(_), _) => match self.manifest(version).await? {
                Some(body) => {
                    let hashed = self.pull.compute(body.len(), move || Digest::of(&body));
                    let busy = |error| CopyError::Destination(PullError::Busy(error));
                    Some(hashed.await.map_err(busy)?)
                }
                None => None,
            },
        };
        Ok(digest)
    }

    pub(super) async fn manifest(
        &self,
        version: &TagOrDigest,
    ) -> Result<Option<Vec<u8>>, CopyError> {
        let fetched = self
            .reading(async |source| self.pull.upstream().manifest(source, version).await)
            .await?;
        Ok(fetched.map(|fetched| fetched.body))
    }

    /// Whether it lists by itself what refers to a manifest.
    pub(super) async fn lists_referrers(&self, subject: &Digest) -> Result<bool, CopyError> {
        let asked = self
            .reading(async |source| {
                let upstream = self.pull.upstream();
                match upstream.referrers(source, subject, None).await {
                    // Whatever it is, no list has come.
                    Err(FetchError::Failed { .. } | FetchError::Malformed { .. }) => Ok(false),
                    list => list.map(|list| {
                        let label = list.content_type.unwrap_or_default();
                        label.starts_with(media_type::OCI_INDEX)
                    }),
                }
            })
            .await?;
        Ok(asked.unwrap_or(false))
    }

    pub(super) async fn try_push(&self) -> Result<(), CopyError> {
        self.pushing(async |target| self.pull.upstream().try_push(target).await)
            .await
    }

    pub(super) async fn has_blob(&self, digest: &Digest) -> Result<bool, CopyError> {
        self.pushing(async |target| self.pull.upstream().has_blob(target, digest).await)
            .await
    }

    /// `None`: it is not to be had from there, and nothing was opened instead.
    pub(super) async fn mount_blob(
        &self,
        digest: &Digest,
        from: &Repository,
    ) -> Result<Option<Mount>, CopyError> {
        let login = self.login().await?;
        let target = self.target(&login);
        match self.pull.upstream().mount_blob(target, digest, from).await {
            Ok(mount) => Ok(Some(mount)),
            Err(error) if error.is_transient() => Err(error.into()),
            // The login may push there and not pull here, or the registry mounts nothing; an upload will tell.
            Err(error) => {
                tracing::debug!(%digest, %from, %error, "a blob cannot be mounted");
                Ok(None)
            }
        }
    }

    pub(super) async fn push_blob(
        &self,
        digest: &Digest,
        size: u64,
        session: Option<Session>,
        content: &mut impl Upload,
    ) -> Result<(), CopyError> {
        let upstream = self.pull.upstream();
        let login = self.login().await?;
        let target = self.target(&login);
        let pushed = upstream
            .push_blob(target, digest, size, session, content)
            .await;
        if !matches!(pushed, Err(PushError::Refused { .. })) || !self.has_another_login() {
            return Ok(pushed?);
        }
        let login = self.login().await?;
        let target = self.target(&login);
        Ok(upstream
            .push_blob(target, digest, size, None, content)
            .await?)
    }

    pub(super) async fn push_manifest(
        &self,
        version: &TagOrDigest,
        digest: &Digest,
        media_type: &str,
        bytes: &Bytes,
    ) -> Result<PushedManifest, CopyError> {
        let upstream = self.pull.upstream();
        self.pushing(async |target| {
            upstream
                .push_manifest(target, version, digest, media_type, bytes)
                .await
        })
        .await
    }

    /// `None`: it is not there, or not for this caller to see.
    async fn reading<T>(
        &self,
        ask: impl AsyncFn(Source<'_>) -> Result<T, FetchError>,
    ) -> Result<Option<T>, CopyError> {
        let ask = async || {
            let login = self.login().await?;
            let source = Source {
                registry: &self.destination.registry,
                repository: &self.destination.repository,
                login: &login,
            };
            Ok::<_, CopyError>(ask(source).await)
        };
        let mut asked = ask().await?;
        if matches!(asked, Err(FetchError::Refused { .. })) && self.has_another_login() {
            asked = ask().await?;
        }
        match asked {
            Ok(answer) => Ok(Some(answer)),
            Err(FetchError::Unknown { .. } | FetchError::Refused { .. }) => Ok(None),
            Err(error) => Err(CopyError::Destination(PullError::Fetch(error))),
        }
    }

    async fn pushing<T>(
        &self,
        ask: impl AsyncFn(Target<'_>) -> Result<T, PushError>,
    ) -> Result<T, CopyError> {
        let login = self.login().await?;
        match ask(self.target(&login)).await {
            Err(PushError::Refused { .. }) if self.has_another_login() => {
                let login = self.login().await?;
                Ok(ask(self.target(&login)).await?)
            }
            answer => Ok(answer?),
        }
    }

    fn target<'a>(&'a self, login: &'a Login) -> Target<'a> {
        Target {
            registry: &self.destination.registry,
            repository: &self.destination.repository,
            login,
        }
    }

    fn has_another_login(&self) -> bool {
        let Destination {
            registry,
            repository,
            caller,
            ..
        } = self.destination;
        self.pull.doubt(caller, registry, repository)
    }
}
