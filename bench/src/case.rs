//! What is compared: scenarios and cases.

use crate::stats::Better;

mod lines;

pub use lines::{Extent, cases};

/// Where server and client are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// Two programs on one machine: kernel loopback against utcp's own path.
    SameHost,
    /// Two network namespaces joined by a device; the client is the same on both sides.
    Device,
    /// What the stack costs when the device costs nothing: the engine on a pipe against kernel loopback.
    StackLimit,
    /// Connections that do nothing.
    Idle,
    /// More and more connections that do something.
    Scale,
}

impl Scenario {
    /// Its name in tables and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SameHost => "same-host",
            Self::Device => "device",
            Self::StackLimit => "stack-limit",
            Self::Idle => "idle",
            Self::Scale => "scale",
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
    /// haproxy in front of nginx, loaded by wrk.
    Haproxy,
    /// memcached, loaded by memcaslap.
    Memcached,
    /// Our message server and client.
    Msg,
    /// The same on connections that stay.
    Echo,
    /// Our ping-pong.
    Pingpong,
    /// Our bulk sender and receiver.
    Stream,
    /// Connections alone.
    Accept,
    /// Connections that do nothing.
    Idle,
    /// Frames to stacks and from them.
    Demux,
    /// One shard by itself.
    Engine,
}

impl App {
    /// Its name in tables and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Redis => "redis",
            Self::Haproxy => "haproxy",
            Self::Memcached => "memcached",
            Self::Msg => "msg",
            Self::Echo => "echo",
            Self::Pingpong => "pingpong",
            Self::Stream => "stream",
            Self::Accept => "accept",
            Self::Idle => "idle",
            Self::Demux => "demux",
            Self::Engine => "engine",
        }
    }
}

/// What the client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// HTTP requests.
    Http {
        /// A connection for each.
        close: bool,
        /// Bytes of the file that is asked for; 0: a five-byte answer from memory.
        bytes: u32,
        /// Over TLS.
        tls: bool,
    },
    /// HTTP requests through a proxy.
    Proxy {
        /// It understands HTTP, or passes bytes on.
        http: bool,
        /// A connection for each.
        close: bool,
    },
    /// redis or memcached GET of a small value.
    Get {
        /// Requests in flight on each connection.
        depth: u32,
        /// Connections.
        connections: u32,
        /// A connection for each.
        close: bool,
    },
    /// `messages` round trips of `bytes` on each connection, then a new one.
    Messages {
        /// Bytes each way.
        bytes: u32,
        /// Messages of a connection; 0: it stays.
        messages: u32,
        /// Connections at a time.
        connections: u32,
    },
    /// Connections that are accepted and closed.
    Connect {
        /// At a time.
        connections: u32,
    },
    /// One connection, one message in flight.
    Pingpong {
        /// Bytes each way.
        bytes: u32,
    },
    /// As many bytes as go.
    Stream {
        /// Connections.
        flows: u32,
    },
    /// Connections that do nothing.
    Hold {
        /// How many.
        connections: u32,
    },
    /// Frames through the switch.
    Demux {
        /// Stacks.
        stacks: u16,
        /// Tuples that they registered, in all.
        tuples: u32,
        /// Frames come from the device: whose are they?
        arrive: bool,
        /// Frames come from the stacks: may they?
        leave: bool,
    },
    /// Messages to a shard without a program.
    Solo {
        /// Connections.
        connections: u32,
        /// Bytes each way.
        bytes: u32,
    },
    /// The same over more and more connections, from 100 on.
    SoloGrow {
        /// To how many.
        connections: u32,
    },
    /// Messages over more and more connections, from 100 on.
    Grow {
        /// To how many.
        connections: u32,
    },
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
    /// Server and waiting kernel poll the device before they sleep (`net.core.busy_poll`, `napi_defer_hard_irqs`).
    BusyPoll,
    /// Both ends of the device take long segments (TSO), as a veth pair does by itself; the receive work is pinned by RPS, since
    /// NAPI has none of it then.
    LongSegments,
    /// Open loop at 70 % of what the kernel can do; what counts is the latency of the slowest of a hundred.
    Tail,
}

/// A place on a curve: which curve, and where on its x axis.
pub type Point = (&'static str, f64);

/// One line of the result.
#[derive(Debug, Clone, Copy, PartialEq)]
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
    /// Its place on a curve.
    pub point: Option<Point>,
}

impl Case {
    /// What is counted per second, and which way is better.
    #[must_use]
    pub fn metric(self) -> (&'static str, Better) {
        let name = match self.work {
            _ if self.setting == Setting::Tail => return ("p99_us", Better::Lower),
            Work::Http { close: true, .. }
            | Work::Proxy { close: true, .. }
            | Work::Get { close: true, .. }
            | Work::Connect { .. }
            | Work::Messages { messages: 1, .. } => "connections_per_second",
            Work::Http { .. } | Work::Proxy { .. } | Work::Get { .. } => "requests_per_second",
            Work::Messages { .. } => "messages_per_second",
            Work::Pingpong { .. } => "round_trips_per_second",
            Work::Stream { .. } => "mib_per_second",
            Work::Demux { .. } => "frames_per_second",
            Work::Hold { .. } => return ("bytes_per_connection", Better::Lower),
            Work::Solo { .. } => return ("ns_per_message", Better::Lower),
            Work::Grow { .. } | Work::SoloGrow { .. } => return ("cost_growth", Better::Lower),
        };
        (name, Better::Higher)
    }

    /// Whether the lean generator is the client; under `StackLimit` of utcp's side alone.
    #[must_use]
    pub fn is_lean(self) -> bool {
        let messages = matches!(self.work, Work::Messages { .. });
        messages && matches!(self.scenario, Scenario::Device | Scenario::StackLimit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lines::Extent;

    fn names(scenarios: &[Scenario], apps: &[App], extent: Extent) -> Vec<String> {
        let cases = cases(scenarios, apps, extent);
        cases.iter().map(|c| format!("{}/{}/{}", c.scenario.name(), c.app.name(), c.name)).collect()
    }

    #[test]
    fn the_names_that_others_look_for() {
        let all = names(&Extent::SCENARIOS, &Extent::APPS, Extent::Full);
        for wanted in [
            "same-host/pingpong/64B-cross-core",
            "same-host/pingpong/64B-same-core",
            "same-host/redis/get-d1-c50",
            "same-host/redis/get-d1-c1",
            "same-host/redis/get-d16-c50",
            "same-host/nginx/keepalive-hello",
            "same-host/nginx/close-hello",
            "same-host/stream/one-flow",
            "device/msg/64B-k1",
            "device/msg/64B-k8",
            "device/msg/64B-k128",
            "device/nginx/keepalive-hello",
            "device/nginx/close-hello",
            "device/stream/one-flow",
            "stack-limit/msg/64B-k1",
            "stack-limit/echo/64B-one-core",
            "stack-limit/demux/validated",
            "idle/idle/memory-100k",
            "scale/msg/100k-flows",
        ] {
            assert_eq!(all.iter().filter(|name| *name == wanted).count(), 1, "{wanted} in {all:?}");
        }
    }

    #[test]
    fn no_name_twice() {
        let mut all = names(&Extent::SCENARIOS, &Extent::APPS, Extent::Full);
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn what_is_run_by_default_is_run_quickly_and_in_full_too() {
        let default = names(&Extent::SCENARIOS[..2], &Extent::APPS, Extent::Default);
        let full = names(&Extent::SCENARIOS[..2], &Extent::APPS, Extent::Full);
        // Five pairs of runs of a second or more, and their starts, end within ten minutes.
        assert!((10..=16).contains(&default.len()), "{default:?}");
        assert!(default.iter().all(|name| full.contains(name)));
        assert!(full.len() > default.len());
    }
}
