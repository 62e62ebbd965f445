//! Where the user's logins for registries are: the files that `docker login` and `podman login` write.

use std::{env, ffi::OsString, path::PathBuf};

/// Those that are there. Of two that have a login for one registry, the first counts.
pub(super) fn files() -> Vec<PathBuf> {
    let mut files = places(|name| env::var_os(name));
    files.retain(|file| file.is_file());
    files
}

fn places(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let folder = |name| {
        variable(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    // Whoever sets it wants no other (containers-auth.json(5)).
    if let Some(file) = folder("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let home = folder("HOME");
    let below_home = |name| home.as_ref().map(|home| home.join(name));
    let docker = folder("DOCKER_CONFIG").or_else(|| below_home(".docker"));
    let settings = folder("XDG_CONFIG_HOME").or_else(|| below_home(".config"));
    let places = [
        docker.map(|folder| folder.join("config.json")),
        folder("XDG_RUNTIME_DIR").map(|folder| folder.join("containers/auth.json")),
        settings.map(|folder| folder.join("containers/auth.json")),
    ];
    places.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_where_docker_and_podman_write_them() {
        for (variables, expected) in [
            (
                &[("HOME", "/h"), ("XDG_RUNTIME_DIR", "/run/user/1")][..],
                &[
                    "/h/.docker/config.json",
                    "/run/user/1/containers/auth.json",
                    "/h/.config/containers/auth.json",
                ][..],
            ),
            (
                &[
                    ("HOME", "/h"),
                    ("DOCKER_CONFIG", "/d"),
                    ("XDG_CONFIG_HOME", "/c"),
                ],
                &["/d/config.json", "/c/containers/auth.json"],
            ),
            (
                &[("HOME", "/h"), ("REGISTRY_AUTH_FILE", "/a.json")],
                &["/a.json"],
            ),
            (&[("DOCKER_CONFIG", "")], &[]),
        ] {
            let found = places(|name| {
                let mut variables = variables.iter();
                let found = variables.find(|(known, _)| *known == name);
                found.map(|(_, value)| OsString::from(value))
            });
            let expected: Vec<PathBuf> = expected.iter().map(PathBuf::from).collect();
            assert_eq!(found, expected, "{variables:?}");
        }
    }
}
