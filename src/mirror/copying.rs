//! One copy, from its first question to the tag: the manifests are read, the blobs brought, the manifests pushed from the
//! leaves upwards, what refers to them after them, and the tag at the very end. Whoever pulls from the destination
//! meanwhile sees what stood there before, or all that is new.

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    sync::Arc,
    time::Duration,
};

use serde_json::Value;

use super::{
    Copied, CopyError, Kind, Mirror, Plan, Progress, State,
    contents::{Part, is_index},
    parallel::for_each,
    progress::Tracked,
    pusher::Pusher,
    tree::{Node, by_height},
    walk::{Standing, Walk},
};
use crate::{
    oci::{Digest, TagOrDigest},
    pull::{Access, Extent, ServedManifest},
};

/// Blobs of one copy: thirty platforms with as many layers as an image can have.
const MOST_BLOBS: usize = 4096;

pub(super) struct Copying<'a> {
    pub(super) mirror: &'a Mirror,
    pub(super) plan: &'a Plan,
    pub(super) progress: &'a Progress,
    pub(super) source: Access,
    pub(super) pusher: Pusher<'a>,
    /// Manifests that were met, whatever became of them.
    pub(super) seen: RefCell<HashSet<Digest>>,
    blobs_seen: RefCell<HashSet<Digest>>,
    pub(super) manifest_bytes: Cell<u64>,
    /// Of lists of what refers to something.
    pub(super) list_bytes: Cell<u64>,
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

impl<'a> Copying<'a> {
    pub(super) fn new(mirror: &'a Mirror, plan: &'a Plan, progress: &'a Progress) -> Self {
        Self {
            mirror,
            plan,
            progress,
            source: plan.source.clone().following_redirects(),
            pusher: Pusher {
                pull: &mirror.pull,
                rule: &mirror.rule,
                destination: &plan.destination,
            },
            seen: RefCell::default(),
            blobs_seen: RefCell::default(),
            manifest_bytes: Cell::default(),
            list_bytes: Cell::default(),
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
            && self.plan.platforms.is_none()
            && self.head().await?.digest == standing
        {
            return Ok(self.copied(standing));
        }

        let root = self.named_root().await?;
        let digest = root.digest;
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

    /// What the destination is to mean, if it can.
    pub(super) async fn named_root(&self) -> Result<Node, CopyError> {
        let root = self.root().await?;
        match &self.plan.destination.version {
            TagOrDigest::Digest(named) if *named != root.digest => Err(CopyError::OtherDigest {
                named: named.to_string(),
                copied: root.digest.to_string(),
            }),
            TagOrDigest::Digest(_) | TagOrDigest::Tag(_) => Ok(root),
        }
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

    async fn head(&self) -> Result<ServedManifest, CopyError> {
        let pull = &self.mirror.pull;
        let head = pull.manifest(&self.source, &self.plan.version, Extent::Head);
        self.unless_cancelled(async { Ok(head.await?) }).await
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
        let mut blobs = Vec::new();
        for node in nodes() {
            let new = |part: &&Part| self.blobs_seen.borrow_mut().insert(part.digest);
            blobs.extend(node.contents.blobs.iter().filter(new));
            if self.blobs_seen.borrow().len() > MOST_BLOBS {
                return Err(self.unfit(
                    &node.digest,
                    format!("with those before it, it has more than {MOST_BLOBS} blobs"),
                ));
            }
        }
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
        let pushed =
            self.pusher
                .push_manifest(version, &node.digest, &node.media_type, &node.bytes);
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

    pub(super) fn track(&self, node: &Node) -> Arc<Tracked> {
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

    /// Answers when no more is to be done. Looking now and then spares the copy a waker that crosses threads, and whoever
    /// cancels does not mind.
    pub(super) async fn stopped(&self) {
        /// How long a wait of a copy that was cancelled may go on.
        const CHECK: Duration = Duration::from_millis(200);
        while self.go_on().is_ok() {
            monoio::time::sleep(CHECK).await;
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
                () = self.stopped() => Err(CopyError::Cancelled),
            }
        }
    }
}
