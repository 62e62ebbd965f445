//! `/v2`: manifests, blobs, tags and referrers, with the fields that runtimes look for.

use std::{ops::Range, sync::Arc};

use super::{
    Api, Body, Length, Response,
    error_response::{self, Shape},
    route::{Name, Wish},
};
use crate::{
    blocking::Errand,
    http::{Method, RangeWish, RequestHead, parse_range},
    oci::{Digest, ErrorCode, TagOrDigest, media_type},
    pull::{
        Access, BlobHead, Content, Extent, Holder, List, OpenBlob, PullError, ServedManifest,
        next_page,
    },
    requests::Token,
};

/// Old clients look at the version, all of them at the 200: a challenge here would make them log in.
pub(super) fn version() -> Response {
    Response::new(200).content("application/json", "{}")
}

impl Api {
    pub(super) async fn serve_wish(
        &self,
        head: &RequestHead,
        name: &Name,
        access: &Access,
        wish: Wish,
    ) -> Response {
        let served = match &wish {
            Wish::Manifest(version) => self.manifest(head, access, version).await,
            Wish::Blob(digest) if head.method == Method::Head => {
                self.blob_head(head, access, digest).await
            }
            Wish::Blob(digest) => self.blob(head, access, digest).await,
            Wish::TagList => self.tags(head, name, access).await,
            Wish::Referrers(digest) => self.referrers(head, name, access, digest).await,
        };
        let response = match served {
            Ok(response) => response,
            Err(error) => {
                tracing::warn!(registry = %access.registry, repository = %access.repository, caller = %access.caller,
                    error = %error, "a pull failed");
                error_response::of_pull(&wish, &error)
            }
        };
        match self.namespace(head) {
            Some(namespace) => response.field("OCI-Namespace", namespace),
            None => response,
        }
    }

    async fn manifest(
        &self,
        head: &RequestHead,
        access: &Access,
        version: &TagOrDigest,
    ) -> Result<Response, PullError> {
        let extent = if head.method == Method::Head {
            Extent::Head
        } else {
            Extent::Whole
        };
        let ServedManifest {
            media_type,
            digest,
            size,
            bytes,
            source,
            is_stale,
        } = self.pull.manifest(access, version, extent).await?;
        if is_known(head, &digest) {
            return Ok(not_modified(&digest));
        }
        if !media_type::is_accepted(&media_type, head.headers.all("accept")) {
            let message = format!(
                "the manifest is {media_type}, which is not among the types of your Accept"
            );
            return Ok(error_response::registry(
                404,
                ErrorCode::ManifestUnknown,
                &message,
            ));
        }
        if let (Holder::Token(token), Some(_), Some(source)) = (&access.holder, &bytes, source) {
            self.note_first_pull(*token, source, digest);
        }
        let response = Response::new(200)
            .content_digest(&digest)
            .field("Content-Type", media_type);
        // distribution-spec, warnings: for people, shown by clients.
        let response = if is_stale {
            response.field(
                "Warning",
                format_args!(
                    "299 - \"{} is down; this is what the tag meant before\"",
                    access.registry
                ),
            )
        } else {
            response
        };
        Ok(match bytes {
            Some(bytes) => response.body(Some(size), Body::bytes(bytes)),
            None => response.length(Length::Known(size)),
        })
    }

    /// For whoever looks the request up later. Nobody waits for it, and only the first one counts.
    fn note_first_pull(&self, token: Token, source: Digest, served: Digest) {
        if !self.shared.requests.may_be_first_pull(&token) {
            return;
        }
        let requests = Arc::clone(&self.shared.requests);
        let noted = self.shared.pool.send(Errand::Records, move || {
            if let Err(error) = requests.note_pull(&token, source, served) {
                requests.forget_pull(&token);
                tracing::warn!(%error, "the digest of a first pull could not be recorded");
            }
        });
        if let Err(error) = noted {
            self.shared.requests.forget_pull(&token);
            tracing::debug!(%error, "the digest of a first pull was not recorded");
        }
    }

    async fn blob_head(
        &self,
        head: &RequestHead,
        access: &Access,
        digest: &Digest,
    ) -> Result<Response, PullError> {
        Ok(match self.pull.blob_head(access, digest).await? {
            BlobHead::Redirect { status, location } => redirect(status, &location),
            BlobHead::Found { .. } if is_known(head, digest) => not_modified(digest),
            BlobHead::Found { size } => {
                let length = size.map_or(Length::Absent, Length::Known);
                blob_fields(Response::new(200), digest).length(length)
            }
        })
    }

    async fn blob(
        &self,
        head: &RequestHead,
        access: &Access,
        digest: &Digest,
    ) -> Result<Response, PullError> {
        let first_part = |size| first_part(&range_wish(head, digest, size), size);
        let content = match self.pull.blob(access, digest, &first_part).await? {
            OpenBlob::Redirect { status, location } => return Ok(redirect(status, &location)),
            OpenBlob::Content(content) => content,
        };
        if is_known(head, digest) {
            return Ok(not_modified(digest));
        }
        let origin = Some(content.origin());
        Ok(Response {
            origin,
            ..ranged(head, digest, content)
        })
    }

    async fn tags(
        &self,
        head: &RequestHead,
        name: &Name,
        access: &Access,
    ) -> Result<Response, PullError> {
        let list = self.pull.tags(access, list_query(head).as_deref()).await?;
        Ok(list_response(
            list,
            &format!("/v2/{}/tags/list", own_name(name)),
            "application/json",
        ))
    }

    async fn referrers(
        &self,
        head: &RequestHead,
        name: &Name,
        access: &Access,
        digest: &Digest,
    ) -> Result<Response, PullError> {
        let list = self
            .pull
            .referrers(access, digest, list_query(head).as_deref())
            .await?;
        let path = format!("/v2/{}/referrers/{digest}", own_name(name));
        Ok(list_response(list, &path, media_type::OCI_INDEX))
    }
}

const BYTES: &str = "application/octet-stream";

fn blob_fields(response: Response, digest: &Digest) -> Response {
    // Named by its content, so it never changes; but it is this client's, not everybody's.
    response.content_digest(digest).fixed(
        "Content-Type: application/octet-stream\r\nAccept-Ranges: bytes\r\n\
         Cache-Control: private, max-age=31536000, immutable\r\n",
    )
}

fn not_modified(digest: &Digest) -> Response {
    Response::new(304)
        .content_digest(digest)
        .length(Length::Absent)
}

/// The body of the registry's redirect, if it had one, is not passed on, and the length says so: clients wait
/// for bytes otherwise.
fn redirect(status: u16, location: &str) -> Response {
    Response::new(status).field("Location", location)
}

/// RFC 9110 §14.2 and §13.1.5.
fn range_wish(head: &RequestHead, digest: &Digest, size: u64) -> RangeWish {
    let mut ranges = head.headers.all("range");
    // Two fields are a list, of which no part is served alone.
    let Some(range) = ranges.next().filter(|_| ranges.next().is_none()) else {
        return RangeWish::Whole;
    };
    let is_current = head
        .headers
        .get("if-range")
        .is_none_or(|tag| tag.trim() == format!("\"{digest}\""));
    if is_current {
        parse_range(range, size)
    } else {
        RangeWish::Whole
    }
}

/// What is sent first. For a refusal any byte will do: that it can be had shows that the blob can.
fn first_part(wish: &RangeWish, size: u64) -> Range<u64> {
    match wish {
        RangeWish::Whole => 0..size,
        RangeWish::Part(part) => part.clone(),
        RangeWish::Parts(parts) => parts.first().cloned().unwrap_or(0..size),
        RangeWish::Unsatisfiable => 0..size.min(1),
    }
}

/// A size that is not known yet cannot be divided: all of it is sent then.
fn ranged(head: &RequestHead, digest: &Digest, content: Content) -> Response {
    let Some(size) = content.size() else {
        return blob_fields(Response::new(200), digest).body(None, content.into_body(0..u64::MAX));
    };
    match range_wish(head, digest, size) {
        RangeWish::Part(range) => blob_fields(Response::new(206), digest)
            .field("Content-Range", content_range(&range, size))
            .body(
                Some(range.end.saturating_sub(range.start)),
                content.into_body(range),
            ),
        RangeWish::Parts(parts) if content.is_divisible() => {
            multipart(digest, size, &parts, content)
        }
        RangeWish::Whole | RangeWish::Parts(_) => {
            blob_fields(Response::new(200), digest).body(Some(size), content.into_body(0..size))
        }
        RangeWish::Unsatisfiable => {
            error_response::plain(Shape::Registry, 416, "the range lies outside the blob")
                .field("Content-Range", format_args!("bytes */{size}"))
        }
    }
}

fn content_range(part: &Range<u64>, size: u64) -> String {
    format!("bytes {}-{}/{size}", part.start, part.end.saturating_sub(1))
}

/// RFC 9110 §14.6. The boundary is the start of the digest, which no blob contains: whoever could make one could make
/// any.
fn multipart(digest: &Digest, size: u64, parts: &[Range<u64>], content: Content) -> Response {
    const LONGEST_BOUNDARY: usize = 64;
    let mut boundary = digest.hex();
    boundary.truncate(LONGEST_BOUNDARY);
    let mut bodies = Vec::new();
    let mut length = 0;
    for (index, (part, body)) in parts.iter().zip(content.into_parts(parts)).enumerate() {
        let line_end = if index == 0 { "" } else { "\r\n" };
        let head = format!(
            "{line_end}--{boundary}\r\nContent-Type: {BYTES}\r\nContent-Range: {}\r\n\r\n",
            content_range(part, size)
        );
        length += head.len() as u64 + (part.end - part.start);
        bodies.push(Body::bytes(head));
        bodies.push(body);
    }
    let end = format!("\r\n--{boundary}--\r\n");
    length += end.len() as u64;
    bodies.push(Body::bytes(end));
    let content_type = format!("multipart/byteranges; boundary={boundary}");
    Response::new(206)
        .content_digest(digest)
        .field("Content-Type", content_type)
        .fixed("Accept-Ranges: bytes\r\n")
        .body(Some(length), Body::parts(bodies))
}

/// RFC 9110 §13.1.2, weak comparison; unquoted tags are met and taken too.
fn is_known(head: &RequestHead, digest: &Digest) -> bool {
    if head.headers.get("if-none-match").is_none() {
        return false;
    }
    let digest = digest.to_string();
    head.headers
        .all("if-none-match")
        .flat_map(|value| value.split(','))
        .any(|tag| {
            let tag = tag.trim();
            let tag = tag.strip_prefix("W/").unwrap_or(tag);
            tag == "*" || tag.trim_matches('"') == digest
        })
}

/// What of the query is the registry's. `ns` is between the client and us.
fn list_query(head: &RequestHead) -> Option<String> {
    let kept: Vec<&str> = head
        .query()?
        .split('&')
        .filter(|pair| !pair.starts_with("ns="))
        .collect();
    (!kept.is_empty()).then(|| kept.join("&"))
}

fn own_name(name: &Name) -> String {
    match name {
        Name::Ephemeral { token, repository } => format!("wt/{token}/{repository}"),
        Name::Direct {
            registry,
            repository,
        } => format!("{registry}/{repository}"),
    }
}

/// A page's successor is fetched through us again.
fn list_response(list: List, path: &str, content_type: &str) -> Response {
    let mut response = Response::new(200);
    if let Some(query) = list.link.as_deref().and_then(next_page) {
        response = response.field("Link", format_args!("<{path}?{query}>; rel=\"next\""));
    }
    if let Some(filters) = &list.filters_applied {
        response = response.field("OCI-Filters-Applied", filters);
    }
    let stated = list
        .content_type
        .as_deref()
        .filter(|stated| stated.ends_with("json"));
    response.content(stated.unwrap_or(content_type), list.body)
}
