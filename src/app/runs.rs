//! Keeps the names of active workflow runs alive: asks their Platform once per run and interval whether they go on.

use std::{
    thread,
    time::{Duration, Instant, SystemTime},
};

use crate::{
    platform::{CallError, Client, RunStatus, Session},
    requests::{Caller, DueRun, Requests, RunId, RunState},
    telemetry::metrics::{self, Counter},
};

/// How often it is seen who is due.
const TICK: Duration = Duration::from_secs(10);
/// What has been found out is on disk after so many at the latest.
const MOST_AT_ONCE: usize = 250;

/// Those of one Platform: another one that is slow must not hold them up.
pub(super) struct RunKeeper<'k> {
    pub(super) requests: &'k Requests,
    pub(super) client: &'k Client,
    pub(super) endpoint: &'k str,
    pub(super) call_timeout: Duration,
}

impl RunKeeper<'_> {
    #[expect(
        clippy::disallowed_methods,
        reason = "a thread of its own, which serves nobody"
    )]
    pub(super) fn keep(&self, interval: Duration) {
        let mut outage = None;
        loop {
            thread::sleep(TICK.min(interval / 2).max(Duration::from_millis(10)));
            self.look(&mut outage);
        }
    }

    /// `outage`: since when the Platform does not answer. Said once when it begins, and once when it ends.
    fn look(&self, outage: &mut Option<Instant>) {
        let due = self.requests.due_runs(self.endpoint, SystemTime::now());
        for some in due.chunks(MOST_AT_ONCE) {
            let looked_at: Vec<(RunId, RunState)> = some
                .iter()
                .map(|run| (run.id.clone(), self.state(run)))
                .collect();
            self.report(&looked_at, outage);
            if let Err(error) = self.requests.note_runs(&looked_at, SystemTime::now()) {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "what was found out about workflow runs cannot be kept; look at state_dir"
                );
            }
        }
    }

    fn state(&self, run: &DueRun) -> RunState {
        let Caller::User {
            workspace,
            access_token,
            platform: Some(platform),
            ..
        } = &*run.caller
        else {
            return RunState::Ended;
        };
        let now = Instant::now();
        if self.client.is_silent(self.endpoint) && !self.client.is_probe_due(self.endpoint, now) {
            // Another has waited for it, that is enough.
            return RunState::Unasked;
        }
        let session = Session {
            endpoint: platform.endpoint.clone(),
            access_token: access_token.clone(),
            refresh_token: platform.refresh_token.clone(),
        };
        let id = platform.workflow_id.as_deref().unwrap_or_default();
        let deadline = now + self.call_timeout;
        match self.client.run_status(&session, *workspace, id, deadline) {
            Ok(RunStatus::Active) => RunState::Active,
            Ok(RunStatus::Ended)
            | Err(CallError::Unauthorized { .. } | CallError::Denied { .. }) => RunState::Ended,
            Err(
                CallError::Silent { .. }
                | CallError::NotPaired { .. }
                | CallError::Malformed { .. },
            ) => RunState::Unasked,
        }
    }

    fn report(&self, looked_at: &[(RunId, RunState)], outage: &mut Option<Instant>) {
        let count = |wanted| {
            looked_at
                .iter()
                .filter(|(_, state)| *state == wanted)
                .count()
        };
        let unasked = count(RunState::Unasked);
        metrics::add(Counter::RunsRenewed, count(RunState::Active) as u64);
        metrics::add(Counter::RunsUnasked, unasked as u64);
        metrics::add(Counter::RunsEnded, count(RunState::Ended) as u64);
        match outage {
            None if unasked > 0 => {
                *outage = Some(Instant::now());
                tracing::warn!(
                    endpoint = self.endpoint,
                    runs = unasked,
                    "the Platform does not say whether workflow runs go on; their names are renewed, up to tokens.run_lifetime"
                );
            }
            Some(since) if unasked == 0 => {
                let seconds = since.elapsed().as_secs();
                tracing::info!(
                    endpoint = self.endpoint,
                    seconds,
                    "the Platform says again whether workflow runs go on"
                );
                *outage = None;
            }
            None | Some(_) => {}
        }
    }
}
