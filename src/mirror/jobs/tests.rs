use std::net::{IpAddr, Ipv4Addr};

use super::{
    course::{Attempt, pause},
    *,
};
use crate::{
    augment::{Compression, Layer, Overlay, Place},
    mirror::{Copied, CopyError},
    pull::{FetchError, PullError},
    requests::{Caller, InlineLayer, RequestDetails},
    secret::Secret,
    units::HumanDuration,
    upstream::{Said, Service},
};

struct Scene {
    folder: tempfile::TempDir,
    options: Options,
    requests: Option<Arc<Requests>>,
    jobs: Option<Arc<Jobs>>,
}

impl Scene {
    fn new() -> Self {
        Self::with(Options::default())
    }

    fn with(options: Options) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut scene = Self {
            folder,
            options,
            requests: None,
            jobs: None,
        };
        scene.restart();
        scene
    }

    /// As after a kill: nothing is told to have ended.
    fn restart(&mut self) {
        (self.jobs, self.requests) = (None, None);
        let options = requests::Options::default();
        let requests = Requests::open(self.folder.path(), &options);
        let requests = Arc::new(requests.unwrap_or_else(|error| panic!("{error}")));
        let pool = Pool::start().unwrap_or_else(|error| panic!("{error}"));
        let jobs = Jobs::open(
            self.folder.path(),
            &self.options,
            Arc::clone(&requests),
            pool,
            2,
        );
        self.jobs = Some(jobs.unwrap_or_else(|error| panic!("{error}")));
        self.requests = Some(requests);
    }

    fn jobs(&self) -> &Jobs {
        self.jobs.as_ref().expect("it is open")
    }

    fn submit(&self, wish: Wish) -> Result<Taken, SubmitError> {
        self.jobs().submit(wish, SystemTime::now())
    }

    fn going(&self, wish: Wish) -> JobId {
        match self.submit(wish) {
            Ok(Taken::Going(id)) => id,
            other => panic!("{other:?}"),
        }
    }

    fn record(&self, id: &JobId) -> JobRecord {
        let record = self.jobs().record(id);
        let record = record.unwrap_or_else(|error| panic!("{error}"));
        record.unwrap_or_else(|| panic!("{id} is unknown"))
    }

    fn log(&self, id: &JobId) -> String {
        let log = self.jobs().log(id);
        let log = log.unwrap_or_else(|error| panic!("{error}"));
        log.unwrap_or_else(|| panic!("{id} is unknown"))
    }

    /// What a core does when its copy is over.
    fn attempted(&self, id: &JobId, attempt: Attempt) -> Option<Duration> {
        let live = self
            .jobs()
            .live(id)
            .unwrap_or_else(|| panic!("{id} is over"));
        self.jobs().attempted(&live, attempt, SystemTime::now())
    }

    fn is_running(&self, id: &JobId) -> bool {
        let live = self.jobs().live(id);
        live.is_some_and(|live| matches!(lock(&live.state).phase, Phase::Running { .. }))
    }
}

fn user(name: &str, workspace: Option<i64>) -> Caller {
    Caller::User {
        name: name.to_owned(),
        workspace,
        access_token: Secret::new("hunter2hunter2".to_owned()),
        platform: None,
    }
}

fn wish_of(caller: Caller, target: &str) -> Wish {
    Wish {
        kind: DurableKind::Mirror,
        request: ContainerRequest {
            image: "quay.io/acme/app:v1".parse().expect("an image"),
            caller: Arc::new(caller),
            overlay: None,
            layers: Vec::new(),
            purpose: Purpose::Name,
            details: RequestDetails {
                container_image: "quay.io/acme/app:v1".to_owned(),
                platform: None,
                tower_endpoint: None,
                workflow_id: None,
                fingerprint: None,
                timestamp: "2026-03-04T05:06:07+01:00".parse().ok(),
                address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            },
        },
        digest: Digest::of(b"the image"),
        target: target.parse().expect("an image"),
        platform: None,
    }
}

fn wish(target: &str) -> Wish {
    wish_of(user("ada", Some(1)), target)
}

fn copied() -> Attempt {
    Attempt::Copied(Copied {
        digest: Digest::of(b"the image"),
        manifests: 1,
        copied: 2,
        mounted: 0,
        present: 1,
        bytes: 1000,
    })
}

fn busy() -> Attempt {
    Attempt::Failed(CopyError::Source(PullError::Fetch(
        FetchError::RateLimited {
            registry: "quay.io".parse().expect("a registry"),
            by: Service::Registry,
            said: Said::default(),
            retry_after: Some(Duration::from_secs(7)),
        },
    )))
}

fn denied() -> Attempt {
    Attempt::Failed(CopyError::Manifest {
        registry: "quay.io".parse().expect("a registry"),
        digest: Digest::of(b"the image"),
        problem: "it is none".to_owned(),
    })
}

#[test]
fn equal_wishes_of_one_tenant_are_one_job() {
    let scene = Scene::new();
    let id = scene.going(wish("r.example/a:v1"));
    assert_eq!(scene.going(wish("r.example/a:v1")), id);
    let colleague = wish_of(user("bob", Some(1)), "r.example/a:v1");
    assert_eq!(scene.going(colleague), id, "they have the same logins");
    for other in [
        wish("r.example/a:v2"),
        wish_of(user("ada", Some(2)), "r.example/a:v1"),
        wish_of(user("ada", None), "r.example/a:v1"),
        wish_of(Caller::Anonymous, "r.example/a:v1"),
        Wish {
            digest: Digest::of(b"another image"),
            ..wish("r.example/a:v1")
        },
    ] {
        assert_ne!(scene.going(other), id);
    }
}

#[test]
fn a_job_that_is_done_is_told_of_and_made_again_if_it_is_asked_for() {
    let mut scene = Scene::new();
    let id = scene.going(wish("r.example/a:v1"));
    assert!(scene.record(&id).ended.is_none());
    assert!(scene.attempted(&id, copied()).is_none());
    let key = wish("r.example/a:v1").key();
    for _ in 0..2 {
        assert!(scene.record(&id).is_done());
        assert_eq!(
            scene.jobs().last_done(&key).ok().flatten().as_ref(),
            Some(&id)
        );
        assert!(
            scene.log(&id).contains("done: 1 manifests"),
            "{}",
            scene.log(&id)
        );
        scene.restart();
    }
    assert_ne!(scene.going(wish("r.example/a:v1")), id);
}

#[test]
fn a_failure_is_told_again_for_a_moment_and_then_tried_anew() {
    let scene = Scene::new();
    let freeze = || Wish {
        kind: DurableKind::Freeze,
        ..wish("r.example/a:v1")
    };
    let id = scene.going(freeze());
    assert_eq!(id.number(), 1);
    assert!(scene.attempted(&id, denied()).is_none());
    let record = scene.record(&id);
    let reason = record.ended.and_then(|ended| ended.outcome.reason());
    assert!(reason.is_some_and(|reason| reason.contains("it is none")));
    assert_eq!(scene.submit(freeze()).ok(), Some(Taken::Failed(id.clone())));
    let later = SystemTime::now() + FAILURE_LIFETIME;
    let again = scene.jobs().submit(freeze(), later);
    let Ok(Taken::Going(again)) = again else {
        panic!("{again:?}");
    };
    assert_ne!(again, id);
    assert_eq!(again.number(), 2, "it is the second");
}

#[test]
fn what_may_pass_is_tried_again_and_not_for_ever() {
    let scene = Scene::with(Options {
        attempts: 3,
        ..Options::default()
    });
    let id = scene.going(wish("r.example/a:v1"));
    for attempt in 1..3 {
        assert!(scene.is_running(&id), "attempt {attempt}");
        let pause = scene.attempted(&id, busy());
        assert_eq!(pause, Some(Duration::from_secs(7)), "as the registry asked");
        assert!(!scene.is_running(&id));
        assert_eq!(
            scene.jobs().counts(),
            Counts {
                waiting: 0,
                running: 0
            }
        );
        let live = scene.jobs().live(&id).expect("it is not over");
        scene.jobs().resume(&live);
    }
    assert!(scene.attempted(&id, busy()).is_none());
    let record = scene.record(&id);
    assert_eq!(record.attempts, 3);
    assert!(matches!(
        record.ended,
        Some(Ended {
            outcome: Outcome::Failed(_),
            ..
        })
    ));
    let log = scene.log(&id);
    assert!(
        log.contains("attempt 2 of 3") && log.contains("again in 7s"),
        "{log}"
    );
}

#[test]
fn pauses_grow_and_are_bounded() {
    let error = CopyError::Cancelled;
    let pauses = [1, 2, 3, 7, 30].map(|attempt| pause(attempt, &error).as_secs());
    assert_eq!(pauses, [1, 2, 4, 60, 60]);
}

#[test]
fn no_pause_goes_beyond_the_time_of_a_job() {
    let scene = Scene::with(Options {
        job_timeout: HumanDuration::seconds(5),
        ..Options::default()
    });
    let id = scene.going(wish("r.example/a:v1"));
    assert!(scene.attempted(&id, busy()).is_none(), "7 s are too long");
    assert!(scene.record(&id).ended.is_some());
}

#[test]
fn a_restart_takes_up_what_was_not_finished() {
    let mut scene = Scene::with(Options {
        max_running: 1,
        ..Options::default()
    });
    let running = scene.going(wish("r.example/a:v1"));
    let waiting = scene.going(wish("r.example/a:v2"));
    let done = scene.going(wish("r.example/a:v3"));
    assert!(scene.attempted(&running, copied()).is_none());
    assert!(scene.attempted(&waiting, copied()).is_none());
    let again = scene.going(wish("r.example/a:v4"));
    scene.restart();
    assert_eq!(
        scene.jobs().counts(),
        Counts {
            waiting: 1,
            running: 1
        }
    );
    for id in [&done, &again] {
        assert!(scene.record(id).ended.is_none(), "{id}");
        assert!(scene.log(id).contains("started again"), "{}", scene.log(id));
    }
    assert!(scene.is_running(&done), "the elder comes first");
    assert_eq!(scene.going(wish("r.example/a:v3")), done);
    assert!(scene.record(&running).is_done());
}

#[test]
fn a_job_that_ends_every_process_ends_itself() {
    let mut scene = Scene::new();
    let id = scene.going(wish("r.example/a:v1"));
    for _ in 0..MOST_ATTEMPTS {
        let live = scene.jobs().live(&id).expect("it is not over");
        let reading = scene.jobs().reading(&live, SystemTime::now());
        assert!(matches!(reading, Ok(Some(_))));
        drop(live);
        scene.restart();
    }
    let ended = scene.record(&id).ended.expect("it is over");
    assert!(matches!(ended.outcome, Outcome::Failed(_)), "{ended:?}");
}

#[test]
fn a_job_ends_when_the_last_request_for_it_is_revoked() {
    let scene = Scene::with(Options {
        max_running: 1,
        ..Options::default()
    });
    let now = SystemTime::now();
    let running = scene.going(wish("r.example/a:v1"));
    let waiting = scene.going(wish("r.example/a:v2"));
    assert_eq!(scene.going(wish("r.example/a:v2")), waiting);
    let release = |id| {
        let released = scene.jobs().release(id, now);
        released.unwrap_or_else(|error| panic!("{error}"));
    };
    release(&waiting);
    assert!(scene.record(&waiting).ended.is_none(), "one is left");
    release(&waiting);
    let outcome = |id| scene.record(id).ended.map(|ended| ended.outcome);
    assert_eq!(outcome(&waiting), Some(Outcome::Cancelled));
    assert_eq!(
        scene.jobs().counts(),
        Counts {
            waiting: 0,
            running: 1
        }
    );
    release(&running);
    let live = scene
        .jobs()
        .live(&running)
        .expect("the copy has not seen it");
    assert!(live.progress.is_cancelled());
    assert!(
        scene
            .attempted(&running, Attempt::Failed(CopyError::Cancelled))
            .is_none()
    );
    assert_eq!(outcome(&running), Some(Outcome::Cancelled));
    assert!(!scene.jobs().cancel(&running, now), "it is over");
    release(&running);
}

#[test]
fn who_asks_after_a_job_was_cancelled_gets_another() {
    let scene = Scene::new();
    let now = SystemTime::now();
    let cancelled = scene.going(wish("r.example/a:v1"));
    assert!(scene.is_running(&cancelled));
    assert!(scene.jobs().cancel(&cancelled, now));
    let other = scene.going(wish("r.example/a:v1"));
    assert_ne!(other, cancelled, "it is to end, and has not seen it yet");
    // However its copy comes to its end.
    assert!(scene.attempted(&cancelled, busy()).is_none());
    let outcome = |id| scene.record(id).ended.map(|ended| ended.outcome);
    assert_eq!(outcome(&cancelled), Some(Outcome::Cancelled));
    assert_eq!(scene.going(wish("r.example/a:v1")), other);
    assert!(scene.is_running(&other));
}

#[test]
fn a_job_that_was_cancelled_is_not_taken_up_again() {
    let mut scene = Scene::new();
    let now = SystemTime::now();
    let by_operator = scene.going(wish("r.example/a:v1"));
    let by_release = scene.going(wish("r.example/a:v2"));
    assert!(scene.jobs().cancel(&by_operator, now));
    let released = scene.jobs().release(&by_release, now);
    released.unwrap_or_else(|error| panic!("{error}"));
    // Neither copy has seen it.
    scene.restart();
    for id in [by_operator, by_release] {
        let outcome = scene.record(&id).ended.map(|ended| ended.outcome);
        assert_eq!(outcome, Some(Outcome::Cancelled));
    }
}

#[test]
fn a_job_that_pauses_can_be_cancelled() {
    let scene = Scene::new();
    let id = scene.going(wish("r.example/a:v1"));
    assert!(scene.attempted(&id, busy()).is_some());
    let live = scene.jobs().live(&id).expect("it is not over");
    assert!(scene.jobs().cancel(&id, SystemTime::now()));
    scene.jobs().resume(&live);
    assert_eq!(
        scene.jobs().counts(),
        Counts {
            waiting: 0,
            running: 0
        }
    );
    let outcome = scene.record(&id).ended.map(|ended| ended.outcome);
    assert_eq!(outcome, Some(Outcome::Cancelled));
}

#[test]
fn too_many_are_refused_and_leave_nothing() {
    let scene = Scene::with(Options {
        max_running: 1,
        max_waiting: 2,
        max_waiting_per_tenant: 1,
        ..Options::default()
    });
    scene.going(wish("r.example/a:v1"));
    scene.going(wish("r.example/a:v2"));
    let full = |wish| match scene.submit(wish) {
        Err(SubmitError::Full(full)) => full,
        other => panic!("{other:?}"),
    };
    assert_eq!(full(wish("r.example/a:v3")), Full::OfOne);
    let bob = || user("bob", None);
    scene.going(wish_of(bob(), "r.example/a:v1"));
    assert_eq!(
        full(wish_of(user("eve", None), "r.example/a:v1")),
        Full::OfAll
    );
    assert_eq!(scene.jobs().unfinished().len(), 3);
}

#[test]
fn those_that_pause_take_room_too() {
    let scene = Scene::with(Options {
        max_waiting: 2,
        max_waiting_per_tenant: 1,
        ..Options::default()
    });
    let ada = scene.going(wish("r.example/a:v1"));
    assert!(scene.attempted(&ada, busy()).is_some());
    let full = |wish| match scene.submit(wish) {
        Err(SubmitError::Full(full)) => full,
        other => panic!("{other:?}"),
    };
    assert_eq!(full(wish("r.example/a:v2")), Full::OfOne);
    let bob = scene.going(wish_of(user("bob", None), "r.example/a:v1"));
    assert!(scene.attempted(&bob, busy()).is_some());
    let eves = || wish_of(user("eve", None), "r.example/a:v1");
    assert_eq!(full(eves()), Full::OfAll);
    assert!(scene.jobs().cancel(&bob, SystemTime::now()));
    scene.going(eves());
}

#[test]
fn a_job_reads_as_its_caller_and_its_layers_go_with_it() {
    let mut scene = Scene::new();
    let bytes = b"a layer".to_vec();
    let digest = Digest::of(&bytes);
    let overlay = Overlay {
        entrypoint: Vec::new(),
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
    let mut freeze = wish("r.example/a:v1");
    freeze.kind = DurableKind::Freeze;
    freeze.request.overlay = Some(Arc::new(overlay.into()));
    freeze.request.layers = vec![InlineLayer { digest, bytes }];
    let id = scene.going(freeze);
    scene.restart();
    let now = SystemTime::now();
    let live = scene.jobs().live(&id).expect("it is not over");
    let grant = scene.jobs().reading(&live, now).ok().flatten();
    let grant = grant.expect("it is kept");
    assert_eq!(*grant.caller, user("ada", Some(1)));
    assert_eq!(grant.image.version, TagOrDigest::Digest(live.job.digest));
    let requests = scene.requests.as_ref().expect("it is open");
    let has_layer = || {
        let found = requests.belonging(&grant.token, &digest);
        found.is_ok_and(|found| found.is_some())
    };
    assert!(has_layer());
    assert!(scene.attempted(&id, copied()).is_none());
    assert!(requests.purge(now).is_ok());
    assert!(!has_layer());
    let files = std::fs::read_dir(scene.folder.path()).expect("a folder");
    let names = files.flatten().map(|file| file.path());
    let database = names
        .into_iter()
        .find(|path| path.file_stem().is_some_and(|name| name == "jobs"));
    let text = std::fs::read(database.expect("it is kept")).expect("it is there");
    let is_secret = |window: &[u8]| window == b"hunter2hunter2";
    assert!(!text.windows(14).any(is_secret));
}

#[test]
fn old_records_are_removed() {
    let scene = Scene::new();
    let mut ended = Vec::new();
    for tag in ["v1", "v2", "v3"] {
        let id = scene.going(wish(&format!("r.example/a:{tag}")));
        assert!(scene.attempted(&id, copied()).is_none());
        ended.push(id);
    }
    let going = scene.going(wish("r.example/a:v4"));
    let purge = |now| scene.jobs().purge(now).ok();
    assert_eq!(purge(SystemTime::now()), Some(0));
    let later = SystemTime::now() + *scene.options.record_retention + Duration::from_secs(1);
    assert_eq!(purge(later), Some(3));
    for id in &ended {
        assert_eq!(scene.jobs().record(id).ok(), Some(None), "{id}");
        assert_eq!(scene.jobs().log(id).ok(), Some(None), "{id}");
    }
    let key = wish("r.example/a:v1").key();
    assert_eq!(scene.jobs().last_done(&key).ok(), Some(None));
    assert!(scene.record(&going).ended.is_none());
}

#[test]
fn of_too_many_records_those_go_that_ended_first() {
    let scene = Scene::with(Options {
        max_records: 3,
        ..Options::default()
    });
    let ids: Vec<JobId> = (0..8)
        .map(|number| scene.going(wish(&format!("r.example/a:v{number}"))))
        .collect();
    // In another order than they were asked for; the last does not end.
    let [first, order @ ..] = [7, 0, 5, 2, 4, 1, 6];
    for number in order {
        let id = ids.get(number).expect("it was asked for");
        let live = scene.jobs().live(id).expect("it is not over");
        scene.jobs().attempted(&live, denied(), SystemTime::now());
    }
    assert_eq!(scene.jobs().purge(SystemTime::now()).ok(), Some(3));
    let is_known = |number: &usize| {
        let record = ids.get(*number).map(|id| scene.jobs().record(id));
        matches!(record, Some(Ok(Some(_))))
    };
    let known: Vec<usize> = (0..8).filter(is_known).collect();
    assert_eq!(known, [1, 3, 4, 6, first]);
    assert_eq!(scene.jobs().purge(SystemTime::now()).ok(), Some(0));
}

#[test]
fn a_reason_is_as_short_as_a_log_is() {
    let scene = Scene::new();
    let id = scene.going(wish("r.example/a:v1"));
    let problem = "x".repeat(1 << 20);
    let error = CopyError::Manifest {
        registry: "quay.io".parse().expect("a registry"),
        digest: Digest::of(b"the image"),
        problem,
    };
    assert!(scene.attempted(&id, Attempt::Failed(error)).is_none());
    let record = scene.record(&id);
    let reason = record.ended.and_then(|ended| ended.outcome.reason());
    let reason = reason.expect("it failed");
    assert!(reason.len() < 5000, "{}", reason.len());
    assert!(reason.starts_with("quay.io: manifest"), "{reason}");
    assert!(scene.log(&id).contains("quay.io: manifest"));
}

#[test]
fn jobs_are_spread_over_cores() {
    let scene = Scene::new();
    for tag in ["v1", "v2", "v3", "v4"] {
        scene.going(wish(&format!("r.example/a:{tag}")));
    }
    assert_eq!(lock(&scene.jobs().table).load, [2, 2]);
}

/// The same name, and what its source's tag is since it has moved.
fn moved() -> Wish {
    Wish {
        digest: Digest::of(b"a newer image"),
        ..wish("r.example/a:v1")
    }
}

fn superseded(scene: &Scene, id: &JobId, by: &JobId) -> bool {
    let by = by.clone();
    let outcome = scene.record(id).ended.map(|ended| ended.outcome);
    outcome == Some(Outcome::Superseded { by })
}

#[test]
fn what_is_asked_for_last_by_a_name_comes_last() {
    let scene = Scene::new();
    let first = scene.going(wish("r.example/a:v1"));
    let other_tenants = scene.going(wish_of(user("eve", None), "r.example/a:v1"));
    let other_name = scene.going(wish("r.example/a:v2"));
    let live = scene.jobs().live(&first).expect("it is not over");
    let second = scene.going(moved());
    assert!(live.progress.is_cancelled());
    assert!(
        !scene.is_running(&second),
        "the first is still at the target"
    );
    assert_eq!(scene.going(moved()), second);
    // However its copy comes to its end.
    assert!(scene.attempted(&first, busy()).is_none());
    assert!(superseded(&scene, &first, &second));
    assert!(scene.log(&first).contains(second.as_str()));
    assert!(scene.is_running(&second));
    // Back to the first again: what pauses ends at once.
    assert!(scene.attempted(&second, busy()).is_some());
    let third = scene.going(wish("r.example/a:v1"));
    assert!(superseded(&scene, &second, &third));
    assert!(scene.is_running(&third));
    for id in [&other_tenants, &other_name] {
        assert!(scene.is_running(id), "it is nothing to {id}");
    }
}

#[test]
fn of_those_behind_a_copy_only_the_last_is_left() {
    let scene = Scene::new();
    let first = scene.going(wish("r.example/a:v1"));
    let second = scene.going(moved());
    let third = scene.going(Wish {
        digest: Digest::of(b"the newest image"),
        ..wish("r.example/a:v1")
    });
    assert!(superseded(&scene, &second, &third));
    // It was at its tag already.
    assert!(scene.attempted(&first, copied()).is_none());
    assert!(scene.record(&first).is_done());
    assert!(scene.is_running(&third));
    assert!(scene.attempted(&third, copied()).is_none());
    let none = Counts {
        waiting: 0,
        running: 0,
    };
    assert_eq!(scene.jobs().counts(), none);
    assert!(scene.jobs().unfinished().is_empty());
}

#[test]
fn one_that_waits_for_its_turn_ends_for_what_is_asked_for_later() {
    let scene = Scene::with(Options {
        max_running: 1,
        ..Options::default()
    });
    let running = scene.going(wish("r.example/a:v2"));
    let first = scene.going(wish("r.example/a:v1"));
    let second = scene.going(moved());
    assert!(superseded(&scene, &first, &second));
    assert_eq!(scene.jobs().counts().waiting, 1);
    assert!(scene.attempted(&running, copied()).is_none());
    assert!(scene.is_running(&second));
}

#[test]
fn a_restart_does_not_take_up_what_was_superseded() {
    let mut scene = Scene::new();
    let first = scene.going(wish("r.example/a:v1"));
    // Its clock was put back since.
    let past = SystemTime::now() - Duration::from_secs(3600);
    let second = scene.jobs().submit(moved(), past);
    let second = second.unwrap_or_else(|error| panic!("{error}"));
    scene.restart();
    assert!(superseded(&scene, &first, second.id()));
    assert!(scene.is_running(second.id()));
    assert_eq!(scene.jobs().unfinished().len(), 1);
}

#[test]
fn what_stands_there_says_nothing_while_another_image_is_on_its_way() {
    let scene = Scene::new();
    let (asked, newer) = (wish("r.example/a:v1"), moved());
    let tenant = Tenant::of(&asked.request.caller);
    let is_contested = |wish: &Wish| {
        let jobs = scene.jobs();
        jobs.is_contested(&tenant, &wish.target, &wish.key())
    };
    let going = scene.going(moved());
    assert!(is_contested(&asked));
    assert!(!is_contested(&newer));
    assert!(scene.jobs().cancel(&going, SystemTime::now()));
    assert!(is_contested(&asked), "its copy has not seen it");
    assert!(scene.attempted(&going, denied()).is_none());
    assert!(!is_contested(&asked));
}

#[test]
fn what_runs_when_the_process_is_stopped_is_left_to_the_next() {
    let mut scene = Scene::with(Options {
        max_running: 1,
        ..Options::default()
    });
    let running = scene.going(wish("r.example/a:v1"));
    let waiting = scene.going(wish("r.example/a:v2"));
    let live = scene.jobs().live(&running).expect("it is not over");
    scene.jobs().interrupt();
    assert!(live.progress.is_cancelled());
    assert!(!scene.jobs().wait_until_idle(Duration::from_millis(1)));
    let cancelled = Attempt::Failed(CopyError::Cancelled);
    assert!(scene.attempted(&running, cancelled).is_none());
    assert!(scene.jobs().wait_until_idle(Duration::from_secs(3600)));
    assert!(!scene.is_running(&waiting));
    drop(live);
    scene.restart();
    assert!(scene.is_running(&running), "it was there first");
    for id in [&running, &waiting] {
        assert!(scene.record(id).ended.is_none(), "{id}");
    }
    assert!(scene.log(&running).contains("tidegate was stopped"));
}

#[test]
fn how_a_job_ended_is_known_before_it_is_written() {
    let scene = Scene::new();
    let [done, failed] = ["v1", "v2"].map(|tag| scene.going(wish(&format!("r.example/a:{tag}"))));
    let end = |id, outcome| {
        let live = scene.jobs().live(id).expect("it is not over");
        let at = SystemTime::now();
        assert!(
            scene
                .jobs()
                .stop(&live, Phase::Ended(Ended { at, outcome }))
        );
    };
    let digest = Digest::of(b"the image");
    end(&done, Outcome::Done { digest, bytes: 1 });
    end(&failed, Outcome::Failed("denied".to_owned()));
    let last = scene.jobs().last_done(&wish("r.example/a:v1").key());
    assert_eq!(last.ok().flatten(), Some(done));
    let again = scene.submit(wish("r.example/a:v2"));
    assert_eq!(again.ok(), Some(Taken::Failed(failed)));
}

#[test]
fn what_is_given_up_gets_no_turn_before_it_has_ended() {
    let scene = Scene::with(Options {
        max_running: 1,
        ..Options::default()
    });
    let jobs = scene.jobs();
    let pausing = scene.going(wish("r.example/a:v2"));
    assert!(scene.attempted(&pausing, busy()).is_some());
    let running = scene.going(wish("r.example/a:v1"));
    let behind = scene.going(moved());
    let live = |id| jobs.live(id).expect("it is not over");
    let [pausing, behind, running] = [&pausing, &behind, &running].map(live);
    for live in [&pausing, &behind] {
        assert_eq!(jobs.take_out(live, &Outcome::Cancelled), GivenUp::Ended);
    }
    // The pause is over just now, and the target is free.
    jobs.resume(&pausing);
    assert!(jobs.stop(&running, Phase::Pausing));
    let now = SystemTime::now();
    for live in [&pausing, &behind, &running] {
        jobs.end(live, Outcome::Cancelled, now);
    }
    let none = Counts {
        waiting: 0,
        running: 0,
    };
    assert_eq!(jobs.counts(), none);
}

#[test]
fn what_is_given_up_while_its_attempt_ends_does_not_pause() {
    let scene = Scene::new();
    let jobs = scene.jobs();
    let id = scene.going(wish("r.example/a:v1"));
    let live = jobs.live(&id).expect("it is not over");
    assert_eq!(jobs.put_off(&live), None, "nobody gave it up");
    jobs.resume(&live);
    assert!(scene.is_running(&id));
    // After it was looked whether it is given up.
    assert!(jobs.cancel(&id, SystemTime::now()));
    assert_eq!(jobs.put_off(&live), Some(Outcome::Cancelled));
}

#[test]
fn what_is_done_when_the_process_ends_is_not_done_again() {
    let mut scene = Scene::new();
    let id = scene.going(wish("r.example/a:v1"));
    let live = scene.jobs().live(&id).expect("it is not over");
    let outcome = Outcome::Done {
        digest: Digest::of(b"the image"),
        bytes: 1,
    };
    let at = SystemTime::now();
    // Whoever tells its end has not come to write it.
    assert!(
        scene
            .jobs()
            .stop(&live, Phase::Ended(Ended { at, outcome }))
    );
    scene.jobs().interrupt();
    assert!(scene.jobs().wait_until_idle(Duration::from_secs(3600)));
    drop(live);
    scene.restart();
    assert!(scene.record(&id).is_done());
}
