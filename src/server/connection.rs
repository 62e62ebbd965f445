//! One client's connection: read a head, read or pass its body, answer, and again.
//!
//! Answers go out in the order of the requests; what a client sends ahead waits in the buffer. A client that has
//! closed its sending side still gets its answer.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use monoio::net::TcpStream;

use super::{
    Edge,
    deliver::{Afterwards, Cut, DeliverError, Delivered, deliver},
    request_body::{self, BodyError},
};
use crate::{
    api::{Request, Response, Service, Upgrade},
    http::{
        BodyLength, HeadError, MAX_HEAD_SIZE, RequestHead, Version, head_end, looks_like_tls,
        parse_request,
    },
    net::{More, Refused, Socket},
    telemetry::{
        access_log::{self, Line},
        metrics::{self, Counter},
    },
};

/// Most heads fit; the buffer grows for those that do not.
const HEAD_BUFFER: usize = 4 << 10;
/// An unwanted body up to this size is read past; after a larger one the connection ends.
const MOST_SKIPPED: u64 = 64 << 10;
/// How long a closing connection is read on, and how much: the client should see the answer before a reset.
const LINGER: Duration = Duration::from_secs(2);
const MOST_LINGERED: usize = 1 << 20;

/// There are as many connections as there may be.
pub(super) async fn refuse<S: Service>(edge: &Edge, service: &S, tcp: TcpStream, peer: SocketAddr) {
    let Some(mut socket) = open(edge, service, tcp, peer).await else {
        return;
    };
    let response = service
        .answer_bad_body(503, "too many connections are open")
        .field("Retry-After", 1);
    answer_last(edge, &mut socket, response).await;
    linger(socket).await;
}

pub(super) async fn run<S: Service>(edge: &Edge, service: &S, tcp: TcpStream, peer: SocketAddr) {
    let Some(mut socket) = open(edge, service, tcp, peer).await else {
        return;
    };
    let mut buffer = Vec::new();
    loop {
        let head = match read_head(edge, &mut socket, &mut buffer).await {
            Ok(head) => head,
            Err(NoHead::Over) => return,
            Err(NoHead::Slow) => {
                let response = service.answer_bad_body(408, "the request's head took too long");
                answer_last(edge, &mut socket, response).await;
                return linger(socket).await;
            }
            Err(NoHead::Malformed(error)) => {
                metrics::add(Counter::RequestsBad, 1);
                tracing::debug!(client = %peer.ip(), %error, "a malformed request");
                let response = service.answer_malformed(&buffer, &error);
                answer_last(edge, &mut socket, response).await;
                return linger(socket).await;
            }
        };
        let _busy = Busy::begin(edge);
        match exchange(edge, service, &mut socket, peer, head, &mut buffer).await {
            Next::Request if !edge.is_stopping.get() => {}
            Next::Request | Next::Linger => return linger(socket).await,
            Next::Another(upgrade) => match socket.detach(buffer) {
                Ok(stream) => return upgrade(Box::new(stream)),
                Err(error) => {
                    return tracing::error!(client = %peer.ip(), %error, "a connection was lost that another was to have");
                }
            },
            Next::Cut => return,
        }
        if buffer.is_empty() && buffer.capacity() > HEAD_BUFFER {
            buffer = Vec::new();
        }
    }
}

/// The connection as the listener speaks: with TLS where there is an identity for it.
async fn open<S: Service>(
    edge: &Edge,
    service: &S,
    tcp: TcpStream,
    peer: SocketAddr,
) -> Option<Socket> {
    let Some(identity) = &edge.identity else {
        return Some(Socket::plain(tcp, &edge.clock));
    };
    let client = peer.ip().to_canonical();
    let patience = *edge.options.head_timeout;
    match Socket::accept_tls(tcp, &edge.clock, identity, patience).await {
        Ok(socket) => Some(socket),
        Err(Refused::PlainHttp(mut socket)) => {
            metrics::add(Counter::RequestsBad, 1);
            tracing::info!(%client, "plain HTTP on a listener with TLS; the client must use https://");
            let message = "this is plain HTTP, but HTTPS is spoken here: use https://";
            answer_last(edge, &mut socket, service.answer_bad_body(400, message)).await;
            linger(socket).await;
            None
        }
        Err(Refused::Failed(error)) => {
            metrics::add(Counter::HandshakesFailed, 1);
            tracing::debug!(%client, %error, "no TLS session with a client");
            None
        }
    }
}

/// Answers what is no request; the connection ends after it.
async fn answer_last(edge: &Edge, socket: &mut Socket, response: Response) {
    let response = response.closing();
    // Nobody is left to be told if it cannot be sent.
    let _ = deliver(edge, socket, Version::Http11, Afterwards::Close, response).await;
}

enum Next {
    Request,
    /// The last answer is out; let the client read it.
    Linger,
    /// The connection is another's from here on.
    Another(Upgrade),
    Cut,
}

async fn exchange<S: Service>(
    edge: &Edge,
    service: &S,
    socket: &mut Socket,
    peer: SocketAddr,
    head: RequestHead,
    buffer: &mut Vec<u8>,
) -> Next {
    metrics::add(Counter::Requests, 1);
    let (version, method) = (head.version, head.method);
    let client = edge.client(peer, &head.headers);
    let path = access_log::is_on().then(|| (head.path().to_owned(), Instant::now()));
    let agent = path
        .is_some()
        .then(|| head.headers.get("user-agent").map(str::to_owned))
        .flatten();
    let mut afterwards = if head.keep_alive && !edge.is_stopping.get() {
        Afterwards::KeepAlive
    } else {
        Afterwards::Close
    };
    let mut response = match receive_body(edge, service, socket, &head, buffer).await {
        Ok(received) => {
            let body = match received {
                Received::Body(body) => body,
                Received::LeftUnread => {
                    afterwards = Afterwards::Close;
                    Bytes::new()
                }
            };
            service.answer(Request { head, body, client }).await
        }
        Err(error) => match refusal(service, &error) {
            Some(refusal) => refusal,
            None => return Next::Cut,
        },
    };
    let (status, origin) = (response.status, response.origin);
    metrics::add(of_status(status), 1);
    let upgrade = response.upgrade.take();
    if upgrade.is_some() {
        afterwards = Afterwards::KeepAlive;
    }
    let delivered = deliver(edge, socket, version, afterwards, response).await;
    if let Some((path, started)) = path {
        access_log::write(&Line {
            client,
            method: method.as_str(),
            path: &path,
            status,
            origin,
            body_bytes: match &delivered {
                Ok(delivered) => delivered.body_bytes,
                Err(cut) => cut.body_bytes,
            },
            duration: started.elapsed(),
            agent: agent.as_deref(),
            is_cut: delivered.is_err(),
        });
    }
    match delivered {
        Ok(Delivered {
            afterwards: Afterwards::KeepAlive,
            ..
        }) => upgrade.map_or(Next::Request, Next::Another),
        Ok(Delivered {
            afterwards: Afterwards::Close,
            ..
        }) => Next::Linger,
        Err(Cut { cause, body_bytes }) => {
            match cause {
                DeliverError::Gone(error) => {
                    tracing::debug!(client = %peer.ip(), %error, "a client went away")
                }
                error => {
                    tracing::warn!(client = %peer.ip(), body_bytes, %error, "an answer was cut short")
                }
            }
            Next::Cut
        }
    }
}

fn of_status(status: u16) -> Counter {
    match status {
        0..200 => Counter::Informed,
        200..300 => Counter::Succeeded,
        300..400 => Counter::Redirected,
        400..500 => Counter::Declined,
        500.. => Counter::Failed,
    }
}

/// `None`: nobody is left to be told.
fn refusal<S: Service>(service: &S, error: &BodyError) -> Option<Response> {
    let said = error.to_string();
    let response = match error {
        BodyError::Gone(cause) if cause.kind() == io::ErrorKind::TimedOut => {
            service.answer_bad_body(408, "the request's body took too long")
        }
        BodyError::Gone(_) => return None,
        BodyError::TooLarge { .. } => service.answer_bad_body(413, &said),
        BodyError::Malformed => service.answer_bad_body(400, &said),
        BodyError::Busy => service.answer_bad_body(503, &said).field("Retry-After", 1),
    };
    Some(response.closing())
}

enum Received {
    Body(Bytes),
    /// There is one, nobody wants it, and it is too long to read past.
    LeftUnread,
}

async fn receive_body<S: Service>(
    edge: &Edge,
    service: &S,
    socket: &mut Socket,
    head: &RequestHead,
    buffer: &mut Vec<u8>,
) -> Result<Received, BodyError> {
    if head.body == BodyLength::Empty {
        return Ok(Received::Body(Bytes::new()));
    }
    let limit = match (service.body_limit(head), head.body) {
        (Some(limit), BodyLength::Exactly(size)) if size > limit => {
            return Err(BodyError::TooLarge { limit });
        }
        (Some(limit), _) => limit,
        (None, _) if head.expects_continue => return Ok(Received::LeftUnread),
        (None, BodyLength::Exactly(size)) if size <= MOST_SKIPPED => size,
        (None, _) => return Ok(Received::LeftUnread),
    };
    if head.expects_continue {
        let patience = *edge.options.send_timeout;
        edge.transfer
            .send(
                socket,
                b"HTTP/1.1 100 Continue\r\n\r\n",
                More::Ends,
                patience,
            )
            .await?;
    }
    let body = request_body::read(socket, buffer, head.body, limit, &edge.load).await?;
    Ok(Received::Body(body))
}

/// Why there is no next request.
enum NoHead {
    /// The connection ended between requests, or nobody would read an answer.
    Over,
    Slow,
    Malformed(HeadError),
}

/// The next head. What follows it stays in `buffer`; after an error, what there is of it does.
async fn read_head(
    edge: &Edge,
    socket: &mut Socket,
    buffer: &mut Vec<u8>,
) -> Result<RequestHead, NoHead> {
    let mut searched = 0;
    let mut deadline = None;
    loop {
        if looks_like_tls(buffer) {
            return Err(NoHead::Malformed(HeadError::TlsHello));
        }
        // Parsing begins at the start each time, so from the second time on it waits for the end of the head; but
        // what cannot become a head is refused at its first line.
        let may_be_whole = searched == 0 || head_end(buffer, searched).is_some();
        if may_be_whole || buffer.len() > MAX_HEAD_SIZE {
            match parse_request(buffer) {
                Ok(Some((head, size))) => {
                    buffer.drain(..size);
                    return Ok(head);
                }
                Ok(None) if buffer.len() > MAX_HEAD_SIZE => {
                    return Err(NoHead::Malformed(HeadError::TooLarge));
                }
                // Empty lines before the request: its end is still to come.
                Ok(None) => {}
                Err(error) => return Err(NoHead::Malformed(error)),
            }
        }
        searched = buffer.len();
        if !buffer.is_empty() && deadline.is_none() {
            deadline = Some(socket.after(*edge.options.head_timeout));
        }
        if buffer.len() == buffer.capacity() {
            buffer.reserve(buffer.len().max(HEAD_BUFFER));
        }
        let until = deadline.unwrap_or_else(|| socket.after(*edge.options.idle_timeout));
        match socket.read(buffer, until).await {
            Ok(0) if buffer.is_empty() => return Err(NoHead::Over),
            // The end of the stream within a head: bare line ends show here too.
            Ok(0) => {
                return Err(match parse_request(buffer) {
                    Err(error) => NoHead::Malformed(error),
                    Ok(_) => NoHead::Over,
                });
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::TimedOut && deadline.is_some() => {
                return Err(NoHead::Slow);
            }
            Err(_) => return Err(NoHead::Over),
        }
    }
}

/// The end after an answer, which the client is given the time to read.
async fn linger(socket: Socket) {
    socket.close(MOST_LINGERED, LINGER).await;
}

/// Counts a request in progress: those are waited for at the end.
struct Busy<'a>(&'a Edge);

impl<'a> Busy<'a> {
    fn begin(edge: &'a Edge) -> Self {
        edge.busy.set(edge.busy.get() + 1);
        Self(edge)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.set(self.0.busy.get() - 1);
    }
}
