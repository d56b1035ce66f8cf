#![no_main]

#[path = "../../tests/bodies/wire.rs"]
mod body;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| body::all(bytes));
