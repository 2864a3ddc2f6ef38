//! The bytes that travel: a stream that any part of can be made anew, and its hash.

use std::hash::{DefaultHasher, Hasher as _};

/// Bytes at a time.
pub const CHUNK: usize = 64 * 1024;

/// A stream of `len` bytes, the same for the same seed.
pub struct Pattern {
    left: u64,
    state: u64,
}

impl Pattern {
    pub fn new(seed: u64, len: u64) -> Self {
        Self { left: len, state: seed ^ 0x9e37_79b9_7f4a_7c15 }
    }

    /// Fills the front of `buf`; 0 at the end of the stream.
    pub fn fill(&mut self, buf: &mut [u8]) -> usize {
        let n = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len()) & !7;
        // The last bytes of a length that is no multiple of 8.
        let n = if n == 0 { usize::try_from(self.left).unwrap_or(0).min(buf.len()) } else { n };
        for word in buf[..n].chunks_mut(8) {
            self.state =
                self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&self.state.to_le_bytes()[..word.len()]);
        }
        self.left -= n as u64;
        n
    }
}

/// A hash of a stream, whatever pieces it comes in.
#[derive(Default)]
pub struct Digest {
    hasher: DefaultHasher,
    bytes: u64,
}

impl Digest {
    pub fn update(&mut self, data: &[u8]) {
        self.hasher.write(data);
        self.bytes += data.len() as u64;
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn hex(&self) -> String {
        format!("{:016x}", self.hasher.finish())
    }

    /// The hash of a whole pattern.
    pub fn of(seed: u64, len: u64) -> Self {
        let (mut pattern, mut digest, mut buf) = (Pattern::new(seed, len), Self::default(), vec![0; CHUNK]);
        loop {
            match pattern.fill(&mut buf) {
                0 => return digest,
                n => digest.update(&buf[..n]),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_do_not_matter() {
        let whole = Digest::of(7, 100_003);
        let (mut pattern, mut digest, mut buf) =
            (Pattern::new(7, 100_003), Digest::default(), vec![0; 4_096]);
        loop {
            let n = pattern.fill(&mut buf);
            if n == 0 {
                break;
            }
            buf[..n].chunks(13).for_each(|part| digest.update(part));
        }
        assert_eq!((digest.bytes(), digest.hex()), (100_003, whole.hex()));
        assert_ne!(whole.hex(), Digest::of(8, 100_003).hex());
    }
}
