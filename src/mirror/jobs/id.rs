//! What a job is called, by us and by everybody who asks for it.

use std::{fmt, str::FromStr};

use ring::rand::{SecureRandom, SystemRandom};

use crate::requests::DurableKind;

/// `mr-<12 hex>`, or `bd-<16 hex>_<n>` where `n` counts how often the same image was tried to be made. The digits are random:
/// whoever knows an id may read the job's record, and nobody can guess it from what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct JobId(String);

#[derive(Debug, thiserror::Error)]
#[error("a job is called like mr-0123456789ab or bd-0123456789abcdef_1")]
pub struct JobIdError;

const MIRROR_DIGITS: usize = 12;
const FREEZE_DIGITS: usize = 16;

impl JobId {
    pub fn random(kind: DurableKind, number: u32) -> Self {
        Self(match kind {
            DurableKind::Mirror => format!("mr-{}", random_hex(MIRROR_DIGITS)),
            DurableKind::Freeze => format!("bd-{}_{number}", random_hex(FREEZE_DIGITS)),
        })
    }

    /// Of a job that is not made, because it was only asked what would be.
    pub fn of_dry_run(kind: DurableKind) -> String {
        match kind {
            DurableKind::Mirror => format!("mr-{}_0", random_hex(MIRROR_DIGITS)),
            DurableKind::Freeze => format!("bd-{}_0", random_hex(FREEZE_DIGITS)),
        }
    }

    pub fn kind(&self) -> DurableKind {
        match self.0.starts_with("mr-") {
            true => DurableKind::Mirror,
            false => DurableKind::Freeze,
        }
    }

    /// Of how many of its kind; 1 for a mirror.
    pub fn number(&self) -> u32 {
        let (_, number) = self.0.split_once('_').unwrap_or_default();
        number.parse().unwrap_or(1)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for JobId {
    type Err = JobIdError;

    fn from_str(text: &str) -> Result<Self, JobIdError> {
        let is_hex = |digits: &str, count: usize| {
            let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            digits.len() == count && digits.bytes().all(is_digit)
        };
        let is_number = |number: &str| {
            let has_zero = number.starts_with('0');
            !has_zero
                && number
                    .parse::<u32>()
                    .is_ok_and(|it| it.to_string() == number)
        };
        let is_good = match (text.strip_prefix("mr-"), text.strip_prefix("bd-")) {
            (Some(digits), _) => is_hex(digits, MIRROR_DIGITS),
            (None, Some(rest)) => rest
                .split_once('_')
                .is_some_and(|(digits, number)| is_hex(digits, FREEZE_DIGITS) && is_number(number)),
            (None, None) => false,
        };
        is_good.then(|| Self(text.to_owned())).ok_or(JobIdError)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

fn random_hex(digits: usize) -> String {
    let mut bytes = [0; FREEZE_DIGITS / 2];
    SystemRandom::new()
        .fill(&mut bytes)
        .expect("the system has a random generator");
    let mut hex = format!("{:016x}", u64::from_be_bytes(bytes));
    hex.truncate(digits);
    hex
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_print_as_they_parse_and_do_not_repeat() {
        for (kind, number) in [
            (DurableKind::Mirror, 1),
            (DurableKind::Freeze, 1),
            (DurableKind::Freeze, 12),
        ] {
            let id = JobId::random(kind, number);
            let parsed = id.as_str().parse::<JobId>();
            assert_eq!(parsed.ok().as_ref(), Some(&id), "{id}");
            assert_eq!((id.kind(), id.number()), (kind, number), "{id}");
            assert_ne!(JobId::random(kind, number), id);
        }
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in [
            "",
            "mr-",
            "mr-0123456789a",
            "mr-0123456789abc",
            "mr-0123456789AB",
            "mr-0123456789ab_1",
            "bd-0123456789abcdef",
            "bd-0123456789abcdef_",
            "bd-0123456789abcdef_0",
            "bd-0123456789abcdef_01",
            "bd-0123456789abcdef_+1",
            "bd-0123456789abcdef_1_1",
            "bd-0123456789ab_1",
            "xx-0123456789ab",
            "../mr-0123456789ab",
        ] {
            assert!(text.parse::<JobId>().is_err(), "{text}");
        }
        for kind in [DurableKind::Mirror, DurableKind::Freeze] {
            let id = JobId::of_dry_run(kind);
            assert!(id.parse::<JobId>().is_err(), "there is no such job: {id}");
        }
    }
}
