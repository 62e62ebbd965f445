//! Real images as an OCI layout: layers are tar archives that runtimes can unpack, their content random.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    content::{Content, Hash, digest},
    liar::{OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST},
};

pub struct Image {
    pub folder: PathBuf,
    /// Of what the tag names: a manifest, or an index.
    pub digest: String,
    /// One for each platform.
    pub manifests: Vec<Manifest>,
}

#[derive(Clone)]
pub struct Manifest {
    pub digest: String,
    pub config: String,
    pub layers: Vec<String>,
}

impl Image {
    /// With layers of about these sizes.
    pub fn build(folder: &Path, layer_sizes: &[u64]) -> Self {
        Self::build_for(folder, &["amd64"], layer_sizes)
    }

    /// More than one architecture makes it an index.
    pub fn build_for(folder: &Path, architectures: &[&str], layer_sizes: &[u64]) -> Self {
        let layout = Layout::new(folder);
        let layers = |number: u64| {
            let sizes = (number * 1000..).zip(layer_sizes);
            sizes
                .map(|(layer, size)| layout.layer(layer, *size))
                .collect()
        };
        let images = (0..).zip(architectures);
        let images = images.map(|(number, &architecture)| (architecture, layers(number)));
        Self::assemble(&layout, images.collect())
    }

    /// The same of these archives.
    pub fn build_of(folder: &Path, images: &[(&str, Vec<Vec<u8>>)]) -> Self {
        let layout = Layout::new(folder);
        let layers = |archives: &Vec<Vec<u8>>| {
            let archives = archives.iter();
            archives
                .map(|archive| layout.blob(OCI_LAYER, archive))
                .collect()
        };
        let images = images.iter();
        let images = images.map(|(architecture, archives)| (*architecture, layers(archives)));
        Self::assemble(&layout, images.collect())
    }

    /// Of descriptors of layers.
    fn assemble(layout: &Layout<'_>, images: Vec<(&str, Vec<Value>)>) -> Self {
        let mut manifests = Vec::new();
        let mut descriptors = Vec::new();
        for (architecture, layers) in images {
            let diff_ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
            let config = layout.json(
                OCI_CONFIG,
                &json!({
                    "architecture": architecture, "os": "linux", "config": {"Cmd": ["/bin/true"]},
                    "rootfs": {"type": "layers", "diff_ids": diff_ids},
                }),
            );
            let mut manifest = layout.json(
                OCI_MANIFEST,
                &json!({
                    "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers,
                }),
            );
            manifests.push(Manifest {
                digest: text(&manifest["digest"]),
                config: text(&config["digest"]),
                layers: layers.iter().map(|layer| text(&layer["digest"])).collect(),
            });
            manifest["platform"] = json!({"os": "linux", "architecture": architecture});
            descriptors.push(manifest);
        }
        let mut root = if let [only] = descriptors.as_slice() {
            only.clone()
        } else {
            layout.json(
                OCI_INDEX,
                &json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": descriptors}),
            )
        };
        let digest = text(&root["digest"]);
        root["annotations"] = json!({"org.opencontainers.image.ref.name": "image"});
        let index = json!({"schemaVersion": 2, "manifests": [root]});
        layout.write("index.json", index.to_string().as_bytes());
        layout.write("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
        Self {
            folder: layout.folder.to_owned(),
            digest,
            manifests,
        }
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifests[0]
    }

    /// Configuration and layers of all platforms.
    pub fn blobs(&self) -> Vec<&String> {
        self.manifests
            .iter()
            .flat_map(|manifest| manifest.layers.iter().chain([&manifest.config]))
            .collect()
    }
}

struct Layout<'a> {
    folder: &'a Path,
}

impl<'a> Layout<'a> {
    fn new(folder: &'a Path) -> Self {
        fs::create_dir_all(folder.join("blobs/sha256")).expect("a writable folder");
        Self { folder }
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.folder.join(name), bytes).expect("a writable folder");
    }

    fn json(&self, media_type: &str, value: &Value) -> Value {
        self.blob(media_type, value.to_string().as_bytes())
    }

    fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        self.write(&blob_file(&digest), bytes);
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// One archive with one file of this size.
    fn layer(&self, number: u64, size: u64) -> Value {
        let growing = self.folder.join("layer");
        let mut writer = BufWriter::new(File::create(&growing).expect("a writable folder"));
        let mut hash = Hash::new();
        let padding = (512 - size % 512) % 512;
        let header = tar_header(&format!("layer-{number}"), size);
        let content = Content::Generated { seed: number, size };
        // The archive ends with two empty blocks.
        let end = vec![0; padding as usize + 1024];
        let mut archive = header
            .as_slice()
            .chain(content.reader())
            .chain(end.as_slice());
        let mut piece = vec![0; 1 << 20];
        let mut total = 0;
        loop {
            let count = archive
                .read(&mut piece)
                .expect("content in memory is readable");
            if count == 0 {
                break;
            }
            writer
                .write_all(&piece[..count])
                .expect("a writable folder");
            hash.write_all(&piece[..count]).expect("hashing succeeds");
            total += count;
        }
        writer.flush().expect("a writable folder");
        let digest = hash.digest();
        fs::rename(growing, self.folder.join(blob_file(&digest))).expect("a writable folder");
        json!({"mediaType": OCI_LAYER, "digest": digest, "size": total})
    }
}

fn blob_file(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

/// An archive with these files.
pub fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, content) in files {
        archive.extend(tar_header(name, content.len() as u64));
        archive.extend(content.as_bytes());
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.extend([0; 1024]);
    archive
}

/// A ustar header (POSIX.1-1988) of a regular file.
fn tar_header(name: &str, size: u64) -> Vec<u8> {
    let mut header = vec![0; 512];
    let mut put = |offset: usize, text: &str| {
        header[offset..offset + text.len()].copy_from_slice(text.as_bytes());
    };
    put(0, name);
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{size:011o}\0"));
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\0");
    put(263, "00");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    let checksum = format!("{sum:06o}\0 ");
    header[148..156].copy_from_slice(checksum.as_bytes());
    header
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

/// sha256 of a file, as runtimes have stored it.
pub fn file_digest(path: &Path) -> String {
    let mut hash = Hash::new();
    let mut file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    io::copy(&mut file, &mut hash).expect("a readable file");
    hash.digest()
}
