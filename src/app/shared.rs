//! What all cores have in common.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::StartError;
use crate::{
    api::{self, Readiness},
    aws::{Aws, EcrHost, Environment, RoleArn, SessionName, Source},
    blocking::Pool,
    cache::Cache,
    config::{BaseUrl, Config},
    credentials::{
        Desk, Directory, DockerLogins, Ecr, EcrTable, Exchange, Keyring, OperatorLogin,
        load_external_id, load_password,
    },
    net::Identity,
    oci::Registry,
    platform::{self, Https, KeyRecords, KeysError, Pairing, Transport, TransportKind},
    pull,
    requests::Requests,
    server::{self, Load},
    telemetry::metrics::Gauge,
    upstream::{self, Authorizer, CloudIdentity, Endpoints},
};

pub(super) struct Shared {
    pub(super) pool: Arc<Pool>,
    pub(super) cache: Cache,
    pub(super) docker: Arc<DockerLogins>,
    pub(super) desk: Arc<Desk>,
    pub(super) platforms: Option<Arc<platform::Client>>,
    pub(super) pull: pull::Common,
    pub(super) endpoints: Arc<Endpoints>,
    pub(super) authorizer: Arc<Authorizer>,
    pub(super) api: Arc<api::Shared>,
    pub(super) load: Arc<Load>,
    pub(super) listener: server::Options,
    pub(super) identity: Option<Arc<Identity>>,
    pub(super) upstream: upstream::Options,
    is_ready: AtomicBool,
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
        let registries = config.registries();
        let endpoints = Endpoints::load(&registries, config.anonymous).map_err(|problems| {
            let texts: Vec<String> = problems
                .iter()
                .map(|(registry, error)| format!("registry.\"{registry}\".{error}"))
                .collect();
            StartError::Login(texts.join("\n"))
        })?;
        let directory = match &config.directory.file {
            Some(file) => {
                // Its warnings came with the configuration's.
                let (directory, _) = Directory::load(file)?;
                Some(directory)
            }
            None => None,
        };
        // Their warnings came with the configuration's, too.
        let (docker, _) = DockerLogins::load(&config.docker).map_err(|errors| {
            let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
            StartError::Login(format!("docker.config_files: {}", texts.join("\n")))
        })?;
        let docker = Arc::new(docker);
        let logins = operator_logins(config)?;
        let exchange = Exchange::new(ecr(config, &logins)?, Arc::clone(&pool));
        exchange.introduce()?;
        let requests = Arc::new(Requests::open(&state_directory, &config.tokens)?);
        let keys = KeyRecords::open(&state_directory, requests.sealing_key(), &config.platform)?;
        let keys = Arc::new(keys);
        let pairing = Pairing::new(&config.platform, Arc::clone(&keys));
        let platforms = platforms(config, &state_directory, &requests, keys, &pairing)?;
        let mut keyring = Keyring::new(logins, directory, config.anonymous)
            .with_own(&config.own)
            .with_docker(Arc::clone(&docker));
        if let Some(client) = &platforms {
            keyring = keyring.with_platforms(Arc::clone(client), &config.platform);
        }
        let desk = Desk::new(Arc::new(keyring), Arc::clone(&pool), &config.platform);
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
        let pull = pull::Common {
            pool: Arc::clone(&pool),
            desk: Arc::clone(&desk),
            exchange,
            requests: Arc::clone(&requests),
            proofs: Arc::default(),
            shelf: Arc::default(),
            options: config.overlays.clone(),
        };
        let api = Arc::new(api::Shared {
            pool: Arc::clone(&pool),
            requests,
            desk: Arc::clone(&desk),
            pairing,
            guesses: api::guesses(),
            quotas: api::Quotas::new(&config.limits),
            checks: api::Checks::default(),
            authority: url.authority().to_owned(),
            accounts: config.accounts.clone(),
            max_body_size: config.listener.max_body_size.bytes(),
        });
        Ok(Arc::new(Self {
            authorizer: Authorizer::new(Arc::clone(&pool)),
            pool,
            cache,
            docker,
            desk,
            platforms,
            pull,
            endpoints: Arc::new(endpoints),
            api,
            load: Load::of(core_count),
            listener: config.listener.clone(),
            identity,
            upstream: config.upstream.clone(),
            is_ready: AtomicBool::new(false),
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

fn operator_logins(config: &Config) -> Result<Vec<OperatorLogin>, StartError> {
    let mut logins = Vec::new();
    for (pattern, options) in config.registries() {
        let (Some(registry), Some(username)) = (pattern.exact(), &options.username) else {
            continue;
        };
        let loaded = load_password(
            username,
            options.password.clone(),
            options.password_file.as_deref(),
            options.password_env.as_deref(),
            // The configuration has made paths absolute.
            Path::new(""),
        );
        let loaded = loaded
            .map_err(|error| StartError::Login(format!("registry.\"{registry}\": {error}")))?;
        logins.push(OperatorLogin {
            registry: Registry::clone(registry),
            prefix: None,
            credentials: loaded.credentials,
        });
    }
    Ok(logins)
}

/// Logins for AWS's registries.
fn ecr(config: &Config, logins: &[OperatorLogin]) -> Result<Ecr, StartError> {
    let failed = |problem: String| StartError::Login(problem);
    let aws = Aws::new(config.aws.clone(), Environment::of_process());
    let role = |text: &Option<String>| {
        text.as_deref()
            .and_then(|text| text.parse::<RoleArn>().ok())
    };
    let jump = role(&config.aws.jump_role);
    let mut tables = Vec::new();
    for (pattern, options) in config.registries() {
        let external_id = match &options.external_id_file {
            Some(file) => Some(load_external_id(file).map_err(|error| {
                failed(format!("registry.\"{pattern}\".external_id_file: {error}"))
            })?),
            None => None,
        };
        let own_jump = role(&options.jump_role);
        let own = options
            .identity
            .map(|CloudIdentity::Aws| match role(&options.assume_role) {
                Some(role) => Source::Role {
                    role,
                    external_id,
                    jump: own_jump.clone().or_else(|| jump.clone()),
                    session: SessionName::own(),
                },
                None => Source::Own,
            });
        tables.push(EcrTable {
            pattern,
            host: options.ecr.as_deref().and_then(EcrHost::parse),
            own,
            jump: own_jump,
        });
    }
    let ecr = Ecr::new(
        aws,
        tables,
        jump,
        config.aws.allow_roles_without_external_id,
    );
    Ok(ecr.reserving(logins))
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
        vec![
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
                name: "tidegate_cache_used_bytes",
                help: "Bytes of the cache on disk, fills included.",
                value: self.cache.used_bytes(),
            },
            Gauge {
                name: "tidegate_cache_max_bytes",
                help: "What the cache may use (cache.max_size).",
                value: self.cache.max_bytes(),
            },
            Gauge {
                name: "tidegate_cache_blobs",
                help: "Blobs in the cache.",
                value: self.cache.blob_count(),
            },
        ]
    }
}
