//! The process: composes the parts from a configuration, runs them on all cores, and ends them in order.

mod open_files;
mod runs;
mod runtime;
mod scratch;
mod shared;
mod standalone;
mod story;
mod upkeep;
mod worker;

pub use standalone::{Core, Ended, Standalone};

use std::{
    io::{self, IsTerminal as _},
    net::SocketAddr,
    path::Path,
    process,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use crate::{
    blocking::{self, Pool, PoolError},
    config::{BaseUrl, Config, NoDirectory},
    credentials::DirectoryError,
    mirror::jobs,
    net::{IdentityError, bind, pipes_for_each},
    platform::KeysError,
    requests::OpenError,
    server,
    sys::{self, Signal, Signals},
    telemetry::log,
    toml_file::Problem,
};
use runtime::Choice;
use shared::Shared;

/// What mirrors and freezes may take to take back what they have begun at their targets, which is a request or two.
const JOBS_GRACE: Duration = Duration::from_secs(10);

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
    let (addresses, admin) = bind_all(&config.listener)?;
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
        spawn(&format!("core-{core}"), move || worker::run(plan))?;
    }
    upkeep::start(&config, &shared)?;
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
    spawn("second-signal", move || {
        wait_for_the_end(&signals);
        process::exit(1);
    })?;
    drop(stops);
    shared.api.jobs.interrupt();
    let began = Instant::now();
    let deadline = began + grace;
    drain(&told, core_count, deadline);
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

/// Where clients are served, and the operator.
fn bind_all(options: &server::Options) -> Result<(Vec<SocketAddr>, SocketAddr), StartError> {
    if let Some(address) = options.clash() {
        return Err(StartError::Listen {
            address,
            setting: "--listen and --admin, or under [listener]",
            cause: io::Error::new(io::ErrorKind::AddrInUse, "it is named twice"),
        });
    }
    let listen = |address, setting| {
        bind(address).map_err(|cause| StartError::Listen {
            address,
            setting,
            cause,
        })
    };
    let mut addresses = Vec::new();
    for &address in &options.addresses {
        addresses.push(listen(address, "--listen or listener.addresses")?);
    }
    let admin = listen(options.admin, "--admin or listener.admin")?;
    Ok((addresses, admin))
}

/// Waits until no core serves anybody any more, but not for longer than until `deadline`.
fn drain(told: &mpsc::Receiver<Event>, core_count: usize, deadline: Instant) {
    let mut drained = 0;
    while drained < core_count {
        match told.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Event::Drained) => drained += 1,
            Ok(Event::Listening) => {}
            Err(_) => {
                tracing::warn!("transfers were still running after shutdown_grace; they are cut");
                return;
            }
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
    let thread = thread::Builder::new()
        .name(name.to_owned())
        .stack_size(runtime::STACK_SIZE);
    thread.spawn(work).map(|_| ()).map_err(StartError::Thread)
}
