#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy_userspace::listener::filters::{Peek, http_inspector};

fuzz_target!(|data: &[u8]| {
    if let Peek::NeedMore(total) = http_inspector::inspect(data) {
        assert!(total > data.len());
    }
});
