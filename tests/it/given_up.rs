//! Copies that are given up while their target takes no more bytes, or does not say what it has made of them: they end at once,
//! and take back what they have begun there.

use serde_json::{Value, json};

use crate::support::{
    http,
    liar::Gate,
    mirror_content::Shelf,
    mirror_scene::{MirrorScene, text},
    passage::{Kind, Obstacle},
    programs::{require, wait_until},
    tidegate::Setup,
};

const MIB: u64 = 1 << 20;
/// No connection holds as much of the first as it has. Of the second all is on its way, and the answer is waited for.
const LAYERS: [u64; 2] = [24 * MIB, 200_000];

struct Stalled {
    scene: MirrorScene,
    submitted: Value,
    /// Stays closed.
    _gate: Gate,
}

impl Stalled {
    /// With a mirror whose blobs the target does not take.
    fn new(mirror: &str) -> Self {
        let patience = "[upstream]\nbody_timeout = \"1h\"\nresponse_timeout = \"1h\"";
        let setup = Setup::new().section(patience).section(mirror);
        let scene = MirrorScene::with(setup);
        let gate = Gate::default();
        let halting = Obstacle::Gated(50_000, gate.clone());
        scene.passage.put_often(Kind::Bytes, &halting, LAYERS.len());
        let shelf = Shelf::new(&scene.source, "acme/app");
        shelf.image_of("v1", 1, &LAYERS);
        let submitted = scene.mirror(&shelf.reference("v1"));
        scene.passage.wait_for_halted(LAYERS.len());
        Self {
            scene,
            submitted,
            _gate: gate,
        }
    }

    fn assert_taken_back(&self) {
        // And the trial whether its login may push.
        let expected = LAYERS.len() + 1;
        wait_until("the end of the uploads", || {
            let requests = self.scene.passage.requests();
            let deleted = requests.iter().filter(|request| request.method == "DELETE");
            deleted.count() >= expected
        });
        // The target has ended nothing.
        assert_eq!(self.scene.passage.at_gates(), LAYERS.len());
    }
}

#[test]
fn a_job_that_is_cancelled_does_not_wait_for_its_target() {
    require!("docker-registry", "skopeo");
    let stalled = Stalled::new("");
    let Stalled {
        scene, submitted, ..
    } = &stalled;
    let path = format!("/jobs/{}", text(submitted, "buildId"));
    let ours = [("X-Tidegate", "jobs")];
    let answer = http::request(scene.tidegate.admin, "DELETE", &path, &ours, b"");
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let reason = scene.fails(submitted);
    assert!(reason.contains("cancelled"), "{reason}");
    stalled.assert_taken_back();
    assert_eq!(http::get(scene.tidegate.admin, "/jobs").json(), json!([]));
}

#[test]
fn a_job_whose_time_is_up_takes_back_what_its_target_does_not_take() {
    require!("docker-registry", "skopeo");
    let stalled = Stalled::new("[mirror]\njob_timeout = \"5s\"");
    let reason = stalled.scene.fails(&stalled.submitted);
    assert!(reason.contains("mirror.job_timeout"), "{reason}");
    stalled.assert_taken_back();
}

#[test]
fn a_later_image_does_not_wait_for_an_earlier_one_that_stalls() {
    require!("docker-registry", "skopeo");
    let stalled = Stalled::new("");
    let scene = &stalled.scene;
    let shelf = Shelf::new(&scene.source, "acme/app");
    shelf.image_of("v1", 10, &[3000]);
    scene.mirrored(&shelf.reference("v1"));
    scene.assert_same("acme/app", "v1");
    assert!(scene.fails(&stalled.submitted).contains("superseded by"));
    stalled.assert_taken_back();
}

#[test]
fn a_stop_waits_for_no_target() {
    require!("docker-registry", "skopeo");
    let mut stalled = Stalled::new("[listener]\nshutdown_grace = \"1h\"");
    stalled.scene.tidegate.signal("TERM");
    let status = stalled.scene.tidegate.wait();
    let log = stalled.scene.tidegate.log().text();
    assert_eq!(status.code(), Some(0), "{log}");
    stalled.assert_taken_back();
    // It goes on with the next start.
    stalled.scene.passage.clear();
    stalled.scene.tidegate.restart();
    stalled.scene.succeeds(&stalled.submitted);
    stalled.scene.assert_same("acme/app", "v1");
}
