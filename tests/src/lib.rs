//! The test harness: workloads (network namespace, veth pair, cgroup), the daemon, backends, clients, real peers.
//!
//! A test is a closure over a [`Lab`]. What the lab made is removed when the test ends, however it ends; what a
//! killed run left is swept by the next one. A failing test prints the tail of every log in its lab.

pub mod access_log;
pub mod admin;
pub mod asked;
pub mod authz;
pub mod backend;
pub mod bootstrap;
pub mod cases;
pub mod cgroup;
pub mod collector;
pub mod corpus;
pub mod daemon;
pub mod deviations;
pub mod example;
pub mod frames;
pub mod hello;
pub mod http_client;
pub mod http_echo;
pub mod lab;
pub mod mesh;
pub mod name_server;
pub mod netns;
pub mod nginx;
pub mod openssl;
pub mod pair;
pub mod payload;
pub mod peer;
pub mod pins;
pub mod pki;
pub mod ports;
pub mod probe;
pub mod process;
pub mod proxy;
pub mod scripted;
pub mod tls;
pub mod tls_context;
pub mod tls_server;
pub mod upstream;
pub mod wait;
pub mod wire;
pub mod xds;

mod sweep;

pub use bootstrap::Bootstrap;
pub use cases::{Cases, Family};
pub use daemon::Daemon;
pub use lab::{Lab, Pod, PodOptions, lab};
pub use mesh::Mesh;
pub use nginx::Nginx;
pub use pair::Pair;
pub use pki::{Leaf, Pki};
pub use process::{Output, Place, Process, Spawn};
pub use proxy::{Kind, Proxy};
pub use scripted::{Script, Speaks};
pub use tls::TlsClient;
pub use tls_context::TlsContext;
pub use tls_server::{TlsOptions, TlsServer};
pub use upstream::{Does, Upstream};
pub use wait::{eventually, until};
pub use wire::{Client, End};
pub use xds::ControlPlane;
