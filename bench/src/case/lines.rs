//! The table of all cases.

use super::{App, Case, Point, Scenario, Setting, Work};

/// How much of the table is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    /// What ends within ten minutes.
    Default,
    /// What was asked for by scenario and program, without the points of curves.
    Asked,
    /// Everything.
    Full,
}

impl Extent {
    /// All scenarios, in the order of the table.
    pub const SCENARIOS: [Scenario; 5] =
        [Scenario::SameHost, Scenario::Device, Scenario::StackLimit, Scenario::Idle, Scenario::Scale];
    /// All programs, in the order of the table.
    pub const APPS: [App; 12] = [
        App::Nginx,
        App::Redis,
        App::Haproxy,
        App::Memcached,
        App::Pingpong,
        App::Stream,
        App::Msg,
        App::Echo,
        App::Accept,
        App::Idle,
        App::Demux,
        App::Engine,
    ];
}

/// A line of the table: in which scenarios it is run by which extent, and what it is.
struct Line {
    name: &'static str,
    work: Work,
    setting: Setting,
    point: Option<Point>,
    /// From which extent on, by scenario; none: not there.
    host: Option<Extent>,
    device: Option<Extent>,
}

const fn line(name: &'static str, work: Work, host: Option<Extent>, device: Option<Extent>) -> Line {
    Line { name, work, setting: Setting::Plain, point: None, host, device }
}

impl Line {
    const fn with(self, setting: Setting) -> Self {
        Self { setting, ..self }
    }

    const fn on(self, curve: &'static str, x: f64) -> Self {
        Self { point: Some((curve, x)), ..self }
    }
}

const DEFAULT: Option<Extent> = Some(Extent::Default);
const ASKED: Option<Extent> = Some(Extent::Asked);
const FULL: Option<Extent> = Some(Extent::Full);

const fn http(close: bool, bytes: u32, tls: bool) -> Work {
    Work::Http { close, bytes, tls }
}

const NGINX: &[Line] = &[
    line("keepalive-hello", http(false, 0, false), DEFAULT, DEFAULT),
    line("close-hello", http(true, 0, false), DEFAULT, DEFAULT),
    line("keepalive-hello-busy-poll", http(false, 0, false), None, FULL).with(Setting::BusyPoll),
    line("file-64B", http(false, 64, false), FULL, FULL).on("file bytes", 64.0),
    line("file-1KB", http(false, 1 << 10, false), FULL, FULL).on("file bytes", 1024.0),
    line("file-16KB", http(false, 1 << 14, false), FULL, FULL).on("file bytes", 16_384.0),
    line("file-128KB", http(false, 1 << 17, false), FULL, FULL).on("file bytes", 131_072.0),
    line("file-1MB", http(false, 1 << 20, false), FULL, FULL).on("file bytes", 1_048_576.0),
    line("tls-keepalive-hello", http(false, 0, true), FULL, FULL),
    line("tls-close-hello", http(true, 0, true), FULL, FULL),
    line("tls-file-128KB", http(false, 1 << 17, true), FULL, FULL),
];

const fn get(depth: u32, connections: u32) -> Work {
    Work::Get { depth, connections, close: false }
}

const REDIS: &[Line] = &[
    line("get-d1-c50", get(1, 50), DEFAULT, DEFAULT),
    line("get-d1-c1", get(1, 1), DEFAULT, ASKED),
    line("get-d16-c50", get(16, 50), DEFAULT, ASKED),
    line("get-d1-c1-same-core", get(1, 1), FULL, None).with(Setting::SameCore),
    line("get-d1-c50-kernel-unix", get(1, 50), FULL, None).with(Setting::KernelByUnix),
    line("get-d1-c10", get(1, 10), FULL, FULL).on("connections", 10.0),
    line("get-d1-c100", get(1, 100), FULL, FULL).on("connections", 100.0),
    line("get-d1-c500", get(1, 500), FULL, FULL).on("connections", 500.0),
    line("get-close", Work::Get { depth: 1, connections: 50, close: true }, FULL, FULL),
];

const HAPROXY: &[Line] = &[
    line("http-keepalive", Work::Proxy { http: true, close: false }, ASKED, ASKED),
    line("http-close", Work::Proxy { http: true, close: true }, ASKED, ASKED),
    line("tcp-keepalive", Work::Proxy { http: false, close: false }, ASKED, ASKED),
    line("tcp-close", Work::Proxy { http: false, close: true }, ASKED, ASKED),
];

const MEMCACHED: &[Line] =
    &[line("get-c50", get(1, 50), ASKED, ASKED), line("get-c1", get(1, 1), ASKED, FULL)];

const fn stay(bytes: u32, connections: u32) -> Work {
    Work::Messages { bytes, messages: 0, connections }
}

const PINGPONG: &[Line] = &[
    line("64B-cross-core", Work::Pingpong { bytes: 64 }, DEFAULT, FULL).on("connections", 1.0),
    line("64B-same-core", Work::Pingpong { bytes: 64 }, DEFAULT, None).with(Setting::SameCore),
    line("64B-cross-core-kernel-unix", Work::Pingpong { bytes: 64 }, FULL, None).with(Setting::KernelByUnix),
    line("64B-cross-core-busy-poll", Work::Pingpong { bytes: 64 }, None, FULL).with(Setting::BusyPoll),
    line("4KB-cross-core", Work::Pingpong { bytes: 4096 }, FULL, FULL),
    line("64B-c8", stay(64, 8), FULL, FULL).on("connections", 8.0),
    line("64B-c64", stay(64, 64), FULL, FULL).on("connections", 64.0),
    line("64B-c64-same-core", stay(64, 64), FULL, None).with(Setting::SameCore),
    line("64B-tail-c1", stay(64, 1), FULL, FULL).with(Setting::Tail),
    line("64B-tail-c64", stay(64, 64), FULL, FULL).with(Setting::Tail),
];

const STREAM: &[Line] = &[
    line("one-flow", Work::Stream { flows: 1 }, DEFAULT, DEFAULT)
        .on("flows", 1.0)
        .with(Setting::LongSegments),
    line("one-flow-no-tso", Work::Stream { flows: 1 }, None, ASKED),
    line("4-flows", Work::Stream { flows: 4 }, FULL, FULL).on("flows", 4.0),
    line("16-flows", Work::Stream { flows: 16 }, FULL, FULL).on("flows", 16.0),
];

const fn msg(bytes: u32, messages: u32) -> Work {
    Work::Messages { bytes, messages, connections: 64 }
}

const MSG: &[Line] = &[
    line("64B-k1", msg(64, 1), ASKED, DEFAULT).on("messages of a connection", 1.0),
    line("64B-k2", msg(64, 2), FULL, FULL).on("messages of a connection", 2.0),
    line("64B-k8", msg(64, 8), ASKED, DEFAULT).on("messages of a connection", 8.0),
    line("64B-k32", msg(64, 32), FULL, FULL).on("messages of a connection", 32.0),
    line("64B-k128", msg(64, 128), ASKED, DEFAULT).on("messages of a connection", 128.0),
    line("1KB-k8", msg(1 << 10, 8), FULL, FULL).on("bytes of a message", 1024.0),
    line("8KB-k8", msg(1 << 13, 8), FULL, FULL).on("bytes of a message", 8192.0),
    line("64KB-k8", msg(1 << 16, 8), FULL, FULL).on("bytes of a message", 65_536.0),
    line("64B-k1-burst", Work::Messages { bytes: 64, messages: 1, connections: 512 }, None, ASKED),
    line("64B-tail", stay(64, 64), None, FULL).with(Setting::Tail),
];

const ACCEPT: &[Line] = &[
    line("c1", Work::Connect { connections: 1 }, FULL, FULL).on("connections", 1.0),
    line("c64", Work::Connect { connections: 64 }, ASKED, FULL).on("connections", 64.0),
];

const STACK_MSG: &[Line] = &[
    line("64B-k1", msg(64, 1), ASKED, None).on("messages of a connection", 1.0),
    line("64B-k8", msg(64, 8), FULL, None).on("messages of a connection", 8.0),
    line("64B-k128", msg(64, 128), FULL, None).on("messages of a connection", 128.0),
];

const STACK_ECHO: &[Line] = &[
    line("64B-one-core", stay(64, 64), ASKED, None).on("connections", 64.0),
    line("64B-one-core-c1", stay(64, 1), FULL, None).on("connections", 1.0),
    line("64B-one-core-c1000", stay(64, 1000), FULL, None).on("connections", 1000.0),
];

const fn demux(stacks: u16, tuples: u32) -> Work {
    Work::Demux { stacks, tuples, arrive: true, leave: true }
}

const DEMUX: &[Line] = &[
    line("validated", demux(8, 1000), ASKED, None).on("tuples", 1e3),
    line("arriving", Work::Demux { stacks: 8, tuples: 1000, arrive: true, leave: false }, FULL, None),
    line("leaving", Work::Demux { stacks: 8, tuples: 1000, arrive: false, leave: true }, FULL, None),
    line("validated-1-stack", demux(1, 125), FULL, None),
    line("validated-8-tuples", demux(8, 8), FULL, None).on("tuples", 8.0),
    line("validated-100k-tuples", demux(8, 100_000), FULL, None).on("tuples", 1e5),
    line("validated-1M-tuples", demux(8, 1_000_000), FULL, None).on("tuples", 1e6),
];

const ENGINE: &[Line] = &[
    line("64B", Work::Solo { connections: 64, bytes: 64 }, ASKED, None).on("bytes of a message", 64.0),
    line("512B", Work::Solo { connections: 64, bytes: 512 }, FULL, None).on("bytes of a message", 512.0),
    line("1400B", Work::Solo { connections: 64, bytes: 1400 }, FULL, None).on("bytes of a message", 1400.0),
];

const ENGINE_SCALE: &[Line] = &[
    line("1k-flows", Work::SoloGrow { connections: 1000 }, FULL, None).on("connections", 1e3),
    line("10k-flows", Work::SoloGrow { connections: 10_000 }, FULL, None).on("connections", 1e4),
    line("100k-flows", Work::SoloGrow { connections: 100_000 }, ASKED, None).on("connections", 1e5),
];

const IDLE: &[Line] = &[
    line("memory-1k", Work::Hold { connections: 1000 }, FULL, None).on("connections", 1e3),
    line("memory-10k", Work::Hold { connections: 10_000 }, FULL, None).on("connections", 1e4),
    line("memory-100k", Work::Hold { connections: 100_000 }, ASKED, None).on("connections", 1e5),
];

const SCALE: &[Line] = &[
    line("1k-flows", Work::Grow { connections: 1000 }, FULL, None).on("connections", 1e3),
    line("10k-flows", Work::Grow { connections: 10_000 }, FULL, None).on("connections", 1e4),
    line("100k-flows", Work::Grow { connections: 100_000 }, ASKED, None).on("connections", 1e5),
];

fn lines(scenario: Scenario, app: App) -> &'static [Line] {
    match (scenario, app) {
        (Scenario::SameHost | Scenario::Device, App::Nginx) => NGINX,
        (Scenario::SameHost | Scenario::Device, App::Redis) => REDIS,
        (Scenario::SameHost | Scenario::Device, App::Haproxy) => HAPROXY,
        (Scenario::SameHost | Scenario::Device, App::Memcached) => MEMCACHED,
        (Scenario::SameHost | Scenario::Device, App::Pingpong) => PINGPONG,
        (Scenario::SameHost | Scenario::Device, App::Stream) => STREAM,
        (Scenario::SameHost | Scenario::Device, App::Msg) => MSG,
        (Scenario::SameHost | Scenario::Device, App::Accept) => ACCEPT,
        (Scenario::StackLimit, App::Msg) => STACK_MSG,
        (Scenario::StackLimit, App::Echo) => STACK_ECHO,
        (Scenario::StackLimit, App::Demux) => DEMUX,
        (Scenario::StackLimit, App::Engine) => ENGINE,
        (Scenario::Scale, App::Engine) => ENGINE_SCALE,
        (Scenario::Idle, App::Idle) => IDLE,
        (Scenario::Scale, App::Msg) => SCALE,
        _ => &[],
    }
}

/// The cases of these scenarios and programs, in the order of the table.
#[must_use]
pub fn cases(scenarios: &[Scenario], apps: &[App], extent: Extent) -> Vec<Case> {
    let mut cases = Vec::new();
    for scenario in scenarios {
        for app in apps {
            let wanted = |line: &&Line| {
                let from = if *scenario == Scenario::Device { line.device } else { line.host };
                from.is_some_and(|from| from <= extent)
            };
            cases.extend(lines(*scenario, *app).iter().filter(wanted).map(|line| Case {
                scenario: *scenario,
                app: *app,
                name: line.name,
                work: line.work,
                setting: line.setting,
                point: line.point,
            }));
        }
    }
    cases
}
