//! What users see, tested against real servers and runtimes: one file for each behaviour.
//!
//! Tests that need a program which is not installed are left out with a line that says so; `tests/run` installs
//! all of them and fails where one is missing.

#![expect(
    unreachable_pub,
    reason = "one binary: nothing here is reached from outside"
)]
#![expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a test that panics has failed, as it should"
)]

mod api_description;
mod architecture;
mod aws_emulator;
mod aws_identity;
mod aws_login;
mod blob_pull;
mod byte_cap;
mod cache_command;
mod concurrent_pulls;
mod config_errors;
mod copies;
mod copy_commands;
mod crash;
mod crash_storm;
mod credential_checks;
mod credentials_stay;
mod creds_explain;
mod damage;
mod dial_rules;
mod docker_logins;
mod drivers;
mod eviction;
mod frozen_images;
mod frozen_indexes;
mod full_disk;
mod given_up;
mod healing;
mod http_edge;
mod inspection;
mod load_limits;
mod lying_upstream;
mod manifests;
mod mirror_command;
mod mirror_jobs;
mod mirror_troubles;
mod mirrored_images;
mod moved_tags;
mod operations;
mod overlays;
mod pages;
mod pairing;
mod pairing_calls;
mod partial_pulls;
mod pass_through;
mod platform;
mod presence_is_not_permission;
mod private_pull;
mod push_faults;
mod pushes;
mod range_on_miss;
mod rate_limits;
mod redirects;
mod registries;
mod request_command;
mod resumed_fills;
mod secrets_stay;
mod several_ranges;
mod shutdown;
mod submit;
mod support;
mod support_works;
mod tls_listener;
mod unusual_bodies;
mod upstream_tokens;
mod validation;
mod wanted_platforms;
mod wave_clients;
