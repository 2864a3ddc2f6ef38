#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy_userspace::http::h1;

fuzz_target!(|data: &[u8]| h1::fuzz_request(data));
