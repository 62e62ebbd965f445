//! What people have in registries and want to have in others, pushed byte for byte: images for several platforms, of
//! many layers or large ones, with their signatures and bills of materials.

use std::{io::Read as _, process::Command};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{
    content::{Content, digest},
    docker_registry::{DockerRegistry, PASSWORD, USER},
    http::Connection,
    layer::Layer,
    liar::{OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST},
    programs::{command, output},
};

pub const OCI_GZIP_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
pub const SIGNATURE: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
pub const BILL_OF_MATERIALS: &str = "application/spdx+json";

/// A repository of a registry with `htpasswd`, or without any login, and whoever pushes there.
pub struct Shelf<'a> {
    pub registry: &'a DockerRegistry,
    pub repository: &'a str,
}

/// An index for amd64 and arm64, and what was attached to it.
pub struct Signed {
    pub index: String,
    pub platforms: [String; 2],
    /// Of the index; has the index for its `subject`.
    pub signature: String,
    /// Of the image for amd64.
    pub bill: String,
    /// Every tag that was set for it.
    pub tags: Vec<String>,
}

impl<'a> Shelf<'a> {
    pub fn new(registry: &'a DockerRegistry, repository: &'a str) -> Self {
        Self {
            registry,
            repository,
        }
    }

    /// `127.0.0.1:5000/acme/app:v1`
    pub fn reference(&self, version: &str) -> String {
        let separator = if version.contains(':') { '@' } else { ':' };
        let registry = self.registry.name();
        format!("{registry}/{}{separator}{version}", self.repository)
    }

    /// Returns its descriptor.
    pub fn blob(&self, media_type: &str, content: &Content) -> Value {
        let digest = content.digest();
        let start = format!("/v2/{}/blobs/uploads/", self.repository);
        let mut connection = Connection::open(self.registry.address);
        let login = login();
        let headers = [("Authorization", login.as_str())];
        connection.request("POST", &start, &headers, b"");
        let opened = connection.response("POST");
        assert_eq!(opened.status(), 202, "{}", opened.text());
        let location = opened.header("location").expect("where to send it to");
        let (_, path) = location.split_once("/v2/").expect("a path of the registry");
        let separator = if path.contains('?') { '&' } else { '?' };
        let size = content.size();
        let mut connection = Connection::open(self.registry.address);
        connection.send(format!(
            "PUT /v2/{path}{separator}digest={digest} HTTP/1.1\r\nHost: {}\r\nAuthorization: {login}\r\n\
             Content-Type: application/octet-stream\r\nContent-Length: {size}\r\n\r\n",
            self.registry.address
        ));
        let mut reader = content.reader();
        let mut piece = vec![0; 1 << 20];
        loop {
            let count = reader
                .read(&mut piece)
                .expect("content in memory is readable");
            if count == 0 {
                break;
            }
            connection.send(&piece[..count]);
        }
        let done = connection.response("PUT");
        assert_eq!(done.status(), 201, "{}", done.text());
        json!({"mediaType": media_type, "digest": digest, "size": size})
    }

    /// Under a tag or its digest; returns its descriptor.
    pub fn manifest(&self, tag: Option<&str>, value: &Value) -> Value {
        let bytes = value.to_string();
        let digest = digest(bytes.as_bytes());
        let media_type = value["mediaType"].as_str().expect("a media type");
        let version = tag.unwrap_or(&digest);
        let path = format!("/v2/{}/manifests/{version}", self.repository);
        let login = login();
        let headers = [
            ("Authorization", login.as_str()),
            ("Content-Type", media_type),
        ];
        let mut connection = Connection::open(self.registry.address);
        connection.request("PUT", &path, &headers, bytes.as_bytes());
        let done = connection.response("PUT");
        assert_eq!(done.status(), 201, "{}", done.text());
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// One image of these layers; returns its descriptor with its platform.
    pub fn image(&self, tag: Option<&str>, architecture: &str, layers: &[Value]) -> Value {
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {"Cmd": ["/bin/true"]},
            "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| &layer["digest"]).collect::<Vec<_>>()},
        });
        let config = self.blob(OCI_CONFIG, &Content::of(config.to_string()));
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers,
        });
        let mut descriptor = self.manifest(tag, &manifest);
        descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
        descriptor
    }

    /// Layers that nobody can unpack, all different.
    pub fn layers(&self, seed: u64, sizes: &[u64]) -> Vec<Value> {
        (seed..)
            .zip(sizes)
            .map(|(seed, &size)| self.blob(OCI_LAYER, &Content::Generated { seed, size }))
            .collect()
    }

    /// One image of layers that nobody can unpack; returns its digest.
    pub fn image_of(&self, tag: &str, seed: u64, sizes: &[u64]) -> String {
        let layers = self.layers(seed, sizes);
        text(&self.image(Some(tag), "amd64", &layers)["digest"])
    }

    pub fn index(&self, tag: &str, images: &[Value]) -> Value {
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": images});
        self.manifest(Some(tag), &index)
    }

    /// An index for two platforms that share a layer; a signature and a bill of materials that name what they are of by
    /// `subject`, listed as clients do it where the registry does not (OCI distribution 1.1, referrers tag schema); and a
    /// signature under cosign's own tag.
    pub fn signed(&self, tag: &str) -> Signed {
        let layer = |files: &[(&str, &str)]| {
            let layer = Layer::of(files);
            self.blob(OCI_GZIP_LAYER, &Content::of(&layer.bytes))
        };
        let shared = layer(&[("shared", tag)]);
        let images = ["amd64", "arm64"].map(|architecture| {
            let own = layer(&[("own", &format!("{tag} for {architecture}"))]);
            self.image(None, architecture, &[shared.clone(), own])
        });
        let index = self.index(tag, &images);
        let signature = self.attach(&index, SIGNATURE, "a signature");
        let bill = self.attach(&images[0], BILL_OF_MATERIALS, "a bill of materials");
        let (index, platforms) = (
            text(&index["digest"]),
            images.map(|image| text(&image["digest"])),
        );
        let cosign = format!("{}.sig", referrers_tag(&index));
        let payload = self.blob(OCI_LAYER, &Content::of(format!("signed: {index}")));
        let config = self.blob(OCI_CONFIG, &Content::of("{}"));
        let simple = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [payload],
        });
        self.manifest(Some(&cosign), &simple);
        let tags = vec![
            tag.to_owned(),
            referrers_tag(&index),
            referrers_tag(&platforms[0]),
            cosign,
        ];
        Signed {
            index,
            platforms,
            signature,
            bill,
            tags,
        }
    }

    /// Alone among the subject's referrers; returns its digest.
    fn attach(&self, subject: &Value, artifact_type: &str, payload: &str) -> String {
        let config = self.blob(EMPTY, &Content::of("{}"));
        let payload = self.blob(artifact_type, &Content::of(payload));
        let subject = json!({
            "mediaType": subject["mediaType"], "digest": subject["digest"], "size": subject["size"],
        });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": artifact_type,
            "config": config, "layers": [payload], "subject": subject,
        });
        let mut descriptor = self.manifest(None, &manifest);
        let digest = text(&descriptor["digest"]);
        descriptor["artifactType"] = json!(artifact_type);
        self.index(&referrers_tag(&text(&subject["digest"])), &[descriptor]);
        digest
    }
}

/// Where a registry without the referrers API has them.
pub fn referrers_tag(digest: &str) -> String {
    digest.replace(':', "-")
}

/// `skopeo inspect --raw`: the manifest as this login gets it; `None` if it does not.
pub fn raw_manifest(reference: &str, user: &str, password: &str) -> Option<Vec<u8>> {
    let shown = output(
        command("skopeo")
            .args(["inspect", "--raw", "--tls-verify=false", "--creds"])
            .arg(format!("{user}:{password}"))
            .arg(format!("docker://{reference}")),
    );
    shown.status.success().then_some(shown.stdout)
}

/// Fetches an image with all its platforms, which proves every digest, and throws it away.
pub fn fetch_all(reference: &str, user: &str, password: &str) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    super::programs::run(
        Command::new("skopeo")
            .args(["--insecure-policy", "--tmpdir"])
            .arg(folder.path())
            .args(["copy", "--all", "--src-tls-verify=false", "--src-creds"])
            .arg(format!("{user}:{password}"))
            .arg(format!("docker://{reference}"))
            .arg(format!("dir:{}", folder.path().display())),
    );
}

fn login() -> String {
    format!("Basic {}", STANDARD.encode(format!("{USER}:{PASSWORD}")))
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}
