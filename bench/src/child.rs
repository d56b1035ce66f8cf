//! Processes that a run starts, and their end.
//!
//! Each is the leader of a process group of its own (a Ctrl-C at the terminal reaches us alone, and we
//! can end a program together with its workers), writes to files (no pipe that fills up), and gets
//! SIGTERM from the kernel should this process die without its Drops.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::{Error, interrupt};

/// What to start.
#[derive(Debug, Clone)]
pub struct Launch {
    name: String,
    program: Vec<OsString>,
    variables: Vec<(String, OsString)>,
    cores: Option<String>,
    netns: Option<String>,
    /// Its control group's folder.
    group: Option<PathBuf>,
}

impl Launch {
    /// `program` from PATH (and the sbin folders, which an ordinary user's PATH lacks).
    pub fn new(program: impl Into<OsString>) -> Self {
        let program = program.into();
        let name = Path::new(&program).file_name().unwrap_or(&program).to_string_lossy().into_owned();
        Self { name, program: vec![program], variables: Vec::new(), cores: None, netns: None, group: None }
    }

    /// More arguments.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.program.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// An environment variable, for the program alone and not for what starts it.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    /// Pins it to a list of cores, such as `0` or `0,1`.
    #[must_use]
    pub fn cores(mut self, list: Option<&str>) -> Self {
        self.cores = list.map(str::to_owned);
        self
    }

    /// Starts it in a named network namespace.
    #[must_use]
    pub fn netns(mut self, name: Option<&str>) -> Self {
        self.netns = name.map(str::to_owned);
        self
    }

    /// Another name for its output files, where a run has several of the same program.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Starts it in a control group, named by its folder.
    #[must_use]
    pub fn group(mut self, folder: Option<&Path>) -> Self {
        self.group = folder.map(Path::to_owned);
        self
    }

    /// The whole command line. `env` comes last, so that a preload applies to the program alone.
    #[must_use]
    pub fn command_line(&self) -> Vec<OsString> {
        let mut line: Vec<OsString> = Vec::new();
        let mut word = |words: &[&str]| line.extend(words.iter().map(OsString::from));
        word(&["setpriv", "--pdeathsig", "TERM"]);
        if let Some(group) = &self.group {
            word(&["sh", "-c", "echo 0 >\"$0/cgroup.procs\" && exec \"$@\""]);
            line.push(group.into());
        }
        let mut word = |words: &[&str]| line.extend(words.iter().map(OsString::from));
        if let Some(netns) = &self.netns {
            word(&["ip", "netns", "exec", netns]);
        }
        if let Some(cores) = &self.cores {
            word(&["taskset", "-c", cores]);
        }
        word(&["env"]);
        for (name, value) in &self.variables {
            let mut pair = OsString::from(name);
            pair.push("=");
            pair.push(value);
            line.push(pair);
        }
        line.extend(self.program.iter().cloned());
        line
    }

    /// Starts it; its output goes to `NAME.out` and `NAME.err` in `directory`.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(&self, directory: &Path) -> Result<Process, Error> {
        let failed = || Error::io(format!("can't start {}", self.name));
        let output = directory.join(format!("{}.out", self.name));
        let errors = directory.join(format!("{}.err", self.name));
        let line = self.command_line();
        let (first, rest) =
            line.split_first().ok_or_else(|| Error::Missing("an empty command".to_owned()))?;
        let mut child = Command::new(first)
            .args(rest)
            .env("PATH", path_with_sbin())
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(File::create(&output).map_err(failed())?)
            .stderr(File::create(&errors).map_err(failed())?)
            .process_group(0)
            .spawn()
            .map_err(failed())?;
        let input = child.stdin.take();
        Ok(Process { name: self.name.clone(), child, input, output, errors, ended: None })
    }

    /// Runs it to its end, which must be a success; what it printed.
    ///
    /// # Errors
    /// [`Error::Program`], [`Error::Late`].
    pub fn run(&self, directory: &Path, patience: Duration) -> Result<String, Error> {
        let mut process = self.start(directory)?;
        process.input = None;
        let status = process.wait(patience)?;
        if !status.success() {
            return Err(process.failure(status));
        }
        Ok(process.output())
    }
}

/// PATH, with the folders where Debian keeps servers.
fn path_with_sbin() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin");
    path
}

/// A running program. Dropped, it and its process group are killed.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    output: PathBuf,
    errors: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Its process id, which is also that of its group.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it printed so far.
    #[must_use]
    pub fn output(&self) -> String {
        lossy(&self.output)
    }

    /// What it printed so far as errors, and then as output.
    #[must_use]
    pub fn said(&self) -> String {
        format!("{}\n{}", lossy(&self.output), lossy(&self.errors))
    }

    /// The error that its end is.
    #[must_use]
    pub fn failure(&self, status: ExitStatus) -> Error {
        Error::Program { name: self.name.clone(), status: status.to_string(), tail: self.said() }
    }

    /// The error that its silence is.
    #[must_use]
    pub fn late(&self, what: &'static str) -> Error {
        Error::Late { name: self.name.clone(), what, tail: self.said() }
    }

    /// Whether it ended.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, Error> {
        if self.ended.is_none() {
            let failed = Error::io(format!("can't wait for {}", self.name));
            self.ended = self.child.try_wait().map_err(failed)?;
        }
        Ok(self.ended)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`Error::Late`] after `patience`; [`Error::Interrupted`].
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus, Error> {
        interrupt::wait_for(patience, || Ok(self.ended()?.is_some()))?;
        self.ended.ok_or_else(|| self.late("end"))
    }

    /// Waits until `ready` says yes.
    ///
    /// # Errors
    /// [`Error::Program`] if it ends instead, [`Error::Late`].
    pub fn wait_ready(
        &mut self,
        patience: Duration,
        mut ready: impl FnMut(u32) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let yes = interrupt::wait_for(patience, || match self.ended()? {
            Some(status) => Err(self.failure(status)),
            None => ready(self.id()),
        })?;
        if yes {
            return Ok(());
        }
        Err(self.late("become ready"))
    }

    /// Asks it to end and waits for that, and for the end of its workers (who may hold its listener
    /// still when it is gone itself). They have to do so on their own within `patience`.
    ///
    /// # Errors
    /// [`Error::Late`] if it did not; it is killed then.
    pub fn stop(mut self, patience: Duration) -> Result<(), Error> {
        if self.ended()?.is_none() {
            let _ = kill_process(self.pid(), Signal::TERM);
            self.wait(patience)?;
        }
        let group = self.id();
        if interrupt::wait_for(patience, || Ok(!crate::cpu::group_lives(group)))? {
            return Ok(());
        }
        Err(self.late("end all its processes"))
    }

    /// Writes a line to its input.
    ///
    /// # Errors
    /// When it does not read any more.
    pub fn tell(&mut self, line: &str) -> Result<(), Error> {
        let failed = Error::io(format!("can't tell {} what to do", self.name));
        match &mut self.input {
            Some(input) => writeln!(input, "{line}").map_err(failed),
            None => Ok(()),
        }
    }

    /// Sends it what a Ctrl-C would.
    pub fn interrupt(&self) {
        let _ = kill_process(self.pid(), Signal::INT);
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The group is ours as long as its leader is not reaped or any of its workers lives; a
        // leader that was reaped can have left workers only if it crashed, and the number of a
        // group in use is not given away.
        if self.ended.is_none() {
            let _ = kill_process_group(self.pid(), Signal::KILL);
            let _ = self.child.wait();
        } else if crate::cpu::group_lives(self.child.id()) {
            let _ = kill_process_group(self.pid(), Signal::KILL);
        }
    }
}

fn lossy(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preload_is_for_the_program_alone() {
        let launch = Launch::new("nginx")
            .args(["-c", "x"])
            .env("LD_PRELOAD", "/l.so")
            .cores(Some("1"))
            .netns(Some("ns"));
        let line: Vec<String> =
            launch.command_line().iter().map(|word| word.to_string_lossy().into_owned()).collect();
        assert_eq!(
            line.join(" "),
            "setpriv --pdeathsig TERM ip netns exec ns taskset -c 1 env LD_PRELOAD=/l.so nginx -c x"
        );
    }

    #[test]
    fn a_process_is_its_own_group_and_dies_with_its_value() {
        let folder = std::env::temp_dir();
        let process = Launch::new("sleep").args(["1000"]).start(&folder).unwrap();
        let id = process.id();
        assert!(crate::cpu::group_lives(id));
        drop(process);
        assert!(!crate::cpu::group_lives(id));
    }

    #[test]
    fn an_early_end_is_an_error_with_what_was_said() {
        let folder = std::env::temp_dir();
        let error = Launch::new("sh").args(["-c", "echo why; exit 3"]).run(&folder, Duration::from_secs(5));
        let text = error.unwrap_err().to_string();
        assert!(text.contains("why") && text.contains('3'), "{text}");
    }
}
