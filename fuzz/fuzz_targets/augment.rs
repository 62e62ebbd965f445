#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::{
    augment::{Compression, Layer, Overlay, Place, Target},
    oci::{Descriptor, Digest, Manifest, Platforms, media_type},
};

fn overlay() -> Overlay {
    Overlay {
        entrypoint: vec!["/entry".to_owned()],
        cmd: Vec::new(),
        working_dir: Some("/w".to_owned()),
        env: vec!["A=b".to_owned()],
        layers: vec![Layer {
            digest: Digest::of(b"layer"),
            size: 5,
            diff_id: Digest::of(b"archive"),
            compression: Compression::Gzip,
            place: Place::Inline,
            only_for: None,
        }],
        platforms: Platforms::default(),
    }
}

// A manifest or an index; for a manifest its configuration comes behind a zero byte, which no JSON contains.
fuzz_target!(|input: &[u8]| {
    let mut parts = input.splitn(2, |&byte| byte == 0);
    let (manifest, config) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let overlay = overlay();
    for media_type in [
        media_type::OCI_MANIFEST,
        media_type::DOCKER_MANIFEST,
        media_type::OCI_INDEX,
        media_type::DOCKER_LIST,
    ] {
        match overlay.target(media_type, manifest) {
            Err(_) => {}
            Ok(Target::Image { .. }) => {
                let Ok(changed) = overlay.change_image(None, media_type, manifest, config) else {
                    continue;
                };
                let again = overlay.change_image(None, media_type, manifest, config);
                assert_eq!(again.as_ref(), Ok(&changed));
                let Ok(Target::Image { config }) = overlay.target(media_type, &changed.manifest)
                else {
                    panic!("what was an image is none any more");
                };
                assert_eq!(config.digest, Digest::of(&changed.config));
                assert_eq!(config.size, changed.config.len() as u64);
                let named = Manifest::parse(None, &changed.manifest);
                if Manifest::parse(None, manifest).is_ok() {
                    let named = named.expect("an image that could be served can be served changed");
                    assert!(
                        named.blobs.len() >= 1024
                            || named
                                .blobs
                                .iter()
                                .any(|blob| blob.digest == Digest::of(b"layer"))
                    );
                }
            }
            Ok(Target::Index { images }) => {
                let changed: Vec<_> = images
                    .iter()
                    .map(|before| {
                        let after = Descriptor {
                            digest: Digest::of(before.image.digest.to_string().as_bytes()),
                            ..before.image.clone()
                        };
                        (before.clone(), after)
                    })
                    .collect();
                let index = overlay
                    .change_index(manifest, &changed)
                    .expect("its images were found in it");
                let Ok(Target::Index { images: after }) = overlay.target(media_type, &index) else {
                    panic!("what was an index is none any more");
                };
                let expected: Vec<_> = changed.iter().map(|(_, after)| after.digest).collect();
                assert_eq!(
                    after.iter().map(|after| after.image.digest).collect::<Vec<_>>(),
                    expected
                );
            }
        }
    }
});
