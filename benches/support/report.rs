//! What was asked of a bench, and where its figures go.

use std::{
    env,
    fs::{self, OpenOptions},
    io::Write as _,
    process, thread,
};

use serde_json::{Map, Value, json};

/// The arguments after `--`.
pub struct Arguments {
    /// All of it, and not only what fits in a quarter of an hour.
    pub is_full: bool,
    /// `auto`, or what was asked for.
    pub drivers: Vec<String>,
    /// The server on the first core, all clients on the second.
    pub on_one_core: bool,
    filters: Vec<String>,
}

const USAGE: &str = "\
cargo bench --bench BENCH -- [NAME]… [--full] [--one-core] [--driver io_uring|epoll|auto|both]
NAME: only rows that contain it. benches/README.md says what is measured, and how to read it.";

impl Arguments {
    pub fn read() -> Self {
        let mut read = Self {
            is_full: false,
            drivers: Vec::new(),
            on_one_core: false,
            filters: Vec::new(),
        };
        let mut arguments = env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--full" => read.is_full = true,
                "--one-core" => read.on_one_core = true,
                "--driver" => match arguments.next().as_deref() {
                    Some("both") => read.drivers = vec!["io_uring".to_owned(), "epoll".to_owned()],
                    Some(driver) => read.drivers = vec![driver.to_owned()],
                    None => panic!("--driver io_uring, epoll, auto or both"),
                },
                "--help" | "-h" => {
                    println!("{USAGE}");
                    process::exit(0);
                }
                // What cargo passes.
                "--bench" => {}
                other if other.starts_with("--") => {
                    eprintln!("{other} is unknown\n{USAGE}");
                    process::exit(2);
                }
                name => read.filters.push(name.to_owned()),
            }
        }
        if read.drivers.is_empty() {
            read.drivers.push("auto".to_owned());
        }
        read
    }

    /// Whether a row of this name is wanted: every row if no name was given.
    pub fn wants(&self, row: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| row.contains(filter))
    }
}

/// Tables for people on standard output; with `BENCH_JSON=file` one line of JSON for each row at the end of that file.
pub struct Report {
    bench: &'static str,
    machine: Value,
    lines: Option<fs::File>,
}

impl Report {
    /// Servers and clients, one machine.
    pub fn start(bench: &'static str, what: &str) -> Self {
        let congestion = read("/proc/sys/net/ipv4/tcp_congestion_control");
        let setting = format!(
            "servers and clients together, loopback, TCP congestion control {congestion} for all"
        );
        Self::begin(
            bench,
            what,
            &setting,
            json!({ "congestion_control": congestion }),
        )
    }

    /// Nothing but this process: a part of tidegate without its server.
    pub fn start_without_servers(bench: &'static str, what: &str) -> Self {
        let setting = "one process without a server, so on no driver";
        Self::begin(bench, what, setting, json!({ "driver": null }))
    }

    fn begin(bench: &'static str, what: &str, setting: &str, of_setting: Value) -> Self {
        let cpu = first_field("/proc/cpuinfo", "model name");
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let kernel = read("/proc/sys/kernel/osrelease");
        println!("## {bench}: {what}\n");
        println!(
            "{cores} cores of {cpu}, Linux {kernel}, {setting}, tidegate {}, {}\n",
            env!("CARGO_PKG_VERSION"),
            if cfg!(debug_assertions) {
                "UNOPTIMISED: figures mean nothing"
            } else {
                "release build"
            },
        );
        let mut machine = json!({
            "cpu": cpu, "cores": cores, "kernel": kernel, "is_optimised": !cfg!(debug_assertions),
        });
        if let (Value::Object(machine), Value::Object(of_setting)) = (&mut machine, of_setting) {
            machine.extend(of_setting);
        }
        let lines = env::var_os("BENCH_JSON").map(|path| {
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(&path)
                .unwrap_or_else(|error| panic!("BENCH_JSON={}: {error}", path.display()))
        });
        Self {
            bench,
            machine,
            lines,
        }
    }

    /// A table's head; the first `words` columns hold no figures.
    pub fn head(&self, words: usize, columns: &[&str]) {
        println!("\n| {} |", columns.join(" | "));
        let kinds: Vec<&str> = (0..columns.len())
            .map(|column| if column < words { "---" } else { "---:" })
            .collect();
        println!("|{}|", kinds.join("|"));
    }

    pub fn row(&self, cells: &[String]) {
        println!("| {} |", cells.join(" | "));
    }

    pub fn note(&self, text: &str) {
        println!("\n{text}");
    }

    /// The machine-readable copy of a row: an object of its figures, in seconds, bytes and ratios.
    pub fn record(&mut self, figures: Value) {
        let Some(file) = &mut self.lines else {
            return;
        };
        let mut line = Map::new();
        line.insert("bench".to_owned(), json!(self.bench));
        if let Value::Object(figures) = figures {
            line.extend(figures);
        }
        line.insert("machine".to_owned(), self.machine.clone());
        writeln!(file, "{}", Value::Object(line)).expect("BENCH_JSON can be written");
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn first_field(path: &str, name: &str) -> String {
    read(path)
        .lines()
        .find_map(|line| {
            let (field, value) = line.split_once(':')?;
            (field.trim() == name).then(|| value.trim().to_owned())
        })
        .unwrap_or_else(|| "an unknown processor".to_owned())
}

/// `2 KiB`
pub fn size_name(bytes: u64) -> String {
    match bytes {
        bytes if bytes >= 1 << 30 => format!("{} GiB", bytes >> 30),
        bytes if bytes >= 1 << 20 => format!("{} MiB", bytes >> 20),
        bytes => format!("{} KiB", bytes >> 10),
    }
}

/// The middle of them.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    super::quantile(&values, 0.5)
}
