//! What `mirror` and `freeze` have in common: the story in this process instead of a server's, with the user's own logins,
//! a copy that is tried again, and how it is told.

mod display;
mod logins;

use std::{
    fs::File,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{
    MISCONFIGURED,
    output::{Output, yaml},
    print_line, print_problems,
    service::printable,
};
use crate::{
    app::{Core, Ended, Standalone, StartError},
    augment::AugmentError,
    config::{Config, Loaded},
    mirror::{Copied, CopyError, Destination, MOST_BLOBS_IN_PARALLEL, Plan, Progress},
    oci::{Digest, Reference, Registry},
    pull::PullError,
    requests::{Caller, StoreError},
    toml_file::Problem,
    units::ByteSize,
};
use display::Display;

pub(super) const ENVIRONMENT: &str = "\
Environment:
  REGISTRY_AUTH_FILE, DOCKER_CONFIG, XDG_RUNTIME_DIR, XDG_CONFIG_HOME, HOME
                    where logins are looked for if there is no --authfile: $REGISTRY_AUTH_FILE; else Docker's
                    config.json and Podman's auth.json, with the credential helpers that they name
  TMPDIR            where blobs lie while they are copied, if there is no --cache-dir [default: /var/tmp]

Only the copy's name goes to standard output, or with -o what came of it. How far it is goes to standard error.
Exit codes: 0 the copy is there; 1 it could not be made; 2 wrong arguments or configuration; 130 interrupted (143:
terminated, 129: the terminal was closed), and nothing is left half done: what was copied before serves the next try.";

/// Where images come from and go to.
#[derive(clap::Args)]
#[command(next_help_heading = "Registries and logins")]
pub(super) struct Surroundings {
    /// tidegate's settings: how registries are reached (endpoints, certificates) and logins for them
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Logins as `docker login` and `podman login` write them; may be repeated [default: where they write them]
    #[arg(long, value_name = "FILE")]
    authfile: Vec<PathBuf>,

    /// Speak HTTP without TLS with this registry, as with those on this machine; may be repeated
    #[arg(long, value_name = "HOST")]
    plain_http: Vec<Registry>,

    /// Take any certificate of this registry; may be repeated
    #[arg(long, value_name = "HOST")]
    insecure: Vec<Registry>,

    /// Keep blobs here for the next time; no other tidegate may use the folder meanwhile
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,

    /// What blobs may take up on disk at the most [default: cache.max_size of --config, or 20GiB]
    #[arg(long, value_name = "SIZE")]
    cache_size: Option<ByteSize>,

    /// How many blobs are copied at the same time [default: mirror.blobs_in_parallel of --config, or 4]
    #[arg(long, value_name = "COUNT", value_parser = job_count)]
    jobs: Option<usize>,

    /// Do not show how far it is
    #[arg(short, long)]
    quiet: bool,
}

fn job_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (1..=MOST_BLOBS_IN_PARALLEL).contains(&count) => Ok(count),
        _ => Err(format!("it is not between 1 and {MOST_BLOBS_IN_PARALLEL}")),
    }
}

/// As others name images, too.
pub(super) fn image(text: &str) -> Result<Reference, Box<dyn std::error::Error + Send + Sync>> {
    Ok(text.strip_prefix("docker://").unwrap_or(text).parse()?)
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Answer {
    target_image: String,
    source_image: String,
    /// Of the target.
    digest: String,
    /// It was there before.
    cached: bool,
    dry_run: bool,
    #[serde(skip_serializing_if = "Option::is_none", flatten)]
    counts: Option<Counts>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Counts {
    manifests: u64,
    copied: u64,
    mounted: u64,
    present: u64,
    bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the configuration is wrong")]
    Config(Vec<Problem>),
    #[error("{0}")]
    Arguments(String),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Pull(#[from] PullError),
    #[error("--include {image}: {cause}")]
    Include {
        image: Box<Reference>,
        cause: AugmentError,
    },
    #[error(transparent)]
    Copy(Box<CopyError>),
    #[error("the layers cannot be kept while they are copied: {0}")]
    Store(#[from] StoreError),
    #[error("tidegate failed; the reason is above")]
    Broken,
    #[error("cancelled; what was copied before it serves the next try")]
    Signal(i32),
}

impl From<CopyError> for Failure {
    fn from(error: CopyError) -> Self {
        Self::Copy(Box::new(error))
    }
}

impl Failure {
    pub(super) fn of_include(image: &Reference, error: PullError) -> Self {
        match error {
            PullError::Overlay(cause) => Self::Include {
                image: Box::new(image.clone()),
                cause,
            },
            error => error.into(),
        }
    }

    /// What else may be done, in this command's words.
    fn advice(&self) -> String {
        let lacks_login = match self {
            Self::Pull(PullError::Fetch(error)) => error.lacks_login(),
            Self::Copy(error) => error.lacks_login(),
            _ => None,
        };
        if let Some(registry) = lacks_login {
            return format!(
                "; there is no login for {registry}: `docker login {registry}` writes one, or name a file with --authfile"
            );
        }
        let absent = |error: &PullError| {
            matches!(error, PullError::Overlay(AugmentError::NoPlatform { .. }))
        };
        let is_absent = match self {
            Self::Pull(error) => absent(error),
            Self::Include { cause, .. } => matches!(cause, AugmentError::NoPlatform { .. }),
            Self::Copy(error) => match &**error {
                CopyError::NoPlatform { .. } => true,
                CopyError::Source(error) => absent(error),
                _ => false,
            },
            _ => false,
        };
        match is_absent {
            true => "; choose of these with --platform".to_owned(),
            false => String::new(),
        }
    }

    fn code(&self) -> ExitCode {
        match self {
            Self::Config(_) | Self::Arguments(_) => ExitCode::from(MISCONFIGURED),
            // As a shell tells it.
            Self::Signal(number) => ExitCode::from(u8::try_from(128 + number).unwrap_or(1)),
            Self::Start(_)
            | Self::Pull(_)
            | Self::Include { .. }
            | Self::Copy(_)
            | Self::Store(_)
            | Self::Broken => ExitCode::FAILURE,
        }
    }
}

/// Does `work` in this process, and prints what came of it.
pub(super) fn run<F>(
    surroundings: &Surroundings,
    output: Output,
    work: impl FnOnce(Core, Arc<Progress>) -> F + Send + 'static,
) -> ExitCode
where
    F: Future<Output = Result<Answer, Failure>>,
{
    let begun = Instant::now();
    match surroundings.run(work) {
        Ok(answer) => {
            if !surroundings.quiet {
                eprintln!("tidegate: {}", told(&answer, begun.elapsed()));
            }
            let json = || serde_json::to_value(&answer).unwrap_or_default();
            match output {
                Output::Text => print_line(&answer.target_image),
                Output::Json => print_line(&json().to_string()),
                Output::Yaml => print_line(yaml(&json()).trim_end()),
            }
        }
        Err(failure) => {
            match &failure {
                Failure::Config(problems) => print_problems(problems),
                // Registries say what they like.
                failure => eprintln!(
                    "tidegate: {}{}",
                    printable(&failure.to_string()),
                    failure.advice()
                ),
            }
            failure.code()
        }
    }
}

impl Surroundings {
    fn run<F>(
        &self,
        work: impl FnOnce(Core, Arc<Progress>) -> F + Send + 'static,
    ) -> Result<Answer, Failure>
    where
        F: Future<Output = Result<Answer, Failure>>,
    {
        let (standalone, warnings) = Standalone::start(self.config()?, self.cache_dir.clone())?;
        if !self.quiet {
            for warning in warnings {
                eprintln!("tidegate: warning: {}", printable(&warning));
            }
        }
        let mut display = Display::new(self.quiet);
        let progress = Arc::new(Progress::default());
        let Ended { answer, signal } =
            standalone.run(&progress, work, |snapshot| display.show(snapshot))?;
        display.end();
        match (answer, signal) {
            // It was there before the signal.
            (Some(Ok(answer)), _) => Ok(answer),
            (_, Some(number)) => Err(Failure::Signal(number)),
            (Some(Err(failure)), None) => Err(failure),
            (None, None) => Err(Failure::Broken),
        }
    }

    fn config(&self) -> Result<Config, Failure> {
        let mut config = match self.config.as_deref().map(Config::load) {
            None => Config::default(),
            Some(Ok(Loaded { config, .. })) => config,
            Some(Err(problems)) => return Err(Failure::Config(problems)),
        };
        for file in &self.authfile {
            if let Err(error) = File::open(file) {
                let file = file.display();
                return Err(Failure::Arguments(format!("--authfile {file}: {error}")));
            }
        }
        let files = match self.authfile.is_empty() {
            true => logins::files(),
            false => self.authfile.clone(),
        };
        config.docker.config_files.extend(files);
        for host in &self.plain_http {
            let table = config.registry.entry(host.to_string()).or_default();
            table.insecure = true;
        }
        for host in &self.insecure {
            let table = config.registry.entry(host.to_string()).or_default();
            table.insecure = true;
            table.ca_file = None;
            if table.endpoint.is_none() && !host.is_docker_hub() {
                table.endpoint = Some(format!("https://{host}"));
            }
        }
        if let Some(size) = self.cache_size {
            config.cache.max_size = size;
        }
        if let Some(jobs) = self.jobs {
            config.mirror.blobs_in_parallel = jobs;
        }
        Ok(config)
    }
}

/// On whose behalf: whoever has no name has the logins of this process, which are the user's.
pub(super) fn caller() -> Arc<Caller> {
    Arc::new(Caller::Anonymous)
}

pub(super) fn destination(target: &Reference) -> Destination {
    Destination {
        registry: target.registry.clone(),
        repository: target.repository.clone(),
        version: target.version.clone(),
        caller: caller(),
    }
}

/// What asks registries and begins nothing there need not be waited for. A copy sees for itself that it is cancelled.
pub(super) async fn unless_cancelled<T>(
    progress: &Progress,
    work: impl Future<Output = T>,
) -> Result<T, CopyError> {
    const CHECK: Duration = Duration::from_millis(100);
    let cancelled = async {
        while !progress.is_cancelled() {
            monoio::time::sleep(CHECK).await;
        }
    };
    // Stacks are small, and what asks registries is large.
    let work = Box::pin(work);
    monoio::select! {
        done = work => Ok(done),
        () = cancelled => Err(CopyError::Cancelled),
    }
}

/// Again after what may pass by itself: what has been copied need not be copied again.
pub(super) async fn copy(
    core: &Core,
    plan: &Plan,
    progress: &Arc<Progress>,
) -> Result<Copied, CopyError> {
    const TRIES: u32 = 3;
    const FIRST_PAUSE: Duration = Duration::from_secs(1);
    /// Whoever is told to come back later than that decides for himself.
    const LONGEST_PAUSE: Duration = Duration::from_secs(60);
    let mut pause = FIRST_PAUSE;
    for _ in 1..TRIES {
        let error = match core.mirror.copy(plan, progress).await {
            Err(error) if error.is_transient() => error,
            ended => return ended,
        };
        let wanted = error.retry_after().unwrap_or_default().max(pause);
        if wanted > LONGEST_PAUSE {
            return Err(error);
        }
        unless_cancelled(progress, monoio::time::sleep(wanted)).await?;
        pause *= 4;
    }
    core.mirror.copy(plan, progress).await
}

impl Answer {
    /// `was_there`: what stands there now stood there before.
    pub(super) fn copied(
        source: &Reference,
        target: &Reference,
        copied: &Copied,
        was_there: bool,
    ) -> Self {
        Self {
            target_image: target.to_string(),
            source_image: source.to_string(),
            digest: copied.digest.to_string(),
            cached: was_there && copied.copied + copied.mounted == 0,
            dry_run: false,
            counts: Some(Counts {
                manifests: copied.manifests,
                copied: copied.copied,
                mounted: copied.mounted,
                present: copied.present,
                bytes: copied.bytes,
            }),
        }
    }

    /// Nothing had to be done.
    pub(super) fn standing(source: &Reference, target: &Reference, digest: &Digest) -> Self {
        Self {
            target_image: target.to_string(),
            source_image: source.to_string(),
            digest: digest.to_string(),
            cached: true,
            dry_run: false,
            counts: None,
        }
    }

    /// Nothing was to be done.
    pub(super) fn rehearsed(
        source: &Reference,
        target: &Reference,
        digest: &Digest,
        is_there: bool,
    ) -> Self {
        Self {
            cached: is_there,
            dry_run: true,
            ..Self::standing(source, target, digest)
        }
    }
}

fn told(answer: &Answer, time: Duration) -> String {
    let Answer {
        source_image,
        target_image,
        digest,
        ..
    } = answer;
    match (&answer.counts, answer.cached) {
        (Some(counts), false) => format!(
            "{source_image} is {digest} at {target_image} now: {} copied ({}), {} mounted, {} there before, in {:.1}s",
            blobs(counts.copied),
            ByteSize(counts.bytes).rounded(),
            counts.mounted,
            counts.present,
            time.as_secs_f64(),
        ),
        (_, true) => format!("{target_image} is there already: {digest}"),
        (None, false) => {
            format!("{source_image}, {digest}, may be copied to {target_image}; nothing was done")
        }
    }
}

fn blobs(count: u64) -> String {
    match count {
        1 => "1 blob".to_owned(),
        many => format!("{many} blobs"),
    }
}
