//! The configuration of an image (image-spec, config.md; Docker's has the same members).

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    AugmentError, Layer, Overlay,
    json::{Member, Object, raw},
};
use crate::oci::{Digest, Platform, Platforms};

const PART: &str = "its configuration";
/// How the entrypoint of an overlay finds the image's own.
const ENTRY_CHAIN: &str = "WAVE_ENTRY_CHAIN";

/// One that says nothing of its platform may be for any, but not for several.
pub(super) fn ensure_platforms(wanted: &Platforms, config: &[u8]) -> Result<(), AugmentError> {
    /// Of what an error repeats.
    const LONGEST: usize = 60;
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Stated {
        os: String,
        architecture: String,
        variant: Option<String>,
    }
    let Stated {
        os,
        architecture,
        variant,
    } = serde_json::from_slice(config).unwrap_or_default();
    let is_stated = !architecture.is_empty();
    let is_met = |platform: &&Platform| platform.is_met_by(&os, &architecture, variant.as_deref());
    let absent: Vec<String> = wanted
        .iter()
        .filter(|platform| !is_met(platform))
        .map(Platform::to_string)
        .collect();
    if absent.is_empty() || !is_stated && !wanted.are_several() {
        return Ok(());
    }
    let variant = variant.as_ref().filter(|variant| !variant.is_empty());
    let variant = variant.map(|variant| format!("/{variant}"));
    let present = match is_stated {
        true => format!("{os}/{architecture}{}", variant.unwrap_or_default()),
        false => "a platform that it does not name".to_owned(),
    };
    Err(AugmentError::NoPlatform {
        wanted: absent.join(", "),
        present: present.chars().take(LONGEST).collect(),
    })
}

/// The parts that decide what becomes of it.
pub(super) struct Config<'a> {
    members: Object<'a>,
    pub(super) architecture: String,
    diff_ids: Vec<Member<'a>>,
}

impl<'a> Config<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, AugmentError> {
        #[derive(Deserialize)]
        struct Read<'a> {
            #[serde(default)]
            architecture: Option<String>,
            #[serde(borrow, default)]
            rootfs: Option<RootFs<'a>>,
        }
        #[derive(Deserialize)]
        struct RootFs<'a> {
            #[serde(borrow, default)]
            diff_ids: Option<Vec<&'a RawValue>>,
        }
        let members = Object::parse(PART, bytes)?;
        let read: Read<'a> =
            serde_json::from_slice(bytes).map_err(|cause| AugmentError::Malformed {
                part: PART,
                cause: cause.to_string(),
            })?;
        let diff_ids = read.rootfs.and_then(|rootfs| rootfs.diff_ids);
        Ok(Self {
            members,
            architecture: read.architecture.unwrap_or_default(),
            diff_ids: diff_ids
                .unwrap_or_default()
                .into_iter()
                .map(Member::Borrowed)
                .collect(),
        })
    }

    pub(super) fn layer_count(&self) -> usize {
        self.diff_ids.len()
    }

    pub(super) fn diff_ids(&self) -> Result<Vec<Digest>, AugmentError> {
        let malformed = |cause: String| AugmentError::Malformed { part: PART, cause };
        let texts = self.diff_ids.iter();
        texts
            .map(|text| {
                let text: String = serde_json::from_str(text.get())
                    .map_err(|cause| malformed(cause.to_string()))?;
                text.parse::<Digest>()
                    .map_err(|cause| malformed(cause.to_string()))
            })
            .collect()
    }

    pub(super) fn with(
        self,
        overlay: &Overlay,
        layers: &[&Layer],
    ) -> Result<Vec<u8>, AugmentError> {
        let Self {
            mut members,
            mut diff_ids,
            ..
        } = self;
        let settings = with_settings(&members, overlay)?.to_member();
        let history = with_history(&members, overlay, layers)?;
        members.set("config", &settings);
        if !layers.is_empty() {
            diff_ids.extend(layers.iter().map(|layer| raw(&layer.diff_id.to_string())));
            let rootfs = {
                let mut rootfs: Object<'_> = members
                    .get(PART, "rootfs")?
                    .unwrap_or_else(|| Object::with("type", &"layers"));
                rootfs.set("diff_ids", &diff_ids);
                rootfs.to_member()
            };
            members.set("rootfs", &rootfs);
        }
        if let Some(history) = history {
            members.set("history", &history);
        }
        Ok(members.to_bytes())
    }
}

/// What a container is started with.
fn with_settings<'a>(
    members: &'a Object<'_>,
    overlay: &Overlay,
) -> Result<Object<'a>, AugmentError> {
    let mut settings: Object<'a> = members.get(PART, "config")?.unwrap_or_else(Object::empty);
    let entrypoint: Option<Entrypoint> = settings.get(PART, "Entrypoint")?;
    let had: Vec<String> = settings.get(PART, "Env")?.unwrap_or_default();
    let mut changes = overlay.env.clone();
    let chained = entrypoint.and_then(Entrypoint::chained);
    changes.extend(chained.map(|entrypoint| format!("{ENTRY_CHAIN}={entrypoint}")));
    let env = with_variables(&had, changes);
    if env != had {
        settings.set("Env", &env);
    }
    if !overlay.entrypoint.is_empty() {
        settings.set("Entrypoint", &overlay.entrypoint);
    }
    if !overlay.cmd.is_empty() {
        settings.set("Cmd", &overlay.cmd);
    }
    if let Some(folder) = &overlay.working_dir {
        settings.set("WorkingDir", folder);
    }
    Ok(settings)
}

/// Some old images have a text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Entrypoint {
    Text(String),
    List(Vec<String>),
}

impl Entrypoint {
    fn chained(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text).filter(|text| !text.is_empty()),
            Self::List(list) => match list.as_slice() {
                [] => None,
                [only] => Some(only.clone()),
                _ => serde_json::to_string(&list).ok(),
            },
        }
    }
}

/// Runtimes do not agree on which of two values counts, so of what is changed there is one, where the first was. Of two
/// changes of a variable the later counts.
fn with_variables(had: &[String], changes: Vec<String>) -> Vec<String> {
    fn name(variable: &str) -> &str {
        variable.split('=').next().unwrap_or_default()
    }
    let last: HashMap<String, String> = changes
        .iter()
        .map(|change| (name(change).to_owned(), change.clone()))
        .collect();
    let mut placed = HashSet::new();
    let mut env = Vec::with_capacity(had.len() + changes.len());
    for variable in had.iter().chain(&changes) {
        match last.get(name(variable)) {
            Some(change) if placed.insert(name(variable).to_owned()) => env.push(change.clone()),
            Some(_) => {}
            None => env.push(variable.clone()),
        }
    }
    env
}

#[derive(Serialize)]
struct Step<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<&'a RawValue>,
    created_by: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    empty_layer: bool,
}

/// A step for each layer, as tools expect that count the two, and one for the settings. They have the time of the
/// image's creation: another one would make another digest each time. An image without a history gets none, since
/// the steps would be taken for those of its own layers.
fn with_history(
    members: &Object<'_>,
    overlay: &Overlay,
    layers: &[&Layer],
) -> Result<Option<Member<'static>>, AugmentError> {
    let history: Option<Vec<&RawValue>> = members.get(PART, "history")?;
    let Some(history) = history.filter(|history| !history.is_empty()) else {
        return Ok(None);
    };
    let mut history: Vec<Member<'_>> = history.into_iter().map(Member::Borrowed).collect();
    let created: Option<&RawValue> = members.get(PART, "created")?;
    for layer in layers {
        history.push(raw(&Step {
            created,
            created_by: format!("container request: layer {}", layer.digest),
            empty_layer: false,
        }));
    }
    let changed: Vec<&str> = [
        (!overlay.entrypoint.is_empty(), "ENTRYPOINT"),
        (!overlay.cmd.is_empty(), "CMD"),
        (!overlay.env.is_empty(), "ENV"),
        (overlay.working_dir.is_some(), "WORKDIR"),
    ]
    .into_iter()
    .filter_map(|(is_changed, what)| is_changed.then_some(what))
    .collect();
    if !changed.is_empty() {
        history.push(raw(&Step {
            created,
            created_by: format!("container request: {}", changed.join(", ")),
            empty_layer: true,
        }));
    }
    Ok(Some(raw(&history)))
}
