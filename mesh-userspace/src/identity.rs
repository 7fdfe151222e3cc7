//! Who somebody is: service names, trust domains, SPIFFE IDs, and the certificates that prove them.
//!
//! Values here cannot be wrong: they are parsed at the edge. Verification of peers is in `tls`.

mod leaf;
mod name;
mod spiffe;

pub use leaf::{Leaf, Roots};
pub use name::{NameError, ServiceName, TrustDomain};
pub use spiffe::{SpiffeError, SpiffeId};
