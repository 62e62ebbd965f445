//! Names of registries with holes: `*.dkr.ecr.*.amazonaws.com`.

use std::{fmt, str::FromStr};

use super::{ReferenceError, Registry};

/// One registry, or all whose names fit. A `*` stands for one or more characters within a label: never for a dot, so
/// that nobody's name fits by what its owner puts before or behind it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RegistryPattern {
    Exact(Registry),
    Holes(String),
}

impl FromStr for RegistryPattern {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if !text.contains('*') {
            return Ok(Self::Exact(text.parse()?));
        }
        // Filled with what any label may have, it must be a name.
        let filled: Result<Registry, _> = text.replace('*', "x").parse();
        if filled.is_err() || text.contains("**") || text.contains('/') {
            return Err(ReferenceError::Registry {
                text: text.to_owned(),
            });
        }
        Ok(Self::Holes(text.trim().to_ascii_lowercase()))
    }
}

impl RegistryPattern {
    pub fn exact(&self) -> Option<&Registry> {
        match self {
            Self::Exact(registry) => Some(registry),
            Self::Holes(_) => None,
        }
    }

    pub fn fits(&self, registry: &Registry) -> bool {
        match self {
            Self::Exact(exact) => exact == registry,
            Self::Holes(pattern) => {
                let (mut labels, mut holes) = (registry.as_str().split('.'), pattern.split('.'));
                loop {
                    match (labels.next(), holes.next()) {
                        (None, None) => return true,
                        (Some(label), Some(hole)) if label_fits(label, hole) => {}
                        _ => return false,
                    }
                }
            }
        }
    }

    /// Of several that fit, the greatest says most.
    pub fn precision(&self) -> (bool, usize) {
        match self {
            Self::Exact(_) => (true, 0),
            Self::Holes(pattern) => (false, pattern.bytes().filter(|&b| b != b'*').count()),
        }
    }
}

/// What is between two holes is taken where it first is, so that the rest is as long as it can be.
fn label_fits(label: &str, hole: &str) -> bool {
    let mut parts = hole.split('*');
    let Some(mut rest) = parts.next().and_then(|first| label.strip_prefix(first)) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        // A hole is not empty.
        let found = rest
            .char_indices()
            .skip(1)
            .find_map(|(at, _)| rest.get(at..)?.strip_prefix(part));
        match found {
            Some(behind) => rest = behind,
            None => return false,
        }
    }
    rest.strip_suffix(last)
        .is_some_and(|filling| !filling.is_empty())
}

impl fmt::Display for RegistryPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(registry) => registry.fmt(formatter),
            Self::Holes(pattern) => formatter.write_str(pattern),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_within_labels() {
        const ECR: &str = "*.dkr.ecr.*.amazonaws.com";
        for (pattern, registry, expected) in [
            (ECR, "123456789012.dkr.ecr.eu-west-1.amazonaws.com", true),
            (
                ECR,
                "123456789012.dkr.ecr.eu-west-1.amazonaws.com.cn",
                false,
            ),
            (
                ECR,
                "123456789012.dkr.ecr.eu-west-1.amazonaws.com:5000",
                false,
            ),
            (ECR, "a.b.dkr.ecr.eu-west-1.amazonaws.com", false),
            (ECR, "dkr.ecr.eu-west-1.amazonaws.com", false),
            ("*.Corp.example", "reg.corp.example", true),
            ("*.corp.example", "corp.example", false),
            ("reg-*.corp.example", "reg-7.corp.example", true),
            ("reg*.corp.example", "reg.corp.example", false),
            ("a*b*c.example", "axbxc.example", true),
            ("a*b*c.example", "abxc.example", false),
            ("a*b*c.example", "axbbc.example", true),
            ("a*b*c.example", "axbc.example", false),
            ("quay.io", "quay.io", true),
            ("quay.io", "quay.iox", false),
            ("index.docker.io", "docker.io", true),
        ] {
            let pattern: RegistryPattern =
                pattern.parse().unwrap_or_else(|error| panic!("{error}"));
            let registry: Registry = registry.parse().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(pattern.fits(&registry), expected, "{pattern} {registry}");
        }
        for text in [
            "**.example",
            "*/x.example",
            "a b*.example",
            "https://*.example",
        ] {
            assert!(text.parse::<RegistryPattern>().is_err(), "{text}");
        }
    }
}
