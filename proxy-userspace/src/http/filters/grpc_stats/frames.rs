//! The messages of a gRPC stream, counted as its bytes pass: a flag, four bytes of length, the message.

#[derive(Debug, Default)]
pub(super) struct Frames {
    /// It is none of gRPC.
    off: bool,
    /// How much of a head is there.
    head: u8,
    /// The length as far as it has come; what is left of a message after that.
    left: u64,
}

impl Frames {
    /// Of a body that is not gRPC's nothing is counted.
    pub(super) fn new(is_grpc: bool) -> Self {
        Self { off: !is_grpc, ..Self::default() }
    }

    /// How many messages begin in `data`.
    pub(super) fn pass(&mut self, mut data: &[u8]) -> u64 {
        let mut begun = 0;
        if self.off {
            return 0;
        }
        while let Some((&byte, rest)) = data.split_first() {
            match self.head {
                0 => {
                    begun += 1;
                    (self.head, self.left) = (1, 0);
                    data = rest;
                }
                1..=4 => {
                    self.left = self.left << 8 | u64::from(byte);
                    self.head += 1;
                    data = rest;
                }
                _ => {
                    let part = usize::try_from(self.left).unwrap_or(usize::MAX).min(data.len());
                    self.left -= part as u64;
                    data = &data[part..];
                }
            }
            if self.head == 5 && self.left == 0 {
                self.head = 0;
            }
        }
        begun
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_wherever_they_are_split() {
        let stream = [&[0, 0, 0, 0, 3][..], b"abc", &[0, 0, 0, 0, 0], &[1, 0, 0, 1, 0], &[7; 256]].concat();
        for size in 1..=stream.len() {
            let mut frames = Frames::default();
            let begun: u64 = stream.chunks(size).map(|chunk| frames.pass(chunk)).sum();
            assert_eq!(begun, 3, "by {size}");
            assert_eq!(frames.pass(&[0]), 1, "the next one begins");
        }
    }
}
