//! What it takes to pull images, in a server or in a command: registries, logins, the cache, and what all cores share of
//! the story. Who serves it to whom is known elsewhere.

use std::{path::Path, rc::Rc, sync::Arc, time::Duration};

use super::StartError;
use crate::{
    aws::{Aws, EcrHost, Environment, RoleArn, SessionName, Source},
    blocking::Pool,
    cache::Cache,
    config::Config,
    credentials::{
        Desk, Directory, DockerLogins, Ecr, EcrTable, Exchange, Keyring, OperatorLogin,
        load_external_id, load_password,
    },
    net::{Addresses, Dialer, Transfer},
    oci::Registry,
    pull::{self, Pull},
    requests::Requests,
    upstream::{self, Authorizer, CloudIdentity, Endpoints, Upstream},
};

pub(super) struct Story {
    pub(super) pool: Arc<Pool>,
    pub(super) cache: Cache,
    pub(super) docker: Arc<DockerLogins>,
    pub(super) desk: Arc<Desk>,
    pub(super) requests: Arc<Requests>,
    pub(super) endpoints: Arc<Endpoints>,
    pull: pull::Common,
    authorizer: Arc<Authorizer>,
    upstream: upstream::Options,
}

/// The operator's, and what is made of them for registries that take something else.
pub(super) struct Logins {
    operator: Vec<OperatorLogin>,
    docker: Arc<DockerLogins>,
    exchange: Arc<Exchange>,
}

impl Logins {
    /// And what is to be known about Docker's files.
    pub(super) fn load(
        config: &Config,
        pool: &Arc<Pool>,
    ) -> Result<(Self, Vec<String>), StartError> {
        let (docker, warnings) = DockerLogins::load(&config.docker).map_err(|errors| {
            let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
            StartError::Login(format!(
                "Docker's logins (docker.config_files, or --authfile of a command): {}",
                texts.join("\n")
            ))
        })?;
        let operator = operator_logins(config)?;
        let exchange = Exchange::new(ecr(config, &operator)?, Arc::clone(pool));
        exchange.introduce()?;
        let logins = Self {
            operator,
            docker: Arc::new(docker),
            exchange,
        };
        Ok((logins, warnings))
    }

    pub(super) fn keyring(&self, config: &Config, directory: Option<Directory>) -> Keyring {
        Keyring::new(self.operator.clone(), directory, config.anonymous)
            .with_own(&config.own)
            .with_docker(Arc::clone(&self.docker))
    }
}

/// `addresses`: of registries that are not listed.
pub(super) fn endpoints(config: &Config, addresses: Addresses) -> Result<Endpoints, StartError> {
    let loaded = Endpoints::load(&config.registries(), addresses, config.anonymous);
    loaded.map_err(|problems| {
        let texts: Vec<String> = problems
            .iter()
            .map(|(registry, error)| format!("registry.\"{registry}\".{error}"))
            .collect();
        StartError::Login(texts.join("\n"))
    })
}

impl Story {
    pub(super) fn new(
        config: &Config,
        pool: Arc<Pool>,
        endpoints: Endpoints,
        (logins, keyring): (Logins, Keyring),
        requests: Arc<Requests>,
        cache: Cache,
    ) -> Self {
        let desk = Desk::new(Arc::new(keyring), Arc::clone(&pool), &config.platform);
        Self {
            pull: pull::Common {
                pool: Arc::clone(&pool),
                desk: Arc::clone(&desk),
                exchange: logins.exchange,
                requests: Arc::clone(&requests),
                proofs: Arc::default(),
                shelf: Arc::default(),
                options: config.overlays.clone(),
            },
            authorizer: Authorizer::new(Arc::clone(&pool)),
            docker: logins.docker,
            endpoints: Arc::new(endpoints),
            upstream: config.upstream.clone(),
            pool,
            cache,
            desk,
            requests,
        }
    }

    /// One core's part, with connections of its own.
    pub(super) fn on_this_core(&self, transfer: &Rc<Transfer>) -> Rc<Pull> {
        let dialer = Dialer::new(Arc::clone(&self.pool), *self.upstream.connect_timeout);
        let exchange = upstream::Exchange::new(dialer, Rc::clone(transfer), self.upstream.clone());
        let upstream = Upstream::new(
            Arc::clone(&self.endpoints),
            Arc::clone(&self.authorizer),
            exchange,
            self.upstream.clone(),
        );
        Pull::new(upstream, self.cache.clone(), self.pull.clone())
    }
}

/// As long as the core lives.
pub(super) async fn close_idle(pull: Rc<Pull>) {
    /// How often idle connections to registries are looked at.
    const IDLE_CHECK: Duration = Duration::from_secs(10);
    loop {
        monoio::time::sleep(IDLE_CHECK).await;
        pull.upstream().close_idle();
    }
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
