//! Where libutcp.so is.

use std::path::PathBuf;
use std::{env, fs};

/// The library beside this binary, in the lib folder beside its bin folder, or where `UTCP_LIB` says.
pub fn library() -> Result<PathBuf, String> {
    if let Some(path) = env::var_os("UTCP_LIB") {
        let path = PathBuf::from(path);
        return path.canonicalize().map_err(|error| format!("UTCP_LIB={}: {error}", path.display()));
    }
    let own = env::current_exe().map_err(|error| format!("can't tell where I am: {error}"))?;
    let folder = own.parent().unwrap_or(&own);
    let candidates = [folder.join("libutcp.so"), folder.join("../lib/libutcp.so")];
    candidates.iter().find_map(|path| fs::canonicalize(path).ok()).ok_or_else(|| {
        format!(
            "libutcp.so is not beside {}: build it with `cargo build --release`, or name it in UTCP_LIB",
            own.display()
        )
    })
}
