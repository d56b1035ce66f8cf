//! What can go wrong in a measurement.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Why a run gave no figure.
#[derive(Debug)]
pub enum Error {
    /// A call to the system failed.
    Io {
        /// What was being done.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// A program ended in a way that it should not.
    Program {
        /// Its name.
        name: String,
        /// How it ended.
        status: String,
        /// The end of what it said.
        tail: String,
    },
    /// A program did not become ready or did not end in time.
    Late {
        /// Its name.
        name: String,
        /// What it should have done.
        what: &'static str,
        /// The end of what it said.
        tail: String,
    },
    /// The output of a program is not what its version should print.
    Output {
        /// Its name.
        name: &'static str,
        /// What was looked for.
        missing: &'static str,
        /// What it printed.
        text: String,
    },
    /// Connections of a run under utcp went another way.
    FellBack {
        /// The engine's counter that did not grow as it had to.
        counter: &'static str,
        /// Its growth.
        seen: u64,
        /// The least that it had to grow by.
        wanted: u64,
    },
    /// Something that has to be there is not.
    Missing(String),
    /// The user asked to stop.
    Interrupted,
    /// A file that belongs to utcp is missing.
    NotBuilt(PathBuf),
}

impl Error {
    /// For `map_err`: an I/O error and what was being done.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

impl From<utcp_netmap_io::PortError> for Error {
    fn from(error: utcp_netmap_io::PortError) -> Self {
        // Its text says what to do.
        Self::Missing(error.to_string())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { what, source } => write!(f, "{what}: {source}"),
            Self::Program { name, status, tail } => {
                write!(f, "{name} ended: {status}{}", indented(tail))
            }
            Self::Late { name, what, tail } => write!(f, "{name} did not {what} in time{}", indented(tail)),
            Self::Output { name, missing, text } => {
                write!(f, "the output of {name} lacks {missing}{}", indented(text))
            }
            Self::FellBack { counter, seen, wanted } => write!(
                f,
                "connections did not go through utcp: the engine counted {counter} {seen}, at least {wanted} expected"
            ),
            Self::Missing(what) => f.write_str(what),
            Self::Interrupted => f.write_str("interrupted"),
            Self::NotBuilt(path) => {
                write!(f, "{} is missing: run `cargo build --release` (or scripts/setup)", path.display())
            }
        }
    }
}

impl std::error::Error for Error {}

/// The last lines of `text`, each on a line of its own below the message.
fn indented(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines.len().saturating_sub(12);
    lines[last..].iter().map(|line| format!("\n    {line}")).collect()
}
