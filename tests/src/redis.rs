//! Debian's redis.

use crate::engine::Engine;
use crate::lab::Lab;
use crate::run::{Run, Running};

/// A running redis-server.
#[derive(Debug)]
pub struct Redis {
    /// Its process.
    pub server: Running,
    /// Its port.
    pub port: u16,
    host: String,
}

impl Redis {
    /// Starts one under `engine`.
    #[must_use]
    #[track_caller]
    pub fn start(lab: &Lab, engine: &Engine<'_>) -> Self {
        let mut redis = Self::start_with(lab, |run| run.under(engine));
        engine.wait_for_listener(redis.port);
        redis.server.wait_for_listener(redis.port);
        redis
    }

    /// Starts one on the kernel.
    #[must_use]
    #[track_caller]
    pub fn start_on_kernel(lab: &Lab) -> Self {
        Self::start_with(lab, |run| run)
    }

    /// Starts one in the surroundings that `how` gives.
    #[must_use]
    #[track_caller]
    pub fn start_with<'l>(lab: &'l Lab, how: impl FnOnce(Run<'l>) -> Run<'l>) -> Self {
        let port = lab.port();
        let dir = lab.path("redis");
        std::fs::create_dir_all(&dir).expect("a folder can be made");
        let _ = std::os::unix::fs::chown(&dir, None, None);
        let run =
            lab.run("redis-server").args(["--save", "", "--appendonly", "no", "--protected-mode", "no"]);
        let run =
            run.args(["--daemonize", "no", "--bind", "*", "--port", &port.to_string()]).arg("--dir").arg(dir);
        let mut server = how(run).spawn();
        server.wait_for_listener(port);
        Self { server, port, host: "127.0.0.1".to_owned() }
    }

    /// Where its clients find it, the loopback address unless told.
    #[must_use]
    pub fn at(mut self, host: &str) -> Self {
        host.clone_into(&mut self.host);
        self
    }

    /// redis-cli.
    #[must_use]
    pub fn cli<'l>(&self, lab: &'l Lab, args: &[&str]) -> Run<'l> {
        lab.run("redis-cli").args(["-h", &self.host, "-p", &self.port.to_string()]).args(args)
    }

    /// redis-benchmark.
    #[must_use]
    pub fn benchmark<'l>(&self, lab: &'l Lab, args: &[&str]) -> Run<'l> {
        lab.run("redis-benchmark").args(["-h", &self.host, "-p", &self.port.to_string()]).args(args)
    }
}
