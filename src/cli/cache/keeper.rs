//! Who has the cache: a running server, which is asked at its admin listener, or nobody, and then its folder is opened
//! here.
//!
//! The folder's lock decides. A server that holds it must also say that this is its folder before it is asked for anything:
//! several may run on one machine.

use std::{
    fs,
    io::{self, Read as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, de::DeserializeOwned};
use ureq::{Agent, http};

use super::Common;
use crate::{
    api::{GUARD, GUARD_VALUE},
    blocking::Pool,
    cache::{Cache, Checked, FolderId, Gone, Intent, Page, Pin, Pinned, Report, Selection},
    config::{Config, Loaded, NoDirectory, Overrides},
    http::percent_encode_query,
    toml_file::Problem,
    units::ByteSize,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// One blob may be all of a large and slow disk.
const TIMEOUT: Duration = Duration::from_secs(3600);
/// Well above what one turn of the server's fills.
const LARGEST_ANSWER: u64 = 64 << 20;

pub(super) enum Keeper {
    Stopped(Visit),
    Running(Server),
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
        "the server at {admin} (listener.admin in --config, or --admin) has its cache in {}, not in {}",
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
    #[error("{admin}: {cause}")]
    Unreachable { admin: SocketAddr, cause: String },
    #[error("the server at {admin} says: {message}")]
    Refused { admin: SocketAddr, message: String },
    #[error("what answers at {admin} is no tidegate of this version ({cause})")]
    Strange { admin: SocketAddr, cause: String },
}

impl Keeper {
    pub(super) fn find(common: &Common) -> Result<Self, FindError> {
        let mut config = load(common.config.as_deref())?;
        if let Some(admin) = common.admin {
            return Ok(Self::Running(Server::at(admin)));
        }
        config.override_with(Overrides {
            cache_dir: common.cache_dir.clone(),
            ..Overrides::default()
        });
        let directory = config.cache_directory()?;
        let server = Server::at(config.listener.admin);
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

/// A running server.
pub(super) struct Server {
    admin: SocketAddr,
    agent: Agent,
}

impl Server {
    fn at(admin: SocketAddr) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // It is on this machine, or named by its address.
            .proxy(None)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(TIMEOUT))
            .build();
        Self {
            admin: reachable(admin),
            agent: config.into(),
        }
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
            admin: self.admin,
            theirs: report.directory.clone(),
            ours: directory,
        })
    }

    fn ask<T: DeserializeOwned>(&self, method: &str, path: &str) -> Result<T, KeeperError> {
        let admin = self.admin;
        let strange = |cause: String| KeeperError::Strange { admin, cause };
        let request = http::Request::builder()
            .method(method)
            .uri(format!("http://{admin}/cache/{path}"))
            .header(GUARD, GUARD_VALUE)
            .body(())
            .map_err(|error| strange(error.to_string()))?;
        let response = self
            .agent
            .run(request)
            .map_err(|error| KeeperError::Unreachable {
                admin,
                cause: error.to_string(),
            })?;
        let status = response.status();
        let mut body = Vec::new();
        response
            .into_body()
            .into_reader()
            .take(LARGEST_ANSWER)
            .read_to_end(&mut body)
            .map_err(|error| KeeperError::Unreachable {
                admin,
                cause: error.to_string(),
            })?;
        if !status.is_success() {
            #[derive(Deserialize)]
            struct Said {
                message: String,
            }
            return Err(match serde_json::from_slice(&body) {
                Ok(Said { message }) => KeeperError::Refused { admin, message },
                Err(_) => strange(format!("status {status}")),
            });
        }
        serde_json::from_slice(&body).map_err(|error| strange(error.to_string()))
    }
}

/// One that listens everywhere listens on loopback too.
fn reachable(mut admin: SocketAddr) -> SocketAddr {
    if admin.ip().is_unspecified() {
        admin.set_ip(match admin.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    admin
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
    fn what_listens_everywhere_is_asked_on_loopback() {
        for (admin, asked) in [
            ("0.0.0.0:5001", "127.0.0.1:5001"),
            ("[::]:5001", "[::1]:5001"),
            ("10.0.0.1:5001", "10.0.0.1:5001"),
        ] {
            let admin = admin.parse().expect("an address");
            assert_eq!(reachable(admin).to_string(), asked);
        }
    }

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
