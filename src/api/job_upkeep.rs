//! `/jobs` on the admin listener: which mirrors and freezes wait and run, and the way to end one.

use std::{sync::Arc, time::SystemTime};

use serde::Serialize;

use super::{
    Response,
    admin::Admin,
    error_response::{self, Shape, api},
    operator::{NotOperator, ensure_asked_by_address, ensure_no_page},
    record::instant,
    route::RouteError,
};
use crate::{
    blocking::Errand,
    http::RequestHead,
    mirror::jobs::{JobId, JobRecord},
};

/// Comes with every request that changes something.
pub const JOBS_GUARD: &str = "jobs";

#[derive(Serialize)]
struct Job {
    id: String,
    kind: &'static str,
    /// Who shares it.
    tenant: String,
    source: String,
    target: String,
    created: String,
    /// 0: it waits for its first.
    attempts: u32,
    items: u64,
    items_done: u64,
    bytes: u64,
    bytes_done: u64,
}

impl Admin {
    pub(super) fn list_jobs(&self, head: &RequestHead) -> Response {
        if let Err(refusal) = ensure_asked_by_address(head) {
            return refused(&refusal);
        }
        let unfinished = self.jobs.unfinished();
        let jobs: Vec<Job> = unfinished.into_iter().map(|it| self.told(it)).collect();
        Response::new(200).json(&jobs)
    }

    fn told(&self, record: JobRecord) -> Job {
        let totals = self.jobs.totals(&record.job.id).unwrap_or_default();
        Job {
            id: record.job.id.to_string(),
            kind: record.job.kind.as_str(),
            tenant: record.job.tenant.to_string(),
            source: record.job.source.to_string(),
            target: record.job.target.to_string(),
            created: instant(record.job.created),
            attempts: record.attempts,
            items: totals.items,
            items_done: totals.items_over,
            bytes: totals.bytes,
            bytes_done: totals.bytes_done,
        }
    }

    pub(super) async fn cancel_job(&self, id: JobId, head: &RequestHead) -> Response {
        if let Err(refusal) = ensure_no_page(head, JOBS_GUARD) {
            return refused(&refusal);
        }
        let (jobs, wanted) = (Arc::clone(&self.jobs), id.clone());
        let cancelled = self.pool.run(Errand::Records, move || {
            jobs.cancel(&wanted, SystemTime::now())
        });
        match cancelled.await {
            Ok(true) => {
                tracing::info!(job = %id, "a job is cancelled by the operator");
                Response::new(200)
            }
            Ok(false) => error_response::of_route(Shape::Api, &RouteError::unknown_job(id.kind())),
            Err(error) => error_response::of_pool(Shape::Api, error),
        }
    }
}

fn refused(refusal: &NotOperator) -> Response {
    api(403, &refusal.to_string())
}
