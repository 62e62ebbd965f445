//! Sizes and durations as people write them: `"200GiB"`, `"30s"`.

use std::{fmt, ops::Deref, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, de};

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Longest suffix first, so that `KiB` is not read as `B`.
const UNITS: [(&str, u64); 9] = [
    ("KiB", KIB),
    ("MiB", MIB),
    ("GiB", GIB),
    ("TiB", TIB),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

/// A count of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl ByteSize {
    pub const fn mib(count: u64) -> Self {
        Self(count * MIB)
    }

    pub const fn gib(count: u64) -> Self {
        Self(count * GIB)
    }

    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// For people: two or three digits that matter.
    pub fn rounded(self) -> String {
        for (suffix, unit) in [("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)] {
            if self.0 < unit {
                continue;
            }
            let whole = self.0 / unit;
            if whole >= 10 {
                return format!("{whole}{suffix}");
            }
            let tenths = self.0 % unit * 10 / unit;
            return format!("{whole}.{tenths}{suffix}");
        }
        format!("{}B", self.0)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("`{text}` is not a size; write a whole number and a unit, as in \"512MiB\" or \"200GiB\"")]
pub struct ByteSizeError {
    text: String,
}

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    fn from_str(text: &str) -> Result<Self, ByteSizeError> {
        let malformed = || ByteSizeError {
            text: text.to_owned(),
        };
        let (number, unit) = UNITS
            .iter()
            .find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)))
            .ok_or_else(malformed)?;
        let number: u64 = number.trim().parse().map_err(|_| malformed())?;
        number.checked_mul(unit).map(Self).ok_or_else(malformed)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (suffix, unit) in [("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)] {
            if self.0 >= unit && self.0.is_multiple_of(unit) {
                return write!(formatter, "{}{suffix}", self.0 / unit);
            }
        }
        write!(formatter, "{}B", self.0)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text {
            expected: "a size with its unit, as in \"200GiB\"",
            parse: |text| text.parse::<Self>().map_err(|error| error.to_string()),
        })
    }
}

/// A share of something: `"95%"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(pub u8);

impl Percent {
    pub const fn of(self, whole: u64) -> u64 {
        // By parts, because the product of both could be too large.
        whole / 100 * self.0 as u64 + whole % 100 * self.0 as u64 / 100
    }
}

#[derive(Debug, thiserror::Error)]
#[error(
    "`{text}` is not a share; write a whole number from 0 to 100 and a percent sign, as in \"95%\""
)]
pub struct PercentError {
    text: String,
}

impl FromStr for Percent {
    type Err = PercentError;

    fn from_str(text: &str) -> Result<Self, PercentError> {
        text.strip_suffix('%')
            .and_then(|number| number.trim().parse().ok())
            .filter(|share| *share <= 100)
            .map(Self)
            .ok_or_else(|| PercentError {
                text: text.to_owned(),
            })
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}%", self.0)
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text {
            expected: "a share with a percent sign, as in \"95%\"",
            parse: |text| text.parse::<Self>().map_err(|error| error.to_string()),
        })
    }
}

/// A duration in the configuration: `"500ms"`, `"30s"`, `"36h"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct HumanDuration(pub Duration);

impl HumanDuration {
    pub const fn seconds(count: u64) -> Self {
        Self(Duration::from_secs(count))
    }

    pub const fn hours(count: u64) -> Self {
        Self(Duration::from_secs(count * 3600))
    }
}

impl Deref for HumanDuration {
    type Target = Duration;

    fn deref(&self) -> &Duration {
        &self.0
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(formatter)
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text {
            expected: "a duration with its unit, as in \"30s\"",
            parse: |text| match humantime::parse_duration(text) {
                Ok(duration) => Ok(Self(duration)),
                Err(_) => Err(format!(
                    "`{text}` is not a duration; write a number and a unit, as in \"500ms\", \"30s\" or \"36h\""
                )),
            },
        })
    }
}

/// Reads a value from text, and says what the text should have been where there is something else.
struct Text<T> {
    expected: &'static str,
    parse: fn(&str) -> Result<T, String>,
}

impl<T> de::Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in [
            ("0B", Some(0)),
            ("64KiB", Some(65_536)),
            ("200GiB", Some(200 * GIB)),
            ("1 MiB", Some(MIB)),
            ("5kB", Some(5_000)),
            ("12", None),
            ("-1B", None),
            ("1.5GiB", None),
            ("99999999999TiB", None),
            ("", None),
        ] {
            let parsed = text.parse::<ByteSize>().ok().map(ByteSize::bytes);
            assert_eq!(parsed, bytes, "{text}");
        }
    }

    #[test]
    fn shares_are_read_with_their_sign() {
        for (text, share) in [
            ("95%", Some(95)),
            ("0 %", Some(0)),
            ("100%", Some(100)),
            ("101%", None),
            ("-1%", None),
            ("95", None),
            ("0.95", None),
            ("", None),
        ] {
            let parsed = text.parse::<Percent>().ok().map(|share| share.0);
            assert_eq!(parsed, share, "{text}");
        }
        assert_eq!(Percent(95).of(1000), 950);
        assert_eq!(Percent(50).of(u64::MAX), u64::MAX / 2);
        assert_eq!(Percent(1).of(99), 0);
    }

    #[test]
    fn rounded_sizes_are_short() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1.0KiB"),
            (70_000, "68KiB"),
            (MIB - 1, "1023KiB"),
            (3 * MIB / 2, "1.5MiB"),
            (10 * GIB - 1, "9.9GiB"),
            (200 * GIB, "200GiB"),
            (u64::MAX, "16777215TiB"),
        ] {
            assert_eq!(ByteSize(bytes).rounded(), text, "{bytes}");
        }
    }

    #[test]
    fn sizes_print_as_they_are_written() {
        for text in ["0B", "1000B", "64KiB", "3MiB", "200GiB", "2TiB"] {
            let size: ByteSize = text
                .parse()
                .unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(size.to_string(), text);
        }
    }
}
