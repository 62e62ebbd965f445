//! Layers as clients put them into container requests.

use std::{io::Write, path::Path, process::Command};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use flate2::{
    Compression,
    write::{GzEncoder, ZlibEncoder},
};
use serde_json::{Value, json};

use super::{content::digest, image::archive, programs::run};

/// A tar.gz.
#[derive(Clone)]
pub struct Layer {
    pub bytes: Vec<u8>,
    pub digest: String,
    pub diff_id: String,
}

impl Layer {
    pub fn of(files: &[(&str, &str)]) -> Self {
        Self::packed(&archive(files), Compression::default())
    }

    /// Of a folder, with the rights of its files.
    pub fn of_folder(folder: &Path) -> Self {
        let archive = run(Command::new("tar")
            .args([
                "--owner=0",
                "--group=0",
                "--numeric-owner",
                "--sort=name",
                "--mtime=@0",
            ])
            .arg("-C")
            .arg(folder)
            .args(["-c", "."]));
        Self::packed(&archive.stdout, Compression::default())
    }

    /// Of what nobody will unpack, as large as it is.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self::packed(bytes, Compression::none())
    }

    fn packed(archive: &[u8], level: Compression) -> Self {
        let mut encoder = GzEncoder::new(Vec::new(), level);
        encoder.write_all(archive).expect("memory takes it");
        let bytes = encoder.finish().expect("memory takes it");
        Self {
            digest: digest(&bytes),
            diff_id: digest(archive),
            bytes,
        }
    }

    pub fn posted_at(&self, location: &str) -> Value {
        json!({
            "location": location, "gzipDigest": self.digest, "gzipSize": self.bytes.len(),
            "tarDigest": self.diff_id, "skipHashing": false,
        })
    }

    pub fn posted(&self) -> Value {
        self.posted_at(&format!("data:{}", STANDARD.encode(&self.bytes)))
    }

    pub fn posted_packed(&self) -> Value {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&self.bytes).expect("memory takes it");
        let packed = encoder.finish().expect("memory takes it");
        self.posted_at(&format!("gzip:{}", STANDARD.encode(packed)))
    }
}
