//! A platform as container requests name it: `[os/]arch[/variant]`.

use std::{fmt, str::FromStr};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    pub variant: Option<String>,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "`{text}` is not a platform we know; use linux/amd64, linux/arm64 or linux/arm/v7, for example"
)]
pub struct PlatformError {
    text: String,
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        // Error messages repeat what was wrong, not a megabyte of it.
        let malformed = || PlatformError {
            text: text.chars().take(100).collect(),
        };
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts.as_slice() {
            [architecture] => ("linux", *architecture, None),
            [os, architecture] if is_architecture(architecture) => (*os, *architecture, None),
            [architecture, variant] => ("linux", *architecture, Some(*variant)),
            [os, architecture, variant] => (*os, *architecture, Some(*variant)),
            _ => return Err(malformed()),
        };
        let (architecture, variant) = match (architecture, variant) {
            ("amd64" | "x86_64" | "x86-64", None) => ("amd64", None),
            ("arm64" | "aarch64", None | Some("8" | "v8")) => ("arm64", None),
            ("arm", None | Some("7" | "v7")) => ("arm", Some("v7")),
            ("arm", Some("5" | "v5")) => ("arm", Some("v5")),
            ("arm", Some("6" | "v6")) => ("arm", Some("v6")),
            ("arm", Some("8" | "v8")) => ("arm", Some("v8")),
            _ => return Err(malformed()),
        };
        if os.is_empty() || !os.bytes().all(|byte| byte.is_ascii_lowercase()) {
            return Err(malformed());
        }
        Ok(Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        })
    }
}

fn is_architecture(text: &str) -> bool {
    matches!(
        text,
        "amd64" | "x86_64" | "x86-64" | "arm64" | "aarch64" | "arm"
    )
}

impl fmt::Display for Platform {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(formatter, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_read_as_clients_write_them() {
        for (text, expected) in [
            ("linux/amd64", Some("linux/amd64")),
            ("amd64", Some("linux/amd64")),
            ("x86_64", Some("linux/amd64")),
            ("linux/arm64/v8", Some("linux/arm64")),
            ("aarch64", Some("linux/arm64")),
            ("arm", Some("linux/arm/v7")),
            ("arm/6", Some("linux/arm/v6")),
            ("linux/riscv64", None),
            ("linux/amd64/v2", None),
            ("linux/arm/9", None),
            ("", None),
            ("/amd64", None),
            ("linux/amd64,linux/arm64", None),
        ] {
            let parsed = text
                .parse::<Platform>()
                .ok()
                .map(|platform| platform.to_string());
            assert_eq!(parsed.as_deref(), expected, "{text}");
        }
    }
}
