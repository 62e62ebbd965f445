//! The command line. Each command is a file; what they print for programs goes to standard output, all else to
//! standard error.
//!
//! Exit codes: 0 done; 1 it could not be done; 2 the arguments or the configuration are wrong.

mod check_config;
mod directory;
mod serve;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use crate::toml_file::Problem;

const MISCONFIGURED: u8 = 2;

/// A registry proxy that gives ephemeral names to private images and streams their blobs.
#[derive(Parser)]
#[command(
    name = "tidegate",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true,
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
}

pub fn run() -> ExitCode {
    match Arguments::parse().command {
        Command::Serve(arguments) => serve::run(arguments),
        Command::CheckConfig(arguments) => check_config::run(&arguments),
        Command::Directory(command) => directory::run(&command),
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

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
            ("", false),
        ] {
            let words = ["tidegate"].into_iter().chain(line.split_whitespace());
            assert_eq!(Arguments::try_parse_from(words).is_ok(), is_good, "{line}");
        }
    }
}
