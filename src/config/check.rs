//! Rules that one value's type cannot state: between keys, between sections, and towards the file system. Every
//! broken one is reported.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fmt,
    fs::{self, File},
    path::Path,
    time::Duration,
};

use super::{BaseUrl, Config};
use crate::{
    aws::{EcrHost, RoleArn},
    credentials::{Directory, DirectoryError, DockerLogins, Scope, load_external_id},
    http::Url,
    mirror::MOST_BLOBS_IN_PARALLEL,
    net::Addresses,
    oci::{Registry, RegistryPattern},
    toml_file::{KeyLines, Problem},
    units::ByteSize,
    upstream::{EndpointError, Endpoints, RegistryOptions},
};

/// Longer than any server runs, short enough that no sum with an instant overflows.
const LONGEST_DURATION: Duration = Duration::from_secs(3_650 * 24 * 3_600);
/// A guess at what is a typing error, well above any machine.
const MOST_CORES: usize = 1_024;
/// With doubling pauses a tenth try comes later than any client waits.
const MOST_RETRIES: u32 = 10;
/// Below it not even manifests would fit.
const SMALLEST_CACHE: ByteSize = ByteSize::mib(1);

/// Each has a thread and three descriptors. A guess at what is a typing error: a Platform opens a few.
const MOST_SESSIONS: usize = 1_024;
/// What a Platform sends when a workspace has a few dozen logins.
const SMALLEST_MESSAGE: ByteSize = ByteSize(64 << 10);
/// Each session may hold one while it arrives.
const LARGEST_MESSAGE: ByteSize = ByteSize::mib(256);

/// What was misread before is not there any more: rules about its table would only confuse.
pub(super) fn problems(config: &Config, lines: &KeyLines, misread: &[Problem]) -> Vec<Problem> {
    let mut check = Check {
        lines,
        problems: Vec::new(),
    };
    check.process(config);
    check.listener(config, misread);
    check.durations(config);
    check.sizes(config);
    check.directory(config);
    check.docker(config);
    check.registry_names(config);
    let well_read: Vec<(&str, &RegistryOptions)> = config
        .registry
        .iter()
        .map(|(name, options)| (name.as_str(), options))
        .filter(|(name, _)| {
            let table = ["registry", name];
            !misread.iter().any(|problem| problem.is_within(&table))
        })
        .collect();
    check.endpoints(&well_read);
    for (name, options) in well_read {
        check.realm_hosts(name, options);
        check.login(name, options);
        check.pattern(name, options);
        check.cloud_identity(name, options);
    }
    check.aws(config);
    check.accounts(config);
    check.platform(config);
    check.own(config);
    check.problems
}

struct Check<'l> {
    lines: &'l KeyLines,
    problems: Vec<Problem>,
}

impl Check<'_> {
    fn report(&mut self, path: &[&str], message: impl fmt::Display) {
        self.problems.push(self.lines.problem(path, message));
    }

    fn process(&mut self, config: &Config) {
        if let Some(Err(error)) = config.url.as_ref().map(BaseUrl::names_a_registry) {
            self.report(&["url"], error);
        }
        if config.cores > MOST_CORES {
            self.report(&["cores"], format_args!("is more than {MOST_CORES}"));
        }
    }

    fn listener(&mut self, config: &Config, misread: &[Problem]) {
        let listener = &config.listener;
        let addresses = ["listener", "addresses"];
        let is_misread = misread.iter().any(|it| it.is_within(&addresses));
        if listener.addresses.is_empty() && !is_misread {
            self.report(&addresses, "is empty; nobody could reach the registry");
        }
        let mut seen = BTreeSet::new();
        for address in &listener.addresses {
            // Port 0 is another free port each time.
            if address.port() != 0 && !seen.insert(address) {
                self.report(&addresses, format_args!("has {address} twice"));
            }
        }
        if seen.contains(&listener.admin) {
            self.report(
                &["listener", "admin"],
                format_args!("{} is one of `addresses` too", listener.admin),
            );
        }
        if let Some(tls) = &listener.tls {
            let (certificate, key) = (
                ["listener", "tls", "cert_file"],
                ["listener", "tls", "key_file"],
            );
            let known = self.problems.len();
            self.file(&certificate, &tls.cert_file);
            self.file(&key, &tls.key_file);
            if self.problems.len() == known
                && let Err(error) = tls.load()
            {
                let path = match error.is_about_the_key() {
                    true => key,
                    false => certificate,
                };
                self.report(&path, error);
            }
        }
        if listener.max_connections == 0 {
            self.report(&["listener", "max_connections"], "must not be 0");
        }
    }

    fn durations(&mut self, config: &Config) {
        let Config {
            listener,
            tokens,
            upstream,
            cache,
            docker,
            ..
        } = config;
        for (path, duration) in [
            (["listener", "head_timeout"], listener.head_timeout),
            (["listener", "idle_timeout"], listener.idle_timeout),
            (["listener", "send_timeout"], listener.send_timeout),
            (["tokens", "lifetime"], tokens.lifetime),
            (["tokens", "run_lease"], tokens.run_lease),
            (["tokens", "run_interval"], tokens.run_interval),
            (["tokens", "run_lifetime"], tokens.run_lifetime),
            (["tokens", "refresh_interval"], tokens.refresh_interval),
            (["upstream", "connect_timeout"], upstream.connect_timeout),
            (["upstream", "response_timeout"], upstream.response_timeout),
            (["upstream", "body_timeout"], upstream.body_timeout),
            (["upstream", "idle_timeout"], upstream.idle_timeout),
            (["docker", "helper_timeout"], docker.helper_timeout),
            (["mirror", "job_timeout"], config.mirror.job_timeout),
        ] {
            if duration.is_zero() {
                self.report(&path, "must not be 0");
            }
            self.duration_is_bounded(&path, *duration);
        }
        if tokens.run_interval >= tokens.run_lease {
            self.report(
                &["tokens", "run_interval"],
                format_args!(
                    "is not below run_lease, {}: names would lapse before their run is asked about",
                    tokens.run_lease
                ),
            );
        }
        // These may be 0: end at once, forget at once, never, always.
        self.duration_is_bounded(&["listener", "shutdown_grace"], *listener.shutdown_grace);
        self.duration_is_bounded(&["tokens", "record_retention"], *tokens.record_retention);
        self.duration_is_bounded(
            &["mirror", "record_retention"],
            *config.mirror.record_retention,
        );
        self.duration_is_bounded(&["cache", "scrub_interval"], *cache.scrub_interval);
        self.duration_is_bounded(&["docker", "helper_cache"], *docker.helper_cache);
        if upstream.max_connections_per_host == 0 {
            self.report(&["upstream", "max_connections_per_host"], "must not be 0");
        }
        let parallel = config.mirror.blobs_in_parallel;
        if parallel == 0 || parallel > MOST_BLOBS_IN_PARALLEL {
            self.report(
                &["mirror", "blobs_in_parallel"],
                format_args!("is not between 1 and {MOST_BLOBS_IN_PARALLEL}"),
            );
        }
        let mirror = &config.mirror;
        for (key, count) in [
            ("max_running", mirror.max_running),
            ("max_running_per_tenant", mirror.max_running_per_tenant),
            ("max_waiting", mirror.max_waiting),
            ("max_waiting_per_tenant", mirror.max_waiting_per_tenant),
            ("attempts", mirror.attempts as usize),
        ] {
            if count == 0 {
                self.report(
                    &["mirror", key],
                    "must not be 0: no mirror or freeze would come about",
                );
            }
        }
        if mirror.max_records == 0 {
            self.report(
                &["mirror", "max_records"],
                "must not be 0: nobody could be told how a mirror or freeze ended",
            );
        }
        if upstream.retry_count > MOST_RETRIES {
            self.report(
                &["upstream", "retry_count"],
                format_args!("is more than {MOST_RETRIES}"),
            );
        }
    }

    fn duration_is_bounded(&mut self, path: &[&str], duration: Duration) {
        if duration > LONGEST_DURATION {
            self.report(path, "is more than 3650 days");
        }
    }

    fn sizes(&mut self, config: &Config) {
        if config.listener.max_body_size == ByteSize(0) {
            self.report(&["listener", "max_body_size"], "must not be 0");
        }
        if config.cache.max_size < SMALLEST_CACHE {
            self.report(
                &["cache", "max_size"],
                format_args!("is less than {SMALLEST_CACHE}"),
            );
        }
        let (low, high) = (config.cache.low_watermark, config.cache.high_watermark);
        if low > high {
            self.report(
                &["cache", "low_watermark"],
                format_args!("is above high_watermark, {high}"),
            );
        }
    }

    fn directory(&mut self, config: &Config) {
        let Some(file) = &config.directory.file else {
            return;
        };
        match Directory::load(file) {
            Ok(_) => {}
            Err(DirectoryError::File { .. }) => self.file(&["directory", "file"], file),
            Err(DirectoryError::Problems { problems }) => self.problems.extend(problems),
        }
    }

    fn docker(&mut self, config: &Config) {
        if let Err(errors) = DockerLogins::load(&config.docker) {
            for error in errors {
                self.report(&["docker", "config_files"], error);
            }
        }
    }

    fn registry_names(&mut self, config: &Config) {
        let mut names: BTreeMap<RegistryPattern, &str> = BTreeMap::new();
        for name in config.registry.keys() {
            match name.parse::<RegistryPattern>() {
                Err(error) => self.report(&["registry", name], error),
                Ok(pattern) => {
                    if let Some(other) = names.insert(pattern, name) {
                        self.report(
                            &["registry", name],
                            format_args!("is the same registry as `{other}`"),
                        );
                    }
                }
            }
        }
    }

    /// The rules are those by which registries are reached later.
    fn endpoints(&mut self, registries: &[(&str, &RegistryOptions)]) {
        let (names, endpoints): (Vec<&str>, Vec<(RegistryPattern, RegistryOptions)>) = registries
            .iter()
            .filter_map(|&(name, options)| Some((name, (name.parse().ok()?, options.clone()))))
            .unzip();
        let Err(errors) = Endpoints::load(&endpoints, Addresses::Public, true) else {
            return;
        };
        for (registry, error) in errors {
            let named = names
                .iter()
                .zip(&endpoints)
                .find(|(_, (known, _))| *known == registry);
            let Some((name, _)) = named else {
                continue;
            };
            let at = |key| ["registry", name, key];
            match error {
                EndpointError::Url(cause) => self.report(&at("endpoint"), cause),
                EndpointError::Query => {
                    self.report(&at("endpoint"), "has a query, which no registry's address has");
                }
                EndpointError::PlainHttp => self.report(
                    &at("endpoint"),
                    "is plain HTTP, which anyone on the way can read and change; allow it with `insecure = true`",
                ),
                EndpointError::Trust(cause) => self.report(&at("ca_file"), cause),
            }
        }
    }

    fn realm_hosts(&mut self, name: &str, options: &RegistryOptions) {
        for host in &options.realm_hosts {
            // A registry's name is a host too, but its parser takes more than that.
            let is_bare = host
                .parse::<Registry>()
                .is_ok_and(|parsed| parsed.host().eq_ignore_ascii_case(host));
            if !is_bare {
                self.report(
                    &["registry", name, "realm_hosts"],
                    format_args!(
                        "`{host}` is not a host name; write it without scheme, port and path"
                    ),
                );
            }
        }
    }

    fn login(&mut self, name: &str, options: &RegistryOptions) {
        let at = |key| ["registry", name, key];
        let sources: Vec<&str> = [
            ("password", options.password.is_some()),
            ("password_file", options.password_file.is_some()),
            ("password_env", options.password_env.is_some()),
        ]
        .into_iter()
        .filter_map(|(key, is_given)| is_given.then_some(key))
        .collect();
        match (&options.username, sources.as_slice()) {
            (None, [source, ..]) => self.report(&at(source), "comes without `username`"),
            // A role of AWS that asks for no external id.
            (Some(username), []) if username.parse::<RoleArn>().is_ok() => {}
            (Some(_), []) => self.report(
                &at("username"),
                "comes without `password_file`, `password_env` or `password`",
            ),
            (Some(username), _) if username.is_empty() => {
                self.report(&at("username"), "is empty");
            }
            // HTTP Basic ends the name at the first colon; a role of AWS is no such name.
            (Some(username), _)
                if username.contains(':') && username.parse::<RoleArn>().is_err() =>
            {
                self.report(&at("username"), "must not contain a colon");
            }
            _ => {}
        }
        if let [first, others @ ..] = sources.as_slice() {
            for other in others {
                self.report(
                    &at(other),
                    format_args!("there is `{first}` already; keep one of them"),
                );
            }
        }
        if let Some(file) = &options.password_file {
            self.file(&at("password_file"), file);
        }
        if let Some(variable) = &options.password_env
            && env::var_os(variable).is_none_or(|value| value.is_empty())
        {
            self.report(
                &at("password_env"),
                format_args!("the environment has no `{variable}`"),
            );
        }
    }

    /// A name with holes is that of many registries.
    fn pattern(&mut self, name: &str, options: &RegistryOptions) {
        if !name.contains('*') {
            return;
        }
        for (key, is_given) in [
            ("endpoint", options.endpoint.is_some()),
            ("username", options.username.is_some()),
            ("ecr", options.ecr.is_some()),
        ] {
            if is_given {
                self.report(
                    &["registry", name, key],
                    "is for one registry; give it a table of its own, without a `*`",
                );
            }
        }
    }

    fn cloud_identity(&mut self, name: &str, options: &RegistryOptions) {
        let at = |key| ["registry", name, key];
        let is_ecr = |host: &str| EcrHost::parse(host).is_some();
        if let Some(host) = &options.ecr
            && !is_ecr(host)
        {
            self.report(
                &at("ecr"),
                format_args!(
                    "`{host}` is no registry of AWS, as 123456789012.dkr.ecr.eu-west-1.amazonaws.com is"
                ),
            );
        }
        if options.identity.is_some() {
            if options.username.is_some() {
                self.report(
                    &at("identity"),
                    "there is `username` already; keep one of them",
                );
            }
            // A pattern's holes are filled with what AWS has there.
            let filled = name
                .replacen('*', "123456789012", 1)
                .replace('*', "eu-west-1");
            let bare = filled.to_ascii_lowercase();
            if options.ecr.is_none() && !is_ecr(&bare) {
                self.report(
                    &at("identity"),
                    "is for registries of AWS, and the name is not one's; say with `ecr` which one stands behind it",
                );
            }
        }
        for (key, role) in [
            ("assume_role", &options.assume_role),
            ("jump_role", &options.jump_role),
        ] {
            if let Some(role) = role
                && let Err(error) = role.parse::<RoleArn>()
            {
                self.report(&at(key), error);
            }
        }
        if options.assume_role.is_some() && options.identity.is_none() {
            self.report(&at("assume_role"), "comes without `identity = \"aws\"`");
        }
        if let Some(file) = &options.external_id_file {
            let path = at("external_id_file");
            if options.assume_role.is_none() {
                self.report(&path, "comes without `assume_role`");
                return;
            }
            let known = self.problems.len();
            self.file(&path, file);
            if self.problems.len() == known
                && let Err(error) = load_external_id(file)
            {
                self.report(&path, error);
            }
        }
    }

    fn aws(&mut self, config: &Config) {
        for (key, problem) in config.aws.problems() {
            self.report(&["aws", key], problem);
        }
    }

    /// Pipes and devices are taken at their word: to open one may wait for ever, or eat its content.
    fn file(&mut self, path: &[&str], file: &Path) {
        let opened = fs::metadata(file).and_then(|metadata| match metadata.is_file() {
            true => File::open(file).map(|_| metadata),
            false => Ok(metadata),
        });
        match opened {
            Err(error) => self.report(
                path,
                format_args!("cannot read {}: {error}", file.display()),
            ),
            Ok(metadata) if metadata.is_dir() => {
                self.report(path, format_args!("{} is a folder", file.display()));
            }
            Ok(_) => {}
        }
    }

    fn accounts(&mut self, config: &Config) {
        for (name, hash) in &config.accounts {
            let path = ["accounts", name];
            if name.is_empty() || name.contains(':') {
                self.report(&path, "a name must not be empty nor contain a colon");
            }
            if !is_sha256(hash) {
                self.report(
                    &path,
                    "is not 64 hex digits; `printf %s 'the password' | sha256sum` prints them",
                );
            }
        }
    }

    fn platform(&mut self, config: &Config) {
        let platform = &config.platform;
        let at = |key| ["platform", key];
        let mut seen = BTreeSet::new();
        for endpoint in &platform.endpoints {
            if !is_base_url(endpoint) {
                self.report(
                    &at("endpoints"),
                    format_args!(
                        "`{endpoint}` is no base URL, as in \"https://api.cloud.seqera.io\""
                    ),
                );
            }
            if !seen.insert(endpoint) {
                self.report(&at("endpoints"), format_args!("has {endpoint} twice"));
            }
        }
        for (endpoint, hashes) in &platform.pairing_tokens {
            let path = ["platform", "pairing_tokens", endpoint];
            if !platform.is_endpoint(endpoint) {
                self.report(
                    &path,
                    "is not one of `endpoints`; they are compared letter by letter",
                );
            }
            if !hashes.iter().all(|hash| is_sha256(hash)) {
                self.report(
                    &path,
                    "each has to be 64 hex digits; when a Platform tries to pair, the log has them",
                );
            }
        }
        for (key, duration) in [
            ("request_timeout", platform.request_timeout),
            ("call_timeout", platform.call_timeout),
            ("session_timeout", platform.session_timeout),
            ("key_retention", platform.key_retention),
        ] {
            if duration.is_zero() {
                self.report(&at(key), "must not be 0");
            }
            self.duration_is_bounded(&at(key), *duration);
        }
        for (key, duration) in [
            ("remember", platform.remember),
            ("remember_in_runs", platform.remember_in_runs),
            ("remember_while_silent", platform.remember_while_silent),
        ] {
            self.duration_is_bounded(&at(key), *duration);
        }
        if platform.key_lease > platform.key_retention {
            self.report(
                &at("key_lease"),
                format_args!("is above key_retention, {}", platform.key_retention),
            );
        }
        if platform.max_sessions == 0 {
            self.report(&at("max_sessions"), "must not be 0");
        }
        if platform.max_sessions > MOST_SESSIONS {
            self.report(
                &at("max_sessions"),
                format_args!("is more than {MOST_SESSIONS}"),
            );
        }
        if !(SMALLEST_MESSAGE..=LARGEST_MESSAGE).contains(&platform.max_message_size) {
            self.report(
                &at("max_message_size"),
                format_args!("is not between {SMALLEST_MESSAGE} and {LARGEST_MESSAGE}"),
            );
        }
        if let Some(license) = &platform.license
            && !is_base_url(&license.url)
        {
            self.report(
                &["platform", "license", "url"],
                format_args!("`{}` is no http:// or https:// address", license.url),
            );
        }
    }

    fn own(&mut self, config: &Config) {
        for (key, repository) in [
            ("build_repository", &config.own.build_repository),
            ("cache_repository", &config.own.cache_repository),
            ("public_repository", &config.own.public_repository),
        ] {
            if let Some(Scope {
                registry,
                prefix: None,
            }) = repository
            {
                self.report(
                    &["own", key],
                    format_args!(
                        "names a registry and no repository in it, as in \"{registry}/wave\""
                    ),
                );
            }
        }
    }
}

/// In hex.
fn is_sha256(hash: &str) -> bool {
    hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_base_url(text: &str) -> bool {
    !text.contains(['?', '#', '@'])
        && (text.starts_with("https://") || text.starts_with("http://"))
        && text.parse::<Url>().is_ok()
}
