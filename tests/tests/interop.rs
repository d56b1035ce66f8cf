//! utcp and the kernel talk to each other over a bad path: whatever the options, the segment sizes and the habits of the
//! programs, every byte arrives once and in order, and nothing is left over.

use std::time::Duration;

use utcp_tests::{
    Engine, Finished, Host, Lab, Net, Path, Running, WAIT, is_root, measured, not_run, on_kernel,
};

const PEER: &str = include_str!("scripts/peer.py");
/// How long a conversation may take.
const LIMIT: Duration = Duration::from_secs(120);

macro_rules! needs_utcp_and_root {
    () => {
        if on_kernel() {
            return not_run("the kernel's own ends are not our business");
        }
        if !is_root() {
            return not_run("needs root for network namespaces");
        }
    };
}

fn long() -> bool {
    std::env::var_os("UTCP_TEST_LONG").is_some_and(|long| long == "yes")
}

/// Who listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Server {
    Utcp,
    Kernel,
}

/// A kernel, a path, and a host under utcp.
struct Pair<'l> {
    lab: &'l Lab,
    engine: Engine<'l>,
    net: Net,
    path: Option<Path>,
}

impl<'l> Pair<'l> {
    fn over(lab: &'l Lab, faults: &str) -> Self {
        Self::with_mtu(lab, faults, 1_500)
    }

    fn with_mtu(lab: &'l Lab, faults: &str, mtu: u32) -> Self {
        let (net, path) = Net::over(faults);
        for host in [&net.server, &net.client] {
            let words = format!("link set {} mtu {mtu}", host.interface);
            let _ = lab.run("ip").args(words.split(' ')).inside(host).ok();
            // The path loses the kernel's questions for neighbours, too, of which three lost ones in a row make a host unreachable.
            for (ip, kind) in [("ipv4", "mcast"), ("ipv4", "ucast"), ("ipv6", "mcast"), ("ipv6", "ucast")] {
                let setting = format!("net.{ip}.neigh.{}.{kind}_solicit=30", host.interface);
                let _ = lab.run("sysctl").args(["-qw", &setting]).inside(host).ok();
            }
        }
        let device = format!("xdp:{}", net.server.interface);
        let engine = Engine::new(lab).inside(&net.server).set("UTCP_DEVICE", device).run();
        Self { lab, engine, net, path: Some(path) }
    }

    fn sysctl(&self, host: &Host, setting: &str) {
        let _ = self.lab.run("sysctl").args(["-qw", setting]).inside(host).ok();
    }

    /// One conversation: what utcp's program does, what the kernel's does.
    fn talk(&self, server: Server, ours: &str, theirs: &str) -> [Finished; 2] {
        let host = if server == Server::Utcp { &self.net.server } else { &self.net.client };
        self.talk_to(server, &host.addr, ours, theirs)
    }

    fn talk_to(&self, server: Server, addr: &str, ours: &str, theirs: &str) -> [Finished; 2] {
        let port = self.lab.port().to_string();
        let start = |by: Server, words: &str| -> Running {
            let role = if server == by { "serve" } else { "call" };
            let run = self.lab.python(PEER).args([role, addr, &port]).args(words.split_whitespace());
            let run = if by == Server::Utcp { run.under(&self.engine) } else { run.inside(&self.net.client) };
            run.limit(LIMIT).spawn()
        };
        let (first, second) = match server {
            Server::Utcp => (Server::Utcp, Server::Kernel),
            Server::Kernel => (Server::Kernel, Server::Utcp),
        };
        let words = |by| if by == Server::Utcp { ours } else { theirs };
        let mut listening = start(first, words(first));
        listening.wait_for_output("listening");
        let calling = start(second, words(second)).finish();
        let listening = listening.finish();
        let pair = if first == Server::Utcp { [listening, calling] } else { [calling, listening] };
        self.engine.went_through(1);
        pair
    }

    #[track_caller]
    fn both_done(&self, server: Server, ours: &str, theirs: &str) {
        for end in self.talk(server, ours, theirs) {
            let end = end.ok();
            assert!(end.text().ends_with("done\n"), "{server:?} serves, {ours} / {theirs}: {}", end.text());
        }
    }

    /// Nothing but a TIME-WAIT is left, and what the path did is told.
    fn end(mut self) {
        self.engine.wait_until_empty(Duration::from_secs(60));
        let done = self.path.take().map(Path::cut).unwrap_or_default();
        measured(&format!(
            "{}: {} frames lost, {} late, {} twice, {} spoilt",
            self.lab.name(),
            done.fault_lost,
            done.fault_reordered,
            done.fault_duplicated,
            done.fault_corrupted
        ));
    }
}

const BAD: &str = "delay=5ms,jitter=1ms,loss=1%,reorder=0.5%,duplicate=0.5%,corrupt=0.2%,rate=200mbit,seed=3";

/// Each of the kernel's options on and off: window scaling, timestamps, SACK, ECN, Fast Open.
#[test]
fn every_option_of_the_kernel() {
    needs_utcp_and_root!();
    let lab = Lab::new("interop-options");
    let pair = Pair::over(&lab, BAD);
    let bytes = if long() { 8_000_000 } else { 500_000 };
    let all = 0..32_u32;
    // The short form: none, all, each alone, each alone missing.
    let telling = |bits: &u32| matches!(bits.count_ones(), 0 | 1 | 4 | 5);
    for bits in all.filter(|bits| long() || telling(bits)) {
        let on = |bit: u32| bits >> bit & 1;
        for setting in [
            format!("net.ipv4.tcp_window_scaling={}", on(0)),
            format!("net.ipv4.tcp_timestamps={}", on(1)),
            format!("net.ipv4.tcp_sack={}", on(2)),
            // 1 asks for it, 0 neither asks nor agrees.
            format!("net.ipv4.tcp_ecn={}", on(3)),
            format!("net.ipv4.tcp_fastopen={}", on(4) * 3),
        ] {
            pair.sysctl(&pair.net.client, &setting);
        }
        let words = format!("send={bytes} expect={bytes}");
        let servers = if long() {
            vec![Server::Utcp, Server::Kernel]
        } else {
            vec![[Server::Utcp, Server::Kernel][bits as usize & 1]]
        };
        for server in servers {
            pair.both_done(server, &words, &words);
        }
    }
    pair.end();
}

/// Segments of 88 bytes and of nearly 4000, either side having set the limit; IPv6, too.
#[test]
fn tiny_and_huge_segments() {
    needs_utcp_and_root!();
    let lab = Lab::new("interop-mss");
    let pair = Pair::with_mtu(&lab, BAD, 3_800);
    let words = "send=200000 expect=200000";
    let tiny = "send=200000 expect=200000 maxseg=88";
    for server in [Server::Utcp, Server::Kernel] {
        pair.both_done(server, words, tiny);
        pair.both_done(server, tiny, words);
        pair.both_done(server, "send=2000000 expect=2000000", "send=2000000 expect=2000000");
    }
    for (server, addr) in [(Server::Utcp, &pair.net.server.addr6), (Server::Kernel, &pair.net.client.addr6)] {
        for end in pair.talk_to(server, addr, words, words) {
            assert!(end.ok().text().ends_with("done\n"));
        }
    }
    pair.end();
}

/// A receiver that does not read while the window closes, on either side; probes are lost, too.
#[test]
fn windows_that_close() {
    needs_utcp_and_root!();
    let lab = Lab::new("interop-window");
    let pair = Pair::over(&lab, "delay=2ms,loss=5%,rate=200mbit,seed=11");
    for server in [Server::Utcp, Server::Kernel] {
        pair.both_done(server, "send=300000", "expect=300000 stall=2 rcvbuf=4096");
        pair.both_done(server, "expect=300000 stall=2 rcvbuf=4096", "send=300000");
        // A reader of few bytes at a time: windows open by little.
        pair.both_done(server, "expect=50000 read=100 rcvbuf=2304", "send=50000");
        pair.both_done(server, "send=50000", "expect=50000 read=100 rcvbuf=2304");
    }
    pair.end();
}

#[test]
fn a_byte_at_a_time() {
    needs_utcp_and_root!();
    let lab = Lab::new("interop-bytes");
    let pair = Pair::over(&lab, BAD);
    for server in [Server::Utcp, Server::Kernel] {
        for nodelay in [0, 1] {
            let words = format!("send=4000 expect=4000 write=1 read=1 nodelay={nodelay}");
            pair.both_done(server, &words, &words);
        }
    }
    pair.end();
}

/// Both ends close within one delay of the path: FINs cross.
#[test]
fn both_close_at_once() {
    needs_utcp_and_root!();
    let lab = Lab::new("interop-close");
    for faults in ["delay=150ms,seed=1", "delay=60ms,loss=20%,seed=2"] {
        let pair = Pair::over(&lab, faults);
        for _ in 0..3 {
            for server in [Server::Utcp, Server::Kernel] {
                let words = "send=1000 expect=1000 lag=0.5";
                pair.both_done(server, words, words);
            }
        }
        pair.end();
    }
}

/// One end resets the connection in the middle; the other hears of it.
#[test]
fn resets_in_the_middle() {
    needs_utcp_and_root!();
    let lab = Lab::new("interop-abort");
    let pair = Pair::over(&lab, "delay=5ms,rate=200mbit,seed=4");
    for server in [Server::Utcp, Server::Kernel] {
        let [ours, theirs] = pair.talk(server, "send=100000 lag=0.2 abort=1", "expect=100000");
        assert!(ours.ok().text().ends_with("done\n"));
        assert!(theirs.err.contains("ConnectionResetError"), "{server:?}: {}", theirs.err);
        let [ours, theirs] = pair.talk(server, "expect=100000", "send=100000 lag=0.2 abort=1");
        assert!(theirs.ok().text().ends_with("done\n"));
        assert!(ours.err.contains("ConnectionResetError"), "{server:?}: {}", ours.err);
    }
    pair.engine.wait_until_gone("connections", WAIT, |socket| socket.state != "LISTEN");
    pair.end();
}

/// A gigabyte each way with random loss.
#[test]
fn a_gigabyte() {
    needs_utcp_and_root!();
    if !long() {
        return not_run("only with --long");
    }
    let lab = Lab::new("interop-gigabyte");
    let pair = Pair::over(&lab, "delay=200us,loss=0.5%,reorder=0.1%,duplicate=0.1%,seed=9");
    for server in [Server::Utcp, Server::Kernel] {
        let words = "send=1000000000 expect=1000000000";
        pair.both_done(server, words, words);
    }
    pair.end();
}
