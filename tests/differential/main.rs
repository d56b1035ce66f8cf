//! Runs a script of socket calls and prints what each returned: once on the kernel and once under utcp the
//! lines must be the same. `tests/differential.rs` compares them, `cases/*.calls` are the scripts.
//!
//! ```text
//!  pair c a l            l: listener on a loopback port, c: connected to it, a: accepted
//!  send c "abc"          → send c "abc" = 3
//!  recv a 10 peek        → recv a 10 peek = 3 "abc"
//!  later 50 send c "x"   in another thread, 50 ms from now; its line comes at `join`
//!  fork … end            the lines between run in a child; the parent waits for it
//!  loose                 from here on a name that nobody has is a closed descriptor, not a fault of the script
//! ```
//!
//! Numbers that differ from run to run (descriptors, ports) are never printed. After each call the
//! script waits (`settle.rs`), so that what it started has reached the other end: on the kernel's loopback that is so
//! at once, and no program may rely on it.

mod calls;
mod messages;
mod names;
mod pointers;
mod processes;
mod settle;
mod signals;
mod stdio;
mod words;

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use settle::Settle;
use words::Words;

/// A number that no descriptor has, unless a script makes one. (Numbers above 63 are none at all for select where the kernel's table
/// is small.)
const CLOSED: i32 = 63;

/// Descriptors by name.
#[derive(Debug, Clone, Default)]
pub struct Fds {
    by_name: HashMap<String, i32>,
    loose: bool,
}

impl Fds {
    /// The descriptor that `name` stands for; `bad` is none.
    pub fn number(&self, name: &str) -> i32 {
        match self.by_name.get(name) {
            Some(fd) => *fd,
            None if name == "bad" || self.loose => CLOSED,
            None => panic!("{name} is no descriptor"),
        }
    }

    /// From now on `name` stands for `fd`.
    pub fn insert(&mut self, name: &str, fd: i32) {
        self.by_name.insert(name.to_owned(), fd);
    }

    /// From now on `name` stands for nothing.
    pub fn remove(&mut self, name: &str) {
        self.by_name.remove(name);
    }
}

static SIGNALS: AtomicU32 = AtomicU32::new(0);

extern "C" fn on_signal(_: i32) {
    SIGNALS.fetch_add(1, Ordering::SeqCst);
}

/// Lets `signal` interrupt calls (or restart them), and counts it.
pub fn count_signal(signal: i32, flags: i32) {
    // SAFETY: a zeroed sigaction is a valid one; the handler only adds to an atomic.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = flags;
        libc::sigaction(signal, &raw const action, std::ptr::null_mut());
    }
}

struct Script {
    fds: Fds,
    settle: Settle,
    pending: Vec<JoinHandle<String>>,
}

impl Script {
    /// Runs `lines`, up to an `end` or the end. Returns how many it took.
    fn run(&mut self, lines: &[String]) -> usize {
        let mut at = 0;
        while let Some(line) = lines.get(at) {
            at += 1;
            let words = Words::parse(line);
            match words.first() {
                "" => continue,
                "end" => break,
                "fork" => at += self.fork(&lines[at..]),
                "join" => {
                    for thread in self.pending.drain(..) {
                        say(&thread.join().unwrap_or_else(|_| "the thread panicked".to_owned()));
                    }
                }
                "later" => self.later(&words),
                "loose" => self.fds.loose = true,
                _ => {
                    let before = SIGNALS.load(Ordering::SeqCst);
                    let result = calls::run(&mut self.fds, &words);
                    let signals = SIGNALS.load(Ordering::SeqCst) - before;
                    let noted = if signals > 0 { format!(" and {signals} signal") } else { String::new() };
                    say(&format!("{} = {result}{noted}", words.text()));
                }
            }
            self.settle.wait();
        }
        at
    }

    fn later(&mut self, words: &Words) {
        let delay = Duration::from_millis(words.number(1).unsigned_abs());
        let call = words.from(2);
        let mut fds = self.fds.clone();
        self.pending.push(std::thread::spawn(move || {
            std::thread::sleep(delay);
            let result = calls::run(&mut fds, &call);
            format!("later {} = {result}", call.text())
        }));
    }

    /// Runs the block in a child; returns the lines of the block.
    fn fork(&mut self, lines: &[String]) -> usize {
        say("fork");
        // SAFETY: no other thread runs while a script forks; the child goes on with the script and exits.
        let child = unsafe { libc::fork() };
        if child == 0 {
            self.run(lines);
            std::process::exit(0);
        }
        let mut status = 0;
        // SAFETY: our own child, and a place for its status.
        unsafe { libc::waitpid(child, &raw mut status, 0) };
        say(&format!("end = {status}"));
        let end = lines.iter().position(|line| line.trim() == "end").unwrap_or(lines.len());
        end + 1
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

/// The lines of case `name` in a file: from "== name" to the next "==".
fn case_lines(text: &str, name: &str) -> Option<Vec<String>> {
    let mut lines = text.lines().skip_while(|line| line.strip_prefix("== ") != Some(name));
    lines.next()?;
    let body = lines.take_while(|line| !line.starts_with("== "));
    let code = |line: &str| line.split(" #").next().unwrap_or("").trim().to_owned();
    Some(body.map(code).filter(|line| !line.is_empty() && !line.starts_with('#')).collect())
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(name)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: utcp-calls FILE CASE");
        std::process::exit(2);
    };
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let lines = case_lines(&text, &name).unwrap_or_else(|| panic!("{path} has no case {name}"));
    count_signal(libc::SIGPIPE, libc::SA_RESTART);
    let mut script = Script { fds: Fds::default(), settle: Settle::from_environment(), pending: Vec::new() };
    script.run(&lines);
}

#[cfg(test)]
mod tests {
    use super::case_lines;

    #[test]
    fn cases_are_cut() {
        let text = "# about\n== one\na b # why\n\n# c\nd\n== two\ne\n";
        assert_eq!(case_lines(text, "one"), Some(vec!["a b".to_owned(), "d".to_owned()]));
        assert_eq!(case_lines(text, "two"), Some(vec!["e".to_owned()]));
        assert_eq!(case_lines(text, "three"), None);
    }
}
