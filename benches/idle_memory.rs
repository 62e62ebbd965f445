//! How much memory does a connection take that does nothing, and one whose client reads slowly?
//!
//! ```sh
//! cargo bench --bench idle_memory
//! cargo bench --bench idle_memory -- --full               # 10000 idle connections too (8000 where `ulimit -Hn` is small)
//! ```
//!
//! Resident memory as the kernel counts it, so pages of mapped and cached files included where a server maps them. What
//! sockets hold inside the kernel is not in it.

mod support;

use serde_json::json;
use support::{
    client::{Load, idle_connections, stalled_connections},
    origin::{Blob, Origin},
    report::{Arguments, Report},
    servers::{Cores, Nginx, Server, Tidegate},
    sys,
    tls::Certificate,
};

const SMALL: u64 = 2 << 10;
const LARGE: u64 = 32 << 20;
const MIB: f64 = (1_u64 << 20) as f64;

fn main() {
    let arguments = Arguments::read();
    let mut report = Report::start("idle_memory", "resident memory per connection");
    let open_files = sys::raise_open_files();
    // A server may keep two files for each connection: a blob is open while it is sent.
    let most = if open_files >= 40_000 { 10_000 } else { 8_000 };
    let mut rows = vec![("idle", 1000), ("streaming to a slow reader", 200)];
    if arguments.is_full {
        rows.push(("idle", most));
        rows.push(("streaming to a slow reader", 1000));
    }
    rows.retain(|(what, count)| arguments.wants(&format!("{count} {what}")));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let origin = Origin::start(folder.path(), LARGE);
    let (small, large) = (origin.new_blob(SMALL), origin.new_blob(LARGE));
    let files = folder.path().join("files");
    std::fs::create_dir(&files).expect("a folder for the files");
    origin.write_blob(&small, &files);
    origin.write_blob(&large, &files);
    let certificate = Certificate::create(folder.path());
    for driver in &arguments.drivers {
        for tls in [None, Some(&certificate)] {
            let tidegate = Tidegate {
                origin: &origin,
                cores: Cores::All,
                driver,
                tls,
            };
            let start = |name| match name {
                "tidegate" => tidegate.start(folder.path()).map(Some),
                _ => Ok(Nginx::Files(&files).start(folder.path(), Cores::All, tls)),
            };
            // Whether it starts at all; each row starts its own.
            match start("tidegate").map(drop) {
                Ok(()) => {
                    report.note(&format!(
                        "{}, driver {driver}:",
                        if tls.is_some() { "TLS 1.3" } else { "plain" }
                    ));
                    table(&rows, &mut report, &start, &small, &large, tls.is_some());
                }
                Err(why) => report.note(&format!("left out: {why}")),
            }
        }
    }
}

/// Every figure is of a fresh process: what was once taken from the system often stays with the process.
fn table(
    rows: &[(&str, usize)],
    report: &mut Report,
    start: &dyn Fn(&'static str) -> Result<Option<Server>, String>,
    small: &Blob,
    large: &Blob,
    is_tls: bool,
) {
    report.head(
        2,
        &[
            "connections",
            "server",
            "RSS before MiB",
            "RSS with them MiB",
            "KiB per connection",
        ],
    );
    for &(what, count) in rows {
        let name = format!("{count} {what}");
        for server in ["tidegate", "nginx"] {
            let Ok(Some(server)) = start(server) else {
                continue;
            };
            let target = server.target();
            for blob in [small, large] {
                Load::once(&target, 1, &server.get(blob));
                server.wait_until_stored(blob);
            }
            let before = server.resident();
            let connections = match what {
                "idle" => idle_connections(&target, &server.get(small), count),
                _ => stalled_connections(&target, &server.get(large), count),
            };
            server.wait_until_quiet();
            let with = server.resident();
            drop(connections);
            let each = with.saturating_sub(before) as f64 / count as f64;
            report.row(&[
                if server.name.starts_with("tidegate") {
                    name.clone()
                } else {
                    String::new()
                },
                server.name.to_owned(),
                format!("{:.1}", before as f64 / MIB),
                format!("{:.1}", with as f64 / MIB),
                format!("{:.1}", each / 1024.0),
            ]);
            report.record(json!({
                "row": name, "server": server.name, "driver": server.driver(), "tls": is_tls, "connections": count,
                "before_bytes": before, "with_bytes": with, "bytes_per_connection": each,
            }));
        }
    }
}
