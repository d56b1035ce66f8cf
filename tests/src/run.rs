//! Programs: how they are started, watched and ended.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::engine::Engine;
use crate::lab::Lab;
use crate::net::Host;
use crate::wait::{WAIT, wait_until};

/// How long a program that is expected to end may take.
const LIMIT: Duration = Duration::from_secs(60);

/// A program that is about to run.
#[derive(Debug)]
pub struct Run<'a> {
    lab: &'a Lab,
    program: OsString,
    args: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    preload: Option<PathBuf>,
    wrapper: Vec<OsString>,
    namespace: Option<String>,
    user: Option<(u32, u32)>,
    stdin: Option<PathBuf>,
    limit: Duration,
}

impl<'a> Run<'a> {
    pub(crate) fn new(lab: &'a Lab, program: &OsStr) -> Self {
        Self {
            lab,
            program: program.to_owned(),
            args: Vec::new(),
            envs: Vec::new(),
            preload: None,
            wrapper: Vec::new(),
            namespace: None,
            user: None,
            stdin: None,
            limit: LIMIT,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable; nothing of the test's own environment is passed on but PATH.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.envs.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Preloads `library`.
    #[must_use]
    pub fn preload(mut self, library: impl Into<PathBuf>) -> Self {
        self.preload = Some(library.into());
        self
    }

    /// Under utcp, with this engine, in its network namespace. In kernel mode: in its namespace.
    #[must_use]
    pub fn under(mut self, engine: &Engine<'_>) -> Self {
        if let Some(library) = engine.library() {
            self.preload = Some(library);
            self.envs.extend(engine.variables());
        }
        self.namespace = self.namespace.or_else(|| engine.namespace().map(str::to_owned));
        self
    }

    /// In this host's network namespace.
    #[must_use]
    pub fn inside(mut self, host: &Host) -> Self {
        self.namespace = Some(host.namespace().to_owned());
        self
    }

    /// By the program and arguments `wrapper` (such as `unshare -Urn`), which itself is not preloaded.
    #[must_use]
    pub fn by(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(OsString::from).collect();
        self
    }

    /// As this user and group, without other groups.
    #[must_use]
    pub fn as_user(mut self, uid: u32, gid: u32) -> Self {
        self.user = Some((uid, gid));
        self
    }

    /// Standard input from a file.
    #[must_use]
    pub fn stdin(mut self, path: impl Into<PathBuf>) -> Self {
        self.stdin = Some(path.into());
        self
    }

    /// How long it may take, if it is expected to end.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    fn command(&self) -> Command {
        // Outermost first: namespace, wrapper, `env` with what only the program itself may see, program.
        let mut words: Vec<OsString> = Vec::new();
        if let Some(namespace) = &self.namespace {
            words.extend(["ip", "netns", "exec", namespace].map(OsString::from));
        }
        words.extend(self.wrapper.iter().cloned());
        let bare = words.is_empty();
        let mut inner: Vec<(OsString, OsString)> = Vec::new();
        if let Some(library) = &self.preload {
            inner.push(("LD_PRELOAD".into(), library.into()));
        }
        if !bare {
            words.push("env".into());
            for (name, value) in &inner {
                let mut word = name.clone();
                word.push("=");
                word.push(value);
                words.push(word);
            }
        }
        words.push(self.program.clone());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(&self.args).env_clear();
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.env("PATH", path).env("HOME", "/nonexistent").env("LC_ALL", "C.UTF-8").env("NO_COLOR", "1");
        command.envs(self.envs.iter().map(|(name, value)| (name, value)));
        if bare {
            command.envs(inner);
        }
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Starts it; its output goes to log files.
    ///
    /// # Panics
    /// If it can't be started.
    #[must_use]
    #[track_caller]
    pub fn spawn(self) -> Running {
        let name =
            Path::new(&self.program).file_name().unwrap_or(&self.program).to_string_lossy().into_owned();
        let out = self.lab.log(&name, "out");
        let err = out.with_extension("err");
        let mut command = self.command();
        let stdin = match &self.stdin {
            Some(path) => Stdio::from(File::open(path).expect("standard input can be opened")),
            None => Stdio::null(),
        };
        command
            .current_dir(self.lab.path(""))
            .stdin(stdin)
            .stdout(File::create(&out).expect("a log can be made"))
            .stderr(File::create(&err).expect("a log can be made"))
            .process_group(0);
        // SAFETY: prctl is async-signal-safe and touches nothing of the parent.
        unsafe {
            command.pre_exec(|| {
                // A test process that is killed can't run destructors: its children die with it.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let child = command.spawn().unwrap_or_else(|error| {
            panic!("{name} can't be started: {error} (scripts/setup installs what the tests need)")
        });
        Running { name, child, status: None, out, err, limit: self.limit }
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// If it can't be started or doesn't end in time.
    #[track_caller]
    pub fn finish(self) -> Finished {
        self.spawn().finish()
    }

    /// Runs it to its end, which must be a success.
    ///
    /// # Panics
    /// If it can't be started, doesn't end in time or fails.
    #[track_caller]
    pub fn ok(self) -> Finished {
        self.finish().ok()
    }
}

/// A program that was started; dropping it kills it and whatever it forked.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
    out: PathBuf,
    err: PathBuf,
    limit: Duration,
}

/// What a program did until its end.
#[derive(Debug)]
pub struct Finished {
    /// Its name.
    pub name: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub out: Vec<u8>,
    /// Standard error.
    pub err: String,
    /// How long it took from the moment somebody began to wait for it.
    pub took: Duration,
}

impl Finished {
    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// It must have ended well.
    ///
    /// # Panics
    /// If it did not.
    #[track_caller]
    #[must_use]
    pub fn ok(self) -> Self {
        assert!(
            self.status.success(),
            "{} ended with {}:\n{}\n{}",
            self.name,
            self.status,
            self.text(),
            self.err
        );
        self
    }

    /// It must have ended by itself, whatever the code; a signal is a crash.
    ///
    /// # Panics
    /// If a signal ended it.
    #[track_caller]
    #[must_use]
    pub fn no_crash(self) -> Self {
        assert!(self.status.signal().is_none(), "{} was ended by {}:\n{}", self.name, self.status, self.err);
        self
    }
}

impl Running {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to standard output until now.
    #[must_use]
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.out).unwrap_or_default()).into_owned()
    }

    /// What it wrote to standard error until now.
    #[must_use]
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.err).unwrap_or_default()).into_owned()
    }

    /// Whether it still runs.
    ///
    /// # Panics
    /// If it is no child of ours.
    pub fn is_alive(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("it is our child");
        }
        self.status.is_none()
    }

    /// Sends a signal to it alone.
    pub fn signal(&self, signal: i32) {
        if self.status.is_none() {
            signal_pid(self.pid(), signal);
        }
    }

    /// Waits until it wrote `text` to standard output.
    ///
    /// # Panics
    /// If it ended or did not write that in time.
    #[track_caller]
    pub fn wait_for_output(&mut self, text: &str) {
        let name = self.name.clone();
        wait_until(&format!("{name} prints {text:?}"), WAIT, || {
            if self.stdout().contains(text) {
                return Some(());
            }
            let alive = self.is_alive();
            assert!(
                alive || self.stdout().contains(text),
                "{name} ended without {text:?}: {:?}",
                self.status
            );
            None
        });
    }

    /// Waits until it listens on `port` (as the kernel sees it: a utcp listener is one of the kernel's, too).
    ///
    /// # Panics
    /// If it ends or does not listen in time.
    #[track_caller]
    pub fn wait_for_listener(&mut self, port: u16) {
        let name = self.name.clone();
        let pid = self.pid();
        wait_until(&format!("{name} listens on port {port}"), WAIT, || {
            assert!(self.is_alive(), "{name} ended with {:?}:\n{}", self.status, self.stderr());
            kernel_listens(pid, port).then_some(())
        });
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it doesn't end in time.
    #[track_caller]
    pub fn finish(mut self) -> Finished {
        let limit = self.limit;
        self.end_within(limit)
    }

    /// Forgets what it wrote: a question asked a hundred times is not what a failing test should print.
    pub fn forget_logs(&self) {
        let _ = fs::remove_file(&self.out);
        let _ = fs::remove_file(&self.err);
    }

    /// Waits for its end, `limit` at most.
    ///
    /// # Panics
    /// If it doesn't end in time.
    #[track_caller]
    pub fn end_within(&mut self, limit: Duration) -> Finished {
        let start = Instant::now();
        let name = self.name.clone();
        wait_until(&format!("{name} ends (out: {})", self.out.display()), limit, || {
            (!self.is_alive()).then_some(())
        });
        Finished {
            name,
            status: self.status.expect("it ended"),
            out: fs::read(&self.out).unwrap_or_default(),
            err: self.stderr(),
            took: start.elapsed(),
        }
    }

    /// Clock ticks (1/100 s) of CPU that it used until now, user and system.
    #[must_use]
    pub fn cpu_ticks(&self) -> u64 {
        cpu_ticks(self.pid())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Its process group, which is its own: what it forked goes with it.
        if let Ok(group) = i32::try_from(self.pid()) {
            // SAFETY: kill takes two numbers. We have not waited for the leader yet, or the group is
            // named by a process of ours: the number can't have been given to a stranger meanwhile.
            unsafe { libc::kill(-group, libc::SIGKILL) };
        }
        let _ = self.child.wait();
    }
}

/// Sends `signal` to a process that a test started.
pub fn signal_pid(pid: u32, signal: i32) {
    if let Ok(pid) = i32::try_from(pid) {
        // SAFETY: kill takes two numbers.
        unsafe { libc::kill(pid, signal) };
    }
}

/// Clock ticks (1/100 s) of CPU that process `pid` used until now, user and system.
#[must_use]
pub fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name is in parentheses and may hold spaces; utime and stime are fields 14 and 15 of the line.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

/// How often threads of process `pid` have gone to sleep until now.
#[must_use]
pub fn voluntary_switches(pid: u32) -> u64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let of = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    tasks.flatten().map(of).sum()
}

/// Children of `pid`, of its main thread.
#[must_use]
pub fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Whether somebody listens on `port` in the network namespace of process `pid`.
#[must_use]
pub fn kernel_listens(pid: u32, port: u16) -> bool {
    let wanted = format!(":{port:04X}");
    ["tcp", "tcp6"].iter().any(|table| {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        text.lines().skip(1).any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let (local, _, state) = (fields.next(), fields.next(), fields.next());
            local.is_some_and(|local| local.ends_with(&wanted)) && state == Some("0A")
        })
    })
}
