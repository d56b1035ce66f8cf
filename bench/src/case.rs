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
    Pingpong {
        /// Both ends on the same core.
        same_core: bool,
    },
    /// One connection, as many bytes as go.
    Stream,
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
}

impl Case {
    /// What is counted per second, and which way is better.
    #[must_use]
    pub fn metric(self) -> (&'static str, Better) {
        let name = match self.work {
            Work::Hello { close: true } | Work::Messages { messages: 1, .. } => "connections_per_second",
            Work::Hello { close: false } | Work::Get { .. } => "requests_per_second",
            Work::Messages { .. } => "messages_per_second",
            Work::Pingpong { .. } => "round_trips_per_second",
            Work::Stream => "mib_per_second",
        };
        (name, Better::Higher)
    }
}

const NGINX: [(&str, Work); 2] =
    [("keepalive-hello", Work::Hello { close: false }), ("close-hello", Work::Hello { close: true })];
const REDIS: [(&str, Work); 3] = [
    ("get-d1-c50", Work::Get { depth: 1, connections: 50 }),
    ("get-d1-c1", Work::Get { depth: 1, connections: 1 }),
    ("get-d16-c50", Work::Get { depth: 16, connections: 50 }),
];
const MSG: [(&str, Work); 3] = [
    ("64B-k1", Work::Messages { bytes: 64, messages: 1 }),
    ("64B-k8", Work::Messages { bytes: 64, messages: 8 }),
    ("64B-k128", Work::Messages { bytes: 64, messages: 128 }),
];
const PINGPONG: [(&str, Work); 2] = [
    ("64B-cross-core", Work::Pingpong { same_core: false }),
    ("64B-same-core", Work::Pingpong { same_core: true }),
];
const STREAM: [(&str, Work); 1] = [("one-flow", Work::Stream)];

/// Every case of these scenarios and programs, in the order of the table.
#[must_use]
pub fn cases(scenarios: &[Scenario], apps: &[App]) -> Vec<Case> {
    let mut cases = Vec::new();
    for scenario in scenarios {
        for app in apps {
            let works: &[(&str, Work)] = match app {
                App::Nginx => &NGINX,
                App::Redis => &REDIS,
                App::Msg => &MSG,
                App::Pingpong => &PINGPONG,
                App::Stream => &STREAM,
            };
            cases.extend(works.iter().map(|(name, work)| Case {
                scenario: *scenario,
                app: *app,
                name,
                work: *work,
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
        let all = cases(&[Scenario::SameHost, Scenario::Device], &[App::Nginx, App::Redis]);
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
                "device/nginx/keepalive-hello",
                "device/nginx/close-hello",
                "device/redis/get-d1-c50",
                "device/redis/get-d1-c1",
                "device/redis/get-d16-c50",
            ]
        );
    }
}
