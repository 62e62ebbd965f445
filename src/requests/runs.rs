//! Names that live as long as a workflow run.
//!
//! All that a caller asks for in one run hangs on one *lease*: short, and renewed while the run is active, so that names of
//! a run that has ended lapse soon. Who looks after the runs (`due`, `settle`) asks the Platform once per run and interval,
//! however many names there are. A Platform that does not answer ends nothing: the lease is renewed, up to the cap that
//! every name has anyway.
//!
//! A run is its caller's own: of the same endpoint, access token, workspace and run id. Another caller's token that is
//! withdrawn has no say in it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::{
    Caller, Options, RecordError,
    client_time::unix_nanoseconds::{from_time, to_time},
    container_request::name_of,
    record::User,
    refreshable::share,
};
use crate::{blocking::lock, seal::SealingKey};

/// Tells nothing of the access token that is part of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RunId(String);

impl RunId {
    /// `None`: the caller asks for no run.
    pub(super) fn of(caller: &Caller) -> Option<Self> {
        let user = caller.platform_user()?;
        let run = user.platform.workflow_id.as_deref()?;
        let workspace = user.workspace.map(|id| id.to_string()).unwrap_or_default();
        let endpoint = user.platform.endpoint.as_str();
        let parts = [endpoint, user.access_token.expose(), &workspace, run];
        Some(Self(name_of(&parts)))
    }

    pub(super) fn parse(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// Until when the names of a run can be pulled, unless it is renewed. Shared by all of their grants.
#[derive(Debug)]
pub struct Lease(AtomicU64);

impl Lease {
    pub fn is_over(&self, now: SystemTime) -> bool {
        // One number, and no other data hangs on it.
        self.0.load(Ordering::Relaxed) <= from_time(now)
    }
}

impl PartialEq for Lease {
    fn eq(&self, other: &Self) -> bool {
        self.0.load(Ordering::Relaxed) == other.0.load(Ordering::Relaxed)
    }
}

impl Eq for Lease {}

/// A run that is to be asked about.
#[derive(Clone, Debug)]
pub struct DueRun {
    pub id: RunId,
    /// On whose behalf.
    pub caller: Arc<Caller>,
}

/// What was found out about a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    Active,
    /// Or it is none that the caller may see.
    Ended,
    /// The Platform did not answer.
    Unasked,
}

/// The life of a run, in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Life {
    Running {
        until: u64,
        next_look: u64,
        /// No name of it lives longer.
        cap: u64,
    },
    /// Its names lapse with the lease that they have.
    Ended { until: u64 },
}

/// How long things take, in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Pace {
    lease: u64,
    interval: u64,
    lifetime: u64,
}

impl Pace {
    fn of(options: &Options) -> Self {
        let nanoseconds = |it: Duration| u64::try_from(it.as_nanos()).unwrap_or(u64::MAX);
        Self {
            lease: nanoseconds(*options.run_lease),
            interval: nanoseconds(*options.run_interval),
            lifetime: nanoseconds(*options.run_lifetime),
        }
    }
}

impl Life {
    fn begun(now: u64, pace: Pace) -> Self {
        Self::Running {
            until: now.saturating_add(pace.lease),
            next_look: now.saturating_add(pace.interval),
            cap: now.saturating_add(pace.lifetime),
        }
    }

    /// Another name of it was asked for.
    fn asked_again(self, now: u64, pace: Pace) -> Self {
        match self {
            Self::Running {
                until, next_look, ..
            } if now < until => Self::Running {
                until,
                next_look,
                cap: now.saturating_add(pace.lifetime),
            },
            // Whoever asks for it says that it goes on; the next look will show.
            Self::Running { .. } | Self::Ended { .. } => Self::begun(now, pace),
        }
    }

    fn looked_at(self, state: RunState, now: u64, jitter: u64, pace: Pace) -> Self {
        match (self, state) {
            (Self::Running { cap, .. }, RunState::Active | RunState::Unasked) => Self::Running {
                until: now.saturating_add(pace.lease).min(cap),
                next_look: now.saturating_add(pace.interval).saturating_add(jitter),
                cap,
            },
            (Self::Running { until, .. }, RunState::Ended) => Self::Ended { until },
            (Self::Ended { until }, _) => Self::Ended { until },
        }
    }

    /// Nobody could look while the process was down, which must not end a run.
    fn restarted(self, now: u64, pace: Pace) -> Self {
        match self {
            Self::Running { until, cap, .. } => Self::Running {
                until: until.max(now.saturating_add(pace.lease)).min(cap),
                next_look: now,
                cap,
            },
            ended @ Self::Ended { .. } => ended,
        }
    }

    fn until(self) -> u64 {
        match self {
            Self::Running { until, .. } | Self::Ended { until } => until,
        }
    }

    fn is_due(self, now: u64) -> bool {
        matches!(self, Self::Running { next_look, cap, .. } if next_look <= now && now < cap)
    }
}

struct Run {
    caller: Arc<Caller>,
    lease: Arc<Lease>,
    life: Life,
}

impl Run {
    fn live(&mut self, life: Life) {
        self.life = life;
        self.lease.0.store(life.until(), Ordering::Relaxed);
    }
}

pub(super) struct Runs {
    runs: Mutex<HashMap<RunId, Run>>,
    pace: Pace,
}

/// A run on disk. Its caller's tokens are sealed, with the run's id as context.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredRun {
    user: User,
    life: Life,
}

impl StoredRun {
    pub(super) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and numbers are always JSON")
    }
}

/// What has to be on disk before anybody hears of it.
pub(super) struct Joined {
    pub lease: Arc<Lease>,
    pub id: RunId,
    /// `None`: it is there already.
    pub to_store: Option<StoredRun>,
}

impl Runs {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            runs: Mutex::default(),
            pace: Pace::of(options),
        }
    }

    /// Takes up what was on disk at the start.
    pub(super) fn load(
        &self,
        id: &str,
        bytes: &[u8],
        key: &SealingKey,
        now: SystemTime,
    ) -> Result<(), RecordError> {
        let stored: StoredRun = serde_json::from_slice(bytes)?;
        let caller = stored.user.unsealed(id, key)?;
        let life = stored.life.restarted(from_time(now), self.pace);
        let run = Run {
            caller: Arc::new(caller),
            lease: Arc::new(Lease(AtomicU64::new(life.until()))),
            life,
        };
        lock(&self.runs).insert(RunId::parse(id), run);
        Ok(())
    }

    /// For a new name. `None`: the caller asks for no run.
    pub(super) fn join(
        &self,
        caller: &Arc<Caller>,
        now: SystemTime,
        key: &SealingKey,
    ) -> Option<Joined> {
        let id = RunId::of(caller)?;
        let now = from_time(now);
        let mut runs = lock(&self.runs);
        let mut is_new = false;
        let run = runs.entry(id.clone()).or_insert_with(|| {
            is_new = true;
            let life = Life::begun(now, self.pace);
            Run {
                caller: Arc::clone(caller),
                lease: Arc::new(Lease(AtomicU64::new(life.until()))),
                life,
            }
        });
        let former = run.life;
        if !is_new {
            run.live(former.asked_again(now, self.pace));
        }
        // A later cap alone is written with the next look.
        let must_store = is_new || former.until() != run.life.until();
        let to_store = must_store.then(|| run.stored(&id, key)).flatten();
        let lease = Arc::clone(&run.lease);
        Some(Joined {
            lease,
            id,
            to_store,
        })
    }

    pub(super) fn lease(&self, id: &RunId) -> Option<Arc<Lease>> {
        let runs = lock(&self.runs);
        runs.get(id).map(|run| Arc::clone(&run.lease))
    }

    /// Those of the endpoint that have not been looked at for the interval.
    pub(super) fn due(&self, endpoint: &str, now: SystemTime) -> Vec<DueRun> {
        let now = from_time(now);
        let is_there = |caller: &Caller| {
            let user = caller.platform_user();
            user.is_some_and(|user| user.platform.endpoint == endpoint)
        };
        lock(&self.runs)
            .iter()
            .filter(|(_, run)| run.life.is_due(now) && is_there(&run.caller))
            .map(|(id, run)| DueRun {
                id: id.clone(),
                caller: Arc::clone(&run.caller),
            })
            .collect()
    }

    /// Says what is to be stored then. In memory it counts at once.
    pub(super) fn settle(
        &self,
        looked_at: &[(RunId, RunState)],
        now: SystemTime,
        key: &SealingKey,
    ) -> Vec<(RunId, StoredRun)> {
        let now = from_time(now);
        let mut runs = lock(&self.runs);
        let settled = looked_at.iter().filter_map(|(id, state)| {
            let run = runs.get_mut(id)?;
            run.live(
                run.life
                    .looked_at(*state, now, jitter(self.pace), self.pace),
            );
            Some((id.clone(), run.stored(id, key)?))
        });
        settled.collect()
    }

    /// Those whose names have all lapsed.
    pub(super) fn purge(&self, now: SystemTime) -> Vec<RunId> {
        let now = from_time(now);
        let mut runs = lock(&self.runs);
        let is_over = |run: &Run| match run.life {
            Life::Running { cap, .. } => cap <= now,
            Life::Ended { until } => until <= now,
        };
        let over: Vec<RunId> = runs
            .iter()
            .filter(|(_, run)| is_over(run))
            .map(|(id, _)| id.clone())
            .collect();
        for id in &over {
            runs.remove(id);
        }
        over
    }

    /// When names that are asked for now end at the latest.
    pub(super) fn cap(&self, now: SystemTime) -> SystemTime {
        to_time(from_time(now).saturating_add(self.pace.lifetime))
    }
}

impl Run {
    fn stored(&self, id: &RunId, key: &SealingKey) -> Option<StoredRun> {
        Some(StoredRun {
            user: User::sealed(&self.caller, id.as_str(), key)?,
            life: self.life,
        })
    }
}

/// So that runs that began together are not looked at together for ever.
fn jitter(pace: Pace) -> u64 {
    share(pace.interval / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace {
        lease: 20,
        interval: 3,
        lifetime: 100,
    };

    #[test]
    fn a_lease_lives_as_long_as_its_run_and_not_beyond_the_cap() {
        use RunState::{Active, Ended, Unasked};
        let running = |until, next_look| Life::Running {
            until,
            next_look,
            cap: 100,
        };
        let begun = Life::begun(0, PACE);
        assert_eq!(begun, running(20, 3));
        for (looks, expected) in [
            (&[(3, Active)][..], running(23, 6)),
            (&[(3, Active), (6, Active)], running(26, 9)),
            (&[(3, Unasked)], running(23, 6)),
            (&[(90, Unasked)], running(100, 93)),
            (&[(90, Active)], running(100, 93)),
            (&[(3, Active), (6, Ended)], Life::Ended { until: 23 }),
            (&[(6, Ended), (9, Active)], Life::Ended { until: 20 }),
        ] {
            let life = looks.iter().fold(begun, |life, (now, state)| {
                life.looked_at(*state, *now, 0, PACE)
            });
            assert_eq!(life, expected, "{looks:?}");
        }
    }

    #[test]
    fn a_run_is_due_once_an_interval_until_its_cap() {
        let life = Life::begun(0, PACE);
        for (now, expected) in [(2, false), (3, true), (99, true), (100, false)] {
            assert_eq!(life.is_due(now), expected, "{now}");
        }
        let looked_at = life.looked_at(RunState::Active, 3, 1, PACE);
        assert!(!looked_at.is_due(6) && looked_at.is_due(7));
        assert!(!Life::Ended { until: 50 }.is_due(40));
    }

    #[test]
    fn more_names_carry_the_cap_on_and_take_up_an_ended_run() {
        let life = Life::begun(0, PACE);
        let later = life.asked_again(10, PACE);
        assert_eq!(
            later,
            Life::Running {
                until: 20,
                next_look: 3,
                cap: 110
            }
        );
        assert_eq!(life.asked_again(50, PACE), Life::begun(50, PACE));
        let ended = Life::Ended { until: 20 };
        assert_eq!(ended.asked_again(10, PACE), Life::begun(10, PACE));
    }

    #[test]
    fn a_restart_ends_no_run() {
        let life = Life::begun(0, PACE);
        for (now, until) in [(10, 30), (50, 70), (95, 100), (200, 100)] {
            let expected = Life::Running {
                until,
                next_look: now,
                cap: 100,
            };
            assert_eq!(life.restarted(now, PACE), expected, "{now}");
        }
        let ended = Life::Ended { until: 20 };
        assert_eq!(ended.restarted(10, PACE), ended);
    }
}
