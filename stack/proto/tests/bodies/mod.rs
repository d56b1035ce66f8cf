//! What a fuzz target does with its bytes: shared by `fuzz/` and by the short property tests.

pub mod tcb;
pub mod wire;
