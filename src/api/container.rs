//! The container request API: submit, status, revoke. A name is given out only for an image that exists and
//! that the caller may pull, so that a typo is an error here and not in the middle of a pipeline.

use std::{
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::{Instant, SystemTime},
};

use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    Api, Request, Response,
    basic_auth::is_account,
    durable::Asked,
    error_response::{self, Shape},
    jobs::seconds,
    record::instant,
    route::ApiVersion,
    submission::{Rejection, Submission},
    validation::{Additions, Kept, Wanted},
};
use crate::{
    blocking::Errand,
    credentials::{Claim, IdentityError},
    limits::client_key,
    oci::{Platforms, Reference, Registry, TagOrDigest},
    pull::PullError,
    requests::{Caller, ContainerRequest, Grant, Purpose, RequestDetails, Token},
    telemetry::metrics::{self, Counter},
};

/// Known clients take any other status than 200 for a failure, and need `succeeded` to stop polling.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Submitted<'a> {
    request_id: &'a str,
    container_token: &'a str,
    target_image: String,
    expiration: String,
    container_image: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    freeze: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mirror: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    succeeded: Option<bool>,
}

/// A request that keeps the rules.
struct Admitted {
    request: ContainerRequest,
    platforms: Platforms,
    /// What is to be put on the image, not looked at yet.
    additions: Option<Additions>,
    /// It is to stay.
    kept: Option<Kept>,
}

/// A submission that keeps the rules which need not know who asks.
enum Recognized {
    /// Of somebody who is known without asking, so all rules are kept.
    At(Box<Admitted>),
    Not(Box<(Submission, Claim)>),
}

impl Api {
    pub(super) async fn submit(&self, version: ApiVersion, request: &Request) -> Response {
        self.note_name(request.head.host());
        let Admitted {
            request: mut container_request,
            platforms,
            additions,
            kept,
        } = match self.admit(version, request).await {
            Ok(admitted) => admitted,
            Err(refusal) => return refusal,
        };
        let digest = match self
            .pull
            .resolve(&container_request.caller, &container_request.image)
            .await
        {
            Ok(digest) => digest,
            Err(error) => return refused_image(&container_request, &error),
        };
        if let Some(additions) = additions {
            let caller = &container_request.caller;
            let overlay = self.overlay(caller, additions, platforms.clone());
            let (overlay, layers) = match overlay.await {
                Ok(overlay) => overlay,
                Err(refusal) => return refusal,
            };
            let image = &container_request.image;
            if let Err(error) = self.pull.rehearse(caller, image, digest, &overlay).await {
                return refused_image(&container_request, &error);
            }
            container_request.overlay = Some(overlay);
            container_request.layers = layers;
        } else if kept
            .as_ref()
            .is_some_and(|kept| kept.chooses(&container_request))
        {
            let (caller, image) = (&container_request.caller, &container_request.image);
            let are_there = self
                .pull
                .ensure_platforms(caller, image, digest, &platforms);
            if let Err(error) = are_there.await {
                return refused_image(&container_request, &error);
            }
        }
        if let Some(kept) = kept {
            let asked = Asked {
                request: container_request,
                digest,
                platforms,
                kept,
            };
            return self.submit_durable(version, asked).await;
        }
        // Layers are written to the disk.
        let lane = match container_request.layers.is_empty() {
            true => Errand::Records,
            false => Errand::Commit,
        };
        let requests = Arc::clone(&self.shared.requests);
        let issued = self.shared.pool.run(lane, move || {
            requests.issue(container_request, Some(digest), SystemTime::now())
        });
        match issued.await {
            Ok(Ok(grant)) => {
                metrics::add(Counter::RequestsIssued, 1);
                tracing::info!(caller = %grant.caller, image = %grant.image, token = ?grant.token,
                    is_changed = grant.overlay.is_some(), "an ephemeral name was given out");
                self.pull.note_resolution(&grant, digest);
                Response::new(200).json(&self.submitted(version, &grant))
            }
            Ok(Err(error)) => error_response::of_store(Shape::Api, &error),
            Err(error) => error_response::of_pool(Shape::Api, error),
        }
    }

    /// Names that lead clients to their own machines are the first thing to go wrong behind a proxy. Nobody's Host field is
    /// believed for it, so the operator has to be told; once is enough.
    fn note_name(&self, host: &str) {
        let is_local = |name: &str| {
            let name = name.parse::<Registry>();
            name.ok().map(|name| name.is_this_machine())
        };
        let ours = &self.shared.authority;
        let is_misnamed = is_local(ours) == Some(true) && is_local(host) == Some(false);
        if is_misnamed && !self.shared.is_misnamed.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                host,
                "a client calls this server otherwise than `url` does, and gets names that begin with {ours}, its own \
                 machine; set `url` to what clients call this server"
            );
        }
    }

    /// Parses, checks and authenticates: on the pool, since a body may have megabytes.
    async fn admit(&self, version: ApiVersion, request: &Request) -> Result<Admitted, Response> {
        let admitted = self.admit_by_rules(version, request).await?;
        match admitted {
            Ok(admitted) => {
                let quotas = &self.shared.quotas;
                quotas.take_request(&admitted.request.caller, request.client)?;
                Ok(admitted)
            }
            Err(refusal) => {
                tracing::info!(client = %request.client, reason = %refusal, "a container request was refused");
                Err(refusal.response())
            }
        }
    }

    async fn admit_by_rules(
        &self,
        version: ApiVersion,
        request: &Request,
    ) -> Result<Result<Admitted, Refusal>, Response> {
        let busy = |error| error_response::of_pool(Shape::Api, error);
        let (body, desk, client) = (
            request.body.clone(),
            Arc::clone(&self.shared.desk),
            request.client,
        );
        let recognized = self.shared.pool.run(Errand::Grants, move || {
            let submission = Submission::parse(&body)?;
            submission.check_before_identity(version)?;
            let claim = submission.claim();
            Ok::<_, Refusal>(match desk.keyring().recognize(&claim)? {
                Some(caller) => {
                    let admitted = admitted(version, submission, caller, client)?;
                    Recognized::At(Box::new(admitted))
                }
                None => Recognized::Not(Box::new((submission, claim))),
            })
        });
        let (submission, claim) = match recognized.await.map_err(busy)? {
            Ok(Recognized::At(admitted)) => return Ok(Ok(*admitted)),
            Ok(Recognized::Not(unknown)) => *unknown,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let caller = match self.authenticate(claim, client).await? {
            Ok(caller) => caller,
            Err(error) => return Ok(Err(error.into())),
        };
        let admitted = self.shared.pool.run(Errand::Grants, move || {
            admitted(version, submission, caller, client)
        });
        admitted.await.map_err(busy)
    }

    /// Who asks. What goes wrong is answered.
    pub(super) async fn identify(&self, claim: Claim, client: IpAddr) -> Result<Caller, Response> {
        let desk = Arc::clone(&self.shared.desk);
        let recognized = self.shared.pool.run(Errand::Grants, move || {
            let caller = desk.keyring().recognize(&claim);
            (claim, caller)
        });
        let recognized = recognized.await;
        let (claim, caller) =
            recognized.map_err(|error| error_response::of_pool(Shape::Api, error))?;
        let identified = match caller {
            Ok(Some(caller)) => return Ok(caller),
            Ok(None) => self.authenticate(claim, client).await?,
            Err(error) => Err(error),
        };
        identified.map_err(|error| {
            tracing::info!(%client, reason = %error, "a request was refused");
            Refusal::from(error).response()
        })
    }

    /// Not on the lane of those who can be recognized at once. Who guesses must not make us ask for each guess.
    async fn authenticate(
        &self,
        claim: Claim,
        client: IpAddr,
    ) -> Result<Result<Caller, IdentityError>, Response> {
        self.may_guess(Shape::Api, client)?;
        // Many guesses may stand in line before the first is known to be wrong.
        let shared = Arc::clone(&self.shared);
        let is_wanted = move || {
            let budget = shared.guesses.peek(client_key(client), Instant::now());
            budget.is_ok()
        };
        let answer = self.shared.desk.authenticate(claim, is_wanted).await;
        let answer = answer.map_err(|error| error_response::of_pool(Shape::Api, error))?;
        if answer.is_err() {
            self.may_guess(Shape::Api, client)?;
        }
        if matches!(answer, Err(IdentityError::UnknownToken)) {
            let budget = &self.shared.guesses;
            let _ = budget.take(client_key(client), Instant::now());
        }
        Ok(answer)
    }

    fn submitted<'a>(&self, version: ApiVersion, grant: &'a Grant) -> Submitted<'a> {
        let v2 = |value| (version == ApiVersion::V1Alpha2).then_some(value);
        Submitted {
            request_id: grant.token.as_str(),
            container_token: grant.token.as_str(),
            target_image: self.target_image(&grant.token, &grant.image),
            expiration: instant(grant.expires),
            container_image: grant.image.to_string(),
            freeze: v2(false),
            mirror: v2(false),
            succeeded: v2(true),
        }
    }

    /// The source registry is not part of it: the request knows it.
    pub(super) fn target_image(&self, token: &Token, image: &Reference) -> String {
        let separator = match image.version {
            TagOrDigest::Tag(_) => ':',
            TagOrDigest::Digest(_) => '@',
        };
        format!(
            "{}/wt/{token}/{}{separator}{}",
            self.shared.authority, image.repository, image.version
        )
    }

    /// A plain request is done when it is submitted, and so is one for what was there.
    pub(super) async fn status(&self, token: Token, client: IpAddr) -> Response {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Status<'a> {
            id: &'a str,
            status: &'static str,
            succeeded: bool,
            creation_time: String,
            duration: Box<RawValue>,
        }
        let grant = match self.grant(&token, Shape::Api, client).await {
            Ok(grant) => grant,
            Err(refusal) => return refusal,
        };
        let job = grant.durable.as_ref().and_then(|it| it.job.as_deref());
        if let Some(job) = job {
            return self.durable_status(&token, job, client).await;
        }
        let age = SystemTime::now()
            .duration_since(grant.created)
            .unwrap_or_default();
        Response::new(200).json(&Status {
            id: token.as_str(),
            status: "DONE",
            succeeded: true,
            creation_time: instant(grant.created),
            duration: seconds(age),
        })
    }

    pub(super) async fn revoke(&self, token: Token, request: &Request) -> Response {
        if let Err(refusal) = self.may_guess(Shape::Api, request.client) {
            return refusal;
        }
        if !is_account(&request.head.headers, &self.shared.accounts) {
            let refusal =
                Response::new(401).field("WWW-Authenticate", "Basic realm=\"tidegate accounts\"");
            return self.refuse_guess(refusal, Shape::Api, request.client);
        }
        let (requests, jobs) = (
            Arc::clone(&self.shared.requests),
            Arc::clone(&self.shared.jobs),
        );
        let revoked = self.shared.pool.run(Errand::Records, move || {
            let now = SystemTime::now();
            let durable = requests.record(&token)?.and_then(|record| record.durable);
            let was_valid = requests.revoke(&token, now)?;
            let job = durable.and_then(|durable| durable.job?.parse().ok());
            let released = match job.filter(|_| was_valid) {
                Some(job) => jobs.release(&job, now),
                None => Ok(()),
            };
            Ok((was_valid, released))
        });
        match revoked.await {
            Ok(Ok((_, Err(error)))) => error_response::of_jobs(Shape::Api, &error),
            Ok(Ok((true, Ok(())))) => {
                tracing::info!(?token, "a token was revoked");
                Response::new(200)
            }
            Ok(Ok((false, Ok(())))) => error_response::unknown_token(Shape::Api),
            Ok(Err(error)) => error_response::of_store(Shape::Api, &error),
            Err(error) => error_response::of_pool(Shape::Api, error),
        }
    }
}

/// The rules that come after who asks.
fn admitted(
    version: ApiVersion,
    submission: Submission,
    caller: Caller,
    client: IpAddr,
) -> Result<Admitted, Refusal> {
    let timestamp = submission.timestamp.as_deref();
    let mut details = RequestDetails {
        container_image: submission.container_image.clone().unwrap_or_default(),
        platform: None,
        tower_endpoint: submission.tower_endpoint.clone(),
        workflow_id: submission.workflow_id.clone(),
        fingerprint: submission.fingerprint.clone(),
        timestamp: timestamp.and_then(|text| text.parse().ok()),
        address: client,
    };
    let Wanted {
        image,
        platforms,
        additions,
        kept,
    } = submission.into_wanted(version)?;
    details.platform = platforms.as_ref().map(Platforms::to_string);
    let request = ContainerRequest {
        image,
        caller: Arc::new(caller),
        overlay: None,
        layers: Vec::new(),
        purpose: Purpose::Name,
        details,
    };
    Ok(Admitted {
        request,
        platforms: platforms.unwrap_or_default(),
        additions,
        kept,
    })
}

fn refused_image(request: &ContainerRequest, error: &PullError) -> Response {
    tracing::info!(caller = %request.caller, image = %request.image, %error, "a container request was refused");
    error_response::of_submit(error)
}

/// Why a submission did not become a container request.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Rejected(#[from] Rejection),
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl Refusal {
    fn response(&self) -> Response {
        let message = self.to_string();
        match self {
            Self::Rejected(Rejection::Invalid(_)) => error_response::api(400, &message),
            Self::Rejected(Rejection::Unsupported(_)) => error_response::api(501, &message),
            Self::Identity(
                IdentityError::AnonymousOff
                | IdentityError::NoDirectory
                | IdentityError::UnknownEndpoint { .. }
                | IdentityError::NotPaired { .. },
            ) => error_response::api(400, &message),
            // With an empty body, as clients know it: they renew their token then.
            Self::Identity(IdentityError::UnknownToken) => Response::new(401),
            Self::Identity(IdentityError::WorkspaceDenied { .. }) => {
                error_response::api(403, &message)
            }
            Self::Identity(IdentityError::NoAnswer { .. }) => {
                error_response::no_answer(Shape::Api, &message)
            }
        }
    }
}
