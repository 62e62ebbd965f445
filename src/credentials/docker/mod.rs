//! Logins that the operator has already: in Docker's `config.json`, in a secret that Kubernetes mounts, in credential
//! helpers. They serve where the logins of `[registry."…"]` do.
//!
//! The files are looked at from time to time, by a thread of its own: Kubernetes replaces a mounted secret by pointing a
//! link elsewhere. A new file that cannot be read changes nothing.

mod config_file;
mod helper;

pub use config_file::{DockerConfig, DockerConfigError};

use std::{
    fs::{self, File, Metadata},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Deserialize;
use zeroize::Zeroizing;

use self::helper::Helpers;
use super::{Known, password::exposure};
use crate::{
    oci::{Credentials, Registry, Repository},
    units::{HumanDuration, MIB},
};

/// `[docker]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DockerOptions {
    /// Files with logins as `docker login` and Kubernetes (`.dockerconfigjson`) write them, for anonymous callers. The longest
    /// repository prefix wins, then the login of `[registry."…"]`, then the first file. Read again when they change: `["/run/secrets/registries/.dockerconfigjson"]`.
    pub config_files: Vec<PathBuf>,
    /// How long a credential helper that such a file names may take: `"10s"`.
    pub helper_timeout: HumanDuration,
    /// How long its login is used until it is asked again: `"5min"`.
    pub helper_cache: HumanDuration,
}

impl Default for DockerOptions {
    fn default() -> Self {
        Self {
            config_files: Vec::new(),
            helper_timeout: HumanDuration::seconds(10),
            helper_cache: HumanDuration::seconds(300),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    #[error("{} cannot be read: {cause}", path.display())]
    File { path: PathBuf, cause: io::Error },
    #[error("{}: {cause}", path.display())]
    Content {
        path: PathBuf,
        cause: DockerConfigError,
    },
}

/// A login and where it comes from, for the operator's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KnownLogin {
    pub credentials: Credentials,
    pub source: String,
    /// For how much of a registry: the length of its repository prefix.
    pub prefix_size: usize,
}

/// How far one goes for a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effort {
    Remember,
    /// Blocks while a helper thinks.
    Ask,
}

pub struct DockerLogins {
    files: Vec<WatchedFile>,
    helpers: Helpers,
}

struct WatchedFile {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    config: Arc<DockerConfig>,
    /// Of the file that was looked at last, whatever was in it.
    identity: Option<Identity>,
}

/// Of a file, behind all links: another one, or other content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl DockerLogins {
    /// And what the operator should know about the files.
    pub fn load(options: &DockerOptions) -> Result<(Self, Vec<String>), Vec<DockerError>> {
        let (mut files, mut warnings, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        for path in &options.config_files {
            match read(path) {
                Ok((config, identity, about)) => {
                    warnings.extend(about);
                    files.push(WatchedFile {
                        path: path.clone(),
                        state: Mutex::new(State {
                            config: Arc::new(config),
                            identity: Some(identity),
                        }),
                    });
                }
                Err(error) => errors.push(error),
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let helpers = Helpers::new(options.helper_timeout, options.helper_cache);
        Ok((Self { files, helpers }, warnings))
    }

    /// Whether there is anything to look at.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Takes over files that have changed. Each that cannot be used is told of once, and the old logins stay.
    pub fn renew(&self) {
        for file in &self.files {
            if file.renew() {
                // Whoever changed the file may have changed what its helpers know.
                self.helpers.forget();
            }
        }
    }

    /// The login for a part of the registry, if a file has one.
    pub(super) fn narrow(
        &self,
        registry: &Registry,
        repository: &Repository,
    ) -> Option<KnownLogin> {
        let mut best: Option<KnownLogin> = None;
        for file in &self.files {
            let config = file.config();
            let Some(entry) = config.narrow(registry, repository) else {
                continue;
            };
            let prefix_size = entry.scope.prefix_size();
            if best
                .as_ref()
                .is_none_or(|best| prefix_size > best.prefix_size)
            {
                best = Some(KnownLogin {
                    credentials: entry.credentials.clone(),
                    source: format!("{} of {}", entry.scope, file.path.display()),
                    prefix_size,
                });
            }
        }
        best
    }

    /// The login for all of the registry: of each file in turn, what its helper knows, and what it says itself.
    pub(super) fn wide(&self, registry: &Registry, effort: Effort) -> Known<KnownLogin> {
        for file in &self.files {
            let config = file.config();
            let login = |credentials, source| {
                Known::Login(KnownLogin {
                    credentials,
                    source,
                    prefix_size: 0,
                })
            };
            if let Some(call) = config.helper(registry) {
                let found = match (self.helpers.recall(&call), effort) {
                    (Some(found), _) => found,
                    (None, Effort::Remember) => return Known::Unknown,
                    (None, Effort::Ask) => self.helpers.find(&call),
                };
                if let Some(credentials) = found {
                    return login(credentials, call.to_string());
                }
            }
            if let Some(entry) = config.wide(registry) {
                let source = format!("{registry} of {}", file.path.display());
                return login(entry.credentials.clone(), source);
            }
        }
        Known::None
    }
}

impl DockerLogins {
    /// A registry has refused a login for all of it. Whether a helper may have another one by now.
    pub(super) fn doubt(&self, registry: &Registry) -> bool {
        let calls = self
            .files
            .iter()
            .filter_map(|file| file.config().helper(registry));
        // Each of them, not only the first that may.
        calls.filter(|call| self.helpers.doubt(call)).count() > 0
    }
}

impl WatchedFile {
    fn config(&self) -> Arc<DockerConfig> {
        Arc::clone(&lock(&self.state).config)
    }

    /// Whether there is something new.
    fn renew(&self) -> bool {
        let seen = fs::metadata(&self.path).ok().as_ref().map(Identity::of);
        if lock(&self.state).identity == seen {
            return false;
        }
        match read(&self.path) {
            Ok((config, identity, warnings)) => {
                *lock(&self.state) = State {
                    config: Arc::new(config),
                    identity: Some(identity),
                };
                tracing::info!(file = %self.path.display(), "logins were read again");
                for warning in warnings {
                    tracing::warn!("{warning}");
                }
                true
            }
            Err(error) => {
                lock(&self.state).identity = seen;
                tracing::warn!(
                    "docker.config_files: {error}; the logins that were in it before are used on"
                );
                false
            }
        }
    }
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

fn read(path: &Path) -> Result<(DockerConfig, Identity, Vec<String>), DockerError> {
    /// Kubernetes takes no larger secrets.
    const LARGEST_FILE: u64 = MIB;
    let failed = |cause| DockerError::File {
        path: path.to_owned(),
        cause,
    };
    // To open a pipe may wait for ever.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("it is not a file")));
    }
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    // A mounted secret is a link, and its mode is the volume's.
    let exposure = match fs::symlink_metadata(path).is_ok_and(|it| it.is_symlink()) {
        true => None,
        false => exposure(&file, path).map_err(failed)?,
    };
    let size = usize::try_from(metadata.size().min(LARGEST_FILE)).unwrap_or_default();
    let mut bytes = Zeroizing::new(Vec::with_capacity(size + 1));
    file.take(LARGEST_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(failed(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "it is larger than 1 MiB",
        )));
    }
    let (config, left_out) = DockerConfig::parse(&bytes).map_err(|cause| DockerError::Content {
        path: path.to_owned(),
        cause,
    })?;
    let left_out = left_out
        .into_iter()
        .map(|problem| format!("{}: {problem}; it is left out", path.display()));
    let warnings = exposure.into_iter().chain(left_out).collect();
    Ok((config, Identity::of(&metadata), warnings))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
