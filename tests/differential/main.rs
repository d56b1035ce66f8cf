//! Placeholder until the cases are there.
fn main() {}
