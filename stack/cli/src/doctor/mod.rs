//! `utcp doctor`: what stands in the way on this machine, and what to do about it.
//!
//! | module | looks at |
//! |---|---|
//! | `machine` | kernel, privileges, limits, port ranges |
//! | `device` | one interface: driver, offloads, XDP programs, interrupts |

mod device;
mod machine;

use std::io;

/// Arguments of `utcp doctor`.
#[derive(clap::Args)]
pub struct Doctor {
    /// Look at these devices, too, as in UTCP_DEVICE: xdp:eth0, netmap:eth0, tap:utcp0; separated by commas.
    #[arg(value_name = "DEVICE")]
    device: Option<String>,
    /// Set what can be set: offloads, interfaces that are down, reserved port numbers.
    #[arg(long)]
    fix: bool,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Good,
    /// Not needed by everybody, or only slower.
    Note,
    /// utcp, or this device, does not work so.
    Bad,
}

/// One thing that was looked at.
struct Finding {
    level: Level,
    /// What it is, in a word or two.
    what: &'static str,
    /// What was found, and what to do if it is not good.
    words: String,
    /// Sets it right.
    fix: Option<Box<dyn FnOnce() -> io::Result<()>>>,
}

impl Finding {
    fn new(level: Level, what: &'static str, words: impl Into<String>) -> Self {
        Self { level, what, words: words.into(), fix: None }
    }

    fn good(what: &'static str, words: impl Into<String>) -> Self {
        Self::new(Level::Good, what, words)
    }

    fn note(what: &'static str, words: impl Into<String>) -> Self {
        Self::new(Level::Note, what, words)
    }

    fn bad(what: &'static str, words: impl Into<String>) -> Self {
        Self::new(Level::Bad, what, words)
    }

    fn fixed_by(mut self, fix: impl FnOnce() -> io::Result<()> + 'static) -> Self {
        self.fix = Some(Box::new(fix));
        self
    }
}

/// Prints a line for everything; an error when something is bad and stays so.
pub fn main(doctor: &Doctor) -> Result<(), String> {
    let devices = match &doctor.device {
        Some(list) => crate::engine::devices(std::slice::from_ref(list)),
        None => Vec::new(),
    };
    let mut findings = machine::look(&devices);
    for device in &devices {
        findings.extend(device::look(device)?);
    }
    let (mut bad, mut fixable) = (0, 0);
    for finding in findings {
        let Finding { level, what, words, fix } = finding;
        let mark = match level {
            Level::Good => "ok  ",
            Level::Note => "note",
            Level::Bad => "BAD ",
        };
        println!("{mark}  {what}: {words}");
        let outcome = match fix {
            Some(fix) if doctor.fix => Some(fix()),
            Some(_) => {
                fixable += 1;
                None
            }
            None => None,
        };
        match &outcome {
            Some(Ok(())) => println!("      fixed"),
            Some(Err(error)) => println!("      could not be fixed: {error}"),
            None => {}
        }
        bad += usize::from(level == Level::Bad && !matches!(outcome, Some(Ok(()))));
    }
    if fixable > 0 {
        println!("`utcp doctor --fix` sets {fixable} of these right");
    }
    match bad {
        0 => Ok(()),
        1 => Err("one thing stands in the way".to_owned()),
        n => Err(format!("{n} things stand in the way")),
    }
}
