//! `utcp run PROG …`: the program itself, with the library in front.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::find;

/// Arguments of `utcp run`.
#[derive(clap::Args)]
pub struct Run {
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "PROG")]
    program: Vec<OsString>,
}

/// Replaces this process by the program. Returns only on failure.
pub fn main(run: &Run) -> Result<(), String> {
    let library = find::library()?;
    // Whatever is preloaded already stays, behind us.
    let preload = match env::var_os("LD_PRELOAD") {
        Some(others) if !others.is_empty() => {
            let mut list = OsString::from(&library);
            list.push(":");
            list.push(others);
            list
        }
        _ => library.into(),
    };
    let Some((program, arguments)) = run.program.split_first() else {
        return Err("name a program to run".to_owned());
    };
    let error = Command::new(program).args(arguments).env("LD_PRELOAD", preload).exec();
    Err(format!("{}: {error}", program.display()))
}
