//! One pairing socket: a thread that speaks WebSocket with a Platform, and the handle by which others ask through it.
//!
//! The thread sleeps until the socket or a caller has something, so that an idle session costs nothing but its stack. It
//! alone touches the socket. Whatever the other side sends costs this session only: a message has a bound, a turn of
//! reading has one, and silence and a socket that takes nothing end it.

use std::{
    collections::{HashMap, VecDeque},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError, SyncSender},
    },
    time::{Duration, Instant},
};

use tungstenite::{
    Error, Message, WebSocket,
    protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
};

use super::{
    messages::{self, Incoming, MessageId},
    transport::{Request, Response},
};
use crate::{blocking::lock, secret::Secret, sys::wait_for_either};

/// Requests that one session may have open: a bound on what a silent Platform holds, far above what one needs.
const MOST_WAITING: usize = 4096;
/// Bytes that one turn reads before what is to be sent gets its turn.
const TURN_BYTES: usize = 1 << 20;
/// For a socket that takes nothing, and for the other side's part of closing.
const SEND_PATIENCE: Duration = Duration::from_secs(30);
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);
/// Beyond the largest message: what a Platform that does not read makes us keep.
const UNSENT_BYTES: usize = 1 << 20;

/// A connection whose calls never wait: TCP, or TLS over it.
pub trait Stream: Read + Write + AsFd + Send {}

impl<T: Read + Write + AsFd + Send> Stream for T {}

/// Bounds of one session.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub message_bytes: usize,
    /// Without a message from the other side.
    pub silence: Duration,
}

/// Why a request got no answer from this session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AskError {
    /// It may have reached the Platform.
    TimedOut,
    /// The session is over. What was not sent can be sent elsewhere, whatever it does.
    Over {
        was_sent: bool,
    },
    /// The same, by an answer that was too large: asking again would end the next session too.
    TooLarge,
    Crowded,
}

/// What callers have of a session.
pub(super) struct Session {
    pub(super) endpoint: String,
    state: Mutex<State>,
    /// Both ends: a byte through it ends the thread's sleep.
    waking: (UnixStream, UnixStream),
    /// The last request was not answered in time, and nothing has come since.
    is_silent: AtomicBool,
}

#[derive(Default)]
struct State {
    outbox: VecDeque<(MessageId, Secret<String>)>,
    waiting: HashMap<MessageId, Waiter>,
    is_over: bool,
}

struct Waiter {
    answer: SyncSender<Result<Response, AskError>>,
    was_sent: bool,
}

impl Session {
    pub(super) fn new(endpoint: &str) -> io::Result<Self> {
        let waking = UnixStream::pair()?;
        waking.0.set_nonblocking(true)?;
        waking.1.set_nonblocking(true)?;
        Ok(Self {
            endpoint: endpoint.to_owned(),
            state: Mutex::default(),
            waking,
            is_silent: AtomicBool::new(false),
        })
    }

    /// Whether others should be asked first.
    pub(super) fn is_silent(&self) -> bool {
        self.is_silent.load(Ordering::Relaxed)
    }

    /// Blocks until the answer is there, or `until`.
    pub(super) fn ask(&self, request: &Request, until: Instant) -> Result<Response, AskError> {
        let id = MessageId::random();
        let message = messages::http_request(&id, request);
        let (answer, answered) = mpsc::sync_channel(1);
        {
            let mut state = lock(&self.state);
            if state.is_over {
                return Err(AskError::Over { was_sent: false });
            }
            if state.waiting.len() >= MOST_WAITING {
                return Err(AskError::Crowded);
            }
            state.outbox.push_back((id.clone(), message));
            let was_sent = false;
            state
                .waiting
                .insert(id.clone(), Waiter { answer, was_sent });
        }
        self.wake();
        let patience = until.saturating_duration_since(Instant::now());
        match answered.recv_timeout(patience) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Disconnected) => Err(AskError::Over { was_sent: true }),
            Err(RecvTimeoutError::Timeout) => {
                let mut state = lock(&self.state);
                state.waiting.remove(&id);
                state.outbox.retain(|(other, _)| *other != id);
                drop(state);
                // It may have come in between.
                answered.try_recv().unwrap_or_else(|_| {
                    self.is_silent.store(true, Ordering::Relaxed);
                    Err(AskError::TimedOut)
                })
            }
        }
    }

    fn wake(&self) {
        // Full: it will wake anyway.
        let _ = (&self.waking.0).write(&[1]);
    }

    fn sleep_until_called(&self) -> BorrowedFd<'_> {
        self.waking.1.as_fd()
    }

    fn forget_calls(&self) {
        let mut bytes = [0; 64];
        while (&self.waking.1)
            .read(&mut bytes)
            .is_ok_and(|count| count > 0)
        {}
    }

    /// The next request to be sent, which counts as sent from here on.
    fn next_request(&self) -> Option<Secret<String>> {
        let mut state = lock(&self.state);
        let (id, message) = state.outbox.pop_front()?;
        if let Some(waiter) = state.waiting.get_mut(&id) {
            waiter.was_sent = true;
        }
        Some(message)
    }

    fn answer(&self, to: &MessageId, response: Response) {
        let waiter = lock(&self.state).waiting.remove(to);
        match waiter {
            // Who has just given up does not hear it.
            Some(waiter) => drop(waiter.answer.try_send(Ok(response))),
            None => {
                tracing::debug!(message = %to, "a Platform's answer came too late, or to nothing")
            }
        }
    }

    /// Nobody gets in any more, and who waits is told.
    pub(super) fn end(&self, why: Option<&End>) {
        let mut state = lock(&self.state);
        state.is_over = true;
        state.outbox.clear();
        for (_, Waiter { answer, was_sent }) in state.waiting.drain() {
            let error = match why {
                Some(End::TooLarge) if was_sent => AskError::TooLarge,
                _ => AskError::Over { was_sent },
            };
            let _ = answer.try_send(Err(error));
        }
    }
}

/// How a session ended.
#[derive(Debug, thiserror::Error)]
pub enum End {
    #[error("the Platform closed it")]
    Closed,
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("the Platform's key is gone, it is to come again for a new one")]
    KeyGone,
    #[error("a message was larger than platform.max_message_size allows")]
    TooLarge,
    #[error("nothing came for longer than platform.session_timeout")]
    Silent,
    #[error("the other side took nothing for too long")]
    Stuck,
}

/// The socket's side of a session.
pub struct Socket<S> {
    socket: WebSocket<Turns<S>>,
    bounds: Bounds,
    last_heard: Instant,
    /// Since when something waits to be sent.
    stuck_since: Option<Instant>,
}

impl<S: Read + Write> Socket<S> {
    pub fn new(stream: S, bounds: Bounds) -> Self {
        let config = WebSocketConfig::default()
            .max_message_size(Some(bounds.message_bytes))
            .max_frame_size(Some(bounds.message_bytes))
            .max_write_buffer_size(bounds.message_bytes + UNSENT_BYTES);
        let stream = Turns {
            stream,
            bytes_left: TURN_BYTES,
        };
        Self {
            socket: WebSocket::from_raw_socket(stream, Role::Server, Some(config)),
            bounds,
            last_heard: Instant::now(),
            stuck_since: None,
        }
    }

    /// Puts it behind what is to be sent; `turn` sends it.
    pub(super) fn send(&mut self, message: String) -> Result<(), End> {
        match self.socket.write(Message::text(message)) {
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            sent => sent.map_err(end),
        }
    }

    /// What has come; `None` if there is no more now.
    pub fn next_message(&mut self) -> Result<Option<Incoming>, End> {
        loop {
            let text = match self.socket.read() {
                Ok(Message::Text(text)) => text,
                // Pings are answered by the library.
                Ok(_) => {
                    self.last_heard = Instant::now();
                    continue;
                }
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(None);
                }
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(end(error)),
            };
            self.last_heard = Instant::now();
            match Incoming::parse(&text) {
                Ok(incoming) => return Ok(Some(incoming)),
                Err(error) => tracing::debug!(%error, "a Platform sent what is no message"),
            }
        }
    }
}

impl<S: Stream> Socket<S> {
    /// Says why, and waits a little for the other side to have read it.
    pub(super) fn close(mut self, code: u16, reason: &'static str) {
        let frame = CloseFrame {
            code: CloseCode::from(code),
            reason: reason.into(),
        };
        let until = Instant::now() + CLOSE_PATIENCE;
        let mut outcome = self.socket.close(Some(frame));
        loop {
            match outcome {
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
                Ok(()) => {}
            }
            let patience = until.saturating_duration_since(Instant::now());
            let stream = self.socket.get_mut();
            stream.bytes_left = TURN_BYTES;
            let descriptor = stream.stream.as_fd();
            if patience.is_zero()
                || wait_for_either(descriptor, false, descriptor, patience).is_err()
            {
                return;
            }
            outcome = self.socket.read().map(drop);
        }
    }

    /// Carries requests and answers until the session ends. `has_key`: whether what the Platform encrypts can be read.
    pub(super) fn serve(&mut self, session: &Session, has_key: impl Fn() -> bool) -> End {
        loop {
            match self.turn(session, &has_key) {
                Ok(patience) if patience.is_zero() => {}
                Ok(patience) => {
                    let stream = self.socket.get_ref().stream.as_fd();
                    let is_stuck = self.stuck_since.is_some();
                    let called = session.sleep_until_called();
                    if let Err(error) = wait_for_either(stream, is_stuck, called, patience) {
                        return End::Broken(error.to_string());
                    }
                }
                Err(end) => return end,
            }
        }
    }

    /// Does what can be done without waiting, and says how long nothing need be done unless somebody calls.
    fn turn(&mut self, session: &Session, has_key: &impl Fn() -> bool) -> Result<Duration, End> {
        session.forget_calls();
        while let Some(incoming) = self.next_message()? {
            session.is_silent.store(false, Ordering::Relaxed);
            match incoming {
                Incoming::Answer { to, response } => session.answer(&to, response),
                Incoming::Heartbeat if has_key() => self.send(messages::heartbeat())?,
                Incoming::Heartbeat => return Err(End::KeyGone),
                Incoming::Other => tracing::debug!("a Platform sent a message of an unknown type"),
            }
        }
        if self.stuck_since.is_some() {
            self.flush()?;
        }
        while self.stuck_since.is_none()
            && let Some(request) = session.next_request()
        {
            self.send(request.expose().clone())?;
        }
        self.flush()?;
        if self.socket.get_mut().begin_turn() {
            return Ok(Duration::ZERO);
        }
        let left = |since: Instant, most: Duration| most.saturating_sub(since.elapsed());
        let of_silence = left(self.last_heard, self.bounds.silence);
        if of_silence.is_zero() {
            return Err(End::Silent);
        }
        match self.stuck_since.map(|since| left(since, SEND_PATIENCE)) {
            Some(Duration::ZERO) => Err(End::Stuck),
            Some(of_sending) => Ok(of_silence.min(of_sending)),
            None => Ok(of_silence),
        }
    }

    fn flush(&mut self) -> Result<(), End> {
        match self.socket.flush() {
            Ok(()) => self.stuck_since = None,
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                self.stuck_since.get_or_insert_with(Instant::now);
            }
            Err(error) => return Err(end(error)),
        }
        Ok(())
    }
}

/// The library's errors may quote what was sent, so only their kind is told.
fn end(error: Error) -> End {
    match error {
        Error::ConnectionClosed | Error::AlreadyClosed => End::Closed,
        Error::Capacity(_) => End::TooLarge,
        Error::WriteBufferFull(_) => End::Stuck,
        Error::Io(error) => End::Broken(error.kind().to_string()),
        Error::Protocol(error) => End::Broken(error.to_string()),
        Error::Utf8(_) => End::Broken("a text message is not UTF-8".to_owned()),
        _ => End::Broken("it does not speak WebSocket".to_owned()),
    }
}

/// Says after so many bytes that there are no more, so that a flood does not keep a session from anything else.
struct Turns<S> {
    stream: S,
    bytes_left: usize,
}

impl<S> Turns<S> {
    /// Whether the last turn was used up.
    fn begin_turn(&mut self) -> bool {
        let was_used_up = self.bytes_left == 0;
        self.bytes_left = TURN_BYTES;
        was_used_up
    }
}

impl<S: Read> Read for Turns<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.bytes_left == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let most = buffer.len().min(self.bytes_left);
        let count = self
            .stream
            .read(buffer.get_mut(..most).unwrap_or_default())?;
        self.bytes_left -= count;
        Ok(count)
    }
}

impl<S: Write> Write for Turns<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
