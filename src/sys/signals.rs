//! SIGTERM, SIGINT and SIGHUP, waited for by the main thread instead of interrupting whichever thread runs; and SIGXFSZ, which is
//! not to end the process.

use std::{io, mem::MaybeUninit, ptr};

pub struct Signals {
    set: libc::sigset_t,
    /// `nohup` started the process: the end of a terminal is nothing to it.
    ignores_hangup: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT: its number.
    Termination(i32),
    /// SIGHUP: a terminal was closed, or somebody who is used to it wants files to be read again.
    Hangup,
}

impl Signal {
    pub fn number(self) -> i32 {
        match self {
            Self::Termination(number) => number,
            Self::Hangup => libc::SIGHUP,
        }
    }
}

impl Signals {
    /// Threads inherit the mask: call this before the first one is started.
    pub fn block_termination() -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: `set` is writable memory of the right type; `sigemptyset` initialises all of it.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: `sigemptyset` above initialised it.
        let mut set = unsafe { set.assume_init() };
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
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
            0 => Ok(Self {
                set,
                ignores_hangup: is_ignored(libc::SIGHUP)?,
            }),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }

    /// Returns when the next of them arrives.
    pub fn wait(&self) -> Signal {
        let mut number = 0;
        loop {
            // SAFETY: the set is initialised and `number` is writable.
            if unsafe { libc::sigwait(&raw const self.set, &raw mut number) } != 0 {
                continue;
            }
            match number {
                // Linux keeps a blocked signal even if it is ignored.
                libc::SIGHUP if self.ignores_hangup => {}
                libc::SIGHUP => return Signal::Hangup,
                number => return Signal::Termination(number),
            }
        }
    }
}

fn is_ignored(signal: i32) -> io::Result<bool> {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: no new action is given, for which null is the documented way; `action` is writable memory of the right type.
    match unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) } {
        // SAFETY: a call that succeeded has filled it.
        0 => Ok(unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN),
        _ => Err(io::Error::last_os_error()),
    }
}
