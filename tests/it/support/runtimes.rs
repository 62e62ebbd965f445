//! The programs that pull: skopeo, podman, containerd. Each in folders of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use tempfile::TempDir;

use super::{
    image::file_digest,
    programs::{Process, command, output, run},
    tidegate::files_below,
};

/// Copies with skopeo into a folder and returns the digest of everything that arrived there, manifest first.
pub fn skopeo_copy(target: &str) -> Vec<String> {
    skopeo_copy_with(target, &["--src-tls-verify=false"])
}

/// The same over TLS, trusting the certificates (`*.crt`) in a folder.
pub fn skopeo_copy_trusting(target: &str, certificates: &Path) -> Vec<String> {
    let folder = certificates.to_str().expect("a path in UTF-8");
    skopeo_copy_with(target, &["--src-tls-verify=true", "--src-cert-dir", folder])
}

fn skopeo_copy_with(target: &str, tls: &[&str]) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    run(&mut skopeo(target, folder.path(), tls));
    let mut digests = vec![file_digest(&folder.path().join("manifest.json"))];
    for entry in fs::read_dir(folder.path()).expect("a readable folder") {
        let path = entry.expect("a readable folder").path();
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_some_and(|name| name.len() == 64) {
            digests.push(file_digest(&path));
        }
    }
    digests
}

/// What skopeo says when it cannot.
pub fn skopeo_refusal(target: &str) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = output(&mut skopeo(
        target,
        folder.path(),
        &["--src-tls-verify=false"],
    ));
    assert!(!output.status.success(), "{target} was not refused");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn skopeo(target: &str, folder: &Path, tls: &[&str]) -> Command {
    let mut skopeo = command("skopeo");
    skopeo
        .args(["--insecure-policy", "--tmpdir"])
        .arg(folder)
        .args(["copy", "--src-no-creds"])
        .args(tls)
        .arg(format!("docker://{target}"))
        .arg(format!("dir:{}", folder.display()));
    skopeo
}

/// Pulls with podman, unpacked, and returns the digest it knows the image by.
pub fn podman_pull(target: &str) -> String {
    let home = tempfile::tempdir().expect("a temporary folder");
    run(podman(&home).args(["pull", "--tls-verify=false", target]));
    let inspect = ["image", "inspect", "--format={{.Digest}}", target];
    let digest = run(podman(&home).args(inspect)).stdout;
    String::from_utf8_lossy(&digest).trim().to_owned()
}

/// An image on disk, as somebody unpacked it.
pub struct Unpacked {
    _home: TempDir,
    pub root: PathBuf,
    /// Of the image, or what was made of it for a container.
    pub config: Value,
}

impl Unpacked {
    pub fn file(&self, name: &str) -> String {
        let path = self.root.join(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

pub fn podman_unpack(target: &str) -> Unpacked {
    podman_unpack_with(target, &[])
}

/// With a user's name and password, `ada:secret`.
pub fn podman_unpack_as(target: &str, login: &str) -> Unpacked {
    podman_unpack_with(target, &["--creds", login])
}

/// The image for a platform, `linux/arm64`, of those that the name has.
pub fn podman_unpack_for(platform: &str, target: &str, login: &str) -> Unpacked {
    podman_unpack_with(target, &["--creds", login, "--platform", platform])
}

fn podman_unpack_with(target: &str, more: &[&str]) -> Unpacked {
    let home = tempfile::tempdir().expect("a temporary folder");
    run(podman(&home)
        .args(["pull", "--tls-verify=false"])
        .args(more)
        .arg(target));
    let inspect = ["image", "inspect", "--format={{json .Config}}", target];
    let config = run(podman(&home).args(inspect)).stdout;
    let root = run(podman(&home).args(["image", "mount", target])).stdout;
    Unpacked {
        _home: home,
        root: PathBuf::from(String::from_utf8_lossy(&root).trim()),
        config: serde_json::from_slice(&config).expect("JSON"),
    }
}

/// Pulls, starts, and returns what the container printed until its end.
pub fn podman_run(target: &str) -> String {
    let home = tempfile::tempdir().expect("a temporary folder");
    run(podman(&home).args(["pull", "--tls-verify=false", target]));
    let printed = run(podman_start(&home).arg(target)).stdout;
    String::from_utf8_lossy(&printed).into_owned()
}

/// Whether this machine lets podman start a container at all, of a static program in an image of its own; or what it says.
pub fn podman_starts(program: &Path, arguments: &[&str]) -> Result<(), String> {
    let home = tempfile::tempdir().expect("a temporary folder");
    let archive = home.path().join("image.tar");
    let path = program.strip_prefix("/").expect("a path from the root");
    run(Command::new("tar")
        .arg("-cf")
        .arg(&archive)
        .args(["-C", "/"])
        .arg(path));
    let imported = output(podman(&home).arg("import").arg(&archive).arg("probe:v1"));
    let started = output(
        podman_start(&home)
            .arg("probe:v1")
            .arg(program)
            .args(arguments),
    );
    match imported.status.success() && started.status.success() {
        true => Ok(()),
        false => Err([imported.stderr, started.stderr]
            .map(|said| String::from_utf8_lossy(&said).into_owned())
            .concat()),
    }
}

/// With no network, as there may be none, and with limits that every machine allows.
fn podman_start(home: &TempDir) -> Command {
    let mut podman = podman(home);
    podman.args([
        "--runtime=runc",
        "run",
        "--rm",
        "--pull=never",
        "--network=none",
        "--ulimit=nofile=1024:1024",
        "--ulimit=nproc=1000:1000",
    ]);
    podman
}

/// Fetched by skopeo. It knows no layers in zstd.
pub fn umoci_unpack(target: &str) -> Unpacked {
    let home = tempfile::tempdir().expect("a temporary folder");
    let (layout, bundle) = (home.path().join("layout"), home.path().join("bundle"));
    let image = format!("{}:image", layout.display());
    run(command("skopeo")
        .args(["--insecure-policy", "--tmpdir"])
        .arg(home.path())
        .args(["copy", "--src-no-creds", "--src-tls-verify=false"])
        .arg(format!("docker://{target}"))
        .arg(format!("oci:{image}")));
    run(command("umoci")
        .args(["unpack", "--rootless", "--image", &image])
        .arg(&bundle));
    let config = fs::read(bundle.join("config.json")).expect("a bundle has one");
    Unpacked {
        _home: home,
        root: bundle.join("rootfs"),
        config: serde_json::from_slice(&config).expect("JSON"),
    }
}

fn podman(home: &TempDir) -> Command {
    let mut podman = command("podman");
    podman
        .arg("--root")
        .arg(home.path().join("root"))
        .arg("--runroot")
        .arg(home.path().join("runroot"))
        .args(["--storage-driver=vfs", "--cgroup-manager=cgroupfs"])
        .args(["--events-backend=file"])
        .env("TMPDIR", home.path());
    podman
}

/// A podman that fetches only those chunks of a layer that it has not yet (`zstd:chunked`, `enable_partial_images`).
/// Only root has the storage driver that can.
pub struct PartialPodman {
    home: TempDir,
}

impl PartialPodman {
    pub fn new() -> Self {
        let home = tempfile::tempdir().expect("a temporary folder");
        let folder = home.path().display();
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\nrunroot = \"{folder}/runroot\"\ngraphroot = \"{folder}/root\"\n\
             [storage.options]\n\
             pull_options = {{enable_partial_images = \"true\", use_hard_links = \"false\", ostree_repos = \"\"}}\n\
             [storage.options.overlay]\nskip_mount_home = \"true\"\n"
        );
        fs::write(home.path().join("storage.conf"), storage).expect("a writable folder");
        Self { home }
    }

    fn podman(&self) -> Command {
        let mut podman = command("podman");
        podman
            .args(["--cgroup-manager=cgroupfs", "--events-backend=file"])
            .env(
                "CONTAINERS_STORAGE_CONF",
                self.home.path().join("storage.conf"),
            )
            .env("TMPDIR", self.home.path());
        podman
    }

    /// Whether this machine lets it unpack at all.
    pub fn works(&self) -> bool {
        output(self.podman().args(["info"])).status.success()
    }

    /// Makes an image of one layer with these files and pushes it in chunks.
    pub fn push(&self, folder: &Path, name: &str, target: &str) {
        let archive = self.home.path().join("image.tar");
        run(Command::new("tar")
            .args(["--sort=name", "--mtime=@0", "-cf"])
            .arg(&archive)
            .arg("-C")
            .arg(folder)
            .arg("."));
        run(self.podman().arg("import").arg(&archive).arg(name));
        run(self
            .podman()
            .args([
                "push",
                "--tls-verify=false",
                "--compression-format=zstd:chunked",
            ])
            .arg(name)
            .arg(format!("docker://{target}")));
    }

    /// Pulls, and says what it did.
    pub fn pull(&self, target: &str) -> String {
        let pull = ["--log-level=debug", "pull", "--tls-verify=false", target];
        let output = run(self.podman().args(pull));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// sha256 of every file with this name in the layers that are unpacked.
    pub fn unpacked(&self, name: &str) -> Vec<String> {
        let layers = fs::read_dir(self.home.path().join("root/overlay")).expect("a storage");
        layers
            .flatten()
            .map(|layer| layer.path().join("diff").join(name))
            .filter(|path| path.is_file())
            .map(|path| file_digest(&path))
            .collect()
    }
}

/// A containerd with nothing but its content and its client.
pub struct Containerd {
    home: TempDir,
    _process: Process,
}

impl Containerd {
    pub fn start() -> Self {
        let home = tempfile::tempdir().expect("a temporary folder");
        let folder = home.path().display();
        let config = format!(
            "version = 2\nroot = \"{folder}/root\"\nstate = \"{folder}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{folder}/socket\"\n[ttrpc]\naddress = \"{folder}/socket.ttrpc\"\n"
        );
        let file = home.path().join("config.toml");
        fs::write(&file, config).expect("a writable folder");
        let process = Process::spawn(
            "containerd",
            command("containerd").arg("--config").arg(file),
        );
        process
            .log
            .wait_for(|line| line.contains("successfully booted"))
            .unwrap_or_else(|| panic!("containerd: {}", process.log.text()));
        Self {
            home,
            _process: process,
        }
    }

    fn ctr(&self) -> Command {
        let mut ctr = command("ctr");
        ctr.arg("--address").arg(self.home.path().join("socket"));
        ctr
    }

    /// Pulls and unpacks by copying, which works on every file system.
    pub fn pull(&self, target: &str) {
        self.pull_with(target, &[]);
    }

    /// With a user's name and password, `ada:secret`.
    pub fn pull_as(&self, target: &str, login: &str) {
        self.pull_with(target, &["--user", login]);
    }

    /// The image for a platform, `linux/arm64`, of those that the name has.
    pub fn pull_for(&self, platform: &str, target: &str, login: &str) {
        self.pull_with(target, &["--user", login, "--platform", platform]);
    }

    fn pull_with(&self, target: &str, more: &[&str]) {
        run(self
            .ctr()
            .args(["images", "pull", "--snapshotter=native", "--plain-http"])
            .args(more)
            .arg(target));
    }

    /// Fetches what an image consists of, unpacking nothing, and breaks off when it is told to.
    pub fn fetch_until(&self, target: &str, is_enough: impl FnOnce()) {
        let mut fetching = Process::spawn(
            "ctr",
            self.ctr()
                .args(["content", "fetch", "--plain-http", target]),
        );
        is_enough();
        fetching.kill();
    }

    /// Pulls with tidegate as the mirror of a registry: the name is the registry's, the way goes over `mirror`.
    pub fn pull_through_mirror(&self, registry: &str, mirror: &str, image: &str) {
        let folder = self.home.path().join("hosts").join(registry);
        fs::create_dir_all(&folder).expect("a writable folder");
        let hosts = format!(
            "server = \"http://127.0.0.1:1\"\n[host.\"{mirror}\"]\ncapabilities = [\"pull\", \"resolve\"]\noverride_path = true\n"
        );
        fs::write(folder.join("hosts.toml"), hosts).expect("a writable folder");
        run(self
            .ctr()
            .args(["content", "fetch", "--hosts-dir"])
            .arg(self.home.path().join("hosts"))
            .arg(image));
    }

    /// What is in the files of this name that it has unpacked.
    pub fn unpacked(&self, name: &str) -> Vec<String> {
        let folder = "root/io.containerd.snapshotter.v1.native";
        let files = files_below(&self.home.path().join(folder)).into_iter();
        files
            .filter(|(path, _)| path.ends_with(name))
            .filter_map(|(path, _)| fs::read_to_string(path).ok())
            .collect()
    }

    /// What is in the file of this name with all layers on each other. Each layer's folder has what is below it as well.
    pub fn topmost(&self, name: &str) -> String {
        let folder = "root/io.containerd.snapshotter.v1.native/snapshots";
        let folder = self.home.path().join(folder);
        let layers = fs::read_dir(&folder).expect("it has unpacked");
        let numbers = layers.flatten().filter_map(|layer| {
            let name = layer.file_name().into_string().ok()?;
            name.parse::<u64>().ok()
        });
        let last = numbers.max().expect("a layer");
        let file = folder.join(last.to_string()).join(name);
        fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
    }

    /// sha256 of the content it has stored under this digest.
    pub fn stored(&self, digest: &str) -> String {
        let blobs = self
            .home
            .path()
            .join("root/io.containerd.content.v1.content/blobs");
        file_digest(&blobs.join(digest.replace(':', "/")))
    }
}
