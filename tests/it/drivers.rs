//! io_uring where the kernel allows it, epoll where not, and the same behaviour on both.

use crate::support::{
    accounts::Accounts,
    content::Content,
    http::End,
    liar::{Auth, Liar},
    programs::require,
    tidegate::{Directory, Setup, Tidegate},
};

const ACCESS_TOKEN: &str = "ada-access-token";

/// Denies io_uring_setup (425 on every architecture that Rust and Linux share but alpha) with EPERM, as the default
/// profiles of Docker and containerd do, then becomes the program that follows.
const WITHOUT_IO_URING: &str = "
import ctypes, os, struct, sys
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
ERRNO_EPERM, ALLOW = 0x00050001, 0x7fff0000
steps = [(LOAD, 0, 0, 0), (EQUAL, 0, 1, 425), (RETURN, 0, 0, ERRNO_EPERM), (RETURN, 0, 0, ALLOW)]
code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *step) for step in steps))
class Program(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('code', ctypes.c_void_p)]
program = Program(len(steps), ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
";

/// A private pull with everything in it: login, manifest, large and small blobs, ranges, hits.
fn pulls(setup: Setup) -> Tidegate {
    let accounts = Accounts::none().with("ada", "hunter2", &["*"]);
    let liar = Liar::start(Auth::Basic(accounts));
    let layers: Vec<_> = [0, 1, 70_000, 20_000_000]
        .into_iter()
        .zip(1..)
        .map(|(size, seed)| Content::Generated { seed, size })
        .collect();
    let image = liar.image("acme/app", "v1", &layers);
    let directory =
        Directory::new()
            .user("ada", ACCESS_TOKEN, &[])
            .user_login(liar.name(), "ada", "hunter2");
    let tidegate = setup.liar(&liar).directory(&directory).start();
    let grant = tidegate.grant_as(ACCESS_TOKEN, &liar.reference("acme/app", "v1"));
    let manifest = tidegate.get(&grant.manifest("v1"));
    assert_eq!(manifest.digest(), image.manifest);
    for _ in 0..2 {
        for digest in image.layers.iter().chain([&image.config]) {
            let pulled = tidegate.pull(&grant.blob(digest));
            assert_eq!((&pulled.digest, pulled.end), (digest, End::Complete));
        }
    }
    for digest in &image.layers[1..] {
        assert_eq!(liar.blob_gets("acme/app", digest), 1, "{digest}");
    }
    let headers = [("Range", "bytes=10000000-10000099")];
    let part = tidegate.request("GET", &grant.blob(&image.layers[3]), &headers);
    assert_eq!(part.status(), 206);
    assert_eq!(part.body, layers[3].bytes()[10_000_000..10_000_100]);
    tidegate
}

#[test]
fn images_are_pulled_on_epoll() {
    let tidegate = pulls(Setup::new().argument("--driver").argument("epoll"));
    let log = tidegate.log().text();
    assert!(log.contains("epoll"), "{log}");
}

#[test]
fn images_are_pulled_on_io_uring() {
    let tidegate = pulls(Setup::new().argument("--driver").argument("auto"));
    let log = tidegate.log().text();
    assert!(log.contains("io_uring") || log.contains("epoll"), "{log}");
}

#[test]
fn where_io_uring_is_forbidden_epoll_is_taken_and_the_reason_told() {
    require!("python3");
    let tidegate = pulls(
        Setup::new()
            .launcher(&["python3", "-c", WITHOUT_IO_URING])
            .argument("--driver")
            .argument("auto"),
    );
    let log = tidegate.log();
    let line = log.wait_for(|line| line.contains("epoll") && line.contains("io_uring"));
    assert!(line.is_some(), "{}", log.text());
}

#[test]
fn where_io_uring_is_forbidden_but_demanded_the_start_fails() {
    require!("python3");
    let (code, said) = Setup::new()
        .launcher(&["python3", "-c", WITHOUT_IO_URING])
        .argument("--driver")
        .argument("io_uring")
        .fails_to_start();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("io_uring"), "{said}");
}
