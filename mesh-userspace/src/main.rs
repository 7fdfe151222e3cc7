//! The `meshnode` binary.

fn main() {}
