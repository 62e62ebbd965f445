//! Sending to a client: bytes we hold, and ranges of files that never pass through our memory. What goes through TLS
//! is in `sealing.rs`, and what goes to registries in `upload.rs`.
//!
//! One turn sends at most a budget and then awaits the socket's writability, even if it is writable still:
//! that await is what gives every other task of the core its turn. What is not in the page cache is brought there by a
//! thread of the pool first: `splice` and `sendfile` wait for the disk whatever their flags say.

use std::{
    cell::{Cell, RefCell},
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt as _,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use monoio::net::TcpStream;

use super::{
    patience::Patience,
    remembered::Remembered,
    socket::{Kind, Socket},
};
use crate::{
    blocking::{Errand, Pool, PoolError},
    sys::{self, FileWindow, More, Pipe, Sent},
};

/// What one response may send in one turn. Sub-millisecond tails for the others, and no dearer per byte.
pub(super) const BUDGET: usize = 256 << 10;
/// Up to here a copy is cheapest: one read, and one send together with the head.
const COPIED: usize = 16 << 10;
/// From here on a pipe is cheaper than `sendfile`, below it dearer.
const PIPED: u64 = 512 << 10;
/// A turn's budget fits: a larger pipe would only use up what all pipes of a user may hold.
const PIPE_SIZE: usize = BUDGET;
/// A pipe below this is what the kernel gives a user who has used up his budget of pages.
const SMALLEST_PIPE: usize = 64 << 10;
const PAGE_SIZE: usize = 4 << 10;
/// What is looked at, and brought in, at a time. The kernel reads ahead, so that most windows after the first are there.
const WINDOW: u64 = 1 << 20;
/// How long a window waits before it asks the pool again, whose queue is full.
const POOL_PAUSE: Duration = Duration::from_millis(10);
/// Pipes of a core where the system sets no limit.
const MOST_PIPES: usize = 64;

/// How many pipes each core may have. Half of what the system lets our user have is for others.
pub fn pipes_for_each(core_count: usize) -> usize {
    let of_user = sys::pipe_pages().map(|pages| pages / (PIPE_SIZE / PAGE_SIZE));
    let of_core = of_user.map_or(MOST_PIPES, |pipes| pipes / 2 / core_count.max(1));
    of_core.min(MOST_PIPES)
}

/// What of a file is to be sent.
pub struct FilePart<'a> {
    pub file: &'a Arc<File>,
    pub range: Range<u64>,
    /// Nobody writes to it any more.
    pub is_complete: bool,
}

/// One core's sender: it keeps the pipes.
pub struct Transfer {
    pool: Arc<Pool>,
    pipes: RefCell<Vec<Pipe>>,
    /// Pipes that may still be made.
    pipes_left: Cell<usize>,
    /// Bytes on their way from a file to a client; lent to one at a time.
    scratch: Cell<Vec<u8>>,
    remembered: RefCell<Remembered>,
}

impl Transfer {
    pub fn new(pool: Arc<Pool>, most_pipes: usize) -> Rc<Self> {
        Rc::new(Self {
            pool,
            pipes: RefCell::default(),
            pipes_left: Cell::new(most_pipes),
            scratch: Cell::default(),
            remembered: RefCell::default(),
        })
    }

    /// `patience`: how long the client may take no byte at all.
    pub async fn send(
        &self,
        socket: &mut Socket,
        bytes: &[u8],
        more: More,
        patience: Duration,
    ) -> io::Result<()> {
        let Socket { kind, alarm } = socket;
        let patience = Patience::with_client(alarm, patience);
        match kind {
            Kind::Plain(tcp) => self.send_plain(tcp, bytes, more, patience).await,
            Kind::Tls(session) => {
                self.send_through(&mut **session, bytes, more, patience)
                    .await
            }
        }
    }

    /// Sends `head`, then the part; both may be empty. `more`: whether another piece follows.
    pub async fn send_file(
        &self,
        socket: &mut Socket,
        head: &[u8],
        part: FilePart<'_>,
        more: More,
        patience: Duration,
    ) -> io::Result<()> {
        let Socket { kind, alarm } = socket;
        let patience = Patience::with_client(alarm, patience);
        match kind {
            Kind::Plain(tcp) => self.send_file_plain(tcp, head, part, more, patience).await,
            Kind::Tls(session) => {
                let FilePart { file, range, .. } = part;
                self.send_file_through(&mut **session, head, file, range, more, patience)
                    .await
            }
        }
    }

    /// Puts `head` and the part's bytes at the front of `joined`, if they are in memory. The buffer only grows, so that it
    /// is not cleared for each answer.
    fn join(
        &self,
        joined: &mut Vec<u8>,
        head: &[u8],
        part: &FilePart<'_>,
        size: usize,
    ) -> io::Result<bool> {
        let offset = part.range.start;
        let length = head.len() + size;
        if joined.len() < length {
            joined.resize(length, 0);
        }
        let (front, rest) = joined.split_at_mut(head.len());
        front.copy_from_slice(head);
        let body = rest.get_mut(..size).unwrap_or_default();
        let mut remembered = self.remembered.borrow_mut();
        if let Some(kept) = remembered.body(part.file, offset, size) {
            body.copy_from_slice(kept);
            return Ok(true);
        }
        if !read_whole(body, part.file, offset)? {
            return Ok(false);
        }
        if part.is_complete {
            remembered.keep_body(part.file, offset, body);
        }
        Ok(true)
    }

    pub(super) async fn send_plain(
        &self,
        socket: &TcpStream,
        mut bytes: &[u8],
        more: More,
        patience: Patience<'_>,
    ) -> io::Result<()> {
        let mut budget = BUDGET;
        while !bytes.is_empty() {
            let piece = bytes.get(..budget.min(bytes.len())).unwrap_or(bytes);
            let piece_more = if piece.len() < bytes.len() {
                More::Follows
            } else {
                more
            };
            match sys::send(socket, piece, piece_more) {
                Ok(count) => {
                    bytes = bytes.get(count..).unwrap_or_default();
                    budget = budget.saturating_sub(count);
                    if bytes.is_empty() {
                        break;
                    }
                    if budget > 0 && count == piece.len() {
                        continue;
                    }
                }
                Err(error) if is_transient(&error) => {}
                Err(error) => return Err(error),
            }
            budget = BUDGET;
            patience.writable(socket).await?;
        }
        Ok(())
    }

    pub(super) async fn send_file_plain(
        &self,
        socket: &TcpStream,
        head: &[u8],
        part: FilePart<'_>,
        more: More,
        patience: Patience<'_>,
    ) -> io::Result<()> {
        let size = part.range.end.saturating_sub(part.range.start);
        if let Ok(size) = usize::try_from(size)
            && size <= COPIED
        {
            let mut joined = self.scratch.take();
            if self.join(&mut joined, head, &part, size)? {
                let bytes = joined.get(..head.len() + size).unwrap_or_default();
                let sent = self.send_plain(socket, bytes, more, patience).await;
                self.scratch.set(joined);
                return sent;
            }
        }
        let FilePart { file, range, .. } = part;
        if !head.is_empty() {
            self.send_plain(socket, head, More::Follows, patience)
                .await?;
        }
        if size < PIPED {
            return self.send_from_file(socket, file, range, patience).await;
        }
        let mut lent = LentPipe {
            transfer: self,
            pipe: self.take_pipe(),
        };
        match &mut lent.pipe {
            Some(pipe) => {
                let sending = self.splice(socket, pipe, file, range, patience);
                in_full_segments(socket, sending).await
            }
            None => self.send_from_file(socket, file, range, patience).await,
        }
    }

    async fn splice(
        &self,
        socket: &TcpStream,
        pipe: &mut Pipe,
        file: &Arc<File>,
        range: Range<u64>,
        patience: Patience<'_>,
    ) -> io::Result<()> {
        let mut offset = range.start;
        let mut warm_until = offset;
        let mut budget = BUDGET;
        while offset < range.end || pipe.held() > 0 {
            if pipe.held() == 0 {
                warm_until = self
                    .look_ahead(file, offset, warm_until, range.end, patience)
                    .await?;
                let left = usize::try_from(warm_until - offset).unwrap_or(usize::MAX);
                match pipe.fill(file, offset, left.min(pipe.capacity()).min(BUDGET)) {
                    // The file is shorter than it was said to be.
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(count) => offset += count as u64,
                    Err(error) if is_transient(&error) => {}
                    Err(error) => return Err(error),
                }
            }
            let sent = match pipe.drain(socket)? {
                Sent::Bytes(count) => count,
                Sent::Full => 0,
            };
            budget = budget.saturating_sub(sent);
            let is_done = offset == range.end && pipe.held() == 0;
            if !is_done && (sent == 0 || budget == 0) {
                budget = BUDGET;
                patience.writable(socket).await?;
            }
        }
        Ok(())
    }

    /// The way without a pipe.
    async fn send_from_file(
        &self,
        socket: &TcpStream,
        file: &Arc<File>,
        range: Range<u64>,
        patience: Patience<'_>,
    ) -> io::Result<()> {
        let mut offset = range.start;
        let mut warm_until = offset;
        while offset < range.end {
            warm_until = self
                .look_ahead(file, offset, warm_until, range.end, patience)
                .await?;
            let left = usize::try_from(warm_until - offset).unwrap_or(usize::MAX);
            match sys::send_file(socket, file, offset, left.min(BUDGET))? {
                Sent::Bytes(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Sent::Bytes(count) => offset += count as u64,
                Sent::Full => {}
            }
            if offset < range.end {
                patience.writable(socket).await?;
            }
        }
        Ok(())
    }

    /// Sees to it that the bytes from `offset` on are in memory, and says up to where.
    async fn look_ahead(
        &self,
        file: &Arc<File>,
        offset: u64,
        warm_until: u64,
        end: u64,
        patience: Patience<'_>,
    ) -> io::Result<u64> {
        if offset < warm_until {
            return Ok(warm_until);
        }
        let window = offset..end.min(offset + WINDOW);
        let now = patience.now();
        if now.is_some_and(|now| self.remembered.borrow().is_warm(file, &window, now)) {
            return Ok(window.end);
        }
        if !(sys::is_cached(file, window.start) && sys::is_cached(file, window.end - 1)) {
            self.warm(file, offset, end, patience).await?;
        }
        if let Some(now) = now {
            self.remembered.borrow_mut().note_warm(file, &window, now);
        }
        Ok(window.end)
    }

    /// Brings the window from `offset` on into memory, and says where it ends.
    pub(super) async fn warm(
        &self,
        file: &Arc<File>,
        offset: u64,
        end: u64,
        patience: Patience<'_>,
    ) -> io::Result<u64> {
        let window = offset..end.min(offset + WINDOW);
        patience.within(self.bring(file, &window)).await?;
        Ok(window.end)
    }

    /// Lends the core's buffer to work that awaits nothing. It only grows, so that it is not cleared each time.
    pub(super) fn with_scratch<T>(&self, size: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
        let mut scratch = self.scratch.take();
        if scratch.len() < size {
            scratch.resize(size, 0);
        }
        let done = work(scratch.get_mut(..size).unwrap_or_default());
        self.scratch.set(scratch);
        done
    }

    async fn bring(&self, file: &Arc<File>, window: &Range<u64>) -> io::Result<()> {
        loop {
            let (file, window) = (Arc::clone(file), window.clone());
            let read = self.pool.run(Errand::Pages, move || read_in(&file, window));
            match read.await {
                Ok(read) => return read,
                // The core must not wait for the disk itself, so the client waits for a thread.
                Err(PoolError::Full(_)) => monoio::time::sleep(POOL_PAUSE).await,
                Err(error @ PoolError::Panicked(_)) => return Err(io::Error::other(error)),
            }
        }
    }

    /// `None`: there are as many as there may be, or the system gives no good one.
    fn take_pipe(&self) -> Option<Pipe> {
        let kept = self.pipes.borrow_mut().pop();
        kept.or_else(|| {
            let left = self.pipes_left.get().checked_sub(1)?;
            let pipe = Pipe::with_capacity(PIPE_SIZE, SMALLEST_PIPE).ok()?;
            self.pipes_left.set(left);
            Some(pipe)
        })
    }

    /// Only an empty pipe is used again: one that an error has left full is closed with what it holds.
    fn give_back(&self, pipe: Pipe) {
        if pipe.held() == 0 {
            self.pipes.borrow_mut().push(pipe);
        } else {
            self.pipes_left.set(self.pipes_left.get() + 1);
        }
    }
}

/// Comes back also when the answer is given up.
struct LentPipe<'a> {
    transfer: &'a Transfer,
    pipe: Option<Pipe>,
}

impl Drop for LentPipe<'_> {
    fn drop(&mut self) {
        if let Some(pipe) = self.pipe.take() {
            self.transfer.give_back(pipe);
        }
    }
}

/// Lets the kernel hold back a segment that is not full, while an earlier such one is not acknowledged (RFC 9293, 3.7.4).
/// It takes a body in pieces that end anywhere: with a segment sent for each of those ends, 256 KiB at a time cost up to
/// 1.6 times as much. Afterwards what was held back leaves at once.
async fn in_full_segments(
    socket: &TcpStream,
    sending: impl Future<Output = io::Result<()>>,
) -> io::Result<()> {
    socket.set_nodelay(false)?;
    sending.await?;
    socket.set_nodelay(true)
}

/// Fills `body`, if the page cache has the file's bytes.
fn read_whole(body: &mut [u8], file: &File, offset: u64) -> io::Result<bool> {
    let mut filled = 0;
    while let Some(rest) = body.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match sys::read_if_cached(file, rest, offset + filled as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            // Not in memory, or a file system that cannot tell: the general way does it.
            Err(_) => return Ok(false),
        }
    }
    Ok(true)
}

/// Brings a window into memory.
fn read_in(file: &File, window: Range<u64>) -> io::Result<()> {
    match FileWindow::map(file, window.clone())?.populate() {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => read_through(file, window),
        settled => settled,
    }
}

/// The same on an old kernel: reads it for the sake of having it read.
fn read_through(file: &File, window: Range<u64>) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let mut offset = window.start;
    while offset < window.end {
        let wanted = usize::try_from(window.end - offset)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let count = file.read_at(buffer.get_mut(..wanted).unwrap_or_default(), offset)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        offset += count as u64;
    }
    Ok(())
}

pub(super) fn is_transient(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
