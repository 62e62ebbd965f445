//! Are cached pulls slower while a Seqera Platform does not answer?
//!
//! ```sh
//! cargo bench --bench platform_stalled
//! cargo bench --bench platform_stalled -- --driver both
//! ```
//!
//! Eight connections pull a cached 2 KiB blob, and then a cached manifest, in a closed loop, with a name that a Platform's user
//! got. Meanwhile 64 clients ask for names with tokens that only the Platform can tell: it answers at once, or not at all. Needs Debian's
//! `python3-websockets` and `python3-cryptography`, for the Platform of the tests.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use serde_json::json;
use support::{
    client::{Figures, Get, Load, Target},
    origin::{Blob, Origin},
    platform::Platform,
    report::{Arguments, Report},
    servers::{Cores, Server, Tidegate},
};

const HOT: u64 = 2 << 10;
const CONNECTIONS: usize = 8;
const STRANGERS: usize = 64;
const ROUNDS: usize = 3;
const WARM_UP: Duration = Duration::from_millis(500);
const WINDOW: Duration = Duration::from_secs(3);
const TOKEN: &str = "token-of-the-bench";

fn main() {
    let arguments = Arguments::read();
    let mut report = Report::start(
        "platform_stalled",
        "cached pulls while a Platform does not answer",
    );
    let Some(platform) = Platform::start() else {
        return;
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let origin = Origin::start(folder.path(), 1 << 20);
    let hot = origin.new_blob(HOT);
    platform.add_user(TOKEN, origin.address);
    println!("{ROUNDS} rounds of {WINDOW:?} each, in turns; latency to the last byte");
    for driver in &arguments.drivers {
        let server = serve(&origin, &platform, driver, folder.path());
        table(&mut report, &platform, &server, &hot);
    }
}

fn serve(origin: &Origin, platform: &Platform, driver: &str, folder: &std::path::Path) -> Server {
    let tidegate = Tidegate {
        origin,
        cores: Cores::All,
        driver,
        tls: None,
    };
    let settings = Platform::settings() + "request_timeout = \"1s\"\ncall_timeout = \"2s\"\n";
    let mut server = tidegate
        .start_with(folder, &settings)
        .expect("tidegate without TLS");
    platform.pair(&server);
    server.ask_for_name(origin, &format!("\"towerAccessToken\": \"{TOKEN}\","));
    server
}

fn table(report: &mut Report, platform: &Platform, server: &Server, hot: &Blob) {
    let blob = server.get(hot);
    Load::once(&server.target(), 1, &blob);
    server.wait_until_stored(hot);
    let manifest = server.get_manifest(&Origin::manifest());
    Load::once(&server.target(), 1, &manifest);
    report.note(&format!("tidegate on {}:", server.driver()));
    report.head(
        2,
        &[
            "cached",
            "the Platform",
            "hits/s",
            "p50 ms",
            "p50 ÷ healthy",
            "p99 ms",
            "p99 ÷ healthy",
        ],
    );
    let mut pending = 0;
    for (what, hit) in [("blob", &blob), ("manifest", &manifest)] {
        let seen = measure(platform, server, hit, &mut pending);
        rows(report, server, what, &seen);
    }
    report.note(&format!(
        "{} of {STRANGERS} strangers' requests were waiting at the end of a stalled round",
        pending / (2 * ROUNDS),
    ));
}

/// With the Platform as it should be, and stalled.
fn measure(platform: &Platform, server: &Server, hit: &Get, pending: &mut usize) -> [Figures; 2] {
    let mut seen = [Figures::default(), Figures::default()];
    let [healthy, stalled] = &mut seen;
    let before = *pending;
    let load = || Load::of(&server.target(), CONNECTIONS, hit).start();
    for _ in 0..ROUNDS {
        let strangers = Strangers::start(&server.target());
        healthy.add(load().measure(server, WARM_UP, WINDOW));
        strangers.stop();
        platform.order("hold", &json!({"path": "/"}));
        let strangers = Strangers::start(&server.target());
        stalled.add(load().measure(server, WARM_UP, WINDOW));
        *pending += strangers.pending();
        platform.order("release", &json!({"path": "/"}));
        strangers.stop();
    }
    assert!(*pending > before, "nobody waited for the Platform");
    seen
}

fn rows(report: &mut Report, server: &Server, what: &str, [healthy, stalled]: &[Figures; 2]) {
    let [base_p50, base_p99] = healthy.quantiles([0.5, 0.99]);
    for (name, figures) in [("answers", healthy), ("does not answer", stalled)] {
        let [p50, p99] = figures.quantiles([0.5, 0.99]);
        report.row(&[
            what.to_owned(),
            name.to_owned(),
            format!("{:.0}", figures.requests_per_second()),
            format!("{:.2}", p50 * 1e3),
            format!("{:.2}", p50 / base_p50),
            format!("{:.2}", p99 * 1e3),
            format!("{:.2}", p99 / base_p99),
        ]);
        report.record(json!({
            "row": name, "cached": what, "driver": server.driver(),
            "hits_per_second": figures.requests_per_second(), "p50_seconds": p50, "p99_seconds": p99,
            "p50_to_healthy": p50 / base_p50, "p99_to_healthy": p99 / base_p99,
        }));
    }
}

/// Clients whose tokens only the Platform can tell, each with another request as soon as it is answered.
struct Strangers {
    is_over: Arc<AtomicBool>,
    waiting: Arc<AtomicUsize>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Strangers {
    fn start(target: &Target) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let waiting = Arc::new(AtomicUsize::new(0));
        let threads = (0..STRANGERS).map(|stranger| {
            let (target, is_over, waiting) =
                (target.clone(), Arc::clone(&is_over), Arc::clone(&waiting));
            thread::spawn(move || {
                let mut number = 0_u64;
                while !is_over.load(Ordering::Relaxed) {
                    number += 1;
                    let body = json!({"containerImage": "quay.io/acme/app:v1",
                        "towerAccessToken": format!("stranger-{stranger}-{number}")});
                    waiting.fetch_add(1, Ordering::Relaxed);
                    // Refused, or told to come back: both are answers.
                    let _ = target.post("/v1alpha2/container", &body.to_string());
                    waiting.fetch_sub(1, Ordering::Relaxed);
                    // The same pace in both cases.
                    support::pause(Duration::from_millis(500));
                }
            })
        });
        Self {
            threads: threads.collect(),
            is_over,
            waiting,
        }
    }

    fn pending(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    fn stop(self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("the client ends well");
        }
    }
}
