use serde_json::{Value, json};

use super::*;

const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

fn overlay() -> Overlay {
    Overlay {
        entrypoint: Vec::new(),
        cmd: Vec::new(),
        working_dir: None,
        env: Vec::new(),
        layers: Vec::new(),
        platforms: Platforms::default(),
    }
}

fn layer(name: &str, compression: Compression, place: Place) -> Layer {
    Layer {
        digest: Digest::of(name.as_bytes()),
        size: 7,
        diff_id: Digest::of(format!("tar of {name}").as_bytes()),
        compression,
        place,
        only_for: None,
    }
}

fn inline(name: &str) -> Layer {
    layer(name, Compression::Gzip, Place::Inline)
}

fn manifest(config_type: &str, layer_count: usize) -> Vec<u8> {
    let layers: Vec<Value> = (0..layer_count)
        .map(|number| {
            json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": Digest::of(&[u8::try_from(number).expect("a few")]).to_string(), "size": 1,
            })
        })
        .collect();
    json!({
        "schemaVersion": 2,
        "config": {"mediaType": config_type, "digest": Digest::of(b"config").to_string(), "size": 6, "data": "e30="},
        "layers": layers,
        "annotations": {"a": "b"},
    })
    .to_string()
    .into_bytes()
}

fn config(settings: Value, layer_count: usize) -> Value {
    json!({
        "architecture": "amd64", "os": "linux", "created": "2020-02-02T02:02:02Z", "config": settings,
        "rootfs": {"type": "layers", "diff_ids": vec!["sha256:x"; layer_count]},
        "history": vec![json!({"created_by": "base"}); layer_count],
    })
}

fn changed(overlay: &Overlay, media_type: &str, config: &Value) -> (Value, Value) {
    let layer_count = config["rootfs"]["diff_ids"].as_array().map_or(0, Vec::len);
    let manifest = manifest(OCI_CONFIG, layer_count);
    let changed = overlay
        .change_image(None, media_type, &manifest, config.to_string().as_bytes())
        .unwrap_or_else(|error| panic!("{error}"));
    let manifest: Value = serde_json::from_slice(&changed.manifest).expect("JSON");
    assert_eq!(
        manifest["config"]["digest"],
        Digest::of(&changed.config).to_string()
    );
    assert_eq!(manifest["config"]["size"], changed.config.len());
    assert!(manifest["config"].get("data").is_none(), "of other bytes");
    assert_eq!(manifest["annotations"]["a"], "b");
    (
        manifest,
        serde_json::from_slice(&changed.config).expect("JSON"),
    )
}

#[test]
fn settings_replace_what_the_image_says() {
    let base = json!({
        "Entrypoint": ["/bin/a", "b"], "Cmd": ["c"], "WorkingDir": "/x", "Env": ["PATH=/bin", "A=1", "A=2"],
        "User": "app", "Labels": {"l": "1"},
    });
    let chain = "WAVE_ENTRY_CHAIN=[\"/bin/a\",\"b\"]";
    for (change, expected) in [
        (
            Overlay {
                entrypoint: vec!["/new".to_owned()],
                ..overlay()
            },
            json!({"Entrypoint": ["/new"], "Env": ["PATH=/bin", "A=1", "A=2", chain]}),
        ),
        (
            Overlay {
                cmd: vec!["new".to_owned(), "x".to_owned()],
                ..overlay()
            },
            json!({"Cmd": ["new", "x"], "Env": ["PATH=/bin", "A=1", "A=2", chain]}),
        ),
        (
            Overlay {
                working_dir: Some("/w".to_owned()),
                ..overlay()
            },
            json!({"WorkingDir": "/w", "Env": ["PATH=/bin", "A=1", "A=2", chain]}),
        ),
        (
            Overlay {
                env: ["B=x=y", "A=3", "B=z"].map(str::to_owned).to_vec(),
                ..overlay()
            },
            json!({"Env": ["PATH=/bin", "A=3", "B=z", chain]}),
        ),
        (
            Overlay {
                layers: vec![inline("l")],
                ..overlay()
            },
            json!({"Env": ["PATH=/bin", "A=1", "A=2", chain]}),
        ),
    ] {
        let (_, changed) = changed(&change, media_type::OCI_MANIFEST, &config(base.clone(), 1));
        let mut all = base.clone();
        for (name, value) in expected.as_object().expect("an object") {
            all[name] = value.clone();
        }
        assert_eq!(changed["config"], all, "{change:?}");
        assert_eq!(changed["created"], "2020-02-02T02:02:02Z");
    }
}

#[test]
fn the_images_entrypoint_is_handed_on() {
    let change = Overlay {
        entrypoint: vec!["/new".to_owned()],
        ..overlay()
    };
    for (settings, expected) in [
        (json!({"Entrypoint": ["/a"]}), Some("/a")),
        (
            json!({"Entrypoint": ["/a", "b c"]}),
            Some(r#"["/a","b c"]"#),
        ),
        (json!({"Entrypoint": "/a b"}), Some("/a b")),
        (json!({"Entrypoint": []}), None),
        (json!({"Entrypoint": null}), None),
        (json!({}), None),
        (Value::Null, None),
        (
            json!({"Entrypoint": ["/a"], "Env": ["WAVE_ENTRY_CHAIN=/old"]}),
            Some("/a"),
        ),
    ] {
        let (_, changed) = changed(
            &change,
            media_type::OCI_MANIFEST,
            &config(settings.clone(), 0),
        );
        let env: Vec<&str> = changed["config"]["Env"]
            .as_array()
            .map(|env| env.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let expected: Vec<String> = expected
            .iter()
            .map(|it| format!("WAVE_ENTRY_CHAIN={it}"))
            .collect();
        assert_eq!(env, expected, "{settings}");
        assert_eq!(
            changed["config"]["Entrypoint"],
            json!(["/new"]),
            "{settings}"
        );
    }
}

#[test]
fn layers_follow_the_images_family() {
    let change = Overlay {
        layers: vec![
            inline("one"),
            layer("two", Compression::Zstd, Place::Inline),
            layer("three", Compression::None, Place::Inline),
        ],
        ..overlay()
    };
    for (media_type, expected) in [
        (
            media_type::OCI_MANIFEST,
            [
                "application/vnd.oci.image.layer.v1.tar+gzip",
                "application/vnd.oci.image.layer.v1.tar+zstd",
                "application/vnd.oci.image.layer.v1.tar",
            ],
        ),
        (
            media_type::DOCKER_MANIFEST,
            [
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
                "application/vnd.docker.image.rootfs.diff.tar.zstd",
                "application/vnd.docker.image.rootfs.diff.tar",
            ],
        ),
    ] {
        let (manifest, config) = changed(&change, media_type, &config(json!({}), 2));
        let layers = manifest["layers"].as_array().expect("layers");
        assert_eq!(layers.len(), 5);
        assert_eq!(
            config["rootfs"]["diff_ids"].as_array().map(Vec::len),
            Some(5)
        );
        assert_eq!(config["history"].as_array().map(Vec::len), Some(5));
        for (index, (layer, expected)) in change.layers.iter().zip(expected).enumerate() {
            let written = &layers[index + 2];
            assert_eq!(written["mediaType"], expected);
            assert_eq!(written["digest"], layer.digest.to_string());
            assert_eq!(written["size"], layer.size);
            assert_eq!(
                config["rootfs"]["diff_ids"][index + 2],
                layer.diff_id.to_string()
            );
        }
    }
}

#[test]
fn the_history_tells_layers_from_settings() {
    let change = Overlay {
        layers: vec![inline("one")],
        env: vec!["A=b".to_owned()],
        cmd: vec!["x".to_owned()],
        ..overlay()
    };
    let (_, told) = changed(&change, media_type::OCI_MANIFEST, &config(json!({}), 1));
    let created = "2020-02-02T02:02:02Z";
    assert_eq!(
        told["history"],
        json!([
            {"created_by": "base"},
            {"created": created, "created_by": format!("container request: layer {}", Digest::of(b"one"))},
            {"created": created, "created_by": "container request: CMD, ENV", "empty_layer": true},
        ])
    );
    let mut without = config(json!({}), 1);
    without
        .as_object_mut()
        .expect("an object")
        .remove("history");
    let (_, told) = changed(&change, media_type::OCI_MANIFEST, &without);
    assert!(told.get("history").is_none(), "it would begin with ours");
}

#[test]
fn fusion_is_added_for_the_images_architecture_only() {
    let web = |url: &str| {
        layer(
            url,
            Compression::Gzip,
            Place::Web {
                url: url.to_owned(),
            },
        )
    };
    let change = Overlay {
        layers: vec![
            web("https://f.example/v2/fusion-amd64.tar.gz"),
            web("https://f.example/v2/fusion-arm64.tar.gz?x=/fusion-amd64.tar.gz"),
            web("https://f.example/v2/other-arm64.tar.gz"),
        ],
        ..overlay()
    };
    for (architecture, kept) in [
        ("amd64", vec![0, 2]),
        ("x86_64", vec![0, 2]),
        ("aarch64", vec![1, 2]),
        ("ppc64le", vec![2]),
    ] {
        let mut base = config(json!({}), 0);
        base["architecture"] = json!(architecture);
        let (manifest, _) = changed(&change, media_type::OCI_MANIFEST, &base);
        let expected: Vec<String> = kept
            .iter()
            .map(|&index| change.layers[index].digest.to_string())
            .collect();
        let layers = manifest["layers"].as_array().expect("layers");
        let found: Vec<&str> = layers
            .iter()
            .filter_map(|layer| layer["digest"].as_str())
            .collect();
        assert_eq!(found, expected, "{architecture}");
    }
}

#[test]
fn what_an_overlay_does_not_concern_stays_byte_for_byte() {
    let manifest = b"{ \"layers\" : [], \"config\":{} }";
    let config = b"{\"architecture\": \"s390x\" }";
    let change = Overlay {
        layers: vec![layer(
            "l",
            Compression::Gzip,
            Place::Web {
                url: "https://f/fusion-amd64.tar.gz".to_owned(),
            },
        )],
        ..overlay()
    };
    let changed = change
        .change_image(None, media_type::OCI_MANIFEST, manifest, config)
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(
        (changed.manifest.as_slice(), changed.config.as_slice()),
        (&manifest[..], &config[..])
    );

    let one = Descriptor {
        digest: Digest::of(b"1"),
        media_type: String::new(),
        size: 1,
    };
    let index = b"{ \"manifests\" : [ ] }";
    let same = change
        .change_index(index, &[(of_amd64(one.clone()), one)])
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(same, index);
}

fn of_amd64(image: Descriptor) -> PlatformImage {
    PlatformImage {
        platform: Platform::default(),
        image,
    }
}

fn entry(name: &str, platform: &str) -> String {
    let digest = Digest::of(name.as_bytes());
    let media_type = media_type::OCI_MANIFEST;
    format!(
        r#"{{"mediaType":"{media_type}",  "digest":"{digest}","size":1,"data":"eA==","platform":{platform}}}"#
    )
}

#[test]
fn of_an_index_only_the_wanted_platforms_images_change() {
    let amd = entry("amd", r#"{"os":"linux","architecture":"amd64"}"#);
    let arm = entry(
        "arm",
        r#"{"os":"linux","architecture":"arm64","variant":"v8"}"#,
    );
    let attestation = entry("att", r#"{"os":"unknown","architecture":"unknown"}"#);
    let index = format!(
        r#"{{"schemaVersion":2, "manifests":[{amd},{arm},{attestation},{amd}],"annotations":{{"n":1.50}}}}"#
    );
    let target = overlay().target(media_type::OCI_INDEX, index.as_bytes());
    let Ok(Target::Index { images }) = target else {
        panic!("{target:?}")
    };
    assert_eq!(
        images
            .iter()
            .map(|found| found.image.digest)
            .collect::<Vec<_>>(),
        [Digest::of(b"amd")]
    );
    let before = images[0].clone();
    let after = Descriptor {
        digest: Digest::of(b"new"),
        media_type: String::new(),
        size: 99,
    };
    let changed = overlay()
        .change_index(index.as_bytes(), &[(before, after.clone())])
        .unwrap_or_else(|error| panic!("{error}"));
    let changed = String::from_utf8(changed).expect("text");
    let new = format!(
        r#"{{"mediaType":"{}","digest":"{}","size":99,"platform":{{"os":"linux","architecture":"amd64"}}}}"#,
        media_type::OCI_MANIFEST,
        after.digest
    );
    assert_eq!(
        changed,
        format!(
            r#"{{"schemaVersion":2,"manifests":[{new},{arm},{attestation},{new}],"annotations":{{"n":1.50}}}}"#
        )
    );
}

#[test]
fn an_index_is_narrowed_to_the_wanted_platforms_in_its_own_order() {
    let arm = entry("arm", r#"{"os":"linux","architecture":"arm64"}"#);
    let amd = entry("amd", r#"{"os":"linux","architecture":"amd64"}"#);
    let s390x = entry("s390x", r#"{"os":"linux","architecture":"s390x"}"#);
    let attestation = entry("att", r#"{"os":"unknown","architecture":"unknown"}"#);
    let index = |manifests: &[&str]| {
        let manifests = manifests.join(",");
        format!(r#"{{"schemaVersion":2,"manifests":[{manifests}],"annotations":{{"n":1.50}}}}"#)
    };
    let all = index(&[&arm, &s390x, &amd, &attestation]);
    for (wanted, expected) in [
        ("amd64,arm64", index(&[&arm, &amd])),
        ("arm64,amd64", index(&[&arm, &amd])),
        ("s390x", index(&[&s390x])),
    ] {
        let platforms = wanted.parse().expect("platforms");
        let narrow = narrow_index(&platforms, all.as_bytes());
        let narrow = narrow.unwrap_or_else(|error| panic!("{wanted}: {error}"));
        assert_eq!(String::from_utf8_lossy(&narrow), expected, "{wanted}");
    }
    // As it was written, if nothing has to go.
    let spaced = index(&[&arm, &amd]).replace(',', ", ");
    let platforms = "amd64,arm64".parse().expect("platforms");
    let narrow = narrow_index(&platforms, spaced.as_bytes());
    assert_eq!(narrow, Ok(spaced.into_bytes()));
}

#[test]
fn each_platform_that_is_wanted_must_be_there() {
    let images = [
        entry("arm", r#"{"os":"linux","architecture":"arm64"}"#),
        entry("amd", r#"{"os":"linux","architecture":"amd64"}"#),
    ];
    let index = format!(r#"{{"manifests":[{}]}}"#, images.join(","));
    let (arm, amd) = (Digest::of(b"arm"), Digest::of(b"amd"));
    for (wanted, expected) in [
        ("amd64,arm64", Ok(vec![arm, amd])),
        ("amd64", Ok(vec![amd])),
        (
            "amd64,s390x,arm/v7",
            Err("no image for linux/arm/v7, linux/s390x, only for linux/arm64, linux/amd64"),
        ),
    ] {
        let platforms = wanted.parse().expect("platforms");
        match Target::of(&platforms, media_type::OCI_INDEX, index.as_bytes()) {
            Ok(Target::Index { images }) => {
                let digests: Vec<Digest> = images.iter().map(|found| found.image.digest).collect();
                assert_eq!(Ok(digests), expected, "{wanted}");
            }
            Ok(other) => panic!("{wanted}: {other:?}"),
            Err(error) => {
                let expected = expected.expect_err(wanted);
                assert!(error.to_string().contains(expected), "{wanted}: {error}");
            }
        }
    }
}

#[test]
fn of_several_platforms_each_image_gets_the_layers_that_are_for_it() {
    let [amd64, arm64, arm_v6, arm_v7] =
        ["amd64", "arm64", "arm/v6", "arm/v7"].map(|text| text.parse().expect("a platform"));
    let only_for = |platform: &Platform, name| Layer {
        only_for: Some(platform.clone()),
        ..inline(name)
    };
    let change = Overlay {
        layers: vec![
            inline("all"),
            only_for(&amd64, "first of amd64"),
            only_for(&arm64, "first of arm64"),
            only_for(&amd64, "second of amd64"),
            only_for(&arm_v6, "first of arm/v6"),
            inline("all again"),
        ],
        platforms: "amd64,arm64,arm/v6,arm/v7".parse().expect("platforms"),
        ..overlay()
    };
    let manifest = manifest(OCI_CONFIG, 1);
    // Whatever the configuration says: by the index it was chosen.
    let config = config(json!({}), 1).to_string();
    let changed = |platform: Option<&Platform>| {
        let changed = change.change_image(
            platform,
            media_type::OCI_MANIFEST,
            &manifest,
            config.as_bytes(),
        );
        changed.unwrap_or_else(|error| panic!("{error}")).manifest
    };
    for (platform, expected) in [
        (
            Some(&amd64),
            &["all", "first of amd64", "second of amd64", "all again"][..],
        ),
        (Some(&arm64), &["all", "first of arm64", "all again"]),
        (Some(&arm_v6), &["all", "first of arm/v6", "all again"]),
        (Some(&arm_v7), &["all", "all again"]),
        (None, &["all", "all again"]),
    ] {
        let manifest: Value = serde_json::from_slice(&changed(platform)).expect("JSON");
        let layers = manifest["layers"].as_array().expect("layers");
        let put: Vec<&Value> = layers
            .iter()
            .skip(1)
            .map(|layer| &layer["digest"])
            .collect();
        let expected = expected.iter().map(|name| Digest::of(name.as_bytes()));
        let expected: Vec<String> = expected.map(|digest| digest.to_string()).collect();
        assert_eq!(json!(put), json!(expected), "{platform:?}");
    }

    // An image that is named for two platforms becomes two.
    let entries = [
        entry(
            "arm",
            r#"{"os":"linux","architecture":"arm","variant":"v6"}"#,
        ),
        entry("amd", r#"{"os":"linux","architecture":"amd64"}"#),
        entry(
            "arm",
            r#"{"os":"linux","architecture":"arm","variant":"v7"}"#,
        ),
        entry("arm64", r#"{"os":"linux","architecture":"arm64"}"#),
    ];
    let index = format!(r#"{{"manifests":[{}]}}"#, entries.join(","));
    let target = change.target(media_type::OCI_INDEX, index.as_bytes());
    let Ok(Target::Index { images }) = target else {
        panic!("{target:?}")
    };
    let platforms: Vec<&Platform> = images.iter().map(|found| &found.platform).collect();
    assert_eq!(platforms, [&arm_v6, &amd64, &arm_v7, &arm64]);
    let made: Vec<_> = images
        .into_iter()
        .map(|before| {
            let image = Descriptor {
                digest: Digest::of(before.platform.to_string().as_bytes()),
                ..before.image.clone()
            };
            (before, image)
        })
        .collect();
    let changed = change.change_index(index.as_bytes(), &made);
    let changed = changed.unwrap_or_else(|error| panic!("{error}"));
    let changed: Value = serde_json::from_slice(&changed).expect("JSON");
    for (entry, platform) in changed["manifests"]
        .as_array()
        .expect("entries")
        .iter()
        .zip([&arm_v6, &amd64, &arm_v7, &arm64])
    {
        let expected = Digest::of(platform.to_string().as_bytes()).to_string();
        assert_eq!(entry["digest"], expected, "{platform}");
    }
}

#[test]
fn layers_are_counted_for_each_image_and_together() {
    let names = ["amd64", "arm64", "arm/v6", "arm/v7", "s390x"];
    for (common, each, count, expected) in [
        (127, 0, 1, Ok(())),
        (128, 0, 1, Err(TooManyLayers::OnOneImage)),
        (0, 127, 4, Ok(())),
        (1, 127, 2, Err(TooManyLayers::OnOneImage)),
        (5, 102, 5, Err(TooManyLayers::InAll)),
        (2, 102, 5, Ok(())),
    ] {
        let platforms: Platforms = names[..count].join(",").parse().expect("platforms");
        let mut layers = vec![inline("common"); common];
        for platform in platforms.iter() {
            let own = Layer {
                only_for: Some(platform.clone()),
                ..inline("own")
            };
            layers.extend(vec![own; each]);
        }
        let overlay = Overlay {
            layers,
            platforms,
            ..overlay()
        };
        assert_eq!(
            overlay.ensure_room(),
            expected,
            "{common} and {each} for each of {count}"
        );
    }
}

#[test]
fn a_single_image_is_for_one_platform() {
    for (config, wanted, present) in [
        (r#"{"os":"linux","architecture":"amd64"}"#, "amd64", None),
        (
            r#"{"os":"linux","architecture":"arm","variant":"v6"}"#,
            "arm/v6",
            None,
        ),
        (
            r#"{"os":"linux","architecture":"arm","variant":"v6"}"#,
            "arm/v7",
            Some("linux/arm/v6"),
        ),
        (
            r#"{"os":"linux","architecture":"amd64"}"#,
            "amd64,arm64",
            Some("linux/amd64"),
        ),
        ("{}", "amd64", None),
        ("no JSON", "amd64", None),
        ("no JSON", "amd64,arm64", Some("does not name")),
    ] {
        let platforms = wanted.parse().expect("platforms");
        let told =
            ensure_platforms(&platforms, config.as_bytes()).map_err(|error| error.to_string());
        match (told, present) {
            (Ok(()), None) => {}
            (Err(told), Some(present)) => assert!(told.contains(present), "{config}: {told}"),
            (told, _) => panic!("{config} for {wanted}: {told:?}"),
        }
    }
}

#[test]
fn what_is_no_image_is_refused_with_its_kind() {
    let attestation = json!({
        "config": {"mediaType": OCI_CONFIG, "digest": Digest::of(b"c").to_string(), "size": 1},
        "layers": [{"mediaType": "application/vnd.in-toto+json", "digest": "x", "size": 1}],
    });
    for (media_type, body, expected) in [
        (
            media_type::OCI_MANIFEST,
            manifest("application/vnd.cncf.helm.config.v1+json", 1),
            "(application/vnd.cncf.helm.config.v1+json)",
        ),
        (
            media_type::OCI_MANIFEST,
            manifest("application/vnd.oci.empty.v1+json", 1),
            "vnd.oci.empty",
        ),
        (
            media_type::OCI_MANIFEST,
            attestation.to_string().into_bytes(),
            "in-toto",
        ),
        (
            media_type::OCI_MANIFEST,
            b"{\"layers\":[]}".to_vec(),
            "no configuration",
        ),
        (
            media_type::OCI_ARTIFACT,
            b"{\"blobs\":[]}".to_vec(),
            media_type::OCI_ARTIFACT,
        ),
        (
            media_type::OCI_MANIFEST,
            b"[]".to_vec(),
            "not JSON of the expected shape",
        ),
        (
            media_type::OCI_INDEX,
            format!(
                "{{\"manifests\":[{}]}}",
                entry("a", r#"{"os":"linux","architecture":"s390x"}"#)
            )
            .into_bytes(),
            "no image for linux/amd64, only for linux/s390x",
        ),
        (
            media_type::OCI_INDEX,
            format!(
                "{{\"manifests\":[{}]}}",
                (0..20)
                    .map(|number| entry(
                        &number.to_string(),
                        r#"{"os":"linux","architecture":"amd64"}"#
                    ))
                    .collect::<Vec<_>>()
                    .join(",")
            )
            .into_bytes(),
            "it has 20 images for linux/amd64",
        ),
        (
            media_type::DOCKER_LIST,
            b"{\"manifests\":[]}".to_vec(),
            "only for unnamed platforms",
        ),
    ] {
        let error = overlay()
            .target(media_type, &body)
            .expect_err(expected)
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
    for kind in [OCI_CONFIG, DOCKER_CONFIG] {
        assert!(
            overlay()
                .target(media_type::OCI_MANIFEST, &manifest(kind, 1))
                .is_ok(),
            "{kind}"
        );
    }
}

#[test]
fn a_configuration_that_does_not_fit_its_manifest_is_refused() {
    let change = Overlay {
        cmd: vec!["x".to_owned()],
        ..overlay()
    };
    for (config, expected) in [
        (config(json!({}), 1).to_string(), "has 2 layers"),
        (
            json!({"rootfs": {"diff_ids": ["a", "b"]}, "config": 1}).to_string(),
            "its configuration is not",
        ),
        (
            json!({"rootfs": {"diff_ids": ["a", "b"]}, "config": {"Env": "x"}}).to_string(),
            "its configuration is not",
        ),
        ("[]".to_owned(), "its configuration is not"),
    ] {
        let error = change
            .change_image(
                None,
                media_type::OCI_MANIFEST,
                &manifest(OCI_CONFIG, 2),
                config.as_bytes(),
            )
            .expect_err(expected)
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn the_layers_of_an_included_image_are_taken_as_they_are() {
    let place = Place::Repository {
        registry: "quay.io".parse().expect("a registry"),
        repository: "a/b".parse().expect("a repository"),
    };
    let types = [
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.oci.image.layer.v1.tar",
    ];
    let of = |types: &[&str], diff_ids: &Value| {
        let layers: Vec<Value> = types
            .iter()
            .map(|kind| json!({"mediaType": kind, "digest": Digest::of(kind.as_bytes()).to_string(), "size": 5}))
            .collect();
        let manifest = json!({"layers": layers}).to_string();
        let config = json!({"rootfs": {"diff_ids": diff_ids}}).to_string();
        layers_of(manifest.as_bytes(), config.as_bytes(), &place)
    };
    let diff_ids: Vec<String> = ["a", "b", "c"]
        .map(|name| Digest::of(name.as_bytes()).to_string())
        .to_vec();
    let layers = of(&types, &json!(diff_ids)).unwrap_or_else(|error| panic!("{error}"));
    let compressions: Vec<Compression> = layers.iter().map(|layer| layer.compression).collect();
    assert_eq!(
        compressions,
        [Compression::Zstd, Compression::Gzip, Compression::None]
    );
    for ((layer, kind), diff_id) in layers.iter().zip(types).zip(&diff_ids) {
        assert_eq!(layer.digest, Digest::of(kind.as_bytes()));
        assert_eq!((layer.size, &layer.place), (5, &place));
        assert_eq!(layer.diff_id.to_string(), *diff_id);
    }
    let foreign = ["application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"];
    for (outcome, expected) in [
        (
            of(&foreign, &json!([diff_ids[0]])),
            "which cannot be put on",
        ),
        (of(&types, &json!([diff_ids[0]])), "has 3 layers"),
        (
            of(&types[..1], &json!(["x"])),
            "not JSON of the expected shape",
        ),
        (of(&[types[0]; 128], &json!([])), "has 128 layers; 127 is"),
    ] {
        let error = outcome.expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn overlays_that_differ_have_other_digests() {
    let of_both = |one: &str, only_for: Option<&str>, other: &str, other_only_for: Option<&str>| {
        let layer = |name, only_for: Option<&str>| Layer {
            only_for: only_for.map(|text| text.parse().expect("a platform")),
            ..inline(name)
        };
        Overlay {
            layers: vec![layer(one, only_for), layer(other, other_only_for)],
            platforms: "amd64,arm64".parse().expect("platforms"),
            ..overlay()
        }
    };
    let all = [
        overlay(),
        Overlay {
            cmd: vec!["x".to_owned()],
            ..overlay()
        },
        Overlay {
            entrypoint: vec!["x".to_owned()],
            ..overlay()
        },
        Overlay {
            env: vec!["x".to_owned()],
            ..overlay()
        },
        Overlay {
            working_dir: Some("x".to_owned()),
            ..overlay()
        },
        Overlay {
            layers: vec![inline("x")],
            ..overlay()
        },
        Overlay {
            layers: vec![layer(
                "x",
                Compression::Gzip,
                Place::Web {
                    url: "x".to_owned(),
                },
            )],
            ..overlay()
        },
        Overlay {
            platforms: "arm64".parse().expect("a platform"),
            ..overlay()
        },
        Overlay {
            platforms: "amd64,arm64".parse().expect("platforms"),
            ..overlay()
        },
        of_both("x", None, "y", None),
        of_both("x", Some("amd64"), "y", None),
        of_both("x", None, "y", Some("amd64")),
        of_both("x", Some("amd64"), "y", Some("amd64")),
        of_both("x", Some("amd64"), "y", Some("arm64")),
        of_both("x", Some("arm64"), "y", Some("amd64")),
        of_both("y", Some("arm64"), "x", Some("amd64")),
    ];
    for (index, one) in all.iter().enumerate() {
        for (other_index, other) in all.iter().enumerate() {
            assert_eq!(
                one.digest() == other.digest(),
                index == other_index,
                "{one:?} {other:?}"
            );
        }
    }
}

/// Names of frozen images and what is kept of requests hang on it.
#[test]
fn an_overlays_digest_is_the_same_for_ever() {
    let places = [
        Place::Inline,
        Place::Web {
            url: "https://f.example/x".to_owned(),
        },
        Place::Repository {
            registry: "quay.io".parse().expect("a registry"),
            repository: "a/b".parse().expect("a repository"),
        },
    ];
    let compressions = [Compression::Gzip, Compression::None, Compression::Zstd];
    let layers = places.into_iter().zip(compressions);
    let full = Overlay {
        entrypoint: vec!["/a".to_owned()],
        cmd: vec!["b".to_owned(), "c d".to_owned()],
        working_dir: Some("/w".to_owned()),
        env: vec!["A=b".to_owned()],
        layers: layers
            .map(|(place, compression)| layer("x", compression, place))
            .collect(),
        platforms: Platforms::default(),
    };
    let several = Overlay {
        platforms: "amd64,arm64".parse().expect("platforms"),
        ..full.clone()
    };
    for (overlay, expected) in [
        (
            overlay(),
            "c47ae5241124c0a0e305f5ffdd82abe43dfb7cdc60775bd470e1372112651d94",
        ),
        (
            full,
            "fd335e458d8eb07d804ed7ca3c9bfcdf1793e7c1370833bf40b3bc336735f59f",
        ),
        (
            several,
            "34d2c35d67aad2ada074720b6c39f43cd9149cce21a5ef0d30f45c427fc41767",
        ),
    ] {
        assert_eq!(overlay.digest().hex(), expected, "{overlay:?}");
    }
}
