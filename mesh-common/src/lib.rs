//! The contract between the BPF programs and user space: map keys and values, event records, constants.
//!
//! Every type here is `#[repr(C)]`, has no implicit padding and a size asserted at compile time, so that its bytes
//! mean the same on both sides. Nothing here needs `std`, and nothing here decides anything.

#![cfg_attr(not(test), no_std)]

pub mod addr;
pub mod counter;
pub mod dns;
pub mod event;
pub mod flow;
pub mod map;
pub mod policy;

/// The version of everything in this crate. Pins of another version are replaced, never adopted.
pub const SCHEMA: u32 = 2;

/// Asserts at compile time that a type that crosses the boundary has the size that both sides agreed on, and tells
/// aya that any of its bytes may be read.
macro_rules! contract {
    ($type:ty, $size:expr) => {
        const _: () = assert!(core::mem::size_of::<$type>() == $size);
        // SAFETY: the type is `repr(C)`, made of integers and integer arrays only, and the assertion above
        // together with explicit padding fields rules out padding bytes.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $type {}
    };
}
pub(crate) use contract;
