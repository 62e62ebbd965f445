//! `tidegate directory …`: help with writing the directory file.

use std::{
    io::{self, BufRead, IsTerminal},
    process::ExitCode,
};

use clap::Subcommand;

use super::print_line;
use crate::oci::Digest;

/// Well above any access token.
const LONGEST_TOKEN_BYTES: u64 = 64 << 10;

const EXAMPLES: &str = "\
Examples:
  openssl rand -hex 20 | tee ada.token | tidegate directory hash-token
      A new access token for Ada in ada.token, and the line for her [[user]] in the directory file.
  tidegate directory hash-token
      Asks for the token; it can be seen while it is typed.

A line end after the token is not part of it. The token is read, never passed as an argument: arguments can be seen
by every user of a machine.";

/// Help with the file of users, workspaces and registry logins.
#[derive(Subcommand)]
pub(super) enum Command {
    /// Read an access token from standard input, print the line that stands for it in the directory file.
    #[command(after_long_help = EXAMPLES)]
    HashToken,
}

pub(super) fn run(command: &Command) -> ExitCode {
    match command {
        Command::HashToken => hash_token(),
    }
}

fn hash_token() -> ExitCode {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        eprint!("access token: ");
    }
    match read_token(stdin.lock(), stdin.is_terminal()) {
        Ok(token) => print_line(&directory_line(&token)),
        Err(error) => {
            eprintln!("tidegate: {error}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum TokenInputError {
    #[error("there is no token on standard input")]
    Empty,
    #[error("there is more than one line on standard input, and a token is one")]
    SeveralLines,
    #[error("the token is too long")]
    TooLong,
    #[error("the token cannot be read")]
    Unreadable(#[from] io::Error),
}

/// One line; from a terminal the rest never comes, so it is looked for elsewhere only.
fn read_token(input: impl BufRead, is_terminal: bool) -> Result<String, TokenInputError> {
    let mut input = input.take(LONGEST_TOKEN_BYTES + 1);
    let mut line = String::new();
    input.read_line(&mut line)?;
    if line.len() as u64 > LONGEST_TOKEN_BYTES {
        return Err(TokenInputError::TooLong);
    }
    if !is_terminal && input.read_until(b'\n', &mut Vec::new())? > 0 {
        return Err(TokenInputError::SeveralLines);
    }
    let token = line.trim_end_matches(['\n', '\r']);
    match token.is_empty() {
        true => Err(TokenInputError::Empty),
        false => Ok(token.to_owned()),
    }
}

fn directory_line(token: &str) -> String {
    format!("token_sha256 = \"{}\"", Digest::of(token.as_bytes()).hex())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_end_is_not_part_of_the_token() {
        // From FIPS 180-2: the hash of "abc".
        let line =
            "token_sha256 = \"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\"";
        for input in ["abc", "abc\n", "abc\r\n"] {
            let token =
                read_token(input.as_bytes(), false).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(directory_line(&token), line, "{input:?}");
        }
    }

    #[test]
    fn what_can_be_no_token_is_refused() {
        for input in [
            &b""[..],
            b"\n",
            b"\r\n",
            b"\xff\n",
            b"abc\nmore",
            &[b'a'; 70_000],
        ] {
            assert!(read_token(input, false).is_err());
        }
    }
}
