//! AWS: logins for its registries, with keys, with roles, or with the identity of the machine that tidegate runs on.
//!
//! Plain blocking Rust, for the pool. Signing, names, answers and sentences are pure. What AWS lends is kept here until
//! it ends, under all that it was made with, and renewed early by one of those who want it; whose keys these may be
//! for is decided by `credentials`.

mod call;
mod ecr;
mod environment;
mod error;
mod identity;
mod lenders;
mod profile;
mod region;
mod registry_host;
mod renewing;
mod role;
mod settings;
mod sts;
mod table;

pub mod answer;
pub mod sigv4;

pub use environment::Environment;
pub use error::AwsError;
pub use region::Region;
pub use registry_host::{EcrHost, PrivateHost};
pub use renewing::Lease;
pub use role::{ExternalId, ExternalIdError, RoleArn, SessionName};
pub use settings::{Options, SourceChoice};

use std::{sync::OnceLock, time::Duration};

use self::{
    call::Http, ecr::PasswordSource, renewing::Renewing, settings::Settings, sts::Session,
    table::Table,
};
use crate::secret::Secret;

/// The user of every ECR login.
pub const REGISTRY_USER: &str = "AWS";

/// What a request is signed with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Keys {
    pub id: String,
    pub secret: Secret<String>,
    pub session_token: Option<Secret<String>>,
}

/// With whose rights AWS is asked. Contains all secrets that its answers depend on, so that it can be their key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    Keys(Keys),
    /// tidegate's own.
    Own,
    /// Of a role that tidegate assumes with its own, or with those of another role before.
    Role {
        role: RoleArn,
        external_id: Option<ExternalId>,
        jump: Option<RoleArn>,
        /// For whom.
        session: SessionName,
    },
}

/// How AWS is asked.
struct Client {
    settings: Settings,
    http: Http,
}

impl Client {
    fn new(options: &Options, environment: &Environment) -> Result<Self, AwsError> {
        let trust = call::trust(environment.get("AWS_CA_BUNDLE").as_deref())?;
        let timeout = environment
            .get("AWS_METADATA_SERVICE_TIMEOUT")
            .and_then(|text| text.parse().ok())
            .map(|seconds: u64| Duration::from_secs(seconds.clamp(1, LONGEST_METADATA_TIMEOUT)));
        Ok(Self {
            settings: Settings::new(options.clone(), environment.clone())?,
            http: Http::new(&trust, timeout.unwrap_or(METADATA_TIMEOUT)),
        })
    }
}

/// One for the process.
pub struct Aws {
    options: Options,
    environment: Environment,
    /// Made when it is needed first: most servers never do, and must not stumble over somebody's `~/.aws`.
    client: OnceLock<Result<Client, AwsError>>,
    own: Renewing<Keys>,
    /// Keys of roles, by the region of STS.
    sessions: Table<(Source, Region), Keys>,
    passwords: Table<(Source, PasswordSource), Secret<String>>,
}

/// Before a session ends, the password that was made with it is replaced.
const EARLY: Duration = Duration::from_secs(10 * 60);
/// The default of AWS's programs: it is on this machine, and off AWS nobody answers.
const METADATA_TIMEOUT: Duration = Duration::from_secs(1);
const LONGEST_METADATA_TIMEOUT: u64 = 10;
/// Keys that were given to us end when their owner says so.
const FOREVER: Duration = Duration::from_secs(36 * 3600);

impl Aws {
    pub fn new(options: Options, environment: Environment) -> Self {
        Self {
            options,
            environment,
            client: OnceLock::new(),
            own: Renewing::default(),
            sessions: Table::default(),
            passwords: Table::default(),
        }
    }

    fn client(&self) -> Result<&Client, AwsError> {
        let made = self
            .client
            .get_or_init(|| Client::new(&self.options, &self.environment));
        made.as_ref().map_err(AwsError::clone)
    }

    /// The password of `REGISTRY_USER` there. Blocks while AWS is asked.
    pub fn registry_password(
        &self,
        source: &Source,
        host: &EcrHost,
    ) -> Result<Secret<String>, AwsError> {
        let at = PasswordSource::of(host);
        let kept = self.passwords.of((source.clone(), at.clone()));
        let lease = kept.current(|| {
            self.with_keys(source, &at.region, |keys| {
                let password = self.client()?.registry_password(&keys.value, &at)?;
                Ok(match source {
                    Source::Keys(_) => password,
                    Source::Own | Source::Role { .. } => password.within(keys, EARLY),
                })
            })
        })?;
        Ok(lease.value)
    }

    /// The same without asking anybody, or `None`.
    pub fn known_password(
        &self,
        source: &Source,
        host: &EcrHost,
    ) -> Option<Result<Secret<String>, AwsError>> {
        let kept = self
            .passwords
            .of((source.clone(), PasswordSource::of(host)));
        Some(kept.known()?.map(|lease| lease.value))
    }

    /// The registry says that this password has ended.
    pub fn forget(&self, source: &Source, host: &EcrHost, spent: &Secret<String>) {
        let key = (source.clone(), PasswordSource::of(host));
        self.passwords.of(key).forget(spent);
    }

    /// Who tidegate is: an ARN.
    pub fn own_identity(&self) -> Result<String, AwsError> {
        let client = self.client()?;
        let region = client.settings.sts_region(&Region::us_east_1());
        self.with_keys(&Source::Own, &region, |keys| {
            client.caller_identity(&keys.value, &region)
        })
    }

    /// Keys that have ended before their time are replaced, once.
    fn with_keys<T>(
        &self,
        source: &Source,
        region: &Region,
        act: impl Fn(&Lease<Keys>) -> Result<T, AwsError>,
    ) -> Result<T, AwsError> {
        let keys = self.keys(source, region)?;
        match act(&keys) {
            Err(AwsError::Expired(_)) if !matches!(source, Source::Keys(_)) => {
                self.forget_keys(source, region, &keys.value);
                act(&self.keys(source, region)?)
            }
            done => done,
        }
    }

    fn keys(&self, source: &Source, region: &Region) -> Result<Lease<Keys>, AwsError> {
        match source {
            Source::Keys(keys) => Ok(Lease::lasting(keys.clone(), FOREVER, Duration::ZERO)),
            Source::Own => self.own.current(|| self.client()?.own_keys()),
            Source::Role {
                role,
                external_id,
                jump,
                session,
            } => {
                let client = self.client()?;
                let region = client.settings.sts_region(region);
                let before = match jump {
                    Some(jump) => Source::Role {
                        role: jump.clone(),
                        external_id: None,
                        jump: None,
                        session: SessionName::own(),
                    },
                    None => Source::Own,
                };
                let session = Session {
                    external_id: external_id.as_ref(),
                    name: Some(session.as_str()),
                    seconds: None,
                };
                let kept = self.sessions.of((source.clone(), region.clone()));
                kept.current(|| {
                    self.with_keys(&before, &region, |keys| {
                        client.assume_role(&keys.value, role, session, &region)
                    })
                })
            }
        }
    }

    fn forget_keys(&self, source: &Source, region: &Region, spent: &Keys) {
        match source {
            Source::Keys(_) => {}
            Source::Own => self.own.forget(spent),
            Source::Role { .. } => {
                if let Ok(client) = self.client() {
                    let region = client.settings.sts_region(region);
                    self.sessions.of((source.clone(), region)).forget(spent);
                }
            }
        }
    }
}
