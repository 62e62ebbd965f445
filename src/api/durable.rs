//! Mirrors and freezes: container requests for an image that stays, in a repository of the caller's. What can be known before
//! anything is copied is told to whoever asks: whether the image is there already, and whether the caller may push. The rest is
//! a job.

use std::{sync::Arc, time::SystemTime};

use serde::Serialize;

use super::{
    Api, Response,
    error_response::{self, Shape},
    record::instant,
    route::ApiVersion,
    validation::Kept,
};
use crate::{
    blocking::Errand,
    mirror::{
        CopyError, Destination, Frozen, NameError, Plan,
        jobs::{JobId, JobKey, SubmitError, Taken, Wish},
    },
    oci::{Digest, Platforms, Reference, TagOrDigest},
    pull::Access,
    requests::{ContainerRequest, Durable, DurableKind, Grant, Purpose, Tenant},
};

/// What is asked for, and that it exists.
pub(super) struct Asked {
    pub request: ContainerRequest,
    /// What the source is.
    pub digest: Digest,
    /// That were named, or the usual one: see `Kept::chooses`.
    pub platforms: Platforms,
    pub kept: Kept,
}

/// What is known when the request is answered.
enum Standing {
    /// It was only asked what would be.
    Dry {
        is_there: bool,
    },
    /// Whoever made it.
    There,
    Job(Taken),
}

/// Known clients wait for it unless `succeeded` is there, and read the job's id from `buildId`, a mirror's too.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Submitted<'a> {
    request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    container_token: Option<&'a str>,
    target_image: &'a str,
    container_image: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    expiration: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    build_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cached: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    freeze: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mirror: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    succeeded: Option<bool>,
}

impl Api {
    pub(super) async fn submit_durable(&self, version: ApiVersion, asked: Asked) -> Response {
        let kind = asked.kept.kind;
        match self.keep(asked).await {
            Ok((grant, standing)) => {
                let target = grant
                    .durable
                    .as_ref()
                    .map(|durable| durable.target.as_str());
                let target = target.unwrap_or_default();
                answer(version, kind, &grant, target, &standing)
            }
            Err(refusal) => refusal,
        }
    }

    async fn keep(&self, asked: Asked) -> Result<(Arc<Grant>, Standing), Response> {
        let caller = &asked.request.caller;
        let target = asked.target().map_err(|error| {
            let message = format!("buildRepository: {error}");
            tracing::info!(%caller, reason = message, "a container request was refused");
            error_response::api(400, &message)
        })?;
        if self.shared.own.covers(&target.registry, &target.repository) {
            let message = format!(
                "{}/{} is a repository of this server itself; name one of your own as buildRepository",
                target.registry, target.repository
            );
            tracing::info!(%caller, reason = message, "a container request was refused");
            return Err(error_response::api(400, &message));
        }
        let destination = Destination {
            registry: target.registry.clone(),
            repository: target.repository.clone(),
            version: target.version.clone(),
            caller: Arc::clone(caller),
        };
        let has_login = self.mirror.has_login(&destination).await;
        let has_login = has_login.map_err(|error| {
            tracing::info!(%caller, %target, %error, "a container request was refused");
            match &error {
                CopyError::Destination(error) => error_response::of_submit(error),
                error => error_response::api(400, &error.to_string()),
            }
        })?;
        // Before it is asked: a job may end in between.
        let tenant = Tenant::of(caller);
        let key = asked.key(&tenant, &target);
        let is_contested = self.shared.jobs.is_contested(&tenant, &target, &key);
        let outcome = self.outcome(&asked, &destination).await?;
        // Who cannot read what is there may be able to push all the same.
        let standing = self.mirror.standing(&destination).await.ok().flatten();
        let is_there = match asked.kept.kind {
            DurableKind::Mirror => standing == Some(outcome) && !is_contested,
            // Its tag has all in it that it is made of.
            DurableKind::Freeze => standing.is_some(),
        };
        if !is_there && !asked.kept.is_dry_run {
            let allowed = self.mirror.may_push(&destination).await;
            allowed.map_err(|error| {
                tracing::info!(%caller, %target, %error, "a container request was refused");
                let message = match has_login || error.is_transient() {
                    true => error.to_string(),
                    false => format!(
                        "your credentials have no login for {}, and without one: {error}",
                        target.registry
                    ),
                };
                match error.is_transient() {
                    true => error_response::unavailable(&message, error.retry_after()),
                    false => error_response::api(400, &message),
                }
            })?;
        }
        self.take(asked, target, is_there).await
    }

    /// What the target means when a mirror is done. A freeze has it in its tag.
    async fn outcome(&self, asked: &Asked, destination: &Destination) -> Result<Digest, Response> {
        let (DurableKind::Mirror, Some(platforms)) = (asked.kept.kind, asked.chosen()) else {
            return Ok(asked.digest);
        };
        let Reference {
            registry,
            repository,
            ..
        } = asked.request.image.clone();
        let plan = Plan {
            source: Access::by_caller(&destination.caller, registry, repository),
            version: TagOrDigest::Digest(asked.digest),
            destination: destination.clone(),
            platforms: Some(platforms),
            referrers: false,
        };
        self.mirror.outcome(&plan).await.map_err(|error| {
            let (caller, image) = (&destination.caller, &asked.request.image);
            tracing::info!(%caller, %image, %error, "a container request was refused");
            match &error {
                CopyError::Source(error) => error_response::of_submit(error),
                error => error_response::api(400, &error.to_string()),
            }
        })
    }

    /// The job, if one is needed, and the request that is told about it.
    async fn take(
        &self,
        asked: Asked,
        target: Reference,
        is_there: bool,
    ) -> Result<(Arc<Grant>, Standing), Response> {
        // Layers are written to the disk.
        let lane = match asked.request.layers.is_empty() {
            true => Errand::Records,
            false => Errand::Commit,
        };
        let (jobs, requests) = (
            Arc::clone(&self.shared.jobs),
            Arc::clone(&self.shared.requests),
        );
        let taken = self.shared.pool.run(lane, move || {
            let (kind, digest, now) = (asked.kept.kind, asked.digest, SystemTime::now());
            let mut told = without_layers(&asked.request);
            let is_dry_run = asked.kept.is_dry_run;
            let wish = asked.wish(target);
            let target = wish.target.to_string();
            let (standing, job) = if is_dry_run {
                let id = JobId::of_dry_run(kind);
                (Standing::Dry { is_there }, Some(id))
            } else if is_there {
                let id = jobs.last_done(&wish.key())?;
                (Standing::There, id.as_ref().map(JobId::to_string))
            } else {
                let taken = jobs.submit(wish, now)?;
                let text = taken.id().to_string();
                (Standing::Job(taken), Some(text))
            };
            told.purpose = Purpose::Durable(Durable { kind, target, job });
            match requests.issue(told, Some(digest), now) {
                Ok(grant) => Ok((grant, standing)),
                Err(error) => {
                    if let Standing::Job(Taken::Going(id)) = &standing {
                        jobs.release(id, now)?;
                    }
                    Err(SubmitError::from(error))
                }
            }
        });
        match taken.await {
            Ok(Ok(taken)) => Ok(taken),
            Ok(Err(error)) => Err(refused_job(&error)),
            Err(error) => Err(error_response::of_pool(Shape::Api, error)),
        }
    }
}

impl Kept {
    /// Whether the platform is more than a hint for whoever pulls. A freeze is for one, named or not; a mirror for the one that is
    /// named, or for all that there are.
    pub(super) fn chooses(&self, request: &ContainerRequest) -> bool {
        match self.kind {
            DurableKind::Freeze => true,
            DurableKind::Mirror => request.details.platform.is_some(),
        }
    }
}

impl Asked {
    fn target(&self) -> Result<Reference, NameError> {
        match self.kept.kind {
            DurableKind::Mirror => self.kept.place.mirrored(&self.request.image),
            DurableKind::Freeze => self.kept.place.frozen(&Frozen {
                source: &self.digest,
                platforms: &self.platforms,
                overlay: self.request.overlay.as_deref().map(|named| &**named),
            }),
        }
    }

    /// `None`: all that there is.
    fn chosen(&self) -> Option<Platforms> {
        let is_chosen = self.kept.chooses(&self.request);
        is_chosen.then(|| self.platforms.clone())
    }

    fn key(&self, tenant: &Tenant, target: &Reference) -> JobKey {
        let chosen = self.chosen();
        JobKey::of(
            self.kept.kind,
            tenant,
            &self.digest,
            target,
            chosen.as_ref(),
        )
    }

    fn wish(self, target: Reference) -> Wish {
        Wish {
            kind: self.kept.kind,
            platform: self.chosen(),
            request: self.request,
            digest: self.digest,
            target,
        }
    }
}

/// They belong to the job.
fn without_layers(request: &ContainerRequest) -> ContainerRequest {
    ContainerRequest {
        image: request.image.clone(),
        caller: Arc::clone(&request.caller),
        overlay: request.overlay.clone(),
        layers: Vec::new(),
        purpose: Purpose::Name,
        details: request.details.clone(),
    }
}

fn answer(
    version: ApiVersion,
    kind: DurableKind,
    grant: &Grant,
    target: &str,
    standing: &Standing,
) -> Response {
    let job = grant
        .durable
        .as_ref()
        .and_then(|durable| durable.job.as_deref());
    let (cached, succeeded) = match standing {
        Standing::Dry { is_there } => (*is_there, Some(true)),
        Standing::There => (true, Some(true)),
        Standing::Job(Taken::Going(_)) => (false, None),
        Standing::Job(Taken::Failed(_)) => (true, Some(false)),
    };
    let request_id = grant.token.as_str();
    let submitted = match version {
        ApiVersion::V1Alpha2 => Submitted {
            request_id,
            container_token: None,
            target_image: target,
            container_image: target,
            expiration: None,
            build_id: job,
            cached: job.is_some().then_some(cached),
            freeze: Some(kind == DurableKind::Freeze),
            mirror: Some(kind == DurableKind::Mirror),
            succeeded,
        },
        ApiVersion::V1Alpha1 => Submitted {
            request_id,
            container_token: Some(request_id),
            target_image: target,
            container_image: target,
            expiration: Some(instant(grant.expires)),
            build_id: job.filter(|_| matches!(standing, Standing::Job(Taken::Going(_)))),
            cached: None,
            freeze: None,
            mirror: None,
            succeeded: None,
        },
    };
    Response::new(200).json(&submitted)
}

fn refused_job(error: &SubmitError) -> Response {
    match error {
        SubmitError::Full(full) => error_response::of_full(*full),
        SubmitError::Requests(error) => error_response::of_store(Shape::Api, error),
        SubmitError::Store(error) => error_response::of_jobs(Shape::Api, error),
    }
}
