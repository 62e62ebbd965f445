//! What is told of mirrors and freezes: how a request goes, and each job's record and log. Whoever has a job's id may read
//! them, so they name no address and no secret.

use std::{net::IpAddr, sync::Arc, time::Duration};

use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    Api, Response,
    error_response::{self, Shape},
    record::instant,
    route::{JobPart, RouteError},
};
use crate::{
    blocking::Errand,
    mirror::jobs::{JobId, JobRecord, Outcome},
    requests::{DurableKind, Token},
};

impl Api {
    pub(super) async fn job(&self, id: JobId, part: JobPart, client: IpAddr) -> Response {
        match part {
            JobPart::Log => self.job_log(id, client).await,
            JobPart::Record => match self.find_job(&id, Shape::Api, client).await {
                Ok(record) => described(&record),
                Err(refusal) => refusal,
            },
            JobPart::Status => match self.find_job(&id, Shape::Api, client).await {
                Ok(record) => build_status(&record),
                Err(refusal) => refusal,
            },
        }
    }

    pub(super) async fn find_job(
        &self,
        id: &JobId,
        shape: Shape,
        client: IpAddr,
    ) -> Result<JobRecord, Response> {
        self.may_guess(shape, client)?;
        let (jobs, wanted) = (Arc::clone(&self.shared.jobs), id.clone());
        let found = self
            .shared
            .pool
            .run(Errand::Grants, move || jobs.record(&wanted));
        match found.await {
            Ok(Ok(Some(record))) => Ok(record),
            Ok(Ok(None)) => Err(self.refuse_job(id, shape, client)),
            Ok(Err(error)) => Err(error_response::of_jobs(shape, &error)),
            Err(error) => Err(error_response::of_pool(shape, error)),
        }
    }

    async fn job_log(&self, id: JobId, client: IpAddr) -> Response {
        if let Err(refusal) = self.may_guess(Shape::Api, client) {
            return refusal;
        }
        let (jobs, wanted) = (Arc::clone(&self.shared.jobs), id.clone());
        let found = self
            .shared
            .pool
            .run(Errand::Grants, move || jobs.log(&wanted));
        match found.await {
            Ok(Ok(Some(log))) => Response::new(200)
                .field(
                    "Content-Disposition",
                    format_args!("attachment; filename={id}.log"),
                )
                .content("application/octet-stream", log.into_bytes()),
            Ok(Ok(None)) => self.refuse_job(&id, Shape::Api, client),
            Ok(Err(error)) => error_response::of_jobs(Shape::Api, &error),
            Err(error) => error_response::of_pool(Shape::Api, error),
        }
    }

    /// A guess, as an unknown token is one.
    fn refuse_job(&self, id: &JobId, shape: Shape, client: IpAddr) -> Response {
        let refusal = error_response::of_route(shape, &RouteError::unknown_job(id.kind()));
        self.refuse_guess(refusal, shape, client)
    }

    /// How the request goes that hangs on this job.
    pub(super) async fn durable_status(
        &self,
        token: &Token,
        job: &str,
        client: IpAddr,
    ) -> Response {
        // A dry run's is none.
        let Ok(id) = job.parse::<JobId>() else {
            let message = "nothing was made for this request: it was a dry run";
            return error_response::api(404, message);
        };
        match self.find_job(&id, Shape::Api, client).await {
            Ok(record) => self.status_of(token, &record),
            Err(refusal) => refusal,
        }
    }

    fn status_of(&self, token: &Token, record: &JobRecord) -> Response {
        let id = record.job.id.as_str();
        let (mirror_id, build_id) = match record.job.kind {
            DurableKind::Mirror => (Some(id), None),
            DurableKind::Freeze => (None, Some(id)),
        };
        let ended = record.ended.as_ref();
        let reason = ended.and_then(|ended| ended.outcome.reason());
        let details_uri = reason
            .as_ref()
            .map(|_| format!("{}/view/{}/{id}", self.shared.url, kind_of(&record.job.id)));
        Response::new(200).json(&Status {
            id: token.as_str(),
            status: match ended {
                Some(_) => "DONE",
                None => "BUILDING",
            },
            mirror_id,
            build_id,
            succeeded: record.is_done(),
            reason,
            details_uri,
            creation_time: instant(record.job.created),
            duration: duration(record),
        })
    }
}

/// Known clients need `succeeded` and `creationTime`, and a mirror's id where a build's is not.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status<'a> {
    id: &'a str,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mirror_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    build_id: Option<&'a str>,
    succeeded: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details_uri: Option<String>,
    creation_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration: Option<Box<RawValue>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MirrorRecord<'a> {
    mirror_id: &'a str,
    digest: String,
    source_image: &'a str,
    target_image: String,
    /// Without one, all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<String>,
    creation_time: String,
    offset_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_name: Option<&'a str>,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logs: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BuildRecord<'a> {
    build_id: &'a str,
    target_image: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_name: Option<&'a str>,
    start_time: String,
    offset_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_status: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<String>,
    format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BuildStatus<'a> {
    id: &'a str,
    status: &'static str,
    start_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    succeeded: Option<bool>,
}

/// As paths have it.
pub(super) fn kind_of(id: &JobId) -> &'static str {
    match id.kind() {
        DurableKind::Mirror => "mirrors",
        DurableKind::Freeze => "builds",
    }
}

/// With a fraction: without one, clients read nanoseconds.
pub(super) fn seconds(duration: Duration) -> Box<RawValue> {
    let text = format!("{}.{:09}", duration.as_secs(), duration.subsec_nanos());
    RawValue::from_string(text).expect("a decimal number is JSON")
}

/// Of what is over.
fn duration(record: &JobRecord) -> Option<Box<RawValue>> {
    let ended = record.ended.as_ref();
    ended.map(|ended| seconds(record.duration(ended.at)))
}

fn short_state(record: &JobRecord) -> &'static str {
    match record.ended {
        Some(_) => "COMPLETED",
        None => "PENDING",
    }
}

/// A program's: absent if it did not come to its own end.
fn exit_code(outcome: &Outcome) -> Option<i32> {
    match outcome {
        Outcome::Done { .. } => Some(0),
        Outcome::Failed(_) => Some(1),
        Outcome::TimedOut | Outcome::Cancelled | Outcome::Superseded { .. } => None,
    }
}

fn described(record: &JobRecord) -> Response {
    let job = &record.job;
    let outcome = record.ended.as_ref().map(|ended| &ended.outcome);
    match job.kind {
        DurableKind::Mirror => Response::new(200).json(&MirrorRecord {
            mirror_id: job.id.as_str(),
            digest: job.digest.to_string(),
            source_image: &job.image,
            target_image: job.target.to_string(),
            platform: job.platform.as_ref().map(ToString::to_string),
            creation_time: instant(job.created),
            offset_id: &job.zone,
            user_name: job.user.as_deref(),
            status: short_state(record),
            duration: duration(record),
            exit_code: outcome.and_then(exit_code),
            logs: outcome.and_then(Outcome::reason),
        }),
        DurableKind::Freeze => Response::new(200).json(&BuildRecord {
            build_id: job.id.as_str(),
            target_image: job.target.to_string(),
            user_name: job.user.as_deref(),
            start_time: instant(job.created),
            offset_id: &job.zone,
            duration: duration(record),
            exit_status: outcome.and_then(exit_code),
            platform: job.platform.as_ref().map(ToString::to_string),
            format: "DOCKER",
            digest: match outcome {
                Some(Outcome::Done { digest, .. }) => Some(digest.to_string()),
                _ => None,
            },
        }),
    }
}

fn build_status(record: &JobRecord) -> Response {
    Response::new(200).json(&BuildStatus {
        id: record.job.id.as_str(),
        status: short_state(record),
        start_time: instant(record.job.created),
        duration: duration(record),
        succeeded: record.ended.as_ref().map(|_| record.is_done()),
    })
}
