//! Where state and cache lie if nobody says: by the XDG Base Directory specification, for root in `/var`.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    State,
    Cache,
}

/// Neither a setting nor the environment says where to keep files.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no folder for {what}: HOME is not set; set `{key}` or pass {flag}")]
pub struct NoDirectory {
    what: &'static str,
    key: &'static str,
    flag: &'static str,
}

pub(super) fn chosen_or_default(
    chosen: Option<&Path>,
    purpose: Purpose,
) -> Result<PathBuf, NoDirectory> {
    match chosen {
        Some(directory) => Ok(directory.to_owned()),
        None => default_directory(purpose, |name| env::var_os(name), is_root()),
    }
}

fn default_directory(
    purpose: Purpose,
    variable: impl Fn(&str) -> Option<OsString>,
    is_root: bool,
) -> Result<PathBuf, NoDirectory> {
    let (xdg, below_home, of_root) = match purpose {
        Purpose::State => ("XDG_STATE_HOME", ".local/state", "/var/lib"),
        Purpose::Cache => ("XDG_CACHE_HOME", ".cache", "/var/cache"),
    };
    // The specification wants relative paths ignored.
    let absolute = |name| {
        variable(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base = match absolute(xdg) {
        Some(base) => base,
        None if is_root => of_root.into(),
        None => absolute("HOME")
            .map(|home| home.join(below_home))
            .ok_or_else(|| missing(purpose))?,
    };
    Ok(base.join("tidegate"))
}

fn missing(purpose: Purpose) -> NoDirectory {
    let (what, key, flag) = match purpose {
        Purpose::State => ("container requests", "state_dir", "--state-dir"),
        Purpose::Cache => ("the cache", "cache.directory", "--cache-dir"),
    };
    NoDirectory { what, key, flag }
}

/// A process's folder in `/proc` belongs to its effective user.
fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_follow_the_environment() {
        use Purpose::{Cache, State};
        let home = ("HOME", "/home/ada");
        for (purpose, is_root, variables, directory) in [
            (
                State,
                false,
                &[home][..],
                Some("/home/ada/.local/state/tidegate"),
            ),
            (Cache, false, &[home], Some("/home/ada/.cache/tidegate")),
            (
                State,
                false,
                &[home, ("XDG_STATE_HOME", "/s")],
                Some("/s/tidegate"),
            ),
            (
                Cache,
                false,
                &[home, ("XDG_CACHE_HOME", "/c")],
                Some("/c/tidegate"),
            ),
            (
                Cache,
                false,
                &[home, ("XDG_STATE_HOME", "/s")],
                Some("/home/ada/.cache/tidegate"),
            ),
            (
                State,
                false,
                &[home, ("XDG_STATE_HOME", "relative")],
                Some("/home/ada/.local/state/tidegate"),
            ),
            (
                State,
                false,
                &[home, ("XDG_STATE_HOME", "")],
                Some("/home/ada/.local/state/tidegate"),
            ),
            (State, true, &[home], Some("/var/lib/tidegate")),
            (Cache, true, &[home], Some("/var/cache/tidegate")),
            (
                State,
                true,
                &[home, ("XDG_STATE_HOME", "/s")],
                Some("/s/tidegate"),
            ),
            (State, false, &[], None),
            (Cache, false, &[("HOME", "relative")], None),
        ] {
            let variable = |name: &str| {
                let (_, value) = variables.iter().find(|(known, _)| *known == name)?;
                Some(OsString::from(value))
            };
            let found = default_directory(purpose, variable, is_root).ok();
            assert_eq!(
                found,
                directory.map(PathBuf::from),
                "{purpose:?} {is_root} {variables:?}"
            );
        }
    }

    #[test]
    fn a_chosen_folder_is_taken_as_it_is() {
        assert_eq!(
            chosen_or_default(Some(Path::new("/x")), Purpose::Cache),
            Ok(PathBuf::from("/x"))
        );
    }
}
