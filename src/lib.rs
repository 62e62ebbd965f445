//! tidegate: a registry proxy that gives ephemeral names to private images and streams their blobs.
//!
//! The modules stand in layers and import only downwards; ARCHITECTURE.md has the picture and
//! `tests/it/architecture.rs` checks it.

// 0 ground
pub mod database;
pub mod oci;
pub mod seal;
pub mod secret;
pub mod sys;
pub mod toml_file;
pub mod units;
// 1 wire
pub mod augment;
pub mod blocking;
pub mod http;
pub mod limits;
pub mod net;
pub mod sharded;
pub mod telemetry;
// 2 data and control
pub mod aws;
pub mod cache;
pub mod platform;
pub mod requests;
pub mod upstream;
// … on `requests`
pub mod credentials;
// 3 stories
pub mod pull;
// … on `pull`
pub mod mirror;
// 4 edge
pub mod api;
pub mod server;
// 5 process
pub mod app;
pub mod cli;
pub mod config;
