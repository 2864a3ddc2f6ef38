#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy_userspace::listener::filters::{Peek, tls_inspector};

fuzz_target!(|data: &[u8]| {
    if let Peek::NeedMore(total) = tls_inspector::inspect(data, 16 * 1024) {
        assert!(total > data.len());
    }
});
