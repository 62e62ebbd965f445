//! `tidegate creds …`: whose login is used for an image, asked of the running server, which is the one that would use it.

use std::{fmt::Write as _, path::PathBuf, process::ExitCode};

use clap::{Subcommand, ValueEnum};
use serde_json::json;

use super::{
    access_token::{self, TokenFileError},
    print_line,
    server::{AskError, Server, Whereabouts},
    service::workspace,
};
use crate::{
    api::{CREDENTIALS_GUARD, Explained, Verdict},
    secret::Secret,
    telemetry::log::OneLine,
};

const EXAMPLES: &str = "\
Examples:
  tidegate creds explain quay.io/acme/app:v1
      As an anonymous caller.
  tidegate creds explain quay.io/acme/app:v1 --token-file ada.token --workspace 1 --config tidegate.toml
      As Ada in a workspace. The token is read from a file (`-`: from standard input), never passed as an argument: arguments
      can be seen by every user of a machine.
  tidegate creds explain quay.io/acme/app:v1 -o json | jq -r '.sources[].entries[]? | [.registry, .verdict] | @tsv'

-o json is {image, caller, sources: [{name, said, entries: [{registry, name, verdict}]}], username, chosen, registry: {granted:
digest} or {refused: why}}. Nothing of it is secret.

Exit codes: 0 the registry lets this caller have the image; 1 it does not, or nobody could be asked; 2 wrong arguments.";

/// Which logins are used for an image, and why.
#[derive(Subcommand)]
pub(super) enum Command {
    /// Say which sources are asked for a login, which one matches and why, and what the registry says to it.
    #[command(after_long_help = EXAMPLES)]
    Explain(Explain),
}

#[derive(clap::Args)]
pub(super) struct Explain {
    /// As in a container request: quay.io/acme/app:v1
    image: String,

    /// The caller's access token is in this file (-: standard input); without it, the caller is anonymous
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// The workspace whose logins count [default: the personal one]
    #[arg(long, value_name = "ID", requires = "token_file", value_parser = workspace)]
    workspace: Option<i64>,

    /// The Platform that knows the token [default: the first of platform.endpoints]
    #[arg(
        long,
        value_name = "URL",
        requires = "token_file",
        visible_alias = "tower-endpoint"
    )]
    endpoint: Option<String>,

    /// The workflow run for which the image is wanted
    #[arg(long, value_name = "ID", requires = "token_file")]
    workflow_id: Option<String>,

    #[command(flatten)]
    whereabouts: Whereabouts,

    /// For people or for programs
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Token(#[from] TokenFileError),
    #[error("{0}{advice}", advice = .0.advice())]
    Server(#[from] AskError),
}

pub(super) fn run(command: &Command) -> ExitCode {
    let Command::Explain(explain) = command;
    let server = match explain.whereabouts.server() {
        Ok(server) => server,
        Err(code) => return code,
    };
    match explain.run(&server) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("tidegate: {failure}");
            ExitCode::FAILURE
        }
    }
}

impl Explain {
    fn run(&self, server: &Server) -> Result<ExitCode, Failure> {
        let token = self.token_file.as_deref().map(access_token::from_file);
        let token = token.transpose()?;
        let question = json!({
            "image": self.image,
            "accessToken": token.as_ref().map(Secret::expose),
            "endpoint": self.endpoint,
            "workspace": self.workspace,
            "workflowId": self.workflow_id,
        });
        let question = Secret::new(question.to_string());
        let explained: Explained = server.ask(
            "POST",
            "credentials/explain",
            CREDENTIALS_GUARD,
            Some(&question),
        )?;
        let text = match self.output {
            Output::Text => told(&explained),
            Output::Json => serde_json::to_string(&explained).unwrap_or_default(),
        };
        let printed = print_line(text.trim_end());
        Ok(match explained.registry {
            Some(Verdict::Granted(_)) => printed,
            Some(Verdict::Refused(_)) | None => ExitCode::FAILURE,
        })
    }
}

fn told(explained: &Explained) -> String {
    let Explained {
        explanation,
        registry,
    } = explained;
    let mut text = String::new();
    let mut line = |name: &str, said: &str| {
        // Users name their credentials, and registries their reasons.
        let _ = writeln!(text, "{name:<9} {}", OneLine(said.to_owned()));
    };
    line("image", &explanation.image);
    line("caller", &explanation.caller);
    for source in &explanation.sources {
        line("asked", &format!("{}: {}", source.name, source.said));
        for entry in &source.entries {
            let name = match entry.name.as_str() {
                "" => String::new(),
                name => format!(" \"{name}\""),
            };
            line(
                "",
                &format!("  {}{name}: {}", entry.registry, entry.verdict),
            );
        }
    }
    line("chosen", &explanation.chosen);
    match registry {
        Some(Verdict::Granted(digest)) => line("registry", &format!("has it: {digest}")),
        Some(Verdict::Refused(why)) => line("registry", why),
        None => line("registry", "was not asked"),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::{Considered, Explanation, Source};

    #[test]
    fn an_explanation_is_read_top_down() {
        let explained = Explained {
            explanation: Explanation {
                image: "quay.io/acme/app:v1".to_owned(),
                caller: "ada".to_owned(),
                sources: vec![
                    Source {
                        name: "directory".to_owned(),
                        said: "does not know the access token".to_owned(),
                        entries: Vec::new(),
                    },
                    Source {
                        name: "workspace 1".to_owned(),
                        said: "1 login".to_owned(),
                        entries: vec![Considered {
                            registry: "https://quay.io".to_owned(),
                            name: "prod".to_owned(),
                            verdict: "matches".to_owned(),
                        }],
                    },
                ],
                username: Some("robot".to_owned()),
                chosen: "workspace 1: https://quay.io (\"prod\") as robot".to_owned(),
            },
            registry: Some(Verdict::Refused("it refused".to_owned())),
        };
        let expected = "\
image     quay.io/acme/app:v1
caller    ada
asked     directory: does not know the access token
asked     workspace 1: 1 login
            https://quay.io \"prod\": matches
chosen    workspace 1: https://quay.io (\"prod\") as robot
registry  it refused
";
        assert_eq!(told(&explained), expected);
        let json = serde_json::to_string(&explained).expect("it is JSON");
        let back: Explained = serde_json::from_str(&json).expect("its own form");
        assert_eq!(told(&back), expected);
    }

    #[test]
    fn nobody_writes_to_the_operators_terminal() {
        let hostile = || "\u{1b}]0;x\u{7}\nchosen    another\u{9b}2J".to_owned();
        let explained = Explained {
            explanation: Explanation {
                image: "alpine".to_owned(),
                caller: hostile(),
                sources: vec![Source {
                    name: "workspace 1".to_owned(),
                    said: hostile(),
                    entries: vec![Considered {
                        registry: hostile(),
                        name: hostile(),
                        verdict: hostile(),
                    }],
                }],
                username: None,
                chosen: hostile(),
            },
            registry: Some(Verdict::Refused(hostile())),
        };
        let told = told(&explained);
        assert_eq!(told.lines().count(), 6, "{told}");
        let is_plain = |c: char| c == '\n' || !c.is_control();
        assert!(told.chars().all(is_plain), "{told:?}");
    }
}
