//! The configuration: every module's `Options` put together, from a file and the command line.
//!
//! A `Config` that was loaded keeps all rules of `check.rs`, its paths do not depend on the current folder, and what
//! was wrong is reported all at once. What a key means is said at the field, for users in `config/tidegate.toml`.

mod base_url;
mod check;
mod directories;
mod overrides;

pub use base_url::{BaseUrl, BaseUrlError};
pub use directories::NoDirectory;
pub use overrides::{Overrides, listen_address};

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use zeroize::Zeroizing;

use crate::{
    api, aws, cache,
    credentials::{self, Directory, DockerLogins, load_password},
    mirror,
    oci::RegistryPattern,
    platform, pull, requests, server, telemetry,
    toml_file::{self, KeyLines, Problem, Reading},
    upstream::{self, RegistryOptions},
};
use directories::Purpose;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What clients call us: its host and port start every ephemeral name. Default: `http://localhost:` and the port of
    /// the first listener; `https://` with `listener.tls`.
    pub url: Option<BaseUrl>,
    /// Where container requests are kept. Default: `$XDG_STATE_HOME/tidegate`, for root `/var/lib/tidegate`.
    pub state_dir: Option<PathBuf>,
    pub driver: Driver,
    /// Threads that serve; 0 is one per core.
    pub cores: usize,
    /// Take container requests without an access token.
    pub anonymous: bool,
    pub listener: server::Options,
    pub tokens: requests::Options,
    pub cache: cache::Options,
    pub upstream: upstream::Options,
    pub overlays: pull::Options,
    pub limits: api::Options,
    pub mirror: mirror::Options,
    pub directory: credentials::Options,
    pub docker: credentials::DockerOptions,
    pub platform: platform::Options,
    pub own: credentials::OwnOptions,
    pub aws: aws::Options,
    pub registry: BTreeMap<String, RegistryOptions>,
    /// Who may revoke tokens, by HTTP Basic: name → SHA-256 of the password, in lower-case hex.
    pub accounts: BTreeMap<String, String>,
    pub log: telemetry::Options,
}

/// How a core waits for its sockets and files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// io_uring where the kernel lets us, else epoll.
    #[default]
    Auto,
    /// io_uring, or no start.
    #[serde(rename = "io_uring")]
    #[value(name = "io_uring")]
    IoUring,
    /// epoll, with every feature.
    Epoll,
}

#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    /// What works, but should not stay so.
    pub warnings: Vec<Problem>,
}

impl Config {
    pub fn load(file: &Path) -> Result<Loaded, Vec<Problem>> {
        let text = fs::read_to_string(file).map_err(|error| {
            let message = match error.kind() {
                io::ErrorKind::InvalidData => "is not a text file (UTF-8)".to_owned(),
                _ => format!("cannot be read: {error}"),
            };
            vec![Problem::of_file(file, message)]
        })?;
        // Passwords may stand in it.
        let text = Zeroizing::new(text);
        let is_readable_by_others =
            fs::metadata(file).is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0);
        Self::parse(file, &text, is_readable_by_others)
    }

    fn parse(file: &Path, text: &str, is_readable_by_others: bool) -> Result<Loaded, Vec<Problem>> {
        let Reading {
            value,
            mut problems,
            lines,
        } = toml_file::read::<Self>(file, text);
        let Some(mut config) = value else {
            return Err(problems);
        };
        config.resolve_paths(file.parent().unwrap_or(Path::new("")));
        config.normalize_hashes();
        problems.extend(check::problems(&config, &lines, &problems));
        if !problems.is_empty() {
            // The configuration's own first, then the directory's.
            problems.sort_by_key(|problem| (problem.file != *file, problem.line));
            return Err(problems);
        }
        let mut warnings = match is_readable_by_others {
            true => config.passwords_in_sight(&lines),
            false => Vec::new(),
        };
        warnings.extend(config.exposed_files(&lines));
        if config.platform.allow_any_pairing_token {
            warnings.push(lines.problem(
                &["platform", "allow_any_pairing_token"],
                "whoever reaches the listener can pass for a Platform and collect its users' access tokens; list \
                 `platform.pairing_tokens` instead",
            ));
        }
        if config.listener.tls.is_some() && config.url.as_ref().is_some_and(|url| !url.is_https()) {
            warnings.push(lines.problem(
                &["url"],
                "is http://, but `listener.tls` makes the listener speak HTTPS only",
            ));
        }
        warnings.extend(config.endpoints_without_tokens(&lines));
        Ok(Loaded { config, warnings })
    }

    /// Paths in the file are relative to the file's folder.
    fn resolve_paths(&mut self, folder: &Path) {
        let of_registries = self.registry.values_mut().flat_map(|registry| {
            [
                &mut registry.ca_file,
                &mut registry.password_file,
                &mut registry.external_id_file,
            ]
        });
        let paths = [
            &mut self.state_dir,
            &mut self.cache.directory,
            &mut self.directory.file,
        ];
        let of_tls = self
            .listener
            .tls
            .iter_mut()
            .flat_map(|tls| [&mut tls.cert_file, &mut tls.key_file]);
        let set = paths.into_iter().chain(of_registries).flatten();
        let of_docker = &mut self.docker.config_files;
        for path in set.chain(of_tls).chain(of_docker) {
            *path = folder.join(&*path);
        }
    }

    fn normalize_hashes(&mut self) {
        let of_tokens = self.platform.pairing_tokens.values_mut().flatten();
        for hash in self.accounts.values_mut().chain(of_tokens) {
            hash.make_ascii_lowercase();
        }
    }

    fn passwords_in_sight(&self, lines: &KeyLines) -> Vec<Problem> {
        self.registry
            .iter()
            .filter(|(_, options)| options.password.is_some())
            .map(|(name, _)| {
                lines.problem(
                    &["registry", name, "password"],
                    "every user of this machine can read this file; use password_file, or `chmod o-r`",
                )
            })
            .collect()
    }

    /// Not an error: the way to learn a Platform's token is to let it try.
    fn endpoints_without_tokens(&self, lines: &KeyLines) -> Vec<Problem> {
        self.platform
            .endpoints
            .iter()
            .filter(|endpoint| !self.platform.can_be_paired(endpoint))
            .map(|endpoint| {
                lines.problem(
                    &["platform", "endpoints"],
                    format_args!(
                        "no Platform can pair for {endpoint}: `pairing_tokens` has nothing for it. When one tries, the log has the line to add"
                    ),
                )
            })
            .collect()
    }

    /// Files with secrets that the configuration names.
    fn exposed_files(&self, lines: &KeyLines) -> Vec<Problem> {
        let mut warnings = Vec::new();
        if let Some(tls) = &self.listener.tls
            && fs::metadata(&tls.key_file)
                .is_ok_and(|metadata| metadata.permissions().mode() & 0o004 != 0)
        {
            let file = tls.key_file.display();
            warnings.push(lines.problem(
                &["listener", "tls", "key_file"],
                format_args!("every user of this machine can read {file}; `chmod o-r` it"),
            ));
        }
        for (name, options) in &self.registry {
            if let (Some(username), Some(file)) = (&options.username, &options.password_file)
                && let Ok(loaded) = load_password(username, None, Some(file), None, Path::new(""))
                && let Some(warning) = loaded.warning
            {
                warnings.push(lines.problem(&["registry", name, "password_file"], warning));
            }
        }
        if let Some(file) = &self.directory.file
            && let Ok((_, of_directory)) = Directory::load(file)
        {
            warnings.extend(
                of_directory
                    .iter()
                    .map(|warning| lines.problem(&["directory", "file"], warning)),
            );
        }
        if let Ok((_, of_docker)) = DockerLogins::load(&self.docker) {
            warnings.extend(
                of_docker
                    .iter()
                    .map(|warning| lines.problem(&["docker", "config_files"], warning)),
            );
        }
        warnings
    }

    /// What to change if names lead other machines to themselves though they can connect; an operator may mean it so.
    pub fn names_are_local(&self) -> Option<String> {
        let url = match (&self.url, &self.listener.tls) {
            (Some(url), _) => url.to_string(),
            (None, Some(_)) => "https://localhost".to_owned(),
            (None, None) => "http://localhost".to_owned(),
        };
        let is_local = self.url.as_ref().is_none_or(BaseUrl::is_this_machine);
        let mut addresses = self.listener.addresses.iter();
        let are_others_let_in = addresses.any(|address| !address.ip().is_loopback());
        (is_local && are_others_let_in).then(|| {
            format!(
                "other machines can connect, but names begin with {url}, which is their own machine to them; set `url` \
                 (--url) to what they call this one"
            )
        })
    }

    /// `[registry."…"]` by the registries' names as they appear in requests.
    pub fn registries(&self) -> Vec<(RegistryPattern, RegistryOptions)> {
        self.registry
            .iter()
            .filter_map(|(name, options)| Some((name.parse().ok()?, options.clone())))
            .collect()
    }

    pub fn state_directory(&self) -> Result<PathBuf, NoDirectory> {
        directories::chosen_or_default(self.state_dir.as_deref(), Purpose::State)
    }

    pub fn cache_directory(&self) -> Result<PathBuf, NoDirectory> {
        directories::chosen_or_default(self.cache.directory.as_deref(), Purpose::Cache)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: None,
            state_dir: None,
            driver: Driver::default(),
            cores: 0,
            anonymous: true,
            listener: server::Options::default(),
            tokens: requests::Options::default(),
            cache: cache::Options::default(),
            upstream: upstream::Options::default(),
            overlays: pull::Options::default(),
            limits: api::Options::default(),
            mirror: mirror::Options::default(),
            directory: credentials::Options::default(),
            docker: credentials::DockerOptions::default(),
            platform: platform::Options::default(),
            own: credentials::OwnOptions::default(),
            aws: aws::Options::default(),
            registry: BTreeMap::new(),
            accounts: BTreeMap::new(),
            log: telemetry::Options::default(),
        }
    }
}

#[cfg(test)]
mod tests;
