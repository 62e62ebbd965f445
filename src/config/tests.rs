use super::*;
use crate::oci::Registry;

const EXAMPLE: &str = include_str!("../../config/tidegate.toml");

fn load_text(text: &str) -> Result<Loaded, Vec<Problem>> {
    Config::parse(Path::new("tidegate.toml"), text, false)
}

fn problems_of(text: &str) -> Vec<String> {
    match load_text(text) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(Problem::to_string).collect(),
    }
}

/// A `#` right before a key or a table hides it; one before a blank starts a sentence.
fn with_every_setting(example: &str) -> String {
    example
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if setting.starts_with(|c: char| c.is_alphabetic() || c == '[') => {
                setting
            }
            _ => line,
        })
        .collect::<Vec<_>>()
        .join("\n")
}

fn value_of(text: &str) -> Config {
    let reading = toml_file::read::<Config>(Path::new("tidegate.toml"), text);
    assert_eq!(reading.problems, [], "{text}");
    reading.value.expect("there were no problems")
}

#[test]
fn the_example_as_it_is_changes_nothing() {
    let loaded = load_text(EXAMPLE).unwrap_or_else(|problems| panic!("{problems:?}"));
    assert_eq!(
        format!("{:?}", loaded.config),
        format!("{:?}", Config::default())
    );
}

#[test]
fn the_example_shows_the_defaults() {
    let mut shown = value_of(&with_every_setting(EXAMPLE));
    let default = Config::default();

    // Values that have no default, or one that depends on the machine or on another value.
    assert_eq!(
        shown.url.take().map(|url| url.to_string()).as_deref(),
        Some("http://localhost:5000")
    );
    assert_eq!(shown.state_dir.take(), Some("/var/lib/tidegate".into()));
    assert_eq!(
        shown.cache.directory.take(),
        Some("/var/cache/tidegate".into())
    );
    assert_eq!(
        shown.cache.min_free.take(),
        Some(crate::units::ByteSize::gib(1))
    );
    assert_eq!(
        shown.tokens.max_layers_size_per_tenant.take(),
        Some(crate::units::ByteSize(
            default.tokens.max_layers_size.bytes() / 4
        ))
    );
    assert_eq!(shown.directory.file.take(), Some("directory.toml".into()));
    let aws = &mut shown.aws;
    for value in [
        &mut aws.profile,
        &mut aws.region,
        &mut aws.jump_role,
        &mut aws.ecr_endpoint,
        &mut aws.ecr_public_endpoint,
        &mut aws.sts_endpoint,
    ] {
        assert!(value.take().is_some(), "they are all shown");
    }
    let tls = shown.listener.tls.take().expect("it is shown");
    assert_eq!(tls.cert_file, Path::new("tidegate.crt"));
    assert_eq!(tls.key_file, Path::new("tidegate.key"));
    let platform = &mut shown.platform;
    assert_eq!(
        std::mem::take(&mut platform.endpoints),
        ["https://api.cloud.seqera.io"]
    );
    assert_eq!(std::mem::take(&mut platform.pairing_tokens).len(), 1);
    assert!(!platform.license.take().expect("it is shown").strict);
    let own = std::mem::take(&mut shown.own);
    assert_eq!(own.registries().len(), 3);
    let names: Vec<String> = std::mem::take(&mut shown.registry).into_keys().collect();
    assert_eq!(
        names,
        [
            "*.dkr.ecr.*.amazonaws.com",
            "docker.io",
            "images.example.com",
            "quay.io",
            "registry.example.com:5000",
        ]
    );
    let accounts = std::mem::take(&mut shown.accounts);
    assert_eq!(accounts.keys().collect::<Vec<_>>(), ["admin"]);

    assert_eq!(format!("{shown:?}"), format!("{default:?}"));
}

#[test]
fn the_example_breaks_no_rule_but_names_files_that_are_not_there() {
    let problems = load_text(&with_every_setting(EXAMPLE)).expect_err("its files are not there");
    let keys: Vec<&str> = problems
        .iter()
        .map(|problem| problem.key.as_str())
        .collect();
    assert_eq!(
        keys,
        [
            "listener.tls.cert_file",
            "listener.tls.key_file",
            "directory.file",
            "registry.\"quay.io\".password_file",
            "registry.\"docker.io\".password_env",
            "registry.\"registry.example.com:5000\".ca_file",
            "registry.\"*.dkr.ecr.*.amazonaws.com\".external_id_file",
        ]
    );
}

/// Table and key of all that can be set, but for the names of accounts. What a table knows is told by the complaint
/// about a key that it does not know.
fn all_keys() -> Vec<(String, String)> {
    let known = |header: &str| -> Vec<String> {
        let text = format!("{header}zzzzzzzz = 1");
        toml_file::read::<Config>(Path::new("tidegate.toml"), &text)
            .problems
            .iter()
            .filter(|problem| problem.message.starts_with("unknown key"))
            .flat_map(|problem| problem.message.split('`').skip(1).step_by(2))
            .map(str::to_owned)
            .collect()
    };
    let mut keys = Vec::new();
    for name in known("").into_iter().filter(|name| name != "accounts") {
        let inner = match name.as_str() {
            "registry" => known("[registry.x]\n"),
            table => known(&format!("[{table}]\n")),
        };
        match inner.is_empty() {
            true => keys.push((String::new(), name)),
            false => keys.extend(inner.into_iter().map(|key| (name.clone(), key))),
        }
    }
    assert!(keys.len() > 30, "only {} keys were found", keys.len());
    keys
}

/// The values that the example shows for a key; `table` is only the start of a header.
fn shown_values<'a>(shown: &'a str, table: &'a str, key: &'a str) -> Vec<&'a str> {
    let mut current = "";
    let mut values = Vec::new();
    for line in shown.lines() {
        if let Some(header) = line.strip_prefix('[') {
            current = header.split([']', '.']).next().unwrap_or_default();
        } else if current == table
            && let Some(value) = line.strip_prefix(key)
            && let Some(value) = value.strip_prefix(" = ")
        {
            values.push(value);
        }
    }
    values
}

#[test]
fn the_example_shows_every_key() {
    let shown = with_every_setting(EXAMPLE);
    for (table, key) in all_keys() {
        let values = shown_values(&shown, &table, &key);
        assert!(!values.is_empty(), "`{table}.{key}` is not shown");
    }
}

#[test]
fn the_readme_has_every_key_and_its_default() {
    const README: &str = include_str!("../../README.md");
    // Their defaults are told in words.
    const IN_WORDS: [&str; 17] = [
        "url",
        "state_dir",
        "directory",
        "file",
        "tls",
        "endpoints",
        "pairing_tokens",
        "license",
        "build_repository",
        "cache_repository",
        "public_repository",
        "profile",
        "region",
        "jump_role",
        "ecr_endpoint",
        "ecr_public_endpoint",
        "sts_endpoint",
    ];
    let shown = with_every_setting(EXAMPLE);
    for (table, key) in all_keys() {
        let start = match table.as_str() {
            "registry" => format!("| `{key}` | "),
            _ if IN_WORDS.contains(&key.as_str()) => format!("| `{key}` | "),
            _ => {
                let values = shown_values(&shown, &table, &key);
                format!("| `{key}` | `{}` |", values.join(""))
            }
        };
        assert!(README.contains(&start), "README.md lacks {start}");
    }
}

#[test]
fn broken_rules_are_named_with_their_lines() {
    for (text, problem) in [
        (
            "[tokens]\nrun_interval = \"20m\"",
            ":2: tokens.run_interval: is not below run_lease, 20m: names would lapse before their run is asked about",
        ),
        (
            "[own]\nbuild_repository = \"quay.io\"",
            ":2: own.build_repository: names a registry and no repository in it, as in \"quay.io/wave\"",
        ),
        (
            "url = \"http://tidegate\"",
            ":1: url: runtimes would take `tidegate` for a repository on Docker Hub; give it a port or a domain, as in \"http://tidegate:5000\"",
        ),
        (
            "[platform]\nendpoints = [\"api.cloud.seqera.io\"]",
            ":2: platform.endpoints: `api.cloud.seqera.io` is no base URL, as in \"https://api.cloud.seqera.io\"",
        ),
        (
            "[platform]\nendpoints = [\"https://a.example\", \"https://a.example\"]",
            ":2: platform.endpoints: has https://a.example twice",
        ),
        (
            "[platform.pairing_tokens]\n\"https://a.example/\" = []",
            ":2: platform.pairing_tokens.\"https://a.example/\": is not one of `endpoints`; they are compared letter by letter",
        ),
        (
            "[platform]\nendpoints = [\"https://a.example\"]\npairing_tokens = { \"https://a.example\" = [\"secret\"] }",
            ":3: platform.pairing_tokens.\"https://a.example\": each has to be 64 hex digits; when a Platform tries to pair, the log has them",
        ),
        (
            "[platform]\ncall_timeout = \"0s\"",
            ":2: platform.call_timeout: must not be 0",
        ),
        (
            "[platform]\nkey_lease = \"31days\"",
            ":2: platform.key_lease: is above key_retention, 30days",
        ),
        (
            "[platform]\nmax_sessions = 0",
            ":2: platform.max_sessions: must not be 0",
        ),
        (
            "[platform]\nmax_sessions = 2000",
            ":2: platform.max_sessions: is more than 1024",
        ),
        (
            "[platform]\nmax_message_size = \"1KiB\"",
            ":2: platform.max_message_size: is not between 64KiB and 256MiB",
        ),
        (
            "[platform.license]\nurl = \"licenses\"",
            ":2: platform.license.url: `licenses` is no http:// or https:// address",
        ),
        ("cores = 5000", ":1: cores: is more than 1024"),
        (
            "[listener]\naddresses = []",
            ":2: listener.addresses: is empty; nobody could reach the registry",
        ),
        (
            "[listener]\ntrusted_proxies = [\"10.0.0.0/8\", \"10.0.0.0/33\"]",
            ":2: listener.trusted_proxies[1]: `10.0.0.0/33` is not a network; write an address and a length, as in \"10.0.0.0/8\" or \"fd00::/8\"",
        ),
        (
            "[listener]\naddresses = [\"localhost:1\"]",
            ":2: listener.addresses[0]: is not an address; write an IP address and a port, as in \"127.0.0.1:5000\" or \"[::]:5000\"",
        ),
        ("[cache]\n[cache]", ":2: cache: duplicate key"),
        ("cores = 1\ncores = 2", ":2: cores: duplicate key"),
        (
            "[listener]\naddresses = [\"127.0.0.1:1\", \"127.0.0.1:1\"]",
            ":2: listener.addresses: has 127.0.0.1:1 twice",
        ),
        (
            "[listener]\nadmin = \"127.0.0.1:5000\"",
            ":2: listener.admin: 127.0.0.1:5000 is one of `addresses` too",
        ),
        (
            "[listener]\ntls = { cert_file = \"/nowhere/x\", key_file = \"/dev/null\" }",
            ":2: listener.tls.cert_file: cannot read /nowhere/x: No such file or directory (os error 2)",
        ),
        (
            "[listener]\ntls = { cert_file = \"/dev/null\", key_file = \"/dev/null\" }",
            ":2: listener.tls.cert_file: /dev/null holds no certificate in PEM",
        ),
        (
            "[listener]\nmax_connections = 0",
            ":2: listener.max_connections: must not be 0",
        ),
        (
            "[listener]\nsend_timeout = \"0s\"",
            ":2: listener.send_timeout: must not be 0",
        ),
        (
            "[listener]\nmax_body_size = \"0B\"",
            ":2: listener.max_body_size: must not be 0",
        ),
        (
            "[tokens]\nrecord_retention = \"20years\"",
            ":2: tokens.record_retention: is more than 3650 days",
        ),
        (
            "[cache]\nmax_size = \"1023KiB\"",
            ":2: cache.max_size: is less than 1MiB",
        ),
        (
            "[cache]\nhigh_watermark = \"80%\"\nlow_watermark = \"81%\"",
            ":3: cache.low_watermark: is above high_watermark, 80%",
        ),
        (
            "[cache]\nlow_watermark = 0.9",
            ":2: cache.low_watermark: expected a share with a percent sign, as in \"95%\", found a decimal number",
        ),
        (
            "[cache]\nscrub_interval = \"4000days\"",
            ":2: cache.scrub_interval: is more than 3650 days",
        ),
        (
            "[mirror]\nblobs_in_parallel = 0",
            ":2: mirror.blobs_in_parallel: is not between 1 and 32",
        ),
        (
            "[mirror]\nmax_running = 0",
            ":2: mirror.max_running: must not be 0: no mirror or freeze would come about",
        ),
        (
            "[mirror]\njob_timeout = \"0s\"",
            ":2: mirror.job_timeout: must not be 0",
        ),
        (
            "[upstream]\nretry_count = 11",
            ":2: upstream.retry_count: is more than 10",
        ),
        (
            "[directory]\nfile = \"/nowhere/x\"",
            ":2: directory.file: cannot read /nowhere/x: No such file or directory (os error 2)",
        ),
        (
            "[directory]\nfile = \"/\"",
            ":2: directory.file: / is a folder",
        ),
        (
            "[registry.\"a b\"]",
            ":1: registry.\"a b\": `a b` is not a registry's host name",
        ),
        (
            "[registry.\"docker.io\"]\n[registry.\"index.docker.io\"]",
            ":2: registry.\"index.docker.io\": is the same registry as `docker.io`",
        ),
        (
            "[registry.\"quay.io\"]\nendpoint = \"http://quay.io\"",
            ":2: registry.\"quay.io\".endpoint: is plain HTTP, which anyone on the way can read and change; allow it with `insecure = true`",
        ),
        (
            "[registry.\"quay.io\"]\nrealm_hosts = [\"a/b\"]",
            ":2: registry.\"quay.io\".realm_hosts: `a/b` is not a host name; write it without scheme, port and path",
        ),
        (
            "[registry.\"quay.io\"]\nrealm_hosts = [\"auth.quay.io\", \"auth.quay.io:5000\"]",
            ":2: registry.\"quay.io\".realm_hosts: `auth.quay.io:5000` is not a host name; write it without scheme, port and path",
        ),
        (
            "[registry.\"quay.io\"]\nendpoint = \"quay.io\"",
            ":2: registry.\"quay.io\".endpoint: the URL starts with neither http:// nor https://",
        ),
        (
            "[registry.\"quay.io\"]\nca_file = \"/dev/null\"",
            ":2: registry.\"quay.io\".ca_file: /dev/null holds no certificate in PEM",
        ),
        (
            "[registry.\"quay.io\"]\nusername = \"ada\"",
            ":2: registry.\"quay.io\".username: comes without `password_file`, `password_env` or `password`",
        ),
        (
            "[registry.\"quay.io\"]\npassword = \"hunter2\"",
            ":2: registry.\"quay.io\".password: comes without `username`",
        ),
        (
            "[registry.\"quay.io\"]\nusername = \"a:b\"\npassword = \"hunter2\"",
            ":2: registry.\"quay.io\".username: must not contain a colon",
        ),
        (
            "[registry.\"quay.io\"]\nusername = \"ada\"\npassword_env = \"TIDEGATE_TEST_UNSET\"",
            ":3: registry.\"quay.io\".password_env: the environment has no `TIDEGATE_TEST_UNSET`",
        ),
        (
            "[registry.\"quay.io\"]\nusername = \"ada\"\npassword = \"hunter2\"\npassword_env = \"PATH\"",
            ":4: registry.\"quay.io\".password_env: there is `password` already; keep one of them",
        ),
        (
            "[aws]\nregion = \"Frankfurt\"",
            ":2: aws.region: `Frankfurt` is not a region's name, as eu-west-1 is",
        ),
        (
            "[aws]\nsource = \"moon\"",
            ":2: aws.source: unknown value; known are `auto`, `environment`, `profile`, `web-identity`, `container`, `imds`",
        ),
        (
            "[aws]\njump_role = \"jump\"",
            ":2: aws.jump_role: `jump` is not a role's ARN, as arn:aws:iam::123456789012:role/pull is",
        ),
        (
            "[aws]\nsts_endpoint = \"sts\"",
            ":2: aws.sts_endpoint: `sts` is not a URL as https://sts.eu-west-1.amazonaws.com is",
        ),
        (
            "[registry.\"*.quay.io\"]\nendpoint = \"https://quay.io\"",
            ":2: registry.\"*.quay.io\".endpoint: is for one registry; give it a table of its own, without a `*`",
        ),
        (
            "[registry.\"**.quay.io\"]",
            ":1: registry.\"**.quay.io\": `**.quay.io` is not a registry's host name",
        ),
        (
            "[registry.\"quay.io\"]\nidentity = \"aws\"",
            ":2: registry.\"quay.io\".identity: is for registries of AWS, and the name is not one's; say with `ecr` which one stands behind it",
        ),
        (
            "[registry.\"quay.io\"]\nidentity = \"aws\"\necr = \"quay.io\"",
            ":3: registry.\"quay.io\".ecr: `quay.io` is no registry of AWS, as 123456789012.dkr.ecr.eu-west-1.amazonaws.com is",
        ),
        (
            "[registry.\"public.ecr.aws\"]\nidentity = \"aws\"\nusername = \"AWS\"\npassword = \"x\"",
            ":2: registry.\"public.ecr.aws\".identity: there is `username` already; keep one of them",
        ),
        (
            "[registry.\"public.ecr.aws\"]\nassume_role = \"arn:aws:iam::123456789012:role/x\"",
            ":2: registry.\"public.ecr.aws\".assume_role: comes without `identity = \"aws\"`",
        ),
        (
            "[registry.\"public.ecr.aws\"]\nexternal_id_file = \"/dev/null\"",
            ":2: registry.\"public.ecr.aws\".external_id_file: comes without `assume_role`",
        ),
        (
            "[accounts]\nadmin = \"hunter2\"",
            ":2: accounts.admin: is not 64 hex digits; `printf %s 'the password' | sha256sum` prints them",
        ),
    ] {
        assert_eq!(
            problems_of(text),
            [format!("tidegate.toml{problem}")],
            "{text}"
        );
    }
}

#[test]
fn misread_keys_and_broken_rules_are_reported_together() {
    let text = "\
cores = \"all\"
[cache]
max_size = \"1B\"
directroy = \"x\"
[registry.\"quay.io\"]
username = \"ada\"
passwrod = \"hunter2\"
[registry.\"quay.io:5000\"]
username = \"ada\"
";
    let keys: Vec<(usize, String)> = load_text(text)
        .expect_err("it has faults")
        .into_iter()
        .map(|problem| (problem.line, problem.key))
        .collect();
    let expected = [
        (1, "cores"),
        (3, "cache.max_size"),
        (4, "cache.directroy"),
        (7, "registry.\"quay.io\".passwrod"),
        (9, "registry.\"quay.io:5000\".username"),
    ]
    .map(|(line, key)| (line, key.to_owned()));
    assert_eq!(keys, expected);
}

#[test]
fn paths_start_at_the_files_folder() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("tidegate.toml");
    let key = rcgen::generate_simple_self_signed(["quay.io".to_owned()]).expect("a certificate");
    for (name, content) in [
        ("directory.toml", ""),
        ("ca.pem", &key.cert.pem()),
        ("password", "hunter2"),
    ] {
        fs::write(folder.path().join(name), content).expect("a file");
    }
    let text = "\
state_dir = \"state\"
[cache]
directory = \"/var/blobs\"
[directory]
file = \"directory.toml\"
[registry.\"quay.io\"]
ca_file = \"ca.pem\"
username = \"ada\"
password_file = \"password\"
";
    fs::write(&file, text).expect("a file");
    let Config {
        state_dir,
        cache,
        directory,
        registry,
        ..
    } = Config::load(&file)
        .unwrap_or_else(|problems| panic!("{problems:?}"))
        .config;
    let registry = registry.get("quay.io").expect("it is configured");
    for (path, expected) in [
        (&state_dir, folder.path().join("state")),
        (&cache.directory, "/var/blobs".into()),
        (&directory.file, folder.path().join("directory.toml")),
        (&registry.ca_file, folder.path().join("ca.pem")),
        (&registry.password_file, folder.path().join("password")),
    ] {
        assert_eq!(path.as_ref(), Some(&expected));
    }
}

#[test]
fn a_password_that_others_can_read_is_warned_about() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("tidegate.toml");
    let text = "[registry.\"quay.io\"]\nusername = \"ada\"\npassword = \"hunter2\"\n";
    fs::write(&file, text).expect("a file");
    for (mode, lines) in [(0o644, vec![3]), (0o640, vec![]), (0o600, vec![])] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).expect("our own file");
        let loaded = Config::load(&file).unwrap_or_else(|problems| panic!("{problems:?}"));
        let warned: Vec<usize> = loaded.warnings.iter().map(|warning| warning.line).collect();
        assert_eq!(warned, lines, "{mode:o}");
        assert!(!format!("{loaded:?}").contains("hunter2"));
    }
}

#[test]
fn a_platform_that_anybody_can_pass_for_is_warned_about() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("tidegate.toml");
    let text =
        "[platform]\nendpoints = [\"https://api.example.com\"]\nallow_any_pairing_token = true\n";
    fs::write(&file, text).expect("a file");
    let loaded = Config::load(&file).unwrap_or_else(|problems| panic!("{problems:?}"));
    let warned: Vec<String> = loaded.warnings.iter().map(Problem::to_string).collect();
    assert!(
        warned.len() == 1 && warned[0].contains(":3: platform.allow_any_pairing_token: "),
        "{warned:?}"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_one_problem() {
    let problems = Config::load(Path::new("/nowhere/tidegate.toml")).expect_err("it is not there");
    assert_eq!(
        problems.iter().map(Problem::to_string).collect::<Vec<_>>(),
        ["/nowhere/tidegate.toml: cannot be read: No such file or directory (os error 2)"]
    );
}

#[test]
fn the_command_line_wins_over_the_file() {
    let mut config = value_of("cores = 3\n[listener]\naddresses = [\"127.0.0.1:1\"]\n");
    config.override_with(Overrides::default());
    assert_eq!(
        config.listener.addresses,
        ["127.0.0.1:1".parse().expect("an address")]
    );
    config.override_with(Overrides {
        listen: vec!["127.0.0.1:2".parse().expect("an address")],
        admin: Some("127.0.0.1:3".parse().expect("an address")),
        url: Some("http://localhost:2".parse().expect("a URL")),
        state_dir: Some("s".into()),
        cache_dir: Some("c".into()),
        driver: Some(Driver::Epoll),
    });
    assert_eq!(
        config.listener.addresses,
        ["127.0.0.1:2".parse().expect("an address")]
    );
    assert_eq!(config.listener.admin.port(), 3);
    assert_eq!(
        config.url.as_ref().map(BaseUrl::authority),
        Some("localhost:2")
    );
    assert_eq!(config.state_directory(), Ok("s".into()));
    assert_eq!(config.cache_directory(), Ok("c".into()));
    assert_eq!((config.driver, config.cores), (Driver::Epoll, 3));
}

#[test]
fn registries_are_found_by_the_names_that_requests_use() {
    let config = value_of("[registry.\"https://index.docker.io/v1/\"]\nallow_private = true\n");
    let [(pattern, options)] = &config.registries()[..] else {
        panic!("{config:?}");
    };
    assert!(pattern.exact().is_some_and(Registry::is_docker_hub) && options.allow_private);
}

#[test]
fn the_hash_of_an_account_may_be_in_capitals() {
    let hash = "AB".repeat(32);
    let loaded = load_text(&format!("[accounts]\nadmin = \"{hash}\""))
        .unwrap_or_else(|problems| panic!("{problems:?}"));
    assert_eq!(loaded.config.accounts.get("admin"), Some(&"ab".repeat(32)));
}
