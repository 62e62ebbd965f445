//! SIGTERM and SIGINT, waited for by the main thread instead of interrupting whichever thread runs; and SIGXFSZ, which is not to
//! end the process.

use std::{io, mem::MaybeUninit, ptr};

pub struct Signals(libc::sigset_t);

impl Signals {
    /// Threads inherit the mask: call this before the first one is started.
    pub fn block_termination() -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: `set` is writable memory of the right type; `sigemptyset` initialises all of it.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: `sigemptyset` above initialised it.
        let mut set = unsafe { set.assume_init() };
        for signal in [libc::SIGTERM, libc::SIGINT] {
            // SAFETY: `set` is an initialised signal set and `signal` a valid number.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        let mut blocked = set;
        // Sent to whoever writes more to a file than `ulimit -f` allows. The write's error says it as well.
        // SAFETY: `blocked` is a copy of an initialised set.
        unsafe { libc::sigaddset(&raw mut blocked, libc::SIGXFSZ) };
        let old = ptr::null_mut();
        // SAFETY: `blocked` is initialised; the old mask is not wanted, for which null is the documented way.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const blocked, old) } {
            0 => Ok(Self(set)),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }

    /// Returns when the next of them arrives, with its number.
    pub fn wait(&self) -> i32 {
        let mut signal = 0;
        loop {
            // SAFETY: the set is initialised and `signal` is writable.
            if unsafe { libc::sigwait(&raw const self.0, &raw mut signal) } == 0 {
                return signal;
            }
        }
    }
}
