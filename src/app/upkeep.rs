//! Threads of their own for what recurs while the server runs: nobody waits for them, and they may wait for the disk and
//! for Platforms.
#![expect(
    clippy::disallowed_methods,
    reason = "threads of their own, which serve nobody"
)]

use std::{
    sync::Arc,
    thread,
    time::{Duration, SystemTime},
};

use super::{Shared, StartError, runs::RunKeeper, spawn};
use crate::{
    config::Config,
    credentials::DockerLogins,
    net::{Identity, Renewed},
};

/// How often expired container requests are swept out.
const SWEEP_INTERVAL: Duration = Duration::from_secs(600);
/// How often files that others may replace are looked at.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(2);

pub(super) fn start(config: &Config, shared: &Arc<Shared>) -> Result<(), StartError> {
    let sweeping = Arc::clone(shared);
    spawn("sweeper", move || sweep(&sweeping))?;
    if let Some(client) = &shared.platforms {
        let interval = (*config.tokens.run_interval).min(*config.tokens.refresh_interval);
        let call_timeout = *config.platform.call_timeout;
        for (number, endpoint) in config.platform.endpoints.iter().enumerate() {
            let (requests, client) = (Arc::clone(&shared.api.requests), Arc::clone(client));
            let endpoint = endpoint.clone();
            let keep = move || {
                let keeper = RunKeeper {
                    requests: &requests,
                    client: &client,
                    endpoint: &endpoint,
                    call_timeout,
                };
                keeper.keep(interval);
            };
            spawn(&format!("runs-{number}"), keep)?;
        }
    }
    if let Some(identity) = shared.identity.clone() {
        spawn("certificates", move || keep_certificate_current(&identity))?;
    }
    if !shared.story.docker.is_empty() {
        let docker = Arc::clone(&shared.story.docker);
        spawn("docker-logins", move || keep_logins_current(&docker))?;
    }
    Ok(())
}

fn sweep(shared: &Shared) {
    let taken_up = match shared.platforms {
        Some(_) => shared.api.requests.take_up_callers(SystemTime::now()),
        None => Ok(()),
    };
    if let Err(error) = taken_up {
        tracing::warn!(%error, "access tokens of names from before the start may expire before these");
    }
    loop {
        thread::sleep(SWEEP_INTERVAL);
        let now = SystemTime::now();
        match shared.api.requests.purge(now) {
            Ok(0) => {}
            Ok(count) => tracing::debug!(count, "expired container requests were removed"),
            Err(error) => tracing::warn!(%error, "expired container requests could not be removed"),
        }
        match shared.api.jobs.purge(now) {
            Ok(0) => {}
            Ok(count) => tracing::debug!(count, "old records of mirrors and freezes were removed"),
            Err(error) => {
                tracing::warn!(%error, "old records of mirrors and freezes could not be removed");
            }
        }
        match shared.platforms.as_ref().map(|client| client.purge(now)) {
            None | Some(Ok(0)) => {}
            Some(Ok(count)) => tracing::debug!(count, "old Platform tokens were removed"),
            Some(Err(error)) => tracing::warn!(%error, "old Platform tokens could not be removed"),
        }
    }
}

/// Kubernetes replaces mounted secrets while the server runs.
fn keep_logins_current(docker: &DockerLogins) {
    loop {
        thread::sleep(RENEWAL_INTERVAL);
        docker.renew();
    }
}

/// A certificate is replaced while the server runs, by whoever renews it.
fn keep_certificate_current(identity: &Identity) {
    let mut last_problem = None;
    loop {
        thread::sleep(RENEWAL_INTERVAL);
        match identity.renew() {
            Ok(Renewed::Unchanged) => {}
            Ok(Renewed::Changed) => {
                last_problem = None;
                tracing::info!("new connections get the new certificate");
            }
            Err(error) => {
                let problem = error.to_string();
                if last_problem.as_ref() != Some(&problem) {
                    tracing::warn!(
                        "the new certificate is not used, the old one stays: {problem}; put a matching pair into the files of listener.tls"
                    );
                }
                last_problem = Some(problem);
            }
        }
    }
}
