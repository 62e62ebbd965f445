//! Instants: the client's own, as it wrote them, and ours, as records keep them.

use std::{
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// When the client says that it asked, and its zone: `2026-03-04T05:06:07.1+01:00`, the offset date-time of
/// ISO 8601. Only recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientTime {
    #[serde(with = "unix_nanoseconds")]
    pub instant: SystemTime,
    /// As it was written: `+01:00` or `Z`.
    pub zone: String,
}

#[derive(Debug, thiserror::Error)]
#[error("a time is written like 2026-03-04T05:06:07+01:00")]
pub struct ClientTimeError;

impl FromStr for ClientTime {
    type Err = ClientTimeError;

    fn from_str(text: &str) -> Result<Self, ClientTimeError> {
        let (date, time) = text.split_once('T').ok_or(ClientTimeError)?;
        let zone_start = time.find(['Z', '+', '-']).ok_or(ClientTimeError)?;
        let (clock, zone) = time.split_at(zone_start);
        // Java leaves seconds out when they are zero.
        let seconds = if clock.len() == "05:06".len() {
            ":00"
        } else {
            ""
        };
        let local = humantime::parse_rfc3339(&format!("{date}T{clock}{seconds}Z"))
            .map_err(|_| ClientTimeError)?;
        let instant = match parse_zone(zone).ok_or(ClientTimeError)? {
            Offset::East(offset) => local.checked_sub(offset),
            Offset::West(offset) => local.checked_add(offset),
        };
        Ok(Self {
            instant: instant.ok_or(ClientTimeError)?,
            zone: zone.to_owned(),
        })
    }
}

enum Offset {
    East(Duration),
    West(Duration),
}

/// `Z`, `+01`, `+01:00` or `+01:00:00`.
fn parse_zone(text: &str) -> Option<Offset> {
    let (direction, text): (fn(Duration) -> Offset, &str) = match text.split_at_checked(1)? {
        ("Z", "") => return Some(Offset::East(Duration::ZERO)),
        ("+", rest) => (Offset::East, rest),
        ("-", rest) => (Offset::West, rest),
        _ => return None,
    };
    let mut seconds = 0;
    let mut unit_seconds = [3600, 60, 1].into_iter();
    for part in text.split(':') {
        let is_number = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
        let number: u64 = part.parse().ok().filter(|&n| is_number && n < 60)?;
        seconds += number * unit_seconds.next()?;
    }
    /// What the client's own library allows.
    const FARTHEST: u64 = 18 * 3600;
    (seconds <= FARTHEST).then(|| direction(Duration::from_secs(seconds)))
}

/// Records and their index by expiry hold instants as nanoseconds since 1970. They reach to the year 2554; what
/// lies outside is moved to the nearest end.
pub mod unix_nanoseconds {
    use super::{Duration, SystemTime, UNIX_EPOCH};
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn from_time(time: SystemTime) -> u64 {
        let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX)
    }

    pub fn to_time(nanoseconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(nanoseconds)
    }

    pub fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(from_time(*time))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        u64::deserialize(deserializer).map(to_time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_clients_are_read_with_their_zones() {
        for (text, instant, zone) in [
            ("2026-03-04T05:06:07Z", "2026-03-04T05:06:07Z", "Z"),
            ("2026-03-04T05:06Z", "2026-03-04T05:06:00Z", "Z"),
            (
                "2026-03-04T05:06:07.1+01:00",
                "2026-03-04T04:06:07.1Z",
                "+01:00",
            ),
            (
                "2026-03-04T05:06:07.123456789-05:30",
                "2026-03-04T10:36:07.123456789Z",
                "-05:30",
            ),
            ("2026-03-04T00:00+02", "2026-03-03T22:00:00Z", "+02"),
            (
                "2026-03-04T00:00+00:00:30",
                "2026-03-03T23:59:30Z",
                "+00:00:30",
            ),
        ] {
            let parsed: ClientTime = text
                .parse()
                .unwrap_or_else(|error| panic!("{text}: {error}"));
            let expected = humantime::parse_rfc3339(instant)
                .unwrap_or_else(|error| panic!("{instant}: {error}"));
            assert_eq!(parsed.instant, expected, "{text}");
            assert_eq!(parsed.zone, zone, "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "T",
            "now",
            "2026-03-04",
            "2026-03-04T05:06:07",
            "2026-03-04T05Z",
            "2026-13-04T05:06:07Z",
            "2026-03-04T05:06:07+1",
            "2026-03-04T05:06:07+0100",
            "2026-03-04T05:06:07+99:00",
            "2026-03-04T05:06:07+01:00:00:00",
            "2026-03-04T05:06:07Z[Europe/Rome]",
            "2026-03-04T05:06:07+é",
            "1772600767",
        ] {
            assert!(text.parse::<ClientTime>().is_err(), "{text}");
        }
    }

    #[test]
    fn instants_keep_their_nanoseconds_and_their_bounds() {
        for nanoseconds in [0, 1, 1_772_600_767_123_456_789, u64::MAX] {
            let time = unix_nanoseconds::to_time(nanoseconds);
            assert_eq!(unix_nanoseconds::from_time(time), nanoseconds);
        }
        let before = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(unix_nanoseconds::from_time(before), 0);
    }
}
