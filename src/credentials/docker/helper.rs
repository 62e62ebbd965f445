//! Docker's credential helpers: programs that print a login (`docker-credential-NAME get`).
//!
//! They may hang, print a great deal, and leave other programs behind: each is ended at its deadline, with what it has
//! started. Nothing that it prints gets into a message, since it may be a secret.

use std::{
    collections::{HashMap, hash_map::Entry},
    io::{self, Read as _, Write as _},
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, mpsc},
    thread,
    time::{Duration, Instant},
};

use serde::Deserialize;
use zeroize::Zeroizing;

use super::config_file::{HelperCall, TOKEN_USER};
use crate::{oci::Credentials, secret::Secret, sys, units::HumanDuration};

/// Some logins are whole key files.
const LARGEST_ANSWER: u64 = 128 << 10;
/// Until a login that a helper did not have, or a helper that failed, is asked for again.
const REFUSAL_AGE: Duration = Duration::from_secs(30);
/// A login that its registry refused is asked for again, unless it is younger: those who are refused may be many.
const YOUNG: Duration = Duration::from_secs(5);
/// How long a login is used whose helper fails since. A guess: tokens that helpers make live for an hour or more.
const LONGEST_STALE: Duration = Duration::from_secs(1800);
/// Anybody can ask for any registry.
const MOST_KEPT: usize = 1024;

#[derive(Debug, thiserror::Error)]
enum HelperError {
    #[error("it cannot be started: {0}")]
    Start(io::Error),
    #[error("it has not answered within {}", humantime::format_duration(*.0))]
    Silent(Duration),
    #[error("it printed more than {} KiB", LARGEST_ANSWER >> 10)]
    TooMuch,
    #[error("it printed no login")]
    NoLogin,
    #[error("its login cannot be used: the user name has a colon, or the password is empty")]
    Unusable,
}

/// What helpers said, for a while. One call of each is under way at a time.
pub(super) struct Helpers {
    timeout: Duration,
    age: Duration,
    kept: Mutex<HashMap<HelperCall, Arc<Mutex<Option<Kept>>>>>,
    /// By program, so that each trouble is told once.
    troubles: Mutex<HashMap<String, String>>,
}

struct Kept {
    login: Option<Credentials>,
    until: Instant,
    /// When the helper said it.
    since: Instant,
}

impl Helpers {
    pub(super) fn new(timeout: HumanDuration, age: HumanDuration) -> Self {
        Self {
            timeout: *timeout,
            age: *age,
            kept: Mutex::default(),
            troubles: Mutex::default(),
        }
    }

    /// What is known without asking; `None` if nothing is.
    pub(super) fn recall(&self, call: &HelperCall) -> Option<Option<Credentials>> {
        let slot = Arc::clone(lock(&self.kept).get(call)?);
        let kept = match slot.try_lock() {
            Ok(kept) => kept,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // It is being asked.
            Err(TryLockError::WouldBlock) => return None,
        };
        let kept = kept.as_ref().filter(|kept| Instant::now() < kept.until)?;
        Some(kept.login.clone())
    }

    /// Asks, or waits for whoever does. A helper that fails is one without a login, and the log says why.
    pub(super) fn find(&self, call: &HelperCall) -> Option<Credentials> {
        let slot = self.slot(call);
        let mut kept = lock(&slot);
        let now = Instant::now();
        if let Some(kept) = kept.as_ref().filter(|kept| now < kept.until) {
            return kept.login.clone();
        }
        let next = match ask(call, self.timeout) {
            Ok(login) => {
                self.note_trouble(call, None);
                let age = match login {
                    Some(_) => self.age,
                    None => self.age.min(REFUSAL_AGE),
                };
                Kept {
                    login,
                    until: Instant::now() + age,
                    since: now,
                }
            }
            Err(error) => {
                self.note_trouble(call, Some(&error));
                let old = kept.take().filter(|kept| now < kept.since + LONGEST_STALE);
                Kept {
                    since: old.as_ref().map_or(now, |kept| kept.since),
                    login: old.and_then(|kept| kept.login),
                    until: Instant::now() + REFUSAL_AGE,
                }
            }
        };
        kept.insert(next).login.clone()
    }

    /// A registry has refused what the helper said. Whether it may say something else by now; it is asked then.
    pub(super) fn doubt(&self, call: &HelperCall) -> bool {
        let Some(slot) = lock(&self.kept).get(call).cloned() else {
            return false;
        };
        // If it is being asked, the answer may be another.
        let Ok(mut kept) = slot.try_lock() else {
            return true;
        };
        let now = Instant::now();
        match kept.as_mut() {
            Some(kept) if kept.login.is_some() && now >= kept.since + YOUNG => {
                kept.until = now;
                true
            }
            _ => false,
        }
    }

    /// All of them are asked again.
    pub(super) fn forget(&self) {
        lock(&self.kept).clear();
    }

    fn slot(&self, call: &HelperCall) -> Arc<Mutex<Option<Kept>>> {
        let mut all = lock(&self.kept);
        if all.len() >= MOST_KEPT && !all.contains_key(call) {
            let now = Instant::now();
            all.retain(|_, slot| match slot.try_lock() {
                Ok(kept) => kept.as_ref().is_some_and(|kept| now < kept.until),
                Err(_) => true,
            });
            if all.len() >= MOST_KEPT {
                all.clear();
            }
        }
        Arc::clone(all.entry(call.clone()).or_default())
    }

    fn note_trouble(&self, call: &HelperCall, error: Option<&HelperError>) {
        let program = call.helper.program();
        let mut troubles = lock(&self.troubles);
        let Some(error) = error else {
            troubles.remove(&program);
            return;
        };
        let text = error.to_string();
        let is_new = match troubles.entry(program) {
            Entry::Occupied(mut known) if *known.get() != text => {
                known.insert(text);
                true
            }
            Entry::Occupied(_) => false,
            Entry::Vacant(place) => {
                place.insert(text);
                true
            }
        };
        if is_new {
            tracing::warn!(
                "{call} gives no login: {error}; look at its own settings, or take it out of the files of \
                 docker.config_files"
            );
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Printed {
    username: String,
    secret: Secret<String>,
}

/// `None`: the helper works, and has no such login.
fn ask(call: &HelperCall, patience: Duration) -> Result<Option<Credentials>, HelperError> {
    let printed = run(call, patience)?;
    if printed.len() as u64 > LARGEST_ANSWER {
        return Err(HelperError::TooMuch);
    }
    // Its exit code says no more than this.
    let Ok(login) = serde_json::from_slice::<Printed>(&printed) else {
        let is_missing = str::from_utf8(&printed)
            .is_ok_and(|text| text.contains("credentials not found in native keychain"));
        return match is_missing {
            true => Ok(None),
            false => Err(HelperError::NoLogin),
        };
    };
    let is_usable = !login.username.contains(':') && !login.secret.expose().is_empty();
    match login {
        _ if !is_usable => Err(HelperError::Unusable),
        Printed { username, secret } if username == TOKEN_USER || username.is_empty() => {
            Ok(Some(Credentials::of_refresh_token(secret)))
        }
        Printed { username, secret } => Ok(Some(Credentials {
            username,
            password: secret,
        })),
    }
}

/// All that it prints, up to a little more than is good.
fn run(call: &HelperCall, patience: Duration) -> Result<Zeroizing<Vec<u8>>, HelperError> {
    let mut child = Command::new(call.helper.program())
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // It tells people things, of which some are secrets.
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(HelperError::Start)?;
    if let Some(mut input) = child.stdin.take() {
        // One that does not listen is judged by what it prints.
        let _ = input.write_all(call.server.as_bytes());
    }
    let (sender, printed) = mpsc::channel();
    let output = child.stdout.take();
    // It ends with the last process that could still print.
    let reader = thread::Builder::new().name("helper".to_owned());
    let started = reader.spawn(move || {
        let mut bytes = Zeroizing::new(Vec::with_capacity(8 << 10));
        if let Some(output) = output {
            let _ = output.take(LARGEST_ANSWER + 1).read_to_end(&mut bytes);
        }
        let _ = sender.send(bytes);
    });
    let answer = match started {
        Ok(_) => printed
            .recv_timeout(patience)
            .map_err(|_| HelperError::Silent(patience)),
        Err(error) => Err(HelperError::Start(error)),
    };
    // Whoever has closed his output has said all that he had to say.
    let _ = sys::kill_group(&child);
    let _ = child.wait();
    answer
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
