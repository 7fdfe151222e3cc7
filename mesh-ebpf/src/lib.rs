//! The pure decisions of the BPF programs, compiled for the kernel and tested on the host.
//!
//! Purpose: everything that can be wrong without the verifier noticing is here. The programs themselves
//! (`main.rs` and its modules) only gather facts and carry the verdict out.

#![cfg_attr(not(test), no_std)]

pub mod diversion;
pub mod verdict;
