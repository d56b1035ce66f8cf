//! The lean generator of one run, a process that is told what to do line by line.

use std::path::Path;
use std::time::Duration;

use crate::Error;
use crate::child::{Launch, Process};
use crate::engine::Files;
use crate::load::Summary;

/// For the other end of a pipe, which is made after it, too.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// Where it is and whom it loads.
#[derive(Debug, Clone)]
pub struct Route<'a> {
    /// Its device.
    pub device: String,
    /// Its address there.
    pub address: &'a str,
    /// The server's.
    pub server: &'a str,
    /// The first port that the server listens on.
    pub port: u16,
    /// How many.
    pub ports: u16,
    /// Link address of the server, where the device does not know it.
    pub next_hop: Option<&'a str>,
}

/// A running generator. Dropped, it is killed.
#[derive(Debug)]
pub struct Generator {
    process: Process,
    /// Answers that it gave so far, its greeting included.
    answers: usize,
}

impl Generator {
    /// Starts one.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(
        files: &Files,
        route: &Route<'_>,
        netns: Option<&str>,
        cores: Option<&str>,
        directory: &Path,
    ) -> Result<Self, Error> {
        let launch = Launch::new(&files.lean)
            .args(["--device", &route.device, "--address", route.address, "--server", route.server])
            .args(["--port", &route.port.to_string(), "--ports", &route.ports.to_string()])
            .args(route.next_hop.iter().flat_map(|hop| ["--next-hop", hop]))
            .cores(cores)
            .netns(netns);
        Ok(Self { process: launch.start(directory)?, answers: 0 })
    }

    /// Waits until its device is open.
    ///
    /// # Errors
    /// When it ends instead.
    pub fn wait_ready(&mut self) -> Result<(), Error> {
        self.answer(START_PATIENCE).map(drop)
    }

    /// Its process group.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Gives it a command and waits for the answer.
    ///
    /// # Errors
    /// When it ends, or does not answer within `patience`.
    pub fn ask(&mut self, command: &str, patience: Duration) -> Result<Summary, Error> {
        self.tell(command)?;
        self.summary(patience)
    }

    /// Gives it a command.
    ///
    /// # Errors
    /// When it does not read any more.
    pub fn tell(&mut self, command: &str) -> Result<(), Error> {
        self.process.tell(command)
    }

    /// Waits for the answer to a command.
    ///
    /// # Errors
    /// When it ends, or does not answer within `patience`.
    pub fn summary(&mut self, patience: Duration) -> Result<Summary, Error> {
        let text = self.answer(patience)?;
        serde_json::from_str(&text).map_err(|_| Error::Output {
            name: "utcp-lean",
            missing: "a summary",
            text,
        })
    }

    /// The next line that it prints.
    fn answer(&mut self, patience: Duration) -> Result<String, Error> {
        let wanted = self.answers;
        let line = |process: &Process| {
            // A line counts once it is whole.
            let text = process.output();
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            whole.lines().nth(wanted).map(str::to_owned)
        };
        let mut found = None;
        crate::interrupt::wait_for(patience, || {
            found = line(&self.process);
            match (&found, self.process.ended()?) {
                (None, Some(status)) => Err(self.process.failure(status)),
                _ => Ok(found.is_some()),
            }
        })?;
        self.answers += 1;
        found.ok_or_else(|| self.process.late("answer"))
    }
}
