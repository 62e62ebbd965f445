//! tidegate's own identity: the first source of keys that is set up, or the one that the operator chose.

use std::{
    io::Read as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, SystemTime},
};

use super::{
    AwsError, Client, ExternalId, Keys, Lease, Region, RoleArn, SourceChoice,
    answer::{LentKeys, lent_keys},
    lenders::{self, Found},
    profile::{Profiles, Section},
    sts::{EARLY, Session},
};
use crate::secret::Secret;

/// Keys without an end are looked at again after a while, since their file may have changed.
const LIFE_WITHOUT_END: Duration = Duration::from_secs(30 * 60);
/// Profiles that name each other; far more than anybody needs.
const MOST_PROFILES: usize = 8;
const PROCESS_TIMEOUT: Duration = Duration::from_secs(15);
const LARGEST_OUTPUT: u64 = 1 << 20;

/// A source's keys, or why it has none.
enum Own {
    Keys(Lease<Keys>),
    Absent(String),
}

impl From<Found> for Own {
    fn from(found: Found) -> Self {
        match found {
            Found::Keys(lent) => Self::Keys(lease(lent)),
            Found::Absent(why) => Self::Absent(why),
        }
    }
}

fn lease(lent: LentKeys) -> Lease<Keys> {
    match lent.expires {
        // By this machine's clock: the source is on it.
        Some(end) => {
            let life = end.duration_since(SystemTime::now()).unwrap_or_default();
            Lease::lasting(lent.keys, life, EARLY)
        }
        None => Lease::lasting(lent.keys, LIFE_WITHOUT_END, EARLY),
    }
}

type Source = fn(&Client) -> Result<Own, AwsError>;

const SOURCES: [(SourceChoice, &str, Source); 5] = [
    (
        SourceChoice::Environment,
        "environment",
        Client::of_environment,
    ),
    (SourceChoice::Profile, "profile", Client::of_profile),
    (
        SourceChoice::WebIdentity,
        "web-identity",
        Client::of_web_identity,
    ),
    (SourceChoice::Container, "container", Client::of_container),
    (SourceChoice::Imds, "imds", Client::of_instance),
];

impl Client {
    /// A source that is set up and fails is the answer: another one's keys could have other rights.
    pub(super) fn own_keys(&self) -> Result<Lease<Keys>, AwsError> {
        let choice = self.settings.options.source;
        let mut tried = Vec::new();
        for (source, name, keys) in SOURCES {
            if choice != SourceChoice::Auto && choice != source {
                continue;
            }
            let found = keys(self).map_err(|error| match error {
                AwsError::Setting(why) => {
                    AwsError::Setting(format!("tidegate's own AWS identity ({name}): {why}"))
                }
                error => error,
            });
            match found? {
                Own::Keys(lease) => return Ok(lease),
                Own::Absent(why) => tried.push(format!("{name}: {why}")),
            }
        }
        Err(AwsError::Setting(format!(
            "tidegate has no AWS identity of its own; looked for ({})",
            tried.join("; ")
        )))
    }

    fn of_environment(&self) -> Result<Own, AwsError> {
        let environment = &self.settings.environment;
        let id = environment.first(&["AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY"]);
        let secret = environment.first(&["AWS_SECRET_ACCESS_KEY", "SECRET_ACCESS_KEY"]);
        let token = environment.first(&["AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"]);
        let (id, secret) = match (id, secret) {
            (Some((_, id)), Some((_, secret))) => (id, Secret::new(secret)),
            (None, None) => return Ok(Own::Absent("AWS_ACCESS_KEY_ID is not set".to_owned())),
            (Some((name, _)), None) => {
                return Err(AwsError::Setting(format!(
                    "{name} is set, but AWS_SECRET_ACCESS_KEY is not"
                )));
            }
            (None, Some((name, _))) => {
                return Err(AwsError::Setting(format!(
                    "{name} is set, but AWS_ACCESS_KEY_ID is not"
                )));
            }
        };
        let expires = environment
            .get("AWS_CREDENTIAL_EXPIRATION")
            .and_then(|text| humantime::parse_rfc3339(&text).ok());
        Ok(Own::Keys(lease(LentKeys {
            keys: Keys {
                id,
                secret,
                session_token: token.map(|(_, token)| Secret::new(token)),
            },
            expires,
        })))
    }

    fn of_web_identity(&self) -> Result<Own, AwsError> {
        const FILE: &str = "AWS_WEB_IDENTITY_TOKEN_FILE";
        const ROLE: &str = "AWS_ROLE_ARN";
        let environment = &self.settings.environment;
        let (file, role) = match (environment.get(FILE), environment.get(ROLE)) {
            (Some(file), Some(role)) => (file, role),
            (Some(_), None) => {
                return Err(AwsError::Setting(format!(
                    "{FILE} is set, but {ROLE} is not"
                )));
            }
            (None, _) => return Ok(Own::Absent(format!("{FILE} is not set"))),
        };
        let role: RoleArn = parse_role(ROLE, &role)?;
        let name = environment.get("AWS_ROLE_SESSION_NAME");
        let session = Session {
            name: name.as_deref(),
            ..Session::default()
        };
        let region = self.region_of(&role);
        let file = PathBuf::from(file);
        self.assume_role_with_web_identity(&file, &role, session, &region)
            .map(Own::Keys)
    }

    fn of_container(&self) -> Result<Own, AwsError> {
        lenders::container(&self.settings.environment, &self.http).map(Own::from)
    }

    fn of_instance(&self) -> Result<Own, AwsError> {
        lenders::instance(&self.settings.environment, &self.http).map(Own::from)
    }

    fn of_profile(&self) -> Result<Own, AwsError> {
        let profiles = Profiles::load(&self.settings.environment)?;
        let name = self.settings.profile();
        if profiles.get(&name).is_none() {
            let files: Vec<String> = profiles
                .files
                .iter()
                .map(|it| it.display().to_string())
                .collect();
            let why = match files.is_empty() {
                true => "there are no shared files (~/.aws/config, ~/.aws/credentials)".to_owned(),
                false => format!("{} has no profile `{name}`", files.join(" or ")),
            };
            return match self.settings.is_profile_chosen() {
                true => Err(AwsError::Setting(why)),
                false => Ok(Own::Absent(why)),
            };
        }
        self.resolve_profile(&profiles, &name, &mut Vec::new())
    }

    fn resolve_profile(
        &self,
        profiles: &Profiles,
        name: &str,
        seen: &mut Vec<String>,
    ) -> Result<Own, AwsError> {
        let setting = |why: &str| AwsError::Setting(format!("profile `{name}`: {why}"));
        let section = profiles.get(name).ok_or_else(|| {
            setting("it is named as a source, but is in none of the shared files")
        })?;
        if seen.iter().any(|known| known == name) || seen.len() >= MOST_PROFILES {
            return Err(setting("its source_profile leads back to itself"));
        }
        seen.push(name.to_owned());
        let text = |key: &str| section.get(key).map(|value| value.expose().as_str());
        let Some(role) = text("role_arn") else {
            if let Some(keys) = static_keys(section).map_err(setting)? {
                return Ok(Own::Keys(keys));
            }
            if let Some(command) = text("credential_process") {
                return run(command).map(Own::Keys).map_err(|why| setting(&why));
            }
            if section.keys().any(|key| key.starts_with("sso_")) {
                return Err(setting(
                    "it signs in by single sign-on, which is for people; give the server keys or a role",
                ));
            }
            return Ok(Own::Absent(format!("profile `{name}` has no keys")));
        };
        let role = parse_role(&format!("profile `{name}`: role_arn"), role)?;
        let external_id: Option<ExternalId> = match text("external_id").map(str::parse) {
            None => None,
            Some(Ok(id)) => Some(id),
            Some(Err(_)) => return Err(setting("its external_id is none")),
        };
        let session = Session {
            external_id: external_id.as_ref(),
            name: text("role_session_name"),
            seconds: text("duration_seconds"),
        };
        let region = match text("region").map(str::parse::<Region>) {
            Some(Ok(region)) => region,
            _ => self.region_of(&role),
        };
        if let Some(file) = text("web_identity_token_file") {
            let file = PathBuf::from(file);
            return self
                .assume_role_with_web_identity(&file, &role, session, &region)
                .map(Own::Keys);
        }
        let source = match (text("source_profile"), text("credential_source")) {
            (Some(_), Some(_)) => {
                return Err(setting(
                    "it has source_profile and credential_source; keep one",
                ));
            }
            // Its own keys, for its own role.
            (Some(source), None) if source == name => static_keys(section)
                .map_err(setting)?
                .map(Own::Keys)
                .ok_or_else(|| setting("it names itself as source_profile, but has no keys"))?,
            (Some(source), None) => self.resolve_profile(profiles, source, seen)?,
            (None, Some("Environment")) => self.of_environment()?,
            (None, Some("EcsContainer")) => self.of_container()?,
            (None, Some("Ec2InstanceMetadata")) => self.of_instance()?,
            (None, Some(_)) => {
                return Err(setting(
                    "its credential_source is none of Environment, EcsContainer, Ec2InstanceMetadata",
                ));
            }
            (None, None) => {
                return Err(setting(
                    "it has a role_arn without source_profile, credential_source or web_identity_token_file",
                ));
            }
        };
        let source = match source {
            Own::Keys(keys) => keys,
            Own::Absent(why) => return Err(setting(&format!("its source has no keys: {why}"))),
        };
        self.assume_role(&source.value, &role, session, &region)
            .map(Own::Keys)
    }

    fn region_of(&self, role: &RoleArn) -> Region {
        self.settings
            .sts_region(&Region::first_of(role.partition()))
    }
}

fn parse_role(what: &str, text: &str) -> Result<RoleArn, AwsError> {
    text.parse()
        .map_err(|error| AwsError::Setting(format!("{what}: {error}")))
}

fn static_keys(section: &Section) -> Result<Option<Lease<Keys>>, &'static str> {
    let value = |key: &str| section.get(key).cloned();
    match (value("aws_access_key_id"), value("aws_secret_access_key")) {
        (Some(id), Some(secret)) => Ok(Some(lease(LentKeys {
            keys: Keys {
                id: id.expose().clone(),
                secret,
                session_token: value("aws_session_token"),
            },
            expires: None,
        }))),
        (None, None) => Ok(None),
        (Some(_), None) => Err("it has aws_access_key_id without aws_secret_access_key"),
        (None, Some(_)) => Err("it has aws_secret_access_key without aws_access_key_id"),
    }
}

/// A `credential_process`: what it prints are keys. Its other words are not for the log, which they could end in.
fn run(command: &str) -> Result<Lease<Keys>, String> {
    let child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("its credential_process cannot be run: {error}"))?;
    let mut child = Ended(child);
    let output = child.0.stdout.take();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut text = String::new();
        let read = output.map(|it| it.take(LARGEST_OUTPUT).read_to_string(&mut text));
        let text = Secret::new(text);
        let _ = sender.send(matches!(read, Some(Ok(_))).then_some(text));
    });
    let text = match receiver.recv_timeout(PROCESS_TIMEOUT) {
        Ok(Some(text)) => text,
        Ok(None) => return Err("its credential_process printed what is no text".to_owned()),
        Err(_) => return Err("its credential_process did not end within 15 s".to_owned()),
    };
    lent_keys(text.expose()).map(lease).ok_or_else(|| {
        "its credential_process printed no keys as JSON; run it by hand to see".to_owned()
    })
}

/// A process of ours that does not outlive its use.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::aws::{Environment, Options, Settings, call};

    const NOWHERE: &str = "/nowhere/at/all";

    fn client(options: Options, variables: &[(&str, &str)]) -> Client {
        let hidden = [
            ("AWS_CONFIG_FILE", NOWHERE),
            ("AWS_SHARED_CREDENTIALS_FILE", NOWHERE),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ];
        // The last one of a name wins.
        let variables = [&hidden, variables].concat();
        let settings = Settings::new(options, Environment::of(&variables));
        let trust = call::trust(None).expect("the platform's");
        Client {
            settings: settings.unwrap_or_else(|error| panic!("{error}")),
            http: call::Http::new(&trust, Duration::from_secs(1)),
        }
    }

    fn own(variables: &[(&str, &str)]) -> Result<Keys, String> {
        let found = client(Options::default(), variables).own_keys();
        found
            .map(|lease| lease.value)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn keys_of_the_environment_come_whole_or_not_at_all() {
        for (variables, expected) in [
            (
                vec![
                    ("AWS_ACCESS_KEY_ID", "A"),
                    ("AWS_SECRET_ACCESS_KEY", "s"),
                    ("AWS_SESSION_TOKEN", "t"),
                ],
                Ok(("A", Some("t"))),
            ),
            (
                vec![
                    ("AWS_ACCESS_KEY", "A"),
                    ("SECRET_ACCESS_KEY", "s"),
                    ("AWS_SESSION_TOKEN", " "),
                ],
                Ok(("A", None)),
            ),
            (
                vec![("AWS_ACCESS_KEY_ID", "A")],
                Err("AWS_SECRET_ACCESS_KEY is not"),
            ),
            (
                vec![("AWS_SECRET_ACCESS_KEY", "s")],
                Err("AWS_ACCESS_KEY_ID is not"),
            ),
            (
                vec![("AWS_WEB_IDENTITY_TOKEN_FILE", NOWHERE)],
                Err("AWS_ROLE_ARN is not"),
            ),
            (
                vec![
                    ("AWS_WEB_IDENTITY_TOKEN_FILE", NOWHERE),
                    ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/x"),
                ],
                Err("cannot be read"),
            ),
            (vec![("AWS_PROFILE", "build")], Err("no shared files")),
            (
                vec![("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://8.8.8.8/x")],
                Err("is not this machine"),
            ),
            (
                vec![],
                Err(
                    "looked for (environment: AWS_ACCESS_KEY_ID is not set; profile: there are no shared files",
                ),
            ),
            (vec![], Err("imds: AWS_EC2_METADATA_DISABLED is set")),
        ] {
            let found = own(&variables);
            match expected {
                Ok((id, token)) => {
                    let keys = found.unwrap_or_else(|error| panic!("{variables:?}: {error}"));
                    let token = token.map(|token| Secret::new(token.to_owned()));
                    assert_eq!((keys.id.as_str(), keys.session_token), (id, token));
                }
                Err(part) => {
                    let error = found.expect_err(part);
                    assert!(error.contains(part), "{variables:?}: {error}");
                }
            }
        }
    }

    #[test]
    fn profiles_lead_to_keys_or_to_what_is_wrong_with_them() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("config");
        let role = "arn:aws:iam::123456789012:role/x";
        let text = format!(
            "[default]\naws_access_key_id = A\naws_secret_access_key = s\n\
             [profile half]\naws_access_key_id = A\n\
             [profile process]\ncredential_process = printf '{{\"Version\":1,\"AccessKeyId\":\"P\",\"SecretAccessKey\":\"s\"}}'\n\
             [profile silent]\ncredential_process = true\n\
             [profile loop]\nrole_arn = {role}\nsource_profile = pool\n\
             [profile pool]\nrole_arn = {role}\nsource_profile = loop\n\
             [profile lost]\nrole_arn = {role}\nsource_profile = nobody\n\
             [profile bare]\nrole_arn = {role}\n\
             [profile odd]\nrole_arn = {role}\ncredential_source = Moon\n\
             [profile people]\nsso_session = x\n\
             [profile nothing]\nregion = eu-west-1\n"
        );
        fs::write(&file, text).expect("our own folder");
        let file = file.display().to_string();
        for (profile, expected) in [
            ("default", Ok("A")),
            ("process", Ok("P")),
            ("half", Err("without aws_secret_access_key")),
            ("silent", Err("printed no keys")),
            ("loop", Err("leads back to itself")),
            ("lost", Err("profile `nobody`")),
            ("bare", Err("without source_profile")),
            ("odd", Err("none of Environment")),
            ("people", Err("single sign-on")),
            ("nothing", Err("has no keys")),
            ("unheard", Err("has no profile `unheard`")),
        ] {
            let found = own(&[("AWS_CONFIG_FILE", &file), ("AWS_PROFILE", profile)]);
            match expected {
                Ok(id) => assert_eq!(found.map(|keys| keys.id).as_deref(), Ok(id), "{profile}"),
                Err(part) => {
                    let error = found.expect_err(part);
                    assert!(error.contains(part), "{profile}: {error}");
                }
            }
        }
    }

    #[test]
    fn a_source_that_was_chosen_is_the_only_one() {
        let options = Options {
            source: SourceChoice::Container,
            ..Options::default()
        };
        let variables = [("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "s")];
        let error = client(options, &variables)
            .own_keys()
            .expect_err("there is no container");
        let error = error.to_string();
        assert!(
            error.contains("container:") && !error.contains("environment"),
            "{error}"
        );
    }
}
