//! From what a container request wants on its image to an overlay: its layers are checked, the images that it includes
//! are looked up with the caller's own credentials, and all of it is tried on the image, so that what cannot work is told
//! to whoever asks and not to whoever pulls.

use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Api, Response,
    error_response::{self, Shape},
    layers::Room,
    submission::{ContainerConfig, Rejection},
    validation::Additions,
};
use crate::{
    augment::{Layer, MOST_LAYERS, NamedOverlay, Overlay, Place, TooManyLayers},
    blocking::Errand,
    oci::{Platform, Platforms, Reference},
    requests::{Caller, InlineLayer},
};

impl Api {
    /// Everything but the image's own part in it.
    pub(super) async fn overlay(
        &self,
        caller: &Arc<Caller>,
        additions: Additions,
        platforms: Platforms,
    ) -> Result<(Arc<NamedOverlay>, Vec<InlineLayer>), Response> {
        let Additions { config, includes } = additions;
        let checked = match config.layers.as_ref().is_none_or(Vec::is_empty) {
            true => check(config),
            // Unpacking takes as long as there is to unpack.
            false => {
                let checking = self.shared.pool.run(Errand::Layers, move || check(config));
                let checked = checking.await;
                checked.map_err(|error| error_response::of_pool(Shape::Api, error))?
            }
        };
        let (mut overlay, inline) = checked.map_err(|rejection| {
            tracing::info!(%caller, reason = %rejection, "a container request was refused");
            error_response::api(400, &rejection.to_string())
        })?;
        overlay.platforms = platforms;
        for image in &includes {
            let layers = self.included(caller, image, &overlay.platforms).await?;
            overlay.layers.extend(layers);
            // Before the next are asked for: what is not taken is not to fill the memory.
            if let Err(excess) = overlay.ensure_room() {
                return Err(error_response::api(400, &too_many(excess)));
            }
        }
        let naming = self
            .shared
            .pool
            .run(Errand::Hash, || Arc::new(NamedOverlay::from(overlay)));
        let named = naming.await;
        let named = named.map_err(|error| error_response::of_pool(Shape::Api, error))?;
        Ok((named, inline))
    }

    async fn included(
        &self,
        caller: &Arc<Caller>,
        image: &Reference,
        platforms: &Platforms,
    ) -> Result<Vec<Layer>, Response> {
        let layers = self.pull.layers_of(caller, image, platforms).await;
        layers.map_err(|error| {
            tracing::info!(%caller, %image, %error, "a container request was refused");
            error_response::of_include(image, &error)
        })
    }
}

fn too_many(excess: TooManyLayers) -> String {
    format!("containerConfig and containerIncludes have {excess}")
}

fn check(config: ContainerConfig) -> Result<(Overlay, Vec<InlineLayer>), Rejection> {
    let mut layers = Vec::new();
    let mut inline = Vec::new();
    let posted = config.layers.unwrap_or_default();
    if posted.len() > MOST_LAYERS {
        return Err(Rejection::Invalid(too_many(TooManyLayers::OnOneImage)));
    }
    let mut room = Room::default();
    for (number, posted) in (1..).zip(posted) {
        let (layer, bytes) = posted
            .read(&mut room)
            .map_err(|problem| Rejection::Invalid(format!("layer {number}: {problem}")))?;
        layers.push(layer);
        inline.extend(bytes);
    }
    let overlay = Overlay {
        entrypoint: config.entrypoint.unwrap_or_default(),
        cmd: config.cmd.unwrap_or_default(),
        working_dir: config.working_dir.filter(|folder| !folder.is_empty()),
        env: config.env.unwrap_or_default(),
        layers,
        platforms: Platforms::default(),
    };
    Ok((overlay, inline))
}

/// As it was posted, without the bytes of layers, and without the parts of URLs that may be signatures.
pub(super) fn described(overlay: &Overlay) -> Value {
    let some = |list: &Vec<String>| (!list.is_empty()).then(|| list.clone());
    let layers: Vec<DescribedLayer> = overlay.layers.iter().map(DescribedLayer::from).collect();
    json!({
        "entrypoint": some(&overlay.entrypoint),
        "cmd": some(&overlay.cmd),
        "env": some(&overlay.env),
        "workingDir": overlay.working_dir,
        "layers": (!layers.is_empty()).then_some(layers),
    })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DescribedLayer {
    location: String,
    gzip_digest: String,
    gzip_size: u64,
    tar_digest: String,
    /// Not posted: of an included image, in a freeze for several.
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<String>,
}

impl From<&Layer> for DescribedLayer {
    fn from(layer: &Layer) -> Self {
        Self {
            location: location(layer),
            gzip_digest: layer.digest.to_string(),
            gzip_size: layer.size,
            tar_digest: layer.diff_id.to_string(),
            platform: layer.only_for.as_ref().map(Platform::to_string),
        }
    }
}

fn location(layer: &Layer) -> String {
    match &layer.place {
        Place::Inline => "data:DATA+OMITTED".to_owned(),
        Place::Web { url } => match url.split_once('?') {
            Some((path, _)) => format!("{path}?OMITTED"),
            None => url.clone(),
        },
        Place::Repository {
            registry,
            repository,
        } => format!("docker://{registry}/v2/{repository}/blobs/{}", layer.digest),
    }
}
