//! One push to a target: how each of its requests gets in, and patience with a registry that is busy. As `send` does for
//! pulls; but what is asked for here changes something, so fewer redirects are followed, and every no is for the caller
//! to judge.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::{PushError, Target, Upload};
use crate::{
    http::{Method, ResponseHead, Scheme, Url, percent_decode},
    net::Uploaded,
    upstream::{
        FetchError, Said, Upstream,
        endpoint::Endpoint,
        exchange::{Request, Response, Way},
        login::Authorization,
        rights::Rights,
        send::{
            FIRST_PAUSE, LONGEST_PAUSE, MOST_REDIRECTS, Problem, Refusal, Trial,
            is_about_the_login, is_passing, is_redirect, retry_after,
        },
        upload::{BodyFailure, Payload},
    },
};

pub(super) struct Pusher<'a> {
    pub(super) upstream: &'a Upstream,
    pub(super) target: Target<'a>,
    endpoint: Arc<Endpoint>,
    rights: Rights<'a>,
    trial: Trial<'a>,
    authorization: Option<Authorization>,
}

/// A request without a body, or with one that is in memory.
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    pub(super) url: &'a Url,
    /// With its type.
    pub(super) body: Option<(Option<&'a str>, &'a Bytes)>,
}

/// What came of it.
pub(super) enum Answer {
    /// Or a redirect that was not ours to follow.
    Yes {
        head: ResponseHead,
        url: Url,
    },
    No(Refusal),
}

/// An answer, and whose.
pub(super) struct Sent {
    pub(super) response: Response,
    pub(super) url: Url,
}

impl<'a> Pusher<'a> {
    pub(super) fn new(
        upstream: &'a Upstream,
        target: Target<'a>,
        rights: Rights<'a>,
    ) -> Result<Self, PushError> {
        let endpoint = upstream
            .endpoint(target.registry)
            .map_err(|error| PushError::of_fetch(error, target))?;
        Ok(Self {
            upstream,
            target,
            endpoint,
            rights,
            trial: Trial::new(rights, target.login),
            authorization: None,
        })
    }

    /// `path`: of the target's repository.
    pub(super) fn url(&self, path: &str) -> Url {
        let repository = self.target.repository;
        self.endpoint.url(&format!("/v2/{repository}/{path}"))
    }

    /// Asks until there is an answer that stands.
    pub(super) async fn ask(&mut self, ask: &Ask<'_>) -> Result<Answer, PushError> {
        let mut attempt = 0;
        self.authorize().await?;
        loop {
            let sent = self.ask_once(ask).await;
            let pause = (attempt < self.upstream.options.retry_count).then(|| pause_of(attempt));
            let Sent { response, url } = match (sent, pause) {
                (Err(Problem::Exchange(error)), Some(pause)) if is_passing(&error) => {
                    attempt += 1;
                    self.pause(pause).await;
                    continue;
                }
                (Err(problem), _) => return Err(self.problem(problem)),
                (Ok(sent), _) => sent,
            };
            match (response.head.status, pause) {
                (..400, _) => {
                    self.trial.succeeded();
                    let head = response.head;
                    response.body.discard().await;
                    return Ok(Answer::Yes { head, url });
                }
                (429 | 500 | 502 | 503 | 504, Some(pause))
                    if retry_after(&response.head).is_none_or(|asked| asked <= LONGEST_PAUSE) =>
                {
                    let asked = retry_after(&response.head).unwrap_or_default();
                    let refusal = self.read(response, &url).await;
                    if is_full(&refusal) {
                        return Ok(Answer::No(refusal));
                    }
                    attempt += 1;
                    self.pause(pause.max(asked)).await;
                }
                _ => match self.renewed_after(response, &url, ask.method).await? {
                    None => {}
                    Some(refusal) => return Ok(Answer::No(refusal)),
                },
            }
        }
    }

    /// Sends a part of a blob, once, and says whether all of it went.
    pub(super) async fn send_part(
        &mut self,
        method: Method,
        url: &Url,
        payload: &Payload<'_>,
        content: &mut impl Upload,
    ) -> Result<(Response, Uploaded), BodyFailure> {
        let (way, authorization) = self.way(url);
        let request = Request {
            method,
            url,
            accept: None,
            range: None,
            authorization: authorization.map(Authorization::value),
        };
        let exchange = &self.upstream.exchange;
        exchange.send_body(&way, &request, payload, content).await
    }

    /// Tokens end in the middle of a push, so each request has the one that is good now.
    pub(super) async fn authorize(&mut self) -> Result<(), PushError> {
        let authorizer = &self.upstream.authorizer;
        let found = authorizer
            .authorization(&self.endpoint, self.rights, self.trial.login())
            .await;
        if let Some(found) = found.map_err(|error| PushError::of_fetch(error, self.target))? {
            self.authorization = Some(found);
        }
        Ok(())
    }

    pub(super) fn succeeded(&mut self) {
        self.trial.succeeded();
    }

    /// `None`: there is a login or a token that was not tried yet, and it comes with the next request.
    pub(super) async fn renewed_after(
        &mut self,
        response: Response,
        url: &Url,
        method: Method,
    ) -> Result<Option<Refusal>, PushError> {
        let status = response.head.status;
        let sent = self.authorization.as_ref();
        let is_about_us = matches!(status, 400 | 401 | 403 | 404)
            && self.is_home(url)
            && is_about_the_login(status, sent, self.target.login);
        let refusal = self.read(response, url).await;
        if !is_about_us {
            return Ok(Some(refusal));
        }
        let sent = self.authorization.as_ref();
        let next = self
            .trial
            .after(self.upstream, &self.endpoint, method, &refusal, sent)
            .await;
        match next {
            Ok(Some(next)) => {
                self.authorization = Some(next);
                Ok(None)
            }
            Ok(None) => Ok(Some(refusal)),
            Err(error) => Err(PushError::of_fetch(error, self.target)),
        }
    }

    /// Words that repeat what was sent are left out, and those of another host.
    async fn read(&self, response: Response, url: &Url) -> Refusal {
        let sent = self.authorization.as_ref();
        let states = states(url);
        let states: Vec<&str> = states.iter().map(String::as_str).collect();
        let mut refusal = self.trial.read_without(response, sent, &states).await;
        if !self.is_home(url) {
            refusal.said = Said::default();
        }
        refusal
    }

    pub(super) async fn pause(&self, pause: Duration) {
        self.upstream.pause(pause, self.target.registry).await;
    }

    pub(super) fn problem(&self, problem: Problem) -> PushError {
        let error = problem.into_error(self.target.registry);
        PushError::of_fetch(error, self.target)
    }

    pub(super) fn malformed(&self, problem: impl Into<String>) -> PushError {
        PushError::Malformed {
            registry: self.target.registry.clone(),
            problem: problem.into(),
        }
    }

    /// One request, and the redirects that are ours to follow.
    async fn ask_once(&self, ask: &Ask<'_>) -> Result<Sent, Problem> {
        let mut url = ask.url.clone();
        for _ in 0..=MOST_REDIRECTS {
            let (way, authorization) = self.way(&url);
            let request = Request {
                method: ask.method,
                url: &url,
                accept: None,
                range: None,
                authorization: authorization.map(Authorization::value),
            };
            let exchange = &self.upstream.exchange;
            let response = match ask.body {
                Some((content_type, bytes)) => {
                    let payload = Payload {
                        content_type,
                        part: None,
                        size: bytes.len() as u64,
                        patience: *self.upstream.options.response_timeout,
                    };
                    exchange.send_bytes(&way, &request, &payload, bytes).await?
                }
                None => exchange.send(&way, &request).await?,
            };
            let Some(next) = self.redirect(ask.method, &url, &response.head)? else {
                return Ok(Sent { response, url });
            };
            response.body.discard().await;
            url = next;
        }
        Err(Problem::Redirect("one redirect after the other"))
    }

    /// Where the same request is to be sent instead. Only 307 and 308 say that of one that changes something; and a blob
    /// that is elsewhere is one that is there.
    pub(super) fn redirect(
        &self,
        method: Method,
        from: &Url,
        head: &ResponseHead,
    ) -> Result<Option<Url>, Problem> {
        let is_reading = matches!(method, Method::Get | Method::Head);
        let is_followed = matches!(head.status, 307 | 308) || is_reading;
        if !is_redirect(head.status) || !is_followed {
            return Ok(None);
        }
        let location = head.headers.get("location");
        let next = location.and_then(|location| from.join(location).ok());
        let next = next.ok_or(Problem::Redirect("a redirect that is not a URL"))?;
        let below = self.endpoint.url("/v2/");
        let stays = next.origin == below.origin && next.target.starts_with(&below.target);
        if is_reading && !stays {
            return Ok(None);
        }
        if from.origin.scheme == Scheme::Https && next.origin.scheme == Scheme::Http {
            return Err(Problem::Redirect("a redirect from HTTPS to plain HTTP"));
        }
        Ok(Some(next))
    }

    pub(super) fn is_home(&self, url: &Url) -> bool {
        url.origin == self.endpoint.url("/").origin
    }

    /// Another host than the registry's own must not see its credentials.
    fn way(&self, url: &Url) -> (Way, Option<&Authorization>) {
        if self.is_home(url) {
            return (self.endpoint.way.clone(), self.authorization.as_ref());
        }
        let endpoints = &self.upstream.endpoints;
        (endpoints.way_to(&self.endpoint, &url.origin), None)
    }
}

/// What an upload's address has in its query, as it is written and as it is meant. The other parameters are ours.
fn states(url: &Url) -> Vec<String> {
    let query = url.target.split_once('?').map_or("", |(_, query)| query);
    let values = query.split('&').filter_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or(("", pair));
        (!matches!(name, "digest" | "mount" | "from")).then_some(value)
    });
    values
        .flat_map(|value| [Some(value.to_owned()), percent_decode(value)])
        .flatten()
        .collect()
}

pub(super) fn pause_of(attempt: u32) -> Duration {
    (FIRST_PAUSE * 2_u32.saturating_pow(attempt)).min(LONGEST_PAUSE)
}

/// Whether it has no room, in whichever way it says so.
pub(super) fn is_full(refusal: &Refusal) -> bool {
    let said = refusal.said.0.as_deref().unwrap_or_default();
    let said = said.to_ascii_lowercase();
    let words = [
        "no space",
        "disk full",
        "quota",
        "insufficient storage",
        "storage limit",
        "storage resource",
    ];
    match refusal.status {
        507 => true,
        // Of requests, perhaps.
        429 => false,
        400.. => words.iter().any(|words| said.contains(words)),
        _ => false,
    }
}

impl PushError {
    pub(super) fn of_fetch(error: FetchError, target: Target<'_>) -> Self {
        match error {
            FetchError::Refused {
                registry,
                who,
                said,
                ..
            } => Self::Refused {
                registry,
                repository: target.repository.clone(),
                who,
                said,
            },
            FetchError::RateLimited {
                registry,
                retry_after,
                said,
                ..
            } => Self::RateLimited {
                registry,
                retry_after,
                said,
            },
            FetchError::Unreachable {
                registry, cause, ..
            } => Self::Unreachable {
                registry,
                cause,
                retry_after: None,
            },
            FetchError::Forbidden { registry, rule } => Self::Forbidden { registry, rule },
            FetchError::Unknown {
                registry,
                what,
                said,
            } => Self::Failed {
                registry,
                what,
                status: 404,
                said,
            },
            FetchError::Failed {
                registry,
                what,
                status,
                said,
            } => Self::Failed {
                registry,
                what,
                status,
                said,
            },
            FetchError::Malformed { registry, problem } => Self::Malformed { registry, problem },
            FetchError::Busy(busy) => Self::Busy(busy),
        }
    }

    /// `what`: for messages.
    pub(super) fn of_refusal(refusal: Refusal, target: Target<'_>, what: String) -> Self {
        let is_full = is_full(&refusal);
        let Refusal {
            status,
            retry_after,
            said,
            ..
        } = refusal;
        let registry = target.registry.clone();
        let repository = target.repository.clone();
        let code = said.0.as_deref().unwrap_or_default();
        match status {
            _ if is_full => Self::Full {
                registry,
                what,
                said,
            },
            401 | 403 => Self::Refused {
                registry,
                repository,
                who: target.login.who(),
                said,
            },
            404 if code.starts_with("NAME_UNKNOWN") => Self::NoRepository {
                registry,
                repository,
                said,
            },
            405 => Self::ReadOnly {
                registry,
                repository,
                said,
            },
            413 => Self::TooLarge {
                registry,
                what,
                said,
            },
            429 => Self::RateLimited {
                registry,
                retry_after,
                said,
            },
            500.. => Self::Unreachable {
                registry,
                cause: format!("it answered {status} for {what}{said}"),
                retry_after,
            },
            _ => Self::Failed {
                registry,
                what,
                status,
                said,
            },
        }
    }
}
