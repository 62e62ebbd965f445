//! `tidegate check-config`

use std::{path::PathBuf, process::ExitCode};

use super::{MISCONFIGURED, print_line, print_problems};
use crate::config::Config;

const EXAMPLES: &str = "\
Example:
  tidegate check-config --config /etc/tidegate/tidegate.toml && systemctl restart tidegate

Each problem is a line on standard error: FILE:LINE: key: message. Files and environment variables that the
configuration names are looked at too, so run it where and as whom the server runs.
Exit codes: 0 good (there may be warnings), 2 not good.";

/// Report everything that is wrong with a configuration, without starting anything.
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The file to check
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    match Config::load(&arguments.config) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                eprintln!("warning: {warning}");
            }
            if let Some(advice) = loaded.config.names_are_local() {
                let file = arguments.config.display();
                eprintln!("warning: {file}: {advice}");
            }
            print_line(&format!("{}: ok", arguments.config.display()))
        }
        Err(problems) => {
            print_problems(&problems);
            ExitCode::from(MISCONFIGURED)
        }
    }
}
