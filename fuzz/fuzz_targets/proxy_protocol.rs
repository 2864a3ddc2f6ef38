#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy_config::model::listener_filter::ProxyProtocol;
use proxy_userspace::listener::filters::{Peek, proxy_protocol};

fuzz_target!(|data: &[u8]| {
    for allow in [false, true] {
        let config =
            ProxyProtocol { allow_requests_without_proxy_protocol: allow, ..ProxyProtocol::default() };
        match proxy_protocol::parse(data, &config) {
            Peek::NeedMore(total) => assert!(total > data.len()),
            Peek::Done(Some(header)) => assert!(header.len <= data.len()),
            Peek::Done(None) | Peek::Refuse(_) => {}
        }
    }
});
