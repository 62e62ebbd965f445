//! One copy, from its first question to the tag: the manifests are read, the blobs brought, the manifests pushed from the
//! leaves upwards, what refers to them after them, and the tag at the very end. Whoever pulls from the destination
//! meanwhile sees what stood there before, or all that is new.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
    sync::Arc,
};

use serde_json::Value;

use super::{
    Copied, CopyError, Kind, Mirror, Plan, Progress, State,
    contents::{Contents, is_image, is_index},
    parallel::for_each,
    progress::Tracked,
    pusher::Pusher,
    tree::{Node, by_height},
};
use crate::{
    augment::{AugmentError, Target},
    oci::{Descriptor, Digest, Platform, TagOrDigest},
    pull::{Access, Extent, PullError, ServedManifest},
    upstream::Source,
};

/// Manifests of one copy. Large images have some dozen, and as much again that refers to them.
const MOST_MANIFESTS: usize = 2048;
/// Bytes of manifests, which are in memory until all are pushed.
const MOST_MANIFEST_BYTES: u64 = 64 << 20;
/// Indexes in indexes.
const DEEPEST: usize = 8;
/// Of an image.
const LARGEST_CONFIG: usize = 8 << 20;

pub(super) struct Copying<'a> {
    pub(super) mirror: &'a Mirror,
    pub(super) plan: &'a Plan,
    pub(super) progress: &'a Progress,
    pub(super) source: Access,
    pub(super) pusher: Pusher<'a>,
    /// Manifests that were met, whatever became of them.
    seen: RefCell<HashSet<Digest>>,
    blobs_seen: RefCell<HashSet<Digest>>,
    manifest_bytes: Cell<u64>,
    tally: Cell<Tally>,
    /// Something has failed: what is on its way may end.
    is_ending: Cell<bool>,
    /// Manifests with a subject, of which the destination did not say that it lists them.
    pub(super) unlisted: RefCell<Vec<(Digest, Value)>>,
    /// Whether the source lists referrers, as soon as it was asked; and whether the destination does.
    pub(super) source_lists: Cell<Option<bool>>,
    pub(super) destination_lists: Cell<Option<bool>>,
}

#[derive(Clone, Copy, Default)]
struct Tally {
    copied: u64,
    mounted: u64,
    present: u64,
    bytes: u64,
}

/// A manifest as a walk comes upon it.
pub(super) struct Met {
    digest: Digest,
    /// `None`: nothing of it is needed.
    node: Option<Node>,
    /// At the destination.
    is_there: bool,
}

impl Met {
    pub(super) fn is_there(&self) -> bool {
        self.is_there
    }
}

#[derive(Default)]
pub(super) struct Walk {
    /// All that were met, the roots included.
    pub(super) names: Vec<Digest>,
    /// What the destination does not have.
    pub(super) missing: HashMap<Digest, Node>,
}

/// What is known of the destination before a walk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Each manifest is looked for.
    Unknown,
    /// The root is what stands there, so all below it is there, too.
    Whole,
}

impl<'a> Copying<'a> {
    pub(super) fn new(mirror: &'a Mirror, plan: &'a Plan, progress: &'a Progress) -> Self {
        Self {
            mirror,
            plan,
            progress,
            source: plan.source.clone().following_redirects(),
            pusher: Pusher {
                pull: &mirror.pull,
                destination: &plan.destination,
            },
            seen: RefCell::default(),
            blobs_seen: RefCell::default(),
            manifest_bytes: Cell::default(),
            tally: Cell::default(),
            is_ending: Cell::default(),
            unlisted: RefCell::default(),
            source_lists: Cell::default(),
            destination_lists: Cell::default(),
        }
    }

    pub(super) async fn run(&self) -> Result<Copied, CopyError> {
        let version = &self.plan.destination.version;
        let standing = self.unless_cancelled(self.pusher.standing(version)).await?;
        let wants_referrers = self.plan.referrers && !self.source.is_overlaid();
        if let Some(standing) = standing
            && !wants_referrers
            && self.plan.platform.is_none()
            && self.head().await?.digest == standing
        {
            return Ok(self.copied(standing));
        }

        let root = self.root().await?;
        let digest = root.digest;
        if let TagOrDigest::Digest(named) = version
            && *named != digest
        {
            return Err(CopyError::OtherDigest {
                named: named.to_string(),
                copied: digest.to_string(),
            });
        }
        let is_standing = standing == Some(digest);
        let walk = match is_standing {
            true => {
                let met = self.met_there(root.clone());
                self.walk(vec![met], Standing::Whole).await?
            }
            false => {
                let met = self.meet_node(root.clone()).await?;
                self.walk(vec![met], Standing::Unknown).await?
            }
        };
        self.bring(&walk, &HashSet::from([digest])).await?;

        let mut is_there = !walk.missing.contains_key(&digest);
        if wants_referrers {
            let mut found = self.find_referrers(&walk.names).await?;
            if !found.is_empty() && !is_there {
                // A registry may want the subject before what refers to it. So nobody sees it yet.
                self.push(&root, &TagOrDigest::Digest(digest)).await?;
                is_there = true;
            }
            while !found.is_empty() {
                found = self.bring_referrers(found).await?;
            }
        }
        let is_named = match version {
            TagOrDigest::Tag(_) => is_standing,
            TagOrDigest::Digest(_) => is_there,
        };
        if !is_named {
            self.push(&root, version).await?;
        }
        if wants_referrers {
            self.list_referrers().await?;
        }
        Ok(self.copied(digest))
    }

    fn copied(&self, digest: Digest) -> Copied {
        let tally = self.tally.get();
        Copied {
            digest,
            manifests: (self.seen.borrow().len() as u64).max(1),
            copied: tally.copied,
            mounted: tally.mounted,
            present: tally.present,
            bytes: tally.bytes,
        }
    }

    /// What becomes the destination's version.
    async fn root(&self) -> Result<Node, CopyError> {
        let top = self.read(&self.plan.version).await?;
        let Some(wanted) = &self.plan.platform else {
            return Ok(top);
        };
        let no_platform = |present| CopyError::NoPlatform {
            wanted: wanted.clone(),
            present,
        };
        match Target::of(wanted, &top.media_type, &top.bytes) {
            Ok(Target::Index { images }) => {
                let image = images
                    .first()
                    .ok_or_else(|| no_platform("nothing".to_owned()))?;
                self.read(&TagOrDigest::Digest(image.digest)).await
            }
            Ok(Target::Image { config }) => match self.other_platform(wanted, &config).await? {
                Some(present) => Err(no_platform(present)),
                None => Ok(top),
            },
            // Charts and the like are for every platform.
            Err(AugmentError::Artifact { .. }) => Ok(top),
            Err(AugmentError::NoPlatform { present, .. }) => Err(no_platform(present)),
            Err(error) => Err(self.unfit(&top.digest, error.to_string())),
        }
    }

    /// The platform of a single image, if it is another one.
    async fn other_platform(
        &self,
        wanted: &Platform,
        config: &Descriptor,
    ) -> Result<Option<String>, CopyError> {
        #[derive(serde::Deserialize)]
        struct Shape {
            #[serde(default)]
            os: String,
            #[serde(default)]
            architecture: String,
            #[serde(default)]
            variant: Option<String>,
        }
        // Its configuration is made here, for the platform of the overlay.
        if self.source.is_overlaid() {
            return Ok(None);
        }
        let Access {
            caller,
            registry,
            repository,
            ..
        } = &self.source;
        let pull = &self.mirror.pull;
        let fetched = async {
            let login = pull.login(caller, registry, repository).await?;
            let source = Source {
                registry,
                repository,
                login: &login,
            };
            let upstream = pull.upstream();
            let fetched = upstream
                .whole_blob(source, &config.digest, LARGEST_CONFIG)
                .await;
            Ok(fetched.map_err(PullError::Fetch)?)
        };
        let config = self.unless_cancelled(fetched).await?;
        // Nothing is known of it, then.
        let Ok(found) = serde_json::from_slice::<Shape>(&config) else {
            return Ok(None);
        };
        let Shape {
            os,
            architecture,
            variant,
        } = found;
        if architecture.is_empty() || wanted.is_met_by(&os, &architecture, variant.as_deref()) {
            return Ok(None);
        }
        let variant = variant.filter(|variant| !variant.is_empty());
        let variant = variant.map(|variant| format!("/{variant}"));
        let present = format!("{os}/{architecture}{}", variant.unwrap_or_default());
        Ok(Some(present.chars().take(60).collect()))
    }

    async fn head(&self) -> Result<ServedManifest, CopyError> {
        let pull = &self.mirror.pull;
        let head = pull.manifest(&self.source, &self.plan.version, Extent::Head);
        self.unless_cancelled(async { Ok(head.await?) }).await
    }

    pub(super) async fn read(&self, version: &TagOrDigest) -> Result<Node, CopyError> {
        let pull = &self.mirror.pull;
        let manifest = pull.manifest(&self.source, version, Extent::Whole);
        let served = self.unless_cancelled(async { Ok(manifest.await?) }).await?;
        let digest = served.digest;
        let Some(bytes) = served.bytes else {
            return Err(self.unfit(&digest, "it came without its bytes".to_owned()));
        };
        let held = self.manifest_bytes.get() + bytes.len() as u64;
        self.manifest_bytes.set(held);
        if held > MOST_MANIFEST_BYTES {
            return Err(self.unfit(
                &digest,
                format!(
                    "with those before it, it makes more than {MOST_MANIFEST_BYTES} bytes of manifests"
                ),
            ));
        }
        let contents = Contents::parse(&bytes);
        Ok(Node {
            digest,
            media_type: served.media_type,
            contents: contents.map_err(|problem| self.unfit(&digest, problem))?,
            bytes,
        })
    }

    pub(super) fn unfit(&self, digest: &Digest, problem: String) -> CopyError {
        CopyError::Manifest {
            registry: self.source.registry.clone(),
            digest: *digest,
            problem,
        }
    }

    /// All that stands below the roots. An index is read even if the destination has it: some registries take one
    /// without what it names. An image that is there is whole.
    pub(super) async fn walk(
        &self,
        roots: Vec<Met>,
        standing: Standing,
    ) -> Result<Walk, CopyError> {
        let mut walk = Walk::default();
        let mut met = roots;
        for _ in 0..DEEPEST {
            let mut below = Vec::new();
            for Met {
                digest,
                node,
                is_there,
            } in met
            {
                self.note_seen(digest)?;
                walk.names.push(digest);
                if let Some(node) = node {
                    below.extend(node.contents.manifests.iter().cloned());
                    if !is_there {
                        walk.missing.insert(digest, node);
                    }
                }
            }
            below.retain(|child| !self.has_seen(&child.digest));
            let mut once = HashSet::new();
            below.retain(|child| once.insert(child.digest));
            if below.is_empty() {
                return Ok(walk);
            }
            met = self.meet_all(below, standing).await?;
        }
        Err(match walk.names.first() {
            Some(root) => self.unfit(
                root,
                format!("it has indexes in indexes, more than {DEEPEST} deep"),
            ),
            None => CopyError::Cancelled,
        })
    }

    pub(super) fn has_seen(&self, digest: &Digest) -> bool {
        self.seen.borrow().contains(digest)
    }

    fn note_seen(&self, digest: Digest) -> Result<(), CopyError> {
        let mut seen = self.seen.borrow_mut();
        seen.insert(digest);
        match seen.len() > MOST_MANIFESTS {
            true => Err(self.unfit(
                &digest,
                format!("with what refers to it, it has more than {MOST_MANIFESTS} manifests"),
            )),
            false => Ok(()),
        }
    }

    async fn meet_all(
        &self,
        named: Vec<Descriptor>,
        standing: Standing,
    ) -> Result<Vec<Met>, CopyError> {
        let met = RefCell::new(Vec::with_capacity(named.len()));
        for_each(named, self.width(), |descriptor| {
            let met = &met;
            async move {
                let one = self.meet(&descriptor, standing).await?;
                met.borrow_mut().push(one);
                Ok::<_, CopyError>(())
            }
        })
        .await?;
        Ok(met.into_inner())
    }

    pub(super) async fn meet(
        &self,
        named: &Descriptor,
        standing: Standing,
    ) -> Result<Met, CopyError> {
        let digest = named.digest;
        let is_there = standing == Standing::Whole || self.is_there(digest).await?;
        let node = match is_there && is_image(&named.media_type) {
            true => None,
            false => Some(self.read(&TagOrDigest::Digest(digest)).await?),
        };
        let kind = match is_index(&named.media_type) {
            true => Kind::Index,
            false => Kind::Manifest,
        };
        let tracked = self.progress.track(digest, kind, named.size);
        if is_there {
            tracked.set(State::Present);
        }
        Ok(Met {
            digest,
            node,
            is_there,
        })
    }

    pub(super) async fn meet_node(&self, node: Node) -> Result<Met, CopyError> {
        match self.is_there(node.digest).await? {
            true => Ok(self.met_there(node)),
            false => {
                self.track(&node);
                Ok(Met {
                    digest: node.digest,
                    node: Some(node),
                    is_there: false,
                })
            }
        }
    }

    fn met_there(&self, node: Node) -> Met {
        self.track(&node).set(State::Present);
        Met {
            digest: node.digest,
            node: Some(node),
            is_there: true,
        }
    }

    async fn is_there(&self, digest: Digest) -> Result<bool, CopyError> {
        let version = TagOrDigest::Digest(digest);
        let standing = self.pusher.standing(&version);
        Ok(self.unless_cancelled(standing).await?.is_some())
    }

    /// What is missing, but the manifests in `except`: their blobs, and all below them.
    pub(super) async fn bring(
        &self,
        walk: &Walk,
        except: &HashSet<Digest>,
    ) -> Result<(), CopyError> {
        let groups = by_height(&walk.missing);
        let nodes = || {
            let ordered = groups.iter().flatten();
            ordered.filter_map(|digest| walk.missing.get(digest))
        };
        let blobs: Vec<_> = nodes()
            .flat_map(|node| &node.contents.blobs)
            .filter(|part| self.blobs_seen.borrow_mut().insert(part.digest))
            .collect();
        for part in &blobs {
            self.progress.track(part.digest, part.kind, part.size);
        }
        for_each(blobs, self.width(), |part| self.bring_blob(part)).await?;
        for group in &groups {
            let group = group.iter().filter(|digest| !except.contains(digest));
            let nodes = group.filter_map(|digest| walk.missing.get(digest));
            for_each(nodes, self.width(), |node| async {
                self.push(node, &TagOrDigest::Digest(node.digest)).await
            })
            .await?;
        }
        Ok(())
    }

    pub(super) async fn push(&self, node: &Node, version: &TagOrDigest) -> Result<(), CopyError> {
        self.go_on()?;
        let tracked = self.track(node);
        tracked.set(State::Copying);
        let pushed = self
            .pusher
            .push_manifest(version, &node.media_type, &node.bytes);
        let pushed = Box::pin(pushed).await;
        let pushed = pushed.inspect_err(|_| tracked.set(State::Failed))?;
        tracked.set(State::Copied);
        match (node.contents.subject, pushed.subject) {
            (Some(subject), None) => {
                let listed = (subject, node.as_listed());
                self.unlisted.borrow_mut().push(listed);
            }
            (_, Some(_)) => self.destination_lists.set(Some(true)),
            (None, None) => {}
        }
        Ok(())
    }

    fn track(&self, node: &Node) -> Arc<Tracked> {
        let kind = match is_index(&node.media_type) {
            true => Kind::Index,
            false => Kind::Manifest,
        };
        self.progress
            .track(node.digest, kind, node.bytes.len() as u64)
    }

    pub(super) fn count_blob(&self, state: State, size: u64) {
        let mut tally = self.tally.get();
        match state {
            State::Copied => {
                tally.copied += 1;
                tally.bytes += size;
            }
            State::Mounted => tally.mounted += 1,
            State::Present => tally.present += 1,
            State::Waiting | State::Copying | State::Skipped | State::Failed => {}
        }
        self.tally.set(tally);
    }

    pub(super) fn width(&self) -> usize {
        self.mirror.options.blobs_in_parallel
    }

    pub(super) fn end(&self) {
        self.is_ending.set(true);
    }

    pub(super) fn go_on(&self) -> Result<(), CopyError> {
        match self.progress.is_cancelled() || self.is_ending.get() {
            true => Err(CopyError::Cancelled),
            false => Ok(()),
        }
    }

    /// For what may be given up at any moment. In a box at once: what asks a registry is large, and there are many of these.
    pub(super) fn unless_cancelled<'w, T: 'w>(
        &'w self,
        work: impl Future<Output = Result<T, CopyError>> + 'w,
    ) -> impl Future<Output = Result<T, CopyError>> + 'w {
        let work = Box::pin(work);
        async move {
            self.go_on()?;
            monoio::select! {
                done = work => done,
                () = self.progress.cancelled() => Err(CopyError::Cancelled),
            }
        }
    }
}
