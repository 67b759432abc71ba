//! Memory for decoded blocks, of which a vCPU has so much and no more.
//!
//! It is handed out from chunks, one piece behind the other, and what is given back is kept by its size for the next
//! piece of that size. Nothing of it goes back to the host, and nothing is joined: so however a guest has blocks of
//! all sizes made and killed, what is resident never exceeds the bound. When the last chunk is nearly used up the
//! arena says that it is full; its owner then drops all that is in it, and it begins anew.
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::Cell;
use std::ptr::NonNull;

/// Bytes in a chunk.
pub(crate) const CHUNK: usize = 1 << 20;
/// Pieces are multiples of this, and aligned to it.
const GRAIN: usize = 16;
/// The largest piece.
const MOST: usize = 4096;
/// The arena is full when less than this is left: what has been begun can be ended.
const SLACK: usize = 128 << 10;
const LAYOUT: Layout = match Layout::from_size_align(CHUNK, 4096) {
    Ok(layout) => layout,
    Err(_) => panic!("a chunk's size"),
};

/// A piece that was given back.
struct Free {
    next: *mut Free,
}

/// The memory.
pub(crate) struct Arena {
    chunks: Vec<NonNull<u8>>,
    /// Chunks that are in use; the last one is being used up.
    begun: usize,
    at: *mut u8,
    left: usize,
    /// Pieces that were given back, by size.
    free: Box<[*mut Free]>,
    /// Chunks that there may be.
    most: usize,
    full: bool,
}

impl Arena {
    /// Memory of up to `bytes`, in whole chunks.
    pub fn new(bytes: usize) -> Self {
        Self {
            chunks: Vec::new(),
            begun: 0,
            at: std::ptr::null_mut(),
            left: 0,
            free: vec![std::ptr::null_mut(); MOST / GRAIN + 1].into_boxed_slice(),
            most: (bytes / CHUNK).max(1),
            full: false,
        }
    }

    /// Whether hardly anything is left.
    #[inline(always)]
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Bytes that are held of the host's memory.
    pub fn bytes(&self) -> usize {
        self.chunks.len() * CHUNK
    }

    /// A piece of `size` bytes, aligned to 16.
    ///
    /// # Panics
    /// If that is more than 4096.
    pub fn take(&mut self, size: usize) -> *mut u8 {
        let class = size.div_ceil(GRAIN);
        let piece = self.free[class];
        if !piece.is_null() {
            // SAFETY: pieces on the lists are in chunks, and nobody's.
            self.free[class] = unsafe { (*piece).next };
            return piece.cast();
        }
        let size = class * GRAIN;
        if size > self.left {
            self.next_chunk();
        }
        let piece = self.at;
        self.at = piece.wrapping_add(size);
        self.left -= size;
        self.full = self.begun > self.most || self.begun == self.most && self.left < SLACK;
        piece
    }

    fn next_chunk(&mut self) {
        if self.left != 0 {
            let rest = self.at;
            // SAFETY: the rest of the chunk, a multiple of the grain and less than a piece, is nobody's.
            unsafe { self.give_back(rest, self.left) };
        }
        if self.begun == self.chunks.len() {
            // SAFETY: the layout is not empty.
            let chunk = unsafe { alloc(LAYOUT) };
            let Some(chunk) = NonNull::new(chunk) else { handle_alloc_error(LAYOUT) };
            self.chunks.push(chunk);
        }
        self.at = self.chunks[self.begun].as_ptr();
        self.left = CHUNK;
        self.begun += 1;
    }

    /// Takes a piece back.
    ///
    /// # Safety
    /// `take` has given it with this size, and nobody uses it any more.
    pub unsafe fn give_back(&mut self, piece: *mut u8, size: usize) {
        let list = &mut self.free[size.div_ceil(GRAIN)];
        let piece: *mut Free = piece.cast();
        // SAFETY: the piece is large enough and aligned, as all are, and the caller vouches for the rest.
        unsafe { piece.write(Free { next: *list }) };
        *list = piece;
    }

    /// Begins anew.
    ///
    /// # Safety
    /// Nobody uses any piece any more.
    pub unsafe fn reset(&mut self) {
        self.free.fill(std::ptr::null_mut());
        (self.begun, self.at, self.left, self.full) = (0, std::ptr::null_mut(), 0, false);
        // More than the bound is there only if much was begun when it was full.
        for chunk in self.chunks.drain(self.most.min(self.chunks.len())..) {
            // SAFETY: allocated with this layout, and of no use any more.
            unsafe { dealloc(chunk.as_ptr(), LAYOUT) };
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        for chunk in &self.chunks {
            // SAFETY: allocated with this layout; the arena's owner uses no piece behind it.
            unsafe { dealloc(chunk.as_ptr(), LAYOUT) };
        }
    }
}

struct Node<T> {
    item: T,
    next: *mut Node<T>,
}

/// A few items of something that lies in an arena, and whose memory they have.
pub(crate) struct List<T>(Cell<*mut Node<T>>);

impl<T: Copy> List<T> {
    /// Of nothing.
    pub const fn new() -> Self {
        Self(Cell::new(std::ptr::null_mut()))
    }

    /// The items, the last one first. Meanwhile the list must not be changed.
    pub fn iter(&self) -> impl Iterator<Item = T> + use<'_, T> {
        let mut at = self.0.get();
        std::iter::from_fn(move || {
            // SAFETY: null, or a node of the list's own, which stays as it is while this is used.
            let node = unsafe { at.as_ref() }?;
            at = node.next;
            Some(node.item)
        })
    }

    /// Adds an item. It is always with the same arena.
    pub fn push(&self, arena: &mut Arena, item: T) {
        let node: *mut Node<T> = arena.take(size_of::<Node<T>>()).cast();
        const { assert!(align_of::<Node<T>>() <= GRAIN) };
        // SAFETY: the piece is new, large enough and aligned.
        unsafe { node.write(Node { item, next: self.0.get() }) };
        self.0.set(node);
    }

    /// Takes all items out.
    pub fn clear(&self, arena: &mut Arena) {
        let mut at = self.0.replace(std::ptr::null_mut());
        while !at.is_null() {
            // SAFETY: a node of the list's own, which nobody else knows.
            unsafe {
                let next = (*at).next;
                arena.give_back(at.cast(), size_of::<Node<T>>());
                at = next;
            }
        }
    }

    /// Takes the items out that `stays` denies.
    pub fn retain(&self, arena: &mut Arena, stays: impl Fn(T) -> bool) {
        if self.iter().all(&stays) {
            return;
        }
        let kept: Vec<T> = self.iter().filter(|&item| stays(item)).collect();
        self.clear(arena);
        kept.into_iter().rev().for_each(|item| self.push(arena, item));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_given_again_and_nothing_overlaps() {
        let mut a = Arena::new(CHUNK);
        let sizes = [1, 16, 24, 160, 3120, 4096];
        let pieces: Vec<_> = sizes.iter().cycle().take(60).map(|&s| (a.take(s), s)).collect();
        for (i, &(p, s)) in pieces.iter().enumerate() {
            assert_eq!(p.addr() % GRAIN, 0);
            for &(q, t) in &pieces[..i] {
                assert!(p.addr() >= q.addr() + t || q.addr() >= p.addr() + s);
            }
        }
        // SAFETY: a piece of this size.
        unsafe { a.give_back(pieces[3].0, 160) };
        assert_eq!(a.take(150), pieces[3].0, "of the same class");
        assert_ne!(a.take(150), pieces[3].0);
    }

    #[test]
    fn whatever_sizes_are_asked_for_in_turns_it_is_full_at_its_bound_and_begins_anew() {
        let mut a = Arena::new(4 * CHUNK);
        for round in 1..50usize {
            let mut taken = Vec::new();
            while !a.is_full() {
                let size = round * 83 % MOST + 1;
                taken.push((a.take(size), size));
            }
            assert!(a.bytes() <= 4 * CHUNK, "{}", a.bytes());
            // Room to end what was begun.
            taken.extend((0..SLACK / MOST - 2).map(|_| (a.take(MOST), MOST)));
            assert!(a.bytes() <= 4 * CHUNK, "{}", a.bytes());
            for (piece, size) in taken {
                // SAFETY: a piece of this size.
                unsafe { a.give_back(piece, size) };
            }
            // SAFETY: no piece is used.
            unsafe { a.reset() };
            assert!(!a.is_full());
        }
    }

    #[test]
    fn lists_grow_and_shrink_in_their_arena() {
        let mut a = Arena::new(CHUNK);
        let l = List::new();
        (0..1000u64).for_each(|n| l.push(&mut a, n));
        l.retain(&mut a, |n| n % 3 == 0);
        assert_eq!(l.iter().count(), 334);
        assert_eq!(l.iter().next(), Some(999));
        l.clear(&mut a);
        assert!(l.iter().next().is_none());
        let held = a.left;
        (0..1000u64).for_each(|n| l.push(&mut a, n));
        assert_eq!(a.left, held, "of what was given back");
    }
}
