//! How much utcp gets through a bad path, beside the kernel as sender on the same path with the same controller, to the
//! same receiver (the kernel's). Both run at the same time, so a busy machine slows both.
//!
//! The whole table takes `UTCP_TEST_LONG=yes`; `UTCP_GOODPUT="rtt=100 loss=1 cubic"` runs one cell.

use std::fmt;

use utcp_tests::{Engine, Lab, Net, is_root, measured, not_run, on_kernel};

/// Both ends: what a sender and a receiver are told.
const SENDER: &str = include_str!("scripts/sender.py");
const RECEIVER: &str = include_str!("scripts/receiver.py");

/// The bottleneck.
const RATE_MBIT: u64 = 20;
/// Frames that it queues besides those that are on their way, in terms of 1500 bytes.
const QUEUE_FRAMES: u64 = 100;
/// Runs of a cell whose frames are lost at random.
const SEEDS: u64 = 3;
/// How long the receiver reads, in seconds.
const SECONDS: u64 = 6;

#[derive(Clone, Copy)]
struct Cell {
    rtt_ms: u64,
    loss_percent: f64,
    controller: &'static str,
    sack: bool,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rtt_ms, loss_percent, controller, sack } = self;
        write!(f, "rtt={rtt_ms} loss={loss_percent} {controller}{}", if *sack { "" } else { " no-sack" })
    }
}

impl Cell {
    fn all() -> Vec<Self> {
        let mut cells = Vec::new();
        for rtt_ms in [2, 20, 100, 200] {
            for loss_percent in [0.0, 0.1, 1.0, 3.0] {
                for (controller, sack) in [("cubic", true), ("reno", true), ("reno", false), ("bbr", true)] {
                    cells.push(Self { rtt_ms, loss_percent, controller, sack });
                }
            }
        }
        cells
    }

    /// Bytes per second that arrive, from connect to the end.
    fn goodput(self, on_utcp: bool, seed: u64) -> f64 {
        let lab = Lab::new(if on_utcp { "goodput-utcp" } else { "goodput-kernel" });
        let frames = self.rtt_ms * RATE_MBIT * 1_000 / 8 / 1_500 / 2 + QUEUE_FRAMES;
        let (net, path) = Net::over(&format!(
            "delay={}us,loss={}%,rate={RATE_MBIT}mbit,queue={frames},seed={seed}",
            self.rtt_ms * 500,
            self.loss_percent
        ));
        let sack = format!("net.ipv4.tcp_sack={}", u8::from(self.sack));
        // A default that the sender does not ask for: what it gets is what it asked for.
        for setting in ["net.ipv4.tcp_no_metrics_save=1", "net.ipv4.tcp_congestion_control=reno", &sack] {
            for host in [&net.server, &net.client] {
                let _ = lab.run("sysctl").args(["-qw", setting]).inside(host).ok();
            }
        }
        let port = lab.port().to_string();
        let sender = lab.python(SENDER).args([&net.server.addr, &port, self.controller]);
        let device = format!("xdp:{}", net.server.interface);
        let engine = on_utcp.then(|| Engine::new(&lab).inside(&net.server).set("UTCP_DEVICE", device).run());
        let sender = match &engine {
            Some(engine) => sender.under(engine),
            None => sender.inside(&net.server),
        };
        let mut sender = sender.spawn();
        sender.wait_for_output("listening");
        let receiver = lab.python(RECEIVER).args([&net.server.addr, &port, &SECONDS.to_string()]);
        let text = receiver.inside(&net.client).ok().text();
        if let Some(engine) = &engine {
            engine.went_through(1);
        }
        if std::env::var_os("UTCP_TEST_KEEP").is_some() {
            println!("{}: {}\n{:?}", lab.name(), sender.stdout(), path.cut());
        }
        text.trim().parse::<f64>().expect("a number") / SECONDS as f64
    }

    /// The kernel's goodput and utcp's in kB/s: the mean over seeds, where dice are thrown at all.
    fn both(self) -> (f64, f64) {
        let seeds = if self.loss_percent > 0.0 { 1..=SEEDS } else { 1..=1 };
        let mean = |on_utcp| {
            std::thread::scope(|scope| {
                let runs: Vec<_> =
                    seeds.clone().map(|seed| scope.spawn(move || self.goodput(on_utcp, seed))).collect();
                let count = runs.len() as f64;
                runs.into_iter().map(|run| run.join().expect("a figure")).sum::<f64>() / count / 1e3
            })
        };
        std::thread::scope(|scope| {
            let kernel = scope.spawn(|| mean(false));
            let utcp = mean(true);
            (kernel.join().expect("a figure"), utcp)
        })
    }
}

/// The share of the kernel's goodput that fails the test. Random losses hit both alike only until the first
/// decision that differs; what is compared by people is the table.
const FLOOR: f64 = 0.5;

#[test]
fn beside_the_kernel() {
    if on_kernel() {
        return not_run("both sides would be the kernel");
    }
    if !is_root() {
        return not_run("needs root for network namespaces");
    }
    let long = std::env::var_os("UTCP_TEST_LONG").is_some_and(|long| long == "yes");
    let only = std::env::var("UTCP_GOODPUT").unwrap_or_default();
    let short = [("rtt=20 loss=0 cubic"), ("rtt=20 loss=1 cubic"), ("rtt=100 loss=0 cubic")];
    let chosen = |cell: &Cell| {
        let name = cell.to_string();
        if only.is_empty() { long || short.contains(&name.as_str()) } else { name.contains(&only) }
    };
    let cells: Vec<Cell> = Cell::all().into_iter().filter(chosen).collect();
    let mut worse = Vec::new();
    // Two cells at a time: each keeps a core busy for a part of the time only.
    for pair in cells.chunks(2) {
        let figures: Vec<(f64, f64)> = std::thread::scope(|scope| {
            let runs: Vec<_> = pair.iter().map(|cell| scope.spawn(move || cell.both())).collect();
            runs.into_iter().map(|run| run.join().expect("figures")).collect()
        });
        for (cell, (kernel, utcp)) in pair.iter().zip(figures) {
            let share = utcp / kernel;
            let line = format!("{cell}: kernel {kernel:.0} kB/s, utcp {utcp:.0} kB/s, {share:.2}");
            measured(&line);
            // Ours takes more than two losses in a hundred for a queue that overflows, as BBRv3 does; the kernel's, if it is
            // the first version, takes no loss for anything.
            let given_way = cell.controller == "bbr" && cell.loss_percent > 2.0;
            if share < FLOOR && !given_way {
                worse.push(line);
            }
        }
    }
    assert!(worse.is_empty(), "far behind the kernel: {worse:#?}");
}
