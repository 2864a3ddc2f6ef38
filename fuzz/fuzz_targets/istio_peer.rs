#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy_userspace::istio::Peer;
use proxy_userspace::istio::wire::{self, Preamble};

fuzz_target!(|data: &[u8]| {
    if let Preamble::Whole { length, .. } = wire::read_preamble(data) {
        assert!(length <= data.len());
    }
    if let Some(told) = wire::decode(data) {
        let again = wire::encode(&told);
        assert_eq!(wire::decode(&again).map(|told| wire::encode(&told)), Some(again));
        let peer = Peer::of(&told, &[]);
        assert_eq!(Peer::of(&peer.told(), &[]).told(), peer.told());
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Peer::of_baggage(text);
    }
});
