//! `tidegate jobs …`: the mirrors and freezes that a running server has to do, and the way to end one.

use std::{
    io::{self, Write},
    process::ExitCode,
    time::{Duration, SystemTime},
};

use clap::{Subcommand, ValueEnum};
use serde::de::IgnoredAny;

use super::{
    print_line,
    server::{AskError, Server, Whereabouts},
};
use crate::{
    api::{JOBS_GUARD, UnfinishedJob},
    mirror::jobs::JobId,
    telemetry::log::OneLine,
    units::ByteSize,
};

const LS_EXAMPLES: &str = "\
Examples:
  tidegate jobs ls
  tidegate jobs ls -o json | jq -r '.[] | select(.attempts > 1) | .id'
      Those that did not come about at once.

-o json is an array of {id, kind, tenant, source, target, created, attempts, items, items_done, bytes, bytes_done}, oldest first.
A job without an attempt waits for its turn (mirror.max_running, mirror.max_running_per_tenant). What became of one that is over
says the server's /view/mirrors/ID or /view/builds/ID.";

const END_EXAMPLES: &str = "\
Examples:
  tidegate jobs end mr-3f2b9c1d7e50
  tidegate jobs ls -o json | jq -r '.[] | select(.tenant | endswith(\"workspace 7\")) | .id' | xargs tidegate jobs end

Whoever waits for it is told that it was cancelled. What it has transferred stays at the target; the tag is not set.";

/// Look at the mirrors and freezes that a server has to do, and end them.
#[derive(Subcommand)]
pub(super) enum Command {
    /// List those that wait and run.
    #[command(after_long_help = LS_EXAMPLES)]
    Ls(Ls),
    /// End some.
    #[command(after_long_help = END_EXAMPLES)]
    End(End),
}

#[derive(clap::Args)]
pub(super) struct Ls {
    #[command(flatten)]
    whereabouts: Whereabouts,

    /// For people or for programs
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(clap::Args)]
pub(super) struct End {
    /// As listed
    #[arg(required = true, value_name = "ID")]
    ids: Vec<JobId>,

    #[command(flatten)]
    whereabouts: Whereabouts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

pub(super) fn run(command: &Command) -> ExitCode {
    let whereabouts = match command {
        Command::Ls(Ls { whereabouts, .. }) | Command::End(End { whereabouts, .. }) => whereabouts,
    };
    let server = match whereabouts.server() {
        Ok(server) => server,
        Err(code) => return code,
    };
    match command {
        Command::Ls(ls) => list(&server, ls.output),
        Command::End(end) => end_all(&server, &end.ids),
    }
}

fn list(server: &Server, output: Output) -> ExitCode {
    let jobs: Vec<UnfinishedJob> = match server.ask("GET", "jobs", JOBS_GUARD, None) {
        Ok(jobs) => jobs,
        Err(error) => return failed(&error),
    };
    match output {
        Output::Json => print_line(&serde_json::to_string(&jobs).unwrap_or_default()),
        Output::Text => match table(&mut io::stdout().lock(), &jobs, SystemTime::now()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
    }
}

/// All that can be ended, even if one cannot.
fn end_all(server: &Server, ids: &[JobId]) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for id in ids {
        match server.ask::<IgnoredAny>("DELETE", &format!("jobs/{id}"), JOBS_GUARD, None) {
            Ok(_) => eprintln!("tidegate: {id} is ended"),
            Err(AskError::Refused { message, .. }) => {
                eprintln!("tidegate: {id}: {message}");
                code = ExitCode::FAILURE;
            }
            Err(error) => return failed(&error),
        }
    }
    code
}

fn failed(error: &AskError) -> ExitCode {
    eprintln!("tidegate: {error}{}", error.advice());
    ExitCode::FAILURE
}

fn table(to: &mut dyn Write, jobs: &[UnfinishedJob], now: SystemTime) -> io::Result<()> {
    if jobs.is_empty() {
        return writeln!(to, "no jobs");
    }
    let rows: Vec<[String; 5]> = jobs.iter().map(|job| row(job, now)).collect();
    let head = ["ID", "SINCE", "STATE", "TENANT", "TARGET"].map(str::to_owned);
    let all = || std::iter::once(&head).chain(&rows);
    let width = |column: usize| {
        let cells = all().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths = [width(0), width(1), width(2), width(3)];
    for [id, since, state, tenant, target] in all() {
        let [a, b, c, d] = widths;
        writeln!(
            to,
            "{id:<a$}  {since:>b$}  {state:<c$}  {tenant:<d$}  {target}"
        )?;
    }
    Ok(())
}

fn row(job: &UnfinishedJob, now: SystemTime) -> [String; 5] {
    let created = humantime::parse_rfc3339(&job.created).unwrap_or(now);
    let age = now.duration_since(created).unwrap_or_default();
    let state = match job.attempts {
        0 => "waits".to_owned(),
        attempts => {
            let again = match attempts {
                1 => String::new(),
                _ => format!(", attempt {attempts}"),
            };
            format!(
                "{} of {}, {} of {}{again}",
                job.items_done,
                job.items,
                ByteSize(job.bytes_done).rounded(),
                ByteSize(job.bytes).rounded()
            )
        }
    };
    // Tenants are named by others.
    let plain = |text: &str| OneLine(text.to_owned()).to_string();
    [
        plain(&job.id),
        humantime::format_duration(Duration::from_secs(age.as_secs())).to_string(),
        state,
        plain(&job.tenant),
        plain(&job.target),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let job = |id: &str, attempts, tenant: &str| UnfinishedJob {
            id: id.to_owned(),
            kind: "mirror".to_owned(),
            tenant: tenant.to_owned(),
            source: "quay.io/acme/app:v1".to_owned(),
            target: "r.example/kept/acme/app:v1".to_owned(),
            created: "2026-03-05T17:06:07Z".to_owned(),
            attempts,
            items: 5,
            items_done: 2,
            bytes: 3 << 20,
            bytes_done: 1 << 20,
        };
        let now = humantime::parse_rfc3339("2026-03-05T17:07:37Z").expect("a time");
        let shown = |jobs: &[UnfinishedJob]| {
            let mut text = Vec::new();
            table(&mut text, jobs, now).expect("memory takes it");
            String::from_utf8(text).expect("text")
        };
        let jobs = [
            job("mr-1", 0, "directory workspace 7"),
            job("bd-2", 2, "a\u{1b}[2J\nb"),
        ];
        let text = shown(&jobs);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(!text.contains('\u{1b}'), "{text:?}");
        let at = |line: &str, word: &str| line.find(word).map(|at| line[..at].chars().count());
        for line in &lines[1..] {
            assert_eq!(at(line, "r.example"), at(lines[0], "TARGET"), "{text}");
            assert!(line.contains("1m 30s"), "{text}");
        }
        assert!(lines[1].contains("waits"), "{text}");
        assert!(
            lines[2].contains("2 of 5, 1.0MiB of 3.0MiB, attempt 2"),
            "{text}"
        );
        assert_eq!(shown(&[]), "no jobs\n");
    }
}
