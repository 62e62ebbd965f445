//! A folder as a layer: a tar that is gzipped. The same files give the same bytes everywhere and always, so that the image
//! that they are put on has the same digest too: sorted names, no times, no owners. Modes are kept, since it matters what
//! can be run.

use std::{
    fmt, fs,
    io::{self, Read as _, Write},
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};
use tar::{Builder, EntryType, Header};

use crate::{
    oci::{Algorithm, Digest, Hasher},
    units::ByteSize,
};

/// A gzipped tar, named by its digest.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layer {
    pub(super) bytes: Vec<u8>,
    pub(super) digest: Digest,
    /// Of the tar.
    pub(super) diff_id: Digest,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum PackError {
    #[error("{}: {cause}", path.display())]
    Unreadable { path: PathBuf, cause: io::Error },
    #[error("{} is no folder; a layer is made of what is in one", path.display())]
    NoFolder { path: PathBuf },
    #[error("{} is empty, and would be an empty layer", path.display())]
    Empty { path: PathBuf },
    #[error("{} is neither a file nor a folder nor a symbolic link, and cannot be in a layer", path.display())]
    OddFile { path: PathBuf },
    #[error("{} changed while it was read", path.display())]
    Changed { path: PathBuf },
    #[error(
        "with {} the layers have more than {most} when they are packed, which is too much; push large files as an image and \
         name it with --include",
        path.display()
    )]
    TooLarge { path: PathBuf, most: ByteSize },
}

/// A layer for each folder. All together may have `most` bytes.
pub(super) fn pack_all(folders: &[PathBuf], most: ByteSize) -> Result<Vec<Layer>, PackError> {
    let mut room_bytes = most.bytes();
    let mut layers = Vec::new();
    for folder in folders {
        let layer = pack(folder, room_bytes, most)?;
        room_bytes = room_bytes.saturating_sub(layer.bytes.len() as u64);
        layers.push(layer);
    }
    Ok(layers)
}

/// `room_bytes` is what the layers before it have left of `most`.
fn pack(folder: &Path, room_bytes: u64, most: ByteSize) -> Result<Layer, PackError> {
    let unreadable = |cause| PackError::Unreadable {
        path: folder.to_owned(),
        cause,
    };
    if !fs::metadata(folder).map_err(unreadable)?.is_dir() {
        return Err(PackError::NoFolder {
            path: folder.to_owned(),
        });
    }
    let room = Room {
        bytes: Vec::new(),
        left: room_bytes,
        most,
    };
    // Without a name and a time in the gzip's head.
    let gzip = GzEncoder::new(room, Compression::default());
    let mut packer = Packer {
        tar: Builder::new(Hashed {
            to: gzip,
            hasher: Hasher::new(Algorithm::Sha256),
        }),
        folder,
        count: 0,
    };
    packer.add_content(Path::new(""))?;
    if packer.count == 0 {
        return Err(PackError::Empty {
            path: folder.to_owned(),
        });
    }
    let failed = |cause| failure(folder, folder, cause);
    let Hashed { to: gzip, hasher } = packer.tar.into_inner().map_err(failed)?;
    let packed = gzip.finish().map_err(failed)?.bytes;
    Ok(Layer {
        digest: Digest::of(&packed),
        diff_id: hasher.finish(),
        bytes: packed,
    })
}

struct Packer<'a> {
    tar: Builder<Hashed<GzEncoder<Room>>>,
    folder: &'a Path,
    count: usize,
}

impl Packer<'_> {
    /// A folder comes before what is in it. `name` is relative to the layer's folder.
    fn add_content(&mut self, name: &Path) -> Result<(), PackError> {
        let path = self.folder.join(name);
        let unreadable = |cause| PackError::Unreadable {
            path: path.clone(),
            cause,
        };
        let entries = fs::read_dir(&path).map_err(unreadable)?;
        let names = entries.map(|entry| Ok(entry?.file_name()));
        let mut names = names.collect::<io::Result<Vec<_>>>().map_err(unreadable)?;
        names.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
        for entry in names {
            self.add(&name.join(entry))?;
        }
        Ok(())
    }

    fn add(&mut self, name: &Path) -> Result<(), PackError> {
        let path = self.folder.join(name);
        let unreadable = |cause| PackError::Unreadable {
            path: path.clone(),
            cause,
        };
        self.count += 1;
        let metadata = fs::symlink_metadata(&path).map_err(unreadable)?;
        let failed = |cause| failure(self.folder, &path, cause);
        if metadata.is_dir() {
            let mut header = header(EntryType::Directory, metadata.permissions().mode(), 0);
            let added = self.tar.append_data(&mut header, name, io::empty());
            added.map_err(failed)?;
            return self.add_content(name);
        }
        if metadata.is_symlink() {
            let target = fs::read_link(&path).map_err(unreadable)?;
            let mut header = header(EntryType::Symlink, 0o777, 0);
            let added = self.tar.append_link(&mut header, name, target);
            return added.map_err(failed);
        }
        if !metadata.is_file() {
            return Err(PackError::OddFile { path });
        }
        let file = fs::File::open(&path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        let (mode, size) = (metadata.permissions().mode(), metadata.len());
        let mut header = header(EntryType::Regular, mode, size);
        // What has grown since is left out; what has shrunk would break the tar.
        let mut content = file.take(size);
        let added = self.tar.append_data(&mut header, name, &mut content);
        added.map_err(failed)?;
        match content.limit() {
            0 => Ok(()),
            _ => Err(PackError::Changed { path }),
        }
    }
}

/// Times and owners are zero.
fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    const PERMISSIONS: u32 = 0o7777;
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode & PERMISSIONS);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn failure(folder: &Path, path: &Path, cause: io::Error) -> PackError {
    match cause.get_ref().and_then(|cause| cause.downcast_ref()) {
        Some(Full { most }) => PackError::TooLarge {
            path: folder.to_owned(),
            most: *most,
        },
        None => PackError::Unreadable {
            path: path.to_owned(),
            cause,
        },
    }
}

struct Hashed<W> {
    to: W,
    hasher: Hasher,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.hasher.update(bytes.get(..count).unwrap_or_default());
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// So that a folder by mistake, like `/`, ends early.
struct Room {
    bytes: Vec<u8>,
    left: u64,
    most: ByteSize,
}

#[derive(Debug)]
struct Full {
    most: ByteSize,
}

impl fmt::Display for Full {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("there is no room for more")
    }
}

impl std::error::Error for Full {}

impl Write for Room {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.left.checked_sub(bytes.len() as u64);
        let most = self.most;
        self.left = left.ok_or_else(|| io::Error::other(Full { most }))?;
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::{fs::symlink, net::UnixListener},
        process::Command,
        time::SystemTime,
    };

    use flate2::read::GzDecoder;

    use super::*;
    use crate::units::MIB;

    const ROOM: u64 = 10 * MIB;
    const MOST: ByteSize = ByteSize::mib(10);

    fn write(path: PathBuf, content: &[u8], mode: u32) {
        fs::write(&path, content).expect("a writable folder");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("our own file");
    }

    fn long_name() -> String {
        "long-".repeat(40)
    }

    /// Files are made in the order of `names`.
    fn sample(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let root = folder.path();
        fs::create_dir(root.join("bin")).expect("a writable folder");
        for name in names {
            write(root.join("bin").join(name), name.as_bytes(), 0o755);
        }
        write(root.join("empty"), b"", 0o600);
        write(root.join(long_name()), b"long", 0o644);
        symlink("tool", root.join("bin/link")).expect("a writable folder");
        for (name, target) in [
            ("long-link", long_name().as_str()),
            ("dotted", "./bin/../bin/tool"),
            ("absolute", "/usr/bin/env"),
        ] {
            symlink(target, root.join(name)).expect("a writable folder");
        }
        folder
    }

    fn unpacked(layer: &Layer) -> (Vec<u8>, Vec<u8>) {
        let mut tar = Vec::new();
        let mut decoder = GzDecoder::new(layer.bytes.as_slice());
        decoder.read_to_end(&mut tar).expect("gzip");
        (layer.bytes.clone(), tar)
    }

    #[test]
    fn what_is_said_of_a_layer_is_true() {
        let folder = sample(&["tool"]);
        let layer = pack(folder.path(), ROOM, MOST).expect("a good folder");
        let (packed, tar) = unpacked(&layer);
        assert_eq!(layer.digest, Digest::of(&packed));
        assert_eq!(layer.diff_id, Digest::of(&tar));
    }

    #[test]
    fn tar_unpacks_it_to_what_it_was() {
        let folder = sample(&["tool", "another"]);
        let layer = pack(folder.path(), ROOM, MOST).expect("a good folder");
        let (packed, _) = unpacked(&layer);
        let to = tempfile::tempdir().expect("a temporary folder");
        let file = to.path().join("layer.tar.gz");
        fs::write(&file, packed).expect("a writable folder");
        let listed = Command::new("tar").arg("-tzvf").arg(&file).output();
        let listed = listed.expect("every Linux has tar");
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(listed.status.success(), "{listed:?}");
        for line in text.lines() {
            assert!(
                line.contains(" 0/0 ") && line.contains(" 1970-01-01 "),
                "{line}"
            );
        }
        let unpacked = Command::new("tar")
            .arg("-xpzf")
            .arg(&file)
            .arg("--no-same-owner")
            .arg("-C")
            .arg(to.path())
            .output();
        assert!(unpacked.expect("every Linux has tar").status.success());
        fs::remove_file(&file).expect("our own file");
        let same = Command::new("diff")
            .args(["-r", "--no-dereference"])
            .args([folder.path(), to.path()])
            .output();
        let same = same.expect("every Linux has diff");
        assert!(same.status.success(), "{same:?}");
        for (name, mode) in [("bin/tool", 0o755), ("empty", 0o600)] {
            let metadata = fs::metadata(to.path().join(name)).expect("it was unpacked");
            assert_eq!(metadata.permissions().mode() & 0o7777, mode, "{name}");
        }
    }

    #[test]
    fn the_same_files_are_the_same_layer() {
        let first = sample(&["tool", "another", "third"]);
        let second = sample(&["third", "another", "tool"]);
        let file = fs::File::options()
            .append(true)
            .open(second.path().join("empty"));
        let file = file.expect("our own file");
        file.set_modified(SystemTime::UNIX_EPOCH)
            .expect("our own file");
        let layers = [&first, &second].map(|folder| pack(folder.path(), ROOM, MOST).expect("good"));
        assert_eq!(layers[0], layers[1]);
        write(second.path().join("empty"), b"!", 0o600);
        assert_ne!(pack(second.path(), ROOM, MOST).expect("good"), layers[0]);
        write(first.path().join("empty"), b"", 0o700);
        let changed = pack(first.path(), ROOM, MOST).expect("good");
        assert_ne!(changed, layers[0], "the mode is part of it");
    }

    #[test]
    fn what_can_be_no_layer_is_named() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let root = folder.path();
        let error = |path: &Path, room| pack(path, room, MOST).expect_err("no layer").to_string();
        assert!(error(root, ROOM).contains("empty"));
        assert!(error(&root.join("none"), ROOM).contains("none: "));
        // What does not compress.
        let noise: Vec<u8> = (0..64_u64)
            .flat_map(|number| Digest::of(&number.to_le_bytes()).as_bytes().to_vec())
            .collect();
        write(root.join("noise"), &noise, 0o644);
        assert!(error(&root.join("noise"), ROOM).contains("no folder"));
        let message = error(root, 1000);
        assert!(message.contains("more than 10MiB"), "{message}");
        assert!(pack(root, 10_000, MOST).is_ok());
        let _socket = UnixListener::bind(root.join("socket")).expect("a writable folder");
        assert!(error(root, ROOM).contains("socket is neither"));
    }
}
