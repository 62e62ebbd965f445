//! Asking a registry for manifests, blobs, tags and referrers. How a request gets through is `send`'s business.

use std::{ops::Range, rc::Rc, sync::Arc};

use super::{
    Options,
    auth::Authorizer,
    endpoint::{Endpoint, Endpoints, Redirects},
    error::{FetchError, Said},
    exchange::{Body, Exchange, Response},
    login::Login,
    send::{Follow, Wish, is_redirect},
};
use crate::{
    http::{Method, ResponseHead, parse_content_range},
    oci::{Digest, Registry, Repository, TagOrDigest, media_type},
};

/// Readers of manifests stop at 4 MiB and a little (containerd).
const LARGEST_MANIFEST: usize = 4_393_216;
/// A list of tags or referrers.
const LARGEST_LIST: usize = 16 << 20;

/// One core's view of the registries.
pub struct Upstream {
    pub(super) endpoints: Arc<Endpoints>,
    pub(super) authorizer: Arc<Authorizer>,
    pub(super) exchange: Rc<Exchange>,
    pub(super) options: Options,
}

/// A repository and who asks for it.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    pub registry: &'a Registry,
    pub repository: &'a Repository,
    pub login: &'a Login,
}

pub struct FetchedManifest {
    pub content_type: Option<String>,
    pub digest: Option<Digest>,
    pub body: Vec<u8>,
}

/// What a HEAD says about a manifest.
#[derive(Clone, Debug)]
pub struct ManifestHead {
    pub content_type: Option<String>,
    pub digest: Option<Digest>,
    pub size: Option<u64>,
}

pub enum FetchedBlob {
    /// The client is to go there itself. Byte-exact: signatures cover the spelling.
    Redirect {
        status: u16,
        location: String,
    },
    Inline(Box<BlobBody>),
}

pub struct BlobBody {
    /// Which byte of the blob is the first of the body.
    pub start: u64,
    /// It ends where the part that was asked for ends, or where the registry likes.
    pub is_part: bool,
    /// Of the whole blob; a registry may leave it out.
    pub size: Option<u64>,
    /// `Content-Encoding`, although none was asked for. Some say so of blobs that are compressed files; then
    /// the bytes are the blob's all the same.
    pub coding: Option<String>,
    pub body: Body,
}

/// A page of tags or referrers.
pub struct List {
    pub content_type: Option<String>,
    pub link: Option<String>,
    pub filters_applied: Option<String>,
    pub body: Vec<u8>,
}

impl Upstream {
    pub fn new(
        endpoints: Arc<Endpoints>,
        authorizer: Arc<Authorizer>,
        exchange: Rc<Exchange>,
        options: Options,
    ) -> Self {
        Self {
            endpoints,
            authorizer,
            exchange,
            options,
        }
    }

    pub fn endpoint(&self, registry: &Registry) -> Result<Arc<Endpoint>, FetchError> {
        self.endpoints
            .find(registry)
            .map_err(|error| FetchError::Forbidden {
                registry: registry.clone(),
                rule: error.to_string(),
            })
    }

    pub fn close_idle(&self) {
        self.exchange.close_idle();
    }

    pub async fn manifest(
        &self,
        source: Source<'_>,
        version: &TagOrDigest,
    ) -> Result<FetchedManifest, FetchError> {
        let response = self
            .send(
                source,
                manifest_wish(Method::Get, source.repository, version),
            )
            .await?;
        let head = manifest_head(&response.head);
        let body = response
            .body
            .collect(LARGEST_MANIFEST)
            .await
            .map_err(|error| FetchError::Malformed {
                registry: source.registry.clone(),
                problem: format!("a manifest that could not be read: {error}"),
            })?;
        Ok(FetchedManifest {
            content_type: head.content_type,
            digest: head.digest,
            body,
        })
    }

    /// `None`: the registry knows no HEAD, so nothing was said.
    pub async fn manifest_head(
        &self,
        source: Source<'_>,
        version: &TagOrDigest,
    ) -> Result<Option<ManifestHead>, FetchError> {
        let wish = manifest_wish(Method::Head, source.repository, version);
        let response = match self.send(source, wish).await {
            // A registry that knows no HEAD says nothing; GET tells all.
            Err(FetchError::Failed {
                status: 405 | 501, ..
            }) => return Ok(None),
            sent => sent?,
        };
        let head = manifest_head(&response.head);
        response.body.discard().await;
        Ok(Some(head))
    }

    /// All of a blob, or `part` of it: then the registry may still send all of it, or another part than that.
    pub async fn blob(
        &self,
        source: Source<'_>,
        digest: &Digest,
        part: Option<Range<u64>>,
    ) -> Result<FetchedBlob, FetchError> {
        let wish = self.blob_wish(Method::Get, source, digest)?;
        self.blob_by(Wish { part, ..wish }, source, digest).await
    }

    /// The same, wherever the registry redirects to.
    pub async fn blob_wherever(
        &self,
        source: Source<'_>,
        digest: &Digest,
        part: Option<Range<u64>>,
    ) -> Result<FetchedBlob, FetchError> {
        let wish = Wish {
            part,
            follow: Follow::Always,
            ..self.blob_wish(Method::Get, source, digest)?
        };
        self.blob_by(wish, source, digest).await
    }

    async fn blob_by(
        &self,
        wish: Wish<'_>,
        source: Source<'_>,
        digest: &Digest,
    ) -> Result<FetchedBlob, FetchError> {
        let part = wish.part.clone();
        let response = self.send(source, wish).await?;
        if let Some((status, location)) = self.redirect(source, &response.head)? {
            response.body.discard().await;
            return Ok(FetchedBlob::Redirect { status, location });
        }
        let body = blob_body(source.registry, digest, part.as_ref(), response)?;
        Ok(FetchedBlob::Inline(Box::new(body)))
    }

    /// A small blob in memory, wherever the registry redirects to. Not verified: that may take a while.
    pub async fn whole_blob(
        &self,
        source: Source<'_>,
        digest: &Digest,
        limit: usize,
    ) -> Result<Vec<u8>, FetchError> {
        let mut wish = self.blob_wish(Method::Get, source, digest)?;
        wish.follow = Follow::Always;
        let response = self.send(source, wish).await?;
        let collected = response.body.collect(limit).await;
        collected.map_err(|error| FetchError::Malformed {
            registry: source.registry.clone(),
            problem: format!("a blob that could not be read: {error}"),
        })
    }

    /// How often a broken download may be taken up again.
    pub fn retry_count(&self) -> u32 {
        self.options.retry_count
    }

    /// The size, if the registry says so; `Redirect` where the client is to go elsewhere. Where redirects are followed
    /// it is asked as for the blob itself: a storage's signed URL is good for one method only.
    pub async fn blob_head(
        &self,
        source: Source<'_>,
        digest: &Digest,
    ) -> Result<BlobHead, FetchError> {
        let wish = self.blob_wish(Method::Head, source, digest)?;
        if wish.follow == Follow::Always {
            return Ok(match self.blob(source, digest, None).await? {
                FetchedBlob::Inline(body) => BlobHead::Found { size: body.size },
                FetchedBlob::Redirect { status, location } => {
                    BlobHead::Redirect { status, location }
                }
            });
        }
        let response = self.send(source, wish).await?;
        let redirect = self.redirect(source, &response.head)?;
        let size = content_length(&response.head);
        response.body.discard().await;
        Ok(match redirect {
            Some((status, location)) => BlobHead::Redirect { status, location },
            None => BlobHead::Found { size },
        })
    }

    pub async fn tags(&self, source: Source<'_>, query: Option<&str>) -> Result<List, FetchError> {
        let path = format!("/v2/{}/tags/list{}", source.repository, suffix(query));
        self.list(source, path, format!("the tags of {}", source.repository))
            .await
    }

    pub async fn referrers(
        &self,
        source: Source<'_>,
        digest: &Digest,
        query: Option<&str>,
    ) -> Result<List, FetchError> {
        let path = format!(
            "/v2/{}/referrers/{digest}{}",
            source.repository,
            suffix(query)
        );
        self.list(source, path, format!("the referrers of {digest}"))
            .await
    }

    async fn list(
        &self,
        source: Source<'_>,
        path: String,
        what: String,
    ) -> Result<List, FetchError> {
        let wish = Wish {
            method: Method::Get,
            path,
            accept: None,
            part: None,
            follow: Follow::WithinRegistry,
            what,
        };
        let response = self.send(source, wish).await?;
        let field = |name: &str| response.head.headers.get(name).map(str::to_owned);
        if response.head.status != 200 {
            return Err(FetchError::Failed {
                registry: source.registry.clone(),
                what: "a list".to_owned(),
                status: response.head.status,
                said: Said::default(),
            });
        }
        let (content_type, link, filters_applied) = (
            field("content-type"),
            field("link"),
            field("oci-filters-applied"),
        );
        let body =
            response
                .body
                .collect(LARGEST_LIST)
                .await
                .map_err(|error| FetchError::Malformed {
                    registry: source.registry.clone(),
                    problem: format!("a list that could not be read: {error}"),
                })?;
        Ok(List {
            content_type,
            link,
            filters_applied,
            body,
        })
    }

    fn blob_wish(
        &self,
        method: Method,
        source: Source<'_>,
        digest: &Digest,
    ) -> Result<Wish<'static>, FetchError> {
        let follow = match self.endpoint(source.registry)?.redirects {
            Redirects::Pass => Follow::WithinRegistry,
            Redirects::Follow => Follow::Always,
        };
        Ok(Wish {
            method,
            path: format!("/v2/{}/blobs/{digest}", source.repository),
            accept: None,
            part: None,
            follow,
            what: format!("blob {digest} of {}", source.repository),
        })
    }

    /// A redirect that `send` did not follow, made absolute.
    fn redirect(
        &self,
        source: Source<'_>,
        head: &ResponseHead,
    ) -> Result<Option<(u16, String)>, FetchError> {
        if !is_redirect(head.status) {
            return Ok(None);
        }
        let malformed = |problem: &str| FetchError::Malformed {
            registry: source.registry.clone(),
            problem: problem.to_owned(),
        };
        let location = head
            .headers
            .get("location")
            .ok_or_else(|| malformed("a redirect to nowhere"))?;
        if location.starts_with("https://") || location.starts_with("http://") {
            return Ok(Some((head.status, location.to_owned())));
        }
        let base = self.endpoint(source.registry)?.url("/v2/");
        let absolute = base
            .join(location)
            .map_err(|_| malformed("a redirect that is not a URL"))?;
        Ok(Some((head.status, absolute.to_string())))
    }
}

/// `part`: what was asked for.
pub(super) fn blob_body(
    registry: &Registry,
    digest: &Digest,
    part: Option<&Range<u64>>,
    response: Response,
) -> Result<BlobBody, FetchError> {
    let malformed = |problem: String| FetchError::Malformed {
        registry: registry.clone(),
        problem,
    };
    let head = &response.head;
    let (start, size) = match head.status {
        206 => {
            let field = head.headers.get("content-range");
            let range = field
                .and_then(parse_content_range)
                .ok_or_else(|| malformed(format!("a part of {digest} without saying which")))?;
            let length = range.end - range.start;
            if content_length(head).is_some_and(|stated| stated != length) {
                return Err(malformed(format!(
                    "another length than its range has for {digest}"
                )));
            }
            if part.is_none() && range.start > 0 {
                return Err(malformed(format!(
                    "a part of {digest} to whoever asked for all of it"
                )));
            }
            (range.start, range.size)
        }
        _ => (0, content_length(head)),
    };
    let coding = head
        .headers
        .get("content-encoding")
        .filter(|coding| !coding.eq_ignore_ascii_case("identity"))
        .map(str::to_owned);
    Ok(BlobBody {
        start,
        is_part: response.head.status == 206,
        size,
        coding,
        body: response.body,
    })
}

/// What a HEAD says about a blob.
pub enum BlobHead {
    Found { size: Option<u64> },
    Redirect { status: u16, location: String },
}

fn manifest_wish(method: Method, repository: &Repository, version: &TagOrDigest) -> Wish<'static> {
    let separator = match version {
        TagOrDigest::Tag(_) => ':',
        TagOrDigest::Digest(_) => '@',
    };
    Wish {
        method,
        path: format!("/v2/{repository}/manifests/{version}"),
        accept: Some(media_type::ACCEPT_MANIFESTS),
        part: None,
        follow: Follow::Always,
        what: format!("manifest {repository}{separator}{version}"),
    }
}

fn manifest_head(head: &ResponseHead) -> ManifestHead {
    ManifestHead {
        content_type: head.headers.get("content-type").map(str::to_owned),
        digest: head
            .headers
            .get("docker-content-digest")
            .and_then(|text| text.parse().ok()),
        size: content_length(head),
    }
}

fn content_length(head: &ResponseHead) -> Option<u64> {
    head.headers
        .get("content-length")
        .and_then(|text| text.parse().ok())
}

fn suffix(query: Option<&str>) -> String {
    query.map(|query| format!("?{query}")).unwrap_or_default()
}

/// The URL of a page's successor, as a path and query below the registry.
pub fn next_page(link: &str) -> Option<String> {
    let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    if !parameters.replace(' ', "").contains("rel=\"next\"") && !parameters.contains("rel=next") {
        return None;
    }
    let query = target.split_once('?')?.1;
    let is_plain = query
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'<' | b'>' | b'"' | b'#'));
    is_plain.then(|| query.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_in_a_link() {
        for (link, expected) in [
            (
                r#"</v2/a/tags/list?n=2&last=b>; rel="next""#,
                Some("n=2&last=b"),
            ),
            (
                r#"<https://r.io/v2/a/tags/list?last=b>;rel=next"#,
                Some("last=b"),
            ),
            (r#"</v2/a/tags/list?n=2>; rel="prev""#, None),
            (r#"</v2/a/tags/list>; rel="next""#, None),
            ("nonsense", None),
        ] {
            assert_eq!(next_page(link).as_deref(), expected, "{link}");
        }
    }

    #[test]
    fn urls_of_errors_hide_their_signatures() {
        let url: crate::http::Url = "https://s3.example.com/x?X-Amz-Signature=secret"
            .parse()
            .expect("a URL");
        assert!(!format!("{url:?}").contains("secret"));
    }
}
