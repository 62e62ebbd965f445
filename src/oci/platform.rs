//! A platform as container requests name it: `[os/]arch[/variant]`.

use std::{fmt, str::FromStr};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    pub variant: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    #[error(
        "`{text}` is not a platform we know; use linux/amd64, linux/arm64 or linux/arm/v7, for example"
    )]
    Unknown { text: String },
    #[error("{count} platforms are too many; {most} is the most")]
    TooMany { count: usize, most: usize },
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        // Error messages repeat what was wrong, not a megabyte of it.
        let malformed = || PlatformError::Unknown {
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
            // Beyond what Wave takes: whatever images are built for.
            ("386" | "loong64" | "mips64le" | "ppc64le" | "riscv64" | "s390x", None) => {
                (architecture, None)
            }
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
        "amd64"
            | "x86_64"
            | "x86-64"
            | "arm64"
            | "aarch64"
            | "arm"
            | "386"
            | "loong64"
            | "mips64le"
            | "ppc64le"
            | "riscv64"
            | "s390x"
    )
}

impl Platform {
    /// Whether an image for the platform that an index names is one for this.
    pub fn is_met_by(&self, os: &str, architecture: &str, variant: Option<&str>) -> bool {
        let variant = variant.filter(|variant| !variant.is_empty());
        let (architecture, variant) = match (architecture, variant) {
            ("amd64" | "x86_64" | "x86-64", None | Some("v1")) => ("amd64", None),
            ("arm64" | "aarch64", None | Some("8" | "v8")) => ("arm64", None),
            ("arm", None | Some("7" | "v7")) => ("arm", Some("v7")),
            ("arm", Some("5")) => ("arm", Some("v5")),
            ("arm", Some("6")) => ("arm", Some("v6")),
            ("arm", Some("8")) => ("arm", Some("v8")),
            other => other,
        };
        self.os == os && self.architecture == architecture && self.variant.as_deref() == variant
    }
}

impl Default for Platform {
    /// Of requests that name none.
    fn default() -> Self {
        Self {
            os: "linux".to_owned(),
            architecture: "amd64".to_owned(),
            variant: None,
        }
    }
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
            ("linux/riscv64", Some("linux/riscv64")),
            ("s390x", Some("linux/s390x")),
            ("linux/vax", None),
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
    #[test]
    fn an_index_names_the_same_platform_in_several_ways() {
        for (wanted, os, architecture, variant, expected) in [
            ("amd64", "linux", "amd64", None, true),
            ("amd64", "linux", "x86_64", None, true),
            ("amd64", "linux", "amd64", Some("v1"), true),
            ("amd64", "linux", "amd64", Some("v2"), false),
            ("amd64", "windows", "amd64", None, false),
            ("amd64", "linux", "arm64", None, false),
            ("arm64", "linux", "arm64", Some("v8"), true),
            ("arm64", "linux", "aarch64", Some(""), true),
            ("arm64", "linux", "arm64", Some("v9"), false),
            ("arm", "linux", "arm", Some("v7"), true),
            ("arm", "linux", "arm", None, true),
            ("arm/v6", "linux", "arm", Some("v6"), true),
            ("arm/v6", "linux", "arm", Some("v7"), false),
            ("ppc64le", "linux", "ppc64le", None, true),
            ("amd64", "unknown", "unknown", None, false),
        ] {
            let parsed: Platform = wanted.parse().unwrap_or_else(|e| panic!("{wanted}: {e}"));
            assert_eq!(
                parsed.is_met_by(os, architecture, variant),
                expected,
                "{wanted}: {os}/{architecture} {variant:?}"
            );
        }
    }
}
