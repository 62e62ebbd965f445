//! A job, and what is on disk of it.
//!
//! ```text
//! {"format":1, "id":…, "kind":"mirror"|"freeze", "tenant":…, "key":…,
//!  "image":<as it was asked for>, "source":…, "digest":…, "target":…, "platform":…,
//!  "user":…, "zone":"+01:00", "created":<ns since 1970>, "reading":<token>,
//!  "attempts":…, "holders":…, "superseded_by":<id>,                                                  absent: by none
//!  "ended":{"at":<ns>, "outcome":{"done":{"digest":…, …}} | {"failed":<reason>} | "timed_out" | "cancelled"
//!                                | {"superseded":{"by":<id>}}}}                                      absent: not yet
//! ```
//! There is no secret in it: whose logins serve the job is with the grant that `reading` stands for, in the store of requests.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::JobId;
use crate::{
    oci::{Algorithm, Digest, Hasher, Platforms, Reference},
    requests::{DurableKind, Tenant, Token, unix_nanoseconds},
};

/// What does not change of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    #[serde(with = "as_text")]
    pub id: JobId,
    pub kind: DurableKind,
    #[serde(with = "as_text")]
    pub tenant: Tenant,
    pub key: JobKey,
    /// As it was asked for.
    pub image: String,
    #[serde(with = "as_text")]
    pub source: Reference,
    /// What the source was when it was asked for, and is for the job, whatever becomes of its tag.
    #[serde(with = "as_text")]
    pub digest: Digest,
    #[serde(with = "as_text")]
    pub target: Reference,
    /// `None`: all that the image has.
    #[serde(default, with = "as_text::optional")]
    pub platform: Option<Platforms>,
    /// Who asked first; `None`: nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Of whoever asked.
    pub zone: String,
    #[serde(with = "unix_nanoseconds")]
    pub created: SystemTime,
    /// Stands for what is read, and on whose behalf. Whoever has it could pull.
    #[serde(with = "as_text")]
    pub(super) reading: Token,
}

/// Of equal wishes of one tenant there is one job at a time. Tells nothing of what it is made of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobKey(String);

impl JobKey {
    pub fn of(
        kind: DurableKind,
        tenant: &Tenant,
        digest: &Digest,
        target: &Reference,
        platform: Option<&Platforms>,
    ) -> Self {
        let parts = [
            kind.as_str().to_owned(),
            tenant.to_string(),
            digest.to_string(),
            target.to_string(),
            platform.map(Platforms::to_string).unwrap_or_default(),
        ];
        let mut hash = Hasher::new(Algorithm::Sha256);
        for part in parts {
            hash.update(part.as_bytes());
            hash.update(&[0]);
        }
        Self(hash.finish().hex())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    #[serde(with = "unix_nanoseconds")]
    pub at: SystemTime,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Done {
        /// What the target is now.
        #[serde(with = "as_text")]
        digest: Digest,
        /// That were sent.
        bytes: u64,
    },
    /// For whoever asked.
    Failed(String),
    TimedOut,
    Cancelled,
    /// Another image was asked for by the same name since.
    Superseded {
        #[serde(with = "as_text")]
        by: JobId,
    },
}

impl Outcome {
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Done { .. })
    }

    /// Why it did not come about.
    pub fn reason(&self) -> Option<String> {
        match self {
            Self::Done { .. } => None,
            Self::Failed(reason) => Some(reason.clone()),
            Self::TimedOut => Some("the job timed out (mirror.job_timeout)".to_owned()),
            Self::Cancelled => Some("the job was cancelled".to_owned()),
            Self::Superseded { by } => Some(format!(
                "superseded by job {by}, which was asked for later and puts another image there"
            )),
        }
    }
}

/// What is told of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRecord {
    pub job: Job,
    /// Begun so far.
    pub attempts: u32,
    /// `None`: it waits or runs.
    pub ended: Option<Ended>,
}

impl JobRecord {
    pub fn is_done(&self) -> bool {
        let ended = self.ended.as_ref();
        ended.is_some_and(|ended| ended.outcome.is_success())
    }

    /// Waiting included, so far or in all.
    pub fn duration(&self, now: SystemTime) -> Duration {
        let until = self.ended.as_ref().map_or(now, |ended| ended.at);
        until.duration_since(self.job.created).unwrap_or_default()
    }
}

/// A job on disk.
#[derive(Serialize, Deserialize)]
pub(super) struct Entry {
    format: u32,
    #[serde(flatten)]
    pub(super) job: Job,
    pub(super) attempts: u32,
    /// Requests that hang on it and were not revoked.
    pub(super) holders: u32,
    /// It is to end for this one.
    #[serde(
        default,
        with = "as_text::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub(super) superseded_by: Option<JobId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) ended: Option<Ended>,
}

#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    #[error("it has format {format}, and this tidegate knows {FORMAT}")]
    UnknownFormat { format: u32 },
    #[error("it is damaged: {0}")]
    Damaged(#[from] serde_json::Error),
}

const FORMAT: u32 = 1;

impl Entry {
    pub(super) fn new(job: Job) -> Self {
        Self {
            format: FORMAT,
            job,
            attempts: 0,
            holders: 1,
            superseded_by: None,
            ended: None,
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, EntryError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        // First alone, since the rest may have changed with it.
        let Format { format } = serde_json::from_slice(bytes)?;
        if format != FORMAT {
            return Err(EntryError::UnknownFormat { format });
        }
        Ok(serde_json::from_slice(bytes)?)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and numbers are always JSON")
    }

    pub(super) fn record(self) -> JobRecord {
        JobRecord {
            job: self.job,
            attempts: self.attempts,
            ended: self.ended,
        }
    }
}

/// What has a grammar of its own, as it is written.
mod as_text {
    use std::{fmt::Display, str::FromStr};

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<T: Display, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }

    pub(super) mod optional {
        use super::*;

        pub(in super::super) fn serialize<T: Display, S: Serializer>(
            value: &Option<T>,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            match value {
                Some(value) => serializer.collect_str(value),
                None => serializer.serialize_none(),
            }
        }

        pub(in super::super) fn deserialize<'de, T, D>(
            deserializer: D,
        ) -> Result<Option<T>, D::Error>
        where
            T: FromStr<Err: Display>,
            D: Deserializer<'de>,
        {
            let text = Option::<String>::deserialize(deserializer)?;
            let value = text.map(|text| text.parse().map_err(de::Error::custom));
            value.transpose()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(text: &str) -> Tenant {
        let Ok(tenant) = text.parse();
        tenant
    }

    #[test]
    fn a_key_is_made_of_all_that_a_job_is() {
        let [tenant, ada] = ["anonymous", "directory user ada"].map(tenant);
        let target: Reference = "quay.io/a/b:v1".parse().expect("an image");
        let arm: Platforms = "linux/arm64".parse().expect("a platform");
        let digest = Digest::of(b"one");
        let key = |kind, tenant, digest, target, arm| JobKey::of(kind, tenant, digest, target, arm);
        let first = key(DurableKind::Mirror, &tenant, &digest, &target, None);
        assert_eq!(
            key(DurableKind::Mirror, &tenant, &digest, &target, None),
            first
        );
        let elsewhere: Reference = "quay.io/a/b:v2".parse().expect("an image");
        for other in [
            key(DurableKind::Freeze, &tenant, &digest, &target, None),
            key(DurableKind::Mirror, &ada, &digest, &target, None),
            key(
                DurableKind::Mirror,
                &tenant,
                &Digest::of(b"two"),
                &target,
                None,
            ),
            key(DurableKind::Mirror, &tenant, &digest, &elsewhere, None),
            key(DurableKind::Mirror, &tenant, &digest, &target, Some(&arm)),
        ] {
            assert_ne!(other, first);
        }
    }

    #[test]
    fn an_entry_survives_the_disk() {
        let tenant = tenant("directory workspace 1");
        let target: Reference = "localhost:5000/a/b:v1".parse().expect("an image");
        let digest = Digest::of(b"one");
        let job = Job {
            id: JobId::random(DurableKind::Freeze, 3),
            kind: DurableKind::Freeze,
            key: JobKey::of(DurableKind::Freeze, &tenant, &digest, &target, None),
            tenant,
            image: "alpine".to_owned(),
            source: "alpine".parse().expect("an image"),
            digest,
            target,
            platform: "linux/amd64,linux/arm/v7".parse().ok(),
            user: Some("ada".to_owned()),
            zone: "+01:00".to_owned(),
            created: SystemTime::now(),
            reading: Token::random(),
        };
        for (platform, outcome) in [
            (None, None),
            (job.platform.clone(), Some(Outcome::TimedOut)),
            (None, Some(Outcome::Cancelled)),
            (None, Some(Outcome::Superseded { by: job.id.clone() })),
            (None, Some(Outcome::Failed("denied".to_owned()))),
            (None, Some(Outcome::Done { digest, bytes: 7 })),
        ] {
            let mut entry = Entry::new(Job {
                platform,
                ..job.clone()
            });
            entry.attempts = 2;
            entry.ended = outcome.map(|outcome| Ended {
                at: SystemTime::now(),
                outcome,
            });
            let bytes = entry.encode();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let read = Entry::decode(&bytes).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(read.record(), entry.record(), "{text}");
        }
        let error = Entry::decode(br#"{"format":2}"#).err().expect("refused");
        assert!(error.to_string().contains("format 2"), "{error}");
    }
}
