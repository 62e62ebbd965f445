//! What all cores have in common.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use super::{
    StartError,
    story::{self, Logins, Story},
};
use crate::{
    api::{self, Readiness},
    blocking::Pool,
    cache::Cache,
    config::{BaseUrl, Config},
    credentials::Directory,
    mirror::{self, Whereabouts, jobs::Jobs},
    net::{Addresses, Identity},
    platform::{self, Https, KeyRecords, KeysError, Pairing, Transport, TransportKind},
    requests::Requests,
    server::{self, Load},
    telemetry::metrics::Gauge,
};

pub(super) struct Shared {
    pub(super) story: Story,
    pub(super) platforms: Option<Arc<platform::Client>>,
    pub(super) mirror: mirror::Options,
    pub(super) whereabouts: Arc<Whereabouts>,
    pub(super) api: Arc<api::Shared>,
    pub(super) load: Arc<Load>,
    pub(super) listener: server::Options,
    pub(super) identity: Option<Arc<Identity>>,
    is_ready: AtomicBool,
    /// Seconds since 1970.
    started: u64,
}

impl Shared {
    pub(super) fn load(
        config: &Config,
        url: &BaseUrl,
        pool: Arc<Pool>,
        core_count: usize,
    ) -> Result<Arc<Self>, StartError> {
        let state_directory = config.state_directory()?;
        let cache_directory = config.cache_directory()?;
        let endpoints = story::endpoints(config, Addresses::Public)?;
        let directory = match &config.directory.file {
            Some(file) => {
                // Its warnings came with the configuration's.
                let (directory, _) = Directory::load(file)?;
                Some(directory)
            }
            None => None,
        };
        // Their warnings came with the configuration's, too.
        let (logins, _) = Logins::load(config, &pool)?;
        let requests = Arc::new(Requests::open(&state_directory, &config.tokens)?);
        let keys = KeyRecords::open(&state_directory, requests.sealing_key(), &config.platform)?;
        let keys = Arc::new(keys);
        let pairing = Pairing::new(&config.platform, Arc::clone(&keys));
        let platforms = platforms(config, &state_directory, &requests, keys, &pairing)?;
        let mut keyring = logins.keyring(config, directory);
        if let Some(client) = &platforms {
            keyring = keyring.with_platforms(Arc::clone(client), &config.platform);
        }
        let cache = Cache::load(cache_directory.clone(), &config.cache, Arc::clone(&pool))
            .map_err(StartError::Cache)?;
        tracing::info!(
            state_dir = %state_directory.display(),
            cache_dir = %cache_directory.display(),
            max_size = %config.cache.max_size,
            blobs = cache.blob_count(),
            used_bytes = cache.used_bytes(),
            "folders"
        );
        let mut names: Vec<String> = endpoints.configured().map(ToString::to_string).collect();
        names.sort_unstable();
        tracing::info!(
            configured = if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(" ")
            },
            users = config.directory.file.is_some(),
            anonymous = config.anonymous,
            "registries"
        );
        let identity = match &config.listener.tls {
            Some(files) => Some(Arc::new(files.load()?)),
            None => None,
        };
        let story = Story::new(config, pool, endpoints, (logins, keyring), requests, cache);
        let jobs = Jobs::open(
            &state_directory,
            &config.mirror,
            Arc::clone(&story.requests),
            Arc::clone(&story.pool),
            core_count,
        )?;
        let api = Arc::new(api::Shared {
            pool: Arc::clone(&story.pool),
            requests: Arc::clone(&story.requests),
            jobs,
            desk: Arc::clone(&story.desk),
            pairing,
            guesses: api::guesses(),
            quotas: api::Quotas::new(&config.limits),
            checks: api::Checks::default(),
            authority: url.authority().to_owned(),
            url: url.to_string(),
            is_misnamed: AtomicBool::new(false),
            own: config.own.clone(),
            accounts: config.accounts.clone(),
            max_body_size: config.listener.max_body_size.bytes(),
        });
        Ok(Arc::new(Self {
            story,
            platforms,
            mirror: config.mirror.clone(),
            whereabouts: Arc::default(),
            api,
            load: Load::of(core_count),
            listener: config.listener.clone(),
            identity,
            is_ready: AtomicBool::new(false),
            started: SystemTime::UNIX_EPOCH
                .elapsed()
                .map_or(0, |since| since.as_secs()),
        }))
    }

    pub(super) fn set_ready(&self, is_ready: bool) {
        self.is_ready.store(is_ready, Ordering::Relaxed);
    }
}

/// `None`: none is trusted.
fn platforms(
    config: &Config,
    state_directory: &Path,
    requests: &Requests,
    keys: Arc<KeyRecords>,
    pairing: &Arc<Pairing>,
) -> Result<Option<Arc<platform::Client>>, StartError> {
    let options = &config.platform;
    if options.endpoints.is_empty() {
        return Ok(None);
    }
    let sealing = requests.sealing_key();
    let transport: Arc<dyn Transport> = match options.transport {
        TransportKind::Https => Arc::new(Https::new(options)),
        TransportKind::Pairing => Arc::clone(pairing) as Arc<_>,
    };
    let client = platform::Client::open(state_directory, sealing, options, keys, transport);
    Ok(Some(Arc::new(client.map_err(KeysError::File)?)))
}

impl Readiness for Shared {
    fn ready(&self) -> Result<(), &'static str> {
        if self.is_ready.load(Ordering::Relaxed) {
            Ok(())
        } else {
            Err("starting or stopping")
        }
    }

    fn gauges(&self) -> Vec<Gauge> {
        let jobs = self.api.jobs.counts();
        vec![
            Gauge {
                name: concat!(
                    "tidegate_build_info{version=\"",
                    env!("CARGO_PKG_VERSION"),
                    "\"}"
                ),
                help: "Always 1; which version runs.",
                value: 1,
            },
            Gauge {
                name: "process_start_time_seconds",
                help: "When the process started, in seconds since 1970.",
                value: self.started,
            },
            Gauge {
                name: "tidegate_connections",
                help: "Open connections of clients.",
                value: self.load.connections() as u64,
            },
            Gauge {
                name: "tidegate_pairing_sockets",
                help: "Open pairing sockets of Platforms.",
                value: self.api.pairing.open_count() as u64,
            },
            Gauge {
                name: "tidegate_layers_used_bytes",
                help: "Layers of container requests on disk, with what was made of images for them.",
                value: self.api.requests.layers_size(),
            },
            Gauge {
                name: "tidegate_jobs_waiting",
                help: "Mirrors and freezes that wait for their turn.",
                value: jobs.waiting as u64,
            },
            Gauge {
                name: "tidegate_jobs_running",
                help: "Mirrors and freezes that are being made.",
                value: jobs.running as u64,
            },
            Gauge {
                name: "tidegate_cache_used_bytes",
                help: "Bytes of the cache on disk, fills included.",
                value: self.story.cache.used_bytes(),
            },
            Gauge {
                name: "tidegate_cache_max_bytes",
                help: "What the cache may use (cache.max_size).",
                value: self.story.cache.max_bytes(),
            },
            Gauge {
                name: "tidegate_cache_blobs",
                help: "Blobs in the cache.",
                value: self.story.cache.blob_count(),
            },
        ]
    }
}
