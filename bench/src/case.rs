//! What is compared: scenarios and cases.

use crate::stats::Better;

/// Where server and client are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// Two programs on one machine: kernel loopback against utcp's own path.
    SameHost,
    /// Two network namespaces joined by a device; the client is on the kernel on both sides.
    Device,
}

impl Scenario {
    /// Its name in tables and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SameHost => "same-host",
            Self::Device => "device",
        }
    }
}

/// Which program is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum App {
    /// nginx, loaded by wrk.
    Nginx,
    /// redis, loaded by redis-benchmark.
    Redis,
    /// Our message server and client.
    Msg,
    /// Our ping-pong.
    Pingpong,
    /// Our bulk sender and receiver.
    Stream,
}

impl App {
    /// Its name in tables and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Redis => "redis",
            Self::Msg => "msg",
            Self::Pingpong => "pingpong",
            Self::Stream => "stream",
        }
    }
}

/// What the client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// HTTP requests for a five-byte body.
    Hello {
        /// A connection for each.
        close: bool,
    },
    /// redis GET of a three-byte value.
    Get {
        /// Requests in flight on each connection.
        depth: u32,
        /// Connections.
        connections: u32,
    },
    /// `messages` round trips of `bytes` on each connection, then a new one.
    Messages {
        /// Bytes each way.
        bytes: u32,
        /// Messages of a connection.
        messages: u32,
    },
    /// One connection, one message in flight.
    Pingpong,
    /// One connection, as many bytes as go.
    Stream,
}

/// In what a case differs from the others of its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// Server and client where the command line says.
    Plain,
    /// Server, client and engine on one core: with little to do at a time the kernel is best there.
    SameCore,
    /// The kernel's side talks over a Unix socket: its best for one host.
    KernelByUnix,
}

/// One line of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// Where.
    pub scenario: Scenario,
    /// With what.
    pub app: App,
    /// Name of `work`.
    pub name: &'static str,
    /// What the client does.
    pub work: Work,
    /// How else.
    pub setting: Setting,
}

impl Case {
    /// What is counted per second, and which way is better.
    #[must_use]
    pub fn metric(self) -> (&'static str, Better) {
        let name = match self.work {
            Work::Hello { close: true } | Work::Messages { messages: 1, .. } => "connections_per_second",
            Work::Hello { close: false } | Work::Get { .. } => "requests_per_second",
            Work::Messages { .. } => "messages_per_second",
            Work::Pingpong => "round_trips_per_second",
            Work::Stream => "mib_per_second",
        };
        (name, Better::Higher)
    }
}

/// Name, work, setting.
type Line = (&'static str, Work, Setting);

const NGINX: [Line; 2] = [
    ("keepalive-hello", Work::Hello { close: false }, Setting::Plain),
    ("close-hello", Work::Hello { close: true }, Setting::Plain),
];
const REDIS: [Line; 3] = [
    ("get-d1-c50", Work::Get { depth: 1, connections: 50 }, Setting::Plain),
    ("get-d1-c1", Work::Get { depth: 1, connections: 1 }, Setting::Plain),
    ("get-d16-c50", Work::Get { depth: 16, connections: 50 }, Setting::Plain),
];
/// The kernel's best rows, where they differ from the plain ones.
const REDIS_SAME_HOST: [Line; 2] = [
    ("get-d1-c1-same-core", Work::Get { depth: 1, connections: 1 }, Setting::SameCore),
    ("get-d1-c50-kernel-unix", Work::Get { depth: 1, connections: 50 }, Setting::KernelByUnix),
];
const MSG: [Line; 3] = [
    ("64B-k1", Work::Messages { bytes: 64, messages: 1 }, Setting::Plain),
    ("64B-k8", Work::Messages { bytes: 64, messages: 8 }, Setting::Plain),
    ("64B-k128", Work::Messages { bytes: 64, messages: 128 }, Setting::Plain),
];
const PINGPONG: [Line; 2] = [
    ("64B-cross-core", Work::Pingpong, Setting::Plain),
    ("64B-same-core", Work::Pingpong, Setting::SameCore),
];
const STREAM: [Line; 1] = [("one-flow", Work::Stream, Setting::Plain)];

/// The cases of these scenarios and programs, in the order of the table; with `all` also those that
/// show the kernel at its best.
#[must_use]
pub fn cases(scenarios: &[Scenario], apps: &[App], all: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for scenario in scenarios {
        for app in apps {
            let lines: &[Line] = match app {
                App::Nginx => &NGINX,
                App::Redis => &REDIS,
                App::Msg => &MSG,
                App::Pingpong => &PINGPONG,
                App::Stream => &STREAM,
            };
            let more: &[Line] = match (app, scenario) {
                (App::Redis, Scenario::SameHost) if all => &REDIS_SAME_HOST,
                _ => &[],
            };
            // Over a device both ends have a core of their own.
            let fits = |line: &&Line| *scenario == Scenario::SameHost || line.2 == Setting::Plain;
            cases.extend(lines.iter().chain(more).filter(fits).map(|(name, work, setting)| Case {
                scenario: *scenario,
                app: *app,
                name,
                work: *work,
                setting: *setting,
            }));
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_that_others_look_for() {
        let all = cases(&[Scenario::SameHost, Scenario::Device], &[App::Nginx, App::Redis], true);
        let names: Vec<String> =
            all.iter().map(|c| format!("{}/{}/{}", c.scenario.name(), c.app.name(), c.name)).collect();
        assert_eq!(
            names,
            [
                "same-host/nginx/keepalive-hello",
                "same-host/nginx/close-hello",
                "same-host/redis/get-d1-c50",
                "same-host/redis/get-d1-c1",
                "same-host/redis/get-d16-c50",
                "same-host/redis/get-d1-c1-same-core",
                "same-host/redis/get-d1-c50-kernel-unix",
                "device/nginx/keepalive-hello",
                "device/nginx/close-hello",
                "device/redis/get-d1-c50",
                "device/redis/get-d1-c1",
                "device/redis/get-d16-c50",
            ]
        );
    }
}
