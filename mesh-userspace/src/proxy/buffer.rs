//! Buffers of the byte path. Each thread keeps a few; a flow holds one only while bytes that it has read wait in it.

use std::{cell::RefCell, ops::Deref};

use super::pace::SHORT_ONES;
use crate::tls::record::{MOST, OVERHEAD};

/// Records that are sealed, and written, together.
pub(super) const BATCH: usize = 8;
/// What a buffer holds: a batch of sealed records, short ones at its beginning, and so more than a batch's plaintext.
pub(super) const SIZE: usize = BATCH * (MOST + OVERHEAD) + SHORT_ONES * OVERHEAD;
/// What a thread keeps for the next one who wants a buffer.
const KEPT: usize = 8;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// [`SIZE`] bytes, or [fewer](Buffer::fitted), of which `start..end` wait for somebody.
pub(super) struct Buffer {
    bytes: Option<Box<[u8]>>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// Returns one in which nothing waits; its bytes are anything.
    pub(super) fn take() -> Self {
        let kept = FREE.with_borrow_mut(Vec::pop);
        Self { bytes: Some(kept.unwrap_or_else(|| vec![0; SIZE].into())), start: 0, end: 0 }
    }

    /// All its bytes.
    pub(super) fn all(&mut self) -> &mut [u8] {
        self.bytes.as_mut().expect("invariant: it has its bytes until it is dropped")
    }

    /// Says which bytes wait.
    pub(super) fn hold(&mut self, start: usize, end: usize) {
        (self.start, self.end) = (start, end);
    }

    /// Takes `count` bytes off the front of what waits.
    pub(super) fn consume(&mut self, count: usize) {
        self.start += count;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Returns one that has what waits and no room, as long as it is not asked for.
    pub(super) fn fitted(self) -> Self {
        Self { bytes: Some((*self).into()), start: 0, end: self.len() }
    }

    /// Moves what waits to the beginning, and returns the room behind it.
    pub(super) fn room(&mut self) -> &mut [u8] {
        let (start, end) = (self.start, self.end);
        if self.all().len() < SIZE {
            let mut roomy = Self::take();
            roomy.all()[..end - start].copy_from_slice(self);
            roomy.hold(0, end - start);
            *self = roomy;
        } else if start > 0 {
            self.all().copy_within(start..end, 0);
            self.hold(0, end - start);
        }
        let end = self.end;
        &mut self.all()[end..]
    }

    /// Notes `count` bytes more in the room behind what waits.
    pub(super) fn fill(&mut self, count: usize) {
        self.end += count;
    }
}

/// What waits.
impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes.as_ref().expect("invariant: it has its bytes until it is dropped")[self.start..self.end]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = self.bytes.take();
        // A thread that is ending keeps nothing.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < KEPT {
                free.extend(bytes.filter(|bytes| bytes.len() == SIZE));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_fitted_has_what_waits_alone_until_there_must_be_room() {
        let mut buffer = Buffer::take();
        buffer.all()[..4].copy_from_slice(b"abcd");
        buffer.hold(1, 4);
        let mut fitted = buffer.fitted();
        assert_eq!((fitted.all().len(), &*fitted), (3, &b"bcd"[..]));
        fitted.consume(1);
        fitted.room()[0] = b'e';
        fitted.fill(1);
        assert_eq!((fitted.all().len(), &*fitted), (SIZE, &b"cde"[..]));
    }
}
