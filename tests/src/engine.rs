//! A private engine, and what it tells about itself.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::lab::{Lab, on_kernel, release_file, unique};
use crate::net::Host;
use crate::run::Running;
use crate::wait::{WAIT, wait_until};

/// An engine of a test's own. In kernel mode it is nobody, and what it is asked is always true.
#[derive(Debug)]
pub struct Engine<'a> {
    lab: &'a Lab,
    stack: String,
    owner: u32,
    namespace: Option<String>,
    settings: Vec<(String, String)>,
    process: RefCell<Option<Running>>,
    preload: Option<PathBuf>,
    folder: Option<PathBuf>,
    served_by: Option<PathBuf>,
    counted: RefCell<Counters>,
}

/// The engine's counters by name.
#[derive(Debug, Clone, Default)]
pub struct Counters(HashMap<String, u64>);

impl Counters {
    /// A counter's value.
    ///
    /// # Panics
    /// If the engine has no counter of that name.
    #[must_use]
    #[track_caller]
    pub fn get(&self, name: &str) -> u64 {
        match self.0.get(name) {
            Some(value) => *value,
            None if on_kernel() || self.0.is_empty() => 0,
            None => panic!("the engine has no counter {name}: {:?}", self.0.keys()),
        }
    }

    /// How much a counter grew since `before`.
    #[must_use]
    #[track_caller]
    pub fn since(&self, before: &Self, name: &str) -> u64 {
        self.get(name).saturating_sub(before.get(name))
    }
}

/// A line of `utcp ss`.
#[derive(Debug, Clone)]
pub struct Socket {
    /// `ESTAB`, `LISTEN` …
    pub state: String,
    /// Local endpoint.
    pub local: String,
    /// The peer's.
    pub peer: String,
    /// The whole line.
    pub line: String,
}

/// `UTCP_TEST_CUT_THROUGH`: `on` or `off` runs every test on one of the two same-host paths.
fn cut_through() -> Option<String> {
    std::env::var("UTCP_TEST_CUT_THROUGH").ok()
}

/// `UTCP_TEST_SHARDS`: every engine without cores of its own has so many shards, by the load. One otherwise, whatever the machine.
fn shards() -> Option<String> {
    Some(std::env::var("UTCP_TEST_SHARDS").unwrap_or_else(|_| "1".to_owned()))
}

impl<'a> Engine<'a> {
    /// An engine for same-host traffic that is not started yet.
    #[must_use]
    pub fn new(lab: &'a Lab) -> Self {
        Self {
            lab,
            stack: format!("test-{}-{}", std::process::id(), unique()),
            owner: 0,
            namespace: None,
            settings: [("UTCP_CUT_THROUGH", cut_through()), ("UTCP_SHARDS", shards())]
                .into_iter()
                .filter_map(|(name, value)| Some((name.to_owned(), value?)))
                .collect(),
            process: RefCell::new(None),
            preload: None,
            folder: None,
            served_by: None,
            counted: RefCell::default(),
        }
    }

    /// A running engine for same-host traffic.
    #[must_use]
    #[track_caller]
    pub fn start(lab: &'a Lab) -> Self {
        Self::new(lab).run()
    }

    /// In this host's network namespace.
    #[must_use]
    pub fn inside(mut self, host: &Host) -> Self {
        self.namespace = Some(host.namespace().to_owned());
        self
    }

    /// With a setting: `UTCP_DEVICE` …
    #[must_use]
    pub fn set(mut self, name: &str, value: impl Into<String>) -> Self {
        self.settings.retain(|(known, _)| known != name && (name != "UTCP_CORES" || known != "UTCP_SHARDS"));
        self.settings.push((name.to_owned(), value.into()));
        self
    }

    /// As another user, from a copy of the programs that everybody may read (a checkout may be in a home).
    ///
    /// # Panics
    /// If the copy can't be made.
    #[must_use]
    pub fn owned_by(mut self, uid: u32) -> Self {
        self.owner = uid;
        if !on_kernel() {
            let folder = self.lab.path("bin");
            std::fs::create_dir_all(&folder).expect("a folder can be made");
            for name in ["utcp", "libutcp.so"] {
                // By a process of its own: a child that another test forks meanwhile would have the file open for writing, and
                // nobody can run it then (execve(2), ETXTBSY).
                let _ = self.lab.run("cp").arg(release_file(name)).arg(folder.join(name)).ok();
            }
            self.folder = Some(folder);
        }
        self
    }

    /// The `utcp` command, or libutcp.so.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.as_ref().map_or_else(|| release_file(name), |folder| folder.join(name))
    }

    /// Served by another program than `utcp engine`, which takes the same variables.
    #[must_use]
    pub fn by(mut self, program: PathBuf) -> Self {
        self.served_by = Some(program);
        self
    }

    /// With a library in front of the engine's own calls.
    #[must_use]
    pub fn preload(mut self, library: PathBuf) -> Self {
        self.preload = Some(library);
        self
    }

    /// Starts it and waits until it answers.
    ///
    /// # Panics
    /// If it doesn't.
    #[must_use]
    #[track_caller]
    pub fn run(self) -> Self {
        if on_kernel() {
            return self;
        }
        let program = self.served_by.clone().unwrap_or_else(|| self.program("utcp"));
        let mut run = self.lab.run(program).arg("engine").env("UTCP_STACK", &self.stack);
        run = run.env("UTCP_LOG", "debug");
        for (name, value) in &self.settings {
            run = run.env(name, value);
        }
        if let Some(library) = &self.preload {
            run = run.preload(library);
        }
        if self.owner != 0 {
            run = run.as_user(self.owner, self.owner);
        }
        if let Some(namespace) = &self.namespace {
            run = run.inside(&Host::named(namespace));
        }
        let mut process = run.spawn();
        wait_until("the engine answers", WAIT, || {
            assert!(process.is_alive(), "the engine ended:\n{}", process.stderr());
            self.ask("metrics")
        });
        *self.process.borrow_mut() = Some(process);
        *self.counted.borrow_mut() = self.counters();
        self
    }

    /// Leaves the start of the engine to the first program under it.
    ///
    /// The engine then ends with its last program: counters are to be read while one lives.
    #[must_use]
    pub fn by_programs(self) -> Self {
        self
    }

    /// UTCP_STACK's value.
    #[must_use]
    pub fn stack(&self) -> &str {
        &self.stack
    }

    /// The name of its namespace, unless it is the test's own.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// The library that puts a program under it.
    pub(crate) fn library(&self) -> Option<PathBuf> {
        (!on_kernel()).then(|| self.program("libutcp.so"))
    }

    /// What the environment of a program under it says.
    pub(crate) fn variables(&self) -> Vec<(OsString, OsString)> {
        let mut all = vec![("UTCP_STACK".into(), OsString::from(&self.stack))];
        all.extend(self.settings.iter().map(|(name, value)| (name.into(), value.into())));
        all
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.borrow().as_ref().map(Running::pid)
    }

    /// Lets it end in order and waits for that.
    ///
    /// # Panics
    /// If it takes long.
    #[track_caller]
    pub fn stop(&self) {
        if let Some(mut process) = self.process.borrow_mut().take() {
            process.signal(libc::SIGTERM);
            let _ = process.end_within(WAIT);
        }
    }

    /// Kills it at once.
    pub fn kill(&self) {
        *self.process.borrow_mut() = None;
    }

    /// What it wrote to its log until now.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.borrow().as_ref().map(Running::stderr).unwrap_or_default()
    }

    /// The answer to `utcp WHAT`, if one came.
    #[must_use]
    pub fn ask(&self, what: &str) -> Option<String> {
        let mut run = self.lab.run(self.program("utcp")).args(what.split(' ')).args(["--stack", &self.stack]);
        if let Some(namespace) = &self.namespace {
            run = run.inside(&Host::named(namespace));
        }
        if self.owner != 0 {
            run = run.as_user(self.owner, self.owner);
        }
        let mut asker = run.spawn();
        let answer = asker.end_within(Duration::from_secs(10));
        asker.forget_logs();
        answer.status.success().then(|| answer.text())
    }

    /// Its counters now.
    ///
    /// # Panics
    /// If it doesn't answer.
    #[must_use]
    #[track_caller]
    pub fn counters(&self) -> Counters {
        if on_kernel() {
            return Counters::default();
        }
        let text = self.ask("metrics").expect("the engine answers `utcp metrics`");
        let parse = |line: &str| {
            let mut fields = line.split_whitespace();
            Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
        };
        Counters(text.lines().filter_map(parse).collect())
    }

    /// Its sockets now.
    ///
    /// # Panics
    /// If it doesn't answer.
    #[must_use]
    #[track_caller]
    pub fn sockets(&self) -> Vec<Socket> {
        if on_kernel() {
            return Vec::new();
        }
        let text = self.ask("ss").expect("the engine answers `utcp ss`");
        let parse = |line: &str| {
            let mut fields = line.split_whitespace();
            let state = fields.next()?.to_owned();
            let (local, peer) = (fields.nth(2)?.to_owned(), fields.next()?.to_owned());
            Some(Socket { state, local, peer, line: line.to_owned() })
        };
        text.lines().skip(1).filter_map(parse).collect()
    }

    /// Waits until somebody listens on `port` in it.
    ///
    /// # Panics
    /// If nobody does in time.
    #[track_caller]
    pub fn wait_for_listener(&self, port: u16) {
        let suffix = format!(":{port}");
        wait_until(&format!("port {port} is LISTEN in `utcp ss`"), WAIT, || {
            let listens = |socket: &Socket| socket.state == "LISTEN" && socket.local.ends_with(&suffix);
            (on_kernel() || self.sockets().iter().any(listens)).then_some(())
        });
    }

    /// Waits until no connection is left: whoever ended left nothing behind. A TIME-WAIT is none.
    ///
    /// # Panics
    /// If one stays.
    #[track_caller]
    pub fn wait_until_empty(&self, limit: Duration) {
        self.wait_until_gone("connections", limit, |socket| {
            socket.state != "LISTEN" && socket.state != "TIME-WAIT"
        });
    }

    /// Waits until no socket for which `stays` is true is left.
    ///
    /// # Panics
    /// If one stays.
    #[track_caller]
    pub fn wait_until_gone(&self, what: &str, limit: Duration, stays: impl Fn(&Socket) -> bool) {
        wait_until(&format!("no {what} are left in `utcp ss`"), limit, || {
            (!self.sockets().iter().any(&stays)).then_some(())
        });
    }

    /// At least `connections` connections went through utcp since the last call (or since the engine
    /// started): a program that silently used the kernel passes no test.
    ///
    /// # Panics
    /// If fewer did.
    #[track_caller]
    pub fn went_through(&self, connections: u64) {
        if on_kernel() {
            return;
        }
        let now = self.counters();
        let before = self.counted.replace(now.clone());
        let grown = |name: &str| now.since(&before, name);
        let (connects, accepts) = (grown("connects"), grown("accepts"));
        assert!(
            connects.max(accepts) >= connections,
            "only {connects} connects and {accepts} accepts of {connections} connections went through utcp, {} connects to \
             the kernel",
            grown("connects_kernel")
        );
        assert!(
            grown("local_segments") + grown("rx_frames") > 0 || connections == 0,
            "connections went through utcp, but no segment"
        );
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() && self.process.borrow().is_some() {
            for what in ["ss", "metrics", "clients"] {
                if let Some(answer) = self.ask(what) {
                    let shown: String = answer.lines().take(40).map(|line| format!("{line}\n")).collect();
                    eprintln!("---- {}: utcp {what}:\n{shown}", self.lab.name());
                }
            }
        }
    }
}
