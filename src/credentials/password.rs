//! Where a password comes from: the configuration itself, a file of its own, or the environment.

use std::{
    env,
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use crate::{
    aws::{ExternalId, ExternalIdError, RoleArn},
    oci::Credentials,
    secret::Secret,
    units::KIB,
};

/// Credentials, and what the operator should know about how they are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    pub credentials: Credentials,
    pub warning: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    #[error(
        "there is no password for {username}: set one of password, password_file and password_env"
    )]
    Missing { username: String },
    #[error(
        "{username} has several passwords: set one of password, password_file and password_env"
    )]
    Several { username: String },
    #[error("the user name {username} has a colon, at which HTTP Basic would end it")]
    Colon { username: String },
    #[error("the password for {username} is empty")]
    Empty { username: String },
    #[error("{} cannot be read: {cause}", path.display())]
    File { path: PathBuf, cause: io::Error },
    #[error("{} is no password: it is larger than 64 KiB", path.display())]
    TooLarge { path: PathBuf },
    #[error("{} is no password: it is not text", path.display())]
    NotText { path: PathBuf },
    #[error("the environment has no variable {name}, or it is not text")]
    Variable { name: String },
    #[error("{} holds no external id: {cause}", path.display())]
    ExternalId {
        path: PathBuf,
        cause: ExternalIdError,
    },
}

/// Exactly one of the three is to be given; of a role of AWS, none if it has no external id. A relative `password_file` is below `base`.
pub fn load_password(
    username: &str,
    password: Option<Secret<String>>,
    password_file: Option<&Path>,
    password_env: Option<&str>,
    base: &Path,
) -> Result<Loaded, PasswordError> {
    let is_role = username.parse::<RoleArn>().is_ok();
    if username.contains(':') && !is_role {
        return Err(PasswordError::Colon {
            username: username.to_owned(),
        });
    }
    let mut warning = None;
    let password = match (password, password_file, password_env) {
        (Some(password), None, None) => password,
        (None, Some(file), None) => {
            let (password, exposure) = read_file(&base.join(file))?;
            warning = exposure;
            password
        }
        (None, None, Some(name)) => read_variable(name)?,
        (None, None, None) if is_role => Secret::default(),
        (None, None, None) => {
            return Err(PasswordError::Missing {
                username: username.to_owned(),
            });
        }
        _ => {
            return Err(PasswordError::Several {
                username: username.to_owned(),
            });
        }
    };
    if password.expose().is_empty() && !is_role {
        return Err(PasswordError::Empty {
            username: username.to_owned(),
        });
    }
    Ok(Loaded {
        credentials: Credentials {
            username: username.to_owned(),
            password,
        },
        warning,
    })
}

/// What the owner of a role of AWS agreed on with the operator.
pub fn load_external_id(path: &Path) -> Result<ExternalId, PasswordError> {
    let (text, _) = read_file(path)?;
    text.expose()
        .parse()
        .map_err(|cause| PasswordError::ExternalId {
            path: path.to_owned(),
            cause,
        })
}

/// Cloud registries take a whole JSON key as password, some kilobytes.
const LARGEST_PASSWORD: u64 = 64 * KIB;

fn read_file(path: &Path) -> Result<(Secret<String>, Option<String>), PasswordError> {
    let failed = |cause| PasswordError::File {
        path: path.to_owned(),
        cause,
    };
    let file = File::open(path).map_err(failed)?;
    let exposure = exposure(&file, path).map_err(failed)?;
    // All of it in one place that is wiped; one more byte, to see that it is too large.
    let mut bytes = Zeroizing::new(Vec::with_capacity(4 << 10));
    file.take(LARGEST_PASSWORD + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > LARGEST_PASSWORD {
        return Err(PasswordError::TooLarge {
            path: path.to_owned(),
        });
    }
    let text = str::from_utf8(&bytes).map_err(|_| PasswordError::NotText {
        path: path.to_owned(),
    })?;
    Ok((Secret::new(without_line_end(text).to_owned()), exposure))
}

/// Editors and `echo` add one. No more is taken away: a JSON key may end with a line end of its own.
fn without_line_end(text: &str) -> &str {
    match text.strip_suffix('\n') {
        Some(line) => line.strip_suffix('\r').unwrap_or(line),
        None => text,
    }
}

/// A warning if others than the file's owner can read it.
pub(super) fn exposure(file: &File, path: &Path) -> io::Result<Option<String>> {
    const OTHERS_READ: u32 = 0o044;
    let is_exposed = file.metadata()?.mode() & OTHERS_READ != 0;
    Ok(is_exposed.then(|| {
        let path = path.display();
        format!("{path} holds a password and can be read by other users; run: chmod 600 {path}")
    }))
}

fn read_variable(name: &str) -> Result<Secret<String>, PasswordError> {
    match env::var(name) {
        Ok(value) => Ok(Secret::new(value)),
        Err(_) => Err(PasswordError::Variable {
            name: name.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn secret(text: &str) -> Secret<String> {
        Secret::new(text.to_owned())
    }

    #[test]
    fn a_password_comes_from_exactly_one_place() {
        let base = Path::new(".");
        let file = Path::new("Cargo.toml");
        let inline = Some(secret("x"));
        for (password, file, variable, expected) in [
            (None, None, None, "there is no password for ada"),
            (inline.clone(), Some(file), None, "several passwords"),
            (inline.clone(), None, Some("PATH"), "several passwords"),
            (None, Some(file), Some("PATH"), "several passwords"),
            (inline, Some(file), Some("PATH"), "several passwords"),
            (Some(secret("")), None, None, "is empty"),
            (
                None,
                None,
                Some("TIDEGATE_NO_SUCH_VARIABLE"),
                "TIDEGATE_NO_SUCH_VARIABLE",
            ),
            (None, None, Some("="), "no variable ="),
            (None, None, Some(""), "no variable"),
        ] {
            let error = load_password("ada", password, file, variable, base)
                .expect_err(expected)
                .to_string();
            assert!(error.contains(expected), "{error}");
        }
        let loaded = load_password("ada", Some(secret("hunter2 ")), None, None, base)
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(loaded.credentials.username, "ada");
        assert_eq!(loaded.credentials.password, secret("hunter2 "));
        // A role's name has colons, and may come without an external id.
        let role = "arn:aws:iam::123456789012:role/pull";
        let loaded = load_password(role, None, None, None, base);
        let loaded = loaded.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(
            (
                loaded.credentials.username.as_str(),
                loaded.credentials.password
            ),
            (role, secret(""))
        );
        let name = "CARGO_PKG_NAME";
        let loaded = load_password("ada", None, None, Some(name), base)
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(loaded.credentials.password, secret("tidegate"));
    }

    #[test]
    fn one_line_end_is_no_part_of_a_password_in_a_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (content, password) in [
            ("hunter2", "hunter2"),
            ("hunter2\n", "hunter2"),
            ("hunter2\r\n", "hunter2"),
            ("hunter2\n\n", "hunter2\n"),
            ("hunter2\r", "hunter2\r"),
            (" hunter2 \n", " hunter2 "),
            ("{\n \"key\": 1\n}\n", "{\n \"key\": 1\n}"),
        ] {
            fs::write(folder.path().join("password"), content).expect("the folder is ours");
            let file = Some(Path::new("password"));
            let loaded = load_password("ada", None, file, None, folder.path())
                .unwrap_or_else(|error| panic!("{content:?}: {error}"));
            assert_eq!(loaded.credentials.password, secret(password), "{content:?}");
        }
    }

    #[test]
    fn what_is_no_password_file_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let large = vec![b'x'; 64 * 1024 + 1];
        for (content, expected) in [
            (None, "cannot be read"),
            (Some(b"".as_slice()), "is empty"),
            (Some(b"\n"), "is empty"),
            (Some(b"\xff"), "not text"),
            (Some(large.as_slice()), "larger than 64 KiB"),
        ] {
            if let Some(content) = content {
                fs::write(folder.path().join("password"), content).expect("the folder is ours");
            }
            let file = Some(Path::new("password"));
            let error = load_password("ada", None, file, None, folder.path())
                .expect_err(expected)
                .to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn files_that_others_can_read_are_warned_of() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("password");
        fs::write(&path, "hunter2").expect("the folder is ours");
        for (mode, is_exposed) in [(0o600, false), (0o400, false), (0o640, true), (0o644, true)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("it is ours");
            let loaded = load_password("ada", None, Some(&path), None, Path::new("elsewhere"))
                .unwrap_or_else(|error| panic!("{mode:o}: {error}"));
            assert_eq!(loaded.warning.is_some(), is_exposed, "{mode:o}");
            if let Some(warning) = loaded.warning {
                assert!(
                    warning.contains(&format!("chmod 600 {}", path.display())),
                    "{warning}"
                );
                assert!(!warning.contains("hunter2"), "{warning}");
            }
        }
    }
}
