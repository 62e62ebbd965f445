//! One name, one image after the other: what a tenant asks for last by a target's name is what the name means in the end,
//! however long an earlier job takes. A tag of the source may move between two requests, and an earlier job that overtook a
//! later one would move it back.
//!
//! The earlier job ends: at once, or if it runs as soon as its copy has seen it. Only then the later one stands in line. Jobs of
//! several tenants for one name know nothing of each other.

use std::{
    sync::{Arc, MutexGuard},
    time::SystemTime,
};

use super::{
    Job, JobKey, Jobs, Outcome, Table,
    live::{Live, LiveState, Phase},
};
use crate::{blocking::lock, oci::Reference, requests::Tenant};

/// What giving up a job came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GivenUp {
    /// It had ended before.
    Over,
    Ended,
    /// When its copy has seen it.
    Ending,
}

impl Jobs {
    /// Whether a job of this tenant is about to put another image there: what stands there now says nothing then.
    pub fn is_contested(&self, tenant: &Tenant, target: &Reference, key: &JobKey) -> bool {
        let others = self.others_for(tenant, target);
        others.iter().any(|other| other.job.key != *key)
    }

    /// All that did not end, for the same name.
    pub(super) fn others_for(&self, tenant: &Tenant, target: &Reference) -> Vec<Arc<Live>> {
        let table = lock(&self.table);
        let others = table.live.values().filter(|other| {
            other.job.is_for(tenant, target) && !matches!(lock(&other.state).phase, Phase::Ended(_))
        });
        others.cloned().collect()
    }

    /// It is on disk already that they are.
    pub(super) fn supersede_others(&self, job: &Job, now: SystemTime) {
        for other in self.others_for(&job.tenant, &job.target) {
            let by = job.id.clone();
            self.give_up(&other, Outcome::Superseded { by }, now);
        }
    }

    pub(super) fn give_up(&self, live: &Arc<Live>, why: Outcome, now: SystemTime) -> GivenUp {
        let given_up = self.take_out(live, &why);
        match given_up {
            GivenUp::Over => {}
            GivenUp::Ended => {
                live.progress.cancel();
                self.end(live, why, now);
            }
            GivenUp::Ending => live.progress.cancel(),
        }
        given_up
    }

    /// From here on no turn comes to it. `Ended`: it is for the caller to end it.
    pub(super) fn take_out(&self, live: &Live, why: &Outcome) -> GivenUp {
        let mut table = lock(&self.table);
        let mut state = lock(&live.state);
        match state.phase {
            Phase::Waiting => {
                table
                    .queue
                    .remove(&live.job.tenant, |waiting| *waiting == live.job.id);
                state.phase = Phase::Ending;
                GivenUp::Ended
            }
            // Its pause may be over at this moment, or the target free.
            Phase::Pausing | Phase::Behind | Phase::Ending => {
                state.phase = Phase::Ending;
                GivenUp::Ended
            }
            // The copy sees it, and comes to its end. Who asks meanwhile wants another.
            Phase::Running { .. } => {
                table.forget_key(&live.job);
                state.given_up.get_or_insert_with(|| why.clone());
                GivenUp::Ending
            }
            Phase::Ended(_) => GivenUp::Over,
        }
    }
}

impl Table {
    /// Whether a copy is still at its target.
    pub(super) fn is_taken(&self, live: &Live) -> bool {
        let Job { tenant, target, .. } = &live.job;
        self.live.values().any(|other| {
            other.job.id != live.job.id
                && other.job.is_for(tenant, target)
                && matches!(lock(&other.state).phase, Phase::Running { .. })
        })
    }

    /// A copy has left its target: who stood behind it stands in line now.
    pub(super) fn let_next_in(&mut self, left: &Job) {
        let is_behind = |state: MutexGuard<'_, LiveState>| state.phase == Phase::Behind;
        let next = self.live.values().find(|other| {
            other.job.id != left.id
                && other.job.is_for(&left.tenant, &left.target)
                && is_behind(lock(&other.state))
        });
        if let Some(next) = next.cloned() {
            lock(&next.state).phase = Phase::Waiting;
            self.queue.push(&next.job.tenant, next.job.id.clone());
        }
    }
}

impl Job {
    fn is_for(&self, tenant: &Tenant, target: &Reference) -> bool {
        self.tenant == *tenant && self.target == *target
    }
}
