//! What tools read of a shard: sockets, counters, TCP_INFO.

use std::sync::atomic::{AtomicU64, Ordering};

use utcp_abi::info::{self, Info};
use utcp_proto::{Duration, Endpoint, FourTuple, PathModel, RecoveryState, State, TcpInfo};

use super::flow::{Flow, Path};
use super::{Report, ReportRequest, Shard};

/// One line of `utcp ss`.
#[derive(Debug, Clone)]
pub struct SocketLine {
    /// State's name as `ss` prints it.
    pub state: &'static str,
    /// Local endpoint.
    pub local: Endpoint,
    /// Peer's endpoint; none for a listener.
    pub remote: Option<Endpoint>,
    /// A listener whose new connections come by the kernel.
    pub kernels: bool,
    /// Bytes received and not read; for a listener: connections that wait.
    pub recv_queue: u64,
    /// Bytes queued and not acknowledged; for a listener: the backlog.
    pub send_queue: u64,
    /// Everything else, `key:value`.
    pub detail: String,
    /// Process that uses it.
    pub pid: u32,
    /// Its program.
    pub program: String,
    /// Shard.
    pub shard: u32,
}

/// Lines of one answer, and places that are looked at for them: half a millisecond of the shard's time, no more than a batch.
pub(super) const LINES_MAX: usize = 128;
const LOOKS_MAX: u32 = 8192;

/// Where a report on sockets goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    kind: Lines,
    index: u32,
}

/// What sockets there are, in the order of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Lines {
    #[default]
    Listeners,
    Flows,
    HalfOpen,
    TimeWait,
}

impl SocketLine {
    /// Both ends for people.
    pub fn ends(&self) -> (String, String) {
        let text = |end: Endpoint| endpoint(end.addr, end.port);
        (text(self.local), self.remote.map_or("*:*".to_owned(), text))
    }

    /// Whether one of them has this port.
    pub fn has_port(&self, port: u16) -> bool {
        self.local.port == port || self.remote.is_some_and(|remote| remote.port == port)
    }
}

impl Lines {
    fn next(self) -> Option<Self> {
        match self {
            Self::Listeners => Some(Self::Flows),
            Self::Flows => Some(Self::HalfOpen),
            Self::HalfOpen => Some(Self::TimeWait),
            Self::TimeWait => None,
        }
    }
}

impl Shard {
    pub(super) fn report(&self, request: ReportRequest) -> Report {
        match request {
            ReportRequest::Sockets(from) => {
                let (lines, rest) = self.socket_lines(from);
                Report::Sockets(lines, rest)
            }
            ReportRequest::Counters => {
                let mut ports = Vec::new();
                for port in &self.ports {
                    let name = port.port.caps().name.clone();
                    ports.extend(port.counters().named().map(|(n, v)| (name.clone(), n, v)));
                }
                Report::Counters(Box::new(self.counters.clone()), ports)
            }
            ReportRequest::Alive => Report::Alive { flows: self.flows.len() },
        }
    }

    /// A flow's figures; what it sent and received is in the slot, if it is cut through.
    pub(super) fn info_of(&self, flow: &Flow) -> TcpInfo {
        let mut info = flow.tcb.info(self.now);
        let [sent, received] = flow.carried;
        info.bytes_acked = info.bytes_acked.saturating_add(sent);
        info.bytes_received = info.bytes_received.saturating_add(received);
        let place = |end: super::pairs::End| {
            Some((end, self.slot_of(end)?, self.pairs.get(end.pair)?.reference(end)))
        };
        if let Some((end, slot, at)) = flow.pair.and_then(place) {
            let [own, other] = slot.from(end.side);
            let bytes = |tail: &AtomicU64| tail.load(Ordering::Relaxed).wrapping_sub(at.first_position());
            (info.bytes_acked, info.bytes_received) = (bytes(&own.tail), bytes(&other.tail));
        }
        info
    }

    /// Bytes that wait to be read, and to be acknowledged.
    fn queued(&self, flow: &Flow) -> (u64, u64) {
        let slot = flow.pair.and_then(|end| Some((end, self.slot_of(end)?)));
        slot.map_or((flow.rx.len(), flow.tx.len()), |(end, slot)| (slot.waiting(end.side), 0))
    }

    fn path_words(&self, flow: &Flow) -> String {
        let Path::Device { port, next_hop } = flow.path else {
            return if flow.pair.is_some() { "path:same-host cut-through " } else { "path:same-host " }
                .to_owned();
        };
        let name = self.ports.get(port as usize).map_or("?", |device| &device.port.caps().name);
        let link = self.link_trouble(port).map(|trouble| format!("link:{trouble} ")).unwrap_or_default();
        let hop = match next_hop {
            super::device::UNRESOLVED => "next-hop:unknown ",
            super::device::BARRED => "next-hop:barred ",
            _ => "",
        };
        format!("path:{name} {link}{hop}")
    }

    /// Lines of the sockets from `from` on, and where to go on. Between two calls the shard does its work, so what changes its state
    /// meanwhile may stand there in both, as in `ss`.
    fn socket_lines(&self, from: Cursor) -> (Vec<SocketLine>, Option<Cursor>) {
        let mut lines = Vec::new();
        let mut at = from;
        for _ in 0..LOOKS_MAX {
            let used = match at.kind {
                Lines::Listeners => self.listeners.capacity_used(),
                Lines::Flows => self.flows.capacity_used(),
                Lines::HalfOpen => self.half_open.capacity_used(),
                Lines::TimeWait => self.time_wait.capacity_used(),
            };
            if at.index as usize >= used {
                let Some(kind) = at.kind.next() else { return (lines, None) };
                at = Cursor { kind, index: 0 };
                continue;
            }
            lines.extend(match at.kind {
                Lines::Listeners => self.listener_line(at.index),
                Lines::Flows => self.flow_line(at.index),
                Lines::HalfOpen => {
                    self.half_open.get(at.index).map(|half| self.bare("SYN-RECV", &half.record.tuple))
                }
                Lines::TimeWait => {
                    self.time_wait.get(at.index).map(|record| self.bare("TIME-WAIT", &record.record.tuple))
                }
            });
            at.index += 1;
            if lines.len() >= LINES_MAX {
                break;
            }
        }
        (lines, Some(at))
    }

    fn listener_line(&self, index: u32) -> Option<SocketLine> {
        let listener = self.listeners.get(index)?;
        let client = self.clients.get(listener.client)?;
        Some(SocketLine {
            state: "LISTEN",
            local: Endpoint { addr: listener.addr, port: listener.tcp_port },
            remote: None,
            kernels: listener.kernels,
            recv_queue: u64::from(self.accept_queue_len(listener)),
            send_queue: u64::from(listener.backlog),
            detail: format!("syn-queue:{}", listener.half_open),
            pid: client.shared.pid,
            program: client.shared.name.clone(),
            shard: self.config.index,
        })
    }

    fn flow_line(&self, index: u32) -> Option<SocketLine> {
        let flow = self.flows.get(index)?;
        let client = self.clients.get(flow.client)?;
        let info = self.info_of(flow);
        let (rx, tx) = self.queued(flow);
        let owner = client.region.socket(flow.sock).map_or(0, |s| s.owner_pid.load(Ordering::Relaxed));
        Some(SocketLine {
            state: state_name(flow.tcb.state()),
            local: flow.tuple.local,
            remote: Some(flow.tuple.remote),
            kernels: false,
            recv_queue: rx,
            send_queue: tx,
            detail: self.path_words(flow) + &detail(&info, flow.waiting.is_some(), flow.closed_by_program),
            pid: if owner == 0 { client.shared.pid } else { owner },
            program: client.shared.name.clone(),
            shard: self.config.index,
        })
    }

    fn bare(&self, state: &'static str, tuple: &FourTuple) -> SocketLine {
        SocketLine {
            state,
            local: tuple.local,
            remote: Some(tuple.remote),
            kernels: false,
            recv_queue: 0,
            send_queue: 0,
            detail: String::new(),
            pid: 0,
            program: String::new(),
            shard: self.config.index,
        }
    }
}

/// An endpoint for people.
pub(crate) fn endpoint(addr: utcp_proto::wire::IpAddr, port: u16) -> String {
    if addr.is_v4() { format!("{addr}:{port}") } else { format!("[{addr}]:{port}") }
}

fn detail(info: &TcpInfo, waiting: bool, orphan: bool) -> String {
    format!(
        "cwnd:{} ssthresh:{} rtt:{:.3}/{:.3} rto:{} mss:{} retrans:{} unacked:{} bytes_acked:{} \
         bytes_received:{}{}{}",
        info.snd_cwnd,
        info.snd_ssthresh,
        info.rtt.as_micros() as f64 / 1000.0,
        info.rttvar.as_micros() as f64 / 1000.0,
        info.rto.as_millis(),
        info.snd_mss,
        info.total_retrans,
        info.unacked,
        info.bytes_acked,
        info.bytes_received,
        if waiting { " unaccepted" } else { "" },
        if orphan { " orphan" } else { "" },
    )
}

/// The name that `ss` uses.
fn state_name(state: State) -> &'static str {
    match state {
        State::SynSent => "SYN-SENT",
        State::SynReceived => "SYN-RECV",
        State::Established => "ESTAB",
        State::FinWait1 => "FIN-WAIT-1",
        State::FinWait2 => "FIN-WAIT-2",
        State::CloseWait => "CLOSE-WAIT",
        State::Closing => "CLOSING",
        State::LastAck => "LAST-ACK",
        State::TimeWait => "TIME-WAIT",
        _ => "UNCONN",
    }
}

/// Linux's number of a state (include/net/tcp_states.h).
fn linux_state(state: State) -> u32 {
    match state {
        State::Established => 1,
        State::SynSent => 2,
        State::SynReceived => 3,
        State::FinWait1 => 4,
        State::FinWait2 => 5,
        State::TimeWait => 6,
        State::CloseWait => 8,
        State::LastAck => 9,
        State::Closing => 11,
        State::Closed => 7,
    }
}

/// Linux's number of a state of loss recovery (enum tcp_ca_state).
fn linux_recovery(state: RecoveryState) -> u32 {
    match state {
        RecoveryState::Open => 0,
        RecoveryState::Disorder => 1,
        RecoveryState::Cwr => 2,
        RecoveryState::Recovery => 3,
        RecoveryState::Loss => 4,
    }
}

/// What IP and TCP headers take of a path's MTU.
pub(super) fn headers(tuple: &FourTuple) -> u32 {
    if tuple.remote.addr.is_v4() { 40 } else { 60 }
}

/// Writes TCP_INFO's numbers where the program reads them. `headers` is what IP and TCP take of the path's MTU.
pub(super) fn fill_info(from: &TcpInfo, headers: u32, to: &Info) {
    let micros = |d: Duration| d.as_micros();
    let millis = |d: Duration| d.as_millis();
    let options = u32::from(from.timestamps)
        | u32::from(from.sack) << 1
        | u32::from(from.window_scaling) << 2
        | u32::from(from.ecn) << 3
        | u32::from(from.syn_data_acked) << 5
        | u32::from(from.snd_wscale) << 8
        | u32::from(from.rcv_wscale) << 12;
    let model = from.model.unwrap_or(PathModel {
        rate: from.delivery_rate,
        min_rtt: from.min_rtt,
        pacing_gain: 100,
        window_gain: 100,
    });
    let gain = |percent: u32| u64::from(percent) * 256 / 100;
    for (index, value) in [
        (info::MODEL_RATE, model.rate),
        (info::MODEL_RTT_US, micros(model.min_rtt)),
        (info::MODEL_GAINS, gain(model.pacing_gain) << 32 | gain(model.window_gain)),
        (info::RTT_US, micros(from.rtt)),
        (info::RTTVAR_US, micros(from.rttvar)),
        (info::RTO_US, micros(from.rto)),
        (info::MIN_RTT_US, micros(from.min_rtt)),
        (info::ATO_US, micros(from.ato)),
        (info::RCV_RTT_US, micros(from.rcv_rtt)),
        (info::LAST_DATA_SENT_MS, millis(from.last_data_sent)),
        (info::LAST_DATA_RECV_MS, millis(from.last_data_recv)),
        (info::LAST_ACK_RECV_MS, millis(from.last_ack_recv)),
        (info::PACING_RATE, from.pacing_rate),
        (info::PACING_RATE_MAX, from.pacing_rate),
        (info::BYTES_ACKED, from.bytes_acked),
        (info::BYTES_RECEIVED, from.bytes_received),
        (info::DELIVERY_RATE, from.delivery_rate),
        (info::BUSY_US, micros(from.busy)),
        (info::RWND_LIMITED_US, micros(from.rwnd_limited)),
        (info::SNDBUF_LIMITED_US, micros(from.sndbuf_limited)),
        (info::BYTES_SENT, from.bytes_sent),
        (info::BYTES_RETRANS, from.bytes_retrans),
    ] {
        to.words[index].store(value, Ordering::Relaxed);
    }
    for (index, value) in [
        (info::STATE, linux_state(from.state)),
        (info::CWND, from.snd_cwnd),
        (info::SSTHRESH, from.snd_ssthresh),
        (info::SND_MSS, from.snd_mss),
        (info::RCV_MSS, from.rcv_mss),
        (info::TOTAL_RETRANS, from.total_retrans),
        (info::UNACKED, from.unacked),
        (info::NOTSENT, from.notsent_bytes),
        (info::OPTIONS, options),
        (info::SEGS_IN, from.segs_in),
        (info::SEGS_OUT, from.segs_out),
        (info::RCV_SPACE, from.rcv_space),
        (info::CA_STATE, linux_recovery(from.recovery)),
        (info::RETRANSMITS, u32::from(from.retransmits)),
        (info::PROBES, u32::from(from.probes)),
        (info::BACKOFF, u32::from(from.backoff)),
        (info::SACKED, from.sacked),
        (info::LOST, from.lost),
        (info::RETRANS, from.retrans),
        (info::PMTU, from.pmtu_payload + headers),
        (info::RCV_SSTHRESH, from.rcv_ssthresh),
        (info::ADVMSS, from.advmss),
        (info::REORDERING, from.reordering),
        (info::DATA_SEGS_IN, from.data_segs_in),
        (info::DATA_SEGS_OUT, from.data_segs_out),
        (info::DELIVERED, from.delivered),
        (info::DELIVERED_CE, from.delivered_ce),
        (info::DSACK_DUPS, from.dsack_dups),
        (info::REORD_SEEN, from.reord_seen),
        (info::RCV_OOOPACK, from.rcv_ooopack),
        (info::SND_WND, from.snd_wnd),
        (info::RCV_WND, from.rcv_wnd),
    ] {
        to.words[index].store(u64::from(value), Ordering::Relaxed);
    }
}
