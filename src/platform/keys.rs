//! Key records: the key pairs for which Platforms encrypt the logins that we ask them for.
//!
//! `pairing.keys` in the state folder, replaced as a whole:
//!
//! ```text
//! {"version":1,"records":[{"endpoint":…,"pairing_id":"161028477311234","created":<Unix seconds>,
//!                          "private_key":<sealed PKCS#8>,"license_token":<sealed>},…]}        oldest first
//! ```
//! A Platform gets the newest record of its endpoint each time it connects, a new one if that is older than the lease. The
//! former ones are kept and still decrypt: whoever was told the old pairing id may still use it. A record is on disk before
//! its Platform hears of it, because what was encrypted for a lost key is lost too.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{
    Options,
    packet::{PacketError, PrivateKey},
};
use crate::{
    blocking::lock,
    seal::{SealError, SealingKey, ensure_private, write_private},
    secret::Secret,
};

const FILE_NAME: &str = "pairing.keys";
const FILE_VERSION: u32 = 1;
/// Thousands of records, and one more to see that it is too large.
const LARGEST_FILE: u64 = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error(transparent)]
    File(#[from] SealError),
    #[error("{} holds no pairing keys, or is damaged: {cause}; remove it, and Platforms pair anew when they reconnect", path.display())]
    Malformed { path: PathBuf, cause: String },
    #[error(
        "{} was sealed with another seal.key; restore that, or remove {}, and Platforms pair anew when they reconnect",
        path.display(), path.display()
    )]
    WrongKey { path: PathBuf },
}

/// What a Platform is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicRecord {
    pub pairing_id: String,
    /// X.509 SubjectPublicKeyInfo in standard Base64.
    pub public_key: String,
}

/// One for the process.
pub struct KeyRecords {
    path: PathBuf,
    sealing: Arc<SealingKey>,
    lease: Duration,
    retention: Duration,
    /// Oldest first.
    records: Mutex<Vec<Arc<Record>>>,
    /// Held while a key is made, so that two sockets that open at once get the same one.
    generating: Mutex<()>,
}

#[derive(Clone)]
struct Record {
    endpoint: String,
    public: PublicRecord,
    private_key: PrivateKey,
    /// Of the Platform that connected last.
    license_token: Secret<String>,
    created: SystemTime,
}

impl KeyRecords {
    /// `sealing` is the state folder's own key.
    pub fn open(
        state_directory: &Path,
        sealing: Arc<SealingKey>,
        options: &Options,
    ) -> Result<Self, KeysError> {
        let path = state_directory.join(FILE_NAME);
        let records = load(&path, &sealing)?;
        Ok(Self {
            path,
            sealing,
            lease: *options.key_lease,
            retention: *options.key_retention,
            records: Mutex::new(records.into_iter().map(Arc::new).collect()),
            generating: Mutex::new(()),
        })
    }

    /// The current one, for which the Platform is to encrypt. `None`: it has never paired, or too long ago.
    pub fn pairing_id(&self, endpoint: &str) -> Option<String> {
        let record = self.newest(endpoint, SystemTime::now())?;
        Some(record.public.pairing_id.clone())
    }

    /// Tries the endpoint's keys, newest first: the packet does not say whose it is.
    pub fn decrypt(&self, endpoint: &str, packet: &str) -> Result<Secret<String>, PacketError> {
        let now = SystemTime::now();
        let records: Vec<_> = lock(&self.records)
            .iter()
            .rev()
            .filter(|record| record.endpoint == endpoint && self.is_kept(record, now))
            .map(Arc::clone)
            .collect();
        let mut opened = records
            .iter()
            .filter_map(|record| record.private_key.decrypt(packet).ok());
        opened.next().ok_or(PacketError)
    }

    /// For a Platform that connects. Makes a key where there is none within its lease, which takes its time.
    pub(super) fn acquire(
        &self,
        endpoint: &str,
        license_token: &Secret<String>,
    ) -> Result<PublicRecord, KeysError> {
        self.acquire_at(endpoint, license_token, SystemTime::now())
    }

    fn acquire_at(
        &self,
        endpoint: &str,
        license_token: &Secret<String>,
        now: SystemTime,
    ) -> Result<PublicRecord, KeysError> {
        let _generating = lock(&self.generating);
        let current = self
            .newest(endpoint, now)
            .filter(|record| age(record, now) < self.lease);
        let record = match current {
            Some(record) if record.license_token == *license_token => {
                return Ok(record.public.clone());
            }
            Some(record) => Record {
                license_token: license_token.clone(),
                ..(*record).clone()
            },
            None => Record::new(endpoint, license_token.clone(), now),
        };
        let public = record.public.clone();
        let mut records = lock(&self.records).clone();
        records.retain(|other| {
            self.is_kept(other, now) && other.public.pairing_id != public.pairing_id
        });
        records.push(Arc::new(record));
        save(&self.path, &self.sealing, &records)?;
        *lock(&self.records) = records;
        Ok(public)
    }

    /// Whether the endpoint has a key with which we can read what its Platform sends.
    pub(super) fn has_record(&self, endpoint: &str) -> bool {
        self.newest(endpoint, SystemTime::now()).is_some()
    }

    fn newest(&self, endpoint: &str, now: SystemTime) -> Option<Arc<Record>> {
        let records = lock(&self.records);
        let mut newest_first = records.iter().rev();
        let record = newest_first.find(|record| record.endpoint == endpoint)?;
        self.is_kept(record, now).then(|| Arc::clone(record))
    }

    fn is_kept(&self, record: &Record, now: SystemTime) -> bool {
        age(record, now) < self.retention
    }
}

/// A clock that was set back makes a record young, not unusable.
fn age(record: &Record, now: SystemTime) -> Duration {
    now.duration_since(record.created).unwrap_or_default()
}

impl Record {
    fn new(endpoint: &str, license_token: Secret<String>, now: SystemTime) -> Self {
        let private_key = PrivateKey::generate();
        Self {
            endpoint: endpoint.to_owned(),
            public: PublicRecord {
                pairing_id: random_pairing_id(),
                public_key: private_key.public_key(),
            },
            private_key,
            license_token,
            created: now,
        }
    }
}

/// A random number of 48 bits, in decimal.
fn random_pairing_id() -> String {
    let mut bytes = [0; 8];
    let (_, random) = bytes.split_at_mut(2);
    SystemRandom::new()
        .fill(random)
        .expect("the system has a random generator");
    u64::from_be_bytes(bytes).to_string()
}

#[derive(Serialize, Deserialize)]
struct FileContent {
    version: u32,
    records: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    endpoint: String,
    pairing_id: String,
    created: u64,
    private_key: String,
    license_token: String,
}

fn load(path: &Path, sealing: &SealingKey) -> Result<Vec<Record>, KeysError> {
    let failed = |cause| SealError::File {
        path: path.to_owned(),
        cause,
    };
    let malformed = |cause: &dyn ToString| KeysError::Malformed {
        path: path.to_owned(),
        cause: cause.to_string(),
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error).into()),
    };
    ensure_private(&file, path)?;
    let mut text = String::new();
    file.take(LARGEST_FILE)
        .read_to_string(&mut text)
        .map_err(failed)?;
    let content: FileContent = serde_json::from_str(&text).map_err(|error| malformed(&error))?;
    if content.version != FILE_VERSION {
        return Err(malformed(&format_args!(
            "its version is {}, not {FILE_VERSION}",
            content.version
        )));
    }
    let mut records = Vec::new();
    for entry in content.records {
        let unseal = |sealed: &str, what| sealing.unseal(sealed, &entry.context(what));
        let (Ok(private_key), Ok(license_token)) = (
            unseal(&entry.private_key, "private key"),
            unseal(&entry.license_token, "license token"),
        ) else {
            return Err(KeysError::WrongKey {
                path: path.to_owned(),
            });
        };
        let der = STANDARD.decode(private_key.expose()).map(Zeroizing::new);
        let private_key = der.ok().and_then(|der| PrivateKey::from_pkcs8(&der));
        let private_key =
            private_key.ok_or_else(|| malformed(&"a private key is no RSA key in PKCS#8"))?;
        records.push(Record {
            public: PublicRecord {
                pairing_id: entry.pairing_id,
                public_key: private_key.public_key(),
            },
            endpoint: entry.endpoint,
            private_key,
            license_token,
            created: UNIX_EPOCH + Duration::from_secs(entry.created),
        });
    }
    Ok(records)
}

fn save(path: &Path, sealing: &SealingKey, records: &[Arc<Record>]) -> Result<(), KeysError> {
    let records = records.iter().map(|record| {
        let since_epoch = record.created.duration_since(UNIX_EPOCH);
        let mut entry = Entry {
            endpoint: record.endpoint.clone(),
            pairing_id: record.public.pairing_id.clone(),
            created: since_epoch.unwrap_or_default().as_secs(),
            private_key: String::new(),
            license_token: String::new(),
        };
        let private_key = record.private_key.to_pkcs8();
        entry.private_key = sealing.seal(&private_key, &entry.context("private key"));
        entry.license_token = sealing.seal(&record.license_token, &entry.context("license token"));
        entry
    });
    let content = FileContent {
        version: FILE_VERSION,
        records: records.collect(),
    };
    let bytes = serde_json::to_vec(&content).expect("text and numbers can be written");
    write_private(path, &bytes).map_err(|cause| {
        let path = path.to_owned();
        SealError::File { path, cause }.into()
    })
}

impl Entry {
    /// A seal fits its own record and place only.
    fn context(&self, what: &str) -> String {
        format!("pairing {what} {} {}", self.pairing_id, self.endpoint)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const ENDPOINT: &str = "https://platform.example.com/api";
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn open(folder: &Path) -> Result<KeyRecords, KeysError> {
        let sealing = SealingKey::load_or_create(&folder.join("seal.key"))
            .unwrap_or_else(|error| panic!("{error}"));
        KeyRecords::open(folder, Arc::new(sealing), &Options::default())
    }

    fn opened(folder: &Path) -> KeyRecords {
        open(folder).unwrap_or_else(|error| panic!("{error}"))
    }

    fn acquire(keys: &KeyRecords, endpoint: &str, token: &str, now: SystemTime) -> PublicRecord {
        let token = Secret::new(token.to_owned());
        keys.acquire_at(endpoint, &token, now)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn a_record_is_the_endpoints_own_and_survives_a_restart() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let now = SystemTime::now();
        let keys = opened(folder.path());
        assert_eq!(keys.pairing_id(ENDPOINT), None);
        let record = acquire(&keys, ENDPOINT, "license-a", now);
        let id: u64 = record.pairing_id.parse().expect("a decimal number");
        assert!(id < 1 << 48, "{id}");
        assert_eq!(acquire(&keys, ENDPOINT, "license-a", now), record);
        assert_eq!(keys.pairing_id(&format!("{ENDPOINT}/")), None);
        let other = acquire(&keys, "https://other.example.com", "license-a", now);
        assert_ne!(other.public_key, record.public_key);
        drop(keys);
        let keys = opened(folder.path());
        assert_eq!(keys.pairing_id(ENDPOINT), Some(record.pairing_id.clone()));
        // Another license token changes nothing that the Platform sees.
        assert_eq!(acquire(&keys, ENDPOINT, "license-b", now), record);
        assert_eq!(
            acquire(&opened(folder.path()), ENDPOINT, "license-b", now),
            record
        );
    }

    #[test]
    fn a_record_past_its_lease_is_followed_and_still_decrypts() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let keys = opened(folder.path());
        let now = SystemTime::now();
        let (first_day, second_day) = (now - DAY * 2, now);
        let first = acquire(&keys, ENDPOINT, "license", first_day);
        let packet = |keys: &KeyRecords| {
            let record = keys.newest(ENDPOINT, now).expect("there is one");
            record.private_key.encrypt_for_tests("{}")
        };
        let for_first = packet(&keys);
        let second = acquire(&keys, ENDPOINT, "license", second_day);
        assert_ne!(first.pairing_id, second.pairing_id);
        assert_ne!(first.public_key, second.public_key);
        let for_second = packet(&keys);
        for keys in [keys, opened(folder.path())] {
            assert_eq!(keys.pairing_id(ENDPOINT), Some(second.pairing_id.clone()));
            for packet in [&for_first, &for_second] {
                let opened = keys.decrypt(ENDPOINT, packet).expect("either key is kept");
                assert_eq!(opened.expose(), "{}");
                assert!(keys.decrypt("https://other.example.com", packet).is_err());
            }
        }
    }

    #[test]
    fn a_record_ends_with_its_retention() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let keys = opened(folder.path());
        let now = SystemTime::now();
        acquire(&keys, ENDPOINT, "license", now - DAY * 30);
        assert_eq!(keys.pairing_id(ENDPOINT), None);
        assert!(!keys.has_record(ENDPOINT));
        let next = acquire(&keys, ENDPOINT, "license", now);
        assert_eq!(keys.pairing_id(ENDPOINT), Some(next.pairing_id));
        assert_eq!(lock(&keys.records).len(), 1);
    }

    #[test]
    fn what_is_on_disk_is_sealed_and_damage_is_named() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let keys = opened(folder.path());
        acquire(&keys, ENDPOINT, "license-token-of-ours", SystemTime::now());
        let path = folder.path().join(FILE_NAME);
        let text = fs::read_to_string(&path).expect("it was written");
        let private_key = lock(&keys.records)[0].private_key.to_pkcs8();
        for secret in ["license-token-of-ours", private_key.expose()] {
            assert!(!text.contains(secret));
        }
        let says = |text: &str, expected: &str| {
            fs::write(&path, text).expect("the folder is ours");
            let error = open(folder.path()).err();
            let error = error
                .unwrap_or_else(|| panic!("{text} was taken"))
                .to_string();
            assert!(error.contains(expected), "{text}: {error}");
            assert!(error.contains(FILE_NAME), "{error}");
        };
        says("", "damaged");
        says(r#"{"version":2,"records":[]}"#, "version is 2");
        says(
            &text.replace("platform.example", "attacker.example"),
            "seal.key",
        );
        says(&text[..text.len() - 1], "damaged");
        fs::write(&path, &text).expect("the folder is ours");
        assert!(open(folder.path()).is_ok());
    }
}
