//! The files that AWS's programs share, `~/.aws/config` and `~/.aws/credentials`: text to profiles. Pure but for
//! reading them.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use super::{AwsError, environment::Environment};
use crate::secret::Secret;

/// Guessed: far more than anybody writes.
const LARGEST_FILE: u64 = 1 << 20;

/// Keys are lower-case; one below another is `outer.inner`.
pub(super) type Section = BTreeMap<String, Secret<String>>;

/// What both files say. The file of credentials wins.
#[derive(Default)]
pub(super) struct Profiles {
    profiles: BTreeMap<String, Section>,
    services: BTreeMap<String, Section>,
    /// For messages: which files there were.
    pub(super) files: Vec<PathBuf>,
}

/// Which of the two files.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Sections are called `profile x`.
    Config,
    Credentials,
}

impl Profiles {
    /// A file that is not there is none.
    pub(super) fn load(environment: &Environment) -> Result<Self, AwsError> {
        let home = environment.get("HOME").map(PathBuf::from);
        let path = |variable: &str, name: &str| {
            let chosen = environment.get(variable).map(PathBuf::from);
            chosen.or_else(|| Some(home.as_ref()?.join(".aws").join(name)))
        };
        let mut profiles = Self::default();
        for (kind, path) in [
            (Kind::Config, path("AWS_CONFIG_FILE", "config")),
            (
                Kind::Credentials,
                path("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
            ),
        ] {
            let Some(path) = path else { continue };
            match read(&path) {
                Ok(text) => {
                    profiles.add(kind, text.expose());
                    profiles.files.push(path);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(AwsError::Setting(format!(
                        "{} cannot be read: {error}",
                        path.display()
                    )));
                }
            }
        }
        Ok(profiles)
    }

    pub(super) fn get(&self, name: &str) -> Option<&Section> {
        self.profiles.get(name)
    }

    /// `endpoint_url` of a service in the section that the profile names.
    pub(super) fn service_endpoint(&self, profile: &str, service: &str) -> Option<String> {
        let section = self.get(profile)?.get("services")?;
        let endpoints = self.services.get(section.expose())?;
        let url = endpoints.get(&format!("{service}.endpoint_url"))?;
        Some(url.expose().clone())
    }

    fn add(&mut self, kind: Kind, text: &str) {
        let mut section: Option<&mut Section> = None;
        let mut outer: Option<String> = None;
        for line in text.lines() {
            let bare = line.trim();
            if bare.is_empty() || bare.starts_with(['#', ';']) {
                continue;
            }
            if let Some(rest) = bare.strip_prefix('[') {
                let name = rest.split(']').next().unwrap_or_default().trim();
                section = self.section(kind, name);
                outer = None;
                continue;
            }
            let Some(section) = section.as_mut() else {
                continue;
            };
            let Some((key, value)) = bare.split_once('=') else {
                continue;
            };
            let key = key.trim().to_ascii_lowercase();
            let value = without_comment(value);
            let is_nested = line.starts_with([' ', '\t']);
            match (&outer, is_nested) {
                (Some(outer), true) => {
                    section.insert(format!("{outer}.{key}"), Secret::new(value.to_owned()));
                }
                _ => {
                    outer = value.is_empty().then(|| key.clone());
                    if !value.is_empty() {
                        section.insert(key, Secret::new(value.to_owned()));
                    }
                }
            }
        }
    }

    fn section(&mut self, kind: Kind, name: &str) -> Option<&mut Section> {
        let (first, rest) = name.split_once([' ', '\t']).unwrap_or((name, ""));
        let rest = rest.trim();
        match (kind, first, rest) {
            (Kind::Config, "profile", name) if !name.is_empty() => {
                Some(self.profiles.entry(name.to_owned()).or_default())
            }
            (Kind::Config, "services", name) if !name.is_empty() => {
                Some(self.services.entry(name.to_owned()).or_default())
            }
            (Kind::Config, "default", "") => {
                Some(self.profiles.entry("default".to_owned()).or_default())
            }
            (Kind::Credentials, name, "") if !name.is_empty() => {
                Some(self.profiles.entry(name.to_owned()).or_default())
            }
            _ => None,
        }
    }
}

/// A comment at a line's end begins after a blank: keys may have `#` in them.
fn without_comment(value: &str) -> &str {
    let end = [" #", " ;", "\t#", "\t;"]
        .iter()
        .filter_map(|start| value.find(start))
        .min();
    end.and_then(|end| value.get(..end)).unwrap_or(value).trim()
}

fn read(path: &Path) -> io::Result<Secret<String>> {
    if fs::metadata(path)?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    let mut text = String::new();
    let size = File::open(path)?
        .take(LARGEST_FILE + 1)
        .read_to_string(&mut text)?;
    let text = Secret::new(text);
    if size as u64 > LARGEST_FILE {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "it is larger than 1 MiB",
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_as_aws_programs_read_them() {
        let mut profiles = Profiles::default();
        profiles.add(
            Kind::Config,
            "\
# a comment
[default]
region = eu-west-1
AWS_ACCESS_KEY_ID = from-config
[profile build]
role_arn=arn:aws:iam::123456789012:role/build  ; why not
source_profile = default
services = local
[ignored]
region = nowhere
[services local]
ecr =
  endpoint_url = http://127.0.0.1:1
sts =
  endpoint_url = http://127.0.0.1:2
",
        );
        profiles.add(
            Kind::Credentials,
            "[default]\naws_access_key_id = from-credentials\naws_secret_access_key = a#b=c\n[build]\nexternal_id=x\n",
        );
        let value = |profile: &str, key: &str| {
            let value = profiles.get(profile)?.get(key)?;
            Some(value.expose().clone())
        };
        for (profile, key, expected) in [
            ("default", "region", Some("eu-west-1")),
            ("default", "aws_access_key_id", Some("from-credentials")),
            ("default", "aws_secret_access_key", Some("a#b=c")),
            (
                "build",
                "role_arn",
                Some("arn:aws:iam::123456789012:role/build"),
            ),
            ("build", "external_id", Some("x")),
            ("ignored", "region", None),
        ] {
            assert_eq!(value(profile, key).as_deref(), expected, "{profile} {key}");
        }
        for (service, expected) in [
            ("ecr", Some("http://127.0.0.1:1")),
            ("sts", Some("http://127.0.0.1:2")),
            ("s3", None),
        ] {
            let found = profiles.service_endpoint("build", service);
            assert_eq!(found.as_deref(), expected, "{service}");
        }
    }
}
