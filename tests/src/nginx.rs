//! Debian's nginx with two workers, as most people run it.

use std::path::{Path, PathBuf};

use crate::engine::Engine;
use crate::lab::{Lab, is_root};
use crate::net::Host;
use crate::run::{Run, Running, children};
use crate::wait::{WAIT, wait_until};

/// A running nginx.
#[derive(Debug)]
pub struct Nginx {
    /// Its master process.
    pub master: Running,
    /// Its port.
    pub port: u16,
    config: PathBuf,
}

/// How nginx is to run.
#[derive(Debug)]
pub struct Settings {
    /// Lines for the http block's server.
    pub server: String,
    /// Worker processes.
    pub workers: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { server: String::new(), workers: 2 }
    }
}

impl Nginx {
    /// Starts one under `engine`: `/hello` answers by itself, everything else is a file in `www`.
    #[must_use]
    #[track_caller]
    pub fn start(lab: &Lab, engine: &Engine<'_>) -> Self {
        Self::start_with(lab, engine, &Settings::default(), |run| run.under(engine))
    }

    /// Starts one on the kernel, of `host` or of the test's own namespace.
    #[must_use]
    #[track_caller]
    pub fn start_on_kernel(lab: &Lab, host: Option<&Host>) -> Self {
        Self::launch(lab, None, &Settings::default(), |run| match host {
            Some(host) => run.inside(host),
            None => run,
        })
    }

    /// Starts one with other settings, in the surroundings that `how` gives.
    #[must_use]
    #[track_caller]
    pub fn start_with<'l>(
        lab: &'l Lab,
        engine: &Engine<'_>,
        settings: &Settings,
        how: impl FnOnce(Run<'l>) -> Run<'l>,
    ) -> Self {
        Self::launch(lab, Some(engine), settings, how)
    }

    #[track_caller]
    fn launch<'l>(
        lab: &'l Lab,
        engine: Option<&Engine<'_>>,
        settings: &Settings,
        how: impl FnOnce(Run<'l>) -> Run<'l>,
    ) -> Self {
        let port = lab.port();
        let folder = lab.path("nginx");
        let config = lab.file("nginx/nginx.conf", configuration(&folder, port, settings));
        lab.file("www/index.html", "index\n");
        std::fs::create_dir_all(folder.join("logs")).expect("a folder can be made");
        let run = lab.run("nginx").arg("-p").arg(&folder).arg("-c").arg(&config);
        let mut master = how(run.arg("-e").arg(lab.path("nginx-error.log"))).spawn();
        master.wait_for_listener(port);
        if let Some(engine) = engine {
            engine.wait_for_listener(port);
        }
        let nginx = Self { master, port, config };
        wait_until("nginx has its workers", WAIT, || {
            (nginx.workers().len() == settings.workers as usize).then_some(())
        });
        nginx
    }

    /// Process ids of its workers (also of those that are on their way out).
    #[must_use]
    pub fn workers(&self) -> Vec<u32> {
        children(self.master.pid())
    }

    /// The URL of `path` on the loopback address.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    /// `nginx -s SIGNAL`.
    #[track_caller]
    pub fn signal(&self, lab: &Lab, signal: &str) {
        let folder = self.config.parent().unwrap_or(Path::new("/"));
        let run = lab.run("nginx").arg("-p").arg(folder).arg("-c").arg(&self.config);
        let _ = run.arg("-e").arg(lab.path("nginx-error.log")).args(["-s", signal]).ok();
    }
}

fn configuration(folder: &Path, port: u16, settings: &Settings) -> String {
    let folder = folder.display();
    let user = if is_root() { "user www-data;" } else { "" };
    let Settings { server, workers } = settings;
    format!(
        "daemon off;
         {user}
         worker_processes {workers};
         worker_rlimit_nofile 4096;
         pid {folder}/nginx.pid;
         error_log {folder}-error.log info;
         events {{ worker_connections 3000; }}
         http {{
             access_log off;
             sendfile on;
             tcp_nopush on;
             keepalive_timeout 300s;
             keepalive_requests 1000000;
             client_body_temp_path {folder}/body;
             proxy_temp_path {folder}/proxy;
             fastcgi_temp_path {folder}/fastcgi;
             uwsgi_temp_path {folder}/uwsgi;
             scgi_temp_path {folder}/scgi;
             server {{
                 listen {port};
                 listen [::]:{port};
                 root {folder}/../www;
                 location = /hello {{ return 200 \"hello\\n\"; }}
                 {server}
             }}
         }}\n"
    )
}
