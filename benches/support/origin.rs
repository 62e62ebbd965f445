//! A registry that has any number of large blobs, sends them as fast as the kernel can, and counts.
//!
//! All blobs of one size are one file but for their last bytes. So a new digest, which no cache has, costs nothing.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use sha2::{Digest as _, Sha256};

use super::sys;

const TAIL_SIZE: usize = 64;
/// What is sent between two looks at the counters.
const PIECE: u64 = 1 << 20;

/// Of every image: a token is given only for images that exist. Its configuration is `{}`, for which no bench asks.
pub const MANIFEST: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}"#;

#[derive(Clone, Debug)]
pub struct Blob {
    /// Hex.
    pub digest: String,
    pub size: u64,
}

pub struct Origin {
    pub address: SocketAddr,
    state: Arc<State>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub gets: u64,
    pub bytes: u64,
}

struct State {
    path: PathBuf,
    base: File,
    base_size: u64,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    blobs: HashMap<String, (u64, [u8; TAIL_SIZE])>,
    counts: HashMap<String, Counts>,
    hashes: HashMap<u64, Sha256>,
    made: u64,
}

impl Origin {
    /// `largest` is the size of its largest blob.
    pub fn start(folder: &Path, largest: u64) -> Self {
        Self::start_with(folder, largest, false)
    }

    /// On a core that it shares with the clients that are measured, behind them.
    pub fn start_in_background(folder: &Path, largest: u64) -> Self {
        Self::start_with(folder, largest, true)
    }

    fn start_with(folder: &Path, largest: u64, is_background: bool) -> Self {
        let path = folder.join("base");
        write_noise(&path, largest).expect("space for the blobs");
        let state = Arc::new(State {
            base: File::open(&path).expect("the file just written"),
            path,
            base_size: largest,
            table: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let served = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&served);
                // It ends when its peer goes away.
                thread::spawn(move || {
                    if is_background {
                        sys::yield_to_others();
                    }
                    serve(&state, stream);
                });
            }
        });
        Self { address, state }
    }

    /// One that nobody has asked for yet.
    pub fn new_blob(&self, size: u64) -> Blob {
        assert!(size > TAIL_SIZE as u64 && size <= self.state.base_size);
        let mut table = self.state.table();
        let hash = if let Some(hash) = table.hashes.get(&size) {
            hash.clone()
        } else {
            let hash = self
                .state
                .hash_start(size - TAIL_SIZE as u64)
                .expect("the base is read");
            table.hashes.insert(size, hash.clone());
            hash
        };
        table.made += 1;
        let mut tail = [b' '; TAIL_SIZE];
        for (place, byte) in tail.iter_mut().zip(format!("blob {}", table.made).bytes()) {
            *place = byte;
        }
        let digest = hex(&hash.chain_update(tail).finalize());
        table.blobs.insert(digest.clone(), (size, tail));
        Blob { digest, size }
    }

    /// The same bytes as a file, for servers of files.
    pub fn write_blob(&self, blob: &Blob, folder: &Path) {
        let (size, tail) = self
            .state
            .find(&blob.digest)
            .expect("one of this origin's blobs");
        let mut file = File::create(folder.join(&blob.digest)).expect("a writable folder");
        File::open(&self.state.path)
            .and_then(|base| io::copy(&mut base.take(size - TAIL_SIZE as u64), &mut file))
            .and_then(|_| file.write_all(&tail))
            .expect("space for the blob");
    }

    pub fn counts(&self, blob: &Blob) -> Counts {
        self.state
            .table()
            .counts
            .get(&blob.digest)
            .copied()
            .unwrap_or_default()
    }

    /// The image's manifest, under which it has no blobs.
    pub fn manifest() -> Blob {
        Blob {
            digest: hex(&Sha256::digest(MANIFEST)),
            size: MANIFEST.len() as u64,
        }
    }

    /// Where every server of registries finds it.
    pub fn path(blob: &Blob) -> String {
        format!("/v2/bench/blobs/blobs/sha256:{}", blob.digest)
    }

    /// Brings its bytes back into memory, where they may have been dropped meanwhile, and memory for as many more
    /// back into this machine: a virtual one gives what is free to its host, and whoever touches it first pays for that.
    pub fn touch(&self) {
        let mut buffer = vec![0; 1 << 20];
        let mut offset = 0;
        while let Ok(count @ 1..) = self.state.base.read_at(&mut buffer, offset) {
            offset += count as u64;
        }
        let scratch = self.state.path.with_extension("scratch");
        if let Ok(mut file) = File::create(&scratch) {
            let mut left = self.state.base_size.div_ceil(buffer.len() as u64);
            while left > 0 && file.write_all(&buffer).is_ok() {
                left -= 1;
            }
            let _ = fs::remove_file(scratch);
        }
    }
}

impl State {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, digest: &str) -> Option<(u64, [u8; TAIL_SIZE])> {
        self.table().blobs.get(digest).copied()
    }

    fn hash_start(&self, size: u64) -> io::Result<Sha256> {
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        let mut offset = 0;
        while offset < size {
            let wanted = usize::try_from(size - offset)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            let piece = buffer.get_mut(..wanted).unwrap_or_default();
            self.base.read_exact_at(piece, offset)?;
            hash.update(&piece);
            offset += wanted as u64;
        }
        Ok(hash)
    }
}

fn serve(state: &State, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut reader = BufReader::new(stream);
    while let Ok(Some(request)) = read_head(&mut reader) {
        if answer(state, reader.get_mut(), &request).is_err() {
            return;
        }
    }
}

fn answer(state: &State, stream: &mut TcpStream, request: &str) -> io::Result<()> {
    let mut words = request.split(' ');
    let (method, path) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    if path == "/v2/" {
        return stream.write_all(
            b"HTTP/1.1 200 OK\r\nDocker-Distribution-API-Version: registry/2.0\r\nContent-Length: 0\r\n\r\n",
        );
    }
    if path.contains("/manifests/") {
        let body = if method == "HEAD" { "" } else { MANIFEST };
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.oci.image.manifest.v1+json\r\nContent-Length: {}\r\n\
             Docker-Content-Digest: sha256:{}\r\n\r\n{body}",
            MANIFEST.len(),
            hex(&Sha256::digest(MANIFEST)),
        );
        return stream.write_all(answer.as_bytes());
    }
    let digest = path.rsplit(':').next().unwrap_or_default();
    let Some((size, tail)) = state.find(digest) else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    };
    let range = request.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("range")
            .then(|| wanted_range(value.trim(), size))?
    });
    let (start, end) = range.unwrap_or((0, size));
    let (status, content_range) = match range {
        Some(_) => (
            "206 Partial Content",
            format!("Content-Range: bytes {start}-{}/{size}\r\n", end - 1),
        ),
        None => ("200 OK", String::new()),
    };
    // The cache fields are for the peers that keep only what they are told to keep.
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n{content_range}\
         Docker-Content-Digest: sha256:{digest}\r\nETag: \"sha256:{digest}\"\r\nAccept-Ranges: bytes\r\n\
         Cache-Control: public, max-age=86400\r\n\r\n",
        end - start,
    );
    if method == "HEAD" {
        return stream.write_all(head.as_bytes());
    }
    let count = |bytes| {
        let mut table = state.table();
        let counts = table.counts.entry(digest.to_owned()).or_default();
        match bytes {
            0 => counts.gets += 1,
            bytes => counts.bytes += bytes,
        }
    };
    count(0);
    sys::send_and_more(stream, head.as_bytes())?;
    let tail_start = size - TAIL_SIZE as u64;
    let mut offset = start;
    while offset < end.min(tail_start) {
        let wanted = (end.min(tail_start) - offset).min(PIECE);
        let sent = sys::send_file(
            stream,
            &state.base,
            offset,
            usize::try_from(wanted).unwrap_or(usize::MAX),
        )? as u64;
        if sent == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        count(sent);
        offset += sent;
    }
    let place = |offset: u64| usize::try_from(offset.saturating_sub(tail_start)).unwrap_or(0);
    let rest = tail.get(place(offset)..place(end)).unwrap_or_default();
    stream.write_all(rest)?;
    if !rest.is_empty() {
        count(rest.len() as u64);
    }
    Ok(())
}

/// From the first byte to behind the last.
fn wanted_range(value: &str, size: u64) -> Option<(u64, u64)> {
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    let first = first.parse::<u64>().ok()?;
    let end = match last {
        "" => size,
        last => last.parse::<u64>().ok()?.checked_add(1)?.min(size),
    };
    (first < end).then_some((first, end))
}

/// `None` if the peer is done.
pub fn read_head(reader: &mut impl io::BufRead) -> io::Result<Option<String>> {
    let mut head = String::new();
    loop {
        let start = head.len();
        if reader.read_line(&mut head)? == 0 {
            return Ok(None);
        }
        if head.get(start..) == Some("\r\n") {
            return Ok(Some(head));
        }
    }
}

/// Nothing that a file system or a link could compress.
fn write_noise(path: &Path, size: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut piece = Vec::with_capacity(1 << 20);
    let mut left = size;
    while left > 0 {
        piece.clear();
        while piece.len() < 1 << 20 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            piece.extend_from_slice(&state.to_le_bytes());
        }
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
        file.write_all(piece.get(..count).unwrap_or_default())?;
        left -= count as u64;
    }
    // Else its writing would go on beside the first measurement.
    file.sync_all()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where a server of registries keeps a blob: the first file below `folder` whose path names its digest, and which
/// has its size.
pub fn file_of(folder: &Path, blob: &Blob) -> Option<PathBuf> {
    for entry in fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        if metadata.is_dir() {
            if let Some(found) = file_of(&path, blob) {
                return Some(found);
            }
        } else if metadata.len() == blob.size && path.to_string_lossy().contains(&blob.digest) {
            return Some(path);
        }
    }
    None
}
