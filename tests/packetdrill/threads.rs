//! Threads that can be watched: whether one sleeps in the kernel, and how often it has gone to sleep.

use std::fs;
use std::sync::mpsc::{Receiver, channel};

/// A thread of this process.
pub struct Thread {
    status: String,
}

impl Thread {
    /// Starts a thread; what it returns comes out of the receiver.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start<T: Send + 'static>(
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<(Self, Receiver<T>), String> {
        let (give, result) = channel();
        let (tell, tid) = channel();
        let body = move || {
            // SAFETY: no memory involved.
            let _ = tell.send(unsafe { libc::gettid() });
            let _ = give.send(work());
        };
        std::thread::Builder::new().name(name.into()).spawn(body).map_err(|error| error.to_string())?;
        let tid = tid.recv().map_err(|error| error.to_string())?;
        Ok((Self { status: format!("/proc/self/task/{tid}/status") }, result))
    }

    /// How often it has gone to sleep, if it sleeps now.
    pub fn asleep(&self) -> Option<u64> {
        let text = fs::read_to_string(&self.status).ok()?;
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if !field("State:")?.starts_with('S') {
            return None;
        }
        field("voluntary_ctxt_switches:")?.parse().ok()
    }
}
