//! `tidegate serve`

use std::{path::PathBuf, process::ExitCode};

use super::{MISCONFIGURED, print_problems};
use crate::{
    app,
    config::{Config, Loaded, Overrides},
};

const EXAMPLES: &str = "\
Examples:
  tidegate serve
      Serves public images on localhost:5000, and keeps blobs in ~/.cache/tidegate.
  tidegate serve --config /etc/tidegate/tidegate.toml
      As the file says. `tidegate check-config` tells whether it is good.
  tidegate serve --listen 0.0.0.0:5000 --url http://build-7:5000
      For other machines too, which know this one as build-7.

Signals:
  SIGTERM, SIGINT  take no new connections, let transfers end (listener.shutdown_grace), exit; a second one: at once
  SIGHUP           ends it in the same way on a terminal; elsewhere it changes nothing: a new configuration needs a restart

Environment:
  XDG_STATE_HOME, XDG_CACHE_HOME, HOME  where files go if neither option nor file says so
  AWS_PROFILE, AWS_REGION, AWS_ACCESS_KEY_ID …  where AWS's logins come from first, as for AWS's own tools
  PATH                                  where credential helpers of Docker's files are looked for
  and what the file names in password_env

The log goes to standard error. Exit codes: 0 ended by a signal, 1 could not start, 2 wrong arguments or file.";

/// Run the server until SIGTERM or SIGINT.
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Settings; without it all have their defaults. config/tidegate.toml in the sources lists them
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    overrides: Overrides,
}

pub(super) fn run(arguments: Arguments) -> ExitCode {
    let loaded = match &arguments.config {
        Some(file) => Config::load(file),
        None => Ok(Loaded {
            config: Config::default(),
            warnings: Vec::new(),
        }),
    };
    let Loaded {
        mut config,
        warnings,
    } = match loaded {
        Ok(loaded) => loaded,
        Err(problems) => {
            print_problems(&problems);
            return ExitCode::from(MISCONFIGURED);
        }
    };
    config.override_with(arguments.overrides);
    match app::serve(config, arguments.config.as_deref(), &warnings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidegate: {error}");
            ExitCode::FAILURE
        }
    }
}
