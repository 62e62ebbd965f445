//! What does it cost to copy an image from one registry to another?
//!
//! ```sh
//! cargo bench --bench mirror
//! cargo bench --bench mirror -- "1 GiB"
//! ```
//!
//! `tidegate mirror` beside `skopeo copy --all`, in turns: the same image, the same source, and each time another target
//! that is empty. CPU is the copying program's own; what both registries use is beside it, since a copy may spare them
//! work or make more of it. All three have the machine's cores to share, so the third copier is nothing but four threads
//! that move the layers from socket to socket inside the kernel, unchecked: what the registries take by themselves.

mod support;

use std::{
    fs::{self, File},
    io::{self, BufWriter, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Command, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use support::{
    GIB,
    origin::hex,
    report::{Arguments, Report, median},
    servers::{Cores, Server, docker_registry_with, find, tidegate_binary},
    sys,
};

/// A name, layers for each platform, the size of each, and platforms.
const ROWS: [(&str, usize, u64, &[&str]); 3] = [
    ("8 layers, 1 GiB", 8, 128 << 20, &["amd64"]),
    (
        "2 platforms, 40 layers, 320 MiB",
        20,
        8 << 20,
        &["amd64", "arm64"],
    ),
    ("60 layers, 3.75 MiB", 60, 64 << 10, &["amd64"]),
];
const ROUNDS: usize = 5;

fn main() {
    let arguments = Arguments::read();
    let mut report = Report::start("mirror", "an image from one registry to another");
    for program in ["docker-registry", "skopeo"] {
        if find(program).is_none() {
            println!("\nleft out: {program} is not installed (apt-get install {program})");
            return;
        }
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    println!("{ROUNDS} rounds, in turns; medians");
    report.head(
        2,
        &[
            "image",
            "copied by",
            "s",
            "CPU-s",
            "CPU-s/GiB",
            "registries' CPU-s",
            "tidegate ÷ it: time",
            "CPU",
        ],
    );
    let source = open_registry(folder.path());
    for (name, layers, size, platforms) in ROWS {
        if !arguments.wants(name) {
            continue;
        }
        let repository = format!(
            "bench/{}",
            name.replace([' ', ','], "")
                .to_lowercase()
                .replace('.', "-")
        );
        let image = push(folder.path(), &source, &repository, layers, size, platforms);
        let copiers = [Copier::Tidegate, Copier::Skopeo, Copier::Bare];
        let mut all = [const { Vec::new() }; 3];
        for _ in 0..ROUNDS {
            for (copier, copies) in copiers.into_iter().zip(&mut all) {
                copies.push(copier.copy(folder.path(), &source, &image));
            }
        }
        let all = all.map(|copies| middle(&copies));
        let [ours, ..] = all;
        for (copier, copy) in copiers.into_iter().zip(all) {
            let ratios =
                (copier != Copier::Tidegate).then(|| (ours.time / copy.time, ours.cpu / copy.cpu));
            let or_dash = |value: Option<f64>| {
                value.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"))
            };
            report.row(&[
                match ratios {
                    None => name.to_owned(),
                    Some(_) => String::new(),
                },
                copier.name().to_owned(),
                format!("{:.2}", copy.time),
                format!("{:.2}", copy.cpu),
                format!("{:.2}", copy.cpu / (image.bytes() as f64 / GIB)),
                format!("{:.2}", copy.registries),
                or_dash(ratios.map(|(time, _)| time)),
                or_dash(ratios.map(|(_, cpu)| cpu)),
            ]);
            report.record(json!({
                "row": name, "server": copier.name(), "bytes": image.bytes(), "seconds": copy.time,
                "cpu_seconds": copy.cpu, "registries_cpu_seconds": copy.registries,
                "tidegate_to_it_seconds": ratios.map(|(time, _)| time),
                "tidegate_to_it_cpu": ratios.map(|(_, cpu)| cpu),
            }));
        }
    }
}

/// At the source, as `v1`.
struct Image {
    repository: String,
    /// Digests and sizes.
    layers: Vec<(String, u64)>,
}

impl Image {
    fn bytes(&self) -> u64 {
        self.layers.iter().map(|(_, size)| size).sum()
    }
}

/// In seconds.
#[derive(Clone, Copy)]
struct Copy {
    time: f64,
    cpu: f64,
    registries: f64,
}

fn middle(copies: &[Copy]) -> Copy {
    let of = |what: fn(&Copy) -> f64| median(copies.iter().map(what).collect());
    Copy {
        time: of(|copy| copy.time),
        cpu: of(|copy| copy.cpu),
        registries: of(|copy| copy.registries),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Copier {
    Tidegate,
    Skopeo,
    Bare,
}

impl Copier {
    fn name(self) -> &'static str {
        match self {
            Self::Tidegate => "tidegate mirror",
            Self::Skopeo => "skopeo copy --all",
            Self::Bare => "four bare threads",
        }
    }

    fn copy(self, folder: &Path, source: &Server, image: &Image) -> Copy {
        let target = open_registry(folder);
        source.wait_until_quiet();
        let before = source.cpu() + target.cpu();
        let start = Instant::now();
        let cpu = match self.command(folder, source, &target, &image.repository) {
            Some(command) => run(command, &folder.join("copier.log")),
            None => bare(source, &target, image),
        };
        let time = start.elapsed();
        let registries = (source.cpu() + target.cpu()).saturating_sub(before);
        Copy {
            time: time.as_secs_f64(),
            cpu: cpu.as_secs_f64(),
            registries: registries.as_secs_f64(),
        }
    }

    fn command(
        self,
        folder: &Path,
        source: &Server,
        target: &Server,
        repository: &str,
    ) -> Option<Command> {
        let image = format!("{}/{repository}:v1", source.address);
        match self {
            Self::Tidegate => {
                let config = folder.join("mirror.toml");
                let registries: String = [source, target]
                    .iter()
                    .map(|registry| {
                        format!(
                            "[registry.\"{}\"]\ninsecure = true\nallow_private = true\n",
                            registry.address
                        )
                    })
                    .collect();
                fs::write(&config, registries).expect("a writable folder");
                let mut command = Command::new(tidegate_binary());
                command
                    .args([
                        "mirror",
                        &image,
                        &format!("{}/{repository}", target.address),
                    ])
                    .arg("--config")
                    .arg(config);
                Some(command)
            }
            Self::Skopeo => {
                let mut command = Command::new("skopeo");
                command
                    .args(["--insecure-policy", "--tmpdir"])
                    .arg(folder)
                    .args([
                        "copy",
                        "--all",
                        "--quiet",
                        "--src-tls-verify=false",
                        "--dest-tls-verify=false",
                    ])
                    .arg(format!("docker://{image}"))
                    .arg(format!("docker://{}/{repository}:v1", target.address));
                Some(command)
            }
            Self::Bare => None,
        }
    }
}

/// Empty, and everybody may push.
fn open_registry(folder: &Path) -> Server {
    docker_registry_with(folder, Cores::All, "").expect("docker-registry is installed")
}

/// Returns the CPU it has used.
fn run(mut command: Command, log: &Path) -> Duration {
    let file = File::create(log).expect("a writable folder");
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone().expect("a second handle"))
        .stderr(file);
    let child = command.spawn().expect("the copier starts");
    let (has_succeeded, cpu) = sys::wait_for(child).expect("a child of ours");
    let said = fs::read_to_string(log).unwrap_or_default();
    assert!(has_succeeded, "{command:?} failed:\n{said}");
    cpu
}

/// Layers only.
fn bare(source: &Server, target: &Server, image: &Image) -> Duration {
    let layers = Mutex::new(image.layers.iter());
    let work = || {
        let before = sys::own_cpu_time();
        loop {
            let next = layers.lock().expect("no panic holds it").next();
            let Some((digest, size)) = next else { break };
            move_layer(
                source.address,
                target.address,
                &image.repository,
                digest,
                *size,
            )
            .unwrap_or_else(|error| panic!("{digest}: {error}"));
        }
        sys::own_cpu_time() - before
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        let used = threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"));
        used.sum()
    })
}

fn move_layer(
    source: SocketAddr,
    target: SocketAddr,
    repository: &str,
    digest: &str,
    size: u64,
) -> io::Result<()> {
    let ask = |stream: &mut TcpStream, method: &str, path: &str, length: u64| {
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes())
    };
    let mut to = TcpStream::connect(target)?;
    to.set_nodelay(true)?;
    ask(
        &mut to,
        "POST",
        &format!("/v2/{repository}/blobs/uploads/"),
        0,
    )?;
    let upload = location(&mut to)?;
    let mut from = TcpStream::connect(source)?;
    from.set_nodelay(true)?;
    ask(
        &mut from,
        "GET",
        &format!("/v2/{repository}/blobs/{digest}"),
        0,
    )?;
    head(&mut from)?;
    ask(&mut to, "PATCH", &upload, size)?;
    // By splice: std knows that both are sockets.
    io::copy(&mut Read::take(&from, size), &mut &to)?;
    let upload = location(&mut to)?;
    ask(&mut to, "PUT", &format!("{upload}&digest={digest}"), 0)?;
    match head(&mut to)? {
        head if head.starts_with("HTTP/1.1 201 ") => Ok(()),
        head => Err(io::Error::other(head)),
    }
}

/// Of an upload, as the target has answered it.
fn location(stream: &mut TcpStream) -> io::Result<String> {
    let head = head(stream)?;
    let line = head
        .lines()
        .find_map(|line| line.strip_prefix("Location: "));
    let path = line.and_then(|url| url.split_once("/v2/"));
    let path = path.map(|(_, path)| format!("/v2/{path}"));
    path.ok_or_else(|| io::Error::other(head))
}

/// Not a byte further, since what follows is for splice.
fn head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// An image, or an index, whose layers nothing can compress.
fn push(
    folder: &Path,
    source: &Server,
    repository: &str,
    layers: usize,
    size: u64,
    platforms: &[&str],
) -> Image {
    let layout = folder.join("layout");
    fs::create_dir_all(layout.join("blobs/sha256")).expect("a writable folder");
    let mut all = Vec::new();
    let mut images = Vec::new();
    for platform in platforms {
        let layers: Vec<Value> = (0..layers)
            .map(|layer| {
                let layer = write_layer(&layout, &format!("{repository} {platform} {layer}"), size);
                let digest = layer
                    .get("digest")
                    .and_then(Value::as_str)
                    .map(str::to_owned);
                all.push((digest.unwrap_or_default(), size));
                layer
            })
            .collect();
        let diff_ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
        let config = write_json(
            &layout,
            "application/vnd.oci.image.config.v1+json",
            &json!({
                "architecture": platform, "os": "linux",
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
            }),
        );
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
        let image = write_json(&layout, media_type, &manifest);
        let platform = json!({"os": "linux", "architecture": platform});
        images.push(with(image, "platform", platform));
    }
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": images});
    let root = match images.as_slice() {
        [only] => only.clone(),
        _ => write_json(&layout, media_type, &index),
    };
    let name = json!({"org.opencontainers.image.ref.name": "image"});
    let root = with(root, "annotations", name);
    let list = json!({"schemaVersion": 2, "manifests": [root]});
    fs::write(layout.join("index.json"), list.to_string()).expect("a writable folder");
    fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .expect("a writable folder");
    let pushed = Command::new("skopeo")
        .args(["--insecure-policy", "--tmpdir"])
        .arg(folder)
        .args([
            "copy",
            "--all",
            "--preserve-digests",
            "--dest-tls-verify=false",
        ])
        .arg(format!("oci:{}:image", layout.display()))
        .arg(format!("docker://{}/{repository}:v1", source.address))
        .output()
        .expect("skopeo is installed");
    assert!(
        pushed.status.success(),
        "{}",
        String::from_utf8_lossy(&pushed.stderr)
    );
    fs::remove_dir_all(&layout).expect("our own folder");
    Image {
        repository: repository.to_owned(),
        layers: all,
    }
}

/// Looks like gzip, so that nobody compresses it, and is as good as random.
fn write_layer(layout: &Path, seed: &str, size: u64) -> Value {
    let growing = layout.join("layer");
    let mut file = BufWriter::new(File::create(&growing).expect("a writable folder"));
    let mut hash = Sha256::new();
    let mut piece = vec![0_u8; 1 << 16];
    let mut state = seed.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |state, byte| {
        (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut left = size;
    while left > 0 {
        for word in piece.chunks_exact_mut(8) {
            // xorshift64* of Vigna.
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            word.copy_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
        }
        if left == size {
            piece
                .iter_mut()
                .zip([0x1f, 0x8b, 8, 0])
                .for_each(|(to, byte)| *to = byte);
        }
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
        let bytes = piece.get(..count).unwrap_or_default();
        file.write_all(bytes).expect("a writable folder");
        hash.update(bytes);
        left -= count as u64;
    }
    file.into_inner()
        .map_err(io::IntoInnerError::into_error)
        .expect("a writable folder");
    let digest = hex(&hash.finalize());
    fs::rename(&growing, layout.join("blobs/sha256").join(&digest)).expect("a writable folder");
    json!({
        "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
        "digest": format!("sha256:{digest}"), "size": size,
    })
}

fn with(mut descriptor: Value, key: &str, value: Value) -> Value {
    if let Value::Object(fields) = &mut descriptor {
        fields.insert(key.to_owned(), value);
    }
    descriptor
}

fn write_json(layout: &Path, media_type: &str, value: &Value) -> Value {
    let bytes = value.to_string();
    let digest = hex(&Sha256::digest(&bytes));
    fs::write(layout.join("blobs/sha256").join(&digest), &bytes).expect("a writable folder");
    json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()})
}
