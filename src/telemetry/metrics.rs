//! Counters, counted on the thread that has the event and added up when somebody asks.

use std::{
    cell::OnceCell,
    fmt::Write as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

macro_rules! counters {
    ($($variant:ident $name:literal $help:literal;)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter { $($variant),* }

        /// Name and help, in the order of the enum.
        const DESCRIPTIONS: &[(&str, &str)] = &[$(($name, $help)),*];
    };
}

counters! {
    ConnectionsAccepted "tidegate_connections_accepted_total" "Connections accepted from clients.";
    ConnectionsRefused "tidegate_connections_refused_total" "Connections refused because max_connections were open.";
    HandshakesFailed "tidegate_tls_handshakes_failed_total" "Clients that got no TLS session.";
    Panics "tidegate_panics_total" "Connections and fills lost to a bug of ours.";
    Requests "tidegate_requests_total" "Requests answered.";
    Informed "tidegate_responses_total{class=\"1xx\"}" "Answers by the first digit of their status.";
    Succeeded "tidegate_responses_total{class=\"2xx\"}" "";
    Redirected "tidegate_responses_total{class=\"3xx\"}" "";
    Declined "tidegate_responses_total{class=\"4xx\"}" "";
    Failed "tidegate_responses_total{class=\"5xx\"}" "";
    RequestsBad "tidegate_requests_malformed_total" "Requests refused because they were not proper HTTP.";
    BytesSent "tidegate_sent_bytes_total" "Bytes of bodies sent to clients.";
    BytesFetched "tidegate_fetched_bytes_total" "Bytes of blobs received from registries.";
    ResponsesCut "tidegate_responses_cut_total" "Responses ended before their last byte, by either side.";
    BlobHits "tidegate_blob_hits_total" "Blobs served from the cache.";
    BlobFollows "tidegate_blob_follows_total" "Blobs served from a fill that another request had begun.";
    BlobFills "tidegate_blob_fills_total" "Blobs fetched into the cache.";
    BlobBypasses "tidegate_blob_bypasses_total" "Blobs streamed without being cached.";
    BlobRedirects "tidegate_blob_redirects_total" "Blob requests answered by the registry's redirect.";
    BlobMismatches "tidegate_blob_mismatches_total" "Blobs whose content did not match their digest.";
    FillsFailed "tidegate_fills_failed_total" "Fills that ended without a blob.";
    FillsResumed "tidegate_fills_resumed_total" "Fills that went on with what an earlier one had left.";
    BlobsEvicted "tidegate_blobs_evicted_total" "Blobs removed to make room.";
    BlobsScrubbed "tidegate_blobs_scrubbed_total" "Stored blobs that were read and hashed again.";
    BlobsDamaged "tidegate_blobs_damaged_total" "Stored blobs that were removed because their content had changed.";
    BlobsHealed "tidegate_blobs_healed_total" "Damaged blobs that were fetched again before anybody asked for them.";
    FullDisks "tidegate_cache_disk_full_total" "Times the cache's disk was full although bytes were reserved.";
    ManifestHits "tidegate_manifest_hits_total" "Manifests served from memory.";
    ManifestFetches "tidegate_manifest_fetches_total" "Manifests fetched from registries.";
    StaleManifests "tidegate_manifests_stale_total" "Manifests served from memory because the registry was down.";
    UpstreamRequests "tidegate_upstream_requests_total" "Requests sent to registries.";
    UpstreamRetries "tidegate_upstream_retries_total" "Requests to registries that were sent again.";
    TokenExchanges "tidegate_token_exchanges_total" "Tokens asked of token realms.";
    LoginRenewals "tidegate_login_renewals_total" "Logins made anew because a registry said that they had ended.";
    RequestsIssued "tidegate_container_requests_total" "Container requests that got an ephemeral name.";
    JobsDone "tidegate_jobs_done_total" "Mirrors and freezes that came about.";
    JobsFailed "tidegate_jobs_failed_total" "Mirrors and freezes that failed, timed out or were cancelled.";
    JobBytes "tidegate_job_sent_bytes_total" "Bytes of blobs that mirrors and freezes sent to registries.";
    UnknownTokens "tidegate_unknown_tokens_total" "Pulls by a token that is unknown, expired or revoked.";
    PairingSessions "tidegate_pairing_sessions_total" "Pairing sockets that Platforms have opened.";
    PairingsRefused "tidegate_pairings_refused_total" "Attempts to pair that were refused.";
    PlatformCalls "tidegate_platform_calls_total" "Calls of the API of a Seqera Platform.";
    PlatformSilences "tidegate_platform_silences_total" "Calls that a Platform did not answer.";
    PlatformRefreshes "tidegate_platform_refreshes_total" "Access tokens of Platform users that were to be refreshed.";
    PlatformStale "tidegate_platform_stale_total" "Times that something remembered was used because its Platform did not answer.";
    RunsRenewed "tidegate_runs_renewed_total" "Times that the names of an active workflow run were renewed.";
    RunsUnasked "tidegate_runs_unasked_total" "Times that the names of a run were renewed because its Platform did not answer.";
    RunsEnded "tidegate_runs_ended_total" "Workflow runs whose names lapse because they ended.";
    ErrandsRefused "tidegate_errands_refused_total" "Errands refused because too many of their kind were waiting.";
}

const COUNT: usize = DESCRIPTIONS.len();

/// One thread's counts. Only that thread writes, so `Relaxed` loses nothing.
struct Cells([AtomicU64; COUNT]);

static THREADS: Mutex<Vec<Arc<Cells>>> = Mutex::new(Vec::new());

thread_local! {
    static CELLS: OnceCell<Arc<Cells>> = const { OnceCell::new() };
}

pub fn add(counter: Counter, amount: u64) {
    CELLS.with(|cells| {
        let cells = cells.get_or_init(|| {
            let cells = Arc::new(Cells([const { AtomicU64::new(0) }; COUNT]));
            threads().push(Arc::clone(&cells));
            cells
        });
        if let Some(cell) = cells.0.get(counter as usize) {
            cell.fetch_add(amount, Ordering::Relaxed);
        }
    });
}

fn threads() -> std::sync::MutexGuard<'static, Vec<Arc<Cells>>> {
    THREADS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A value that is read when somebody asks: bytes in the cache, open connections.
pub struct Gauge {
    pub name: &'static str,
    pub help: &'static str,
    pub value: u64,
}

/// All of it in Prometheus' text format, version 0.0.4.
pub fn render(gauges: &[Gauge]) -> String {
    let mut text = String::with_capacity(8 << 10);
    let threads = threads();
    for (index, (name, help)) in DESCRIPTIONS.iter().enumerate() {
        let total: u64 = threads
            .iter()
            .filter_map(|cells| cells.0.get(index))
            .map(|cell| cell.load(Ordering::Relaxed))
            .sum();
        describe(&mut text, name, help, "counter");
        let _ = writeln!(text, "{name} {total}");
    }
    for Gauge { name, help, value } in gauges {
        describe(&mut text, name, help, "gauge");
        let _ = writeln!(text, "{name} {value}");
    }
    text
}

/// Of those that differ in their labels, the first has the help for all.
fn describe(text: &mut String, name: &str, help: &str, kind: &str) {
    if !help.is_empty() {
        let family = name.split('{').next().unwrap_or(name);
        let _ = write!(text, "# HELP {family} {help}\n# TYPE {family} {kind}\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_all_threads_add_up() {
        let count = |text: &str| -> u64 {
            text.lines()
                .find_map(|line| line.strip_prefix("tidegate_panics_total "))
                .and_then(|value| value.parse().ok())
                .expect("the counter is there")
        };
        let before = count(&render(&[]));
        add(Counter::Panics, 2);
        std::thread::spawn(|| add(Counter::Panics, 3))
            .join()
            .expect("counted");
        assert_eq!(count(&render(&[])) - before, 5);
    }
}
