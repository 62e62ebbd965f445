//! The access token of whoever types a command: from a file or from the environment, never an argument, since arguments
//! can be seen by every user of a machine.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use super::environment;
use crate::secret::Secret;

/// Well above any access token.
const LONGEST_TOKEN: u64 = 64 << 10;

/// In this order: what is said to tidegate wins over what is said to all of Seqera's tools.
const VARIABLES: [&str; 2] = ["TIDEGATE_TOKEN", "TOWER_ACCESS_TOKEN"];

#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}", path.display())]
pub(super) struct TokenFileError {
    path: PathBuf,
    cause: io::Error,
}

/// `-` is standard input.
pub(super) fn from_file(path: &Path) -> Result<Secret<String>, TokenFileError> {
    let failed = |cause| TokenFileError {
        path: path.to_owned(),
        cause,
    };
    let mut text = String::new();
    let read = match path == Path::new("-") {
        true => io::stdin().take(LONGEST_TOKEN).read_to_string(&mut text),
        false => {
            fs::File::open(path).and_then(|file| file.take(LONGEST_TOKEN).read_to_string(&mut text))
        }
    };
    let text = Secret::new(text);
    read.map_err(failed)?;
    let token = text.expose().trim().to_owned();
    match token.is_empty() {
        true => Err(failed(io::Error::other("there is no token in it"))),
        false => Ok(Secret::new(token)),
    }
}

pub(super) fn from_environment() -> Option<Secret<String>> {
    VARIABLES.into_iter().find_map(environment).map(Secret::new)
}
