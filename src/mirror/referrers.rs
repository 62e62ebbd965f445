//! What refers to an image: signatures, bills of materials, attestations. Three ways of finding it are met: the registry
//! lists it (distribution-spec, listing referrers), an index under a tag made of the digest does (the same, referrers tag
//! schema), or cosign's older tags name it.
//!
//! At the destination the first way works by itself. Where it does not, whoever pushes keeps the index under the tag.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashSet},
};

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    CopyError,
    contents::is_index,
    copying::Copying,
    parallel::for_each,
    tree::Node,
    walk::{Met, Standing},
};
use crate::{
    oci::{Descriptor, Digest, Tag, TagOrDigest, media_type},
    pull::{Extent, FetchError, List, PullError, next_page},
};

/// Of one list. A page has some hundred entries at least.
const MOST_PAGES: usize = 32;
/// Of all lists of one copy, and what they name. Both are in memory until it is copied, and a registry may list whatever it likes.
const MOST_LIST_BYTES: u64 = 8 << 20;
const MOST_LISTED: usize = 2048;
/// What refers to what refers to the image, and so on.
const DEEPEST: u32 = 4;
/// cosign's, for signatures, attestations and bills of materials.
const SUFFIXES: [&str; 3] = ["sig", "att", "sbom"];

/// What is to be copied next.
#[derive(Default)]
pub(super) struct Found {
    /// With what it is about, and as it was listed.
    listed: Vec<(Digest, Descriptor, Value)>,
    tagged: Vec<(Tag, Digest)>,
    depth: u32,
}

/// What refers to something, as it is met.
#[derive(Default)]
struct Referring {
    met: Vec<Met>,
    /// With what they are about, and as they were listed.
    pushed_before: Vec<(Digest, Value)>,
    digests: Vec<Digest>,
}

impl Found {
    pub(super) fn is_empty(&self) -> bool {
        self.listed.is_empty() && self.tagged.is_empty()
    }
}

impl Copying<'_> {
    pub(super) async fn find_referrers(&self, images: &[Digest]) -> Result<Found, CopyError> {
        let found = RefCell::new(self.find_listed(images, 0).await?);
        let tags = images
            .iter()
            .flat_map(|image| SUFFIXES.iter().filter_map(|it| tag_of(image, Some(it))));
        for_each(tags, self.width(), |tag| {
            let found = &found;
            async move {
                let version = TagOrDigest::Tag(tag.clone());
                let pull = &self.mirror.pull;
                let asked = pull.manifest(&self.source, &version, Extent::Head);
                match self.unless_cancelled(async { Ok(asked.await) }).await? {
                    Ok(head) => found.borrow_mut().tagged.push((tag, head.digest)),
                    Err(error) if is_absence(&error) => {}
                    Err(error) => return Err(CopyError::Referrers(error)),
                }
                Ok(())
            }
        })
        .await?;
        Ok(found.into_inner())
    }

    /// Answers with what refers to them.
    pub(super) async fn bring_referrers(&self, found: Found) -> Result<Found, CopyError> {
        let referring = RefCell::<Referring>::default();
        for_each(
            found.listed,
            self.width(),
            |(subject, descriptor, entry)| self.meet_listed(subject, descriptor, entry, &referring),
        )
        .await?;
        let Referring {
            mut met,
            pushed_before,
            digests,
        } = referring.into_inner();
        let mut named_by_tags = Vec::new();
        for (tag, digest) in found.tagged {
            let version = TagOrDigest::Tag(tag);
            let standing = self.pusher.standing(&version);
            if self.unless_cancelled(standing).await? == Some(digest) {
                continue;
            }
            let node = self.read(&TagOrDigest::Digest(digest)).await?;
            if !self.has_seen(&digest) && met.iter().all(|one| one.digest() != digest) {
                met.push(self.meet_node(node.clone()).await?);
            }
            named_by_tags.push((version, node));
        }
        let walk = self.walk(met, Standing::Unknown).await?;
        let except = named_by_tags.iter().map(|(_, node)| node.digest);
        self.bring(&walk, &except.collect::<HashSet<_>>()).await?;
        for (version, node) in &named_by_tags {
            self.push(node, version).await?;
        }
        self.keep_listed(pushed_before).await?;
        match found.depth < DEEPEST {
            true => self.find_listed(&digests, found.depth + 1).await,
            false => Ok(Found::default()),
        }
    }

    async fn meet_listed(
        &self,
        subject: Digest,
        descriptor: Descriptor,
        entry: Value,
        referring: &RefCell<Referring>,
    ) -> Result<(), CopyError> {
        let digest = descriptor.digest;
        let is_known = referring.borrow().digests.contains(&digest);
        if is_known || self.has_seen(&digest) {
            return Ok(());
        }
        let met = match self.meet(&descriptor, Standing::Unknown).await {
            Ok(met) => met,
            Err(CopyError::Source(error)) if is_absence(&error) => {
                tracing::warn!(%digest, %subject, %error,
                    "what is listed as referring to an image is not there, and is not copied");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let mut referring = referring.borrow_mut();
        if met.is_there() {
            referring.pushed_before.push((subject, entry));
        }
        if !referring.digests.contains(&digest) {
            referring.digests.push(digest);
            referring.met.push(met);
        }
        Ok(())
    }

    /// They were pushed before, and whoever did may not have come to list them.
    async fn keep_listed(&self, pushed_before: Vec<(Digest, Value)>) -> Result<(), CopyError> {
        let Some((subject, _)) = pushed_before.first() else {
            return Ok(());
        };
        let lists = match self.destination_lists.get() {
            Some(lists) => lists,
            None => {
                let asked = self.pusher.lists_referrers(subject);
                self.unless_cancelled(asked).await?
            }
        };
        self.destination_lists.set(Some(lists));
        if !lists {
            self.unlisted.borrow_mut().extend(pushed_before);
        }
        Ok(())
    }

    /// In the index under the subject's tag. Two who do this for one subject at the same time can undo each other's work;
    /// the specification knows no better.
    pub(super) async fn list_referrers(&self) -> Result<(), CopyError> {
        let mut by_subject: BTreeMap<Digest, Vec<Value>> = BTreeMap::new();
        for (subject, entry) in self.unlisted.take() {
            by_subject.entry(subject).or_default().push(entry);
        }
        for (subject, entries) in by_subject {
            self.go_on()?;
            let Some(tag) = tag_of(&subject, None) else {
                continue;
            };
            let version = TagOrDigest::Tag(tag);
            let standing = self.pusher.manifest(&version);
            let standing = self.unless_cancelled(standing).await?;
            let size = standing.as_ref().map_or(0, Vec::len);
            let index = self.mirror.pull.compute(size, move || {
                let index = with_entries(standing.as_deref(), entries)?;
                Ok(index.map(|index| (Digest::of(&index), Bytes::from(index))))
            });
            let index = index.await.map_err(PullError::from)?;
            let index = index.map_err(|problem: String| CopyError::Manifest {
                registry: self.plan.destination.registry.clone(),
                digest: subject,
                problem: format!("the index under its tag {version} is none: {problem}"),
            })?;
            if let Some((digest, index)) = index {
                let pushed =
                    self.pusher
                        .push_manifest(&version, &digest, media_type::OCI_INDEX, &index);
                Box::pin(pushed).await?;
            }
        }
        Ok(())
    }

    async fn find_listed(&self, subjects: &[Digest], depth: u32) -> Result<Found, CopyError> {
        let found = RefCell::new(Found {
            depth,
            ..Found::default()
        });
        let find = |subject| self.find_of(subject, &found);
        let mut subjects = subjects.iter();
        // One is enough to learn how this registry tells.
        if self.source_lists.get().is_none()
            && let Some(first) = subjects.next()
        {
            find(first).await?;
        }
        for_each(subjects, self.width(), find).await?;
        Ok(found.into_inner())
    }

    async fn find_of(&self, subject: &Digest, found: &RefCell<Found>) -> Result<(), CopyError> {
        let pages = match self.source_lists.get() {
            Some(false) => None,
            Some(true) | None => self.listed_by_the_registry(subject).await?,
        };
        if self.source_lists.get().is_none() {
            self.source_lists.set(Some(pages.is_some()));
        }
        let pages = match pages {
            Some(pages) => pages,
            None => self.listed_by_tag(subject).await?,
        };
        for page in pages {
            let read = self.mirror.pull.compute(page.len(), move || entries(&page));
            let entries = read.await.map_err(PullError::from)?;
            let mut found = found.borrow_mut();
            if found.listed.len() + entries.len() > MOST_LISTED {
                return Err(self.unfit(
                    subject,
                    format!("with those before it, more than {MOST_LISTED} things refer to it"),
                ));
            }
            let entries = entries.into_iter();
            let listed = entries.map(|(descriptor, entry)| (*subject, descriptor, entry));
            found.listed.extend(listed);
        }
        Ok(())
    }

    fn count_list(&self, subject: &Digest, list: &[u8]) -> Result<(), CopyError> {
        let held = self.list_bytes.get() + list.len() as u64;
        self.list_bytes.set(held);
        match held > MOST_LIST_BYTES {
            true => Err(self.unfit(
                subject,
                format!("with those before it, what refers to it makes lists of more than {MOST_LIST_BYTES} bytes"),
            )),
            false => Ok(()),
        }
    }

    /// `None`: the registry lists nothing.
    async fn listed_by_the_registry(
        &self,
        subject: &Digest,
    ) -> Result<Option<Vec<Vec<u8>>>, CopyError> {
        let (mut pages, mut query) = (Vec::new(), None::<String>);
        while pages.len() < MOST_PAGES {
            let pull = &self.mirror.pull;
            let asked = pull.referrers(&self.source, subject, query.as_deref());
            let list = match self.unless_cancelled(async { Ok(asked.await) }).await? {
                Ok(list) if is_list(&list) => list,
                // Some answer with a page for people, and a redirect to it.
                Ok(_) if pages.is_empty() => return Ok(None),
                Err(error) if pages.is_empty() && is_absence(&error) => return Ok(None),
                Ok(_) => break,
                Err(error) => return Err(CopyError::Referrers(error)),
            };
            query = list.link.as_deref().and_then(next_page);
            self.count_list(subject, &list.body)?;
            pages.push(list.body);
            if query.is_none() {
                break;
            }
        }
        Ok(Some(pages))
    }

    async fn listed_by_tag(&self, subject: &Digest) -> Result<Vec<Vec<u8>>, CopyError> {
        let Some(tag) = tag_of(subject, None) else {
            return Ok(Vec::new());
        };
        let version = TagOrDigest::Tag(tag);
        let pull = &self.mirror.pull;
        let asked = pull.manifest(&self.source, &version, Extent::Whole);
        match self.unless_cancelled(async { Ok(asked.await) }).await? {
            Ok(served) if is_index(&served.media_type) => {
                let list = served.bytes.map(|bytes| bytes.to_vec());
                self.count_list(subject, list.as_deref().unwrap_or_default())?;
                Ok(list.into_iter().collect())
            }
            Ok(_) => Ok(Vec::new()),
            Err(error) if is_absence(&error) => Ok(Vec::new()),
            Err(error) => Err(CopyError::Referrers(error)),
        }
    }
}

impl Node {
    /// As lists of what refers to its subject have it.
    pub(super) fn as_listed(&self) -> Value {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Listed<'a> {
            media_type: &'a str,
            digest: String,
            size: usize,
            #[serde(skip_serializing_if = "Option::is_none")]
            artifact_type: &'a Option<String>,
            #[serde(skip_serializing_if = "BTreeMap::is_empty")]
            annotations: &'a BTreeMap<String, String>,
        }
        json!(Listed {
            media_type: &self.media_type,
            digest: self.digest.to_string(),
            size: self.bytes.len(),
            artifact_type: &self.contents.artifact_type,
            annotations: &self.contents.annotations,
        })
    }
}

/// `sha256-<hex>`, and cosign's `sha256-<hex>.sig`. The algorithm is cut to 32 characters and the hash to 64
/// (distribution-spec, referrers tag schema).
fn tag_of(subject: &Digest, suffix: Option<&str>) -> Option<Tag> {
    const LONGEST_HASH: usize = 64;
    let mut hash = subject.hex();
    hash.truncate(LONGEST_HASH);
    let algorithm = subject.algorithm().as_str();
    let tag = match suffix {
        Some(suffix) => format!("{algorithm}-{hash}.{suffix}"),
        None => format!("{algorithm}-{hash}"),
    };
    tag.parse().ok()
}

fn is_list(list: &List) -> bool {
    list.content_type
        .as_deref()
        .is_some_and(|label| label.starts_with(media_type::OCI_INDEX))
}

/// The registry has nothing, or says so in one of the ways in which registries do. That it cannot answer now is another
/// thing: signatures would be left behind.
fn is_absence(error: &PullError) -> bool {
    match error {
        PullError::Fetch(FetchError::Unknown { .. } | FetchError::Refused { .. }) => true,
        PullError::Fetch(FetchError::Failed { status, .. }) => {
            !matches!(status, 408 | 429 | 500 | 502..)
        }
        _ => false,
    }
}

/// Those that cannot be verified are left out.
fn entries(index: &[u8]) -> Vec<(Descriptor, Value)> {
    let Ok(Value::Object(mut members)) = serde_json::from_slice(index) else {
        return Vec::new();
    };
    let Some(Value::Array(entries)) = members.remove("manifests") else {
        return Vec::new();
    };
    let readable = entries.into_iter().filter_map(|entry| {
        let text = |name: &str| entry.get(name).and_then(Value::as_str);
        let descriptor = Descriptor {
            digest: text("digest")?.parse().ok()?,
            media_type: text("mediaType").unwrap_or_default().to_owned(),
            size: entry.get("size").and_then(Value::as_u64).unwrap_or(0),
        };
        Some((descriptor, entry))
    });
    readable.collect()
}

/// `None`: all of them are in it already.
fn with_entries(index: Option<&[u8]>, entries: Vec<Value>) -> Result<Option<Vec<u8>>, String> {
    let mut index = match index {
        Some(bytes) => serde_json::from_slice::<Value>(bytes).map_err(|e| e.to_string())?,
        None => json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_INDEX,
            "manifests": [],
        }),
    };
    let listed = index
        .get_mut("manifests")
        .and_then(Value::as_array_mut)
        .ok_or("it has no list of manifests")?;
    let before = listed.len();
    for entry in entries {
        let is_listed = listed
            .iter()
            .any(|known| known.get("digest") == entry.get("digest"));
        if !is_listed {
            listed.push(entry);
        }
    }
    Ok((listed.len() > before).then(|| index.to_string().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_made_of_the_digest() {
        let digest = Digest::of(b"image");
        let hex = digest.hex();
        for (suffix, expected) in [
            (None, format!("sha256-{hex}")),
            (Some("sig"), format!("sha256-{hex}.sig")),
        ] {
            let tag = tag_of(&digest, suffix).map(|tag| tag.as_str().to_owned());
            assert_eq!(tag, Some(expected), "{suffix:?}");
        }
        let long: Digest = format!("sha512:{}", "ab".repeat(64)).parse().expect("one");
        let tag = tag_of(&long, None).map(|tag| tag.as_str().to_owned());
        assert_eq!(tag, Some(format!("sha512-{}", "ab".repeat(32))));
    }

    #[test]
    fn an_index_under_a_tag_gains_what_it_lacks_and_keeps_what_it_has() {
        let entry = |name: &str| json!({"digest": Digest::of(name.as_bytes()).to_string()});
        let first = with_entries(None, vec![entry("a"), entry("a")]);
        let first = first.expect("an index").expect("a new one");
        assert_eq!(entries(&first).len(), 1);
        let same = with_entries(Some(&first), vec![entry("a")]);
        assert_eq!(same, Ok(None));
        let second = with_entries(Some(&first), vec![entry("b"), entry("a")]);
        let second = second.expect("an index").expect("a longer one");
        let digests: Vec<_> = entries(&second).into_iter().map(|it| it.0.digest).collect();
        assert_eq!(digests, [Digest::of(b"a"), Digest::of(b"b")]);
        for none in ["[]", "{}", "no", r#"{"manifests":{}}"#] {
            let outcome = with_entries(Some(none.as_bytes()), vec![entry("a")]);
            assert!(outcome.is_err(), "{none}");
        }
    }

    #[test]
    fn what_cannot_be_asked_is_not_taken_for_absent() {
        let failed = |status| {
            PullError::Fetch(FetchError::Failed {
                registry: "r.example".parse().expect("a registry"),
                what: String::new(),
                status,
                said: crate::upstream::Said::default(),
            })
        };
        for (status, expected) in [
            (303, true),
            (400, true),
            (405, true),
            (501, true),
            (429, false),
            (500, false),
            (503, false),
        ] {
            assert_eq!(is_absence(&failed(status)), expected, "{status}");
        }
    }
}
