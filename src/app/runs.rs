//! Keeps alive what would end if nobody asked the Platform about it: the names of active workflow runs, once per run and
//! interval, and access tokens that have to be refreshed while somebody has names.

use std::{
    thread,
    time::{Duration, Instant, SystemTime},
};

use crate::{
    credentials::session_of,
    platform::{CallError, Client, RunStatus},
    requests::{DueCaller, DueRun, Requests, RunId, RunState, Standing},
    telemetry::metrics::{self, Counter},
};

/// How often it is seen who is due.
const TICK: Duration = Duration::from_secs(10);
/// What has been found out is on disk after so many at the latest.
const MOST_AT_ONCE: usize = 250;

/// Access tokens of one turn, and how long it may take: runs must not wait for them. Guessed.
const MOST_TOKENS_AT_ONCE: usize = 64;
const LONGEST_TURN: Duration = Duration::from_secs(30);

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
            self.show_tokens();
        }
    }

    /// Whatever is remembered of these users, the Platform is asked; and who asks it with a token that has ended refreshes
    /// that.
    fn show_tokens(&self) {
        let end = Instant::now() + LONGEST_TURN;
        let now = SystemTime::now();
        for due in self
            .requests
            .due_callers(self.endpoint, now, MOST_TOKENS_AT_ONCE)
        {
            if Instant::now() >= end {
                // They are due again next time.
                return;
            }
            let standing = self.standing(&due);
            if standing == Standing::Refused {
                tracing::info!(
                    endpoint = self.endpoint,
                    user = %due.caller,
                    "the Platform does not take a user's access token any more, nor the refresh token; names that were got with it cannot be pulled"
                );
            }
            self.requests
                .note_caller(&due.id, standing, SystemTime::now());
        }
    }

    fn standing(&self, due: &DueCaller) -> Standing {
        let Some(user) = due.caller.platform_user() else {
            return Standing::Refused;
        };
        let now = Instant::now();
        if self.is_not_to_be_asked(now) {
            return Standing::Unasked;
        }
        match self.client.user(&session_of(user), now + self.call_timeout) {
            Ok(_) => Standing::Good,
            Err(CallError::Unauthorized { .. }) => Standing::Refused,
            Err(
                CallError::Denied { .. }
                | CallError::Silent { .. }
                | CallError::NotPaired { .. }
                | CallError::Malformed { .. },
            ) => Standing::Unasked,
        }
    }

    /// Another has waited for it, that is enough.
    fn is_not_to_be_asked(&self, now: Instant) -> bool {
        self.client.is_silent(self.endpoint) && !self.client.is_probe_due(self.endpoint, now)
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
                tracing::error!(%error, "what was found out about workflow runs cannot be kept; look at state_dir");
            }
        }
    }

    fn state(&self, run: &DueRun) -> RunState {
        let Some(user) = run.caller.platform_user() else {
            return RunState::Ended;
        };
        let now = Instant::now();
        if self.is_not_to_be_asked(now) {
            return RunState::Unasked;
        }
        let run = user.platform.workflow_id.as_deref().unwrap_or_default();
        let (session, deadline) = (session_of(user), now + self.call_timeout);
        match self
            .client
            .run_status(&session, user.workspace, run, deadline)
        {
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
