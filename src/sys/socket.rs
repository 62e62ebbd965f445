//! Non-blocking calls on sockets whose waiting is done elsewhere.

use std::{
    io,
    net::TcpStream,
    os::fd::{AsRawFd, FromRawFd},
};

use super::checked;

/// Whether more is to follow at once: the kernel then fills its segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum More {
    Follows,
    Ends,
}

/// What an idle connection has become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    Quiet,
    /// Closed, broken, or it said something nobody asked for.
    Stale,
}

/// Sends what the socket takes now.
pub fn send(socket: &impl AsRawFd, bytes: &[u8], more: More) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT
        | libc::MSG_NOSIGNAL
        | match more {
            More::Follows => libc::MSG_MORE,
            More::Ends => 0,
        };
    // SAFETY: the pointer and length are those of `bytes`, which outlives the call.
    checked(unsafe {
        libc::send(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            flags,
        )
    })
}

/// Looks at a connection that should have nothing to say.
pub fn liveness(socket: &impl AsRawFd) -> Liveness {
    let mut byte = 0_u8;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: one writable byte, and a length of one.
    let answer = unsafe { libc::recv(socket.as_raw_fd(), (&raw mut byte).cast(), 1, flags) };
    match checked(answer) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Liveness::Quiet,
        _ => Liveness::Stale,
    }
}

/// io_uring accepts sockets that block and survive `exec`; ours do neither.
pub fn prepare_accepted(socket: &impl AsRawFd) -> io::Result<()> {
    let descriptor = socket.as_raw_fd();
    let mut yes: libc::c_int = 1;
    // SAFETY: FIONBIO reads one int, which `yes` is.
    checked(unsafe { libc::ioctl(descriptor, libc::FIONBIO, &raw mut yes) } as isize)?;
    // SAFETY: plain values only.
    checked(unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) } as isize)?;
    Ok(())
}

/// A connection that waits on a listener already, if there is one. Used when the listener closes:
/// what is left in its queue would be reset.
pub fn accept_waiting(listener: &impl AsRawFd) -> io::Result<Option<TcpStream>> {
    let descriptor = listener.as_raw_fd();
    let mut poll = libc::pollfd {
        fd: descriptor,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid `pollfd`, and a timeout of zero.
    if checked(unsafe { libc::poll(&raw mut poll, 1, 0) } as isize)? == 0 {
        return Ok(None);
    }
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the peer's address is not wanted, for which null pointers are the documented way.
    let accepted = unsafe {
        libc::accept4(
            descriptor,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            flags,
        )
    };
    checked(accepted as isize)?;
    // SAFETY: `accept4` has just given us this descriptor, and nobody else knows it.
    Ok(Some(unsafe { TcpStream::from_raw_fd(accepted) }))
}

/// Makes closing the socket reset the connection, so that what was sent cannot pass for a whole answer.
pub fn reset_on_close(socket: &impl AsRawFd) {
    const SIZE: libc::socklen_t = 8;
    const { assert!(size_of::<libc::linger>() == 8) };
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // SAFETY: the option reads one `linger`, whose size is given. A failure leaves an ordinary close.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            SIZE,
        )
    };
}
