//! Who has the cache: a running server, which is asked at its admin listener, or nobody, and then its folder is opened
//! here.
//!
//! The folder's lock decides. A server that holds it must also say that this is its folder before it is asked for anything:
//! several may run on one machine.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;

use super::{
    super::server::{AskError, Server},
    Common,
};
use crate::{
    api::CACHE_GUARD,
    blocking::Pool,
    cache::{Cache, Checked, FolderId, Gone, Intent, Page, Pin, Pinned, Report, Selection},
    config::{Config, Loaded, NoDirectory, Overrides},
    http::percent_encode_query,
    toml_file::Problem,
    units::ByteSize,
};

pub(super) enum Keeper {
    Stopped(Visit),
    Running(Running),
}

#[derive(Debug, thiserror::Error)]
pub(super) enum FindError {
    #[error("the configuration is wrong")]
    Config(Vec<Problem>),
    #[error(transparent)]
    NoDirectory(#[from] NoDirectory),
    #[error(
        "there is no cache in {}: nothing has been cached yet, or cache.directory (--config, --cache-dir) is another",
        .0.display()
    )]
    NoCache(PathBuf),
    #[error("the cache in {} cannot be opened: {cause}", directory.display())]
    Unopened {
        directory: PathBuf,
        cause: io::Error,
    },
    #[error(
        "{} is in use by a server, but none answers at its admin listener: {cause} (listener.admin in --config, or --admin)",
        directory.display()
    )]
    Unanswered {
        directory: PathBuf,
        cause: KeeperError,
    },
    #[error(
        "{} belongs to user {owner}, so only he may open it while no server runs: sudo -u '#{owner}' tidegate cache …; and no server answers: {cause} (listener.admin in --config, or --admin)",
        directory.display()
    )]
    Foreign {
        directory: PathBuf,
        owner: u32,
        cause: KeeperError,
    },
    #[error(
        "the server at {admin} (listener.admin in --config, or --admin) has its cache in {}, not in {}; --admin {admin} asks it",
        theirs.display(), ours.display()
    )]
    OtherFolder {
        admin: SocketAddr,
        theirs: PathBuf,
        ours: PathBuf,
    },
}

#[derive(Debug, thiserror::Error)]
pub(super) enum KeeperError {
    #[error("{0}")]
    Disk(#[from] io::Error),
    #[error("it was not pinned")]
    NotPinned,
    #[error(transparent)]
    Server(#[from] AskError),
}

impl Keeper {
    pub(super) fn find(common: &Common) -> Result<Self, FindError> {
        let mut config = load(common.config.as_deref())?;
        if let Some(admin) = common.admin {
            return Ok(Self::Running(Running::at(admin)));
        }
        config.override_with(Overrides {
            cache_dir: common.cache_dir.clone(),
            ..Overrides::default()
        });
        let directory = config.cache_directory()?;
        let server = Running::at(config.listener.admin);
        if config.cache.directory.is_none() {
            server.warn_if_elsewhere(&directory);
        }
        // Whose folder it is decides whose files would be made in it: the server could not open another's.
        let owner = match fs::metadata(directory.join("lock")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(FindError::NoCache(directory));
            }
            Ok(lock) if lock.uid() == own_user() => None,
            Ok(lock) => Some(lock.uid()),
            // Even the folder is closed to us.
            Err(_) => Some(fs::metadata(&directory).map_or(0, |folder| folder.uid())),
        };
        if let Some(owner) = owner {
            return match server.report() {
                Ok(report) => server.of_folder(&report, directory),
                Err(cause) => Err(FindError::Foreign {
                    directory,
                    owner,
                    cause,
                }),
            };
        }
        match Visit::begin(directory.clone(), &config) {
            Ok(visit) => Ok(Self::Stopped(visit)),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => match server.report() {
                Ok(report) => server.of_folder(&report, directory),
                Err(cause) => Err(FindError::Unanswered { directory, cause }),
            },
            Err(cause) => Err(FindError::Unopened { directory, cause }),
        }
    }

    pub(super) fn report(&self) -> Result<Report, KeeperError> {
        match self {
            Self::Stopped(visit) => Ok(visit.0.report()?),
            Self::Running(server) => server.report(),
        }
    }

    pub(super) fn list(&self, selection: &Selection, from: usize) -> Result<Page, KeeperError> {
        match self {
            Self::Stopped(visit) => Ok(visit.0.list(selection, from)),
            Self::Running(server) => {
                let query = query(selection, from, Intent::Do);
                server.ask("GET", &format!("blobs{query}"))
            }
        }
    }

    pub(super) fn check(
        &self,
        selection: &Selection,
        from: usize,
        intent: Intent,
    ) -> Result<Checked, KeeperError> {
        match self {
            Self::Stopped(visit) => Ok(visit.0.check(selection, from, intent)),
            Self::Running(server) => {
                let query = query(selection, from, intent);
                server.ask("POST", &format!("verify{query}"))
            }
        }
    }

    pub(super) fn remove(
        &self,
        selection: &Selection,
        from: usize,
        intent: Intent,
    ) -> Result<Gone, KeeperError> {
        match self {
            Self::Stopped(visit) => Ok(visit.0.remove(selection, from, intent)),
            Self::Running(server) => {
                let query = query(selection, from, intent);
                server.ask("DELETE", &format!("blobs{query}"))
            }
        }
    }

    pub(super) fn gc(&self, to: Option<ByteSize>, intent: Intent) -> Result<Gone, KeeperError> {
        match self {
            Self::Stopped(visit) => Ok(visit.0.gc(to.map(ByteSize::bytes), intent)),
            Self::Running(server) => {
                let mut query = query(&Selection::default(), 0, intent);
                if let Some(to) = to {
                    query.push_str(&format!("&to={}B", to.bytes()));
                }
                server.ask("POST", &format!("gc{query}"))
            }
        }
    }

    pub(super) fn pin(&self, pin: &Pin) -> Result<Pinned, KeeperError> {
        match self {
            Self::Stopped(visit) => Ok(visit.0.pin(pin.clone())?),
            Self::Running(server) => server.ask("PUT", &format!("pins/{pin}")),
        }
    }

    pub(super) fn unpin(&self, pin: &Pin) -> Result<Pinned, KeeperError> {
        match self {
            Self::Stopped(visit) => visit.0.unpin(pin.clone())?.ok_or(KeeperError::NotPinned),
            Self::Running(server) => server.ask("DELETE", &format!("pins/{pin}")),
        }
    }

    pub(super) fn pins(&self) -> Result<Vec<Pinned>, KeeperError> {
        match self {
            Self::Stopped(visit) => Ok(visit.0.pins()),
            Self::Running(server) => server.ask("GET", "pins"),
        }
    }
}

fn load(file: Option<&Path>) -> Result<Config, FindError> {
    match file.map(Config::load) {
        None => Ok(Config::default()),
        Some(Ok(Loaded { config, .. })) => Ok(config),
        Some(Err(problems)) => Err(FindError::Config(problems)),
    }
}

/// A process's folder in `/proc` belongs to its effective user.
fn own_user() -> u32 {
    fs::metadata("/proc/self").map_or(0, |metadata| metadata.uid())
}

/// A stopped server's cache.
pub(super) struct Visit(Cache);

impl Visit {
    fn begin(directory: PathBuf, config: &Config) -> io::Result<Self> {
        Cache::visit(directory, &config.cache, Pool::start()?).map(Self)
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A running server's cache.
pub(super) struct Running(Server);

impl Running {
    fn at(admin: SocketAddr) -> Self {
        Self(Server::at(admin))
    }

    fn report(&self) -> Result<Report, KeeperError> {
        self.ask("GET", "usage")
    }

    fn of_folder(self, report: &Report, directory: PathBuf) -> Result<Keeper, FindError> {
        let is_it = match FolderId::of(&directory) {
            Ok(id) => id == report.folder_id,
            Err(_) => report.directory == directory,
        };
        if is_it {
            return Ok(Keeper::Running(self));
        }
        Err(FindError::OtherFolder {
            admin: self.0.admin,
            theirs: report.directory.clone(),
            ours: directory,
        })
    }

    /// A server that was told other folders than the defaults is more likely meant than what lies at the defaults.
    fn warn_if_elsewhere(&self, directory: &Path) {
        let Ok(report) = self.report() else {
            return;
        };
        let asked = Self::at(self.0.admin);
        if let Err(elsewhere) = asked.of_folder(&report, directory.to_owned()) {
            eprintln!("tidegate: warning: {elsewhere}");
        }
    }

    fn ask<T: DeserializeOwned>(&self, method: &str, path: &str) -> Result<T, KeeperError> {
        let path = format!("cache/{path}");
        Ok(self.0.ask(method, &path, CACHE_GUARD, None)?)
    }
}

fn query(selection: &Selection, from: usize, intent: Intent) -> String {
    let mut query = format!("?from={from}&dry_run={}", intent == Intent::DryRun);
    let texts = [
        (
            "registry",
            selection.registry.as_ref().map(ToString::to_string),
        ),
        (
            "repository",
            selection.repository.as_ref().map(ToString::to_string),
        ),
        ("digest", selection.digest.as_ref().map(ToString::to_string)),
    ];
    for (key, text) in texts {
        if let Some(text) = text {
            query.push_str(&format!("&{key}={}", percent_encode_query(&text)));
        }
    }
    query
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    #[test]
    fn a_selection_becomes_a_query() {
        let digest = Digest::of(b"abc");
        let selection = Selection {
            registry: Some("localhost:5000".parse().expect("a registry")),
            repository: Some("quay.io/acme/app".parse().expect("a repository")),
            digest: Some(digest),
        };
        assert_eq!(
            query(&selection, 7, Intent::DryRun),
            format!(
                "?from=7&dry_run=true&registry=localhost%3A5000&repository=quay.io%2Facme%2Fapp&digest=sha256%3A{}",
                digest.hex()
            )
        );
        let everything = query(&Selection::default(), 0, Intent::Do);
        assert_eq!(everything, "?from=0&dry_run=false");
    }
}
