//! How many names are given out, and how long does one take? `POST /v1alpha2/container`, with everything known that can be.
//!
//! ```sh
//! cargo bench --bench submit
//! ```
//!
//! The image is in a docker-registry, which is asked for its manifest each time; that this registry answers a GET of it directly
//! is the floor. The callers are nobody in particular, and a Seqera Platform's user, whose login the Platform has told before
//! and whose token for the registry is good still. A name is on disk before it is given out.

mod support;

use std::{
    io::{BufReader, Write as _},
    net::{SocketAddr, TcpListener},
    path::Path,
    thread,
    time::Duration,
};

use serde_json::json;
use sha2::{Digest as _, Sha256};
use support::{
    client::{Figures, Get, Load, Target},
    origin::{MANIFEST, Origin, hex, read_head},
    platform::Platform,
    report::{Arguments, Report},
    servers::{Cores, Server, Tidegate, docker_registry_with},
};

const CONNECTIONS: [usize; 3] = [1, 16, 64];
const ROUNDS: usize = 3;
const WARM_UP: Duration = Duration::from_millis(500);
const WINDOW: Duration = Duration::from_secs(2);
const TOKEN: &str = "token-of-the-bench";
const REPOSITORY: &str = "bench/app";
const AUTHORIZATION: &str = "Authorization: Bearer bench\r\n";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

fn main() {
    let arguments = Arguments::read();
    let mut report = Report::start("submit", "names for images of a registry");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let Some(platform) = Platform::start() else {
        return;
    };
    // It takes every token; each request must have one, and whoever has none is told where to get it.
    let auth = format!(
        "auth:\n  silly:\n    realm: http://{}/token\n    service: bench\n",
        token_realm()
    );
    let Some(registry) = docker_registry_with(folder.path(), Cores::All, &auth) else {
        println!("left out: docker-registry is not installed");
        return;
    };
    let manifest = push(&registry.target());
    platform.add_user(TOKEN, registry.address);
    let origin = Origin::start(folder.path(), 1 << 20);
    println!("{ROUNDS} rounds of {WINDOW:?} each, in turns");
    for driver in &arguments.drivers {
        let server = serve(&origin, &registry, &platform, driver, folder.path());
        table(&mut report, &arguments, &server, &registry, &manifest);
    }
}

fn serve(
    origin: &Origin,
    registry: &Server,
    platform: &Platform,
    driver: &str,
    folder: &Path,
) -> Server {
    let tidegate = Tidegate {
        origin,
        cores: Cores::All,
        driver,
        tls: None,
    };
    let settings = format!(
        "[registry.\"{}\"]\ninsecure = true\nallow_private = true\n{}remember = \"1h\"\n",
        registry.address,
        Platform::settings()
    );
    let server = tidegate.start_with(folder, &settings);
    let server = server.expect("tidegate without TLS");
    platform.pair(&server);
    server
}

fn table(
    report: &mut Report,
    arguments: &Arguments,
    server: &Server,
    registry: &Server,
    manifest: &Get,
) {
    report.note(&format!("tidegate on {}:", server.driver()));
    report.head(
        1,
        &[
            "caller",
            "connections",
            "names/s",
            "p50 ms",
            "p99 ms",
            "CPU µs a name",
            "the registry's GETs/s",
            "its p99 ms",
        ],
    );
    for (caller, token) in [
        ("nobody in particular", None),
        ("a Platform's user", Some(TOKEN)),
    ] {
        if !arguments.wants(caller) {
            continue;
        }
        let submit = submission(server, registry.address, token);
        for connections in CONNECTIONS {
            let (mut names, mut floor) = (Figures::default(), Figures::default());
            for _ in 0..ROUNDS {
                let load = Load::of(&server.target(), connections, &submit);
                names.add(load.start().measure(server, WARM_UP, WINDOW));
                let load = Load::of(&registry.target(), connections, manifest);
                floor.add(load.start().measure(registry, WARM_UP, WINDOW));
            }
            row(report, server, caller, connections, &names, &floor);
        }
    }
}

fn row(
    report: &mut Report,
    server: &Server,
    caller: &str,
    connections: usize,
    names: &Figures,
    floor: &Figures,
) {
    let [p50, p99] = names.quantiles([0.5, 0.99]);
    let [floor_p99] = floor.quantiles([0.99]);
    report.row(&[
        caller.to_owned(),
        connections.to_string(),
        format!("{:.0}", names.requests_per_second()),
        format!("{:.2}", p50 * 1e3),
        format!("{:.2}", p99 * 1e3),
        format!("{:.0}", names.cpu_per_request() * 1e6),
        format!("{:.0}", floor.requests_per_second()),
        format!("{:.2}", floor_p99 * 1e3),
    ]);
    report.record(json!({
        "row": caller, "connections": connections, "driver": server.driver(),
        "names_per_second": names.requests_per_second(), "p50_seconds": p50, "p99_seconds": p99,
        "cpu_seconds_a_name": names.cpu_per_request(),
        "registry_per_second": floor.requests_per_second(), "registry_p99_seconds": floor_p99,
    }));
}

/// Asked once, so that what can be known is known, and to see how large the answer is: tokens and instants have one size.
fn submission(server: &Server, registry: SocketAddr, token: Option<&str>) -> Get {
    let body =
        json!({"containerImage": format!("{registry}/{REPOSITORY}:v1"), "towerAccessToken": token})
            .to_string();
    let answer = server.target().post("/v1alpha2/container", &body);
    let answer = answer.expect("an answer");
    assert!(
        answer.starts_with("HTTP/1.1 200 "),
        "{answer}\n{}",
        server.log()
    );
    let size = answer
        .split_once("\r\n\r\n")
        .map_or(0, |(_, body)| body.len() as u64);
    Get::post(server.address, "/v1alpha2/container", &body, size)
}

/// Puts an image without layers there.
fn push(registry: &Target) -> Get {
    let config = "{}";
    let send = |method: &str, path: &str, kind: &str, body: &str| {
        let fields = format!("{AUTHORIZATION}Content-Type: {kind}\r\n");
        let answer = registry.send(method, path, &fields, body);
        let answer = answer.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 20"), "{path}: {answer}");
        answer
    };
    let begun = send(
        "POST",
        &format!("/v2/{REPOSITORY}/blobs/uploads/"),
        "text/plain",
        "",
    );
    let upload = begun.lines().find_map(|line| {
        let (name, place) = line.split_once(": ")?;
        let (_, path) = place.split_once("://")?.1.split_once('/')?;
        name.eq_ignore_ascii_case("location")
            .then(|| format!("/{path}"))
    });
    let upload = upload.unwrap_or_else(|| panic!("no place to upload to in {begun}"));
    let digest = hex(&Sha256::digest(config));
    send(
        "PUT",
        &format!("{upload}&digest=sha256:{digest}"),
        "application/octet-stream",
        config,
    );
    let path = format!("/v2/{REPOSITORY}/manifests/v1");
    send("PUT", &path, MANIFEST_TYPE, MANIFEST);
    let fields = format!("{AUTHORIZATION}Accept: {MANIFEST_TYPE}\r\n");
    Get::with_fields(registry.address, &path, &fields, &Origin::manifest())
}

/// Gives a token to everybody, for an hour.
fn token_realm() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream);
            while let Ok(Some(_)) = read_head(&mut reader) {
                let answer = "HTTP/1.1 200 OK\r\nContent-Length: 35\r\n\r\n{\"token\":\"bench\",\"expires_in\":3600}";
                if reader.get_mut().write_all(answer.as_bytes()).is_err() {
                    break;
                }
            }
        }
    });
    address
}
