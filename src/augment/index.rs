//! An index: images for several platforms, some of which are changed.

use std::collections::HashSet;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    AugmentError, PlatformImage,
    image::point_to,
    json::{Member, Object, raw},
};
use crate::oci::{Descriptor, Digest, Platform, Platforms, media_type};

const PART: &str = "its index";
/// For one platform. Some indexes have an image for each version of an operating system. Each is fetched: what goes far beyond
/// that is meant to cost us.
const MOST_IMAGES: usize = 16;
/// Of what an error lists.
const MOST_LISTED: usize = 12;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    digest: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    platform: Option<EntryPlatform>,
}

#[derive(Deserialize)]
struct EntryPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

impl Entry {
    fn parse(member: &RawValue) -> Result<Self, AugmentError> {
        Object::parse(PART, member.get().as_bytes())?;
        serde_json::from_str(member.get()).map_err(|cause| AugmentError::Malformed {
            part: PART,
            cause: cause.to_string(),
        })
    }

    fn is_image(&self) -> bool {
        matches!(
            self.media_type.as_deref(),
            None | Some(media_type::OCI_MANIFEST | media_type::DOCKER_MANIFEST)
        )
    }

    fn is_image_for(&self, wanted: &Platform) -> bool {
        let is_for = |platform: &EntryPlatform| {
            let variant = platform.variant.as_deref();
            wanted.is_met_by(&platform.os, &platform.architecture, variant)
        };
        self.is_image() && self.platform.as_ref().is_some_and(is_for)
    }

    /// No entry is for two of them: each platform is written in one way only there.
    fn wanted_for<'a>(&self, wanted: &'a Platforms) -> Option<&'a Platform> {
        wanted.iter().find(|platform| self.is_image_for(platform))
    }
}

/// Each once for a platform, however often it is named, in the index's order. There is one for each platform at least.
pub(super) fn matching(
    wanted: &Platforms,
    index: &[u8],
) -> Result<Vec<PlatformImage>, AugmentError> {
    let members = Object::parse(PART, index)?;
    let named: Vec<&RawValue> = members.get(PART, "manifests")?.unwrap_or_default();
    let entries = named.into_iter().map(Entry::parse);
    let entries = entries.collect::<Result<Vec<_>, _>>()?;
    let is_absent = |platform: &&Platform| {
        let mut entries = entries.iter();
        !entries.any(|entry| entry.is_image_for(platform))
    };
    let absent = wanted.iter().filter(is_absent);
    let absent: Vec<String> = absent.map(Platform::to_string).collect();
    if !absent.is_empty() {
        return Err(AugmentError::NoPlatform {
            wanted: absent.join(", "),
            present: present(&entries),
        });
    }
    let mut images: Vec<PlatformImage> = Vec::new();
    let mut seen = HashSet::new();
    for entry in &entries {
        let Some(platform) = entry.wanted_for(wanted) else {
            continue;
        };
        let digest = entry.digest.parse::<Digest>();
        let digest = digest.map_err(|cause| AugmentError::Malformed {
            part: PART,
            cause: cause.to_string(),
        })?;
        if seen.insert((digest, platform)) {
            images.push(PlatformImage {
                platform: platform.clone(),
                image: Descriptor {
                    digest,
                    media_type: entry.media_type.clone().unwrap_or_default(),
                    size: entry.size,
                },
            });
        }
    }
    if images.len() > MOST_IMAGES * wanted.len() {
        return Err(AugmentError::TooMany {
            wanted: wanted.to_string(),
            count: images.len(),
        });
    }
    Ok(images)
}

/// The index with the images for these platforms alone; the index itself, if it has no others.
pub(super) fn narrow(wanted: &Platforms, index: &[u8]) -> Result<Vec<u8>, AugmentError> {
    let mut members = Object::parse(PART, index)?;
    let named: Vec<&RawValue> = members.get(PART, "manifests")?.unwrap_or_default();
    let mut manifests: Vec<&RawValue> = Vec::with_capacity(named.len());
    for member in &named {
        if Entry::parse(member)?.wanted_for(wanted).is_some() {
            manifests.push(member);
        }
    }
    if manifests.len() == named.len() {
        return Ok(index.to_owned());
    }
    let manifests = raw(&manifests);
    members.set("manifests", &manifests);
    Ok(members.to_bytes())
}

fn present(entries: &[Entry]) -> String {
    let mut listed: Vec<String> = Vec::new();
    for platform in entries.iter().filter_map(|entry| entry.platform.as_ref()) {
        let variant = platform.variant.as_deref();
        let text = match variant.filter(|variant| !variant.is_empty()) {
            Some(variant) => format!("{}/{}/{variant}", platform.os, platform.architecture),
            None => format!("{}/{}", platform.os, platform.architecture),
        };
        // How attestations are kept out of the way of runtimes.
        let is_image = text != "unknown/unknown";
        if is_image && !listed.contains(&text) && listed.len() < MOST_LISTED {
            listed.push(text.chars().take(60).collect());
        }
    }
    if listed.is_empty() {
        "unnamed platforms".to_owned()
    } else {
        listed.join(", ")
    }
}

pub(super) fn change(
    index: &[u8],
    changed: &[(PlatformImage, Descriptor)],
) -> Result<Vec<u8>, AugmentError> {
    if changed
        .iter()
        .all(|(before, after)| before.image.digest == after.digest)
    {
        return Ok(index.to_owned());
    }
    let mut members = Object::parse(PART, index)?;
    let named: Vec<&RawValue> = members.get(PART, "manifests")?.unwrap_or_default();
    let mut manifests: Vec<Member<'_>> = Vec::with_capacity(named.len());
    for member in named {
        let mut entry = Object::parse(PART, member.get().as_bytes())?;
        let digest: Option<String> = entry.get(PART, "digest")?;
        let digest = digest.and_then(|text| text.parse::<Digest>().ok());
        let parsed = Entry::parse(member)?;
        let made = changed
            .iter()
            .filter(|(before, _)| Some(before.image.digest) == digest)
            // One image may be named for several platforms, and become another for each.
            .min_by_key(|(before, _)| !parsed.is_image_for(&before.platform));
        manifests.push(match made {
            Some((before, after)) if before.image.digest != after.digest => {
                point_to(&mut entry, &after.digest, after.size);
                raw(&entry)
            }
            Some(_) | None => Member::Borrowed(member),
        });
    }
    let manifests = raw(&manifests);
    members.set("manifests", &manifests);
    Ok(members.to_bytes())
}
