//! Callers whose access tokens are to stay refreshable.
//!
//! A Platform's access token that was made for an hour goes on as another one, by a refresh token that lasts not much longer
//! itself: if nobody uses the pair for a day, both are worth nothing. So as long as a caller has names outside of runs, he is
//! *due* once an interval, for somebody to show his token. (In a run it is shown anyway, see `runs.rs`.)
//!
//! One for each access token, however many names were got with it. Nothing of this is on disk: a start finds the callers
//! by their names.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::SystemTime,
};

use ring::rand::{SecureRandom, SystemRandom};

use super::{
    Caller, Grant, Options, Token, client_time::unix_nanoseconds::from_time,
    container_request::name_of,
};
use crate::blocking::lock;

/// Callers; whoever comes then is not kept refreshable.
const MOST: usize = if cfg!(test) { 4 } else { 16_384 };
/// Names of one caller. Those that end first are forgotten first, and say the least.
const MOST_NAMES: usize = 256;

/// Tells nothing of the access token that is part of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CallerId(String);

impl CallerId {
    /// `None`: there is nothing to refresh, or the caller's run sees to it.
    fn of(caller: &Caller) -> Option<(&str, Self)> {
        let user = caller.platform_user()?;
        let platform = user.platform;
        if platform.refresh_token.is_none() || platform.workflow_id.is_some() {
            return None;
        }
        let endpoint = platform.endpoint.as_str();
        let name = name_of(&[endpoint, user.access_token.expose()]);
        Some((endpoint, Self(name)))
    }
}

/// A caller whose access token is to be shown to his Platform.
#[derive(Clone, Debug)]
pub struct DueCaller {
    pub id: CallerId,
    pub caller: Arc<Caller>,
}

/// What the Platform said to a caller's access token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Good,
    /// It and its refresh token are worth nothing any more.
    Refused,
    /// The Platform did not answer.
    Unasked,
}

struct Kept {
    caller: Arc<Caller>,
    /// When they end, in nanoseconds since 1970.
    names: BTreeSet<(u64, Token)>,
    next_look: u64,
}

pub(super) struct Refreshable {
    callers: Mutex<HashMap<CallerId, Kept>>,
    interval: u64,
}

impl Refreshable {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            callers: Mutex::default(),
            interval: u64::try_from(options.refresh_interval.as_nanos()).unwrap_or(u64::MAX),
        }
    }

    /// For a name that was given out just now.
    pub(super) fn join(&self, grant: &Grant, now: SystemTime) {
        // A token that was good a moment ago need not be shown at once.
        self.keep(grant, from_time(now).saturating_add(self.interval));
    }

    /// For a name that was there at the start. When it was last looked at is not known; spread, so that not all are due at
    /// once.
    pub(super) fn take_up(&self, grant: &Grant, now: SystemTime) {
        self.keep(
            grant,
            from_time(now).saturating_add(share(self.interval / 4)),
        );
    }

    fn keep(&self, grant: &Grant, next_look: u64) {
        let Some((_, id)) = CallerId::of(&grant.caller) else {
            return;
        };
        let mut callers = lock(&self.callers);
        if callers.len() >= MOST && !callers.contains_key(&id) {
            return;
        }
        let kept = callers.entry(id).or_insert_with(|| Kept {
            caller: Arc::clone(&grant.caller),
            names: BTreeSet::new(),
            next_look,
        });
        // Who submits anew may have a newer refresh token.
        kept.caller = Arc::clone(&grant.caller);
        kept.names.insert((from_time(grant.expires), grant.token));
        if kept.names.len() > MOST_NAMES {
            kept.names.pop_first();
        }
    }

    pub(super) fn forget(&self, token: &Token) {
        lock(&self.callers).retain(|_, kept| {
            kept.names.retain(|(_, name)| name != token);
            !kept.names.is_empty()
        });
    }

    /// Some of the endpoint's, the longest due first. Those without names are forgotten.
    pub(super) fn due(&self, endpoint: &str, now: SystemTime, most: usize) -> Vec<DueCaller> {
        let now = from_time(now);
        let mut callers = lock(&self.callers);
        callers.retain(|_, kept| kept.names.last().is_some_and(|(ends, _)| now < *ends));
        let is_there = |kept: &Kept| {
            CallerId::of(&kept.caller).is_some_and(|(its_endpoint, _)| its_endpoint == endpoint)
        };
        let mut due: Vec<_> = callers
            .iter()
            .filter(|(_, kept)| kept.next_look <= now && is_there(kept))
            .collect();
        due.sort_unstable_by_key(|(_, kept)| kept.next_look);
        due.into_iter()
            .take(most)
            .map(|(id, kept)| DueCaller {
                id: id.clone(),
                caller: Arc::clone(&kept.caller),
            })
            .collect()
    }

    pub(super) fn note(&self, id: &CallerId, standing: Standing, now: SystemTime) {
        let mut callers = lock(&self.callers);
        let pause = match standing {
            Standing::Refused => {
                callers.remove(id);
                return;
            }
            Standing::Good => self.interval - share(self.interval / 10),
            // Soon enough for the refresh token, and not all at once when the Platform is back.
            Standing::Unasked => self.interval / 10 + share(self.interval / 10),
        };
        if let Some(kept) = callers.get_mut(id) {
            kept.next_look = from_time(now).saturating_add(pause);
        }
    }
}

/// Anything below it.
pub(super) fn share(most: u64) -> u64 {
    let mut bytes = [0; 8];
    // Without randomness all would be looked at together, which is no harm.
    let _ = SystemRandom::new().fill(&mut bytes);
    u64::from_le_bytes(bytes) % most.max(1)
}
