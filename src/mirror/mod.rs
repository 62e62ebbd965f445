//! Copies that stay: an image from one registry put into another, byte for byte, or with its overlay on it (*freeze*).
//!
//! A copy reads by the story that clients pull by, so it has the cache, what is proved and the logins in common with
//! them; it pushes by `upstream`. It runs on a core, since it moves bytes and waits for two registries. It knows neither
//! why an image is copied nor what comes of it: that is for `api` and the command line.

mod blob;
mod choice;
mod contents;
mod copying;
mod error;
pub mod jobs;
mod names;
mod options;
mod parallel;
mod progress;
mod pusher;
mod referrers;
mod tree;
mod walk;
mod whereabouts;

pub use error::CopyError;
pub use names::{Frozen, NameError, Place};
pub use options::{MOST_BLOBS_IN_PARALLEL, Options};
pub use progress::{Item, Kind, Progress, Snapshot, State, Totals};
pub use pusher::PushRule;
pub use whereabouts::Whereabouts;

use std::{rc::Rc, sync::Arc};

use copying::Copying;
use pusher::Pusher;

use crate::{
    oci::{Digest, Platforms, Registry, Repository, TagOrDigest},
    pull::{Access, Pull},
    requests::Caller,
};

/// Whereto, and on whose behalf.
#[derive(Clone, Debug)]
pub struct Destination {
    pub registry: Registry,
    pub repository: Repository,
    pub version: TagOrDigest,
    pub caller: Arc<Caller>,
}

/// What is to be copied.
#[derive(Clone, Debug)]
pub struct Plan {
    /// `Access::by_caller`, or by a grant with an overlay.
    pub source: Access,
    pub version: TagOrDigest,
    pub destination: Destination,
    /// The image for it alone, or of an index what is for several; `None`: all that there is.
    pub platforms: Option<Platforms>,
    /// Signatures and the like, too.
    pub referrers: bool,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// What the destination means now.
    pub digest: Digest,
    /// Of the image and of what refers to it, indexes included.
    pub manifests: u64,
    /// Blobs.
    pub copied: u64,
    pub mounted: u64,
    pub present: u64,
    /// That were sent.
    pub bytes: u64,
}

/// One core's.
pub struct Mirror {
    pull: Rc<Pull>,
    options: Options,
    rule: PushRule,
    whereabouts: Arc<Whereabouts>,
}

impl Mirror {
    pub fn new(
        pull: &Rc<Pull>,
        options: &Options,
        rule: PushRule,
        whereabouts: &Arc<Whereabouts>,
    ) -> Rc<Self> {
        Rc::new(Self {
            pull: Rc::clone(pull),
            options: options.clone(),
            rule,
            whereabouts: Arc::clone(whereabouts),
        })
    }

    /// Whether the caller has a login for it. An error if it may not be pushed to with what he has.
    pub async fn has_login(&self, destination: &Destination) -> Result<bool, CopyError> {
        let login = Box::pin(self.pusher(destination).login()).await?;
        Ok(login.credentials.is_some())
    }

    /// Digest of what stands at the destination now, as far as its caller can see.
    pub async fn standing(&self, destination: &Destination) -> Result<Option<Digest>, CopyError> {
        let pusher = self.pusher(destination);
        Box::pin(pusher.standing(&destination.version)).await
    }

    /// Digest of what a copy will be. Only the source is asked.
    pub async fn outcome(&self, plan: &Plan) -> Result<Digest, CopyError> {
        let progress = Progress::default();
        let copying = Copying::new(self, plan, &progress);
        let root = Box::pin(copying.named_root()).await?;
        Ok(root.digest)
    }

    /// Whether the caller's login may push there, before much is transferred.
    pub async fn may_push(&self, destination: &Destination) -> Result<(), CopyError> {
        Box::pin(self.pusher(destination).try_push()).await
    }

    /// Ends soon after `progress` is cancelled. What was transferred by then is found there by the next attempt.
    pub async fn copy(
        self: &Rc<Self>,
        plan: &Plan,
        progress: &Arc<Progress>,
    ) -> Result<Copied, CopyError> {
        Box::pin(Copying::new(self, plan, progress).run()).await
    }

    fn pusher<'a>(&'a self, destination: &'a Destination) -> Pusher<'a> {
        Pusher {
            pull: &self.pull,
            rule: &self.rule,
            destination,
        }
    }
}
