//! The system calls that std does not offer: discarding in the kernel, epoll, placement, and the kernel's accounts.
#![expect(
    unsafe_code,
    reason = "the one place for it in the benches: each block states why it is sound"
)]

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd as _, OwnedFd},
    time::Duration,
};

fn checked(answer: isize) -> io::Result<usize> {
    usize::try_from(answer).map_err(|_| io::Error::last_os_error())
}

/// Takes up to `count` bytes from a TCP socket and drops them inside the kernel: no copy, so that the client costs
/// next to nothing. Never waits.
pub fn discard(socket: &impl AsRawFd, count: usize) -> io::Result<usize> {
    let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    // SAFETY: with MSG_TRUNC, TCP writes nothing, and takes null for the buffer (tcp(7)).
    checked(unsafe { libc::recv(socket.as_raw_fd(), std::ptr::null_mut(), count, flags) })
}

/// From the page cache to a socket. Zero means that the file ends at `offset`.
pub fn send_file(
    socket: &impl AsRawFd,
    file: &File,
    offset: u64,
    count: usize,
) -> io::Result<usize> {
    let mut offset =
        libc::off_t::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: both descriptors are valid for the call and `offset` is writable.
    checked(unsafe { libc::sendfile(socket.as_raw_fd(), file.as_raw_fd(), &raw mut offset, count) })
}

/// Sends the whole, and says that more follows at once, so that it leaves together with that.
pub fn send_and_more(socket: &impl AsRawFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let flags = libc::MSG_MORE | libc::MSG_NOSIGNAL;
        // SAFETY: the pointer and length are those of `bytes`, which outlives the call.
        let answer = unsafe {
            libc::send(
                socket.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                flags,
            )
        };
        bytes = bytes.get(checked(answer)?..).unwrap_or_default();
    }
    Ok(())
}

/// A small receive buffer: the client reads slowly.
pub fn shrink_receive_buffer(socket: &impl AsRawFd) -> io::Result<()> {
    let size: libc::c_int = 64 << 10;
    const INT: libc::socklen_t = 4;
    // SAFETY: the option reads one int, whose size is given.
    checked(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUF,
            (&raw const size).cast(),
            INT,
        )
    } as isize)?;
    Ok(())
}

/// Which of many sockets can be read.
pub struct Poller(OwnedFd);

/// What one wait can report.
pub struct Ready(Vec<libc::epoll_event>);

impl Ready {
    pub fn with_capacity(count: usize) -> Self {
        Self(vec![libc::epoll_event { events: 0, u64: 0 }; count.max(1)])
    }
}

impl Poller {
    pub fn new() -> io::Result<Self> {
        // SAFETY: plain values only.
        let descriptor = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        checked(descriptor as isize)?;
        // SAFETY: `epoll_create1` has just given us this descriptor, and nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(descriptor) }))
    }

    /// Reports `socket` by `name` for as long as it has something to read.
    pub fn add(&self, socket: &impl AsRawFd, name: usize) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: name as u64,
        };
        // SAFETY: both descriptors are valid and `event` is initialised.
        checked(unsafe {
            libc::epoll_ctl(
                self.0.as_raw_fd(),
                libc::EPOLL_CTL_ADD,
                socket.as_raw_fd(),
                &raw mut event,
            )
        } as isize)?;
        Ok(())
    }

    /// The names of those that can be read, after at most 50 ms.
    pub fn wait<'a>(&self, ready: &'a mut Ready) -> io::Result<impl Iterator<Item = usize> + 'a> {
        let room = libc::c_int::try_from(ready.0.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: `ready` has room for as many events as are asked for.
        let answer =
            unsafe { libc::epoll_wait(self.0.as_raw_fd(), ready.0.as_mut_ptr(), room, 50) };
        let count = match checked(answer as isize) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            other => other?,
        };
        Ok(ready
            .0
            .iter()
            .take(count)
            .map(|event| usize::try_from(event.u64).unwrap_or(usize::MAX)))
    }
}

/// Raises the soft limit of open files to the hard one, which servers started from here inherit, and returns it.
pub fn raise_open_files() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is writable.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is initialised. A refusal leaves the limit as it was.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    limit.rlim_max
}

/// Keeps the calling thread, and every thread it starts from now on, on one core.
pub fn stay_on_core(core: usize) -> io::Result<()> {
    // SAFETY: a set of processors is plain bits, for which zero is valid.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is initialised; a core beyond its end is ignored.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: `set` is initialised and its size is given; 0 is the calling thread.
    checked(unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) } as isize)?;
    Ok(())
}

/// Lets other threads of this core go first.
pub fn yield_to_others() {
    // SAFETY: plain values only; 0 is the calling thread. A refusal changes nothing.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
}

/// CPU that a process has used, all its threads and those that have ended included.
pub fn cpu_time(process: u32) -> Option<Duration> {
    let process = libc::pid_t::try_from(process).ok()?;
    let mut clock = 0;
    // SAFETY: `clock` is writable.
    if unsafe { libc::clock_getcpuclockid(process, &raw mut clock) } != 0 {
        return None;
    }
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is writable.
    checked(unsafe { libc::clock_gettime(clock, &raw mut time) } as isize).ok()?;
    Some(Duration::new(
        u64::try_from(time.tv_sec).ok()?,
        u32::try_from(time.tv_nsec).ok()?,
    ))
}

/// Waits for a child, and says whether it succeeded and what CPU it has used, with all its threads.
pub fn wait_for(child: std::process::Child) -> io::Result<(bool, Duration)> {
    let process = libc::pid_t::try_from(child.id())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut status = 0;
    // SAFETY: plain numbers, for which zero is valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both are writable.
    checked(unsafe { libc::wait4(process, &raw mut status, 0, &raw mut usage) } as isize)?;
    let time = |time: libc::timeval| {
        Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or_default())
            + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or_default())
    };
    let has_succeeded = libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0;
    Ok((has_succeeded, time(usage.ru_utime) + time(usage.ru_stime)))
}

/// CPU that the calling thread has used.
pub fn own_cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is writable; the clock exists since Linux 2.6.12.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

/// Asks the kernel to forget the file's pages. What is not yet on disk, mapped or in use stays.
pub fn drop_from_page_cache(file: &File) {
    // SAFETY: plain values only; the descriptor is borrowed from `file`.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

/// Pages of the file that are in memory; `None` where the kernel does not tell (before Linux 6.5).
pub fn cached_pages(file: &File) -> Option<u64> {
    const CACHESTAT: libc::c_long = 451;
    // From 0 to the end.
    let range = [0_u64; 2];
    // Cached, dirty, under writeback, evicted, recently evicted.
    let mut answer = [0_u64; 5];
    // SAFETY: `range` and `answer` have the sizes of the call's two structures, and live across it.
    let done = unsafe {
        libc::syscall(
            CACHESTAT,
            file.as_raw_fd(),
            range.as_ptr(),
            answer.as_mut_ptr(),
            0,
        )
    };
    let [cached, ..] = answer;
    (done == 0).then_some(cached)
}
