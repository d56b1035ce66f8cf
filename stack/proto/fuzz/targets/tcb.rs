#![no_main]

#[path = "../../tests/bodies/tcb.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| body::steps(bytes));
