//! How a job goes: its turns, its attempts and the pauses between them, its end. Each step is written down as it is made.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use super::{
    Ended, Job, Jobs, Outcome,
    journal::summary,
    live::{Live, Phase},
};
use crate::{
    blocking::lock,
    mirror::{Copied, CopyError},
    requests::Grant,
    telemetry::metrics::{self, Counter},
};

/// What an attempt came to.
pub(super) enum Attempt {
    Copied(Copied),
    Failed(CopyError),
    /// What is to be read is no longer there, or the caller may no longer read it.
    Unreadable(String),
    TimedOut,
    /// By a bug of ours.
    Lost,
}

impl Jobs {
    /// Gives those whose turn it is to the cores that have the least to do.
    pub(super) fn dispatch(&self) {
        let mut table = lock(&self.table);
        while !table.is_closing
            && let Some(id) = table.queue.take()
        {
            let Some(live) = table.live.get(&id).cloned() else {
                continue;
            };
            let load = table.load.iter().enumerate();
            let least = load.min_by_key(|(_, count)| **count).map(|(core, _)| core);
            let Some((core, inbox)) = least.and_then(|core| Some((core, self.cores.get(core)?)))
            else {
                return;
            };
            if let Some(load) = table.load.get_mut(core) {
                *load += 1;
            }
            {
                let mut state = lock(&live.state);
                state.phase = Phase::Running { core };
                state.attempts += 1;
                state.tries += 1;
                state.started.get_or_insert_with(Instant::now);
            }
            inbox.put(live);
        }
    }

    /// What the job reads from, for an attempt that begins.
    pub(super) fn reading(
        &self,
        live: &Live,
        now: SystemTime,
    ) -> Result<Option<Arc<Grant>>, String> {
        self.write_attempt(live);
        let job = &live.job;
        let grant = self.requests.find(&job.reading, now);
        grant.map_err(|error| {
            tracing::error!(job = %job.id, %error, "what a job reads from cannot be read; look at state_dir");
            "what the request was cannot be read; the operator's log says why".to_owned()
        })
    }

    /// An attempt is over. `Some`: there is to be another one, after this pause.
    pub(super) fn attempted(
        &self,
        live: &Arc<Live>,
        attempt: Attempt,
        now: SystemTime,
    ) -> Option<Duration> {
        let (tries, started, given_up) = {
            let state = lock(&live.state);
            (state.tries, state.started, state.given_up.clone())
        };
        let outcome = match attempt {
            Attempt::Copied(copied) => {
                metrics::add(Counter::JobBytes, copied.bytes);
                lock(&live.journal).items(&live.progress);
                live.note(&summary(&copied));
                Outcome::Done {
                    digest: copied.digest,
                    bytes: copied.bytes,
                }
            }
            Attempt::Failed(_) if let Some(why) = given_up => why,
            // The process is to end.
            Attempt::Failed(_) if live.progress.is_cancelled() => {
                live.note("tidegate was stopped; the job goes on when it is started again");
                self.write_attempt(live);
                self.put_off(live)?
            }
            Attempt::Failed(error) => {
                let pause = pause(tries, &error);
                let left = started.map(|started| {
                    let limit = *self.options.job_timeout;
                    limit.saturating_sub(started.elapsed())
                });
                let has_time = left.is_none_or(|left| left > pause);
                if error.is_transient() && tries < self.options.attempts && has_time {
                    live.note(&format!(
                        "attempt {tries} of {}: {}; again in {}",
                        self.options.attempts,
                        shortened(&error.to_string()),
                        humantime::format_duration(Duration::from_secs(pause.as_secs().max(1)))
                    ));
                    let Some(why) = self.put_off(live) else {
                        self.write_attempt(live);
                        self.dispatch();
                        return Some(pause);
                    };
                    why
                } else {
                    lock(&live.journal).items(&live.progress);
                    Outcome::Failed(shortened(&error.to_string()))
                }
            }
            Attempt::Unreadable(reason) => Outcome::Failed(reason),
            Attempt::TimedOut => {
                lock(&live.journal).items(&live.progress);
                Outcome::TimedOut
            }
            Attempt::Lost => Outcome::Failed(
                "it was lost to a bug of tidegate; the operator's log has it".into(),
            ),
        };
        self.end(live, outcome, now);
        None
    }

    /// It pauses. `Some`: whoever gave it up just before still found it running, so it has to end, and why.
    pub(super) fn put_off(&self, live: &Arc<Live>) -> Option<Outcome> {
        self.stop(live, Phase::Pausing);
        // Who gives it up from here on ends it himself.
        lock(&live.state).given_up.clone()
    }

    /// After a pause, to the end of its tenant's line.
    pub(super) fn resume(&self, live: &Arc<Live>) {
        {
            let mut table = lock(&self.table);
            let mut state = lock(&live.state);
            // It was cancelled meanwhile.
            if state.phase != Phase::Pausing {
                return;
            }
            state.phase = Phase::Waiting;
            table.queue.push(&live.job.tenant, live.job.id.clone());
        }
        self.dispatch();
    }

    /// Once, whoever comes first.
    pub(super) fn end(&self, live: &Arc<Live>, outcome: Outcome, now: SystemTime) {
        let ended = Ended {
            at: now,
            outcome: outcome.clone(),
        };
        if !self.stop(live, Phase::Ended(ended)) {
            return;
        }
        if let Some(reason) = outcome.reason() {
            live.note(&reason);
        }
        let job = &live.job;
        match &outcome {
            Outcome::Done { bytes, digest } => {
                metrics::add(Counter::JobsDone, 1);
                tracing::info!(job = %job.id, target = %job.target, %digest, sent_bytes = bytes, "a {} is done", job.kind.as_str());
            }
            outcome => {
                metrics::add(Counter::JobsFailed, 1);
                let reason = outcome.reason().unwrap_or_default();
                tracing::warn!(job = %job.id, source = %job.source, target = %job.target, caller = job.user, reason,
                    "a {} did not come about", job.kind.as_str());
            }
        }
        self.write_end(live);
        self.forget_reading(job, now);
        self.dispatch();
    }

    /// It has no core any more. Whether it was not over already.
    pub(super) fn stop(&self, live: &Arc<Live>, phase: Phase) -> bool {
        let mut table = lock(&self.table);
        let mut state = lock(&live.state);
        if matches!(state.phase, Phase::Ended(_)) {
            return false;
        }
        if let Phase::Running { core } = state.phase {
            if let Some(load) = table.load.get_mut(core) {
                *load = load.saturating_sub(1);
            }
            table.queue.end(&live.job.tenant);
            table.let_next_in(&live.job);
            self.stopped.notify_all();
        }
        if matches!(phase, Phase::Ended(_)) {
            // Who asks from now on begins anew, or is told what is on disk.
            table.forget_key(&live.job);
        }
        state.phase = phase;
        true
    }

    /// A restart counts on from there.
    pub(super) fn write_attempt(&self, live: &Live) {
        let log = lock(&live.journal).text();
        let attempts = lock(&live.state).attempts;
        let written = self.store.change(&live.job.id, Some(&log), |entry| {
            entry.attempts = attempts;
        });
        if let Err(error) = written {
            tracing::warn!(job = %live.job.id, %error, "how a job goes cannot be written; look at state_dir");
        }
    }

    /// Until it is written, it is told from memory.
    pub(super) fn write_end(&self, live: &Arc<Live>) {
        let log = lock(&live.journal).text();
        let state = lock(&live.state);
        let Phase::Ended(ended) = state.phase.clone() else {
            return;
        };
        let attempts = state.attempts;
        drop(state);
        let written = self.store.change(&live.job.id, Some(&log), |entry| {
            entry.attempts = attempts;
            entry.ended = Some(ended);
        });
        match written {
            Ok(_) => {
                lock(&self.table).live.remove(&live.job.id);
            }
            Err(error) => {
                tracing::warn!(job = %live.job.id, %error, "how a job ended cannot be written; look at state_dir");
            }
        }
    }

    pub(super) fn write_unwritten(&self) {
        let live: Vec<Arc<Live>> = lock(&self.table).live.values().cloned().collect();
        for live in &live {
            self.write_end(live);
        }
    }

    /// Its layers are removed with it.
    pub(super) fn forget_reading(&self, job: &Job, now: SystemTime) {
        if let Err(error) = self.requests.revoke(&job.reading, now) {
            tracing::warn!(job = %job.id, %error, "what a job read from is kept until it expires");
        }
    }
}

/// It is kept twice, and a registry's words are in it.
fn shortened(reason: &str) -> String {
    const LONGEST: usize = 4096;
    match reason.get(..reason.floor_char_boundary(LONGEST)) {
        Some(start) if start.len() < reason.len() => format!("{start}…"),
        _ => reason.to_owned(),
    }
}

/// What the registry asked for, or longer each time.
pub(super) fn pause(attempts: u32, error: &CopyError) -> Duration {
    const FIRST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(60);
    let doubled = FIRST.saturating_mul(1 << attempts.saturating_sub(1).min(10));
    error
        .retry_after()
        .unwrap_or_default()
        .max(doubled.min(LONGEST))
}
