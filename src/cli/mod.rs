//! The command line. Each command is a file; what they print for programs goes to standard output, all else to
//! standard error.
//!
//! Exit codes: 0 done; 1 it could not be done; 2 the arguments or the configuration are wrong; 130 and 143 ended by a signal.

mod access_token;
mod cache;
mod changes;
mod check_config;
mod completion;
mod copy;
mod creds;
mod directory;
mod freeze;
mod inspect;
mod jobs;
mod layer;
mod mirror;
mod output;
mod progress;
mod request;
mod serve;
mod server;
mod service;

use std::{
    env,
    io::{self, Write},
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::toml_file::Problem;

const MISCONFIGURED: u8 = 2;

/// A registry proxy that gives ephemeral names to private images and streams their blobs.
#[derive(Parser)]
#[command(
    name = "tidegate",
    version,
    arg_required_else_help = true,
    after_help = "`tidegate COMMAND --help` has examples."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Serve(serve::Arguments),
    CheckConfig(check_config::Arguments),
    #[command(subcommand)]
    Directory(directory::Command),
    #[command(subcommand)]
    Cache(cache::Command),
    #[command(subcommand)]
    Creds(creds::Command),
    #[command(subcommand)]
    Jobs(jobs::Command),
    Request(Box<request::Arguments>),
    Mirror(Box<mirror::Arguments>),
    Freeze(Box<freeze::Arguments>),
    Inspect(inspect::Arguments),
    Completion(completion::Arguments),
}

pub fn run() -> ExitCode {
    match Arguments::parse().command {
        Command::Serve(arguments) => serve::run(arguments),
        Command::CheckConfig(arguments) => check_config::run(&arguments),
        Command::Directory(command) => directory::run(&command),
        Command::Cache(command) => cache::run(&command),
        Command::Creds(command) => creds::run(&command),
        Command::Jobs(command) => jobs::run(&command),
        Command::Request(arguments) => request::run(&arguments),
        Command::Mirror(arguments) => mirror::run(*arguments),
        Command::Freeze(arguments) => freeze::run(*arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Completion(arguments) => completion::run(&arguments, Arguments::command()),
    }
}

/// To standard error, each on its line.
fn print_problems(problems: &[Problem]) {
    for problem in problems {
        eprintln!("{problem}");
    }
}

/// Fails if whoever was to read it is gone.
fn print_line(line: &str) -> ExitCode {
    match writeln!(io::stdout(), "{line}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// A variable that says something: `null` is how the Wave CLI lets one be switched off.
fn environment(name: &str) -> Option<String> {
    let value = env::var(name).ok()?;
    let value = value.trim();
    (!matches!(value, "" | "null")).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn commands_are_told_apart() {
        for (line, is_good) in [
            ("serve", true),
            (
                "serve --config x.toml --listen 127.0.0.1:0 --listen [::1]:0 --admin 127.0.0.1:0",
                true,
            ),
            (
                "serve --driver io_uring --url http://localhost:5000 --state-dir s --cache-dir c",
                true,
            ),
            ("serve --driver kqueue", false),
            ("serve --listen 5000", false),
            ("serve --url localhost:5000", false),
            ("serve --url http://tidegate", false),
            ("check-config --config x.toml", true),
            ("check-config", false),
            ("directory hash-token", true),
            ("directory hash-token secret", false),
            ("directory", false),
            ("cache ls --sort size -o json --config x.toml", true),
            ("cache ls --registry quay.io --repository quay.io/a/b", true),
            ("cache ls -o xml", false),
            ("cache du --cache-dir d", true),
            ("cache du --admin 127.0.0.1:5001", true),
            ("cache du --cache-dir d --admin 127.0.0.1:5001", false),
            ("cache verify", true),
            (
                "cache verify --dry-run sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                true,
            ),
            ("cache verify sha256:e3b0", false),
            ("cache gc --to 10GiB --dry-run", true),
            ("cache gc --to 10", false),
            (
                "cache rm sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 --registry quay.io",
                true,
            ),
            (
                "cache rm sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 --repository quay.io/a",
                false,
            ),
            ("cache rm --registry quay.io --dry-run", true),
            ("cache rm --repository quay.io/a/b", true),
            ("cache rm --dry-run", false),
            ("cache rm", false),
            ("cache pin quay.io/a/b", true),
            ("cache pin quay.io/a/b:v1", false),
            ("cache pin", false),
            ("cache unpin localhost:5000/a", true),
            ("cache pins", true),
            ("creds explain alpine", true),
            (
                "creds explain alpine --token-file t --workspace 1 --endpoint https://p --workflow-id r -o json",
                true,
            ),
            ("creds explain alpine --workspace 1", false),
            ("creds explain", false),
            ("creds", false),
            ("jobs ls -o json --config x.toml", true),
            ("jobs ls --admin 127.0.0.1:5001", true),
            ("jobs end mr-3f2b9c1d7e50 bd-3f2b9c1d7e50a1b2_1", true),
            ("jobs end mr-3f", false),
            ("jobs end", false),
            ("jobs", false),
            ("request alpine", true),
            (
                "request alpine --layer a --layer b --env A=b --env C= --entrypoint /bin/sh --cmd -c --cmd x --workdir /w",
                true,
            ),
            (
                "request alpine --platform arm64 --include a --include b --workspace 1 --workflow-id w -o yaml",
                true,
            ),
            (
                "request alpine --server https://wave.seqera.io --token-file - --tower-endpoint https://p --ca-file c",
                true,
            ),
            ("request alpine --await", true),
            ("request --await alpine", true),
            ("request alpine --await=90s -o json", true),
            ("request alpine --await=soon", false),
            ("request alpine --freeze --to quay.io/a/b", true),
            ("request alpine --mirror --to quay.io/a/b", true),
            (
                "request alpine --mirror --build-repository quay.io/a/b --await",
                true,
            ),
            ("request alpine --freeze", false),
            ("request alpine --to quay.io/a/b", false),
            ("request alpine --freeze --mirror --to quay.io/a/b", false),
            ("request alpine --env A", false),
            ("request alpine --env =b", false),
            (r#"request alpine --cmd ["sh","-c""#, false),
            (r#"request alpine --cmd ["sh","-c"]"#, true),
            ("request alpine --cmd [ --cmd x --cmd ]", true),
            ("request alpine --workspace one", false),
            ("request alpine --server localhost:5000", false),
            ("request", false),
            ("inspect alpine --platform linux/arm64 -o json", true),
            ("inspect", false),
            ("completion bash", true),
            ("completion cmd.exe", false),
            (
                "mirror docker://alpine quay.io/kept --platform arm64 --no-referrers --jobs 8 --dry-run -q -o json",
                true,
            ),
            (
                "mirror alpine localhost:5000 --config c --authfile a --authfile b --plain-http r:5000 --insecure s --cache-dir d",
                true,
            ),
            ("mirror alpine quay.io/kept:v1", false),
            ("mirror alpine https://quay.io/kept", false),
            ("mirror alpine", false),
            ("mirror alpine quay.io/kept --layer tools", false),
            ("mirror alpine quay.io/kept --jobs 0", false),
            ("mirror alpine quay.io/kept --jobs 33", false),
            (
                "freeze alpine quay.io/a/b --layer d --env A=b --entrypoint e --cmd c --workdir /w --include b --platform arm64",
                true,
            ),
            (
                "freeze alpine quay.io/a/b --platform amd64,arm64 --platform arm/v7",
                true,
            ),
            ("freeze alpine quay.io/a/b --dry-run -o json", true),
            ("freeze alpine quay.io/a/b --platform amd64,vax", false),
            ("freeze alpine quay.io/a/b --env A", false),
            ("freeze alpine quay.io/a/b --include -x", false),
            ("freeze alpine", false),
            ("cache burn", false),
            ("cache", false),
            ("", false),
        ] {
            let words = ["tidegate"].into_iter().chain(line.split_whitespace());
            assert_eq!(Arguments::try_parse_from(words).is_ok(), is_good, "{line}");
        }
    }
}
