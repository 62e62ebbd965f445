use std::{os::unix::fs::symlink, path::Path};

use super::*;
use crate::oci::Reference;

fn options(files: &[&Path]) -> DockerOptions {
    DockerOptions {
        config_files: files.iter().map(|&file| file.to_owned()).collect(),
        ..DockerOptions::default()
    }
}

fn load(files: &[&Path]) -> DockerLogins {
    let (logins, _) = DockerLogins::load(&options(files)).unwrap_or_else(|errors| {
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        panic!("{texts:?}")
    });
    logins
}

fn with_login(registry: &str, username: &str) -> String {
    format!(r#"{{"auths": {{"{registry}": {{"username": "{username}", "password": "hunter2"}}}}}}"#)
}

fn user(logins: &DockerLogins, image: &str) -> Option<String> {
    let image: Reference = image.parse().expect(image);
    let narrow = logins.narrow(&image.registry, &image.repository);
    let known = narrow.map_or_else(|| logins.wide(&image.registry, Effort::Ask), Known::Login);
    match known {
        Known::Login(login) => Some(login.credentials.username),
        Known::None | Known::Unknown => None,
    }
}

/// As kubelet does it: a link to a folder that is replaced whole, and a link to the file in it.
struct Mounted {
    folder: tempfile::TempDir,
    count: usize,
}

impl Mounted {
    fn new(content: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut mounted = Self { folder, count: 0 };
        mounted.swap(content);
        let file = mounted.file();
        symlink("..data/.dockerconfigjson", file).expect("the folder is ours");
        mounted
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join(".dockerconfigjson")
    }

    fn swap(&mut self, content: &str) {
        self.count += 1;
        let name = format!("..{}", self.count);
        let next = self.folder.path().join(&name);
        fs::create_dir(&next).expect("the folder is ours");
        fs::write(next.join(".dockerconfigjson"), content).expect("the folder is ours");
        let link = self.folder.path().join("..data_tmp");
        symlink(name, &link).expect("the folder is ours");
        fs::rename(link, self.folder.path().join("..data")).expect("the folder is ours");
    }
}

#[test]
fn a_mounted_secret_is_taken_over_when_it_changes_and_not_when_it_is_broken() {
    let mut mounted = Mounted::new(&with_login("quay.io", "first"));
    let logins = load(&[&mounted.file()]);
    assert_eq!(user(&logins, "quay.io/a").as_deref(), Some("first"));
    mounted.swap(&with_login("quay.io", "second"));
    logins.renew();
    assert_eq!(user(&logins, "quay.io/a").as_deref(), Some("second"));
    for broken in ["{", "[]", ""] {
        mounted.swap(broken);
        logins.renew();
        assert_eq!(
            user(&logins, "quay.io/a").as_deref(),
            Some("second"),
            "{broken}"
        );
    }
    fs::remove_file(mounted.folder.path().join("..data")).expect("the folder is ours");
    logins.renew();
    assert_eq!(user(&logins, "quay.io/a").as_deref(), Some("second"));
    mounted.swap(&with_login("ghcr.io", "third"));
    logins.renew();
    assert_eq!(user(&logins, "quay.io/a"), None);
    assert_eq!(user(&logins, "ghcr.io/a").as_deref(), Some("third"));
}

#[test]
fn a_file_that_was_there_before_is_not_read_again() {
    let mounted = Mounted::new(&with_login("quay.io", "first"));
    let logins = load(&[&mounted.file()]);
    let file = logins.files.first().expect("a file");
    assert!(!file.renew());
    fs::write(mounted.file(), with_login("quay.io", "second one")).expect("the file is ours");
    assert!(file.renew());
    assert!(!file.renew());
    fs::write(mounted.file(), "{").expect("the file is ours");
    assert!(!file.renew());
    assert_eq!(user(&logins, "quay.io/a").as_deref(), Some("second one"));
}

#[test]
fn the_smallest_part_of_a_registry_goes_first_and_then_the_first_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (first, second) = (folder.path().join("1"), folder.path().join("2"));
    fs::write(
        &first,
        r#"{"auths": {"quay.io": {"username": "wide", "password": "x"},
            "quay.io/acme": {"username": "acme", "password": "x"}}}"#,
    )
    .expect("the folder is ours");
    fs::write(
        &second,
        r#"{"auths": {"quay.io": {"username": "other", "password": "x"},
            "ghcr.io": {"username": "second", "password": "x"},
            "quay.io/acme": {"username": "other", "password": "x"},
            "quay.io/acme/app": {"username": "app", "password": "x"}}}"#,
    )
    .expect("the folder is ours");
    let logins = load(&[&first, &second]);
    for (image, expected) in [
        ("quay.io/x", Some("wide")),
        ("quay.io/acme/x", Some("acme")),
        ("quay.io/acme/app", Some("app")),
        ("ghcr.io/x", Some("second")),
        ("alpine", None),
    ] {
        assert_eq!(user(&logins, image).as_deref(), expected, "{image}");
    }
}

#[test]
fn a_file_that_cannot_be_used_at_the_start_is_an_error_and_each_is_told() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (missing, broken) = (folder.path().join("missing"), folder.path().join("broken"));
    fs::write(&broken, "hunter2").expect("the folder is ours");
    let errors = DockerLogins::load(&options(&[&missing, &broken, folder.path()]))
        .map(|_| ())
        .expect_err("none of them is good");
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert!(texts[0].contains("missing cannot be read"), "{texts:?}");
    assert!(texts[1].contains("this is not JSON"), "{texts:?}");
    assert!(texts[2].contains("is not a file"), "{texts:?}");
    assert!(!texts.concat().contains("hunter2"), "{texts:?}");
}
