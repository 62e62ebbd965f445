//! Values that are written as people write them: for serde's `with`.

pub(super) mod text {
    use std::{fmt::Display, str::FromStr};

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(in crate::cache) fn serialize<S: Serializer>(
        value: &impl Display,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(in crate::cache) fn deserialize<'de, D, T>(deserializer: D) -> Result<T, D::Error>
    where
        D: Deserializer<'de>,
        T: FromStr<Err: Display>,
    {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// Seconds since 1970, written as RFC 3339 has them.
pub(super) mod instant {
    use std::time::{Duration, UNIX_EPOCH};

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(in crate::cache) fn serialize<S: Serializer>(
        seconds: &u64,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        // The index has 32 bits for it.
        let seconds = (*seconds).min(u64::from(u32::MAX));
        let instant = UNIX_EPOCH + Duration::from_secs(seconds);
        serializer.collect_str(&humantime::format_rfc3339_seconds(instant))
    }

    pub(in crate::cache) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        let instant = humantime::parse_rfc3339(&text).map_err(de::Error::custom)?;
        let since = instant.duration_since(UNIX_EPOCH);
        since
            .map(|since| since.as_secs())
            .map_err(de::Error::custom)
    }
}
