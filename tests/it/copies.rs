//! What a copy asks of the two registries, in which order, and what it leaves behind when it comes to nothing. From a
//! registry that does what it is told, into a real one.

use std::{sync::Arc, thread};

use serde_json::{Value, json};
use tidegate::mirror::{CopyError, Plan, Progress, State};

use crate::support::{
    content::Content,
    copying::{Copier, plan},
    docker_registry::{DockerRegistry, Login},
    http,
    liar::{
        Behaviour, Gate, Liar, LiarImage, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, blob_path,
        manifest_path,
    },
    programs::{require, wait_until},
    storage::Storage,
};

const REPOSITORY: &str = "acme/app";

fn layer(seed: u64, size: u64) -> Content {
    Content::Generated { seed, size }
}

/// An index of two images, one of which it names in an index of its own.
struct Source {
    liar: Liar,
    images: [LiarImage; 2],
    inner: String,
    index: String,
}

impl Source {
    fn new() -> Self {
        let liar = Liar::open();
        let shared = layer(1, 5000);
        let images = [
            liar.image(REPOSITORY, "amd64", &[shared.clone(), layer(2, 300_000)]),
            liar.image(REPOSITORY, "arm64", &[shared, layer(3, 9_000_000)]),
        ];
        let entry = |image: &LiarImage, architecture: &str| {
            json!({
                "mediaType": OCI_MANIFEST, "digest": image.manifest, "size": image.manifest_bytes.len(),
                "platform": {"os": "linux", "architecture": architecture},
            })
        };
        let index = |manifests: &[Value]| {
            let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
            index.to_string().into_bytes()
        };
        let [amd64, arm64] = &images;
        let inner_bytes = index(&[entry(arm64, "arm64")]);
        let inner = liar.manifest(REPOSITORY, "inner", OCI_INDEX, &inner_bytes);
        let named = json!({"mediaType": OCI_INDEX, "digest": inner, "size": inner_bytes.len()});
        let bytes = index(&[entry(amd64, "amd64"), entry(arm64, "arm64"), named]);
        let index = liar.manifest(REPOSITORY, "v1", OCI_INDEX, &bytes);
        Self {
            liar,
            images,
            inner,
            index,
        }
    }

    fn reference(&self) -> String {
        self.liar.reference(REPOSITORY, "v1")
    }

    fn plan_to(&self, target: &DockerRegistry, repository: &str) -> Plan {
        plan(
            &self.reference(),
            &format!("{}/{repository}:v1", target.name()),
        )
    }
}

/// What the target was asked, without queries: `PUT /v2/kept/manifests/v1`.
fn asked(target: &DockerRegistry) -> Vec<String> {
    target.wait_for_its_log();
    let log = target.log();
    let lines = log.lines().filter_map(|line| {
        let (_, rest) = line.split_once("] \"")?;
        let request = rest.split_once(" HTTP/1.1\"")?.0;
        let request = request.split('?').next().unwrap_or_default();
        request.contains("/v2/").then(|| request.to_owned())
    });
    lines.collect()
}

/// An upload was taken back. This registry refuses that for one that broke within a request, and clears it up in time.
fn has_cancelled(target: &DockerRegistry) -> bool {
    let requests = asked(target);
    let is_cancel = |it: &String| it.starts_with("DELETE /v2/kept/blobs/uploads/");
    requests.iter().any(is_cancel)
}

fn manifest_of(target: &DockerRegistry, repository: &str, version: &str) -> Option<String> {
    let path = format!("/v2/{repository}/manifests/{version}");
    let accept = [("Accept", OCI_INDEX), ("Accept", OCI_MANIFEST)];
    let answer = http::request(target.address, "GET", &path, &accept, b"");
    (answer.status() == 200).then(|| answer.digest())
}

#[test]
fn manifests_follow_what_they_name_and_the_tag_comes_last() {
    require!("docker-registry");
    let source = Source::new();
    let target = DockerRegistry::start(&Login::Open);
    let copier = Copier::between(&[&source.liar.name(), &target.name()]);
    copier.on_each_driver(async |driver, mirror| {
        let progress = Arc::new(Progress::default());
        let plan = source.plan_to(&target, driver);
        let before = asked(&target).len();
        let copied = mirror.copy(&plan, &progress).await;
        let copied = copied.unwrap_or_else(|error| panic!("{driver}: {error}"));
        assert_eq!(copied.digest.to_string(), source.index);
        // Two configurations, and the layer that both have once.
        assert_eq!(
            (copied.manifests, copied.copied, copied.bytes / 1_000),
            (4, 5, 9_305)
        );
        assert_eq!(
            mirror.standing(&plan.destination).await.ok(),
            Some(Some(copied.digest))
        );
        assert_eq!(
            manifest_of(&target, driver, "v1"),
            Some(source.index.clone())
        );

        let requests = asked(&target).split_off(before);
        let place = |request: String| {
            let place = requests.iter().rposition(|it| *it == request);
            place.unwrap_or_else(|| panic!("{request} is not among {requests:#?}"))
        };
        let put = |version: &str| place(format!("PUT /v2/{driver}/manifests/{version}"));
        let [amd64, arm64] = &source.images;
        let blobs = requests.iter().rposition(|it| it.contains("/blobs/"));
        assert!(
            blobs < Some(put(&amd64.manifest).min(put(&arm64.manifest))),
            "{requests:#?}"
        );
        assert!(put(&arm64.manifest) < put(&source.inner), "{requests:#?}");
        assert!(put(&source.inner) < put("v1"), "{requests:#?}");
        let snapshot = progress.snapshot();
        assert!(
            snapshot
                .items
                .iter()
                .all(|item| item.state == State::Copied),
            "{snapshot:?}"
        );
        assert_eq!(snapshot.totals.bytes, snapshot.totals.bytes_done);
    });
    assert_eq!(target.open_uploads("epoll"), 0);
}

#[test]
fn what_is_there_is_not_sent_again() {
    require!("docker-registry");
    let source = Source::new();
    let target = DockerRegistry::start(&Login::Open);
    let copier = Copier::between(&[&source.liar.name(), &target.name()]);
    copier.on_a_core(async |mirror| {
        let progress = Arc::new(Progress::default());
        let mut plan = source.plan_to(&target, "kept");
        plan.referrers = false;
        let first = mirror.copy(&plan, &progress).await.expect("a copy");
        let before = asked(&target).len();
        let again = mirror.copy(&plan, &progress).await.expect("a copy");
        assert_eq!(
            (again.digest, again.copied, again.bytes),
            (first.digest, 0, 0)
        );
        assert_eq!(
            asked(&target).split_off(before),
            ["HEAD /v2/kept/manifests/v1"]
        );

        // Under another name each manifest is looked for, no blob, and the tag alone is pushed.
        let before = asked(&target).len();
        let mut renamed = source.plan_to(&target, "kept");
        renamed.destination.version = "v2".parse().expect("a tag");
        renamed.referrers = false;
        mirror.copy(&renamed, &progress).await.expect("a copy");
        let requests = asked(&target).split_off(before);
        assert!(
            !requests.iter().any(|it| it.contains("/blobs/")),
            "{requests:#?}"
        );
        let pushed: Vec<_> = requests.iter().filter(|it| it.starts_with("PUT")).collect();
        assert_eq!(pushed, ["PUT /v2/kept/manifests/v2"]);

        // Blobs that were pushed to one repository are mounted into another, whatever the source.
        source.liar.forget_requests();
        let elsewhere = source.plan_to(&target, "elsewhere");
        let mounted = mirror.copy(&elsewhere, &progress).await.expect("a copy");
        assert_eq!((mounted.mounted, mounted.copied, mounted.bytes), (5, 0, 0));
        let blobs = source.liar.requests();
        assert!(
            !blobs.iter().any(|it| it.path().contains("/blobs/")),
            "{blobs:?}"
        );
    });
}

#[test]
fn one_platform_is_copied_alone() {
    require!("docker-registry");
    let source = Source::new();
    let target = DockerRegistry::start(&Login::Open);
    let copier = Copier::between(&[&source.liar.name(), &target.name()]);
    let [amd64, arm64] = &source.images;
    copier.on_a_core(async |mirror| {
        let progress = Arc::new(Progress::default());
        let mut plan = source.plan_to(&target, "one");
        plan.platforms = "linux/arm64".parse().ok();
        let copied = mirror.copy(&plan, &progress).await.expect("a copy");
        assert_eq!(copied.digest.to_string(), arm64.manifest);
        assert_eq!(
            manifest_of(&target, "one", "v1"),
            Some(arm64.manifest.clone())
        );
        assert_eq!(manifest_of(&target, "one", &amd64.manifest), None);
        assert_eq!(manifest_of(&target, "one", &source.index), None);

        // Of an index, and of an image that says it in its configuration.
        for (version, present) in [("v1", "linux/amd64, linux/arm64"), ("amd64", "linux/amd64")] {
            plan.version = version.parse().expect("a tag");
            plan.platforms = "linux/s390x".parse().ok();
            let error = mirror
                .copy(&plan, &progress)
                .await
                .expect_err("it has none");
            let expected = format!("it has no image for linux/s390x, only for {present}");
            assert_eq!(error.to_string(), expected);
            assert!(!error.is_transient());
        }
    });
}

#[test]
fn a_cancelled_copy_ends_and_leaves_no_tag() {
    require!("docker-registry");
    let source = Source::new();
    let target = DockerRegistry::start(&Login::Open);
    let copier = Copier::between(&[&source.liar.name(), &target.name()]);
    let large = source.images[1].layers.last().expect("a layer");
    let path = blob_path(REPOSITORY, large);
    let gate = Gate::default();
    let gated = Behaviour::Gated(4_000_000, gate.clone());
    source.liar.misbehave(&path, gated);
    copier.on_a_core(async |mirror| {
        let progress = Arc::new(Progress::default());
        let watched = Arc::clone(&progress);
        let watcher = thread::spawn(move || {
            wait_until("some of the layer to be sent", || {
                let items = watched.snapshot().items;
                items
                    .iter()
                    .any(|item| item.size == 9_000_000 && item.done > 1_000_000)
            });
            watched.cancel();
        });
        let plan = source.plan_to(&target, "kept");
        let error = mirror
            .copy(&plan, &progress)
            .await
            .expect_err("it was cancelled");
        assert!(matches!(error, CopyError::Cancelled), "{error}");
        assert!(!error.is_transient());
        watcher.join().expect("it has seen the layer");
        assert_eq!(mirror.standing(&plan.destination).await.ok(), Some(None));
        assert!(has_cancelled(&target), "{:#?}", asked(&target));

        // The next attempt finds what came by then.
        gate.open();
        let progress = Arc::new(Progress::default());
        let copied = mirror.copy(&plan, &progress).await.expect("a copy");
        assert!(copied.present > 0, "{copied:?}");
        assert_eq!(
            manifest_of(&target, "kept", "v1"),
            Some(source.index.clone())
        );
    });
}

#[test]
fn wrong_bytes_are_not_passed_on() {
    require!("docker-registry");
    let source = Source::new();
    let target = DockerRegistry::start(&Login::Open);
    let copier = Copier::between(&[&source.liar.name(), &target.name()]);
    let large = source.images[1].layers.last().expect("a layer");
    source
        .liar
        .misbehave(&blob_path(REPOSITORY, large), Behaviour::WrongBytes);
    copier.on_a_core(async |mirror| {
        let progress = Arc::new(Progress::default());
        let plan = source.plan_to(&target, "kept");
        let error = mirror
            .copy(&plan, &progress)
            .await
            .expect_err("a wrong layer");
        assert!(error.to_string().contains(large.as_str()), "{error}");
        assert_eq!(mirror.standing(&plan.destination).await.ok(), Some(None));
        let path = format!("/v2/kept/blobs/{large}");
        assert_eq!(http::get(target.address, &path).status(), 404);
        assert!(has_cancelled(&target), "{:#?}", asked(&target));
        let items = progress.snapshot().items;
        let failed: Vec<_> = items
            .iter()
            .filter(|it| it.state == State::Failed)
            .collect();
        assert_eq!(failed.len(), 1, "{items:?}");
    });
}

#[test]
fn redirects_are_followed_and_their_blobs_cached() {
    require!("docker-registry", "nginx");
    let source = Source::new();
    let target = DockerRegistry::start(&Login::Open);
    let storage = Storage::start();
    let content = layer(3, 9_000_000);
    let url = storage.put("layer", &content);
    let path = blob_path(REPOSITORY, &content.digest());
    source.liar.misbehave(&path, Behaviour::redirect(307, &url));
    let names = [
        source.liar.name(),
        target.name(),
        storage.address.to_string(),
    ];
    let copier = Copier::between(&names.each_ref().map(String::as_str));
    copier.on_a_core(async |mirror| {
        let progress = Arc::new(Progress::default());
        let plan = source.plan_to(&target, "kept");
        mirror.copy(&plan, &progress).await.expect("a copy");
        let stored = http::pull(
            target.address,
            &format!("/v2/kept/blobs/{}", content.digest()),
        );
        assert_eq!(
            (stored.size, stored.digest),
            (content.size(), content.digest())
        );
    });
    assert_eq!(storage.visits(1).len(), 1);
}

#[test]
fn blobs_that_the_cache_has_no_room_for_are_copied_all_the_same() {
    require!("docker-registry");
    let source = Source::new();
    let target = DockerRegistry::start(&Login::Open);
    let mut copier = Copier::between(&[&source.liar.name(), &target.name()]);
    copier.cache.max_size = "1MiB".parse().expect("a size");
    copier.on_a_core(async |mirror| {
        let progress = Arc::new(Progress::default());
        let plan = source.plan_to(&target, "kept");
        let copied = mirror.copy(&plan, &progress).await.expect("a copy");
        assert_eq!(copied.copied, 5);
        assert_eq!(
            manifest_of(&target, "kept", "v1"),
            Some(source.index.clone())
        );
    });
}

#[test]
fn what_refers_to_an_image_comes_along_and_is_listed() {
    require!("docker-registry");
    let source = Source::new();
    let liar = &source.liar;
    let target = DockerRegistry::start(&Login::Open);
    let [amd64, _] = &source.images;
    let about = |subject: &str, name: &str| {
        let content = Content::of(name);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/vnd.example",
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "size": 2, "data": "e30=",
                "digest": Content::of("{}").digest()},
            "layers": [{"mediaType": OCI_LAYER, "digest": content.digest(), "size": content.size()}],
            "subject": {"mediaType": OCI_INDEX, "digest": subject, "size": 1},
        });
        liar.blob(REPOSITORY, content);
        let bytes = manifest.to_string().into_bytes();
        let digest = liar.manifest(REPOSITORY, name, OCI_MANIFEST, &bytes);
        (
            digest.clone(),
            json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": bytes.len()}),
        )
    };
    let (signature, listed_signature) = about(&source.index, "signature");
    let (bill, listed_bill) = about(&amd64.manifest, "bill");
    let (countersignature, listed_countersignature) = about(&signature, "countersignature");
    let list = |subject: &str, entries: &[Value]| {
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
        let path = format!("/v2/{REPOSITORY}/referrers/{subject}");
        liar.page(&path, OCI_INDEX, &index.to_string());
    };
    // One that is listed and gone holds up nobody.
    let gone =
        json!({"mediaType": OCI_MANIFEST, "digest": Content::of("gone").digest(), "size": 4});
    list(&source.index, &[listed_signature, gone]);
    list(&amd64.manifest, &[listed_bill]);
    list(&signature, &[listed_countersignature]);
    for digest in [
        &source.images[1].manifest,
        &source.inner,
        &bill,
        &countersignature,
    ] {
        list(digest, &[]);
    }
    let tag = source.index.replace(':', "-");
    let old = liar.image(REPOSITORY, &format!("{tag}.sig"), &[Content::of("old")]);

    let copier = Copier::between(&[&liar.name(), &target.name()]);
    copier.on_a_core(async |mirror| {
        let progress = Arc::new(Progress::default());
        let plan = source.plan_to(&target, "kept");
        let copied = mirror.copy(&plan, &progress).await.expect("a copy");
        assert_eq!(copied.manifests, 8);
        for digest in [&signature, &bill, &countersignature, &old.manifest] {
            assert_eq!(manifest_of(&target, "kept", digest).as_ref(), Some(digest));
        }
        let version = format!("{tag}.sig");
        assert_eq!(
            manifest_of(&target, "kept", &version),
            Some(old.manifest.clone())
        );
        // This registry lists nothing by itself.
        for (subject, referrer) in [
            (&source.index, &signature),
            (&amd64.manifest, &bill),
            (&signature, &countersignature),
        ] {
            let path = manifest_path("kept", &subject.replace(':', "-"));
            let accept = [("Accept", OCI_INDEX)];
            let index = http::request(target.address, "GET", &path, &accept, b"").json();
            assert_eq!(index["manifests"][0]["digest"], **referrer, "{index}");
            assert_eq!(
                index["manifests"][0]["artifactType"],
                "application/vnd.example"
            );
            assert_eq!(
                index["manifests"].as_array().map(Vec::len),
                Some(1),
                "{index}"
            );
        }
        let requests = asked(&target);
        let last = requests
            .iter()
            .rposition(|it| *it == "PUT /v2/kept/manifests/v1");
        let signed = requests
            .iter()
            .rposition(|it| *it == format!("PUT /v2/kept/manifests/{signature}"));
        assert!(signed.is_some() && signed < last, "{requests:#?}");

        let before = asked(&target).len();
        let again = mirror.copy(&plan, &progress).await.expect("a copy");
        assert_eq!(again.copied, 0);
        let requests = asked(&target).split_off(before);
        let is_reading = |it: &String| it.starts_with("HEAD ") || it.starts_with("GET ");
        assert!(requests.iter().all(is_reading), "{requests:#?}");

        // Without them, nothing of them.
        let mut plan = source.plan_to(&target, "bare");
        plan.referrers = false;
        let copied = mirror.copy(&plan, &progress).await.expect("a copy");
        assert_eq!(copied.manifests, 4);
        assert_eq!(manifest_of(&target, "bare", &signature), None);
    });

    // That they cannot be listed now is no reason to leave them behind.
    let path = format!("/v2/{REPOSITORY}/referrers/{}", source.index);
    liar.misbehave(&path, Behaviour::status(500));
    let copier = Copier::between(&[&liar.name(), &target.name()]);
    copier.on_a_core(async |mirror| {
        let progress = Arc::new(Progress::default());
        let plan = source.plan_to(&target, "troubled");
        let error = mirror.copy(&plan, &progress).await.expect_err("no list");
        assert!(matches!(error, CopyError::Referrers(_)), "{error}");
        assert!(error.is_transient(), "{error}");
        assert_eq!(mirror.standing(&plan.destination).await.ok(), Some(None));
    });
}
