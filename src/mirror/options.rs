//! `[mirror]`

use serde::Deserialize;

use crate::units::HumanDuration;

/// Each has a connection to two registries; `upstream.max_connections_per_host` is for all copies of a core, and pulls.
pub const MOST_BLOBS_IN_PARALLEL: usize = 32;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Blobs of one image that are copied at the same time: `4`.
    pub blobs_in_parallel: usize,
    /// Signatures, bills of materials and whatever else refers to an image are copied with it.
    pub mirror_referrers: bool,
    /// Jobs, mirrors and freezes alike, that run at the same time on this server: `8`.
    pub max_running: usize,
    /// The same of one workspace, or of one user without a workspace: `4`.
    pub max_running_per_tenant: usize,
    /// Jobs that wait for their turn or their next attempt; beyond it, requests are told to come back: `1000`.
    pub max_waiting: usize,
    /// The same of one workspace or user: `100`.
    pub max_waiting_per_tenant: usize,
    /// How often a job is tried that fails for a reason that may pass: `5`.
    pub attempts: u32,
    /// How long a job may take, all attempts and the pauses between them included: `"2h"`.
    pub job_timeout: HumanDuration,
    /// How long a job can be described, and its log be read, after its end: `"30days"`.
    pub record_retention: HumanDuration,
    /// Jobs that are over and can be described; of more, those are forgotten first that ended first: `20000`.
    pub max_records: usize,
    /// Callers without a login of their own for the target push with the operator's, wherever that may push; or without any,
    /// into registries with `allow_private`.
    pub push_with_own_logins: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            // Runtimes fetch three or four layers at once, and registries are used to that.
            blobs_in_parallel: 4,
            mirror_referrers: true,
            // Guesses: a job is a few connections, and a registry limits how fast one client pushes.
            max_running: 8,
            max_running_per_tenant: 4,
            max_waiting: 1000,
            max_waiting_per_tenant: 100,
            attempts: 5,
            job_timeout: HumanDuration::hours(2),
            record_retention: HumanDuration::hours(30 * 24),
            // Most have some KiB. With the longest log each, 1.3 GiB.
            max_records: 20_000,
            push_with_own_logins: false,
        }
    }
}
