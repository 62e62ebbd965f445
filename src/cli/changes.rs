//! What is to be put on an image, as it is said on a command line.

use std::path::PathBuf;

/// What is put on the image.
#[derive(clap::Args)]
#[command(next_help_heading = "Changes to the image")]
pub(super) struct Changes {
    /// Lay the files of this folder over the image; may be repeated
    #[arg(long = "layer", value_name = "DIR")]
    pub(super) layers: Vec<PathBuf>,

    /// Lay the layers of this image over it; may be repeated
    #[arg(long = "include", value_name = "IMAGE")]
    pub(super) includes: Vec<String>,

    /// Set a variable; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    pub(super) env: Vec<String>,

    /// Replace the entrypoint: a word each time, or a JSON list
    #[arg(long, value_name = "WORD", allow_hyphen_values = true, value_parser = word)]
    entrypoint: Vec<String>,

    /// Replace the command: a word each time, or a JSON list
    #[arg(long, value_name = "WORD", allow_hyphen_values = true, value_parser = word)]
    cmd: Vec<String>,

    /// Replace the working folder
    #[arg(long, value_name = "PATH")]
    pub(super) workdir: Option<String>,
}

fn variable(text: &str) -> Result<String, &'static str> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(text.to_owned()),
        _ => Err("a variable is a name and a value, as in PATH=/bin"),
    }
}

/// What begins as a list of texts and is none would be taken for the name of a program.
fn word(text: &str) -> Result<String, String> {
    match serde_json::from_str::<Vec<String>>(text) {
        Err(error) if text.starts_with("[\"") => Err(format!("it is no JSON list: {error}")),
        _ => Ok(text.to_owned()),
    }
}

impl Changes {
    pub(super) fn entrypoint(&self) -> Vec<String> {
        words(&self.entrypoint)
    }

    pub(super) fn cmd(&self) -> Vec<String> {
        words(&self.cmd)
    }
}

/// A JSON list alone is all of the words.
fn words(given: &[String]) -> Vec<String> {
    let list = match given {
        [alone] => serde_json::from_str(alone).ok(),
        _ => None,
    };
    list.unwrap_or_else(|| given.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_alone_or_as_a_list() {
        for (given, expected) in [
            (&[][..], &[][..]),
            (&["/bin/sh"], &["/bin/sh"]),
            (&["sh", "-c", "echo"], &["sh", "-c", "echo"]),
            (&[r#"["sh", "-c", "a b"]"#], &["sh", "-c", "a b"]),
            // A program may well be called so.
            (&["[", "-e", "x", "]"], &["[", "-e", "x", "]"]),
            (&["["], &["["]),
            (&["[1]"], &["[1]"]),
        ] {
            let given: Vec<String> = given.iter().map(|&word| word.to_owned()).collect();
            assert_eq!(words(&given), expected, "{given:?}");
        }
    }
}
