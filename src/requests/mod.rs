//! Container requests and the tokens that stand for them.
//!
//! A submitted request becomes a *grant*, what its token allows, and a *record*, what is told about it later. Both
//! are one entry of an embedded database in the state folder; a bounded copy of the grants is in memory. All of
//! this blocks, but for `Requests::recent`.
//!
//! Invariants: an issued or revoked token is on disk before the caller hears of it. After `revoke` has returned, no
//! `recent` and no `find` gives the grant. Access tokens are on disk only sealed.

mod belongings;
mod client_time;
mod container_request;
mod durable;
mod grant;
mod group_commit;
mod recent;
mod record;
mod redb;
mod refreshable;
mod runs;
mod shares;
mod stored_overlay;
mod tenant;
mod token;

pub use belongings::KeepError;
pub use client_time::{ClientTime, ClientTimeError, unix_nanoseconds};
pub use container_request::{
    AtPlatform, Caller, ContainerRequest, InlineLayer, PlatformUser, RequestDetails,
};
pub use durable::{Durable, DurableKind, Purpose};
pub use grant::Grant;
pub use record::{Record, RecordError, RecordedUser};
pub use refreshable::{CallerId, DueCaller, Standing};
pub use runs::{DueRun, Lease, RunId, RunState};
pub use tenant::Tenant;
pub use token::{Token, TokenError};

use std::{
    error::Error,
    fs::{DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use serde::Deserialize;

use self::{
    belongings::{Belongings, Owner},
    recent::Recent,
    record::Entry,
    redb::Database,
    refreshable::Refreshable,
    runs::{Joined, Runs},
};
use crate::{
    oci::Digest,
    seal::{SealError, SealingKey},
    units::{ByteSize, HumanDuration},
};

/// `[tokens]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// How long an ephemeral name can be pulled: `"36h"`.
    pub lifetime: HumanDuration,
    /// How long a name that was asked for in a workflow run can be pulled without a sign that the run goes on: `"20m"`.
    pub run_lease: HumanDuration,
    /// How often the Platform is asked whether it does: `"3m"`.
    pub run_interval: HumanDuration,
    /// How long such a name can be pulled at the most: `"2days"`.
    pub run_lifetime: HumanDuration,
    /// How often the Platform is shown the access token of a user who has names and gave a refresh token, so that the token
    /// stays refreshable: `"1h"`.
    pub refresh_interval: HumanDuration,
    /// How long a request can be described after its token has expired: `"7days"`.
    pub record_retention: HumanDuration,
    /// What the layers may take up in `state_dir` that came with requests whose names can be pulled; equal ones are
    /// kept once. Requests beyond it are refused: `"10GiB"`.
    pub max_layers_size: ByteSize,
    /// The same of one workspace, or of one user without a workspace; callers without an access token are one, too. Default: a
    /// quarter of `max_layers_size`.
    pub max_layers_size_per_tenant: Option<ByteSize>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            lifetime: HumanDuration::hours(36),
            run_lease: HumanDuration::seconds(20 * 60),
            run_interval: HumanDuration::seconds(3 * 60),
            run_lifetime: HumanDuration::hours(2 * 24),
            refresh_interval: HumanDuration::hours(1),
            record_retention: HumanDuration::hours(7 * 24),
            max_layers_size: ByteSize::gib(10),
            max_layers_size_per_tenant: None,
        }
    }
}

impl Options {
    fn layers_size_of_one(&self) -> ByteSize {
        let quarter = ByteSize(self.max_layers_size.bytes() / 4);
        self.max_layers_size_per_tenant.unwrap_or(quarter)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("another tidegate uses {}; give this one a state_dir of its own", state_directory.display())]
    InUse { state_directory: PathBuf },
    /// A file that must be private, or the key.
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error(
        "{} is not the key that {} was written with; restore it, or remove both files and with them every ephemeral name",
        key.display(), database.display()
    )]
    WrongKey { key: PathBuf, database: PathBuf },
    #[error("{} cannot be used: {cause}; it is where state_dir or --state-dir says", path.display())]
    File { path: PathBuf, cause: io::Error },
    #[error("{} is not a database of container requests, or is damaged: {cause}", path.display())]
    Database {
        path: PathBuf,
        cause: Box<dyn Error + Send + Sync>,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the database of container requests failed: {cause}")]
    Database { cause: Box<dyn Error + Send + Sync> },
    /// Names the record by the beginning of its token: whoever has the whole token may pull.
    #[error("the record of container request {token:?} cannot be used: {cause}")]
    Record { token: Token, cause: RecordError },
    #[error(transparent)]
    Layers(#[from] KeepError),
}

/// One for the process, shared by all cores and the pool.
pub struct Requests {
    recent: Recent,
    runs: Runs,
    refreshable: Refreshable,
    database: Database,
    belongings: Belongings,
    key: Arc<SealingKey>,
    options: Options,
}

impl Requests {
    /// Creates what is missing: the folder, the database and the key.
    pub fn open(state_directory: &Path, options: &Options) -> Result<Self, OpenError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(state_directory)
            .map_err(|cause| OpenError::File {
                path: state_directory.to_owned(),
                cause,
            })?;
        // First the database: its lock keeps another process from creating a key of its own.
        let database = Database::open(state_directory)?;
        let key_path = state_directory.join("seal.key");
        let key = Arc::new(SealingKey::load_or_create(&key_path)?);
        let is_right_key =
            database
                .was_written_with(&key)
                .map_err(|cause| OpenError::Database {
                    path: database.path().to_owned(),
                    cause: cause.into(),
                })?;
        if !is_right_key {
            return Err(OpenError::WrongKey {
                key: key_path,
                database: database.path().to_owned(),
            });
        }
        let unusable_overlays = |cause| OpenError::File {
            path: state_directory.join("overlays"),
            cause,
        };
        let belongings = Belongings::open(state_directory, options).map_err(unusable_overlays)?;
        let requests = Self {
            recent: Recent::new(),
            runs: Runs::new(options),
            refreshable: Refreshable::new(options),
            database,
            belongings,
            key,
            options: options.clone(),
        };
        let now = SystemTime::now();
        let counted = requests
            .belongings
            .count(|token| requests.owner_of(token, now));
        counted.map_err(unusable_overlays)?;
        requests
            .load_runs(now)
            .map_err(|cause| OpenError::Database {
                path: requests.database.path().to_owned(),
                cause: cause.into(),
            })?;
        Ok(requests)
    }

    fn load_runs(&self, now: SystemTime) -> Result<(), StoreError> {
        for (id, bytes) in self.database.runs()? {
            if let Err(error) = self.runs.load(&id, &bytes, &self.key, now) {
                tracing::warn!(%error, "a workflow run cannot be taken up; its names have lapsed");
            }
        }
        Ok(())
    }

    /// Of the state folder, for what else is sealed there.
    pub fn sealing_key(&self) -> Arc<SealingKey> {
        Arc::clone(&self.key)
    }

    /// On disk when it returns. `resolved` is what the image's tag named when the request was checked.
    pub fn issue(
        &self,
        request: ContainerRequest,
        resolved: Option<Digest>,
        now: SystemTime,
    ) -> Result<Arc<Grant>, StoreError> {
        let created = unix_nanoseconds::from_time(now);
        let run = match request.purpose {
            Purpose::Name => self.runs.join(&request.caller, now, &self.key),
            // What stays does not end with a run.
            Purpose::Durable(_) | Purpose::Source(_) => None,
        };
        let lifetime = match request.purpose {
            Purpose::Name | Purpose::Durable(_) => *self.options.lifetime,
            Purpose::Source(lifetime) => lifetime,
        };
        let expires = match &run {
            Some(_) => unix_nanoseconds::from_time(self.runs.cap(now)),
            None => {
                let lifetime = u64::try_from(lifetime.as_nanos()).unwrap_or(u64::MAX);
                created.saturating_add(lifetime)
            }
        };
        let durable = request.purpose.durable().cloned().map(Arc::new);
        if let Some(Joined {
            id,
            to_store: Some(stored),
            ..
        }) = &run
        {
            let changes = [(id.as_str(), Some(stored.encode()))];
            self.database.write_runs(changes.into_iter())?;
        }
        loop {
            let grant = Arc::new(Grant {
                token: Token::random(),
                image: request.image.clone(),
                caller: Arc::clone(&request.caller),
                overlay: request.overlay.clone(),
                durable: durable.clone(),
                created: unix_nanoseconds::to_time(created),
                expires: unix_nanoseconds::to_time(expires),
                lease: run.as_ref().map(|run| Arc::clone(&run.lease)),
            });
            let ticket = self.recent.ticket(grant.token);
            let run = run.as_ref().map(|run| &run.id);
            let details = request.details.clone();
            let entry = Entry::new(&grant, run, details, resolved, &self.key);
            if self
                .database
                .insert(&grant.token, expires, entry.encode())?
            {
                let layers = request.layers.iter();
                let layers = layers.map(|layer| (&layer.digest, layer.bytes.as_slice()));
                if let Err(error) = self.keep_if_any(&grant, layers) {
                    self.revoke(&grant.token, now)?;
                    return Err(error.into());
                }
                // If it is not remembered, the first pull finds it on disk.
                let _ = self.recent.remember(&ticket, &grant);
                self.refreshable.join(&grant, now);
                return Ok(grant);
            }
        }
    }

    /// The workflow runs at this Platform that are to be asked about.
    pub fn due_runs(&self, endpoint: &str, now: SystemTime) -> Vec<DueRun> {
        self.runs.due(endpoint, now)
    }

    /// What was found out about them. Counts at once; after an error, not beyond a restart.
    pub fn note_runs(
        &self,
        looked_at: &[(RunId, RunState)],
        now: SystemTime,
    ) -> Result<(), StoreError> {
        let settled = self.runs.settle(looked_at, now, &self.key);
        if settled.is_empty() {
            return Ok(());
        }
        let changes = settled.iter();
        let changes = changes.map(|(id, run)| (id.as_str(), Some(run.encode())));
        self.database.write_runs(changes)
    }

    /// To be called once: callers whose names were there at the start. Reads them all.
    pub fn take_up_callers(&self, now: SystemTime) -> Result<(), StoreError> {
        let now_nanoseconds = unix_nanoseconds::from_time(now);
        self.database
            .each_expiring_after(now_nanoseconds, |token, bytes| {
                // A record that cannot be read is told of when it is asked for.
                let Ok(token) = token.parse::<Token>() else {
                    return;
                };
                let Ok(entry) = Entry::decode(bytes) else {
                    return;
                };
                if !entry.is_valid(now) || !entry.is_refreshable() {
                    return;
                }
                if let Ok(grant) = entry.grant(&token, None, &self.key) {
                    self.refreshable.take_up(&grant, now);
                }
            })
    }

    /// Users of this Platform whose access tokens are to be shown to it, so that they stay refreshable.
    pub fn due_callers(&self, endpoint: &str, now: SystemTime, most: usize) -> Vec<DueCaller> {
        self.refreshable.due(endpoint, now, most)
    }

    /// What the Platform said.
    pub fn note_caller(&self, id: &CallerId, standing: Standing, now: SystemTime) {
        self.refreshable.note(id, standing, now);
    }

    /// From memory only: for the cores, which must not wait. `None` says nothing; ask `find` then.
    pub fn recent(&self, token: &Token, now: SystemTime) -> Option<Arc<Grant>> {
        self.recent.find(token, now)
    }

    /// `None`: unknown, expired or revoked.
    pub fn find(&self, token: &Token, now: SystemTime) -> Result<Option<Arc<Grant>>, StoreError> {
        if let Some(grant) = self.recent.find(token, now) {
            return Ok(Some(grant));
        }
        loop {
            let ticket = self.recent.ticket(*token);
            let Some(entry) = self.entry(token)? else {
                return Ok(None);
            };
            if !entry.is_valid(now) {
                return Ok(None);
            }
            let lease = match entry.run() {
                None => None,
                Some(run) => match self.runs.lease(&run) {
                    // All of its names have lapsed.
                    None => return Ok(None),
                    lease => lease,
                },
            };
            let grant = entry.grant(token, lease, &self.key);
            let grant = Arc::new(grant.map_err(unusable(token))?);
            if grant.is_expired(now) {
                return Ok(None);
            }
            if self.recent.remember(&ticket, &grant) {
                return Ok(Some(grant));
            }
            // Something was revoked since we read, and maybe this.
        }
    }

    /// Whether there was something to revoke: not if the token is unknown, expired or revoked already. On disk when
    /// it returns.
    pub fn revoke(&self, token: &Token, now: SystemTime) -> Result<bool, StoreError> {
        let of = *token;
        let was_valid = self.database.update(token, move |bytes| {
            let mut entry = Entry::decode(bytes).map_err(unusable(&of))?;
            if !entry.is_valid(now) {
                return Ok(None);
            }
            entry.revoke(now);
            Ok(Some(entry.encode()))
        })?;
        self.recent.forget_revoked(token);
        self.refreshable.forget(token);
        Ok(was_valid)
    }

    /// Also of an expired or revoked token, until it is purged.
    pub fn record(&self, token: &Token) -> Result<Option<Record>, StoreError> {
        let Some(entry) = self.entry(token)? else {
            return Ok(None);
        };
        entry.record(token).map(Some).map_err(unusable(token))
    }

    /// What was made of an image for this token. On disk when it returns, as long as the token is good.
    pub fn keep<'c>(
        &self,
        token: &Token,
        contents: impl IntoIterator<Item = (&'c Digest, &'c [u8])>,
    ) -> Result<(), KeepError> {
        self.belongings.keep(token, contents)
    }

    fn keep_if_any<'c>(
        &self,
        grant: &Grant,
        layers: impl ExactSizeIterator<Item = (&'c Digest, &'c [u8])> + Clone,
    ) -> Result<(), KeepError> {
        if layers.len() == 0 {
            return Ok(());
        }
        let tenant = Tenant::of(&grant.caller);
        self.belongings.keep_layers(&grant.token, &tenant, layers)
    }

    /// A layer that came with the token's request, or what was made for it, and its size.
    pub fn belonging(&self, token: &Token, digest: &Digest) -> io::Result<Option<(File, u64)>> {
        self.belongings.find(token, digest)
    }

    /// Of all belongings.
    pub fn layers_size(&self) -> u64 {
        self.belongings.used_bytes()
    }

    /// Whether the next `note_pull` may be the first one, so that those after it need not be made. For the cores.
    pub fn may_be_first_pull(&self, token: &Token) -> bool {
        self.recent.mark_pulled(token)
    }

    /// The pull was not noted, so another one is to be.
    pub fn forget_pull(&self, token: &Token) {
        self.recent.unmark_pulled(token);
    }

    /// What the first manifest that was pulled came from, and what was served. Later ones change nothing, and cost one
    /// read.
    pub fn note_pull(
        &self,
        token: &Token,
        source: Digest,
        served: Digest,
    ) -> Result<(), StoreError> {
        let Some(entry) = self.entry(token)? else {
            return Ok(());
        };
        if entry.has_source_digest() {
            return Ok(());
        }
        let of = *token;
        self.database.update(token, move |bytes| {
            let mut entry = Entry::decode(bytes).map_err(unusable(&of))?;
            if entry.has_source_digest() {
                return Ok(None);
            }
            entry.note_pull(source, served);
            Ok(Some(entry.encode()))
        })?;
        Ok(())
    }

    /// Deletes the records that have been kept long enough, and says how many. To be called now and then.
    pub fn purge(&self, now: SystemTime) -> Result<usize, StoreError> {
        self.recent.forget_expired(now);
        // First what makes room: a full disk refuses the rest.
        self.purge_belongings(now);
        let over = self.runs.purge(now);
        if !over.is_empty() {
            let changes = over.iter().map(|id| (id.as_str(), None));
            self.database.write_runs(changes)?;
        }
        let retention = u64::try_from(self.options.record_retention.as_nanos()).unwrap_or(u64::MAX);
        let Some(before) = unix_nanoseconds::from_time(now).checked_sub(retention) else {
            return Ok(0);
        };
        let mut purged = 0;
        loop {
            let count = self.database.purge_some(before)?;
            purged += count;
            if count == 0 {
                return Ok(purged);
            }
        }
    }

    fn purge_belongings(&self, now: SystemTime) {
        match self.belongings.purge(|token| self.owner_of(token, now)) {
            Ok(0) => {}
            Ok(bytes) => {
                tracing::debug!(bytes, "layers of expired container requests were removed")
            }
            Err(error) => {
                tracing::warn!(%error, "layers of expired container requests could not be removed");
            }
        }
    }

    /// Whatever its lease says, which may be renewed. Better kept too long.
    fn owner_of(&self, token: &Token, now: SystemTime) -> Owner {
        match self.entry(token) {
            Ok(Some(entry)) if entry.is_valid(now) => Owner::Tenant(entry.tenant()),
            Ok(_) => Owner::Nobody,
            Err(_) => Owner::Unknown,
        }
    }

    fn entry(&self, token: &Token) -> Result<Option<Entry>, StoreError> {
        let Some(bytes) = self.database.read(token)? else {
            return Ok(None);
        };
        Entry::decode(&bytes).map(Some).map_err(unusable(token))
    }
}

fn unusable(token: &Token) -> impl FnOnce(RecordError) -> StoreError {
    let token = *token;
    move |cause| StoreError::Record { token, cause }
}

#[cfg(test)]
mod tests;
