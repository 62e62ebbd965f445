//! The admin listener's service: is the process alive, how does it do, looking after its cache and its
//! jobs, and whose login it would use.

use std::{rc::Rc, sync::Arc};

use super::{
    Request, Response, Service,
    error_response::{self, Shape},
    route::AdminRoute,
    status,
};
use crate::{
    blocking::Pool,
    cache::Cache,
    credentials::Desk,
    http::{Method, RequestHead},
    mirror::jobs::Jobs,
    pull::Pull,
    telemetry::metrics::{self, Gauge},
};

/// What the process knows of itself.
pub trait Readiness: Send + Sync + 'static {
    /// `Err`: why not.
    fn ready(&self) -> Result<(), &'static str>;
    fn gauges(&self) -> Vec<Gauge>;
}

pub struct Admin {
    readiness: Arc<dyn Readiness>,
    pub(super) cache: Cache,
    pub(super) pool: Arc<Pool>,
    pub(super) pull: Rc<Pull>,
    pub(super) desk: Arc<Desk>,
    pub(super) jobs: Arc<Jobs>,
}

impl Admin {
    pub fn new(
        readiness: Arc<dyn Readiness>,
        cache: Cache,
        pool: Arc<Pool>,
        pull: Rc<Pull>,
        desk: Arc<Desk>,
        jobs: Arc<Jobs>,
    ) -> Self {
        Self {
            readiness,
            cache,
            pool,
            pull,
            desk,
            jobs,
        }
    }
}

impl Service for Admin {
    async fn answer(&self, request: Request) -> Response {
        let head = &request.head;
        let mut response = match AdminRoute::parse(head.method, head.path()) {
            Ok(AdminRoute::Landing) => status::admin_landing(),
            Ok(AdminRoute::Live) => Response::new(200).content("text/plain", "live\n"),
            Ok(AdminRoute::Ready) => match self.readiness.ready() {
                Ok(()) => Response::new(200).content("text/plain", "ready\n"),
                Err(why) => Response::new(503).content("text/plain", format!("{why}\n")),
            },
            Ok(AdminRoute::Metrics) => {
                let text = metrics::render(&self.readiness.gauges());
                Response::new(200).content("text/plain; version=0.0.4; charset=utf-8", text)
            }
            Ok(AdminRoute::Explain) => self.explain(&request).await,
            Ok(AdminRoute::Jobs) => self.list_jobs(head),
            Ok(AdminRoute::CancelJob(id)) => self.cancel_job(id, head).await,
            Ok(AdminRoute::Cache(route)) => self.look_after_cache(route, head).await,
            Err(error) => error_response::of_route(Shape::Api, &error),
        };
        if head.method == Method::Head {
            response.drop_body();
        }
        response
    }

    fn body_limit(&self, head: &RequestHead) -> Option<u64> {
        match AdminRoute::parse(head.method, head.path()) {
            Ok(AdminRoute::Explain) => Self::explain_body_limit(head),
            _ => None,
        }
    }
}
