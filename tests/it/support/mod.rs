//! Real servers and the liar that the tests put around the product. Everything listens on 127.0.0.1, in temporary
//! folders, and ends with the test that started it.

pub mod accounts;
pub mod authority;
pub mod aws_double;
pub mod content;
pub mod copying;
pub mod damage;
pub mod docker_registry;
pub mod fake_platform;
pub mod http;
pub mod image;
pub mod layer;
pub mod liar;
pub mod mirror_content;
pub mod mirror_scene;
pub mod moto;
pub mod passage;
pub mod programs;
pub mod push_target;
pub mod pushing;
pub mod registry_double;
pub mod runtimes;
pub mod scene;
pub mod secrets;
pub mod server;
pub mod small_disk;
pub mod storage;
pub mod tidegate;
pub mod token_server;
