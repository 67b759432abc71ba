//! A hash table of things that chain themselves: so many heads from the start, and no more memory however many there
//! are.
use std::cell::Cell;

/// What can be in the table.
pub(crate) trait Chained: Sized {
    /// What it is found by.
    type Key: Copy + PartialEq;
    /// Its key.
    fn key(&self) -> Self::Key;
    /// A number for a key.
    fn number(key: Self::Key) -> u64;
    /// The next of its chain, for the table.
    fn next(&self) -> &Cell<*mut Self>;
}

/// The table. It owns nothing of what is in it.
pub(crate) struct Chains<T> {
    heads: Box<[*mut T]>,
    /// How many are in.
    count: usize,
}

impl<T: Chained> Chains<T> {
    /// With so many heads, a power of two.
    pub fn new(heads: usize) -> Self {
        debug_assert!(heads.is_power_of_two() && heads > 1);
        // SAFETY: null pointers. They come from zeroed pages, and cost nothing before they are used.
        Self { heads: unsafe { Box::new_zeroed_slice(heads).assume_init() }, count: 0 }
    }

    #[inline]
    fn slot(&self, key: T::Key) -> usize {
        let hash = T::number(key).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (hash >> (64 - self.heads.len().trailing_zeros())) as usize
    }

    /// What has this key, or null.
    #[inline]
    pub fn find(&self, key: T::Key) -> *mut T {
        let mut at = self.heads[self.slot(key)];
        // SAFETY: what is in the table is alive, as who puts it there vouches.
        while let Some(item) = unsafe { at.as_ref() } {
            if item.key() == key {
                break;
            }
            at = item.next().get();
        }
        at
    }

    /// Puts something in; nothing there has its key.
    ///
    /// # Safety
    /// It lives until it is taken out, and its key stays the same.
    pub unsafe fn insert(&mut self, item: *mut T) {
        // SAFETY: as the caller vouches.
        let i = unsafe { &*item };
        self.count += 1;
        let head = self.slot(i.key());
        i.next().set(std::mem::replace(&mut self.heads[head], item));
    }

    /// Takes something out that is in.
    pub fn remove(&mut self, item: &T) {
        self.count -= 1;
        let head = self.slot(item.key());
        let next = item.next().get();
        if std::ptr::eq(self.heads[head], item) {
            self.heads[head] = next;
            return;
        }
        let mut at = self.heads[head];
        // SAFETY: as in `find`.
        while let Some(i) = unsafe { at.as_ref() } {
            if std::ptr::eq(i.next().get(), item) {
                i.next().set(next);
                return;
            }
            at = i.next().get();
        }
    }

    /// All that is in.
    pub fn iter(&self) -> impl Iterator<Item = *mut T> + '_ {
        self.heads.iter().flat_map(|&head| {
            let mut at = head;
            std::iter::from_fn(move || {
                // SAFETY: as in `find`; the next one is looked up before this one is given away, which may be its end.
                let next = unsafe { at.as_ref() }?.next().get();
                Some(std::mem::replace(&mut at, next))
            })
        })
    }

    /// Whether nothing is in.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Takes all out.
    pub fn clear(&mut self) {
        self.heads.fill(std::ptr::null_mut());
        self.count = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Number(u64, Cell<*mut Number>);

    impl Chained for Number {
        type Key = u64;
        fn key(&self) -> u64 {
            self.0
        }
        fn number(key: u64) -> u64 {
            key
        }
        fn next(&self) -> &Cell<*mut Self> {
            &self.1
        }
    }

    #[test]
    fn what_is_in_is_found_and_what_was_taken_out_is_not() {
        let all: Vec<*mut Number> =
            (0..1000).map(|n| Box::into_raw(Box::new(Number(n * 64, Cell::default())))).collect();
        let mut table = Chains::<Number>::new(128);
        for &n in &all {
            // SAFETY: they live to the end of the test.
            unsafe { table.insert(n) };
        }
        assert_eq!(table.iter().count(), 1000);
        for (i, &n) in all.iter().enumerate().filter(|(i, _)| i % 3 != 0) {
            assert_eq!(table.find(i as u64 * 64), n);
            // SAFETY: as above.
            table.remove(unsafe { &*n });
        }
        for (i, &n) in all.iter().enumerate() {
            let there = table.find(i as u64 * 64);
            assert_eq!(there, if i % 3 == 0 { n } else { std::ptr::null_mut() });
        }
        assert_eq!(table.iter().count(), 334);
        table.clear();
        assert!(table.find(0).is_null() && table.iter().next().is_none());
        for n in all {
            // SAFETY: made of a box above.
            drop(unsafe { Box::from_raw(n) });
        }
    }
}
