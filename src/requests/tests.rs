use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::{MetadataExt, PermissionsExt},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use super::*;
use crate::{
    augment::{Compression, Layer, NamedOverlay, Overlay, Place},
    oci::Platforms,
    secret::Secret,
};

const ACCESS_TOKEN: &str = "eyJ0aWQiOiAxMjM0fS5hY2Nlc3MtdG9rZW4tb2YtYWRh";

fn open(folder: &Path) -> Requests {
    Requests::open(folder, &Options::default()).unwrap_or_else(|error| panic!("{error}"))
}

fn open_error(folder: &Path) -> OpenError {
    match Requests::open(folder, &Options::default()) {
        Ok(_) => panic!("{} was opened", folder.display()),
        Err(error) => error,
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn ada() -> Caller {
    Caller::User {
        name: "ada".to_owned(),
        workspace: Some(1),
        access_token: Secret::new(ACCESS_TOKEN.to_owned()),
        platform: None,
    }
}

fn request(image: &str, caller: Caller) -> ContainerRequest {
    ContainerRequest {
        image: image
            .parse()
            .unwrap_or_else(|error| panic!("{image}: {error}")),
        caller: Arc::new(caller),
        overlay: None,
        layers: Vec::new(),
        purpose: Purpose::Name,
        details: RequestDetails {
            container_image: image.to_owned(),
            platform: Some("linux/amd64".to_owned()),
            tower_endpoint: None,
            workflow_id: None,
            fingerprint: Some("f1".to_owned()),
            timestamp: "2026-03-04T05:06:07+01:00".parse().ok(),
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        },
    }
}

fn issue(requests: &Requests, now: SystemTime) -> Arc<Grant> {
    requests
        .issue(request("quay.io/acme/app:v1", ada()), None, now)
        .unwrap_or_else(|error| panic!("{error}"))
}

fn find(requests: &Requests, token: &Token, now: SystemTime) -> Option<Arc<Grant>> {
    requests
        .find(token, now)
        .unwrap_or_else(|error| panic!("{error}"))
}

fn record(requests: &Requests, token: &Token) -> Option<Record> {
    requests
        .record(token)
        .unwrap_or_else(|error| panic!("{error}"))
}

fn revoke(requests: &Requests, token: &Token, now: SystemTime) -> bool {
    requests
        .revoke(token, now)
        .unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_grant_survives_a_restart() {
    let folder = folder();
    let now = SystemTime::now();
    for caller in [ada(), Caller::Anonymous] {
        for image in ["alpine", "quay.io/acme/app:v1", "localhost:5000/a/b:c"] {
            let requests = open(folder.path());
            let issued = requests
                .issue(request(image, caller.clone()), None, now)
                .unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(requests.recent(&issued.token, now), Some(issued.clone()));
            drop(requests);
            let requests = open(folder.path());
            assert_eq!(
                requests.recent(&issued.token, now),
                None,
                "only on disk yet"
            );
            assert_eq!(find(&requests, &issued.token, now), Some(issued.clone()));
            assert_eq!(requests.recent(&issued.token, now), Some(issued), "{image}");
        }
    }
}

#[test]
fn a_grant_is_for_one_repository() {
    let folder = folder();
    let grant = issue(&open(folder.path()), SystemTime::now());
    for (repository, allowed) in [
        ("acme/app", true),
        ("acme/application", false),
        ("acme", false),
        ("acme/app/debug", false),
    ] {
        let repository = repository.parse().expect("it is a repository");
        assert_eq!(grant.allows(&repository), allowed, "{repository}");
    }
}

#[test]
fn a_grant_ends_with_its_lifetime_and_its_record_does_not() {
    let folder = folder();
    let requests = open(folder.path());
    let now = SystemTime::now();
    let grant = issue(&requests, now);
    let last = grant.expires - Duration::from_nanos(1);
    assert_eq!(grant.expires, grant.created + *Options::default().lifetime);
    assert!(requests.recent(&grant.token, last).is_some());
    assert_eq!(requests.recent(&grant.token, grant.expires), None);
    assert_eq!(find(&requests, &grant.token, grant.expires), None);
    assert!(!revoke(&requests, &grant.token, grant.expires));
    drop(requests);
    let requests = open(folder.path());
    assert_eq!(find(&requests, &grant.token, grant.expires), None);
    assert!(find(&requests, &grant.token, last).is_some());
    let record = record(&requests, &grant.token).expect("records outlive grants");
    assert_eq!(record.expires, grant.expires);
    assert_eq!(record.revoked, None);
}

#[test]
fn a_lifetime_without_end_is_none_that_overflows() {
    let folder = folder();
    let options = Options {
        lifetime: HumanDuration(Duration::MAX),
        record_retention: HumanDuration(Duration::MAX),
        ..Options::default()
    };
    let requests =
        Requests::open(folder.path(), &options).unwrap_or_else(|error| panic!("{error}"));
    let now = SystemTime::now();
    let grant = issue(&requests, now);
    assert!(!grant.is_expired(now + Duration::from_secs(100 * 365 * 24 * 3600)));
    assert_eq!(requests.purge(now).ok(), Some(0));
}

#[test]
fn a_revoked_grant_is_gone_at_once_and_after_a_restart() {
    let folder = folder();
    let requests = open(folder.path());
    let now = SystemTime::now();
    let grant = issue(&requests, now);
    let other = issue(&requests, now);
    assert!(revoke(&requests, &grant.token, now));
    assert_eq!(requests.recent(&grant.token, now), None);
    assert_eq!(find(&requests, &grant.token, now), None);
    assert!(
        !revoke(&requests, &grant.token, now),
        "it was revoked already"
    );
    assert!(!revoke(&requests, &Token::random(), now), "it never was");
    drop(requests);
    let requests = open(folder.path());
    assert_eq!(find(&requests, &grant.token, now), None);
    assert!(find(&requests, &other.token, now).is_some());
    let record = record(&requests, &grant.token).expect("records outlive grants");
    assert!(record.revoked.is_some());
}

#[test]
fn a_grant_that_is_looked_up_while_it_is_revoked_does_not_stay() {
    let folder = folder();
    let now = SystemTime::now();
    let requests = open(folder.path());
    let tokens: Vec<Token> = (0..50).map(|_| issue(&requests, now).token).collect();
    drop(requests);
    // Opened again, so that each look-up has to read the disk.
    let requests = open(folder.path());
    for token in &tokens {
        let is_revoked = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    loop {
                        let was_revoked = is_revoked.load(Ordering::SeqCst);
                        let found = find(&requests, token, now);
                        if was_revoked {
                            assert_eq!(found, None);
                            break;
                        }
                    }
                });
            }
            assert!(revoke(&requests, token, now));
            is_revoked.store(true, Ordering::SeqCst);
            assert_eq!(requests.recent(token, now), None);
        });
        assert_eq!(requests.recent(token, now), None);
    }
}

#[test]
fn an_overlay_and_its_layers_live_as_long_as_the_token() {
    let folder = folder();
    let now = SystemTime::now();
    let bytes = b"a layer".to_vec();
    let digest = Digest::of(&bytes);
    let overlay = Overlay {
        entrypoint: vec!["/entry".to_owned()],
        cmd: Vec::new(),
        working_dir: None,
        env: Vec::new(),
        layers: vec![Layer {
            digest,
            size: bytes.len() as u64,
            diff_id: Digest::of(b"its archive"),
            compression: Compression::Gzip,
            place: Place::Inline,
            only_for: None,
        }],
        platforms: Platforms::default(),
    };
    let overlay = Arc::new(NamedOverlay::from(overlay));
    let submit = |requests: &Requests| {
        let request = ContainerRequest {
            overlay: Some(Arc::clone(&overlay)),
            layers: vec![InlineLayer {
                digest,
                bytes: bytes.clone(),
            }],
            ..request("alpine", ada())
        };
        let issued = requests.issue(request, None, now);
        issued.unwrap_or_else(|error| panic!("{error}"))
    };
    let requests = open(folder.path());
    let [first, second] = [submit(&requests), submit(&requests)];
    let plain = issue(&requests, now);
    drop(requests);
    let requests = open(folder.path());
    let has = |requests: &Requests, grant: &Grant| {
        let found = requests.belonging(&grant.token, &digest);
        found
            .unwrap_or_else(|error| panic!("{error}"))
            .map(|(_, size)| size)
    };
    for grant in [&first, &second] {
        let found = find(&requests, &grant.token, now).expect("it was issued");
        assert_eq!(found.overlay.as_ref(), Some(&overlay));
        let told = record(&requests, &grant.token).expect("it was issued");
        assert_eq!(told.overlay.as_ref(), Some(&**overlay));
        assert_eq!(has(&requests, grant), Some(bytes.len() as u64));
    }
    assert_eq!(has(&requests, &plain), None, "it is another's");
    assert_eq!(
        requests.layers_size(),
        bytes.len() as u64,
        "equal ones are one"
    );
    assert!(revoke(&requests, &first.token, now));
    assert!(requests.purge(now).is_ok());
    assert_eq!(has(&requests, &first), None);
    assert_eq!(has(&requests, &second), Some(bytes.len() as u64));
    assert!(requests.purge(second.expires).is_ok());
    assert_eq!(has(&requests, &second), None);
    assert_eq!(requests.layers_size(), 0);
}

#[test]
fn a_request_whose_layers_cannot_be_kept_has_no_token() {
    let folder = folder();
    let options = Options {
        max_layers_size: ByteSize::mib(1),
        max_layers_size_per_tenant: Some(ByteSize::mib(1)),
        ..Options::default()
    };
    let requests =
        Requests::open(folder.path(), &options).unwrap_or_else(|error| panic!("{error}"));
    let bytes = vec![0; 2 << 20];
    let request = ContainerRequest {
        layers: vec![InlineLayer {
            digest: Digest::of(&bytes),
            bytes,
        }],
        ..request("alpine", ada())
    };
    let error = requests.issue(request, None, SystemTime::now());
    assert!(
        matches!(error, Err(StoreError::Layers(KeepError::Full { .. }))),
        "{error:?}"
    );
}

#[test]
fn no_tenant_takes_the_room_of_all_for_layers() {
    let folder = folder();
    let options = Options {
        max_layers_size: ByteSize::mib(4),
        ..Options::default()
    };
    let open = || {
        let requests = Requests::open(folder.path(), &options);
        requests.unwrap_or_else(|error| panic!("{error}"))
    };
    let now = SystemTime::now();
    let issue = |requests: &Requests, number: u8, caller: Caller| {
        let bytes = vec![number; 700 << 10];
        let request = ContainerRequest {
            layers: vec![InlineLayer {
                digest: Digest::of(&bytes),
                bytes,
            }],
            ..request("alpine", caller)
        };
        requests.issue(request, None, now)
    };
    let is_used_up = |issued: &Result<Arc<Grant>, StoreError>| {
        let error = issued.as_ref().err();
        error.is_some_and(|error| {
            error
                .to_string()
                .contains("tokens.max_layers_size_per_tenant")
        })
    };
    let requests = open();
    let first = issue(&requests, 1, ada()).unwrap_or_else(|error| panic!("{error}"));
    assert!(is_used_up(&issue(&requests, 2, ada())));
    assert!(issue(&requests, 1, ada()).is_ok(), "it is hers already");
    assert!(issue(&requests, 2, Caller::Anonymous).is_ok());
    // It is counted anew by a start, and by a purge.
    drop(requests);
    let requests = open();
    assert!(is_used_up(&issue(&requests, 2, ada())));
    assert!(requests.purge(first.expires).is_ok());
    assert!(issue(&requests, 2, ada()).is_ok());
    assert!(is_used_up(&issue(&requests, 3, ada())));
}

#[test]
fn a_record_tells_all_but_the_access_token() {
    let folder = folder();
    let requests = open(folder.path());
    let now = SystemTime::now();
    let [resolved, pulled, later] = [b"a", b"b", b"c"].map(|content| Digest::of(content));
    let grant = requests
        .issue(request("alpine", ada()), Some(resolved), now)
        .unwrap_or_else(|error| panic!("{error}"));
    let told = record(&requests, &grant.token).expect("it was issued");
    let submitted = request("alpine", ada());
    assert_eq!(told.image, submitted.image);
    assert_eq!(told.details, submitted.details);
    assert_eq!(told.created, grant.created);
    assert_eq!(told.resolved_digest, Some(resolved));
    assert_eq!(told.source_digest, None);
    let user = RecordedUser {
        name: "ada".to_owned(),
        workspace: Some(1),
    };
    assert_eq!(told.user, Some(user));
    for digest in [pulled, later] {
        requests
            .note_pull(&grant.token, digest, digest)
            .unwrap_or_else(|error| panic!("{error}"));
        let told = record(&requests, &grant.token).expect("it was issued");
        assert_eq!(told.source_digest, Some(pulled), "the first pull's stays");
    }
    assert!(requests.note_pull(&Token::random(), pulled, pulled).is_ok());
    assert_eq!(record(&requests, &Token::random()), None);
}

#[test]
fn the_access_token_is_on_disk_only_sealed() {
    let folder = folder();
    let requests = open(folder.path());
    let grant = issue(&requests, SystemTime::now());
    drop(requests);
    let mut file_count = 0;
    for file in fs::read_dir(folder.path()).expect("it was created") {
        let path = file.expect("it can be listed").path();
        let content = fs::read(&path).expect("it is ours");
        let contains = |text: &str| content.windows(text.len()).any(|it| it == text.as_bytes());
        assert!(!contains(ACCESS_TOKEN), "{}", path.display());
        if path.ends_with("requests.redb") {
            assert!(contains(grant.token.as_str()), "the search finds nothing");
        }
        let mode = fs::metadata(&path).expect("it is ours").mode();
        assert_eq!(mode & 0o777, 0o600, "{}", path.display());
        file_count += 1;
    }
    assert_eq!(file_count, 2);
}

#[test]
fn another_key_is_refused_and_harms_nothing() {
    let folder = folder();
    let now = SystemTime::now();
    let grant = issue(&open(folder.path()), now);
    let path = folder.path().join("seal.key");
    let key = fs::read(&path).expect("it was created");
    fs::write(&path, [7; 32]).expect("it is ours");
    assert!(matches!(
        open_error(folder.path()),
        OpenError::WrongKey { .. }
    ));
    fs::remove_file(&path).expect("it is ours");
    assert!(matches!(
        open_error(folder.path()),
        OpenError::WrongKey { .. }
    ));
    fs::write(&path, key).expect("it is ours");
    let requests = open(folder.path());
    assert!(find(&requests, &grant.token, now).is_some());
}

#[test]
fn a_sealed_access_token_is_of_no_use_in_another_record() {
    let folder = folder();
    let now = SystemTime::now();
    let requests = open(folder.path());
    let [from, to] = [issue(&requests, now).token, issue(&requests, now).token];
    let moved = requests
        .database
        .read(&from)
        .unwrap_or_else(|error| panic!("{error}"))
        .expect("it was issued");
    requests
        .database
        .update(&to, move |_| Ok(Some(moved.clone())))
        .unwrap_or_else(|error| panic!("{error}"));
    requests.recent.forget_revoked(&to);
    let error = requests.find(&to, now).expect_err("the seal is another's");
    assert!(matches!(
        error,
        StoreError::Record { token, cause: RecordError::Sealed(_) } if token == to
    ));
}

#[test]
fn records_that_cannot_be_read_are_errors_and_go_in_time() {
    let folder = folder();
    let now = SystemTime::now();
    let requests = open(folder.path());
    let good = issue(&requests, now);
    let entry = requests
        .database
        .read(&good.token)
        .unwrap_or_else(|error| panic!("{error}"))
        .expect("it was issued");
    let entry = String::from_utf8(entry).expect("it is JSON");
    let damaged = [
        String::new(),
        "{}".to_owned(),
        "not JSON".to_owned(),
        entry.replace("\"format\":1", "\"format\":2"),
        entry.replace("quay.io", "-"),
        entry.replace("acme/app", "../app"),
        entry.replace("127.0.0.1", "somewhere"),
    ];
    for text in &damaged {
        let token = Token::random();
        requests
            .database
            .insert(&token, 1, text.clone().into_bytes())
            .unwrap_or_else(|error| panic!("{error}"));
        let error = requests.find(&token, now).expect_err(text).to_string();
        assert!(error.contains(&token.as_str()[..4]), "{error}");
        assert!(!error.contains(token.as_str()), "{error}");
        assert!(requests.record(&token).is_err(), "{text}");
    }
    assert_eq!(requests.purge(now).ok(), Some(damaged.len()));
    assert!(find(&requests, &good.token, now).is_some());
}

#[test]
fn records_are_purged_when_they_have_been_kept_long_enough() {
    let folder = folder();
    let requests = open(folder.path());
    let now = SystemTime::now();
    let options = Options::default();
    let older = issue(&requests, now);
    let newer = issue(&requests, now + Duration::from_secs(60));
    let kept_until = older.expires + *options.record_retention;
    for (moment, purged) in [
        (now, 0),
        (older.expires, 0),
        (kept_until, 0),
        (kept_until + Duration::from_secs(1), 1),
        (kept_until + Duration::from_secs(1), 0),
    ] {
        assert_eq!(requests.purge(moment).ok(), Some(purged), "{moment:?}");
    }
    assert_eq!(record(&requests, &older.token), None);
    assert!(record(&requests, &newer.token).is_some());
    assert_eq!(requests.purge(SystemTime::UNIX_EPOCH).ok(), Some(0));
}

#[test]
fn a_state_folder_has_one_user() {
    let folder = folder();
    let state_directory = folder.path().join("new/state");
    let first = open(&state_directory);
    let mode = fs::metadata(&state_directory)
        .expect("it was created")
        .mode();
    assert_eq!(mode & 0o777, 0o700);
    let error = open_error(&state_directory);
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("another tidegate"), "{error}");
    drop(first);
    open(&state_directory);
}

#[test]
fn what_cannot_be_used_as_state_is_refused() {
    let folder = folder();
    let file = folder.path().join("file");
    fs::write(&file, "").expect("the folder is ours");
    assert!(matches!(open_error(&file), OpenError::File { .. }));

    let exposed = folder.path().join("exposed");
    drop(open(&exposed));
    let database = exposed.join("requests.redb");
    fs::set_permissions(&database, fs::Permissions::from_mode(0o644)).expect("it is ours");
    assert!(
        matches!(open_error(&exposed), OpenError::Seal(SealError::Exposed { path }) if path == database)
    );

    let foreign = folder.path().join("foreign");
    drop(open(&foreign));
    fs::write(foreign.join("requests.redb"), "a text").expect("it is ours");
    let error = open_error(&foreign);
    assert!(error.to_string().contains("requests.redb"), "{error}");
}

/// Ada, in a run of her Platform.
fn ada_in(run: &str, access_token: &str) -> Caller {
    Caller::User {
        name: "ada".to_owned(),
        workspace: Some(1),
        access_token: Secret::new(access_token.to_owned()),
        platform: Some(AtPlatform {
            endpoint: ENDPOINT.to_owned(),
            refresh_token: Some(Secret::new("refresh-token-of-ada".to_owned())),
            workflow_id: Some(run.to_owned()),
        }),
    }
}

const ENDPOINT: &str = "https://platform.example.com/api";
const MINUTE: Duration = Duration::from_secs(60);

fn issue_in(requests: &Requests, caller: Caller, now: SystemTime) -> Arc<Grant> {
    requests
        .issue(request("quay.io/acme/app:v1", caller), None, now)
        .unwrap_or_else(|error| panic!("{error}"))
}

fn note(requests: &Requests, run: &DueRun, state: RunState, now: SystemTime) {
    requests
        .note_runs(&[(run.id.clone(), state)], now)
        .unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn names_of_a_run_live_as_long_as_it_does() {
    let folder = folder();
    let requests = open(folder.path());
    let start = SystemTime::now();
    let at = |minutes: u32| start + MINUTE * minutes;
    let [first, second] = [0, 1].map(|m| issue_in(&requests, ada_in("run-1", "t"), at(m)));
    let other = issue_in(&requests, ada_in("run-2", "t"), at(0));
    let plain = issue(&requests, at(0));
    assert_eq!(first.expires, start + Duration::from_secs(2 * 24 * 3600));
    assert!(requests.due_runs(ENDPOINT, at(2)).is_empty());
    assert!(
        requests
            .due_runs("https://elsewhere.example.com", at(4))
            .is_empty()
    );
    for minutes in [4, 8, 12, 16] {
        let due = requests.due_runs(ENDPOINT, at(minutes));
        // Each of them once, however many names it has.
        assert_eq!(due.len(), 2, "after {minutes} minutes");
        for run in due {
            let is_first = matches!(&*run.caller, Caller::User { platform: Some(it), .. }
                if it.workflow_id.as_deref() == Some("run-1"));
            assert_eq!(*run.caller == *first.caller, is_first);
            let state = if is_first {
                RunState::Active
            } else {
                RunState::Unasked
            };
            note(&requests, &run, state, at(minutes));
        }
    }
    for grant in [&first, &second, &other] {
        assert!(requests.recent(&grant.token, at(35)).is_some());
        assert!(find(&requests, &grant.token, at(35)).is_some());
        assert_eq!(requests.recent(&grant.token, at(37)), None);
        assert_eq!(find(&requests, &grant.token, at(37)), None);
    }
    assert!(find(&requests, &plain.token, at(37)).is_some());
    assert!(record(&requests, &first.token).is_some());
}

#[test]
fn names_of_a_run_that_has_ended_lapse() {
    let folder = folder();
    let requests = open(folder.path());
    let start = SystemTime::now();
    let at = |minutes: u32| start + MINUTE * minutes;
    let grant = issue_in(&requests, ada_in("run-1", "t"), at(0));
    for run in requests.due_runs(ENDPOINT, at(4)) {
        note(&requests, &run, RunState::Ended, at(4));
    }
    assert!(requests.due_runs(ENDPOINT, at(10)).is_empty());
    assert!(find(&requests, &grant.token, at(19)).is_some());
    assert_eq!(find(&requests, &grant.token, at(20)), None);
    assert!(requests.purge(at(21)).is_ok());
    assert_eq!(find(&requests, &grant.token, at(20)), None);
    drop(requests);
    assert_eq!(find(&open(folder.path()), &grant.token, at(20)), None);
}

#[test]
fn runs_survive_a_restart() {
    let folder = folder();
    let requests = open(folder.path());
    // So long ago that the lease ended while nobody was there to renew it.
    let start = SystemTime::now() - MINUTE * 60;
    let grant = issue_in(&requests, ada_in("run-1", "t"), start);
    let ended = issue_in(&requests, ada_in("run-2", "t"), start);
    for run in requests.due_runs(ENDPOINT, start + MINUTE * 4) {
        if *run.caller == *ended.caller {
            note(&requests, &run, RunState::Ended, start + MINUTE * 4);
        }
    }
    drop(requests);
    let requests = open(folder.path());
    let now = SystemTime::now();
    let found = find(&requests, &grant.token, now);
    assert_eq!(
        found.map(|it| Arc::clone(&it.caller)),
        Some(Arc::clone(&grant.caller))
    );
    assert_eq!(find(&requests, &ended.token, now), None);
    let due = requests.due_runs(ENDPOINT, now);
    let callers: Vec<_> = due.iter().map(|run| Arc::clone(&run.caller)).collect();
    assert_eq!(callers, [Arc::clone(&grant.caller)]);
}

#[test]
fn runs_are_their_callers_own_and_end_with_the_cap() {
    let folder = folder();
    let requests = open(folder.path());
    let start = SystemTime::now();
    let mine = issue_in(&requests, ada_in("run-1", "t"), start);
    let theirs = issue_in(&requests, ada_in("run-1", "u"), start);
    let due = requests.due_runs(ENDPOINT, start + MINUTE * 4);
    assert_eq!(due.len(), 2);
    for run in due {
        let is_mine = *run.caller == *mine.caller;
        let state = if is_mine {
            RunState::Active
        } else {
            RunState::Ended
        };
        note(&requests, &run, state, start + MINUTE * 4);
    }
    assert!(find(&requests, &mine.token, start + MINUTE * 22).is_some());
    assert_eq!(find(&requests, &theirs.token, start + MINUTE * 22), None);
    let cap = mine.expires;
    for run in requests.due_runs(ENDPOINT, cap - MINUTE) {
        note(&requests, &run, RunState::Active, cap - MINUTE);
    }
    assert!(find(&requests, &mine.token, cap - Duration::from_secs(1)).is_some());
    assert_eq!(find(&requests, &mine.token, cap), None);
    assert!(requests.due_runs(ENDPOINT, cap).is_empty());
}

#[test]
fn refresh_tokens_are_on_disk_only_sealed() {
    let folder = folder();
    let requests = open(folder.path());
    let now = SystemTime::now();
    let grant = issue_in(&requests, ada_in("run-1", ACCESS_TOKEN), now);
    drop(requests);
    let bytes = fs::read(folder.path().join("requests.redb")).expect("it is there");
    for secret in [ACCESS_TOKEN, "refresh-token-of-ada"] {
        let is_there = bytes
            .windows(secret.len())
            .any(|it| it == secret.as_bytes());
        assert!(!is_there, "{secret}");
    }
    let found = find(&open(folder.path()), &grant.token, now);
    assert_eq!(
        found.map(|it| Arc::clone(&it.caller)),
        Some(Arc::clone(&grant.caller))
    );
}

/// Ada, outside of runs.
fn ada_at_her_platform(access_token: &str) -> Caller {
    let mut caller = ada_in("", access_token);
    if let Caller::User {
        platform: Some(platform),
        ..
    } = &mut caller
    {
        platform.workflow_id = None;
    }
    caller
}

const HOUR: Duration = Duration::from_secs(3600);

/// The access tokens that are due.
fn due_tokens(requests: &Requests, now: SystemTime) -> Vec<String> {
    let due = requests.due_callers(ENDPOINT, now, 100);
    let tokens = due.iter().map(|due| match &*due.caller {
        Caller::User { access_token, .. } => access_token.expose().clone(),
        Caller::Anonymous => panic!("nobody has no token"),
    });
    let mut tokens: Vec<String> = tokens.collect();
    tokens.sort();
    tokens
}

fn note_all(requests: &Requests, standing: Standing, now: SystemTime) {
    for due in requests.due_callers(ENDPOINT, now, 100) {
        requests.note_caller(&due.id, standing, now);
    }
}

#[test]
fn a_token_is_shown_once_an_hour_until_its_last_name_has_ended() {
    let folder = folder();
    let requests = open(folder.path());
    let start = SystemTime::now();
    let first = issue_in(&requests, ada_at_her_platform("t"), start);
    let last = issue_in(&requests, ada_at_her_platform("t"), start + HOUR / 2);
    // A run's is looked after anyway; who cannot refresh has nothing to keep.
    issue_in(&requests, ada_in("run-1", "u"), start);
    issue_in(&requests, ada(), start);
    assert_eq!(due_tokens(&requests, start + HOUR / 2), [""; 0]);
    assert!(
        requests
            .due_callers("https://elsewhere.example.com", start + HOUR, 100)
            .is_empty()
    );
    let mut looks = 0;
    let mut now = start;
    while now < last.expires {
        if !due_tokens(&requests, now).is_empty() {
            assert_eq!(due_tokens(&requests, now), ["t"]);
            note_all(&requests, Standing::Good, now);
            assert_eq!(due_tokens(&requests, now), [""; 0]);
            looks += 1;
        }
        now += MINUTE;
    }
    // For 36.5 hours, with up to a tenth of chance.
    assert!((35..=42).contains(&looks), "{looks}");
    assert!(first.expires < last.expires);
    assert_eq!(due_tokens(&requests, last.expires + HOUR), [""; 0]);
}

#[test]
fn a_token_is_shown_again_soon_after_silence_and_never_after_a_refusal() {
    let folder = folder();
    let requests = open(folder.path());
    let start = SystemTime::now();
    issue_in(&requests, ada_at_her_platform("t"), start);
    let later = start + HOUR;
    note_all(&requests, Standing::Unasked, later);
    assert_eq!(due_tokens(&requests, later + MINUTE * 5), [""; 0]);
    assert_eq!(due_tokens(&requests, later + MINUTE * 12), ["t"]);
    note_all(&requests, Standing::Refused, later + MINUTE * 12);
    assert_eq!(due_tokens(&requests, later + HOUR * 2), [""; 0]);
    // Unless somebody comes with it anew.
    issue_in(&requests, ada_at_her_platform("t"), later + HOUR * 2);
    assert_eq!(due_tokens(&requests, later + HOUR * 3), ["t"]);
}

#[test]
fn tokens_of_names_that_are_left_are_shown_after_a_restart() {
    let folder = folder();
    let start = SystemTime::now();
    {
        let requests = open(folder.path());
        issue_in(&requests, ada_at_her_platform("t"), start);
        let revoked = issue_in(&requests, ada_at_her_platform("u"), start);
        issue_in(&requests, ada_at_her_platform("u"), start - HOUR * 40);
        issue_in(&requests, ada_in("run-1", "v"), start);
        issue_in(&requests, ada(), start);
        assert_eq!(due_tokens(&requests, start + HOUR), ["t", "u"]);
        assert!(revoke(&requests, &revoked.token, start));
        assert_eq!(due_tokens(&requests, start + HOUR), ["t"]);
    }
    let requests = open(folder.path());
    requests
        .take_up_callers(start)
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(due_tokens(&requests, start + MINUTE * 15), ["t"]);
}

#[test]
fn callers_that_are_kept_refreshable_are_bounded() {
    let folder = folder();
    let requests = open(folder.path());
    let start = SystemTime::now();
    for number in 0..10 {
        issue_in(&requests, ada_at_her_platform(&number.to_string()), start);
    }
    assert_eq!(due_tokens(&requests, start + HOUR), ["0", "1", "2", "3"]);
    assert_eq!(requests.due_callers(ENDPOINT, start + HOUR, 2).len(), 2);
    // Who has no names any more makes room.
    let later = start + HOUR * 40;
    assert_eq!(due_tokens(&requests, later), [""; 0]);
    issue_in(&requests, ada_at_her_platform("another"), later);
    assert_eq!(due_tokens(&requests, later + HOUR), ["another"]);
}

#[test]
fn options_have_defaults() {
    let options: Options = toml::from_str("").expect("all is optional");
    assert_eq!(options.lifetime.to_string(), "1day 12h");
    let options: Options = toml::from_str(r#"lifetime = "1h""#).expect("it is a duration");
    assert_eq!(options.lifetime.to_string(), "1h");
    assert_eq!(options.record_retention.to_string(), "7days");
    assert!(toml::from_str::<Options>("lifetimes = 1").is_err());
}

#[test]
fn what_stays_elsewhere_is_told_of_and_not_pulled() {
    let folder = folder();
    let (requests, now) = (open(folder.path()), SystemTime::now());
    let durable = Durable {
        kind: DurableKind::Mirror,
        target: "quay.io/kept/acme/app:v1".to_owned(),
        job: Some("mr-0123456789ab".to_owned()),
    };
    let in_a_run = Caller::User {
        name: "ada".to_owned(),
        workspace: Some(1),
        access_token: Secret::new(ACCESS_TOKEN.to_owned()),
        platform: Some(AtPlatform {
            endpoint: "https://platform.example.com".to_owned(),
            refresh_token: None,
            workflow_id: Some("run".to_owned()),
        }),
    };
    let issued = requests.issue(
        ContainerRequest {
            purpose: Purpose::Durable(durable.clone()),
            ..request("acme/app:v1", in_a_run)
        },
        None,
        now,
    );
    let issued = issued.unwrap_or_else(|error| panic!("{error}"));
    assert!(issued.lease.is_none(), "it does not end with the run");
    drop(requests);
    let requests = open(folder.path());
    let found = find(&requests, &issued.token, now).expect("it was issued");
    assert_eq!(found.durable.as_deref(), Some(&durable));
    assert!(!found.allows(&found.image.repository));
    let told = record(&requests, &issued.token).expect("it was issued");
    assert_eq!(told.durable, Some(durable));
}

#[test]
fn what_a_job_reads_from_lives_as_long_as_the_job_may() {
    let folder = folder();
    let (requests, now) = (open(folder.path()), SystemTime::now());
    let lifetime = Duration::from_secs(90);
    let source = ContainerRequest {
        purpose: Purpose::Source(lifetime),
        ..request("acme/app:v1", ada())
    };
    let source = requests.issue(source, None, now);
    let source = source.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(source.expires, now + lifetime);
    assert!(find(&requests, &source.token, now + lifetime).is_none());
}
