//! How long does it take to put layers and settings on an image of ten platforms? `cargo bench --bench overlay_manifest`
//!
//! Once for each image and overlay; after that it is remembered, under the overlay's digest.

use std::{hint::black_box, time::Duration};

use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::json;
use tidegate::{
    augment::{Compression, Layer, Overlay, Place, Target},
    oci::{Descriptor, Digest, media_type},
};

const PLATFORMS: [(&str, Option<&str>); 10] = [
    ("amd64", None),
    ("arm64", Some("v8")),
    ("arm", Some("v5")),
    ("arm", Some("v6")),
    ("arm", Some("v7")),
    ("386", None),
    ("ppc64le", None),
    ("s390x", None),
    ("riscv64", None),
    ("mips64le", None),
];
const LAYERS: usize = 20;
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn digest(name: &str) -> String {
    Digest::of(name.as_bytes()).to_string()
}

fn index() -> Vec<u8> {
    let manifests: Vec<_> = PLATFORMS
        .iter()
        .map(|(architecture, variant)| {
            json!({
                "mediaType": media_type::OCI_MANIFEST, "size": 4096,
                "digest": digest(&format!("{architecture}{variant:?}")),
                "platform": {"os": "linux", "architecture": architecture, "variant": variant},
                "annotations": {"org.opencontainers.image.base.name": "example/base:1", "org.opencontainers.image.revision": "0123456789abcdef"},
            })
        })
        .collect();
    let index =
        json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests});
    index.to_string().into_bytes()
}

fn manifest() -> Vec<u8> {
    let layers: Vec<_> = (0..LAYERS)
        .map(|number| json!({"mediaType": LAYER_TYPE, "size": 1 << 20, "digest": digest(&number.to_string())}))
        .collect();
    json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "layers": layers,
        "config": {"mediaType": CONFIG_TYPE, "size": 4096, "digest": digest("config")},
    })
    .to_string()
    .into_bytes()
}

fn config() -> Vec<u8> {
    let diff_ids: Vec<_> = (0..LAYERS)
        .map(|number| digest(&format!("tar {number}")))
        .collect();
    let history: Vec<_> = (0..LAYERS)
        .map(|number| json!({"created": "2026-03-04T05:06:07Z", "created_by": format!("RUN /bin/sh -c step {number} # buildkit")}))
        .collect();
    json!({
        "architecture": "amd64", "os": "linux", "created": "2026-03-04T05:06:07Z",
        "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "LANG=C.UTF-8"], "Entrypoint": ["/entry"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": history,
    })
    .to_string()
    .into_bytes()
}

fn overlay() -> Overlay {
    let layer = |name: &str| Layer {
        digest: Digest::of(name.as_bytes()),
        size: 1 << 20,
        diff_id: Digest::of(format!("tar of {name}").as_bytes()),
        compression: Compression::Gzip,
        place: Place::Inline,
        only_for: None,
    };
    Overlay {
        entrypoint: vec!["/usr/bin/fusion".to_owned()],
        cmd: Vec::new(),
        working_dir: Some("/work".to_owned()),
        env: vec!["LANG=C".to_owned(), "TOOL=1".to_owned()],
        layers: vec![layer("one"), layer("two")],
        platforms: "linux/amd64".parse().expect("a platform"),
    }
}

/// All that a first pull costs, digests included.
fn put(overlay: &Overlay, index: &[u8], manifest: &[u8], config: &[u8]) -> Digest {
    let Ok(Target::Index { images }) = overlay.target(media_type::OCI_INDEX, index) else {
        panic!("it is an index with images for amd64");
    };
    let mut changed = Vec::new();
    for before in images {
        let platform = Some(&before.platform);
        let made = overlay.change_image(platform, media_type::OCI_MANIFEST, manifest, config);
        let made = made.unwrap_or_else(|error| panic!("{error}"));
        let after = Descriptor {
            digest: Digest::of(&made.manifest),
            media_type: before.image.media_type.clone(),
            size: made.manifest.len() as u64,
        };
        changed.push((before, after));
    }
    let index = overlay.change_index(index, &changed);
    Digest::of(&index.unwrap_or_else(|error| panic!("{error}")))
}

fn overlays(criterion: &mut Criterion) {
    let (index, manifest, config, overlay) = (index(), manifest(), config(), overlay());
    let before = Digest::of(&index);
    assert_ne!(put(&overlay, &index, &manifest, &config), before);
    let mut group = criterion.benchmark_group("overlay_manifest");
    group.bench_function("ten_platforms", |bencher| {
        bencher.iter(|| put(black_box(&overlay), &index, &manifest, &config));
    });
    group.bench_function("overlay_digest", |bencher| {
        bencher.iter(|| black_box(&overlay).digest());
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = overlays
}
criterion_main!(benches);
