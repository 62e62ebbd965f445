//! A source's tag that moves while it is mirrored: what was asked for last is what the target's tag is in the end.

use serde_json::Value;

use crate::support::{
    liar::Gate,
    mirror_content::Shelf,
    mirror_scene::{MirrorScene, text},
    passage::{Kind, Obstacle},
    programs::require,
    tidegate::Setup,
};

const LAYERS: [u64; 3] = [300_000, 200_000, 100_000];

struct Moving {
    scene: MirrorScene,
    gate: Gate,
    first: Value,
}

impl Moving {
    /// With a first mirror that halts in the middle of a layer.
    fn new() -> Self {
        let scene = MirrorScene::with(Setup::new());
        let gate = Gate::default();
        let halting = Obstacle::Gated(50_000, gate.clone());
        scene.passage.put_often(Kind::Bytes, &halting, 1);
        tag(&scene, 1);
        let first = scene.mirror(&image(&scene));
        scene.passage.wait_for_halted(1);
        Self { scene, gate, first }
    }

    fn assert_superseded(&self, earlier: &Value, later: &Value) {
        let reason = self.scene.fails(earlier);
        let by = text(later, "buildId");
        assert!(reason.contains("superseded by"), "{reason}");
        assert!(reason.contains(&by), "{reason}");
    }
}

/// `acme/app:v1` is another image for each number.
fn tag(scene: &MirrorScene, number: u64) -> String {
    Shelf::new(&scene.source, "acme/app").image_of("v1", number * 10, &LAYERS)
}

fn image(scene: &MirrorScene) -> String {
    Shelf::new(&scene.source, "acme/app").reference("v1")
}

#[test]
fn a_slow_mirror_does_not_move_a_tag_back() {
    require!("docker-registry", "skopeo");
    let Moving { scene, gate, first } = &Moving::new();
    tag(scene, 2);
    let second = scene.mirror(&image(scene));
    assert_ne!(second["buildId"], first["buildId"]);
    scene.succeeds(&second);
    gate.open();
    scene.finished(first);
    scene.assert_same("acme/app", "v1");
}

#[test]
fn whoever_waits_for_the_earlier_image_is_told_that_there_is_a_later_one() {
    require!("docker-registry", "skopeo");
    let moving = Moving::new();
    let Moving { scene, first, gate } = &moving;
    tag(scene, 2);
    let halting = Obstacle::Gated(50_000, gate.clone());
    scene.passage.put_often(Kind::Bytes, &halting, 1);
    let second = scene.mirror(&image(scene));
    scene.passage.wait_for_halted(2);
    tag(scene, 3);
    let third = scene.mirror(&image(scene));
    moving.assert_superseded(&second, &third);
    moving.assert_superseded(first, &second);
    scene.succeeds(&third);
    gate.open();
    scene.assert_same("acme/app", "v1");
}

#[test]
fn an_image_that_is_there_is_mirrored_again_if_another_is_on_its_way() {
    require!("docker-registry", "skopeo");
    let moving = Moving::new();
    let Moving { scene, gate, first } = &moving;
    gate.open();
    scene.succeeds(first);
    tag(scene, 2);
    let gate = Gate::default();
    let halting = Obstacle::Gated(50_000, gate.clone());
    scene.passage.put_often(Kind::Bytes, &halting, 1);
    let second = scene.mirror(&image(scene));
    scene.passage.wait_for_halted(2);
    // Back to what stands at the target still.
    tag(scene, 1);
    let third = scene.mirror(&image(scene));
    moving.assert_superseded(&second, &third);
    scene.succeeds(&third);
    gate.open();
    scene.assert_same("acme/app", "v1");
}

#[test]
fn a_restart_ends_the_earlier_one_and_makes_the_later() {
    require!("docker-registry", "skopeo");
    let mut moving = Moving::new();
    tag(&moving.scene, 2);
    let second = moving.scene.mirror(&image(&moving.scene));
    moving.scene.tidegate.kill();
    moving.gate.open();
    moving.scene.tidegate.restart();
    moving.assert_superseded(&moving.first, &second);
    moving.scene.succeeds(&second);
    moving.scene.assert_same("acme/app", "v1");
}
