//! The utcp command: run, engine, ss, why.
fn main() {}
