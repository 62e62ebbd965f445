//! How many connections the limit of open files has room for.

/// A connection and the blob that it is sent.
const FILES_PER_CONNECTION: u64 = 2;
/// Cores' rings, connections to registries, fills, the store of requests, the log. A guess on the generous side.
const FILES_PER_CORE: u64 = 256;
/// Both ends.
const FILES_PER_PIPE: u64 = 2;

/// Open connections that the process can serve without running out of files: at most `wanted`. It says so if that is less,
/// since a server that is out of files refuses connections without a word.
pub(super) fn connections_within(
    open_files: u64,
    wanted: usize,
    core_count: usize,
    pipes_per_core: usize,
) -> usize {
    let (cores, pipes) = (core_count as u64, pipes_per_core as u64);
    let beside = cores.saturating_mul(FILES_PER_CORE + FILES_PER_PIPE * pipes);
    let needed = beside.saturating_add(FILES_PER_CONNECTION.saturating_mul(wanted as u64));
    if open_files >= needed {
        return wanted;
    }
    // Half of a low limit is for connections, whatever else there may be.
    let room = open_files.saturating_sub(beside).max(open_files / 2);
    let connections = usize::try_from(room / FILES_PER_CONNECTION)
        .unwrap_or(usize::MAX)
        .clamp(1, wanted);
    tracing::warn!(
        open_files,
        needed,
        connections,
        "too few open files are allowed for listener.max_connections = {wanted}, so fewer connections are served: raise the limit (`ulimit -n {needed}`, LimitNOFILE={needed} in the systemd unit, --ulimit nofile={needed} in Docker), or lower listener.max_connections"
    );
    connections
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_fit_into_the_open_files() {
        for (open_files, wanted, connections) in [
            (1 << 20, 16_384, 16_384),
            (33_536, 16_384, 16_384),
            (33_535, 16_384, 16_383),
            (4_096, 16_384, 1_664),
            (1_024, 16_384, 256),
            (1_024, 100, 100),
            (0, 100, 1),
        ] {
            assert_eq!(
                connections_within(open_files, wanted, 2, 64),
                connections,
                "{open_files} {wanted}"
            );
        }
    }
}
