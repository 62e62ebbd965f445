//! Non-blocking calls on sockets whose waiting is done elsewhere.

use std::{
    io::{self, IoSlice},
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
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
    // SAFETY: the pointer and length are those of `bytes`, which outlives the call.
    checked(unsafe {
        libc::send(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            send_flags(more),
        )
    })
}

/// The same of several pieces in one call.
pub fn send_pieces(socket: &impl AsRawFd, pieces: &[IoSlice<'_>], more: More) -> io::Result<usize> {
    let message = libc::msghdr {
        msg_name: std::ptr::null_mut(),
        msg_namelen: 0,
        // An `IoSlice` has the shape of an `iovec`, which std guarantees; `sendmsg` only reads what it points to.
        msg_iov: pieces.as_ptr().cast_mut().cast(),
        msg_iovlen: pieces.len(),
        msg_control: std::ptr::null_mut(),
        msg_controllen: 0,
        msg_flags: 0,
    };
    // SAFETY: the message names `pieces`, which outlive the call, and neither an address nor control data.
    checked(unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, send_flags(more)) })
}

const fn send_flags(more: More) -> libc::c_int {
    libc::MSG_DONTWAIT
        | libc::MSG_NOSIGNAL
        | match more {
            More::Follows => libc::MSG_MORE,
            More::Ends => 0,
        }
}

/// Receives what is there now into `buffer`; 0 is the end.
pub fn receive(socket: &impl AsRawFd, buffer: &mut [u8]) -> io::Result<usize> {
    receive_with(socket, buffer, libc::MSG_DONTWAIT)
}

/// Looks at what would be received, and leaves it there.
pub fn peek(socket: &impl AsRawFd, buffer: &mut [u8]) -> io::Result<usize> {
    receive_with(socket, buffer, libc::MSG_DONTWAIT | libc::MSG_PEEK)
}

/// Looks at a connection that should have nothing to say.
pub fn liveness(socket: &impl AsRawFd) -> Liveness {
    match peek(socket, &mut [0]) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Liveness::Quiet,
        _ => Liveness::Stale,
    }
}

fn receive_with(socket: &impl AsRawFd, buffer: &mut [u8], flags: libc::c_int) -> io::Result<usize> {
    let into = buffer.as_mut_ptr().cast();
    // SAFETY: the pointer and length are those of `buffer`, which is writable and outlives the call.
    checked(unsafe { libc::recv(socket.as_raw_fd(), into, buffer.len(), flags) })
}

/// Receives what is there now behind what `buffer` holds, up to its capacity; 0 is the end.
pub fn receive_more(socket: &impl AsRawFd, buffer: &mut Vec<u8>) -> io::Result<usize> {
    let free = buffer.spare_capacity_mut();
    // SAFETY: the pointer and length are those of the vector's own free memory, which outlives the call.
    let answer = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            free.as_mut_ptr().cast(),
            free.len(),
            libc::MSG_DONTWAIT,
        )
    };
    let count = checked(answer)?;
    // SAFETY: `recv` has written `count` bytes behind the old length, and no more than were free.
    unsafe { buffer.set_len(buffer.len() + count) };
    Ok(count)
}

/// The socket counts as writable only while less than `size` bytes wait in it unsent: what a client that reads slowly
/// costs the kernel. What is on its way does not count, so that a fast one is as fast.
pub fn bound_unsent(socket: &impl AsRawFd, size: libc::c_int) -> io::Result<()> {
    const SIZE: libc::socklen_t = 4;
    const { assert!(size_of::<libc::c_int>() == 4) };
    // SAFETY: the option reads one int, whose size is given.
    checked(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            (&raw const size).cast(),
            SIZE,
        )
    } as isize)?;
    Ok(())
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

/// Another descriptor of the same socket, for another core or for std. The one that is left can be closed.
pub fn duplicate(socket: &impl AsRawFd) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is open for as long as `socket` is borrowed.
    let socket = unsafe { BorrowedFd::borrow_raw(socket.as_raw_fd()) };
    socket.try_clone_to_owned()
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
