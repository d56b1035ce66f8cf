//! Gives the contract its version: a hash of its sources. Whoever changes a word of it changes the version, so a program and an
//! engine of different builds refuse each other instead of reading each other's memory wrongly.

use std::path::PathBuf;
use std::{fs, io};

/// FNV-1a, 32 bits.
fn hash(seed: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(seed, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=src");
    let mut files =
        fs::read_dir("src")?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    files.sort();
    let mut version = 0x811c_9dc5;
    for file in files {
        version = hash(version, &fs::read(file)?);
    }
    println!("cargo::rustc-env=UTCP_ABI_VERSION={version}");
    Ok(())
}
