//! Pairing: which Platforms have a socket open to us, and requests through those sockets.
//!
//! Whoever opens a socket for an endpoint is from then on sent the access tokens of that endpoint's users. So it must name
//! an endpoint that the operator has listed, and show a token that he has accepted for this endpoint.

use std::{
    collections::{HashMap, VecDeque},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ring::digest::{SHA256, digest};

use super::{
    KeyRecords, Options,
    license::{License, Verdict},
    messages,
    session::{AskError, Bounds, End, Session, Socket, Stream},
    transport::{Request, Response, Transport, TransportError},
};
use crate::{
    blocking::lock,
    secret::Secret,
    telemetry::metrics::{self, Counter},
};

/// Between two tries through the same session: this, and three times as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(325);
const LONGEST_PAUSE: Duration = Duration::from_secs(40);
const MOST_TRIES: u32 = 7;
/// So many unanswered requests in so long, and they are not tried again until one is answered: a Platform that is down
/// would only hold our threads for longer.
const MOST_TIMEOUTS: usize = 20;
const TIMEOUT_WINDOW: Duration = Duration::from_secs(120);

/// WebSocket's reasons for closing (RFC 6455 §7.4.1).
mod code {
    pub(super) const GOING_AWAY: u16 = 1001;
    pub(super) const POLICY: u16 = 1008;
    pub(super) const TOO_LARGE: u16 = 1009;
    pub(super) const INTERNAL: u16 = 1011;
}

/// Why a socket is not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "this server takes no pairing for that endpoint; the operator lists them in platform.endpoints"
    )]
    UnknownEndpoint,
    /// The hash is for the operator, who may want to accept the token.
    #[error(
        "this server does not accept that pairing token for this endpoint (platform.pairing_tokens)"
    )]
    UnknownToken { sha256: String },
    #[error("as many pairing sockets are open as there may be (platform.max_sessions)")]
    Full,
}

/// One for the process.
pub struct Pairing {
    options: Options,
    keys: Arc<KeyRecords>,
    license: Option<License>,
    sessions: Mutex<Vec<Arc<Session>>>,
    /// One has come or gone.
    changed: Condvar,
    /// Sockets, from the handshake on.
    open: AtomicUsize,
    turn: AtomicUsize,
    timeouts: Mutex<HashMap<String, VecDeque<Instant>>>,
}

impl Pairing {
    pub fn new(options: &Options, keys: Arc<KeyRecords>) -> Arc<Self> {
        Arc::new(Self {
            options: options.clone(),
            keys,
            license: options.license.as_ref().map(License::new),
            sessions: Mutex::default(),
            changed: Condvar::new(),
            open: AtomicUsize::new(0),
            turn: AtomicUsize::new(0),
            timeouts: Mutex::default(),
        })
    }

    pub fn open_count(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Whether who shows this token may open a socket for the endpoint. Blocks for nothing.
    pub fn admit(
        self: &Arc<Self>,
        endpoint: &str,
        token: Secret<String>,
    ) -> Result<Admission, Refusal> {
        if !self.options.is_endpoint(endpoint) {
            return Err(Refusal::UnknownEndpoint);
        }
        let sha256 = hex_sha256(token.expose());
        let accepted = self.options.pairing_tokens.get(endpoint);
        let is_accepted = accepted.is_some_and(|hashes| hashes.contains(&sha256));
        if !is_accepted && !self.options.allow_any_pairing_token {
            return Err(Refusal::UnknownToken { sha256 });
        }
        let place = Place::take(self).ok_or(Refusal::Full)?;
        Ok(Admission {
            place,
            endpoint: endpoint.to_owned(),
            token,
        })
    }

    /// Carries one socket from its handshake to its end.
    fn carry(&self, mut socket: Socket<Box<dyn Stream>>, endpoint: &str, token: &Secret<String>) {
        let verdict = self.license.as_ref().map(|license| license.check(token));
        if verdict == Some(Verdict::Unknown) {
            tracing::warn!(
                endpoint,
                "a Platform was refused: the license server does not know its pairing token"
            );
            return socket.close(code::POLICY, "the license server does not know this token");
        }
        let record = match self.keys.acquire(endpoint, token) {
            Ok(record) => record,
            Err(error) => {
                tracing::error!(endpoint, %error, "a Platform cannot pair");
                return socket.close(code::INTERNAL, "no key can be kept");
            }
        };
        let session = match Session::new(endpoint) {
            Ok(session) => Arc::new(session),
            Err(error) => {
                tracing::error!(endpoint, %error, "a Platform cannot pair");
                return socket.close(code::INTERNAL, "no session can be opened");
            }
        };
        // Before any request.
        if socket.send(messages::pairing_response(&record)).is_err() {
            return;
        }
        let registered = Registered::new(self, &session);
        metrics::add(Counter::PairingSessions, 1);
        tracing::info!(
            endpoint,
            pairing_id = record.pairing_id,
            "a Platform has paired"
        );
        let end = socket.serve(&session, || self.keys.has_record(endpoint));
        session.end(Some(&end));
        drop(registered);
        tracing::info!(endpoint, reason = %end, "a pairing socket has ended");
        match end {
            End::KeyGone => socket.close(code::GOING_AWAY, "come again for a new key"),
            End::Silent => socket.close(code::GOING_AWAY, "nothing came for too long"),
            End::TooLarge => socket.close(code::TOO_LARGE, "the message is too large"),
            End::Closed | End::Broken(_) | End::Stuck => {}
        }
    }

    /// The next in turn of those that were not tried, or of all if all were; silent ones last.
    fn choose(&self, endpoint: &str, tried: &[Arc<Session>]) -> Option<Arc<Session>> {
        let sessions = lock(&self.sessions);
        let mut candidates: Vec<_> = sessions
            .iter()
            .filter(|session| session.endpoint == endpoint)
            .collect();
        drop_those(&mut candidates, |session| is_among(session, tried));
        drop_those(&mut candidates, |session| session.is_silent());
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let index = turn.checked_rem(candidates.len())?;
        candidates.get(index).map(|session| Arc::clone(session))
    }

    /// Returns when there is a session that was not tried, or after `pause`.
    fn wait_for_another(&self, endpoint: &str, tried: &[Arc<Session>], pause: Duration) {
        let sessions = lock(&self.sessions);
        let has_another = |sessions: &mut Vec<Arc<Session>>| {
            sessions
                .iter()
                .any(|session| session.endpoint == endpoint && !is_among(session, tried))
        };
        let waited = self
            .changed
            .wait_timeout_while(sessions, pause, |sessions| !has_another(sessions));
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Whether the endpoint has left so many requests unanswered that another try is no use.
    fn note_timeout(&self, endpoint: &str) -> bool {
        let mut timeouts = lock(&self.timeouts);
        let recent = timeouts.entry(endpoint.to_owned()).or_default();
        recent.retain(|at| at.elapsed() < TIMEOUT_WINDOW);
        recent.truncate(MOST_TIMEOUTS);
        recent.push_back(Instant::now());
        recent.len() > MOST_TIMEOUTS
    }

    fn note_answer(&self, endpoint: &str) {
        lock(&self.timeouts).remove(endpoint);
    }
}

/// Unless nothing would be left.
fn drop_those(sessions: &mut Vec<&Arc<Session>>, are: impl Fn(&Arc<Session>) -> bool) {
    if sessions.iter().any(|session| !are(session)) {
        sessions.retain(|session| !are(session));
    }
}

fn is_among(session: &Arc<Session>, others: &[Arc<Session>]) -> bool {
    others.iter().any(|other| Arc::ptr_eq(other, session))
}

impl Transport for Pairing {
    fn exchange(
        &self,
        endpoint: &str,
        request: &Request,
        deadline: Instant,
    ) -> Result<Response, TransportError> {
        let timed_out = || TransportError::TimedOut {
            endpoint: endpoint.to_owned(),
        };
        let mut failure = TransportError::NotPaired {
            endpoint: endpoint.to_owned(),
        };
        let mut tried = Vec::new();
        let mut pause = FIRST_PAUSE;
        for number in 0..MOST_TRIES {
            if number > 0 {
                let left = deadline.saturating_duration_since(Instant::now());
                self.wait_for_another(endpoint, &tried, pause.min(left));
                pause = (pause * 3).min(LONGEST_PAUSE);
            }
            let now = Instant::now();
            if now >= deadline {
                break;
            }
            let session = match self.choose(endpoint, &tried) {
                Some(session) => session,
                // Its only session has just ended; a Platform that starts again is there in a moment.
                None if number > 0 => continue,
                None => return Err(failure),
            };
            let until = deadline.min(now + *self.options.request_timeout);
            let may_be_repeated;
            (may_be_repeated, failure) = match session.ask(request, until) {
                Ok(response) => {
                    self.note_answer(endpoint);
                    return Ok(response);
                }
                Err(AskError::TimedOut) => {
                    let is_hopeless = self.note_timeout(endpoint);
                    (is_idempotent(request) && !is_hopeless, timed_out())
                }
                Err(AskError::Over { was_sent }) => (
                    is_idempotent(request) || !was_sent,
                    unreachable(endpoint, "its pairing socket has ended"),
                ),
                Err(AskError::TooLarge) => (
                    false,
                    unreachable(
                        endpoint,
                        "an answer on its pairing socket was larger than platform.max_message_size",
                    ),
                ),
                Err(AskError::Crowded) => (true, unreachable(endpoint, "too many requests wait")),
            };
            if !may_be_repeated {
                return Err(failure);
            }
            tried.push(session);
        }
        Err(failure)
    }
}

fn unreachable(endpoint: &str, cause: &str) -> TransportError {
    TransportError::Unreachable {
        endpoint: endpoint.to_owned(),
        cause: cause.to_owned(),
    }
}

/// A refresh token may be good for one use.
fn is_idempotent(request: &Request) -> bool {
    request.method == "GET"
}

/// A place among `max_sessions`, for as long as it is held.
struct Place(Arc<Pairing>);

impl Place {
    fn take(pairing: &Arc<Pairing>) -> Option<Self> {
        let most = pairing.options.max_sessions;
        // A count, which orders nothing else.
        let taken = pairing
            .open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| {
                (open < most).then_some(open + 1)
            });
        taken.is_ok().then(|| Self(Arc::clone(pairing)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The right to open one socket.
pub struct Admission {
    place: Place,
    endpoint: String,
    token: Secret<String>,
}

impl Admission {
    /// Takes the connection over, behind the handshake's answer, with a thread of its own: making a key takes a tenth
    /// of a second, a session may last for days.
    pub fn open(self, stream: Box<dyn Stream>) -> io::Result<()> {
        let carrying = move || {
            let Self {
                place,
                endpoint,
                token,
            } = self;
            let pairing = &place.0;
            let bounds = Bounds {
                message_bytes: usize::try_from(pairing.options.max_message_size.bytes())
                    .unwrap_or(usize::MAX),
                silence: *pairing.options.session_timeout,
            };
            let socket = Socket::new(stream, bounds);
            let carried = catch_unwind(AssertUnwindSafe(|| {
                pairing.carry(socket, &endpoint, &token);
            }));
            if carried.is_err() {
                metrics::add(Counter::Panics, 1);
                tracing::error!(
                    "a pairing socket was lost to a bug of tidegate; the panic's message is above"
                );
            }
        };
        thread::Builder::new()
            .name("pairing".to_owned())
            .spawn(carrying)
            .map(drop)
    }
}

/// A session that can be asked; who waits is told when it ends, however it ends.
struct Registered<'a> {
    pairing: &'a Pairing,
    session: &'a Arc<Session>,
}

impl<'a> Registered<'a> {
    fn new(pairing: &'a Pairing, session: &'a Arc<Session>) -> Self {
        lock(&pairing.sessions).push(Arc::clone(session));
        pairing.changed.notify_all();
        Self { pairing, session }
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        lock(&self.pairing.sessions).retain(|other| !Arc::ptr_eq(other, self.session));
        self.session.end(None);
        self.pairing.changed.notify_all();
    }
}

fn hex_sha256(text: &str) -> String {
    use std::fmt::Write as _;
    let hash = digest(&SHA256, text.as_bytes());
    hash.as_ref().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::SealingKey;

    const ENDPOINT: &str = "https://platform.example.com/api";

    fn pairing(change: impl FnOnce(&mut Options)) -> (Arc<Pairing>, tempfile::TempDir) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut options = Options {
            endpoints: vec![ENDPOINT.to_owned(), "https://other.example.com".to_owned()],
            ..Options::default()
        };
        change(&mut options);
        let sealing = SealingKey::load_or_create(&folder.path().join("seal.key"))
            .unwrap_or_else(|error| panic!("{error}"));
        let keys = KeyRecords::open(folder.path(), Arc::new(sealing), &options)
            .unwrap_or_else(|error| panic!("{error}"));
        (Pairing::new(&options, Arc::new(keys)), folder)
    }

    fn admit(pairing: &Arc<Pairing>, endpoint: &str, token: &str) -> Result<Admission, Refusal> {
        pairing.admit(endpoint, Secret::new(token.to_owned()))
    }

    #[test]
    fn a_token_opens_its_own_endpoint_only() {
        let (pairing, _folder) = pairing(|options| {
            let hash = hex_sha256("good");
            options
                .pairing_tokens
                .insert(ENDPOINT.to_owned(), vec![hash]);
        });
        assert!(admit(&pairing, ENDPOINT, "good").is_ok());
        let unknown = Refusal::UnknownToken {
            sha256: hex_sha256("other"),
        };
        assert_eq!(admit(&pairing, ENDPOINT, "other").err(), Some(unknown));
        for (endpoint, is_listed) in [
            ("https://other.example.com", true),
            ("https://platform.example.com/api/", false),
            ("http://platform.example.com/api", false),
            ("", false),
        ] {
            let refusal = admit(&pairing, endpoint, "good").err();
            let is_unknown_token = matches!(refusal, Some(Refusal::UnknownToken { .. }));
            assert_eq!(is_unknown_token, is_listed, "{endpoint}");
            assert!(refusal.is_some(), "{endpoint}");
        }
    }

    #[test]
    fn a_place_is_held_as_long_as_its_admission() {
        let (pairing, _folder) = pairing(|options| {
            options.allow_any_pairing_token = true;
            options.max_sessions = 2;
        });
        let held = [(); 2].map(|()| admit(&pairing, ENDPOINT, "any").ok());
        assert!(held.iter().all(Option::is_some));
        assert_eq!(admit(&pairing, ENDPOINT, "any").err(), Some(Refusal::Full));
        drop(held);
        assert_eq!(pairing.open_count(), 0);
        assert!(admit(&pairing, ENDPOINT, "any").is_ok());
    }

    #[test]
    fn a_platform_that_never_answers_is_asked_once_each_time() {
        let (pairing, _folder) = pairing(|_| {});
        let hopeless = |count| {
            let noted = (0..count).filter(|_| pairing.note_timeout(ENDPOINT));
            noted.count()
        };
        assert_eq!(hopeless(MOST_TIMEOUTS), 0);
        assert_eq!(hopeless(5), 5);
        pairing.note_answer(ENDPOINT);
        assert_eq!(hopeless(MOST_TIMEOUTS), 0);
    }

    #[test]
    fn the_hash_is_what_sha256sum_prints() {
        assert_eq!(
            hex_sha256("abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
