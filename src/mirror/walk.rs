//! Reading manifests for a copy, from the roots to the leaves, and looking which of them the destination has.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
};

use super::{
    CopyError, Kind, State,
    contents::{Contents, is_image, is_index},
    copying::Copying,
    parallel::for_each,
    tree::Node,
};
use crate::{
    oci::{Descriptor, Digest, TagOrDigest},
    pull::{Extent, PullError},
};

/// Manifests of one copy. Large images have some dozen, and as much again that refers to them.
const MOST_MANIFESTS: usize = 2048;
/// Bytes of manifests, which are in memory until all are pushed.
const MOST_MANIFEST_BYTES: u64 = 64 << 20;
/// Indexes in indexes.
const DEEPEST: usize = 8;

/// A manifest as a walk comes upon it.
pub(super) struct Met {
    digest: Digest,
    /// `None`: nothing of it is needed.
    node: Option<Node>,
    /// At the destination.
    is_there: bool,
}

impl Met {
    pub(super) fn digest(&self) -> Digest {
        self.digest
    }

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

impl Copying<'_> {
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
        let read = bytes.clone();
        let contents = pull
            .compute(bytes.len(), move || Contents::parse(&read))
            .await
            .map_err(PullError::from)?;
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

    pub(super) fn met_there(&self, node: Node) -> Met {
        self.track(&node).set(State::Present);
        Met {
            digest: node.digest,
            node: Some(node),
            is_there: true,
        }
    }

    pub(super) async fn is_there(&self, digest: Digest) -> Result<bool, CopyError> {
        let version = TagOrDigest::Digest(digest);
        let standing = self.pusher.standing(&version);
        Ok(self.unless_cancelled(standing).await?.is_some())
    }
}
