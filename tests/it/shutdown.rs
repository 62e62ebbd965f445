//! SIGTERM: what runs is finished, nothing new begins. SIGHUP: not, unless a terminal is closed.

use std::{fs, io::Read, net::TcpStream, process::Command};

use crate::support::{
    content::{Content, digest},
    http::End,
    liar::{Behaviour, Gate, Liar, blob_path},
    programs::{self, Process, require, wait_until},
    tidegate::{BINARY, Setup, Tidegate},
};

const SIZE: u64 = 8 << 20;

struct Scene {
    tidegate: Tidegate,
    gate: Gate,
    path: String,
    digest: String,
    _liar: Liar,
}

impl Scene {
    /// With a download that halts at its middle.
    fn new(grace: &str) -> Self {
        let liar = Liar::open();
        let content = Content::Generated {
            seed: 1,
            size: SIZE,
        };
        let image = liar.image("acme/app", "v1", &[content]);
        let digest = image.layers[0].clone();
        let gate = Gate::default();
        let halting = Behaviour::Gated(SIZE / 2, gate.clone());
        liar.misbehave(&blob_path("acme/app", &digest), halting);
        let tidegate = Setup::new()
            .liar(&liar)
            .section(&format!("[listener]\nshutdown_grace = \"{grace}\""))
            .start();
        let grant = tidegate.grant(&liar.reference("acme/app", "v1"));
        Self {
            path: grant.blob(&digest),
            tidegate,
            gate,
            digest,
            _liar: liar,
        }
    }
}

#[test]
fn a_running_transfer_is_finished_and_new_connections_are_refused() {
    for signal in ["TERM", "INT"] {
        let mut scene = Scene::new("1h");
        let mut connection = scene.tidegate.connect();
        connection.request("GET", &scene.path, &[], b"");
        let head = connection.head().expect("an answer");
        let mut body = connection.body("GET", &head);
        let mut bytes = body.read_exactly(1000);
        // Waits for its next request, which will not come.
        let mut idle = scene.tidegate.connect();
        idle.request("GET", "/v2/", &[], b"");
        assert_eq!(idle.response("GET").status(), 200);

        scene.tidegate.signal(signal);
        wait_until("the end of listening", || {
            TcpStream::connect(scene.tidegate.registry).is_err()
        });
        scene.gate.open();
        body.read_to_end(&mut bytes).expect("a readable body");
        assert_eq!(body.end(), End::Complete);
        assert_eq!(digest(&bytes), scene.digest);
        let status = scene.tidegate.wait();
        assert_eq!(status.code(), Some(0), "{}", scene.tidegate.log().text());
        assert!(idle.is_closed_by_peer());
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut scene = Scene::new("1h");
    let mut connection = scene.tidegate.connect();
    connection.request("GET", &scene.path, &[], b"");
    let head = connection.head().expect("an answer");
    connection.body("GET", &head).read_exactly(1000);
    scene.tidegate.signal("TERM");
    wait_until("the end of listening", || {
        TcpStream::connect(scene.tidegate.registry).is_err()
    });
    scene.tidegate.signal("TERM");
    scene.tidegate.wait();
}

#[test]
fn a_transfer_without_end_is_cut_when_the_grace_is_over() {
    let mut scene = Scene::new("1s");
    let mut connection = scene.tidegate.connect();
    connection.request("GET", &scene.path, &[], b"");
    let head = connection.head().expect("an answer");
    let mut body = connection.body("GET", &head);
    body.read_exactly(1000);
    scene.tidegate.signal("TERM");
    body.read_to_end(&mut Vec::new()).expect("a readable body");
    assert_eq!(body.end(), End::Cut);
    scene.tidegate.wait();
}

#[test]
fn without_work_it_ends_at_once_and_well() {
    let mut tidegate = Setup::new()
        .section("[listener]\nshutdown_grace = \"1h\"")
        .start();
    tidegate.signal("TERM");
    assert_eq!(tidegate.wait().code(), Some(0), "{}", tidegate.log().text());
}

/// Whoever sends it wants files to be read again, and nobody else's transfer to be cut.
#[test]
fn a_hangup_ends_nothing_and_is_told() {
    let mut tidegate = Setup::new()
        .launcher(&["env", "--default-signal=HUP"])
        .start();
    tidegate.signal("HUP");
    let told = tidegate.log().wait_for(|line| line.contains("SIGHUP"));
    assert!(
        told.is_some_and(|line| line.contains("restart")),
        "{}",
        tidegate.log().text()
    );
    assert_eq!(tidegate.get("/health").status(), 200);
    tidegate.signal("TERM");
    assert_eq!(tidegate.wait().code(), Some(0), "{}", tidegate.log().text());
}

/// Closing a terminal ends what was started there.
#[test]
fn a_hangup_on_a_terminal_ends_it_in_order() {
    require!("script");
    let home = tempfile::tempdir().expect("a temporary folder");
    let pid = home.path().join("pid");
    let line = format!(
        "env --default-signal=HUP {BINARY} serve --listen 127.0.0.1:0 --admin 127.0.0.1:0 --state-dir {home}/state \
         --cache-dir {home}/cache & echo $! > {home}/pid; wait $!; echo exit code $?",
        home = home.path().display()
    );
    let mut script = Process::spawn(
        "script",
        programs::command("script").args(["-qec", &line, "/dev/null"]),
    );
    let listening = script
        .log
        .wait_for(|line| line.contains("clients are told"));
    assert!(listening.is_some(), "{}", script.log.text());
    let pid = fs::read_to_string(pid).expect("it was written before");
    programs::run(Command::new("kill").args(["-HUP", pid.trim()]));
    script.wait();
    script.log.wait_for_end();
    let told = script.log.text();
    assert!(
        told.contains("exit code 0") && !told.contains("SIGHUP"),
        "{told}"
    );
}
