//! A configuration that cannot be right is refused whole, with every reason and its place.

use std::{fs, net::TcpListener, path::Path, process::Command};

use crate::support::{
    programs::output,
    tidegate::{BINARY, Directory, Setup},
};

struct Checked {
    code: Option<i32>,
    said: String,
}

fn tidegate(arguments: &[&str], config: &Path) -> Checked {
    let output = output(
        Command::new(BINARY)
            .args(arguments)
            .arg("--config")
            .arg(config),
    );
    Checked {
        code: output.status.code(),
        said: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn check(config: &str) -> (Checked, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("tidegate.toml");
    fs::write(&file, config).expect("a writable folder");
    (tidegate(&["check-config"], &file), folder)
}

#[test]
fn every_mistake_is_reported_at_once_with_its_line() {
    let config = "\
ulr = \"http://tidegate.test\"
driver = \"kqueue\"
[cache]
max_size = \"lots\"
[tokens]
lifetime = 36
lifetme = \"36h\"
[listner]
[registry.\"quay.io\"]
redirect = \"maybe\"
usrname = \"ada\"
";
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("tidegate.toml");
    fs::write(&file, config).expect("a writable folder");
    for command in ["check-config", "serve"] {
        let checked = tidegate(&[command], &file);
        assert_eq!(checked.code, Some(2), "{command}: {}", checked.said);
        for (line, key, hint) in [
            (1, "ulr", "url"),
            (2, "driver", "epoll"),
            (4, "max_size", "lots"),
            (6, "lifetime", ""),
            (7, "lifetme", "lifetime"),
            (8, "listner", "listener"),
            (10, "redirect", "follow"),
            (11, "usrname", "username"),
        ] {
            let place = format!("{}:{line}: ", file.display());
            let found = checked
                .said
                .lines()
                .find_map(|text| text.split_once(&place).map(|(_, rest)| rest));
            let found =
                found.unwrap_or_else(|| panic!("{command}: no {place} in\n{}", checked.said));
            let (named, message) = found.split_once(": ").unwrap_or((found, ""));
            assert!(named.contains(key), "{found}");
            assert!(message.contains(hint), "{found}");
        }
    }
}

#[test]
fn text_that_is_no_toml_is_placed_too() {
    let (checked, folder) = check("url = \"http://x\"\n[cache\n");
    assert_eq!(checked.code, Some(2), "{}", checked.said);
    let place = format!("{}:2: ", folder.path().join("tidegate.toml").display());
    assert!(checked.said.contains(&place), "{}", checked.said);
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    for (config, line, hint) in [
        ("url = \"ftp://x\"\n", 1, "http"),
        ("url = \"not a url\"\n", 1, ""),
        (
            "[registry.\"quay.io\"]\nusername = \"a\"\npassword = \"hunter2\"\npassword_file = \"x\"\n",
            4,
            "password",
        ),
        (
            "[registry.\"quay.io\"]\npassword_file = \"missing\"\nusername = \"a\"\n",
            2,
            "missing",
        ),
        (
            "[registry.\"quay.io\"]\npassword_env = \"TESTS_NOT_SET\"\nusername = \"a\"\n",
            2,
            "TESTS_NOT_SET",
        ),
        ("[registry.\"not/a/host\"]\n", 1, "not/a/host"),
        ("[accounts]\nadmin = \"letmein\"\n", 2, ""),
        ("[directory]\nfile = \"missing.toml\"\n", 2, "missing.toml"),
    ] {
        let (checked, _folder) = check(config);
        assert_eq!(checked.code, Some(2), "{config}: {}", checked.said);
        let place = format!("tidegate.toml:{line}: ");
        assert!(checked.said.contains(&place), "{config}: {}", checked.said);
        assert!(checked.said.contains(hint), "{config}: {}", checked.said);
        assert!(
            !checked.said.contains("hunter2"),
            "{config}: {}",
            checked.said
        );
        assert!(
            !checked.said.contains("panicked"),
            "{config}: {}",
            checked.said
        );
    }
}

#[test]
fn the_directory_file_is_checked_as_well() {
    for (directory, hint) in [
        ("[[user]]\nname = \"ada\"\n", "token_sha256"),
        (
            "[[user]]\nname = \"ada\"\ntoken_sha256 = \"ada-access-token\"\n",
            "token_sha256",
        ),
        ("[[usr]]\nname = \"ada\"\n", "user"),
        ("[[workspace]]\nid = \"seven\"\nname = \"x\"\n", "id"),
        (
            "[[workspace]]\nid = 1\nname = \"x\"\n[[workspace]]\nid = 1\nname = \"y\"\n",
            "1",
        ),
    ] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("directory.toml"), directory).expect("a writable folder");
        let file = folder.path().join("tidegate.toml");
        fs::write(&file, "[directory]\nfile = \"directory.toml\"\n").expect("a writable folder");
        let checked = tidegate(&["check-config"], &file);
        assert_eq!(checked.code, Some(2), "{directory}: {}", checked.said);
        assert!(
            checked.said.contains("directory.toml:"),
            "{directory}: {}",
            checked.said
        );
        assert!(checked.said.contains(hint), "{directory}: {}", checked.said);
        assert!(
            !checked.said.contains("ada-access-token"),
            "{}",
            checked.said
        );
    }
}

#[test]
fn what_is_right_is_said_to_be_right() {
    let (checked, _folder) =
        check("url = \"https://tidegate.test\"\n[cache]\nmax_size = \"8MiB\"\n");
    assert_eq!(checked.code, Some(0), "{}", checked.said);
    let (checked, _folder) = check("");
    assert_eq!(checked.code, Some(0), "{}", checked.said);
}

/// It may be meant so: a container's port may be published on its own machine only.
#[test]
fn names_that_lead_others_astray_are_warned_of() {
    let others = "[listener]\naddresses = [\"127.0.0.1:5000\", \"0.0.0.0:5002\"]\n";
    for (config, is_warned) in [
        (others.to_owned(), true),
        (format!("url = \"http://127.0.0.1:5002\"\n{others}"), true),
        (format!("url = \"http://build-7:5002\"\n{others}"), false),
        (String::new(), false),
    ] {
        let (checked, _folder) = check(&config);
        assert_eq!(checked.code, Some(0), "{config}: {}", checked.said);
        let said = checked.said.contains("`url`");
        assert_eq!(said, is_warned, "{config}: {}", checked.said);
    }
}

#[test]
fn the_example_that_we_ship_is_right() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/tidegate.toml");
    let checked = tidegate(&["check-config"], &example);
    assert_eq!(checked.code, Some(0), "{}", checked.said);
    // Nor is it wrong when its comments are taken at their word.
    let text = fs::read_to_string(&example).expect("a readable file");
    assert!(text.contains("max_size"), "{text}");
}

#[test]
fn a_missing_file_is_named() {
    let checked = tidegate(&["serve"], Path::new("/nowhere/tidegate.toml"));
    assert!(matches!(checked.code, Some(1 | 2)), "{:?}", checked.code);
    assert!(
        checked.said.contains("/nowhere/tidegate.toml"),
        "{}",
        checked.said
    );
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("a bound address").to_string();
    let (code, said) = Setup::new()
        .argument("--listen")
        .argument(&address)
        .fails_to_start();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&address), "{said}");
}

#[test]
fn a_second_process_does_not_share_the_port_of_the_first() {
    let first = Setup::new().start();
    let address = first.registry.to_string();
    let (code, said) = Setup::new()
        .argument("--listen")
        .argument(&address)
        .fails_to_start();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&address), "{said}");
    assert_eq!(first.get("/v2/").status(), 200);
}

#[test]
fn a_directory_that_fits_is_loaded() {
    let directory = Directory::new()
        .user("ada", "token", &[1])
        .user_login("quay.io/ada", "ada", "x")
        .workspace(1, "research")
        .workspace_login("quay.io", "team", "y");
    let tidegate = Setup::new().directory(&directory).start();
    assert_eq!(tidegate.get("/health").status(), 200);
}
