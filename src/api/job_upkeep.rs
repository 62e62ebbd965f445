//! `/jobs` on the admin listener: which mirrors and freezes wait and run, and the way to end one.

use std::{sync::Arc, time::SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    Response,
    admin::Admin,
    error_response::{self, Shape, api},
    operator::{NotOperator, ensure_asked_by_address, ensure_no_page},
    record::instant,
};
use crate::{
    blocking::Errand,
    http::RequestHead,
    mirror::jobs::{JobId, JobRecord},
};

/// Comes with every request that changes something.
pub const JOBS_GUARD: &str = "jobs";

/// One that waits or runs, as an operator sees it.
#[derive(Serialize, Deserialize)]
pub struct UnfinishedJob {
    pub id: String,
    /// `mirror`, `freeze`
    pub kind: String,
    /// Who shares it.
    pub tenant: String,
    pub source: String,
    pub target: String,
    /// RFC 3339
    pub created: String,
    /// 0: it waits for its first.
    pub attempts: u32,
    /// Blobs and manifests, as far as they are known yet.
    pub items: u64,
    pub items_done: u64,
    pub bytes: u64,
    pub bytes_done: u64,
}

impl Admin {
    pub(super) fn list_jobs(&self, head: &RequestHead) -> Response {
        if let Err(refusal) = ensure_asked_by_address(head) {
            return refused(&refusal);
        }
        let unfinished = self.jobs.unfinished();
        let jobs: Vec<UnfinishedJob> = unfinished.into_iter().map(|it| self.told(it)).collect();
        Response::new(200).json(&jobs)
    }

    fn told(&self, record: JobRecord) -> UnfinishedJob {
        let totals = self.jobs.totals(&record.job.id).unwrap_or_default();
        UnfinishedJob {
            id: record.job.id.to_string(),
            kind: record.job.kind.as_str().to_owned(),
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
                Response::new(200).json(&json!({"id": id.to_string()}))
            }
            Ok(false) => api(404, "no job of this id waits or runs"),
            Err(error) => error_response::of_pool(Shape::Api, error),
        }
    }
}

fn refused(refusal: &NotOperator) -> Response {
    api(403, &refusal.to_string())
}
