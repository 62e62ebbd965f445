//! Which driver a core runs on, and its runtime.
//!
//! Docker's and containerd's default seccomp profiles forbid io_uring, and some kernels do. That is noticed here and
//! told with what would change it.

use std::io;

use monoio::{FusionRuntime, IoUringDriver, LegacyDriver, RuntimeBuilder, time::TimeDriver};

use crate::config::Driver;

/// Of a core's thread, as the first one of a process has it: without optimisation, a copy's futures are large.
pub(super) const STACK_SIZE: usize = 8 << 20;

pub(super) type Core = FusionRuntime<TimeDriver<IoUringDriver>, TimeDriver<LegacyDriver>>;

#[derive(Clone, Debug)]
pub(super) enum Choice {
    IoUring { is_demanded: bool },
    Epoll { why: Option<String> },
}

impl Choice {
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::IoUring { .. } => "io_uring",
            Self::Epoll { .. } => "epoll",
        }
    }
}

/// `Err`: io_uring was demanded and is not to be had.
pub(super) fn choose(driver: Driver) -> Result<Choice, String> {
    if driver == Driver::Epoll {
        return Ok(Choice::Epoll { why: None });
    }
    match (try_ring(), driver) {
        (Ok(()), _) => Ok(Choice::IoUring {
            is_demanded: driver == Driver::IoUring,
        }),
        (Err(why), Driver::IoUring) => Err(format!("driver io_uring was asked for: {why}")),
        (Err(why), _) => Ok(Choice::Epoll { why: Some(why) }),
    }
}

fn try_ring() -> Result<(), String> {
    match build_ring() {
        Ok(_) if monoio::utils::detect_uring() => Ok(()),
        Ok(_) => Err("this kernel's io_uring is too old; Linux 5.19 or newer is wanted".to_owned()),
        Err(error) => Err(match error.raw_os_error() {
            Some(libc::EPERM) => "it is forbidden; allow it in the container's seccomp profile, or set the sysctl \
                                  kernel.io_uring_disabled to 0"
                .to_owned(),
            Some(libc::ENOSYS) => {
                "this kernel has none, or the container's seccomp profile hides it; allow the io_uring calls there".to_owned()
            }
            Some(libc::ENOMEM) => "there is not enough lockable memory for its rings; raise the limit (ulimit -l)".to_owned(),
            _ => error.to_string(),
        }),
    }
}

/// Call it on the thread that will run it.
pub(super) fn build(choice: &Choice) -> io::Result<Core> {
    match choice {
        Choice::IoUring { is_demanded: true } => build_ring(),
        // One ring could be had, but perhaps not one for each core.
        Choice::IoUring { is_demanded: false } => build_ring().or_else(|error| {
            tracing::warn!(%error, "this core has no io_uring, so it runs on epoll; raise the limit of locked memory (ulimit -l)");
            build_epoll()
        }),
        Choice::Epoll { .. } => build_epoll(),
    }
}

fn build_epoll() -> io::Result<Core> {
    RuntimeBuilder::<LegacyDriver>::new()
        .enable_timer()
        .build()
        .map(FusionRuntime::Legacy)
}

/// The flags save an interrupt per completion, without which the ring is slower than epoll; older kernels refuse
/// them. A smaller ring may fit where a large one exceeds the limit of locked memory.
fn build_ring() -> io::Result<Core> {
    let mut last = io::Error::from(io::ErrorKind::Unsupported);
    for is_single_issuer in [true, false] {
        for entries in [1024, 256] {
            let mut ring = io_uring::IoUring::builder();
            ring.setup_coop_taskrun();
            if is_single_issuer {
                ring.setup_single_issuer();
            }
            let builder = RuntimeBuilder::<IoUringDriver>::new()
                .uring_builder(ring)
                .with_entries(entries);
            match builder.enable_timer().build() {
                Ok(runtime) => return Ok(FusionRuntime::Uring(runtime)),
                Err(error) => last = error,
            }
        }
    }
    Err(last)
}
