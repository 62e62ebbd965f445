//! `/cache/…` on the admin listener: what `tidegate cache` says and does beside a running server.
//!
//! Who may ask is said in `operator.rs`. The work is done on the pool, in bounded turns; the answers are put into JSON there too.

use super::{
    Response,
    admin::Admin,
    error_response::{self, Shape, api},
    operator::{NotOperator, ensure_asked_by_address, ensure_no_page},
    route::CacheRoute,
};
use crate::{
    blocking::Errand,
    cache::{Cache, Intent, Selection},
    http::{RequestHead, percent_decode},
    units::ByteSize,
};

/// Comes with every request that changes something.
pub const CACHE_GUARD: &str = "cache";

/// Why a request is not obeyed.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    NotOperator(#[from] NotOperator),
    #[error("{0}")]
    Query(String),
    #[error("say which blobs: registry, repository or digest")]
    Everything,
    #[error("it was not pinned")]
    NotPinned,
    #[error("it cannot be done: {0}")]
    Disk(#[from] std::io::Error),
}

impl From<&Refusal> for Response {
    fn from(refusal: &Refusal) -> Self {
        let status = match refusal {
            Refusal::NotOperator(_) => 403,
            Refusal::Query(_) | Refusal::Everything => 400,
            Refusal::NotPinned => 404,
            Refusal::Disk(_) => 500,
        };
        api(status, &refusal.to_string())
    }
}

/// What a query may say. Not every route looks at all of it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Query {
    selection: Selection,
    from: usize,
    to: Option<ByteSize>,
    is_dry_run: bool,
}

impl Admin {
    pub(super) async fn look_after_cache(&self, route: CacheRoute, head: &RequestHead) -> Response {
        if let Err(refusal) = admit(&route, head) {
            return Response::from(&refusal);
        }
        let query = match Query::parse(head.query().unwrap_or_default()) {
            Ok(query) => query,
            Err(refusal) => return Response::from(&refusal),
        };
        let cache = self.cache.clone();
        let done = self
            .pool
            .run(Errand::Upkeep, move || obey(&cache, route, &query))
            .await;
        match done {
            Ok(Ok(json)) => Response::new(200).content("application/json", json),
            Ok(Err(refusal)) => Response::from(&refusal),
            Err(error) => error_response::of_pool(Shape::Api, error),
        }
    }
}

fn obey(cache: &Cache, route: CacheRoute, query: &Query) -> Result<Vec<u8>, Refusal> {
    let Query {
        selection, from, ..
    } = query;
    let intent = match query.is_dry_run {
        true => Intent::DryRun,
        false => Intent::Do,
    };
    match route {
        CacheRoute::Usage => json(&cache.report()?),
        CacheRoute::Blobs => json(&cache.list(selection, *from)),
        CacheRoute::RemoveBlobs if selection.is_everything() => Err(Refusal::Everything),
        CacheRoute::RemoveBlobs => json(&cache.remove(selection, *from, intent)),
        CacheRoute::Verify => json(&cache.check(selection, *from, intent)),
        CacheRoute::Gc => json(&cache.gc(query.to.map(ByteSize::bytes), intent)),
        CacheRoute::Pins => json(&cache.pins()),
        CacheRoute::Pin(pin) => json(&cache.pin(pin)?),
        CacheRoute::Unpin(pin) => json(&cache.unpin(pin)?.ok_or(Refusal::NotPinned)?),
    }
}

fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, Refusal> {
    serde_json::to_vec(value).map_err(|error| Refusal::Disk(error.into()))
}

fn admit(route: &CacheRoute, head: &RequestHead) -> Result<(), Refusal> {
    match route.changes() {
        true => ensure_no_page(head, CACHE_GUARD)?,
        false => ensure_asked_by_address(head)?,
    }
    Ok(())
}

impl Query {
    fn parse(text: &str) -> Result<Self, Refusal> {
        let mut query = Self::default();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode(value)
                .ok_or_else(|| Refusal::Query(format!("{key}: not properly encoded")))?;
            query.take(key, &value)?;
        }
        Ok(query)
    }

    fn take(&mut self, key: &str, value: &str) -> Result<(), Refusal> {
        fn read<T: std::str::FromStr<Err: std::fmt::Display>>(
            key: &str,
            value: &str,
        ) -> Result<T, Refusal> {
            value
                .parse()
                .map_err(|error| Refusal::Query(format!("{key}: {error}")))
        }
        match key {
            "registry" => self.selection.registry = Some(read(key, value)?),
            "repository" => self.selection.repository = Some(read(key, value)?),
            "digest" => self.selection.digest = Some(read(key, value)?),
            "from" => self.from = read(key, value)?,
            "to" => self.to = Some(read(key, value)?),
            "dry_run" => self.is_dry_run = read(key, value)?,
            _ => {
                let key: String = key.chars().take(100).collect();
                return Err(Refusal::Query(format!(
                    "`{key}` is nothing that can be said here"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::parse_request;

    #[test]
    fn a_query_says_what_is_meant() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let parsed = Query::parse(&format!(
            "registry=quay.io&repository=quay.io%2Facme/app&digest={}&from=17&to=2GiB&dry_run=true&",
            digest.replace(':', "%3A")
        ));
        let expected = Query {
            selection: Selection {
                registry: Some("quay.io".parse().expect("a registry")),
                repository: Some("quay.io/acme/app".parse().expect("a repository")),
                digest: Some(digest.parse().expect("a digest")),
            },
            from: 17,
            to: Some(ByteSize::gib(2)),
            is_dry_run: true,
        };
        assert_eq!(parsed.expect("a good query"), expected);
        assert_eq!(Query::parse("").expect("nothing said"), Query::default());
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for text in [
            "digest=sha256:ab",
            "digest",
            "registry=a%2",
            "registry=a/b",
            "repository=quay.io",
            "repository=quay.io/a:v1",
            "from=-1",
            "to=5",
            "dry_run",
            "dry_run=yes",
            "dryrun=true",
        ] {
            // A misspelt wish must not be taken for none.
            assert!(Query::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_web_page_changes_nothing() {
        let admitted = |route: &CacheRoute, fields: &str| {
            let text = format!("POST /cache/gc HTTP/1.1\r\n{fields}\r\n");
            let parsed = parse_request(text.as_bytes());
            let (head, _) = parsed.ok().flatten().unwrap_or_else(|| panic!("{text}"));
            admit(route, &head).is_ok()
        };
        let guard = "X-Tidegate: cache";
        for (lines, tells, changes) in [
            (vec!["Host: 127.0.0.1:5001"], true, false),
            (vec!["Host: 127.0.0.1:5001", guard], true, true),
            (vec!["Host: 10.1.2.3", guard], true, true),
            (vec!["Host: [::1]:5001", guard], true, true),
            (vec!["Host: [::1]", guard], true, true),
            (vec!["Host: localhost:5001", guard], true, true),
            (vec!["Host: evil.example:5001", guard], false, false),
            (vec!["Host: localhost.evil.example", guard], false, false),
            (vec!["Host: 127.0.0.1.evil.example", guard], false, false),
            (vec!["Host: 127.0.0.1", "X-Tidegate: 1"], true, false),
            (
                vec!["Host: 127.0.0.1", "Origin: http://127.0.0.1", guard],
                true,
                false,
            ),
            (vec!["Host: 127.0.0.1", "Origin: null", guard], true, false),
        ] {
            let fields = &lines
                .iter()
                .map(|line| format!("{line}\r\n"))
                .collect::<String>();
            assert_eq!(admitted(&CacheRoute::Blobs, fields), tells, "{fields}");
            assert_eq!(admitted(&CacheRoute::Gc, fields), changes, "{fields}");
        }
    }
}
