//! Platforms that are wanted together: `linux/amd64,linux/arm64`.

use std::{fmt, ops::Deref, str::FromStr};

use super::{Platform, PlatformError};

/// Images that are built for more are not known. For each there is at least one manifest to be fetched.
const MOST: usize = 16;

/// One or several, each once. The order in which they are named means nothing, so it is always the same here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platforms(Vec<Platform>);

impl Platforms {
    /// Of none, the usual one.
    pub fn of(mut platforms: Vec<Platform>) -> Result<Self, PlatformError> {
        platforms.sort_unstable();
        platforms.dedup();
        match platforms.len() {
            0 => Ok(Self::default()),
            1..=MOST => Ok(Self(platforms)),
            count => Err(PlatformError::TooMany { count, most: MOST }),
        }
    }

    pub fn are_several(&self) -> bool {
        self.0.len() > 1
    }
}

impl Deref for Platforms {
    type Target = [Platform];

    fn deref(&self) -> &[Platform] {
        &self.0
    }
}

impl From<Platform> for Platforms {
    fn from(platform: Platform) -> Self {
        Self(vec![platform])
    }
}

impl Default for Platforms {
    fn default() -> Self {
        Platform::default().into()
    }
}

impl FromStr for Platforms {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let platforms = text.split(',').map(|text| text.trim().parse());
        Self::of(platforms.collect::<Result<_, _>>()?)
    }
}

impl fmt::Display for Platforms {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, platform) in self.0.iter().enumerate() {
            if number > 0 {
                formatter.write_str(",")?;
            }
            platform.fmt(formatter)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_the_same_platforms_are_the_same() {
        for (text, expected) in [
            ("linux/amd64", Some("linux/amd64")),
            ("linux/amd64,linux/arm64", Some("linux/amd64,linux/arm64")),
            ("aarch64, x86_64,arm64", Some("linux/amd64,linux/arm64")),
            (
                "arm/v7,arm/v6,386",
                Some("linux/386,linux/arm/v6,linux/arm/v7"),
            ),
            ("amd64,amd64", Some("linux/amd64")),
            ("", None),
            ("amd64,", None),
            ("amd64,vax", None),
        ] {
            let parsed = text.parse::<Platforms>().ok();
            let parsed = parsed.map(|platforms| platforms.to_string());
            assert_eq!(parsed.as_deref(), expected, "{text}");
        }
        let many: Vec<String> = (b'a'..=b'q')
            .map(|os| format!("{}/amd64", os as char))
            .collect();
        let error = many.join(",").parse::<Platforms>().expect_err("17");
        assert!(error.to_string().contains("16 is the most"), "{error}");
    }
}
