//! A liar, a tidegate in front of it, and a grant for the repository that all blobs are in; and what no answer may be.

use std::ops::Range;

use super::{
    content::Content,
    http::{End, Pulled, Response},
    liar::{Behaviour, Gate, Liar, blob_path},
    tidegate::{Grant, Setup, Tidegate},
};

pub const REPOSITORY: &str = "acme/app";

pub struct Scene {
    pub liar: Liar,
    pub tidegate: Tidegate,
    pub grant: Grant,
}

/// One blob that the liar has.
pub struct Blob {
    pub content: Content,
    pub digest: String,
    /// At the upstream.
    pub path: String,
}

impl Scene {
    pub fn new() -> Self {
        Self::with(Setup::new())
    }

    pub fn with(setup: Setup) -> Self {
        let liar = Liar::open();
        liar.image(REPOSITORY, "v1", &[]);
        let tidegate = setup.liar(&liar).start();
        let grant = tidegate.grant(&liar.reference(REPOSITORY, "v1"));
        Self {
            liar,
            tidegate,
            grant,
        }
    }

    /// A blob that no manifest names: only the upstream knows its size.
    pub fn blob(&self, seed: u64, size: u64) -> Blob {
        self.blob_of(Content::Generated { seed, size })
    }

    pub fn blob_of(&self, content: Content) -> Blob {
        let digest = self.liar.blob(REPOSITORY, content.clone());
        Blob::new(content, digest)
    }

    /// Under a digest of another algorithm.
    pub fn blob_as(&self, content: Content, digest: &str) -> Blob {
        self.liar.blob_as(REPOSITORY, content.clone(), digest);
        Blob::new(content, digest.to_owned())
    }

    /// A blob whose size tidegate knows from its manifest.
    pub fn layer(&self, seed: u64, size: u64) -> Blob {
        let content = Content::Generated { seed, size };
        let tag = format!("layer-{seed}");
        let image = self
            .liar
            .image(REPOSITORY, &tag, std::slice::from_ref(&content));
        let manifest = self.tidegate.get(&self.grant.manifest(&image.manifest));
        assert_eq!(manifest.status(), 200, "{}", manifest.text());
        Blob::new(content, image.layers[0].clone())
    }

    pub fn misbehave(&self, blob: &Blob, behaviour: Behaviour) {
        self.liar.misbehave(&blob.path, behaviour);
    }

    pub fn behave(&self, blob: &Blob) {
        self.liar.behave(&blob.path);
    }

    /// The first answer stops after so many bytes until the gate is open; others do not.
    pub fn gate(&self, blob: &Blob, after: u64) -> Gate {
        let gate = Gate::default();
        let halting = Behaviour::Gated(after, gate.clone());
        self.liar.misbehave_in_turn(&blob.path, &[halting]);
        gate
    }

    /// The first answer slows down after so many bytes until the gate is open; others do not.
    pub fn trickle(&self, blob: &Blob, after: u64) -> Gate {
        let gate = Gate::default();
        let slow = Behaviour::Trickling(after, gate.clone());
        self.liar.misbehave_in_turn(&blob.path, &[slow]);
        gate
    }

    pub fn pull(&self, blob: &Blob) -> Pulled {
        self.tidegate.pull(&self.grant.blob(&blob.digest))
    }

    pub fn get(&self, blob: &Blob, headers: &[(&str, &str)]) -> Response {
        let path = self.grant.blob(&blob.digest);
        self.tidegate.request("GET", &path, headers)
    }

    pub fn range(&self, blob: &Blob, range: &str) -> Response {
        self.get(blob, &[("Range", range)])
    }

    pub fn part(&self, blob: &Blob, bytes: &Range<u64>) -> Response {
        self.range(blob, &format!("bytes={}-{}", bytes.start, bytes.end - 1))
    }

    pub fn assert_part_arrives(&self, blob: &Blob, bytes: &Range<u64>) {
        blob.assert_is_part(&self.part(blob, bytes), bytes);
    }

    pub fn assert_arrives(&self, blob: &Blob, what: &str) {
        let pulled = self.pull(blob);
        let got = (pulled.head.status, pulled.digest.as_str(), pulled.end);
        assert_eq!(got, (200, blob.digest.as_str(), End::Complete), "{what}");
    }

    /// The upstream was wrong and is right now. What it said of parts is only known to be wrong when all are there, so
    /// one more pull may break off.
    pub fn assert_recovers(&self, blob: &Blob) {
        let pulled = self.pull(blob);
        if pulled.digest != blob.digest || pulled.end != End::Complete {
            assert!(
                pulled.end == End::Cut || pulled.head.status >= 500,
                "{pulled:?}"
            );
            self.assert_arrives(blob, "when what was wrong is gone");
        }
        self.assert_is_a_hit(blob);
    }

    /// A pull that no upstream hears of.
    pub fn assert_is_a_hit(&self, blob: &Blob) {
        self.tidegate.wait_until_stored(&blob.digest);
        let before = self.liar.requests().len();
        self.assert_arrives(blob, "a hit");
        let asked = self.liar.requests().split_off(before);
        assert!(asked.is_empty(), "the upstream was asked: {asked:#?}");
    }
}

impl Blob {
    fn new(content: Content, digest: String) -> Self {
        let path = blob_path(REPOSITORY, &digest);
        Self {
            content,
            digest,
            path,
        }
    }

    pub fn size(&self) -> u64 {
        self.content.size()
    }

    pub fn bytes(&self, span: &Range<u64>) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut reader = self.content.range(span.start, span.end);
        std::io::Read::read_to_end(&mut reader, &mut bytes).expect("content in memory is readable");
        bytes
    }

    pub fn assert_is_part(&self, response: &Response, wanted: &Range<u64>) {
        assert_eq!(response.status(), 206, "{wanted:?}: {}", response.excerpt());
        let range = response.head.content_range().expect("a Content-Range");
        assert_eq!((&range.bytes, range.size), (wanted, self.size()));
        assert_eq!(response.end, End::Complete, "{wanted:?}");
        assert_are_equal(&response.body, &self.bytes(wanted), wanted);
    }

    /// The right bytes, a broken-off start of them, or an error in words: nothing that a client could take for
    /// what it is not. `wanted` is what the client asked for.
    pub fn assert_is_not_wrong(&self, response: &Response, wanted: &Range<u64>) {
        let named = match response.status() {
            200 => 0..self.size(),
            206 => {
                let range = response.head.content_range().expect("a Content-Range");
                assert_eq!((&range.bytes, range.size), (wanted, self.size()));
                range.bytes
            }
            429 | 500..=504 => {
                response.error_code();
                return;
            }
            other => panic!("{other} to {wanted:?}: {}", response.excerpt()),
        };
        let end = named.start + response.body.len() as u64;
        assert!(end <= named.end, "{end} is beyond {named:?}");
        assert_are_equal(&response.body, &self.bytes(&(named.start..end)), wanted);
        assert_eq!(
            response.end == End::Complete,
            end == named.end,
            "{wanted:?}: {} bytes and {:?}",
            response.body.len(),
            response.end
        );
    }
}

/// Without printing megabytes.
fn assert_are_equal(got: &[u8], expected: &[u8], what: &Range<u64>) {
    let differs = got
        .iter()
        .zip(expected)
        .position(|(got, expected)| got != expected);
    assert_eq!(differs, None, "the first wrong byte of {what:?}");
    assert_eq!(got.len(), expected.len(), "{what:?}");
}
