//! What scrubbing finds damaged is fetched again before anybody has to wait for it, if that needs nobody's own login.

use crate::support::{
    accounts::Accounts,
    content::Content,
    damage::{flip, open_stored},
    http::End,
    image::file_digest,
    liar::{Auth, Behaviour, Liar, blob_path},
    programs::wait_until,
    scene::Scene,
    tidegate::{Directory, Setup},
};

const MIB: u64 = 1 << 20;
const SCRUBBING: &str = "[cache]\nscrub_interval = \"1s\"";

#[test]
fn what_scrubbing_finds_damaged_is_fetched_again_before_anybody_asks() {
    let scene = Scene::with(Setup::new().section(SCRUBBING));
    let sizes = [1, 100_000, 9 * MIB];
    let blobs: Vec<_> = (0..)
        .zip(sizes)
        .map(|(seed, size)| scene.layer(seed, size))
        .collect();
    for blob in &blobs {
        scene.assert_arrives(blob, "the first pull");
        scene.tidegate.wait_until_stored(&blob.digest);
        let file = open_stored(&scene.tidegate, &blob.digest);
        flip(&file, blob.size() / 2);
    }
    wait_until("all of them to be healed", || {
        scene.tidegate.metric("tidegate_blobs_healed_total") == blobs.len() as u64
    });
    assert_eq!(scene.tidegate.metric("tidegate_blobs_damaged_total"), 3);
    for blob in &blobs {
        scene.tidegate.wait_until_stored(&blob.digest);
        let path = scene.tidegate.stored(&blob.digest).expect("its file");
        assert_eq!(file_digest(&path), blob.digest);
        assert_eq!(scene.liar.gets(&blob.path).len(), 2, "one pull, one more");
        scene.assert_is_a_hit(blob);
    }
}

/// A wrong blob is not put in the place of a damaged one, and nobody goes on asking for what is not to be had.
#[test]
fn what_cannot_be_fetched_again_is_left_to_the_next_pull() {
    for behaviour in [
        Behaviour::WrongBytes,
        Behaviour::HangUp,
        Behaviour::status(404),
    ] {
        let scene = Scene::with(Setup::new().section(SCRUBBING));
        let blob = scene.layer(1, 9 * MIB);
        scene.assert_arrives(&blob, "the first pull");
        scene.tidegate.wait_until_stored(&blob.digest);
        scene.misbehave(&blob, behaviour);
        flip(&open_stored(&scene.tidegate, &blob.digest), 0);
        let told = |line: &str| line.contains("is left to the next pull");
        assert!(scene.tidegate.log().wait_for(told).is_some());
        assert_eq!(scene.tidegate.stored(&blob.digest), None);
        assert_eq!(scene.tidegate.metric("tidegate_blobs_healed_total"), 0);
        scene.behave(&blob);
        scene.assert_recovers(&blob);
    }
}

#[test]
fn nobodys_login_is_used_without_him() {
    let accounts = Accounts::none().with("ada", "hunter2", &["acme/app"]);
    let liar = Liar::start(Auth::Basic(accounts));
    let content = Content::Generated {
        seed: 1,
        size: 200_000,
    };
    let image = liar.image("acme/app", "v1", &[content]);
    let layer = &image.layers[0];
    let directory = Directory::new()
        .user("ada", "ada-access-token", &[])
        .user_login(liar.name(), "ada", "hunter2");
    let tidegate = Setup::new()
        .liar(&liar)
        .directory(&directory)
        .section(SCRUBBING)
        .start();
    let grant = tidegate.grant_as("ada-access-token", &liar.reference("acme/app", "v1"));
    assert_eq!(&tidegate.pull(&grant.blob(layer)).digest, layer);
    tidegate.wait_until_stored(layer);
    let before = liar.requests().len();
    flip(&open_stored(&tidegate, layer), 7);
    let told = |line: &str| line.contains("is left to the next pull");
    assert!(tidegate.log().wait_for(told).is_some());
    assert_eq!(tidegate.stored(layer), None, "it is not served again");
    let asked = liar.requests().split_off(before);
    assert!(!asked.is_empty(), "it was tried without a login");
    for request in asked {
        assert_eq!(request.header("authorization"), None, "{request:?}");
    }
    let pulled = tidegate.pull(&grant.blob(layer));
    assert_eq!((&pulled.digest, pulled.end), (layer, End::Complete));
    tidegate.wait_until_stored(layer);
    let path = tidegate.stored(layer).expect("its file");
    assert_eq!(&file_digest(&path), layer);
    assert_eq!(liar.gets(&blob_path("acme/app", layer)).len(), 3);
}
