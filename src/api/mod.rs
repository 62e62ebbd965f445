//! What tidegate answers to whom: the registry API and the container request API.

pub mod route;
