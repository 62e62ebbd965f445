//! `tidegate completion`: what a shell needs to finish a command line.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap_complete::Shell;

const EXAMPLES: &str = "\
Examples:
  source <(tidegate completion bash)
      For this shell.
  tidegate completion bash > /etc/bash_completion.d/tidegate
      For everybody's.
  tidegate completion zsh > ~/.zfunc/_tidegate
      ~/.zfunc must be in zsh's fpath, and compinit run.
  tidegate completion fish > ~/.config/fish/completions/tidegate.fish";

/// Print what a shell needs to complete tidegate's commands and options.
#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Arguments {
    shell: Shell,
}

pub(super) fn run(arguments: &Arguments, mut command: clap::Command) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "tidegate", &mut script);
    match io::stdout().write_all(&script) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
