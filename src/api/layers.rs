//! Layers as clients post them, and whether they are what they say. Pure.
//!
//! ```text
//! data:<base64 of a tar.gz>
//! gzip:<base64 of a tar.gz, compressed once more (zlib)>
//! https://…, http://…                                       fetched when the image is pulled
//! docker://<registry>/v2/<repository>/blobs/<digest>        likewise, from a registry
//! ```
//!
//! The bytes of a layer that came along are checked here, where the client can still be told. One that is a name alone
//! is checked when it is fetched.

use std::io::{self, Read, Write};

use base64::{
    Engine as _,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use flate2::read::{MultiGzDecoder, ZlibDecoder};
use serde::Deserialize;

use crate::{
    augment::{Compression, Layer, Place},
    http::Url,
    oci::{Algorithm, Digest, Hasher, Reference, TagOrDigest},
    requests::InlineLayer,
};

/// A location as long as it may be holds a third less.
const LARGEST_INLINE: u64 = 16 << 20;
/// Of all layers of a request together. Guessed: scripts and programs, a hundred times as large as they come. It bounds
/// what hostile ones cost: some seconds.
const LARGEST_ARCHIVES: u64 = if cfg!(test) { 64 << 20 } else { 1 << 30 };
/// The longest are signed ones, of up to 2 KiB.
const LONGEST_URL: usize = 4096;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PostedLayer {
    pub(super) location: Option<String>,
    gzip_digest: Option<String>,
    gzip_size: Option<u64>,
    tar_digest: Option<String>,
}

/// What is wrong with a layer, in words for whoever made it.
type Problem = String;

/// How much the layers of a request may still unpack to.
pub(super) struct Room(u64);

impl Default for Room {
    fn default() -> Self {
        Self(LARGEST_ARCHIVES)
    }
}

impl PostedLayer {
    pub(super) fn read(&self, room: &mut Room) -> Result<(Layer, Option<InlineLayer>), Problem> {
        let location = self.location.as_deref().unwrap_or_default();
        if let Some(text) = location.strip_prefix("data:") {
            return self.inline(decode(text)?, room);
        }
        if let Some(text) = location.strip_prefix("gzip:") {
            return self.inline(inflate(&decode(text)?)?, room);
        }
        let place = match location.strip_prefix("docker://") {
            Some(text) => self.in_repository(text)?,
            None if location.starts_with("https://") || location.starts_with("http://") => {
                on_the_web(location)?
            }
            None if location.is_empty() => return Err("it has no location".to_owned()),
            None => {
                return Err(
                    "its location starts with none of data:, gzip:, https://, http:// and docker://"
                        .to_owned(),
                );
            }
        };
        let missing = |name: &str| format!("it needs {name}, since its bytes are elsewhere");
        let layer = Layer {
            digest: self.gzip_digest()?.ok_or_else(|| missing("a gzipDigest"))?,
            size: self.gzip_size.ok_or_else(|| missing("a gzipSize"))?,
            diff_id: self.tar_digest()?.ok_or_else(|| missing("a tarDigest"))?,
            compression: Compression::Gzip,
            place,
            only_for: None,
        };
        Ok((layer, None))
    }

    /// What the client leaves out is computed.
    fn inline(
        &self,
        bytes: Vec<u8>,
        room: &mut Room,
    ) -> Result<(Layer, Option<InlineLayer>), Problem> {
        let stated = self.gzip_digest()?;
        let digest = match stated {
            Some(stated) if stated.matches(&bytes) => stated,
            Some(stated) => {
                let found = Digest::of(&bytes);
                return Err(format!(
                    "its gzipDigest is {stated}, and its bytes have {found}"
                ));
            }
            None => Digest::of(&bytes),
        };
        let size = bytes.len() as u64;
        if let Some(stated) = self.gzip_size.filter(|stated| *stated != size) {
            return Err(format!("its gzipSize is {stated}, and it has {size} bytes"));
        }
        let stated = self.tar_digest()?;
        let algorithm = stated.map_or(Algorithm::Sha256, |stated| stated.algorithm());
        let diff_id = unpacked_digest(&bytes, algorithm, room)?;
        if let Some(stated) = stated.filter(|stated| *stated != diff_id) {
            return Err(format!(
                "its tarDigest is {stated}, and the archive in it has {diff_id}"
            ));
        }
        let layer = Layer {
            digest,
            size,
            diff_id,
            compression: Compression::Gzip,
            place: Place::Inline,
            only_for: None,
        };
        Ok((layer, Some(InlineLayer { digest, bytes })))
    }

    fn in_repository(&self, text: &str) -> Result<Place, Problem> {
        let malformed = || {
            "its location should read docker://<registry>/v2/<repository>/blobs/<digest>".to_owned()
        };
        let (registry, rest) = text.split_once("/v2/").ok_or_else(malformed)?;
        let (repository, digest) = rest.rsplit_once("/blobs/").ok_or_else(malformed)?;
        let image = format!("{registry}/{repository}@{digest}");
        let image: Reference = image
            .parse()
            .map_err(|error| format!("its location: {error}"))?;
        if let Some(stated) = self.gzip_digest()?
            && image.version != TagOrDigest::Digest(stated)
        {
            return Err(format!(
                "its gzipDigest is {stated}, and its location names {}",
                image.version
            ));
        }
        Ok(Place::Repository {
            registry: image.registry,
            repository: image.repository,
        })
    }

    fn gzip_digest(&self) -> Result<Option<Digest>, Problem> {
        parse_digest("gzipDigest", self.gzip_digest.as_deref())
    }

    fn tar_digest(&self) -> Result<Option<Digest>, Problem> {
        parse_digest("tarDigest", self.tar_digest.as_deref())
    }
}

fn parse_digest(name: &str, text: Option<&str>) -> Result<Option<Digest>, Problem> {
    text.filter(|text| !text.is_empty())
        .map(|text| text.parse().map_err(|error| format!("its {name}: {error}")))
        .transpose()
}

fn on_the_web(location: &str) -> Result<Place, Problem> {
    if location.len() > LONGEST_URL {
        return Err(format!("its URL is longer than {LONGEST_URL} characters"));
    }
    let url: Url = location
        .parse()
        .map_err(|error| format!("its location: {error}"))?;
    Ok(Place::Web {
        url: url.to_string(),
    })
}

fn decode(text: &str) -> Result<Vec<u8>, Problem> {
    // Some clients pad, others do not.
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    LENIENT
        .decode(text)
        .map_err(|error| format!("its location is not base64: {error}"))
}

fn inflate(packed: &[u8]) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    ZlibDecoder::new(packed)
        .take(LARGEST_INLINE + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("what follows gzip: is not compressed by zlib: {error}"))?;
    if bytes.len() as u64 > LARGEST_INLINE {
        return Err(format!("it has more than {LARGEST_INLINE} bytes"));
    }
    Ok(bytes)
}

fn unpacked_digest(bytes: &[u8], algorithm: Algorithm, room: &mut Room) -> Result<Digest, Problem> {
    struct Hashing(Hasher);

    impl Write for Hashing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let mut hashing = Hashing(Hasher::new(algorithm));
    let mut archive = MultiGzDecoder::new(bytes).take(room.0 + 1);
    let size = io::copy(&mut archive, &mut hashing)
        .map_err(|error| format!("it is not a tar.gz: {error}"))?;
    let left = room.0.checked_sub(size);
    room.0 = left.ok_or_else(|| {
        format!(
            "with it the layers unpack to more than {LARGEST_ARCHIVES} bytes; let large ones be fetched from an https:// location"
        )
    })?;
    Ok(hashing.0.finish())
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;
    use flate2::{
        Compression as Level,
        write::{GzEncoder, ZlibEncoder},
    };

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Level::default());
        encoder.write_all(bytes).expect("memory takes it");
        encoder.finish().expect("memory takes it")
    }

    fn data(bytes: &[u8]) -> PostedLayer {
        PostedLayer {
            location: Some(format!("data:{}", STANDARD.encode(bytes))),
            gzip_digest: Some(Digest::of(bytes).to_string()),
            gzip_size: Some(bytes.len() as u64),
            tar_digest: None,
        }
    }

    fn problem(layer: &PostedLayer) -> String {
        match layer.read(&mut Room::default()) {
            Err(problem) => problem,
            Ok((layer, _)) => panic!("{layer:?}"),
        }
    }

    #[test]
    fn layers_come_along_in_two_ways() {
        let archive = b"an archive".repeat(1000);
        let packed = gzip(&archive);
        let mut twice = ZlibEncoder::new(Vec::new(), Level::default());
        twice.write_all(&packed).expect("memory takes it");
        let twice = STANDARD.encode(twice.finish().expect("memory takes it"));
        let unpadded = STANDARD.encode(&packed);
        for location in [
            format!("data:{}", STANDARD.encode(&packed)),
            format!("data:{}", unpadded.trim_end_matches('=')),
            format!("gzip:{twice}"),
        ] {
            for (digest, size, diff_id) in [
                (None, None, None),
                (
                    Some(Digest::of(&packed).to_string()),
                    Some(packed.len() as u64),
                    Some(Digest::of(&archive).to_string()),
                ),
            ] {
                let layer = PostedLayer {
                    location: Some(location.clone()),
                    gzip_digest: digest,
                    gzip_size: size,
                    tar_digest: diff_id,
                };
                let (layer, inline) = layer
                    .read(&mut Room::default())
                    .unwrap_or_else(|problem| panic!("{problem}"));
                assert_eq!(layer.digest, Digest::of(&packed));
                assert_eq!(layer.diff_id, Digest::of(&archive));
                assert_eq!(layer.size, packed.len() as u64);
                assert_eq!(layer.place, Place::Inline);
                assert_eq!(inline.map(|inline| inline.bytes), Some(packed.clone()));
            }
        }
    }

    #[test]
    fn layers_elsewhere_are_taken_at_their_word() {
        let digest = Digest::of(b"blob");
        let named = |location: &str| PostedLayer {
            location: Some(location.to_owned()),
            gzip_digest: Some(digest.to_string()),
            gzip_size: Some(4),
            tar_digest: Some(Digest::of(b"archive").to_string()),
        };
        for (location, place) in [
            (
                "https://f.example/x.tar.gz?sig=a%2Fb".to_owned(),
                Place::Web {
                    url: "https://f.example/x.tar.gz?sig=a%2Fb".to_owned(),
                },
            ),
            (
                format!("docker://quay.io/v2/a/b/blobs/{digest}"),
                Place::Repository {
                    registry: "quay.io".parse().expect("a registry"),
                    repository: "a/b".parse().expect("a repository"),
                },
            ),
        ] {
            let read = named(&location).read(&mut Room::default());
            let (layer, inline) = read.unwrap_or_else(|problem| panic!("{problem}"));
            assert_eq!((layer.place, layer.digest, layer.size), (place, digest, 4));
            assert!(inline.is_none());
        }
        let other = format!("docker://quay.io/v2/a/b/blobs/{}", Digest::of(b"other"));
        let long = format!("https://f.example/{}", "x".repeat(LONGEST_URL));
        for (location, expected) in [
            ("", "no location"),
            ("ftp://f.example/x", "starts with none of"),
            ("/etc/passwd", "starts with none of"),
            ("https://", "no host"),
            ("https://a:b@f.example/", "user name"),
            (long.as_str(), "longer than 4096"),
            ("docker://quay.io/a/b", "should read docker://"),
            ("docker://quay.io/v2/a/b/blobs/x", "is not a digest"),
            (other.as_str(), "its location names"),
        ] {
            let said = problem(&named(location));
            assert!(said.contains(expected), "{location}: {said}");
        }
        let mut incomplete = named("https://f.example/x");
        incomplete.tar_digest = None;
        assert!(problem(&incomplete).contains("needs a tarDigest"));
        incomplete.gzip_size = None;
        assert!(problem(&incomplete).contains("needs a gzipSize"));
        incomplete.gzip_digest = Some("sha256:x".to_owned());
        assert!(problem(&incomplete).contains("its gzipDigest: "));
        incomplete.gzip_digest = None;
        assert!(problem(&incomplete).contains("needs a gzipDigest"));
    }

    #[test]
    fn a_layer_that_lies_is_found_out() {
        let packed = gzip(b"an archive");
        let other = Digest::of(b"other").to_string();
        let location = |text: &str| PostedLayer {
            location: Some(text.to_owned()),
            ..data(b"")
        };
        let mut cut = packed.clone();
        cut.truncate(packed.len() - 3);
        let mut trailed = packed.clone();
        trailed.extend_from_slice(b"more");
        for (layer, expected) in [
            (
                PostedLayer {
                    gzip_digest: Some(other.clone()),
                    ..data(&packed)
                },
                "its gzipDigest is",
            ),
            (
                PostedLayer {
                    gzip_size: Some(1),
                    ..data(&packed)
                },
                "its gzipSize is 1, and it has",
            ),
            (
                PostedLayer {
                    tar_digest: Some(other),
                    ..data(&packed)
                },
                "its tarDigest is",
            ),
            (
                PostedLayer {
                    tar_digest: Some("sha256:".to_owned()),
                    ..data(&packed)
                },
                "its tarDigest: ",
            ),
            (data(b"not packed"), "not a tar.gz"),
            (data(&cut), "not a tar.gz"),
            (data(&trailed), "not a tar.gz"),
            (data(b""), "not a tar.gz"),
            (location("data:***"), "not base64"),
            (location("gzip:AAAA"), "not compressed by zlib"),
        ] {
            let said = problem(&layer);
            assert!(said.contains(expected), "{expected}: {said}");
        }
    }

    #[test]
    fn what_unpacks_without_end_is_stopped() {
        let mut encoder = GzEncoder::new(Vec::new(), Level::best());
        let zeros = vec![0; 1 << 20];
        for _ in 0..=LARGEST_ARCHIVES >> 20 {
            encoder.write_all(&zeros).expect("memory takes it");
        }
        let packed = encoder.finish().expect("memory takes it");
        assert!(problem(&data(&packed)).contains("unpack to more than"));

        let mut encoder = ZlibEncoder::new(Vec::new(), Level::best());
        for _ in 0..=LARGEST_INLINE >> 20 {
            encoder.write_all(&zeros).expect("memory takes it");
        }
        let packed = encoder.finish().expect("memory takes it");
        let layer = PostedLayer {
            location: Some(format!("gzip:{}", STANDARD.encode(packed))),
            ..data(b"")
        };
        assert!(problem(&layer).contains("more than 16777216 bytes"));
    }
}
