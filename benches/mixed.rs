//! How long do small hot blobs wait while large ones come from the disk, or are filled, on the same core?
//!
//! ```sh
//! cargo bench --bench mixed
//! cargo bench --bench mixed -- evicted                    # one part: "idle", "evicted" or "filled"
//! cargo bench --bench mixed -- --driver both
//! ```
//!
//! The server has the first core, origin and clients the second. Eight connections ask for 2 KiB in a closed loop.
//! Beside them four connections read 32 MiB blobs whose pages are dropped from memory before each read, or which
//! nobody has fetched before. The folder must be on a disk (`TMPDIR`): the pages of a tmpfs cannot be dropped.

mod support;

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use support::{
    GIB,
    client::{Figures, Load, Next},
    origin::{Blob, Origin},
    pause,
    report::{Arguments, Report},
    servers::{Cores, Nginx, Server, Tidegate},
    sys,
};

const HOT: u64 = 2 << 10;
const HOT_CONNECTIONS: usize = 8;
const COLD: u64 = 32 << 20;
const COLD_CONNECTIONS: usize = 4;
/// Each cold connection reads its own in turn.
const COLD_BLOBS: usize = 2;
const ROUNDS: usize = 3;
const WARM_UP: Duration = Duration::from_millis(500);
const WINDOW: Duration = Duration::from_secs(2);

fn main() {
    let arguments = Arguments::read();
    let mut report = Report::start("mixed", "hot 2 KiB hits beside large cold reads and fills");
    sys::stay_on_core(1).expect("a second core for the clients");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let origin = Origin::start_in_background(folder.path(), COLD);
    let hot = origin.new_blob(HOT);
    let cold: Vec<Blob> = (0..COLD_CONNECTIONS * COLD_BLOBS)
        .map(|_| origin.new_blob(COLD))
        .collect();
    let files = folder.path().join("files");
    std::fs::create_dir(&files).expect("a folder for the files");
    for blob in cold.iter().chain([&hot]) {
        origin.write_blob(blob, &files);
    }
    println!(
        "{ROUNDS} rounds of {WINDOW:?} each, in turns; servers on one core, origin and clients on another; latency to the last byte"
    );
    for driver in &arguments.drivers {
        let cores = Cores::Only(0);
        let tidegate = Tidegate {
            origin: &origin,
            cores,
            driver,
            tls: None,
        };
        let mut servers = vec![tidegate.start(folder.path()).expect("tidegate without TLS")];
        match Nginx::Files(&files).start(folder.path(), cores, None) {
            Some(nginx) => servers.push(nginx),
            None => println!("\nleft out: nginx is not installed (apt-get install nginx-light)"),
        }
        if arguments.is_full {
            servers.extend(Nginx::FilesWithThreads(&files).start(folder.path(), cores, None));
        }
        // Fills run through proxies only.
        let proxy = Nginx::Proxy(&origin).start(folder.path(), cores, None);
        let scene = Scene {
            origin: &origin,
            hot: &hot,
            cold: &cold,
            files: &files,
        };
        let mut table = Table::start(&mut report, &servers);
        for part in [Part::Idle, Part::Evicted, Part::Filled] {
            if !arguments.wants(part.name()) {
                continue;
            }
            let servers: Vec<&Server> = match part {
                Part::Filled => servers.iter().take(1).chain(&proxy).collect(),
                Part::Idle => servers.iter().chain(&proxy).collect(),
                Part::Evicted => servers.iter().collect(),
            };
            table.part(&scene, part, &servers);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Idle,
    Evicted,
    Filled,
}

impl Part {
    const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Evicted => "beside 4 reads of evicted 32 MiB",
            Self::Filled => "beside 4 reads of 32 MiB being filled",
        }
    }
}

struct Scene<'a> {
    origin: &'a Origin,
    hot: &'a Blob,
    cold: &'a [Blob],
    files: &'a Path,
}

#[derive(Clone, Default)]
struct Seen {
    hot: Figures,
    cold_bytes: f64,
    /// Of the pages that were to be dropped, how many stayed.
    stayed: f64,
}

impl Scene<'_> {
    fn measure(&self, server: &Server, part: Part) -> Seen {
        let (target, hot) = (server.target(), server.get(self.hot));
        self.origin.touch();
        Load::once(&target, 1, &hot);
        server.wait_until_stored(self.hot);
        let stayed = Arc::new(AtomicU64::new(0));
        let asked = Arc::new(AtomicU64::new(0));
        let next: Option<Next> = match part {
            Part::Idle => None,
            Part::Evicted => Some(self.evicting(server, &stayed, &asked)),
            Part::Filled => Some(self.filling(server)),
        };
        let cold = next.map(|next| {
            Load {
                target: target.clone(),
                connections: COLD_CONNECTIONS,
                threads: 1,
                next,
                // The hot clients are what is measured: these must not keep them from their core.
                is_background: true,
            }
            .start()
        });
        let hot = Load::of(&target, HOT_CONNECTIONS, &hot).start();
        pause(WARM_UP);
        let before = cold.as_ref().map(support::client::Running::bytes);
        let hot = hot.measure(server, Duration::ZERO, WINDOW);
        let cold_bytes = cold
            .as_ref()
            .map(support::client::Running::bytes)
            .unwrap_or_default()
            - before.unwrap_or_default();
        if let Some(cold) = cold {
            cold.stop();
        }
        let pages = asked.load(Ordering::Relaxed) as f64 * (COLD >> 12) as f64;
        // What was cut goes on for a moment.
        server.wait_until_quiet();
        Seen {
            hot,
            cold_bytes: cold_bytes as f64,
            stayed: if pages > 0.0 {
                stayed.load(Ordering::Relaxed) as f64 / pages
            } else {
                0.0
            },
        }
    }

    /// Drops the pages of a blob right before it is asked for.
    fn evicting(&self, server: &Server, stayed: &Arc<AtomicU64>, asked: &Arc<AtomicU64>) -> Next {
        let mut known = Vec::new();
        for blob in self.cold {
            Load::once(&server.target(), 1, &server.get(blob));
            server.wait_until_stored(blob);
            let path: PathBuf = server
                .stored(blob)
                .unwrap_or_else(|| self.files.join(&blob.digest));
            let file = File::open(path).expect("the blob's file");
            // Only clean pages can be dropped.
            file.sync_all().expect("the blob is on the disk");
            known.push((file, server.get(blob)));
        }
        let turns: Vec<AtomicU64> = (0..COLD_CONNECTIONS).map(|_| AtomicU64::new(0)).collect();
        let (stayed, asked) = (Arc::clone(stayed), Arc::clone(asked));
        Arc::new(move |connection| {
            let turn = turns.get(connection)?.fetch_add(1, Ordering::Relaxed);
            let turn = usize::try_from(turn).ok()? % COLD_BLOBS;
            let (file, get) = known.get(connection * COLD_BLOBS + turn)?;
            sys::drop_from_page_cache(file);
            stayed.fetch_add(
                sys::cached_pages(file).unwrap_or_default(),
                Ordering::Relaxed,
            );
            asked.fetch_add(1, Ordering::Relaxed);
            Some(get.clone())
        })
    }

    /// Blobs that nobody has fetched before, more than any window needs.
    fn filling(&self, server: &Server) -> Next {
        const MOST: usize = 1000;
        let gets: Vec<_> = (0..MOST)
            .map(|_| server.get(&self.origin.new_blob(COLD)))
            .collect();
        let place = AtomicU64::new(0);
        Arc::new(move |_| {
            let place = place.fetch_add(1, Ordering::Relaxed);
            gets.get(usize::try_from(place).ok()?).cloned()
        })
    }
}

struct Table<'a> {
    report: &'a mut Report,
    driver: String,
    /// p99 of each server with nothing beside.
    idle: Vec<(&'static str, f64)>,
}

impl<'a> Table<'a> {
    fn start(report: &'a mut Report, servers: &[Server]) -> Self {
        let driver = servers.first().map_or_else(String::new, Server::driver);
        report.note(&format!("tidegate on {driver}:"));
        report.head(
            2,
            &[
                "hot 2 KiB hits",
                "server",
                "p50 ms",
                "p99 ms",
                "p99.9 ms",
                "requests/s",
                "beside it GiB/s",
                "pages that stayed",
                "p99 ÷ its idle p99",
                "tidegate ÷ it: p99",
            ],
        );
        Self {
            report,
            driver,
            idle: Vec::new(),
        }
    }

    fn part(&mut self, scene: &Scene<'_>, part: Part, servers: &[&Server]) {
        let mut sums = vec![Seen::default(); servers.len()];
        for _ in 0..ROUNDS {
            for (server, sum) in servers.iter().zip(&mut sums) {
                let seen = scene.measure(server, part);
                sum.hot.add(seen.hot);
                sum.cold_bytes += seen.cold_bytes;
                sum.stayed += seen.stayed / ROUNDS as f64;
            }
        }
        let ours = sums
            .first()
            .map(|seen| seen.hot.quantiles([0.99]))
            .unwrap_or_default();
        for (place, (server, seen)) in servers.iter().zip(&sums).enumerate() {
            let [p50, p99, p999] = seen.hot.quantiles([0.5, 0.99, 0.999]);
            if part == Part::Idle {
                self.idle.push((server.name, p99));
            }
            let to_idle = self
                .idle
                .iter()
                .find(|(name, _)| *name == server.name)
                .map(|(_, idle)| p99 / idle);
            let [our_p99] = ours;
            let to_it = (place > 0).then(|| our_p99 / p99);
            let cold = seen.cold_bytes / GIB / seen.hot.seconds;
            let is_idle = part == Part::Idle;
            let or_dash = |value: Option<f64>| {
                value.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"))
            };
            self.report.row(&[
                if place == 0 {
                    part.name().to_owned()
                } else {
                    String::new()
                },
                server.name.to_owned(),
                format!("{:.2}", p50 * 1e3),
                format!("{:.2}", p99 * 1e3),
                format!("{:.2}", p999 * 1e3),
                format!("{:.0}", seen.hot.requests_per_second()),
                or_dash((!is_idle).then_some(cold)),
                if part == Part::Evicted {
                    format!("{:.1} %", seen.stayed * 1e2)
                } else {
                    "–".to_owned()
                },
                or_dash(to_idle),
                or_dash(to_it),
            ]);
            self.report.record(json!({
                "row": part.name(), "server": server.name, "driver": self.driver,
                "p50_seconds": p50, "p99_seconds": p99, "p999_seconds": p999,
                "requests_per_second": seen.hot.requests_per_second(),
                "cold_bytes_per_second": seen.cold_bytes / seen.hot.seconds,
                "pages_that_stayed": seen.stayed,
                "p99_to_idle": to_idle, "tidegate_to_it_p99": to_it,
            }));
        }
    }
}
