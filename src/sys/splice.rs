//! From a file to a socket without passing through our memory.

use std::{
    fs::File,
    io::{self, PipeReader, PipeWriter},
    os::fd::AsRawFd,
};

use super::{checked, file::offset_of};

/// What one non-blocking step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    Bytes(usize),
    /// The socket takes nothing now.
    Full,
}

/// A pipe, the kernel's buffer of page references between `splice` in and `splice` out.
///
/// Whoever drops one with bytes in it closes them with it: a pipe that is used again is always empty.
pub struct Pipe {
    reader: PipeReader,
    writer: PipeWriter,
    capacity: usize,
    held: usize,
}

impl Pipe {
    /// Fails if the pipe would be smaller than `smallest`: beyond its user's budget the kernel hands out pipes
    /// of two pages, which are slower than `sendfile`.
    pub fn with_capacity(wanted: usize, smallest: usize) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let wanted = libc::c_int::try_from(wanted).map_err(|_| io::ErrorKind::InvalidInput)?;
        // A refusal leaves the size as it was, which is looked at next.
        // SAFETY: plain values only.
        unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, wanted) };
        // SAFETY: plain values only.
        let capacity =
            checked(unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_GETPIPE_SZ) } as isize)?;
        if capacity < smallest {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        Ok(Self {
            reader,
            writer,
            capacity,
            held: 0,
        })
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes that have been filled in and not drained yet.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Takes up to `count` bytes of `file` at `offset`. Zero means that the file ends there.
    pub fn fill(&mut self, file: &File, offset: u64, count: usize) -> io::Result<usize> {
        let mut offset = offset_of(offset)?;
        let flags = libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MOVE;
        // SAFETY: both descriptors are owned by values that outlive the call, `offset` is writable, and a pipe
        // takes no offset, for which null is the documented way.
        let answer = unsafe {
            libc::splice(
                file.as_raw_fd(),
                &raw mut offset,
                self.writer.as_raw_fd(),
                std::ptr::null_mut(),
                count,
                flags,
            )
        };
        let count = checked(answer)?;
        self.held += count;
        Ok(count)
    }

    /// Moves what is held to `socket`, as much as it takes now.
    ///
    /// It does not announce more to come (`SPLICE_F_MORE`): that costs a tenth, since every piece then ends in the middle of
    /// a segment that the next one completes.
    pub fn drain(&mut self, socket: &impl AsRawFd) -> io::Result<Sent> {
        let flags = libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MOVE;
        // SAFETY: both descriptors are valid for the call; neither end takes an offset.
        let answer = unsafe {
            libc::splice(
                self.reader.as_raw_fd(),
                std::ptr::null_mut(),
                socket.as_raw_fd(),
                std::ptr::null_mut(),
                self.held,
                flags,
            )
        };
        let sent = sent(checked(answer))?;
        if let Sent::Bytes(count) = sent {
            self.held = self.held.saturating_sub(count);
        }
        Ok(sent)
    }
}

/// The same in one call and without a pipe. `Bytes(0)` means that the file ends at `offset`.
pub fn send_file(
    socket: &impl AsRawFd,
    file: &File,
    offset: u64,
    count: usize,
) -> io::Result<Sent> {
    let mut offset = offset_of(offset)?;
    // SAFETY: both descriptors are valid for the call and `offset` is writable.
    let answer =
        unsafe { libc::sendfile(socket.as_raw_fd(), file.as_raw_fd(), &raw mut offset, count) };
    sent(checked(answer))
}

fn sent(answer: io::Result<usize>) -> io::Result<Sent> {
    match answer {
        Ok(count) => Ok(Sent::Bytes(count)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ) =>
        {
            Ok(Sent::Full)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    #[test]
    fn a_file_arrives_through_a_pipe_as_it_is() {
        let content: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(&content).expect("written");
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        let receiver = std::thread::spawn(move || {
            let mut received = Vec::new();
            let (mut stream, _) = listener.accept().expect("accepted");
            stream.read_to_end(&mut received).expect("received");
            received
        });
        let socket = TcpStream::connect(address).expect("connected");
        let mut pipe = Pipe::with_capacity(1 << 18, 1 << 16).expect("a pipe");
        let mut offset = 0_u64;
        loop {
            let count = pipe.fill(&file, offset, pipe.capacity()).expect("filled");
            if count == 0 {
                break;
            }
            offset += count as u64;
            while pipe.held() > 0 {
                pipe.drain(&socket).expect("drained");
            }
        }
        drop(socket);
        assert_eq!(receiver.join().expect("the receiver ends"), content);
    }
}
