//! The process: composes the parts from a configuration, runs them on all cores, and ends them in order.

mod open_files;
mod runs;
mod runtime;
mod scratch;
mod shared;
mod standalone;
mod story;
mod worker;

pub use standalone::{Core, Ended, Standalone};

use std::{
    io::{self, IsTerminal as _},
    net::SocketAddr,
    path::Path,
    process,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant, SystemTime},
};

use crate::{
    blocking::{self, Pool, PoolError},
    config::{BaseUrl, Config, NoDirectory},
    credentials::DirectoryError,
    mirror::jobs,
    net::{Identity, IdentityError, Renewed, bind, pipes_for_each},
    platform::KeysError,
    requests::OpenError,
    sys::{self, Signal, Signals},
    telemetry::log,
    toml_file::Problem,
};
use runs::RunKeeper;
use runtime::Choice;
use shared::Shared;

/// How often expired container requests are swept out.
const SWEEP_INTERVAL: Duration = Duration::from_secs(600);
/// What mirrors and freezes may take to take back what they have begun at their targets, which is a request or two.
const JOBS_GRACE: Duration = Duration::from_secs(10);
/// How often files that others may replace are looked at.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Directory(#[from] NoDirectory),
    #[error("{0}")]
    Users(#[from] DirectoryError),
    #[error("{0}")]
    Login(String),
    #[error("{0}")]
    Requests(#[from] OpenError),
    #[error("{0}")]
    Jobs(#[from] jobs::OpenError),
    #[error("{0}")]
    PairingKeys(#[from] KeysError),
    #[error("listener.tls: {0}")]
    Identity(#[from] IdentityError),
    #[error("the cache cannot be opened (cache.directory, --cache-dir): {0}")]
    Cache(#[source] io::Error),
    #[error("there is no folder for temporary files: {0}")]
    Scratch(#[source] io::Error),
    #[error("cannot listen on {address}: {cause}; choose another with {setting}")]
    Listen {
        address: SocketAddr,
        setting: &'static str,
        cause: io::Error,
    },
    #[error("{0}")]
    Driver(String),
    #[error("a thread cannot be started: {0}")]
    Thread(#[source] io::Error),
    #[error(transparent)]
    Pool(#[from] PoolError),
}

/// What a core tells the main thread.
enum Event {
    Listening,
    Drained,
}

/// Runs until SIGTERM or SIGINT. The warnings are the configuration's, to be logged once there is a log.
pub fn serve(
    mut config: Config,
    file: Option<&Path>,
    warnings: &[Problem],
) -> Result<(), StartError> {
    // First of all: threads inherit the mask.
    let signals = Signals::block_termination().map_err(StartError::Thread)?;
    let log = log::start(&config.log);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let choice = runtime::choose(config.driver).map_err(StartError::Driver)?;
    let core_count = match config.cores {
        0 => thread::available_parallelism().map_or(1, usize::from),
        count => count,
    };
    let open_files = sys::raise_open_files();
    let pipes_per_core = pipes_for_each(core_count);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        config = file.map_or("none".to_owned(), |file| file.display().to_string()),
        driver = choice.name(),
        cores = core_count,
        open_files,
        "tidegate starts"
    );
    if let Choice::Epoll { why: Some(why) } = &choice {
        tracing::warn!("io_uring is not to be had, so epoll is used, with every feature: {why}");
    }
    config.listener.max_connections = open_files::connections_within(
        open_files,
        config.listener.max_connections,
        core_count,
        pipes_per_core,
    );
    if let Some(address) = config.listener.clash() {
        return Err(StartError::Listen {
            address,
            setting: "--listen and --admin, or under [listener]",
            cause: io::Error::new(io::ErrorKind::AddrInUse, "it is named twice"),
        });
    }
    let mut addresses = Vec::new();
    for &address in &config.listener.addresses {
        addresses.push(listen(address, "--listen or listener.addresses")?);
    }
    let admin = listen(config.listener.admin, "--admin or listener.admin")?;
    let url = config.url.clone().unwrap_or_else(|| {
        let port = addresses.first().map_or(5000, SocketAddr::port);
        match config.listener.tls {
            Some(_) => BaseUrl::https_on_this_machine(port),
            None => BaseUrl::on_this_machine(port),
        }
    });
    let pool = Pool::start().map_err(StartError::Thread)?;
    let shared = Shared::load(&config, &url, pool, core_count)?;
    let (events, told) = mpsc::channel();
    let mut stops = Vec::new();
    for core in 0..core_count {
        let (stop, stopped) = blocking::oneshot();
        stops.push(stop);
        let plan = worker::Plan {
            shared: Arc::clone(&shared),
            choice: choice.clone(),
            core,
            pipes: pipes_per_core,
            addresses: addresses.clone(),
            // Rarely asked, so one core is enough.
            admin: (core == 0).then_some(admin),
            stopped,
            events: events.clone(),
        };
        thread::Builder::new()
            .name(format!("core-{core}"))
            .stack_size(runtime::STACK_SIZE)
            .spawn(move || worker::run(plan))
            .map_err(StartError::Thread)?;
    }
    let sweeping = Arc::clone(&shared);
    thread::Builder::new()
        .name("sweeper".to_owned())
        .spawn(move || sweep(&sweeping))
        .map_err(StartError::Thread)?;
    if let Some(client) = &shared.platforms {
        for (number, endpoint) in config.platform.endpoints.iter().enumerate() {
            let (requests, client) = (Arc::clone(&shared.api.requests), Arc::clone(client));
            let tokens = &config.tokens;
            let interval = (*tokens.run_interval).min(*tokens.refresh_interval);
            let endpoint = endpoint.clone();
            let call_timeout = *config.platform.call_timeout;
            let keep = move || {
                let keeper = RunKeeper {
                    requests: &requests,
                    client: &client,
                    endpoint: &endpoint,
                    call_timeout,
                };
                keeper.keep(interval);
            };
            thread::Builder::new()
                .name(format!("runs-{number}"))
                .spawn(keep)
                .map_err(StartError::Thread)?;
        }
    }
    if let Some(identity) = shared.identity.clone() {
        thread::Builder::new()
            .name("certificates".to_owned())
            .spawn(move || keep_current(&identity))
            .map_err(StartError::Thread)?;
    }
    if !shared.story.docker.is_empty() {
        let docker = Arc::clone(&shared.story.docker);
        thread::Builder::new()
            .name("docker-logins".to_owned())
            .spawn(move || keep_logins_current(&docker))
            .map_err(StartError::Thread)?;
    }
    for _ in 0..core_count {
        let _ = told.recv();
    }
    for address in &addresses {
        tracing::info!(registry = %address, "listening");
    }
    tracing::info!(admin = %admin, "listening");
    tracing::info!(%url, "clients are told this address");
    if let Some(advice) = config.names_are_local() {
        tracing::warn!("{advice}");
    }
    shared.set_ready(true);

    wait_for_the_end(&signals);
    shared.set_ready(false);
    let grace = *config.listener.shutdown_grace;
    tracing::info!(grace = %config.listener.shutdown_grace, "stopping: no new connections; running transfers may end");
    thread::Builder::new()
        .name("second-signal".to_owned())
        .spawn(move || {
            wait_for_the_end(&signals);
            process::exit(1);
        })
        .map_err(StartError::Thread)?;
    drop(stops);
    shared.api.jobs.interrupt();
    let began = Instant::now();
    let deadline = began + grace;
    let mut drained = 0;
    while drained < core_count {
        match told.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Event::Drained) => drained += 1,
            Ok(Event::Listening) => {}
            Err(_) => {
                tracing::warn!("transfers were still running after shutdown_grace; they are cut");
                break;
            }
        }
    }
    let jobs_deadline = deadline.min(began + JOBS_GRACE);
    let left = jobs_deadline.saturating_duration_since(Instant::now());
    if !shared.api.jobs.wait_until_idle(left) {
        tracing::warn!(
            "mirrors and freezes are cut; what they had begun at their targets stays there until it is cleared up"
        );
    }
    shared.story.cache.close();
    tracing::info!("stopped");
    // The cores still own buffers that the kernel may write to, so they are not taken apart: the process ends as
    // a whole. Everything on disk is whole at any moment.
    drop(log);
    process::exit(0);
}

/// A server on a terminal ends with it. Elsewhere SIGHUP means "read your files again" to whoever sends it, and to end for that
/// would be worse than not to obey.
fn wait_for_the_end(signals: &Signals) {
    let has_terminal = io::stdin().is_terminal() || io::stderr().is_terminal();
    while signals.wait() == Signal::Hangup && !has_terminal {
        tracing::warn!(
            "SIGHUP changes nothing: settings are read at the start only, so restart for new ones; certificates and \
             [docker] config_files are read again by themselves"
        );
    }
}

fn listen(address: SocketAddr, setting: &'static str) -> Result<SocketAddr, StartError> {
    bind(address).map_err(|cause| StartError::Listen {
        address,
        setting,
        cause,
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "a thread of its own, which serves nobody"
)]
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
#[expect(
    clippy::disallowed_methods,
    reason = "a thread of its own, which serves nobody"
)]
fn keep_logins_current(docker: &crate::credentials::DockerLogins) {
    loop {
        thread::sleep(RENEWAL_INTERVAL);
        docker.renew();
    }
}

/// A certificate is replaced while the server runs, by whoever renews it.
#[expect(
    clippy::disallowed_methods,
    reason = "a thread of its own, which serves nobody"
)]
fn keep_current(identity: &Identity) {
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
