//! One request to a registry, with all that it may need to get through: credentials, one renewal of what they got us and
//! one of themselves, redirects, and patience with a registry that is busy. Credentials go to the registry's own origin only.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use super::{
    challenges::Rebuff,
    endpoint::Endpoint,
    error::{Busy, FetchError, Said, Service},
    exchange::{ExchangeError, Request, Response},
    fetch::{Source, Upstream},
    login::{Authorization, Login, has_login_ended},
    rights::Rights,
};
use crate::{
    http::{Challenge, Method, ResponseHead, Scheme, Url, parse_challenges},
    net::{ConnectError, ResolveError},
    oci::Registry,
    telemetry::metrics::{self, Counter},
};

pub(super) const MOST_REDIRECTS: usize = 10;
/// A token that has ended, and then another scope or scheme than was known. More would go in circles.
const MOST_RENEWALS: u32 = 2;
const LARGEST_ERROR: usize = 64 << 10;
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// A registry that asks for more patience than this is not waited for; its client is told.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What to do with a redirect.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Follow {
    Always,
    /// Except to other places than the registry itself.
    WithinRegistry,
}

pub(super) struct Wish<'a> {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) accept: Option<&'a str>,
    /// This part, or what the registry makes of it.
    pub(super) part: Option<Range<u64>>,
    pub(super) follow: Follow,
    /// For messages: `manifest acme/app:v1`.
    pub(super) what: String,
}

/// RFC 9110 §14.1.2. An end beyond every body stands for the rest.
pub(super) fn range_field(part: &Range<u64>) -> String {
    match part.end {
        u64::MAX => format!("bytes={}-", part.start),
        end => format!("bytes={}-{}", part.start, end.saturating_sub(1)),
    }
}

impl Upstream {
    pub(super) async fn send(
        &self,
        source: Source<'_>,
        wish: Wish<'_>,
    ) -> Result<Response, FetchError> {
        let endpoint = self.endpoint(source.registry)?;
        let started = Instant::now();
        let rights = Rights::pull(source.repository);
        let mut authorization = self
            .authorizer
            .authorization(&endpoint, rights, source.login)
            .await?;
        let mut trial = Trial::new(rights, source.login);
        let mut attempt = 0;
        loop {
            let sent = self
                .send_once(&endpoint, &wish, authorization.as_ref())
                .await;
            let patience = (attempt < self.options.retry_count
                && started.elapsed() < *self.options.response_timeout)
                .then(|| FIRST_PAUSE * 2_u32.saturating_pow(attempt));
            let Sent {
                response,
                is_home,
                is_moved,
            } = match (sent, patience) {
                (Err(Problem::Exchange(error)), Some(pause)) if is_passing(&error) => {
                    attempt += 1;
                    self.pause(pause, &endpoint.registry).await;
                    continue;
                }
                (Err(problem), _) => return Err(problem.into_error(&endpoint.registry)),
                (Ok(sent), _) => sent,
            };
            let status = response.head.status;
            match (status, patience) {
                (200..300, _) => return Ok(response),
                _ if is_redirect(status) => return Ok(response),
                // Some registries say 403 or 404 to nobody in particular, without a challenge: a login may see more.
                (400 | 401 | 403 | 404, _)
                    if is_home
                        && is_about_the_login(status, authorization.as_ref(), source.login) =>
                {
                    let mut refusal = trial.read(response, authorization.as_ref()).await;
                    refusal.is_moved = is_moved;
                    let next = trial
                        .after(
                            self,
                            &endpoint,
                            wish.method,
                            &refusal,
                            authorization.as_ref(),
                        )
                        .await?;
                    match next {
                        Some(next) => authorization = Some(next),
                        None => return Err(refusal.into_error(source, wish.what)),
                    }
                }
                (429 | 500 | 502 | 503 | 504, Some(pause)) => {
                    let asked = retry_after(&response.head);
                    if asked.is_some_and(|asked| asked > LONGEST_PAUSE) {
                        let refusal = trial.read(response, authorization.as_ref()).await;
                        return Err(refusal.into_error(source, wish.what));
                    }
                    response.body.discard().await;
                    attempt += 1;
                    self.pause(
                        asked.map_or(pause, |asked| asked.max(pause)),
                        &endpoint.registry,
                    )
                    .await;
                }
                // Another host's words are not the registry's, and not for the client.
                _ if !is_home => {
                    return Err(FetchError::Unreachable {
                        registry: source.registry.clone(),
                        cause: format!(
                            "the storage that it redirects to answered {status} for {}",
                            wish.what
                        ),
                        status: None,
                    });
                }
                _ => {
                    let refusal = trial.read(response, authorization.as_ref()).await;
                    return Err(refusal.into_error(source, wish.what));
                }
            }
        }
    }

    /// What the registry answers to whoever has only just come. Some say it nowhere else.
    async fn ask_for_challenges(&self, endpoint: &Endpoint) -> Vec<Challenge> {
        let request = Request {
            method: Method::Get,
            url: &endpoint.url("/v2/"),
            accept: None,
            range: None,
            authorization: None,
        };
        let Ok(response) = self.exchange.send(&endpoint.way, &request).await else {
            return Vec::new();
        };
        let challenges = parse_challenges(response.head.headers.all("www-authenticate"));
        response.body.discard().await;
        challenges
    }

    /// One request, and the redirects that are ours to follow.
    async fn send_once(
        &self,
        endpoint: &Endpoint,
        wish: &Wish<'_>,
        authorization: Option<&Authorization>,
    ) -> Result<Sent, Problem> {
        let first = endpoint.url(&wish.path);
        let mut url = first.clone();
        for _ in 0..=MOST_REDIRECTS {
            // Storage hosts reject a signed URL that comes with credentials, and must not see ours.
            let is_home = url.origin == first.origin;
            let way = if is_home {
                endpoint.way.clone()
            } else {
                self.endpoints.way_to(endpoint, &url.origin)
            };
            let request = Request {
                method: wish.method,
                url: &url,
                accept: wish.accept,
                range: wish.part.as_ref().map(range_field),
                authorization: authorization.filter(|_| is_home).map(Authorization::value),
            };
            let response = self.exchange.send(&way, &request).await?;
            let is_moved = url.target != first.target;
            let sent = |response| Sent {
                response,
                is_home,
                is_moved,
            };
            if !is_redirect(response.head.status) {
                return Ok(sent(response));
            }
            let next = follow_redirect(&url, &response.head);
            let stays = next.as_ref().is_ok_and(|next| {
                next.origin == first.origin && next.target.starts_with(&endpoint.url("/v2/").target)
            });
            if wish.follow == Follow::WithinRegistry && !stays {
                return Ok(sent(response));
            }
            url = next?;
            response.body.discard().await;
        }
        Err(Problem::Redirect("one redirect after the other"))
    }

    /// Whether these credentials have ended, in the registry's words: no repository is asked for.
    async fn is_refused_everywhere(
        &self,
        endpoint: &Endpoint,
        sent: Option<&Authorization>,
    ) -> bool {
        let wish = Wish {
            method: Method::Get,
            path: "/v2/".to_owned(),
            accept: None,
            part: None,
            follow: Follow::WithinRegistry,
            what: "the registry".to_owned(),
        };
        match self.send_once(endpoint, &wish, sent).await {
            Ok(Sent {
                response,
                is_home: true,
                ..
            }) => {
                let refusal = Refusal::read(response, &[]).await;
                has_login_ended(refusal.status, &refusal.said)
            }
            Ok(_) | Err(_) => false,
        }
    }

    pub(super) async fn pause(&self, pause: Duration, registry: &Registry) {
        metrics::add(Counter::UpstreamRetries, 1);
        tracing::debug!(%registry, ?pause, "asking again");
        // Up to a quarter more, so that clients that failed together do not come back together.
        let jitter = Instant::now().elapsed().subsec_nanos() % 64;
        monoio::time::sleep(pause + pause * jitter / 256).await;
    }
}

/// Whether it may be that another login, or another token for it, gets another answer than this 400, 401, 403 or 404.
pub(super) fn is_about_the_login(status: u16, sent: Option<&Authorization>, login: &Login) -> bool {
    match sent {
        None => status == 401 || (status != 400 && login.credentials.is_some()),
        Some(_) => status != 404,
    }
}

/// What was tried so far to be let in.
pub(super) struct Trial<'a> {
    rights: Rights<'a>,
    renewals: u32,
    first_login: &'a Login,
    /// The first has ended, and this is what came for it.
    login: Option<Login>,
}

impl<'a> Trial<'a> {
    pub(super) fn new(rights: Rights<'a>, login: &'a Login) -> Self {
        Self {
            rights,
            renewals: 0,
            first_login: login,
            login: None,
        }
    }

    pub(super) fn login(&self) -> &Login {
        self.login.as_ref().unwrap_or(self.first_login)
    }

    /// It was let in: what ends later is tried anew.
    pub(super) fn succeeded(&mut self) {
        self.renewals = 0;
    }

    /// What to send next, if there is anything that was not tried: another token for the same credentials, then other
    /// credentials.
    pub(super) async fn after(
        &mut self,
        upstream: &Upstream,
        endpoint: &Endpoint,
        method: Method,
        refusal: &Refusal,
        sent: Option<&Authorization>,
    ) -> Result<Option<Authorization>, FetchError> {
        let authorizer = &upstream.authorizer;
        let mut has_ended = has_login_ended(refusal.status, &refusal.said);
        // To a HEAD it cannot say why.
        let may_have_ended = self.first_login.renewal.is_some() || !endpoint.takes_basic;
        if !has_ended && method == Method::Head && may_have_ended && self.login.is_none() {
            has_ended = upstream.is_refused_everywhere(endpoint, sent).await;
        }
        let mut challenges = Vec::new();
        if refusal.challenges.is_empty() && !authorizer.knows(endpoint, self.rights) {
            challenges = upstream.ask_for_challenges(endpoint).await;
        }
        let rebuff = Rebuff {
            challenges: match challenges.is_empty() {
                true => &refusal.challenges,
                false => &challenges,
            },
            sent,
            is_moved: refusal.is_moved,
        };
        // 403 too: some registries say so to a token or password that has ended. But 400 is mostly about other things.
        let next = if self.renewals >= MOST_RENEWALS || (refusal.status == 400 && !has_ended) {
            Ok(None)
        } else {
            self.renewals += 1;
            authorizer
                .after_refusal(endpoint, self.rights, self.login(), &rebuff)
                .await
        };
        let is_spent = match &next {
            Ok(Some(_)) => false,
            Ok(None) => has_ended && sent.is_some(),
            // By the realm, of a registry that has one.
            Err(FetchError::Refused { .. } | FetchError::Failed { status: 400, .. }) => true,
            Err(_) => false,
        };
        if !is_spent || self.login.is_some() {
            return next;
        }
        let Some(login) = self.first_login.renewed().await else {
            return next;
        };
        metrics::add(Counter::LoginRenewals, 1);
        let login = self.login.insert(login);
        authorizer
            .with_other_login(endpoint, self.rights, login, &rebuff)
            .await
    }

    /// Words of an answer go to clients and into the log, so those that repeat what was sent are left out.
    pub(super) async fn read(&self, response: Response, sent: Option<&Authorization>) -> Refusal {
        self.read_without(response, sent, &[]).await
    }

    /// `others`: what else was sent that is a secret.
    pub(super) async fn read_without(
        &self,
        response: Response,
        sent: Option<&Authorization>,
        others: &[&str],
    ) -> Refusal {
        let password = self.login().credentials.as_ref();
        let password = password.map_or("", |pair| pair.password.expose().as_str());
        let sent = sent.map_or("", Authorization::secret_part);
        let secrets: Vec<&str> = [password, sent]
            .into_iter()
            .chain(others.iter().copied())
            .collect();
        Refusal::read(response, &secrets).await
    }
}

/// An answer, and whose.
struct Sent {
    response: Response,
    /// The registry's own, and not that of a host to which it redirects.
    is_home: bool,
    /// Of another place than was asked.
    is_moved: bool,
}

/// An answer that is a no, read to its end.
pub(super) struct Refusal {
    pub(super) status: u16,
    /// Of another place than was asked.
    is_moved: bool,
    challenges: Vec<Challenge>,
    pub(super) retry_after: Option<Duration>,
    pub(super) said: Said,
}

impl Refusal {
    async fn read(response: Response, secrets: &[&str]) -> Self {
        let head = &response.head;
        let status = head.status;
        let challenges = parse_challenges(head.headers.all("www-authenticate"));
        let retry_after = retry_after(head);
        let content_type = head.headers.get("content-type").map(str::to_owned);
        let body = response
            .body
            .collect(LARGEST_ERROR)
            .await
            .unwrap_or_default();
        Self {
            status,
            is_moved: false,
            challenges,
            retry_after,
            said: Said::parse(content_type.as_deref(), &body, secrets),
        }
    }

    fn into_error(self, source: Source<'_>, what: String) -> FetchError {
        let registry = source.registry.clone();
        let Self { status, said, .. } = self;
        match status {
            401 | 403 => FetchError::Refused {
                registry,
                what,
                who: source.login.who(),
                by: Service::Registry,
                said,
            },
            404 => FetchError::Unknown {
                registry,
                what,
                said,
            },
            429 => FetchError::RateLimited {
                registry,
                by: Service::Registry,
                retry_after: self.retry_after,
                said,
            },
            500.. => FetchError::Unreachable {
                registry,
                cause: format!("it answered {status} for {what}{said}"),
                status: Some(status),
            },
            _ => FetchError::Failed {
                registry,
                what,
                status,
                said,
            },
        }
    }
}

pub(super) enum Problem {
    Exchange(ExchangeError),
    Redirect(&'static str),
}

impl From<ExchangeError> for Problem {
    fn from(error: ExchangeError) -> Self {
        Self::Exchange(error)
    }
}

impl Problem {
    pub(super) fn into_error(self, registry: &Registry) -> FetchError {
        let registry = registry.clone();
        match self {
            Self::Redirect(problem) => FetchError::Malformed {
                registry,
                problem: problem.to_owned(),
            },
            Self::Exchange(ExchangeError::Connect(ConnectError::Name(
                error @ ResolveError::Private { .. },
            ))) => FetchError::Forbidden {
                rule: format!(
                    "{error}; the operator may set allow_private = true under [registry.\"{registry}\"]"
                ),
                registry,
            },
            Self::Exchange(ExchangeError::Connect(ConnectError::Busy(error))) => error.into(),
            Self::Exchange(ExchangeError::Crowded(count)) => {
                FetchError::Busy(Busy::Crowded { registry, count })
            }
            Self::Exchange(ExchangeError::Malformed(problem)) => {
                FetchError::Malformed { registry, problem }
            }
            Self::Exchange(error) => FetchError::Unreachable {
                registry,
                cause: error.to_string(),
                status: None,
            },
        }
    }
}

/// Whether the same request may fare better in a moment.
pub(super) fn is_passing(error: &ExchangeError) -> bool {
    match error {
        ExchangeError::Broken(_) => true,
        ExchangeError::Connect(ConnectError::Refused { .. }) => true,
        ExchangeError::Connect(_)
        | ExchangeError::Silent(_)
        | ExchangeError::Malformed(_)
        | ExchangeError::Crowded(_) => false,
    }
}

pub(super) fn retry_after(head: &ResponseHead) -> Option<Duration> {
    head.headers
        .get("retry-after")
        .and_then(|text| text.trim().parse().ok())
        .map(Duration::from_secs)
}

/// Where the answer of `from` leads, if we may go there.
pub(super) fn follow_redirect(from: &Url, head: &ResponseHead) -> Result<Url, Problem> {
    let Some(location) = head.headers.get("location") else {
        return Err(Problem::Redirect("a redirect to nowhere"));
    };
    let Ok(next) = from.join(location) else {
        return Err(Problem::Redirect("a redirect that is not a URL"));
    };
    if from.origin.scheme == Scheme::Https && next.origin.scheme == Scheme::Http {
        return Err(Problem::Redirect("a redirect from HTTPS to plain HTTP"));
    }
    Ok(next)
}

pub(super) fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}
