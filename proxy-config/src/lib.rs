//! Configuration: parses and lowers, never does I/O.
pub mod policy {
    pub struct Compiled { pub pod: proxy_common::Pod, pub rules: Vec<(u32, u32)>, pub cidrs: Vec<(u32, proxy_common::Ip, u8, u32)> }
}
