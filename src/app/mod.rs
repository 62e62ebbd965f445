//! The process: composes the parts from a configuration, runs them, and ends them in order.

use crate::{config::Config, toml_file::Problem};

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("this build cannot serve")]
    NoServer,
}

/// Runs until SIGTERM or SIGINT. The warnings are the configuration's, to be logged once there is a log.
pub fn serve(_config: Config, _warnings: &[Problem]) -> Result<(), StartError> {
    Err(StartError::NoServer)
}
