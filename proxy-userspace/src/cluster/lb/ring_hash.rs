//! Ketama-like rings, point for point as Envoy lays them out: clients of both agree on the endpoint of a hash.

use proxy_config::model::cluster::HashFunction;
use xxhash_rust::xxh64::xxh64;

use super::hashing::Entry;

/// Points in order, each with the index of its entry. Shares are those of the whole and add up to 1.
pub(super) fn ring(entries: &[Entry], minimum: u64, maximum: u64, hash: HashFunction) -> Box<[(u64, u32)]> {
    let least = entries.iter().map(|entry| entry.weight).fold(1.0, f64::min);
    if entries.is_empty() || least <= 0.0 {
        return Box::default();
    }
    // So many points that the lightest has a whole number of them, where the maximum allows it.
    let scale = ((least * minimum as f64).ceil() / least).min(maximum as f64);
    let mut ring = Vec::with_capacity(scale.ceil() as usize);
    let (mut current, mut target) = (0.0, 0.0);
    let mut key = String::new();
    for (index, entry) in (0_u32..).zip(entries) {
        key.clone_from(&entry.key);
        key.push('_');
        let prefix = key.len();
        target += scale * entry.weight;
        let mut i = 0_u64;
        while current < target {
            key.truncate(prefix);
            key.push_str(&i.to_string());
            ring.push((point(key.as_bytes(), hash), index));
            i += 1;
            current += 1.0;
        }
    }
    ring.sort_by_key(|(point, _)| *point);
    ring.into()
}

/// The first point at or after the hash, around the end; each attempt goes one point on.
pub(super) fn find(ring: &[(u64, u32)], hash: u64, attempt: u32) -> Option<u32> {
    let at = ring.partition_point(|(point, _)| *point < hash);
    // Past the end is the beginning, before the attempts are counted.
    let at = if at == ring.len() { 0 } else { at };
    let at = (at + attempt as usize).checked_rem(ring.len())?;
    ring.get(at).map(|(_, index)| *index)
}

fn point(key: &[u8], hash: HashFunction) -> u64 {
    match hash {
        HashFunction::XxHash => xxh64(key, 0),
        HashFunction::MurmurHash2 => murmur_hash2(key),
    }
}

/// `std::hash` of libstdc++ on 64 bits: MurmurHash64A with its own seed.
fn murmur_hash2(data: &[u8]) -> u64 {
    const SEED: u64 = 0xc70f_6907;
    const MUL: u64 = 0xc6a4_a793_5bd1_e995;
    let mix = |v: u64| v ^ (v >> 47);
    let mut hash = SEED ^ (data.len() as u64).wrapping_mul(MUL);
    let (words, rest) = data.as_chunks::<8>();
    for word in words {
        hash ^= mix(u64::from_le_bytes(*word).wrapping_mul(MUL)).wrapping_mul(MUL);
        hash = hash.wrapping_mul(MUL);
    }
    if !rest.is_empty() {
        let tail = rest.iter().rev().fold(0_u64, |all, byte| (all << 8) | u64::from(*byte));
        hash = (hash ^ tail).wrapping_mul(MUL);
    }
    mix(mix(hash).wrapping_mul(MUL))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn entries(keys: &[u16], weights: &[u32]) -> Vec<Entry> {
        let sum: u32 = weights.iter().sum();
        let entry = |(key, weight): (&u16, &u32)| Entry {
            key: format!("127.0.0.1:{key}"),
            weight: f64::from(*weight) / f64::from(sum),
        };
        keys.iter().zip(weights).map(entry).collect()
    }

    #[test]
    fn murmur_as_libstdcxx_has_it() {
        // From Envoy's own tests of the function.
        for (text, want) in [
            ("foo", 9_631_199_822_919_835_226),
            ("bar", 11_474_628_671_133_349_555),
            ("foo\nbar", 16_306_510_975_912_980_159),
            ("lyft", 12_847_078_931_730_529_320),
            ("", 6_142_509_188_972_423_790),
        ] {
            let got = murmur_hash2(text.as_bytes());
            assert_eq!(got, want, "{text}");
        }
    }

    /// The ring of Envoy's own test of ketama points.
    #[test]
    fn envoys_known_ring() {
        let entries = entries(&[90, 91, 92, 93, 94, 95], &[1; 6]);
        let ring = ring(&entries, 12, 8 * 1024 * 1024, HashFunction::XxHash);
        assert_eq!(ring.len(), 12);
        for (hash, want) in
            [(0, 94), (3_551_244_743_356_806_947, 95), (3_551_244_743_356_806_948, 93), (u64::MAX, 94)]
        {
            let index = find(&ring, hash, 0).unwrap();
            assert_eq!(entries[index as usize].key, format!("127.0.0.1:{want}"), "{hash}");
        }
        // Retries go round.
        let first = find(&ring, 0, 0);
        assert_ne!(find(&ring, 0, 1), first);
        assert_eq!(find(&ring, 0, 12), first);
    }

    #[test]
    fn nothing_on_the_ring() {
        assert_eq!(find(&ring(&[], 1024, 8192, HashFunction::XxHash), 7, 0), None);
    }

    #[test]
    fn the_maximum_holds() {
        let ring = ring(&entries(&[1, 2, 3], &[1, 1, 1]), 1024, 2, HashFunction::XxHash);
        assert_eq!(ring.len(), 2);
    }

    proptest! {
        #[test]
        fn weights_are_shares_of_the_ring(weights in prop::collection::vec(1_u32..10, 1..8)) {
            let keys: Vec<u16> = (1..).take(weights.len()).collect();
            let ring = ring(&entries(&keys, &weights), 1024, 8 * 1024 * 1024, HashFunction::XxHash);
            let sum: u32 = weights.iter().sum();
            for (index, weight) in weights.iter().enumerate() {
                let points = ring.iter().filter(|(_, i)| *i as usize == index).count() as f64;
                let want = ring.len() as f64 * f64::from(*weight) / f64::from(sum);
                // The running sums round at both ends, and so does the ring's own size.
                prop_assert!((points - want).abs() <= 2.0, "{points} of {want}");
            }
        }

        #[test]
        fn who_leaves_takes_only_its_own(keys in prop::collection::hash_set(1_u16..60_000, 2..8), hash in any::<u64>()) {
            let keys: Vec<u16> = keys.into_iter().collect::<HashSet<_>>().into_iter().collect();
            let before = entries(&keys, &vec![1; keys.len()]);
            // A size that all hosts divide, or the points per host change with their number.
            let ring_of = |entries: &[Entry]| ring(entries, 100 * entries.len() as u64, 1 << 20, HashFunction::XxHash);
            let was = &before[find(&ring_of(&before), hash, 0).unwrap() as usize].key;
            let gone = keys[0];
            let after = entries(&keys[1..], &vec![1; keys.len() - 1]);
            let now = &after[find(&ring_of(&after), hash, 0).unwrap() as usize].key;
            if *was != format!("127.0.0.1:{gone}") {
                prop_assert_eq!(was, now);
            }
        }
    }
}
