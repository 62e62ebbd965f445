//! Blobs that are named by a URL and a digest: layers of container requests that lie on some web server. It is asked as
//! anybody, by the rules for addresses that hold for everything else.

use std::{ops::Range, time::Instant};

use super::{
    error::{FetchError, Said, Service},
    exchange::{Request, Response},
    fetch::{BlobBody, Upstream, blob_body},
    send::{
        FIRST_PAUSE, LONGEST_PAUSE, MOST_REDIRECTS, Problem, follow_redirect, is_passing,
        is_redirect, range_field, retry_after,
    },
};
use crate::{
    http::{Method, Url},
    oci::{Digest, Registry},
};

/// Who is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebPlace {
    url: Url,
    /// For messages, which must not have the URL: it may be signed.
    pub server: Registry,
}

impl WebPlace {
    /// `None` if it is no URL.
    pub fn parse(url: &str) -> Option<Self> {
        let url: Url = url.parse().ok()?;
        let server = url.origin.authority().parse().ok()?;
        Some(Self { url, server })
    }
}

impl Upstream {
    /// All of a blob, or `part` of it, as far as the server divides it.
    pub async fn web_blob(
        &self,
        place: &WebPlace,
        digest: &Digest,
        part: Option<Range<u64>>,
    ) -> Result<BlobBody, FetchError> {
        let started = Instant::now();
        let mut attempt = 0;
        loop {
            let sent = self.send_to_web(place, part.as_ref()).await;
            let patience = (attempt < self.options.retry_count
                && started.elapsed() < *self.options.response_timeout)
                .then(|| FIRST_PAUSE * 2_u32.saturating_pow(attempt));
            let pause = match (sent, patience) {
                (Err(Problem::Exchange(error)), Some(pause)) if is_passing(&error) => pause,
                (Err(problem), _) => return Err(problem.into_error(&place.server)),
                (Ok(response), _) if matches!(response.head.status, 200 | 206) => {
                    return blob_body(&place.server, digest, part.as_ref(), response);
                }
                (Ok(response), Some(pause))
                    if matches!(response.head.status, 429 | 500 | 502 | 503 | 504)
                        && retry_after(&response.head)
                            .is_none_or(|asked| asked <= LONGEST_PAUSE) =>
                {
                    let asked = retry_after(&response.head);
                    response.body.discard().await;
                    asked.map_or(pause, |asked| asked.max(pause))
                }
                (Ok(response), _) => {
                    let error = refusal(place, digest, &response);
                    response.body.discard().await;
                    return Err(error);
                }
            };
            attempt += 1;
            self.pause(pause, &place.server).await;
        }
    }

    async fn send_to_web(
        &self,
        place: &WebPlace,
        part: Option<&Range<u64>>,
    ) -> Result<Response, Problem> {
        let mut url = place.url.clone();
        for _ in 0..=MOST_REDIRECTS {
            let request = Request {
                method: Method::Get,
                url: &url,
                accept: None,
                range: part.map(range_field),
                authorization: None,
            };
            let way = self.endpoints.way_anywhere(&url.origin);
            let response = self.exchange.send(&way, &request).await?;
            if !is_redirect(response.head.status) {
                return Ok(response);
            }
            url = follow_redirect(&url, &response.head)?;
            response.body.discard().await;
        }
        Err(Problem::Redirect("one redirect after the other"))
    }
}

/// Its words are not passed on: it is any server, and they would be read as ours.
fn refusal(place: &WebPlace, digest: &Digest, response: &Response) -> FetchError {
    let (registry, what) = (place.server.clone(), format!("layer {digest}"));
    let said = Said::default();
    match response.head.status {
        404 | 410 => FetchError::Unknown {
            registry,
            what,
            said,
        },
        401 | 403 => FetchError::Refused {
            registry,
            what,
            who: "its URL alone",
            by: Service::Registry,
            said,
        },
        429 => FetchError::RateLimited {
            registry,
            by: Service::Registry,
            retry_after: retry_after(&response.head),
            said,
        },
        status @ 500.. => FetchError::Unreachable {
            registry,
            cause: format!("it answered {status} for {what}"),
            status: Some(status),
        },
        status => FetchError::Failed {
            registry,
            what,
            status,
            said,
        },
    }
}
