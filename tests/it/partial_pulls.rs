//! Real clients that ask for parts: curl that goes on where it stopped, podman that wants only the chunks it lacks,
//! containerd that was interrupted.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use crate::support::{
    content::Content,
    docker_registry::{DockerRegistry, Login},
    image::{Image, file_digest},
    liar::{Behaviour, Gate, OCI_MANIFEST, sent_again},
    programs::{Process, command, require, run, wait_until},
    runtimes::{Containerd, PartialPodman},
    scene::{Blob, REPOSITORY, Scene},
    tidegate::Setup,
};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 24 * MIB;

fn curl(scene: &Scene, blob: &Blob, file: &Path) -> Command {
    let mut curl = command("curl");
    let url = format!(
        "http://{}{}",
        scene.tidegate.registry,
        scene.grant.blob(&blob.digest)
    );
    curl.args(["--silent", "--show-error", "--fail", "-C", "-", "-o"])
        .arg(file)
        .arg(url);
    curl
}

/// What an interrupted download of so many bytes leaves behind.
fn interrupted(folder: &Path, blob: &Blob, count: u64) -> PathBuf {
    let path = folder.join(format!("{count}-of-{}", blob.size()));
    fs::write(&path, blob.bytes(&(0..count))).expect("a writable folder");
    path
}

fn size_of(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

const STOPS: [u64; 5] = [1, 65_537, 9 * MIB, SIZE - 65_536, SIZE - 1];

#[test]
fn curl_goes_on_with_a_blob_that_is_cached() {
    require!("curl");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let scene = Scene::new();
    let blob = scene.layer(1, SIZE);
    scene.assert_arrives(&blob, "the first pull");
    scene.tidegate.wait_until_stored(&blob.digest);
    for count in STOPS {
        let file = interrupted(folder.path(), &blob, count);
        run(&mut curl(&scene, &blob, &file));
        assert_eq!(file_digest(&file), blob.digest, "from {count}");
    }
    assert_eq!(scene.liar.gets(&blob.path).len(), 1);
}

#[test]
fn curl_goes_on_with_a_blob_that_is_not_cached() {
    require!("curl");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let scene = Scene::new();
    for (seed, count) in (0..).zip(STOPS) {
        let blob = scene.layer(seed, SIZE);
        let file = interrupted(folder.path(), &blob, count);
        run(&mut curl(&scene, &blob, &file));
        assert_eq!(file_digest(&file), blob.digest, "from {count}");
        scene.assert_arrives(&blob, "the whole");
        scene.assert_is_a_hit(&blob);
    }
}

#[test]
fn curl_is_killed_and_goes_on_while_the_blob_is_still_growing() {
    require!("curl");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let scene = Scene::new();
    for (seed, framing) in (0..).zip([Behaviour::Honest, Behaviour::Chunked]) {
        let blob = scene.layer(seed, SIZE);
        let gate = Gate::default();
        let halting = Behaviour::Gated(SIZE / 2, gate.clone());
        let first = Behaviour::All(vec![framing, halting]);
        scene.liar.misbehave_in_turn(&blob.path, &[first]);
        let file = folder.path().join(&blob.digest);
        let mut curl_first = Process::spawn("curl", &mut curl(&scene, &blob, &file));
        wait_until("a part of the file", || size_of(&file) > 5 * MIB);
        curl_first.kill();
        let stopped_at = size_of(&file);
        assert!(stopped_at < SIZE, "it was not interrupted");
        thread::scope(|scope| {
            let again = scope.spawn(|| run(&mut curl(&scene, &blob, &file)));
            wait_until("more of the file", || {
                size_of(&file) > stopped_at || again.is_finished()
            });
            gate.open();
            again.join().expect("curl succeeds");
        });
        assert_eq!(file_digest(&file), blob.digest);
        scene.assert_arrives(&blob, "the whole");
        scene.assert_is_a_hit(&blob);
        let fetched = scene.liar.sent(&blob.path);
        assert!(sent_again(&fetched) <= 2 * MIB, "{fetched:?}");
    }
}

/// The last bytes are never sent before they are verified: what curl has when it was cut is never the whole.
#[test]
fn curl_that_goes_on_with_a_wrong_blob_never_has_all_of_it() {
    require!("curl");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let scene = Scene::new();
    let blob = scene.layer(1, SIZE);
    scene.misbehave(&blob, Behaviour::WrongByteAt(3 * MIB));
    let file = folder.path().join("blob");
    for _ in 0..3 {
        let ended = curl(&scene, &blob, &file).status().expect("curl runs");
        assert!(!ended.success(), "curl took a wrong blob for whole");
        assert!(size_of(&file) < SIZE);
    }
    assert_eq!(scene.tidegate.stored(&blob.digest), None);
}

/// Two images that share files: the second is pulled by the ranges of what the first had not.
#[test]
fn podman_pulls_the_chunks_that_it_lacks() {
    require!("docker-registry", "podman");
    let podman = PartialPodman::new();
    if !podman.works() {
        let _ = writeln!(
            std::io::stderr(),
            "left out: podman_pulls_the_chunks_that_it_lacks needs an overlay file system (root)"
        );
        return;
    }
    let registry = DockerRegistry::start(&Login::Open);
    let builder = PartialPodman::new();
    let files = |name: &str, numbers: &[u64]| {
        let folder = builder_folder(name);
        for number in numbers {
            let content = Content::Generated {
                seed: *number,
                size: 3_000_000,
            };
            fs::write(
                folder.path().join(format!("file-{number}")),
                content.bytes(),
            )
            .expect("a writable folder");
        }
        folder
    };
    let (some, all) = (
        files("some", &[0, 2, 4, 6]),
        files("all", &[0, 1, 2, 3, 4, 5, 6, 7]),
    );
    for (folder, tag) in [(&some, "some"), (&all, "all")] {
        let name = format!("localhost/image:{tag}");
        let target = format!("{}/acme/app:{tag}", registry.name());
        builder.push(folder.path(), &name, &target);
    }
    let tidegate = Setup::new().registry(registry.name()).start();
    let target = |tag: &str| {
        tidegate
            .grant(&format!("{}/acme/app:{tag}", registry.name()))
            .target
    };
    for tag in ["some", "all"] {
        let said = podman.pull(&target(tag));
        assert!(said.contains("partial blob"), "it pulled the whole: {said}");
    }
    for number in 0..8 {
        let content = Content::Generated {
            seed: number,
            size: 3_000_000,
        };
        let unpacked = podman.unpacked(&format!("file-{number}"));
        let expected = if number % 2 == 0 { 2 } else { 1 };
        assert_eq!(unpacked.len(), expected, "file-{number}");
        for digest in unpacked {
            assert_eq!(digest, content.digest(), "file-{number}");
        }
    }
    // And once more, of what is cached now or of the parts that are kept.
    let another = PartialPodman::new();
    let said = another.pull(&target("all"));
    assert!(said.contains("partial blob"), "it pulled the whole: {said}");
    for number in 0..8 {
        let content = Content::Generated {
            seed: number,
            size: 3_000_000,
        };
        let unpacked = another.unpacked(&format!("file-{number}"));
        assert_eq!(unpacked, [content.digest()], "file-{number}");
    }
}

fn builder_folder(name: &str) -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix(name)
        .tempdir()
        .expect("a temporary folder")
}

/// containerd keeps what it has received and asks for the rest.
#[test]
fn containerd_goes_on_after_an_interrupted_pull() {
    require!("containerd", "ctr", "runc");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let image = Image::build(&folder.path().join("image"), &[24 * MIB]);
    let scene = Scene::new();
    let blobs = image.folder.join("blobs/sha256");
    let read = |digest: &str| {
        let hex = digest.trim_start_matches("sha256:");
        fs::read(blobs.join(hex)).expect("a file of the image")
    };
    let layer = scene.blob_of(Content::of(read(&image.manifest().layers[0])));
    scene.blob_of(Content::of(read(&image.manifest().config)));
    let media_type = OCI_MANIFEST;
    let bytes = read(&image.manifest().digest);
    let repository = REPOSITORY;
    scene.liar.manifest(repository, "real", media_type, &bytes);
    let gate = scene.gate(&layer, 12 * MIB);
    let target = scene
        .tidegate
        .grant(&scene.liar.reference(repository, "real"))
        .target;
    let containerd = Containerd::start();
    // More than a quarter has come, so the fill goes on without containerd.
    containerd.fetch_until(&target, || {
        wait_until("a good part of the blob", || {
            scene.tidegate.fetched() > 8 * MIB
        });
    });
    gate.open();
    containerd.pull(&target);
    assert_eq!(containerd.stored(&layer.digest), layer.digest);
    scene.tidegate.wait_until_stored(&layer.digest);
    assert_eq!(scene.liar.gets(&layer.path).len(), 1);
}
