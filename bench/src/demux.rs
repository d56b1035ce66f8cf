//! Frames through the switch, whose device and stacks are pipes: what it costs to find out whose a frame is, and
//! whether who sends it may.
//!
//! ```text
//!  wire ══ pipe ══ Switch ══ pipe ══ stack 1 … 8
//!         frames by tuple ──►
//!                   ◄── frames whose source the stack registered
//! ```
//!
//! One thread plays wire, switch and stacks in turn, and only the switch's turns are on the clock, which is the
//! thread's CPU time: a core of its own and nothing else, whatever others do. Its frames are in the cache, as a
//! NIC's are that writes into it.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use utcp_engine::shard::frame::{self, Headers};
use utcp_netmap_io::switch::Switch;
use utcp_netmap_io::{Device, OpenOptions, Port, Proto, Steering, Tuple, pipe};
use utcp_proto::wire::IpAddr;
use utcp_proto::{Endpoint, FourTuple, Transmit};

use crate::Error;

/// What to print beside the figures.
pub const WORDS: &str = "60-byte frames (64 on a wire), one core for the switch, wire and stacks on pipes; frames in both \
    directions; there is nothing of the kernel's to compare with";

/// Bytes of a frame without its checksum: the shortest that Ethernet has.
const FRAME: usize = 60;
/// Frames that arrive between two looks at the stacks; and frames that each stack sends, the switch's budget.
const ARRIVING: usize = 512;
const LEAVING: usize = 64;
const WIRE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Stacks.
    pub stacks: u16,
    /// Tuples that they registered, in all.
    pub tuples: u32,
    /// Frames come from the device.
    pub arrive: bool,
    /// Frames come from the stacks.
    pub leave: bool,
    /// On the switch's own clock.
    pub time: Duration,
}

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Summary {
    /// Frames that came out.
    pub frames: u64,
    /// Frames that went in and did not.
    pub lost: u64,
    /// Frames per second of the switch's CPU time.
    pub per_second: f64,
}

struct Stack {
    port: Box<dyn Port>,
    /// The switch takes its end for the stack's.
    _steering: Option<Arc<dyn Steering>>,
    /// A frame to and from each of its tuples (or some of them: what is looked up is what counts).
    to: Vec<[u8; FRAME]>,
    from: Vec<[u8; FRAME]>,
    next: usize,
}

/// Runs a load.
///
/// # Errors
/// When pipes can't be made, or the switch refuses a tuple.
pub fn run(load: Load) -> Result<Summary, Error> {
    let options = OpenOptions { rx_slots: 2048, tx_slots: 2048, ..OpenOptions::default() };
    let name = format!("bench-{}", std::process::id());
    let [nic, mut wire] = pipe::pair(&name, &options)?;
    let switch = Switch::new(Device { ports: vec![nic], steering: None }, &name)?;
    let (mut switch, mut stacks) = join(switch, &name, load)?;
    let (mut sent, mut came, mut clock) = (0, 0, Duration::ZERO);
    let mut turn = 0;
    while clock < load.time {
        if load.arrive {
            sent += arrive(&mut *wire, &mut stacks, &mut turn)?;
        }
        if load.leave {
            for stack in &mut stacks {
                sent += leave(stack)?;
            }
        }
        let start = thread_time();
        while switch.round()? {}
        clock += thread_time().saturating_sub(start);
        came += drain(&mut *wire)?;
        for stack in &mut stacks {
            came += drain(&mut *stack.port)?;
        }
    }
    // What no longer fitted into the device's ring is on its way still.
    while switch.round()? {}
    came += drain(&mut *wire)?;
    #[allow(clippy::cast_precision_loss, reason = "counts below 2^52")]
    let per_second = came as f64 / clock.as_secs_f64();
    Ok(Summary { frames: came, lost: sent - came, per_second })
}

/// CPU time of this thread.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The stacks take part and register. They wait for answers, so the switch runs beside them meanwhile.
fn join(mut switch: Switch, name: &str, load: Load) -> Result<(Switch, Vec<Stack>), Error> {
    let failed = || Error::io("starting the switch");
    let (stop, stopper) = std::io::pipe().map_err(failed())?;
    let thread = std::thread::spawn(move || {
        let result = switch.run(std::os::fd::AsFd::as_fd(&stop));
        (switch, result)
    });
    let stacks = (0..load.stacks).map(|number| stack(name, number, load)).collect::<Result<Vec<_>, _>>();
    drop(stopper);
    let (switch, result) =
        thread.join().map_err(|_| failed()(std::io::Error::other("its thread panicked")))?;
    result?;
    Ok((switch, stacks?))
}

/// One stack with its share of the tuples: an address of its own for each block of ports.
fn stack(name: &str, number: u16, load: Load) -> Result<Stack, Error> {
    /// Ports of an address, from 1024 on.
    const BLOCK: u32 = 4096;
    /// Frames at most that a stack cycles over: enough to miss every cache as often as any larger number.
    const FRAMES_MAX: usize = 8192;
    let options = OpenOptions { stack: format!("stack-{number}"), ..OpenOptions::default() };
    let mut open = utcp_netmap_io::open(&format!("switch:{name}"), &options)?;
    let steering = open.steering.take();
    let mut all = Vec::new();
    let mut left = load.tuples / u32::from(load.stacks);
    for block in 0u8.. {
        let count = left.min(BLOCK) as u16;
        let Some(last) = count.checked_sub(1) else { break };
        left -= u32::from(count);
        let addr = Ipv4Addr::new(10, number as u8, block, 1);
        let tuple = Tuple::new(addr, 1024, Proto::TCP);
        if let Some(steering) = &steering {
            steering.register_range(tuple, 1024..=1024 + last)?;
        }
        all.extend((0..count).map(|at| (addr, 1024 + at)));
    }
    // In an order that no prefetcher guesses, the same every time.
    let step = all.len().max(1);
    let some = (0..step.min(FRAMES_MAX)).map(|at| all[at * 7919 % step]).collect::<Vec<_>>();
    let port = open.ports.swap_remove(0);
    let mac = port.caps().mac;
    let (to, from) = some.iter().map(|own| (frame(*own, mac, false), frame(*own, mac, true))).unzip();
    Ok(Stack { port, _steering: steering, to, from, next: 0 })
}

/// A TCP frame without payload to or from `own`.
fn frame((addr, port): (Ipv4Addr, u16), mac: [u8; 6], leaving: bool) -> [u8; FRAME] {
    let own = Endpoint { addr: IpAddr::v4(addr.octets()), port };
    let peer = Endpoint { addr: IpAddr::v4([192, 0, 2, 1]), port: 40_000 };
    let (local, remote) = if leaving { (own, peer) } else { (peer, own) };
    let (mac, next_hop) = if leaving { (mac, WIRE_MAC) } else { (WIRE_MAC, mac) };
    let transmit = Transmit::default();
    let tuple = FourTuple { local, remote };
    let headers = Headers { mac, next_hop, tuple: &tuple, transmit: &transmit, vnet: false };
    let mut bytes = [0; FRAME];
    frame::build(&mut bytes, &headers, |_| ());
    bytes
}

/// Frames for the stacks in turn.
fn arrive(wire: &mut dyn Port, stacks: &mut [Stack], turn: &mut usize) -> Result<u64, Error> {
    let mut sent = 0;
    let mut tx = wire.tx();
    for _ in 0..ARRIVING {
        *turn = (*turn + 1) % stacks.len();
        let stack = &mut stacks[*turn];
        stack.next = (stack.next + 1) % stack.to.len();
        sent += u64::from(tx.push(&stack.to[stack.next]));
    }
    wire.tx_sync()?;
    Ok(sent)
}

/// Frames of a stack.
fn leave(stack: &mut Stack) -> Result<u64, Error> {
    let mut sent = 0;
    for _ in 0..LEAVING {
        stack.next = (stack.next + 1) % stack.from.len();
        sent += u64::from(stack.port.tx().push(&stack.from[stack.next]));
    }
    stack.port.tx_sync()?;
    Ok(sent)
}

fn drain(port: &mut dyn Port) -> Result<u64, Error> {
    port.rx_sync()?;
    let frames = port.rx().count() as u64;
    // The slots are free again at the next sync.
    port.rx_sync()?;
    Ok(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_comes_out() {
        for (arrive, leave) in [(true, false), (false, true), (true, true)] {
            let load = Load { stacks: 3, tuples: 300, arrive, leave, time: Duration::from_millis(5) };
            let summary = run(load).unwrap();
            assert!(summary.frames > 1000, "{summary:?}");
            assert_eq!(summary.lost, 0);
        }
    }
}
