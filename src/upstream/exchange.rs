//! One request and one response over HTTP/1.1, and the connections kept for the next.
//!
//! The other side may be hostile: heads and waits are bounded, framing that can be read in two ways is refused,
//! and a body that ends early is an error, never an end. A connection is kept only after its response was
//! read to the last byte, on the core that made it.

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    rc::Rc,
    time::{Duration, Instant},
};

use super::{
    Options,
    crowd::{Crowd, Seat},
};
use crate::{
    http::{
        BodyLength, ChunkDecoder, MAX_HEAD_SIZE, Method, Origin, ResponseHead, Scheme, Url,
        head_end, parse_response,
    },
    net::{Addresses, ConnectError, Dialer, Stream, Transfer, Trust},
    secret::Secret,
    telemetry::metrics::{self, Counter},
};

/// Idle connections to one origin that a core keeps: a pull's parallel blobs.
const MOST_IDLE: usize = 8;
/// A hundred interim responses are an attack, eight are not.
const MOST_INTERIM: usize = 8;
const HEAD_BUFFER: usize = 8 << 10;
/// What one read of a body may bring. Larger pieces mean fewer turns; this is where it stops to matter.
const PIECE: usize = 1 << 20;
/// The first read brings less, each one twice as much as the one before: who waits for a first byte has it sooner.
const FIRST_PIECE: usize = 64 << 10;
/// A body that brings less while it is waited for holds up others for as long as its sender likes. A guess, of a tenth of
/// the slowest lines.
const SLOWEST_PER_SECOND: u64 = 1 << 10;
/// What is read of a body that nobody wants, to keep its connection.
const MOST_DISCARDED: u64 = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Silent(Duration),
    #[error("an answer that is not HTTP: {0}")]
    Malformed(String),
    #[error("all {0} connections to its host are in use")]
    Crowded(usize),
}

/// How an origin is reached.
#[derive(Clone)]
pub struct Way {
    pub addresses: Addresses,
    pub trust: Trust,
}

pub struct Request<'a> {
    pub method: Method,
    pub url: &'a Url,
    pub accept: Option<&'a str>,
    pub range: Option<String>,
    /// Complete value of `Authorization`.
    pub authorization: Option<&'a Secret<String>>,
}

pub struct Response {
    pub head: ResponseHead,
    pub body: Body,
}

/// One core's connections.
pub struct Exchange {
    dialer: Dialer,
    /// For what is pushed.
    pub(super) transfer: Rc<Transfer>,
    pub(super) options: Options,
    idle: RefCell<HashMap<Place, Vec<Idle>>>,
    crowd: Crowd<Place>,
}

/// Connections are shared by all that reach the same place by the same rules.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Place {
    origin: Origin,
    addresses: Addresses,
    trust: usize,
}

struct Idle {
    stream: Stream,
    since: Instant,
}

impl Exchange {
    pub fn new(dialer: Dialer, transfer: Rc<Transfer>, options: Options) -> Rc<Self> {
        Rc::new(Self {
            dialer,
            transfer,
            crowd: Crowd::new(options.max_connections_per_host),
            options,
            idle: RefCell::default(),
        })
    }

    pub async fn send(
        self: &Rc<Self>,
        way: &Way,
        request: &Request<'_>,
    ) -> Result<Response, ExchangeError> {
        let (place, seat) = self.enter(way, request.url).await?;
        // The other side may close an idle connection just as we use it. That says nothing about the request,
        // which is then sent once more on a new one.
        let kept = match self.take_idle(&place) {
            Some(stream) => self.attempt(stream, request).await.map(Some),
            None => Ok(None),
        };
        match kept {
            Ok(None) => {}
            Ok(Some(answer)) => return Ok(self.respond(answer, place, seat)),
            Err(ExchangeError::Broken(error)) if error.kind() != io::ErrorKind::TimedOut => {}
            Err(error) => return Err(error),
        }
        let stream = self.connect(way, &place).await?;
        let answer = self.attempt(stream, request).await?;
        Ok(self.respond(answer, place, seat))
    }

    /// A seat at a place, for one request.
    pub(super) async fn enter(&self, way: &Way, url: &Url) -> Result<(Place, Seat), ExchangeError> {
        let place = Place {
            origin: url.origin.clone(),
            addresses: way.addresses,
            trust: way.trust.identity(),
        };
        let seat = self
            .crowd
            .enter(&place, *self.options.connect_timeout)
            .await
            .map_err(|_| ExchangeError::Crowded(self.options.max_connections_per_host))?;
        metrics::add(Counter::UpstreamRequests, 1);
        Ok((place, seat))
    }

    pub(super) async fn connect(&self, way: &Way, place: &Place) -> Result<Stream, ExchangeError> {
        let Origin { scheme, host, port } = &place.origin;
        let trust = (*scheme == Scheme::Https).then_some(&way.trust);
        let connected = self.dialer.connect(host, *port, way.addresses, trust);
        Ok(connected.await?)
    }

    async fn attempt(
        &self,
        mut stream: Stream,
        request: &Request<'_>,
    ) -> Result<Answer, ExchangeError> {
        let patience = *self.options.response_timeout;
        stream.write_all(request.encode(&[]), patience).await?;
        Self::receive_head(stream, request.method, patience).await
    }

    pub(super) async fn receive_head(
        mut stream: Stream,
        method: Method,
        patience: Duration,
    ) -> Result<Answer, ExchangeError> {
        let deadline = Instant::now() + patience;
        let mut buffer = Vec::with_capacity(HEAD_BUFFER);
        let mut interim = 0;
        loop {
            let mut searched = 0;
            while head_end(&buffer, searched).is_none() {
                searched = buffer.len();
                if searched >= MAX_HEAD_SIZE {
                    return Err(ExchangeError::Malformed("a head without an end".to_owned()));
                }
                if searched == buffer.capacity() {
                    buffer.reserve(buffer.capacity());
                }
                let left = deadline.saturating_duration_since(Instant::now());
                let count;
                (count, buffer) = match stream.read(buffer, left).await {
                    Ok(read) => read,
                    Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                        return Err(ExchangeError::Silent(patience));
                    }
                    Err(error) => return Err(error.into()),
                };
                match count {
                    0 if searched == 0 => {
                        return Err(io::Error::from(io::ErrorKind::ConnectionReset).into());
                    }
                    0 => return Err(ExchangeError::Malformed("half a head".to_owned())),
                    _ => {}
                }
            }
            let parsed = parse_response(&buffer, method);
            let parsed = parsed.map_err(|error| ExchangeError::Malformed(error.to_string()))?;
            let Some((head, size)) = parsed else {
                return Err(ExchangeError::Malformed("half a head".to_owned()));
            };
            buffer.drain(..size);
            if (100..200).contains(&head.status) {
                interim += 1;
                if head.status == 101 || interim > MOST_INTERIM {
                    return Err(ExchangeError::Malformed(format!(
                        "an unexpected {}",
                        head.status
                    )));
                }
                continue;
            }
            return Ok(Answer {
                head,
                fresh: buffer,
                stream,
            });
        }
    }

    pub(super) fn respond(self: &Rc<Self>, answer: Answer, place: Place, seat: Seat) -> Response {
        let Answer {
            head,
            fresh,
            stream,
        } = answer;
        let remaining = match head.body {
            BodyLength::Empty => Remaining::Bytes(0),
            BodyLength::Exactly(size) => Remaining::Bytes(size),
            BodyLength::Chunked => Remaining::Chunks(ChunkDecoder::new()),
            BodyLength::UntilClose => Remaining::UntilClose,
        };
        let body = Body {
            connection: Some(Connection {
                stream,
                place,
                exchange: Rc::clone(self),
                _seat: seat,
            }),
            remaining,
            keep_alive: head.keep_alive,
            fresh,
            piece: Vec::new(),
            piece_limit: FIRST_PIECE,
            largest_piece: PIECE,
            patience: *self.options.body_timeout,
            received: 0,
            waited: Duration::ZERO,
        };
        Response { head, body }
    }

    pub(super) fn take_idle(&self, place: &Place) -> Option<Stream> {
        let mut idle = self.idle.borrow_mut();
        let kept = idle.get_mut(place)?;
        let mut found = None;
        while let Some(mut candidate) = kept.pop() {
            if candidate.since.elapsed() < *self.options.idle_timeout && candidate.stream.is_quiet()
            {
                found = Some(candidate.stream);
                break;
            }
        }
        if kept.is_empty() {
            idle.remove(place);
        }
        found
    }

    fn keep(&self, place: Place, stream: Stream) {
        let mut idle = self.idle.borrow_mut();
        let kept = idle.entry(place).or_default();
        if kept.len() >= MOST_IDLE {
            kept.remove(0);
        }
        kept.push(Idle {
            stream,
            since: Instant::now(),
        });
    }

    /// Closes what nobody has used for too long. Called from time to time.
    pub fn close_idle(&self) {
        let patience = *self.options.idle_timeout;
        self.idle.borrow_mut().retain(|_, kept| {
            kept.retain(|connection| connection.since.elapsed() < patience);
            !kept.is_empty()
        });
        self.crowd.forget_empty();
    }
}

impl Request<'_> {
    /// `more`: fields of a body, if there is one.
    pub(super) fn encode(&self, more: &[(&str, &str)]) -> Vec<u8> {
        use std::io::Write as _;
        // All of it in one place, which is wiped when it was sent: a login may have some kilobytes.
        let login = self.authorization.map_or(0, |value| value.expose().len());
        let mut head = Vec::with_capacity(2048 + self.url.target.len() + login);
        let authority = self.url.origin.authority();
        let _ = write!(
            head,
            "{} {} HTTP/1.1\r\nHost: {authority}\r\n",
            self.method.as_str(),
            self.url.target
        );
        let _ = write!(
            head,
            "User-Agent: tidegate/{}\r\n",
            env!("CARGO_PKG_VERSION")
        );
        if let Some(accept) = self.accept {
            let _ = write!(head, "Accept: {accept}\r\n");
        }
        // Digests are of the bytes as they are.
        head.extend_from_slice(b"Accept-Encoding: identity\r\n");
        if let Some(range) = &self.range {
            let _ = write!(head, "Range: {range}\r\n");
        }
        for (name, value) in more {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        if let Some(authorization) = self.authorization {
            let _ = write!(head, "Authorization: {}\r\n", authorization.expose());
        }
        head.extend_from_slice(b"\r\n");
        head
    }
}

/// A head, and what came with it.
pub(super) struct Answer {
    pub(super) head: ResponseHead,
    fresh: Vec<u8>,
    stream: Stream,
}

struct Connection {
    stream: Stream,
    place: Place,
    exchange: Rc<Exchange>,
    _seat: Seat,
}

enum Remaining {
    Bytes(u64),
    Chunks(ChunkDecoder),
    UntilClose,
}

/// A response's body, piece by piece. Never more than a piece is in memory.
pub struct Body {
    connection: Option<Connection>,
    remaining: Remaining,
    keep_alive: bool,
    /// Received and not yet looked at.
    fresh: Vec<u8>,
    /// Lent to the caller until the next call.
    piece: Vec<u8>,
    /// What the next read may bring, and what any later one may.
    piece_limit: usize,
    largest_piece: usize,
    patience: Duration,
    received: u64,
    /// How long for the other side, and not for whoever takes the pieces.
    waited: Duration,
}

impl Body {
    /// For whoever may be slow to take them: two of them are in memory as long as he is.
    pub fn limit_pieces(&mut self, largest: usize) {
        self.largest_piece = largest.min(PIECE);
        self.piece_limit = self.piece_limit.min(self.largest_piece);
    }

    /// The next piece, never empty; `None` is the proper end. A body that stops early is an error.
    pub async fn next(&mut self) -> io::Result<Option<&[u8]>> {
        self.piece.clear();
        loop {
            if self.take_fresh()? {
                self.received += self.piece.len() as u64;
                return Ok(Some(&self.piece));
            }
            if self.is_over() {
                self.release();
                return Ok(None);
            }
            if self.receive().await? == 0 {
                if matches!(self.remaining, Remaining::UntilClose) {
                    self.connection = None;
                    self.remaining = Remaining::Bytes(0);
                    return Ok(None);
                }
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The piece that `next` has just lent, for good; `spare` takes its place.
    pub fn take_piece(&mut self, spare: Vec<u8>) -> Vec<u8> {
        std::mem::replace(&mut self.piece, spare)
    }

    /// The whole body, which must not be larger than `limit`.
    pub async fn collect(mut self, limit: usize) -> io::Result<Vec<u8>> {
        let mut whole = Vec::new();
        while let Some(piece) = self.next().await? {
            if whole.len() + piece.len() > limit {
                return Err(io::Error::new(
                    io::ErrorKind::FileTooLarge,
                    format!("more than {limit} bytes"),
                ));
            }
            whole.extend_from_slice(piece);
        }
        Ok(whole)
    }

    /// Reads on to the end if that is near, so that the connection can be used again.
    pub async fn discard(mut self) {
        let mut discarded = 0;
        while let Ok(Some(piece)) = self.next().await {
            discarded += piece.len() as u64;
            if discarded > MOST_DISCARDED {
                return;
            }
        }
    }

    /// Moves what is the body's from `fresh` to `piece`; whether there was any.
    fn take_fresh(&mut self) -> io::Result<bool> {
        match &mut self.remaining {
            Remaining::Bytes(left) => {
                let count = usize::try_from(*left)
                    .unwrap_or(usize::MAX)
                    .min(self.fresh.len());
                *left -= count as u64;
                if count == self.fresh.len() {
                    std::mem::swap(&mut self.piece, &mut self.fresh);
                } else {
                    self.piece.extend(self.fresh.drain(..count));
                }
            }
            Remaining::UntilClose => std::mem::swap(&mut self.piece, &mut self.fresh),
            Remaining::Chunks(decoder) => {
                let mut position = 0;
                while position < self.fresh.len() && !decoder.is_done() {
                    let rest = self.fresh.get(position..).unwrap_or_default();
                    let (taken, data) = decoder.decode(rest).map_err(|error| {
                        io::Error::new(io::ErrorKind::InvalidData, error.to_string())
                    })?;
                    self.piece.extend_from_slice(data);
                    position += taken;
                    if taken == 0 {
                        break;
                    }
                }
                self.fresh.drain(..position);
            }
        }
        Ok(!self.piece.is_empty())
    }

    fn is_over(&self) -> bool {
        match &self.remaining {
            Remaining::Bytes(left) => *left == 0,
            Remaining::Chunks(decoder) => decoder.is_done(),
            Remaining::UntilClose => self.connection.is_none(),
        }
    }

    async fn receive(&mut self) -> io::Result<usize> {
        let connection = self
            .connection
            .as_mut()
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut buffer = std::mem::take(&mut self.fresh);
        let wanted = match &self.remaining {
            Remaining::Bytes(left) => usize::try_from(*left).unwrap_or(usize::MAX),
            _ => PIECE,
        };
        let wanted = wanted.min(self.piece_limit);
        self.piece_limit = self.largest_piece.min(self.piece_limit * 2);
        buffer.reserve(wanted.max(1));
        let asked = Instant::now();
        let read = connection.stream.read(buffer, self.patience).await;
        self.waited += asked.elapsed();
        match read {
            Ok((count, _)) if count > 0 && self.is_crawling(count) => {
                self.connection = None;
                let problem = "it sends next to nothing";
                Err(io::Error::new(io::ErrorKind::TimedOut, problem))
            }
            Ok((count, buffer)) => {
                self.fresh = buffer;
                Ok(count)
            }
            Err(error) => {
                self.connection = None;
                Err(error)
            }
        }
    }

    /// `fresh`: bytes that have come just now.
    fn is_crawling(&self, fresh: usize) -> bool {
        let received = self.received + fresh as u64;
        self.waited > self.patience * 2
            && received / self.waited.as_secs().max(1) < SLOWEST_PER_SECOND
    }

    /// The connection goes back, unless it said more than it should.
    fn release(&mut self) {
        if let Some(Connection {
            stream,
            place,
            exchange,
            _seat,
        }) = self.connection.take()
            && self.keep_alive
            && self.fresh.is_empty()
        {
            exchange.keep(place, stream);
        }
    }
}
