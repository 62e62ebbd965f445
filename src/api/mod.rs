//! What tidegate answers to whom: the registry API under `/v2` and the container request API. Handlers are thin:
//! they speak HTTP and know no upstream. A request is routed (a pure parse), then authorized, then told
//! as a story by `pull`; the answer goes back as a value, and `server` sends it.

mod admin;
mod authorize;
mod basic_auth;
mod cache_upkeep;
mod container;
mod credential_check;
mod durable;
mod error_response;
mod explain;
mod inspect;
mod job_upkeep;
mod jobs;
mod json_body;
mod layers;
mod openapi;
mod operator;
mod overlay;
mod pages;
mod pairing;
mod quota;
mod record;
mod registry;
mod response;
pub mod route;
mod status;
mod submission;
mod validation;

pub use admin::{Admin, Readiness};
pub use cache_upkeep::CACHE_GUARD;
pub use credential_check::Checks;
pub use explain::{CREDENTIALS_GUARD, Explained, Verdict};
pub use job_upkeep::{JOBS_GUARD, UnfinishedJob};
pub use operator::GUARD;
pub use pages::inspection;
pub use quota::{Options, Quotas};
pub use response::{Length, Response, Upgrade};

pub use crate::pull::{Body, BodyError, Piece};

use std::{
    collections::BTreeMap,
    net::IpAddr,
    rc::Rc,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    blocking::Pool,
    credentials::{Desk, OwnOptions},
    http::{HeadError, Method, RequestHead},
    limits::{Budget, client_key},
    mirror::{Mirror, jobs::Jobs},
    oci::TagOrDigest,
    platform::Pairing,
    pull::{Access, Pull},
    requests::Requests,
};
use error_response::Shape;
use route::{Route, RouteError, Wish};

/// A request, its body read where one was wanted.
pub struct Request {
    pub head: RequestHead,
    pub body: Bytes,
    pub client: IpAddr,
}

/// What a listener serves.
pub trait Service: 'static {
    fn answer(&self, request: Request) -> impl Future<Output = Response>;

    /// The largest body that this request may have; `None`: its body is of no interest.
    fn body_limit(&self, head: &RequestHead) -> Option<u64>;

    /// The answer to what is no request. `start` is what there is of its first line.
    fn answer_malformed(&self, start: &[u8], error: &HeadError) -> Response {
        let shape = if start.windows(4).take(16).any(|four| four == b" /v2") {
            Shape::Registry
        } else {
            Shape::Api
        };
        error_response::malformed(shape, error)
    }

    /// The answer to a body above `body_limit`, or to one that cannot be read.
    fn answer_bad_body(&self, status: u16, message: &str) -> Response {
        error_response::plain(Shape::Api, status, message)
    }
}

/// How many tokens a client may guess wrong: 60 at once, then one a second. At that pace 62 bits last.
const GUESSES: u32 = 60;
const GUESS_INTERVAL: Duration = Duration::from_secs(1);

/// A login and an image: some kilobytes.
const LARGEST_QUESTION: u64 = 256 << 10;

/// What a name without a registry means everywhere.
const DOCKER_HUB: &str = "docker.io";

/// Who has guessed how often, for all cores.
pub type Guesses = Budget<IpAddr>;

pub fn guesses() -> Guesses {
    Budget::new(GUESSES, GUESS_INTERVAL)
}

/// The public listeners' service, on one core.
pub struct Api {
    pull: Rc<Pull>,
    mirror: Rc<Mirror>,
    shared: Arc<Shared>,
}

/// What the handlers of all cores share.
pub struct Shared {
    pub pool: Arc<Pool>,
    pub requests: Arc<Requests>,
    pub jobs: Arc<Jobs>,
    pub pairing: Arc<Pairing>,
    pub desk: Arc<Desk>,
    pub guesses: Guesses,
    pub quotas: Quotas,
    pub checks: Checks,
    /// Starts every ephemeral name.
    pub authority: String,
    /// Starts every link to a page.
    pub url: String,
    /// Somebody calls this server otherwise than its names do, and the log has it.
    pub is_misnamed: AtomicBool,
    /// Repositories that nobody else pushes to.
    pub own: OwnOptions,
    /// Who may revoke: name → SHA-256 of the password, in lower-case hex.
    pub accounts: BTreeMap<String, String>,
    pub max_body_size: u64,
}

impl Api {
    pub fn new(pull: Rc<Pull>, mirror: Rc<Mirror>, shared: Arc<Shared>) -> Self {
        Self {
            pull,
            mirror,
            shared,
        }
    }

    async fn dispatch(&self, request: &Request) -> Response {
        let head = &request.head;
        let path = head.path();
        let shape = Shape::of(path);
        let route = match Route::parse(head.method, path) {
            Ok(route) => self.with_namespace(route, head),
            Err(error) => self.route_by_namespace(error, head),
        };
        match route {
            Err(RouteError::UnknownToken) => self.refuse_token(shape, request.client),
            Err(error) => error_response::of_route(shape, &error),
            Ok(Route::Version) => registry::version(),
            Ok(Route::Pull { name, wish }) => match self.authorize(&name, request.client).await {
                Ok(access) => match self.pay(&access, &wish, request.client) {
                    Ok(()) => self.serve_wish(head, &name, &access, wish).await,
                    Err(refusal) => refusal,
                },
                Err(refusal) => refusal,
            },
            Ok(Route::SubmitContainer(version)) => self.submit(version, request).await,
            Ok(Route::DescribeToken(token)) => self.describe(token, request.client).await,
            Ok(Route::RevokeToken(token)) => self.revoke(token, request).await,
            Ok(Route::Record(token)) => self.record(token, request.client).await,
            Ok(Route::Status(token)) => self.status(token, request.client).await,
            Ok(Route::Job(id, part)) => self.job(id, part, request.client).await,
            Ok(Route::JobPage(id)) => self.job_page(id, request.client).await,
            Ok(Route::Inspect) => self.inspect(request).await,
            Ok(Route::CheckCredentials(version)) => self.check_credentials(version, request).await,
            Ok(Route::OpenApi) => openapi::description(),
            Ok(Route::Pair(token)) => self.pair(token, request),
            Ok(Route::ContainerPage(token)) => self.container_page(token, request.client).await,
            Ok(Route::InspectPage) => self.inspect_page(request).await,
            Ok(Route::ServiceInfo) => status::service_info(),
            Ok(Route::Health) => status::health(),
            Ok(Route::Landing) => status::landing(&self.shared.url),
        }
    }

    /// Only what is asked for by digest costs something: a pull's manifests, and none of its blobs.
    fn pay(&self, access: &Access, wish: &Wish, client: IpAddr) -> Result<(), Response> {
        match wish {
            Wish::Manifest(TagOrDigest::Digest(_)) => {
                self.shared.quotas.take_pull(&access.caller, client)
            }
            Wish::Manifest(TagOrDigest::Tag(_))
            | Wish::Blob(_)
            | Wish::TagList
            | Wish::Referrers(_) => Ok(()),
        }
    }

    /// containerd names the registry that it mirrors in `?ns=`; the path is then the repository alone. Our own
    /// name in there says nothing new.
    fn with_namespace(&self, route: Route, head: &RequestHead) -> Result<Route, RouteError> {
        match (&route, self.namespace(head)) {
            // With `override_path` the path names the registry too.
            (
                Route::Pull {
                    name: route::Name::Direct { registry, .. },
                    ..
                },
                Some(namespace),
            ) if namespace.parse().ok().as_ref() != Some(registry) => {
                Route::parse(head.method, &namespaced(head.path(), &namespace))
            }
            _ => Ok(route),
        }
    }

    fn route_by_namespace(
        &self,
        error: RouteError,
        head: &RequestHead,
    ) -> Result<Route, RouteError> {
        match (&error, self.namespace(head)) {
            (RouteError::NoRegistry { .. } | RouteError::Name(_), Some(namespace)) => {
                Route::parse(head.method, &namespaced(head.path(), &namespace))
            }
            // Docker asks its `registry-mirrors` for Docker Hub's images, and for no others, without saying so.
            (RouteError::NoRegistry { .. }, None) => {
                Route::parse(head.method, &namespaced(head.path(), DOCKER_HUB))
            }
            _ => Err(error),
        }
    }

    fn namespace(&self, head: &RequestHead) -> Option<String> {
        let namespace = head
            .query()?
            .split('&')
            .find_map(|pair| pair.strip_prefix("ns="))?;
        let namespace = crate::http::percent_decode(namespace)?;
        let is_ours = namespace == self.shared.authority || namespace == head.host();
        (!is_ours && !namespace.contains('/')).then_some(namespace)
    }

    fn refuse_token(&self, shape: Shape, client: IpAddr) -> Response {
        self.refuse_guess(error_response::unknown_token(shape), shape, client)
    }

    /// A client that guesses is slowed down; one that holds a good token never notices.
    fn refuse_guess(&self, refusal: Response, shape: Shape, client: IpAddr) -> Response {
        match self.shared.guesses.take(client_key(client), Instant::now()) {
            Ok(()) => refusal,
            Err(wait) => error_response::too_many_guesses(shape, wait),
        }
    }
}

fn namespaced(path: &str, namespace: &str) -> String {
    let rest = path.strip_prefix("/v2/").unwrap_or_default();
    format!("/v2/{namespace}/{rest}")
}

impl Service for Api {
    async fn answer(&self, request: Request) -> Response {
        let mut response = self.dispatch(&request).await;
        if Shape::of(request.head.path()) == Shape::Registry {
            // Old clients look for it.
            response = response.fixed("Docker-Distribution-Api-Version: registry/2.0\r\n");
        }
        if request.head.method == Method::Head {
            response.drop_body();
        }
        response
    }

    fn body_limit(&self, head: &RequestHead) -> Option<u64> {
        match Route::parse(head.method, head.path()) {
            Ok(Route::SubmitContainer(_)) => Some(self.shared.max_body_size),
            Ok(Route::Inspect | Route::CheckCredentials(_)) => {
                Some(LARGEST_QUESTION.min(self.shared.max_body_size))
            }
            _ => None,
        }
    }
}
