//! The product's story: resolve, prove, fetch, cache, stream. It knows no status code and no socket of a client, so
//! whoever wants an image's parts can use it, not only the server.
//!
//! *Presence is not permission*: the cache is shared by all, so whoever asks for content proves that he may have it
//! (`proof.rs`) before he is served from it.

mod blob;
mod body;
mod content;
mod derived;
mod fill;
mod heal;
mod include;
mod inspect;
mod manifest;
mod overlay;
mod proof;
mod shelf;
mod uncached;

pub use blob::{BlobHead, FirstPart, OpenBlob};
pub use body::{Body, BodyError};
pub use content::Content;
pub use inspect::Inspected;
pub use manifest::{Extent, ServedManifest};
pub use proof::{Holder, Proofs};
pub use shelf::Shelf;

// What a story's bodies, errors and lists are made of, for those who know no upstream.
pub use crate::net::Piece;
pub use crate::upstream::{CheckError, FetchError, List, next_page};

use std::{cell::RefCell, collections::HashSet, rc::Rc, sync::Arc};

use serde::Deserialize;

use crate::{
    augment::{AugmentError, NamedOverlay},
    blocking::{Errand, Pool, PoolError},
    cache::{self, Cache, FillError},
    credentials::{self, Desk, Exchange, Exchanged, FindError, Side},
    oci::{Digest, ManifestError, Reference, Registry, Repository, TagOrDigest},
    requests::{Caller, Grant, Requests, Token},
    upstream::{Login, Renewal, Source, Upstream, WebPlace},
};

/// `[overlays]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Layers that a container request names by `https://` or `http://`. `"fetch"`: tidegate fetches them, and caches
    /// and verifies what it finds. A server with a private address is listed as a registry, with `allow_private`.
    /// `"redirect"`: the client goes there itself.
    pub web_layers: WebLayers,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WebLayers {
    #[default]
    Fetch,
    Redirect,
}

/// Who pulls, and from where.
#[derive(Clone, Debug)]
pub struct Access {
    /// What proofs are kept under.
    pub holder: Holder,
    pub caller: Arc<Caller>,
    pub registry: Registry,
    pub repository: Repository,
    /// By which he pulls, if something is put on its image.
    grant: Option<Arc<Grant>>,
    /// Where the bytes are, if that is no registry.
    web: Option<Arc<Web>>,
    /// Blobs are fetched here wherever the registry redirects to.
    follows_redirects: bool,
}

/// A grant's overlay and the image that it is for.
#[derive(Clone, Copy)]
struct Overlaid<'a> {
    token: Token,
    overlay: &'a Arc<NamedOverlay>,
    version: &'a TagOrDigest,
}

/// A layer's server. Its registry's name is made up for it then, so that whoever knows its URL shares what is cached of
/// it, and nobody else.
#[derive(Debug)]
struct Web {
    place: WebPlace,
    size: u64,
}

impl Access {
    pub fn by_grant(grant: &Arc<Grant>) -> Self {
        Self {
            grant: grant.overlay.is_some().then(|| Arc::clone(grant)),
            web: None,
            follows_redirects: false,
            holder: Holder::Token(grant.token),
            caller: Arc::clone(&grant.caller),
            registry: grant.image.registry.clone(),
            repository: grant.image.repository.clone(),
        }
    }

    pub fn anonymous(registry: Registry, repository: Repository) -> Self {
        Self {
            holder: Holder::Anyone(registry.clone(), repository.clone()),
            caller: Arc::new(Caller::Anonymous),
            registry,
            repository,
            grant: None,
            web: None,
            follows_redirects: false,
        }
    }

    /// For whoever reads on the caller's behalf and needs no name for it. Its proofs are of one use.
    pub fn by_caller(caller: &Arc<Caller>, registry: Registry, repository: Repository) -> Self {
        Self {
            holder: Holder::Token(Token::random()),
            caller: Arc::clone(caller),
            ..Self::anonymous(registry, repository)
        }
    }

    /// For whoever wants the bytes and cannot be sent elsewhere for them.
    #[must_use]
    pub fn following_redirects(self) -> Self {
        Self {
            follows_redirects: true,
            ..self
        }
    }

    /// What it reads is made here, of what the registry has.
    pub fn is_overlaid(&self) -> bool {
        self.overlaid().is_some()
    }

    fn overlaid(&self) -> Option<Overlaid<'_>> {
        let grant = self.grant.as_ref()?;
        Some(Overlaid {
            token: grant.token,
            overlay: grant.overlay.as_ref()?,
            version: &grant.image.version,
        })
    }
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum PullError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The caller's access ended after the name was given out.
    #[error("{0}")]
    Caller(Arc<FindError>),
    #[error("tidegate is busy: {0}")]
    Busy(#[from] PoolError),
    #[error("{registry} sent content that is not {digest}")]
    Mismatch { registry: Registry, digest: Digest },
    #[error("{registry} sent a manifest that cannot be served: {cause}")]
    Manifest {
        registry: Registry,
        cause: Arc<ManifestError>,
    },
    #[error("what is asked for cannot be made of this image: {0}")]
    Overlay(#[from] AugmentError),
    #[error("what belongs to this name cannot be read: {0}")]
    Belongings(Arc<std::io::Error>),
    #[error("{digest} could not be fetched from {registry}: {cause}")]
    Fill {
        registry: Registry,
        digest: Digest,
        cause: Arc<FillError>,
    },
}

/// One core's part in the story; what is behind the `Arc`s is everybody's.
pub struct Pull {
    upstream: Upstream,
    cache: Cache,
    pool: Arc<Pool>,
    desk: Arc<Desk>,
    exchange: Arc<Exchange>,
    requests: Arc<Requests>,
    options: Options,
    proofs: Arc<Proofs>,
    shelf: Arc<Shelf>,
    /// Registries seen to redirect blobs: no claim is taken for what will not be filled.
    redirecting: RefCell<HashSet<Registry>>,
}

/// What all cores have in common.
#[derive(Clone)]
pub struct Common {
    pub pool: Arc<Pool>,
    pub desk: Arc<Desk>,
    pub exchange: Arc<Exchange>,
    pub requests: Arc<Requests>,
    pub proofs: Arc<Proofs>,
    pub shelf: Arc<Shelf>,
    pub options: Options,
}

impl Pull {
    pub fn new(upstream: Upstream, cache: Cache, common: Common) -> Rc<Self> {
        let Common {
            pool,
            desk,
            exchange,
            requests,
            proofs,
            shelf,
            options,
        } = common;
        Rc::new(Self {
            upstream,
            cache,
            pool,
            desk,
            exchange,
            requests,
            options,
            proofs,
            shelf,
            redirecting: RefCell::default(),
        })
    }

    pub fn upstream(&self) -> &Upstream {
        &self.upstream
    }

    /// What the image's name means now, asked with the caller's own credentials.
    pub async fn resolve(
        &self,
        caller: &Arc<Caller>,
        image: &Reference,
    ) -> Result<Digest, PullError> {
        let (registry, repository) = (&image.registry, &image.repository);
        let ask = || self.resolve_once(caller, image);
        self.with_another_login(caller, registry, repository, ask)
            .await
    }

    async fn resolve_once(
        &self,
        caller: &Arc<Caller>,
        image: &Reference,
    ) -> Result<Digest, PullError> {
        let login = self
            .login(caller, &image.registry, &image.repository)
            .await?;
        let source = Source {
            registry: &image.registry,
            repository: &image.repository,
            login: &login,
        };
        let head = self.upstream.manifest_head(source, &image.version).await?;
        if let Some(digest) = head.and_then(|head| head.digest) {
            return Ok(digest);
        }
        let fetched = self.upstream.manifest(source, &image.version).await?;
        match fetched.digest {
            Some(digest) => Ok(digest),
            None => {
                let size = fetched.body.len();
                let digest = self.compute(size, move || Digest::of(&fetched.body));
                Ok(digest.await?)
            }
        }
    }

    /// Keeps what `resolve` found for the grant that came of it, so that its first pull need not ask what the tag
    /// means.
    pub fn note_resolution(&self, grant: &Arc<Grant>, digest: Digest) {
        let access = Access::by_grant(grant);
        self.proofs.note_allowed(&access, digest, None);
        if let TagOrDigest::Tag(tag) = &grant.image.version {
            self.shelf.note_tag(&access.holder, tag, digest);
        }
    }

    pub async fn tags(&self, access: &Access, query: Option<&str>) -> Result<List, PullError> {
        self.for_access(access, || self.tags_once(access, query))
            .await
    }

    async fn tags_once(&self, access: &Access, query: Option<&str>) -> Result<List, PullError> {
        let login = self.login_for(access).await?;
        Ok(self.upstream.tags(access.source(&login), query).await?)
    }

    pub async fn referrers(
        &self,
        access: &Access,
        digest: &Digest,
        query: Option<&str>,
    ) -> Result<List, PullError> {
        let ask = || self.referrers_once(access, digest, query);
        self.for_access(access, ask).await
    }

    async fn referrers_once(
        &self,
        access: &Access,
        digest: &Digest,
        query: Option<&str>,
    ) -> Result<List, PullError> {
        let login = self.login_for(access).await?;
        Ok(self
            .upstream
            .referrers(access.source(&login), digest, query)
            .await?)
    }

    fn login_for(&self, access: &Access) -> impl Future<Output = Result<Login, PullError>> {
        self.login(&access.caller, &access.registry, &access.repository)
    }

    /// Whose credentials serve the caller there, in the form that the registry takes.
    pub async fn login(
        &self,
        caller: &Arc<Caller>,
        registry: &Registry,
        repository: &Repository,
    ) -> Result<Login, PullError> {
        let (login, _) = self.login_and_side(caller, registry, repository).await?;
        Ok(login)
    }

    /// The same for those to whom it matters whose they are.
    pub async fn login_and_side(
        &self,
        caller: &Arc<Caller>,
        registry: &Registry,
        repository: &Repository,
    ) -> Result<(Login, Side), PullError> {
        let found = self.desk.find(caller, registry, repository).await?;
        let found = found.map_err(refused)?;
        tracing::debug!(login = found.description, "chosen");
        let side = found.side;
        let exchanged = self.exchange.login(registry, found.clone()).await?;
        let Exchanged {
            login,
            is_renewable,
        } = exchanged.map_err(refused)?;
        let renewal = is_renewable.then(|| self.renewal(registry, found, &login));
        let login = Login {
            credentials: login.credentials,
            identity: login.identity.into(),
            renewal,
        };
        Ok((login, side))
    }

    /// `ask` must ask nobody but the registry of `access`: another's refusal says nothing about this login.
    async fn for_access<T, F: Future<Output = Result<T, PullError>>>(
        &self,
        access: &Access,
        ask: impl Fn() -> F,
    ) -> Result<T, PullError> {
        let Access {
            caller,
            registry,
            repository,
            ..
        } = access;
        self.with_another_login(caller, registry, repository, ask)
            .await
    }

    /// A login that was remembered may have been replaced meanwhile: when it is refused, once more with a new one, if there
    /// may be one.
    async fn with_another_login<T, F: Future<Output = Result<T, PullError>>>(
        &self,
        caller: &Arc<Caller>,
        registry: &Registry,
        repository: &Repository,
        ask: impl Fn() -> F,
    ) -> Result<T, PullError> {
        match ask().await {
            Err(PullError::Fetch(FetchError::Refused { .. }))
                if self.doubt(caller, registry, repository) =>
            {
                ask().await
            }
            answer => answer,
        }
    }

    /// Parses or hashes `size` bytes: few of them here, more on the pool, so that the core's other connections need not
    /// wait for it.
    pub async fn compute<T: Send + 'static>(
        &self,
        size: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, PoolError> {
        /// A guess: its hash takes some ten microseconds, as an errand does. Most manifests are smaller by far.
        const MOST_ON_CORE: usize = 32 << 10;
        match size <= MOST_ON_CORE {
            true => Ok(work()),
            false => self.pool.run(Errand::Hash, work).await,
        }
    }

    /// The registry has just refused the caller's login. Whether there may be another.
    pub fn doubt(&self, caller: &Caller, registry: &Registry, repository: &Repository) -> bool {
        self.desk.doubt(caller, registry, repository)
    }

    /// For when the registry says that `spent`, which was made of `found`, has ended.
    fn renewal(
        &self,
        registry: &Registry,
        found: credentials::Login,
        spent: &credentials::Login,
    ) -> Renewal {
        let (exchange, registry) = (Arc::clone(&self.exchange), registry.clone());
        let spent = spent.credentials.clone();
        Renewal::new(move || {
            let (exchange, registry) = (Arc::clone(&exchange), registry.clone());
            let (found, spent) = (found.clone(), spent.clone());
            async move {
                let renewed = exchange.renew(&registry, found, spent.as_ref()?).await;
                renewed.ok()?.ok()?.login.credentials
            }
        })
    }
}

fn refused(error: FindError) -> PullError {
    PullError::Caller(Arc::new(error))
}

impl Access {
    /// Its registry's name is made of the URL.
    fn on_the_web(url: &str, place: WebPlace, size: u64) -> Self {
        const URL_DIGITS: usize = 32;
        let mut name = Digest::of(url.as_bytes()).hex();
        name.truncate(URL_DIGITS);
        let registry = Registry::made_up(&name);
        let repository = "layer".parse::<Repository>();
        let repository = repository.expect("a word is a repository's name");
        Self {
            web: Some(Arc::new(Web { place, size })),
            ..Self::anonymous(registry, repository)
        }
    }

    fn key(&self, digest: &Digest) -> cache::Key {
        cache::Key {
            registry: self.registry.clone(),
            digest: *digest,
        }
    }

    /// For messages.
    fn sender(&self) -> &Registry {
        self.web
            .as_ref()
            .map_or(&self.registry, |web| &web.place.server)
    }

    fn source<'a>(&'a self, login: &'a Login) -> Source<'a> {
        Source {
            registry: &self.registry,
            repository: &self.repository,
            login,
        }
    }
}
