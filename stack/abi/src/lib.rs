//! The contract in shared memory between a program and the utcp engine.
