//! Header maps that are used again: each of a request's has two blocks of memory, of sizes that allocators are slow with.

use std::cell::RefCell;

use http::HeaderMap;

/// Of a thread.
const MOST: usize = 64;
/// Smaller ones would have to grow, larger ones are rare and would only lie about.
const SMALLEST: usize = 12;
const LARGEST: usize = 64;

thread_local! {
    static SPARE: RefCell<Vec<HeaderMap>> = const { RefCell::new(Vec::new()) };
}

/// An empty one.
pub(super) fn headers(capacity: usize) -> HeaderMap {
    if capacity > LARGEST {
        return HeaderMap::with_capacity(capacity);
    }
    let mut map = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
    map.reserve(capacity);
    map
}

/// One that nobody needs any more.
pub(super) fn give(mut map: HeaderMap) {
    if !(SMALLEST..=LARGEST).contains(&map.capacity()) {
        return;
    }
    map.clear();
    SPARE.with_borrow_mut(|spare| {
        if spare.len() < MOST {
            spare.push(map);
        }
    });
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, header};

    use super::*;

    #[test]
    fn what_is_used_again_has_nothing_of_before() {
        let mut map = headers(12);
        map.append(header::ACCEPT, HeaderValue::from_static("a"));
        map.append(header::ACCEPT, HeaderValue::from_static("b"));
        let capacity = map.capacity();
        give(map);
        let again = headers(4);
        assert!(again.is_empty() && !again.contains_key(header::ACCEPT) && again.capacity() == capacity);
        // It is in use.
        assert_eq!(headers(0).capacity(), 0);
    }

    #[test]
    fn they_are_few_and_small() {
        give(HeaderMap::with_capacity(LARGEST * 4));
        give(HeaderMap::with_capacity(1));
        assert_eq!(headers(0).capacity(), 0);
        for _ in 0..2 * MOST {
            give(HeaderMap::with_capacity(12));
        }
        assert_eq!(SPARE.with_borrow(Vec::len), MOST);
    }
}
