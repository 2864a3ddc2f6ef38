//! RFC 7541's Huffman code, which is canonical: the lengths of its codes say all of it.

/// Of each byte, and of EOS.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28,
    28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6,
    6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7,
    8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7,
    15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24,
    23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23,
    23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26,
    26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20,
    21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27,
    27, 27, 26, 30,
];

const EOS: usize = 256;
const LONGEST: u32 = 30;

/// None for what is no code: EOS, or padding that is not its beginning or a whole byte.
pub(super) fn decode(data: &[u8]) -> Option<Vec<u8>> {
    let table = Table::new();
    let (mut out, mut code, mut len) = (Vec::new(), 0_u32, 0_u32);
    for bit in data.iter().flat_map(|byte| (0..8).rev().map(move |at| u32::from(byte >> at & 1))) {
        (code, len) = (code << 1 | bit, len + 1);
        if let Some(symbol) = table.symbol(code, len) {
            out.push(u8::try_from(symbol).ok()?);
            (code, len) = (0, 0);
        } else if len == LONGEST {
            return None;
        }
    }
    // All ones, and less than a byte.
    (len < 8 && code + 1 == 1 << len).then_some(out)
}

/// The first code of each length, and the symbols in the order of their codes.
struct Table {
    first: [(u32, usize); LONGEST as usize + 1],
    symbols: Vec<usize>,
}

impl Table {
    fn new() -> Self {
        let mut first = [(0, 0); LONGEST as usize + 1];
        let (mut symbols, mut code) = (Vec::with_capacity(EOS + 1), 0);
        for (len, entry) in (0..).zip(&mut first) {
            code <<= 1;
            *entry = (code, symbols.len());
            let of_len = LENGTHS.iter().enumerate().filter(|(_, length)| u32::from(**length) == len);
            let before = symbols.len();
            symbols.extend(of_len.map(|(symbol, _)| symbol));
            code += u32::try_from(symbols.len() - before).unwrap_or_default();
        }
        Self { first, symbols }
    }

    fn symbol(&self, code: u32, len: u32) -> Option<usize> {
        let len = len as usize;
        let (first, at) = *self.first.get(len)?;
        let next = self.first.get(len + 1).map_or(self.symbols.len(), |(_, at)| *at);
        let nth = usize::try_from(code.checked_sub(first)?).ok()?;
        self.symbols.get(at..next)?.get(nth).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_of_the_rfc_and_what_is_no_code() {
        let hex = |text: &str| -> Vec<u8> {
            (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
        };
        for (code, expected) in [
            // RFC 7541, C.4 and C.6.
            ("f1e3c2e5f23a6ba0ab90f4ff", Some("www.example.com")),
            ("a8eb10649cbf", Some("no-cache")),
            ("25a849e95ba97d7f", Some("custom-key")),
            ("25a849e95bb8e8b4bf", Some("custom-value")),
            ("d07abe941054d444a8200595040b8166e082a62d1bff", Some("Mon, 21 Oct 2013 20:13:21 GMT")),
            (
                "94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
                Some("foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"),
            ),
            ("", Some("")),
            ("1f", Some("a")),
            ("1fff", None),
            ("18", None),
            ("ffffffff", None),
        ] {
            assert_eq!(decode(&hex(code)), expected.map(|text| text.as_bytes().to_vec()), "{code}");
        }
    }
}
