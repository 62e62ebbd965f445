//! Copies as jobs: taken from whoever asks, kept across restarts, run on the cores when it is their turn, and told of
//! afterwards. What a copy does is `mirror`'s; here is who gets one, when, how often, and what became of it.
//!
//! Invariants: of equal wishes of one tenant one job runs, and no tenant is told of another's. Of unequal ones for one name the
//! last has effect (succession.rs). A job is on disk before its id is told; what a process did not finish, the next one does again,
//! and finds at the target what is there already. Every job ends: by its own end, by `job_timeout`, by its last attempt, because
//! whoever asked took it back, or because he asked for something else by the same name.
//!
//! All of this blocks, but for `run` (worker.rs), `counts`, `totals`,
//! `is_contested` and `interrupt`.

mod course;
mod id;
mod job;
mod journal;
mod live;
mod queue;
mod store;
mod succession;
mod worker;

pub use id::{JobId, JobIdError};
pub use job::{Ended, Job, JobKey, JobRecord, Outcome};
pub use queue::Full;
pub use store::{OpenError, StoreError};
pub use worker::run;

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Condvar, Mutex},
    time::{Duration, SystemTime},
};

use self::{
    journal::Journal,
    live::{Live, Phase},
    queue::{Away, Limits, Queue},
    store::Store,
    succession::GivenUp,
};
use super::{Options, Totals};
use crate::{
    blocking::{Inbox, Pool, lock},
    oci::{Digest, Platforms, Reference, TagOrDigest},
    requests::{
        self, ContainerRequest, DurableKind, Purpose, Requests, Tenant, Token, unix_nanoseconds,
    },
};

/// Longer than a job may wait and run: a full queue of slow copies is worked off in a day.
const READING_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);
/// Clients that ask again at once are told the same failure again; people who have put something right need not wait long.
const FAILURE_LIFETIME: Duration = Duration::from_secs(10);

/// A job that ends its process must not do so for ever.
const MOST_ATTEMPTS: u32 = 20;

/// What is asked for.
pub struct Wish {
    pub kind: DurableKind,
    /// Of the source, with its overlay and layers.
    pub request: ContainerRequest,
    /// What the source is.
    pub digest: Digest,
    pub target: Reference,
    pub platform: Option<Platforms>,
}

impl Wish {
    pub fn key(&self) -> JobKey {
        JobKey::of(
            self.kind,
            &self.tenant(),
            &self.digest,
            &self.target,
            self.platform.as_ref(),
        )
    }

    fn tenant(&self) -> Tenant {
        Tenant::of(&self.request.caller)
    }
}

/// What came of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It waits or runs now.
    Going(JobId),
    /// It failed a moment ago.
    Failed(JobId),
}

impl Taken {
    pub fn id(&self) -> &JobId {
        match self {
            Self::Going(id) | Self::Failed(id) => id,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    #[error(transparent)]
    Full(#[from] Full),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Requests(#[from] requests::StoreError),
}

/// One for the process.
pub struct Jobs {
    store: Store,
    requests: Arc<Requests>,
    pool: Arc<Pool>,
    options: Options,
    table: Mutex<Table>,
    /// A job of the table runs no more.
    stopped: Condvar,
    /// What each core is to run.
    cores: Vec<Inbox<Arc<Live>>>,
    /// Held while it is decided whether a wish becomes a job, disk included.
    deciding: Mutex<()>,
}

/// What did not end, and what ended and could not be written.
struct Table {
    live: HashMap<JobId, Arc<Live>>,
    by_key: HashMap<JobKey, JobId>,
    queue: Queue<JobId>,
    /// Running jobs of each core.
    load: Vec<usize>,
    /// The process is to end: no job gets a turn any more.
    is_closing: bool,
}

/// How many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    pub waiting: usize,
    pub running: usize,
}

impl Jobs {
    /// Takes up what was not finished.
    pub fn open(
        state_directory: &Path,
        options: &Options,
        requests: Arc<Requests>,
        pool: Arc<Pool>,
        core_count: usize,
    ) -> Result<Arc<Self>, OpenError> {
        let store = Store::open(state_directory)?;
        let queue = Queue::new(Limits {
            running: options.max_running,
            running_of_one: options.max_running_per_tenant,
            waiting: options.max_waiting,
            waiting_of_one: options.max_waiting_per_tenant,
        });
        let jobs = Self {
            store,
            requests,
            pool,
            options: options.clone(),
            table: Mutex::new(Table {
                live: HashMap::new(),
                by_key: HashMap::new(),
                queue,
                load: vec![0; core_count],
                is_closing: false,
            }),
            stopped: Condvar::new(),
            cores: (0..core_count).map(|_| Inbox::default()).collect(),
            deciding: Mutex::new(()),
        };
        match jobs.store.unfinished() {
            Ok(unfinished) => {
                for (entry, log) in unfinished {
                    let given_up = match (entry.holders, entry.superseded_by) {
                        (0, _) => Some(Outcome::Cancelled),
                        (_, Some(by)) => Some(Outcome::Superseded { by }),
                        (_, None) => None,
                    };
                    let live = Arc::new(Live::of(entry.job, Journal::of(log), entry.attempts));
                    if let Some(outcome) = given_up {
                        jobs.end(&live, outcome, SystemTime::now());
                        continue;
                    }
                    if entry.attempts >= MOST_ATTEMPTS {
                        let reason = format!(
                            "it was begun {MOST_ATTEMPTS} times, and no process lived to its end"
                        );
                        jobs.end(&live, Outcome::Failed(reason), SystemTime::now());
                        continue;
                    }
                    live.note("tidegate was started again; the job begins anew, with what is at the target already");
                    jobs.enter(&live);
                }
            }
            Err(error) => {
                tracing::error!(%error, "mirrors and freezes from before the start are not taken up");
            }
        }
        jobs.dispatch();
        Ok(Arc::new(jobs))
    }

    /// Makes a job of a wish, or finds the one that there is. On disk when it returns.
    pub fn submit(&self, wish: Wish, now: SystemTime) -> Result<Taken, SubmitError> {
        let _deciding = lock(&self.deciding);
        let key = wish.key();
        if let Some(id) = self.going(&key)
            && self.hold(&id)?
        {
            return Ok(Taken::Going(id));
        }
        let last = self.latest(&key)?;
        let number = match &last {
            Some(last) if last.has_just_failed(now) => {
                return Ok(Taken::Failed(last.job.id.clone()));
            }
            Some(last) => last.job.id.number().saturating_add(1),
            None => 1,
        };
        let tenant = wish.tenant();
        lock(&self.table).admit(&tenant)?;
        let id = JobId::random(wish.kind, number);
        let live = Arc::new(self.begin(wish, id.clone(), key, tenant, now)?);
        self.supersede_others(&live.job, now);
        self.enter(&live);
        self.dispatch();
        tracing::info!(job = %id, source = %live.job.source, target = %live.job.target, caller = live.job.user,
            "a {} was asked for", live.job.kind.as_str());
        Ok(Taken::Going(id))
    }

    /// What is read is a grant of its own, which nobody is told of.
    fn begin(
        &self,
        wish: Wish,
        id: JobId,
        key: JobKey,
        tenant: Tenant,
        now: SystemTime,
    ) -> Result<Live, SubmitError> {
        let Wish {
            kind,
            request,
            digest,
            target,
            platform,
        } = wish;
        let details = &request.details;
        let zone = details.timestamp.as_ref().map(|time| time.zone.clone());
        let source = request.image.clone();
        let mut job = Job {
            id,
            kind,
            tenant,
            key,
            image: details.container_image.chars().take(1024).collect(),
            source: source.clone(),
            digest,
            target,
            platform,
            user: match &*request.caller {
                requests::Caller::Anonymous => None,
                requests::Caller::User { name, .. } => Some(name.clone()),
            },
            zone: zone.unwrap_or_else(|| "Z".to_owned()),
            created: now,
            reading: Token::random(),
        };
        let reading = ContainerRequest {
            image: Reference {
                version: TagOrDigest::Digest(digest),
                ..source
            },
            purpose: Purpose::Source(READING_LIFETIME),
            ..request
        };
        job.reading = self.requests.issue(reading, Some(digest), now)?.token;
        let live = Live::of(job, Journal::default(), 0);
        live.note(&format!(
            "{}: {} ({}) to {}{}",
            kind.as_str(),
            live.job.source,
            digest,
            live.job.target,
            match &live.job.platform {
                Some(platform) => format!(", for {platform}"),
                None => String::new(),
            }
        ));
        let log = lock(&live.journal).text();
        let superseded = self.others_for(&live.job.tenant, &live.job.target);
        let superseded: Vec<JobId> = superseded.iter().map(|it| it.job.id.clone()).collect();
        if let Err(error) = self.store.insert(&live.job, &log, &superseded) {
            self.forget_reading(&live.job, now);
            return Err(error.into());
        }
        Ok(live)
    }

    /// The last job of equal wishes, if it came to its end well.
    pub fn last_done(&self, key: &JobKey) -> Result<Option<JobId>, StoreError> {
        let done = self.latest(key)?.filter(JobRecord::is_done);
        Ok(done.map(|record| record.job.id))
    }

    /// Of one that has just ended it may not be written yet.
    fn latest(&self, key: &JobKey) -> Result<Option<JobRecord>, StoreError> {
        match self.store.latest(key)? {
            Some(entry) => self.record(&entry.job.id),
            None => Ok(None),
        }
    }

    pub fn record(&self, id: &JobId) -> Result<Option<JobRecord>, StoreError> {
        if let Some(live) = self.live(id) {
            return Ok(Some(live.record()));
        }
        Ok(self.store.read(id)?.map(|entry| entry.record()))
    }

    /// Of a running one, with what it has done so far.
    pub fn log(&self, id: &JobId) -> Result<Option<String>, StoreError> {
        match self.live(id) {
            Some(live) => Ok(Some(live.log())),
            None => self.store.log(id),
        }
    }

    /// How far it is, if it is not over.
    pub fn totals(&self, id: &JobId) -> Option<Totals> {
        Some(self.live(id)?.progress.snapshot().totals)
    }

    /// Those that are not over, oldest first.
    pub fn unfinished(&self) -> Vec<JobRecord> {
        let live: Vec<Arc<Live>> = lock(&self.table).live.values().cloned().collect();
        let mut records: Vec<JobRecord> = live.iter().map(|live| live.record()).collect();
        records.retain(|record| record.ended.is_none());
        records.sort_by_key(|record| record.job.created);
        records
    }

    pub fn counts(&self) -> Counts {
        let table = lock(&self.table);
        Counts {
            waiting: table.queue.waiting(),
            running: table.queue.running(),
        }
    }

    /// A request that hangs on it was revoked. With the last one the job ends.
    pub fn release(&self, id: &JobId, now: SystemTime) -> Result<(), StoreError> {
        let _deciding = lock(&self.deciding);
        if self.live(id).is_none() {
            return Ok(());
        }
        let changed = self.store.change(id, None, |entry| {
            entry.holders = entry.holders.saturating_sub(1);
        })?;
        if changed.is_some_and(|entry| entry.holders == 0) {
            self.cancel(id, now);
        }
        Ok(())
    }

    /// Whether there was something to cancel. What is at the target stays there.
    pub fn cancel(&self, id: &JobId, now: SystemTime) -> bool {
        let Some(live) = self.live(id) else {
            return false;
        };
        match self.give_up(&live, Outcome::Cancelled, now) {
            GivenUp::Over => return false,
            GivenUp::Ended => {}
            GivenUp::Ending => {
                if let Err(error) = self.store.change(id, None, |entry| entry.holders = 0) {
                    tracing::warn!(job = %id, %error, "that a job is cancelled cannot be written; a restart would take it up again");
                }
            }
        }
        true
    }

    /// The process is to end: what runs takes back what it has begun at its target, and is left to the next start.
    pub fn interrupt(&self) {
        let mut table = lock(&self.table);
        table.is_closing = true;
        for live in table.live.values() {
            if matches!(lock(&live.state).phase, Phase::Running { .. }) {
                live.progress.cancel();
            }
        }
    }

    /// Whether nothing runs any more, after at most this time. What ended by then is on disk, if the disk takes it.
    pub fn wait_until_idle(&self, most: Duration) -> bool {
        let is_busy = |table: &mut Table| table.queue.running() > 0;
        let waiting = self
            .stopped
            .wait_timeout_while(lock(&self.table), most, is_busy);
        let is_idle = waiting.is_ok_and(|(_, waited)| !waited.timed_out());
        // A job gives its place away first and is written then, and the process may end at once.
        self.write_unwritten();
        is_idle
    }

    /// Deletes records that have been kept long enough, and the oldest of too many, and says how many. To be called now and then.
    pub fn purge(&self, now: SystemTime) -> Result<usize, StoreError> {
        self.write_unwritten();
        let retention = u64::try_from(self.options.record_retention.as_nanos());
        let retention = retention.unwrap_or(u64::MAX);
        let before = unix_nanoseconds::from_time(now).saturating_sub(retention);
        let mut purged = 0;
        loop {
            let excess = self.store.ended()?.saturating_sub(self.options.max_records);
            let count = self.store.purge_some(before, excess)?;
            purged += count;
            if count == 0 {
                return Ok(purged);
            }
        }
    }

    fn going(&self, key: &JobKey) -> Option<JobId> {
        lock(&self.table).by_key.get(key).cloned()
    }

    /// Whether it is there to hang on.
    fn hold(&self, id: &JobId) -> Result<bool, StoreError> {
        let held = self.store.change(id, None, |entry| {
            if entry.ended.is_none() {
                entry.holders = entry.holders.saturating_add(1);
            }
        })?;
        Ok(held.is_some_and(|entry| entry.ended.is_none()))
    }

    fn live(&self, id: &JobId) -> Option<Arc<Live>> {
        lock(&self.table).live.get(id).cloned()
    }

    fn enter(&self, live: &Arc<Live>) {
        let mut table = lock(&self.table);
        let id = &live.job.id;
        table.live.insert(id.clone(), Arc::clone(live));
        table.by_key.insert(live.job.key.clone(), id.clone());
        match table.is_taken(live) {
            true => lock(&live.state).phase = Phase::Behind,
            false => table.queue.push(&live.job.tenant, id.clone()),
        }
    }
}

impl Table {
    /// Whether there is room for one more.
    fn admit(&self, tenant: &Tenant) -> Result<(), Full> {
        let mut away = Away::default();
        for live in self.live.values() {
            if lock(&live.state).phase == Phase::Pausing {
                away.of_all += 1;
                away.of_one += usize::from(live.job.tenant == *tenant);
            }
        }
        self.queue.admit(tenant, away)
    }

    /// Equal wishes are not this job's any more.
    fn forget_key(&mut self, job: &Job) {
        if self.by_key.get(&job.key) == Some(&job.id) {
            self.by_key.remove(&job.key);
        }
    }
}

impl JobRecord {
    fn has_just_failed(&self, now: SystemTime) -> bool {
        let Some(ended) = &self.ended else {
            return false;
        };
        let age = now.duration_since(ended.at).unwrap_or_default();
        matches!(ended.outcome, Outcome::Failed(_) | Outcome::TimedOut) && age < FAILURE_LIFETIME
    }
}

#[cfg(test)]
mod tests;
