//! The control plane: where catalog, intentions, roots and leafs come from.

pub mod embedded;
