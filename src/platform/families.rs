//! Token families: an access token as its owner gave it, and those that followed it.
//!
//! A family is named by its endpoint and *original* access token, for as long as the container requests that were made with
//! it live; what follows is found under that name. Followers are on disk, sealed, before they are used: the Platform may take a
//! refresh token only once. One file each in `platform-tokens/` of the state folder:
//!
//! ```text
//! <SHA-256 of endpoint, NUL, access token>      {"version":1,"access_token":<sealed>,"refresh_token":<sealed>}
//! ```
//! When the Platform says that a family is good for nothing, it is *withdrawn*: whatever somebody remembers of its answers
//! says through the `Family` that it must not be used any more.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    blocking::lock,
    seal::{SealError, SealingKey, write_private},
    secret::Secret,
};

const FILE_VERSION: u32 = 1;
/// Longer than any container request lives. A Platform's refresh tokens do not live longer either.
const RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);
/// About 300 bytes each.
const MOST: usize = if cfg!(test) { 4 } else { 16_384 };
/// Who keeps pulling with a withdrawn token does not make us ask the Platform each time.
const REFUSAL_AGE: Duration = Duration::from_secs(10);

/// A caller's place at a Platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub endpoint: String,
    pub access_token: Secret<String>,
    pub refresh_token: Option<Secret<String>>,
}

/// Tells nothing of the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FamilyId([u8; 32]);

impl FamilyId {
    pub fn of(endpoint: &str, access_token: &Secret<String>) -> Self {
        let mut hash = Sha256::new();
        hash.update(endpoint.as_bytes());
        hash.update([0]);
        hash.update(access_token.expose().as_bytes());
        Self(hash.finalize().into())
    }

    fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What to show the Platform at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tokens {
    pub access: Secret<String>,
    pub refresh: Option<Secret<String>>,
}

#[derive(Debug)]
pub struct Family {
    id: FamilyId,
    is_withdrawn: AtomicBool,
    state: Mutex<State>,
    refreshed: Condvar,
}

#[derive(Debug)]
struct State {
    tokens: Tokens,
    is_refreshing: bool,
}

impl Family {
    /// What was learnt with its tokens must not be used any more.
    pub fn is_withdrawn(&self) -> bool {
        // Who reads it has no other data that this orders: `Relaxed` is seen soon enough.
        self.is_withdrawn.load(Ordering::Relaxed)
    }

    pub(super) fn tokens(&self) -> Tokens {
        lock(&self.state).tokens.clone()
    }

    /// Who came first may have had none.
    fn take_refresh_token(&self, session: &Session) {
        let tokens = &mut lock(&self.state).tokens;
        if tokens.refresh.is_none() && tokens.access == session.access_token {
            tokens.refresh.clone_from(&session.refresh_token);
        }
    }

    fn new(id: FamilyId, tokens: Tokens) -> Arc<Self> {
        Arc::new(Self {
            id,
            is_withdrawn: AtomicBool::new(false),
            state: Mutex::new(State {
                tokens,
                is_refreshing: false,
            }),
            refreshed: Condvar::new(),
        })
    }

    #[cfg(test)]
    pub(crate) fn of_nobody() -> Arc<Self> {
        let access = Secret::new(String::new());
        let tokens = Tokens {
            access: access.clone(),
            refresh: None,
        };
        Self::new(FamilyId::of("", &access), tokens)
    }

    #[cfg(test)]
    pub(crate) fn withdraw_for_tests(&self) {
        self.is_withdrawn.store(true, Ordering::Relaxed);
    }
}

/// How a refresh ended, for all who wait for it.
#[derive(Debug)]
pub(super) enum Turn<'f> {
    /// Somebody else has refreshed them meanwhile.
    Refreshed(Tokens),
    /// Ours to do. Others wait until this is dropped.
    Ours(Refreshing<'f>),
    /// The other one took too long.
    TimedOut,
}

#[derive(Debug)]
pub(super) struct Refreshing<'f>(&'f Family);

impl Drop for Refreshing<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).is_refreshing = false;
        self.0.refreshed.notify_all();
    }
}

/// One for the process.
pub(super) struct Families {
    folder: PathBuf,
    sealing: Arc<SealingKey>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    families: HashMap<FamilyId, Arc<Family>>,
    /// The Platform refused them a moment ago.
    refused: HashMap<FamilyId, Instant>,
}

impl Families {
    pub(super) fn open(
        state_directory: &Path,
        sealing: Arc<SealingKey>,
    ) -> Result<Self, SealError> {
        let folder = state_directory.join("platform-tokens");
        let failed = |cause| SealError::File {
            path: folder.clone(),
            cause,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(failed)?;
        Ok(Self {
            folder,
            sealing,
            known: Mutex::default(),
        })
    }

    /// Not `None`, unless the Platform has just refused it.
    pub(super) fn family(&self, session: &Session, now: Instant) -> Option<Arc<Family>> {
        let id = FamilyId::of(&session.endpoint, &session.access_token);
        if let Some(known) = self.known(&id, now) {
            return known.inspect(|family| family.take_refresh_token(session));
        }
        // Without the lock: it is a file.
        let tokens = self.load(&id).unwrap_or_else(|| Tokens {
            access: session.access_token.clone(),
            refresh: session.refresh_token.clone(),
        });
        let family = Family::new(id, tokens);
        let mut known = lock(&self.known);
        if known.families.len() >= MOST {
            // Of most callers nothing is remembered: who only guesses tokens takes no room from others.
            known
                .families
                .retain(|_, family| Arc::strong_count(family) > 1);
        }
        if known.families.len() >= MOST {
            // All at once, so that nothing has to be known of their use. Costs a question for each that is.
            for (_, family) in known.families.drain() {
                family.is_withdrawn.store(true, Ordering::Relaxed);
            }
        }
        Some(Arc::clone(known.families.entry(id).or_insert(family)))
    }

    /// From memory only. `Some(None)`: it has just been refused.
    fn known(&self, id: &FamilyId, now: Instant) -> Option<Option<Arc<Family>>> {
        let mut known = lock(&self.known);
        if let Some(until) = known.refused.get(id) {
            if now < *until {
                return Some(None);
            }
            known.refused.remove(id);
        }
        known.families.get(id).cloned().map(Some)
    }

    /// The Platform wants nothing of it any more.
    pub(super) fn withdraw(&self, family: &Family, now: Instant) {
        family.is_withdrawn.store(true, Ordering::Relaxed);
        let mut known = lock(&self.known);
        known.families.remove(&family.id);
        if known.refused.len() >= MOST {
            known.refused.retain(|_, until| now < *until);
        }
        if known.refused.len() < MOST {
            known.refused.insert(family.id, now + REFUSAL_AGE);
        }
    }

    /// To refresh `stale`. One at a time for each family; who comes meanwhile waits for the outcome.
    pub(super) fn turn<'f>(
        &self,
        family: &'f Family,
        stale: &Tokens,
        deadline: Instant,
    ) -> Turn<'f> {
        let mut state = lock(&family.state);
        loop {
            if state.tokens.access != stale.access {
                return Turn::Refreshed(state.tokens.clone());
            }
            if !state.is_refreshing {
                state.is_refreshing = true;
                return Turn::Ours(Refreshing(family));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Turn::TimedOut;
            }
            let woken = family.refreshed.wait_timeout(state, left);
            (state, _) = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// On disk when it returns, if the disk lets us.
    pub(super) fn replace(&self, turn: &Refreshing<'_>, tokens: &Tokens) {
        let family = turn.0;
        if let Err(error) = self.save(&family.id, tokens) {
            tracing::error!(%error, folder = %self.folder.display(),
                "refreshed Platform tokens cannot be kept; after a restart their owners have to submit anew");
        }
        lock(&family.state).tokens = tokens.clone();
    }

    /// Forgets on disk what no container request can need any more.
    pub(super) fn purge(&self, now: SystemTime) -> io::Result<usize> {
        let mut count = 0;
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let age = entry.metadata()?.modified().ok();
            let age = age.and_then(|modified| now.duration_since(modified).ok());
            if age.is_some_and(|age| age > RETENTION) {
                fs::remove_file(entry.path())?;
                count += 1;
            }
        }
        Ok(count)
    }

    /// What cannot be read is as good as absent: the caller's own tokens are tried then.
    fn load(&self, id: &FamilyId) -> Option<Tokens> {
        let name = id.hex();
        let bytes = fs::read(self.folder.join(&name)).ok()?;
        let kept: Kept = serde_json::from_slice(&bytes).ok()?;
        if kept.version != FILE_VERSION {
            return None;
        }
        let unseal = |sealed: &str, what| self.sealing.unseal(sealed, &context(what, &name));
        let tokens = unseal(&kept.access_token, "access").ok();
        let Some(access) = tokens else {
            tracing::warn!(file = %self.folder.join(&name).display(),
                "refreshed Platform tokens were sealed with another seal.key; they are not used");
            return None;
        };
        let refresh = kept.refresh_token.as_deref();
        Some(Tokens {
            access,
            refresh: refresh.and_then(|sealed| unseal(sealed, "refresh").ok()),
        })
    }

    fn save(&self, id: &FamilyId, tokens: &Tokens) -> io::Result<()> {
        let name = id.hex();
        let seal = |secret, what| self.sealing.seal(secret, &context(what, &name));
        let kept = Kept {
            version: FILE_VERSION,
            access_token: seal(&tokens.access, "access"),
            refresh_token: tokens.refresh.as_ref().map(|it| seal(it, "refresh")),
        };
        let bytes = serde_json::to_vec(&kept).expect("texts are always JSON");
        write_private(&self.folder.join(&name), &bytes)
    }
}

#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    access_token: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refresh_token: Option<String>,
}

/// A seal fits its own file and place only.
fn context(what: &str, name: &str) -> String {
    format!("platform {what} token {name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret<String> {
        Secret::new(text.to_owned())
    }

    fn session(access_token: &str) -> Session {
        Session {
            endpoint: "https://platform.example.com/api".to_owned(),
            access_token: secret(access_token),
            refresh_token: Some(secret("refresh-1")),
        }
    }

    fn open(folder: &Path) -> Families {
        let sealing = SealingKey::load_or_create(&folder.join("seal.key"))
            .unwrap_or_else(|error| panic!("{error}"));
        Families::open(folder, Arc::new(sealing)).unwrap_or_else(|error| panic!("{error}"))
    }

    fn family(families: &Families, access_token: &str) -> Arc<Family> {
        families
            .family(&session(access_token), Instant::now())
            .expect("it was not refused")
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn refreshed_tokens_survive_a_restart_sealed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let families = open(folder.path());
        let first = family(&families, "access-1");
        let stale = first.tokens();
        assert_eq!(stale.access, secret("access-1"));
        let fresh = Tokens {
            access: secret("access-2"),
            refresh: Some(secret("refresh-2")),
        };
        {
            let Turn::Ours(turn) = families.turn(&first, &stale, soon()) else {
                panic!("nobody else refreshes");
            };
            families.replace(&turn, &fresh);
        }
        assert!(
            matches!(families.turn(&first, &stale, soon()), Turn::Refreshed(tokens) if tokens == fresh)
        );
        let again = family(&open(folder.path()), "access-1");
        assert_eq!(again.tokens(), fresh);
        for entry in fs::read_dir(folder.path().join("platform-tokens")).expect("it is there") {
            let content = fs::read_to_string(entry.expect("a file").path()).expect("a text");
            for token in ["access-1", "access-2", "refresh-2"] {
                assert!(!content.contains(token), "{content}");
            }
        }
        let later = SystemTime::now() + RETENTION + Duration::from_secs(60);
        assert_eq!(families.purge(SystemTime::now()).ok(), Some(0));
        assert_eq!(families.purge(later).ok(), Some(1));
        assert_eq!(
            family(&open(folder.path()), "access-1").tokens().access,
            secret("access-1")
        );
    }

    #[test]
    fn one_refreshes_and_the_others_wait_for_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let families = open(folder.path());
        let family = family(&families, "access-1");
        let stale = family.tokens();
        let Turn::Ours(ours) = families.turn(&family, &stale, soon()) else {
            panic!("nobody else refreshes");
        };
        assert!(matches!(
            families.turn(&family, &stale, Instant::now()),
            Turn::TimedOut
        ));
        std::thread::scope(|scope| {
            let waiting: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| families.turn(&family, &stale, soon())))
                .collect();
            let fresh = Tokens {
                access: secret("access-2"),
                refresh: None,
            };
            families.replace(&ours, &fresh);
            drop(ours);
            for turn in waiting {
                let turn = turn.join().expect("no panic");
                assert!(matches!(turn, Turn::Refreshed(tokens) if tokens == fresh));
            }
        });
    }

    #[test]
    fn a_withdrawn_family_takes_along_what_was_learnt_with_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let families = open(folder.path());
        let now = Instant::now();
        let first = family(&families, "access-1");
        families.withdraw(&first, now);
        assert!(first.is_withdrawn());
        assert!(families.family(&session("access-1"), now).is_none());
        let later = families.family(&session("access-1"), now + REFUSAL_AGE);
        assert!(later.is_some_and(|family| !family.is_withdrawn()));
    }

    #[test]
    fn who_is_forgotten_for_lack_of_room_is_withdrawn() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let families = open(folder.path());
        let first = family(&families, "access-0");
        for number in 1..=10 * MOST {
            family(&families, &format!("guess-{number}"));
        }
        // Nobody remembers anything of those.
        assert!(!first.is_withdrawn());
        let others: Vec<_> = (1..=MOST)
            .map(|number| family(&families, &format!("access-{number}")))
            .collect();
        assert!(first.is_withdrawn());
        assert!(others.last().is_some_and(|last| !last.is_withdrawn()));
        assert!(!family(&families, "access-0").is_withdrawn());
    }

    #[test]
    fn a_family_is_of_one_endpoint_and_one_token() {
        let of = |endpoint: &str, token: &str| FamilyId::of(endpoint, &secret(token));
        assert_eq!(of("https://a", "t"), of("https://a", "t"));
        assert_ne!(of("https://a", "t"), of("https://a/", "t"));
        assert_ne!(of("https://a", "t"), of("https://a", "u"));
    }
}
