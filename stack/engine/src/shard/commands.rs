//! What programs ask for. A set bit in the dirty map says "look at this socket"; everything else is
//! derived from the socket's words, each read once and checked.

use std::sync::atomic::Ordering;

use utcp_abi::socket::{OpCode, Options, Socket, congestion, intent, option, status};
use utcp_proto::{Config, CongestionKind, Duration, Keepalive, UserCall};

use super::ahead::LOOK_AHEAD;
use super::client::SlotUse;
use super::pairs::counts_patience;
use super::segments::Payload;
use super::streams::FIRST_MAX;
use super::{Shard, ToShard, arrival, flow::Flow, flow::Path, report};

impl Shard {
    /// Takes every client's dirty bits; true if there was one.
    pub(super) fn take_commands(&mut self) -> bool {
        let shard = self.config.index;
        let mut work = false;
        let mut dirty = std::mem::take(&mut self.dirty_scratch);
        let mut index = 0;
        while (index as usize) < self.clients.capacity_used() {
            if let Some(client) = self.clients.get(index).filter(|c| !c.corrupt && !c.gone) {
                client.region.dirty(shard).take_all(|sock| dirty.push(sock));
                arrival::in_order(client.region, &mut dirty);
                for socks in dirty.chunks(LOOK_AHEAD) {
                    work = true;
                    self.look_ahead_at(index, socks);
                    for sock in socks {
                        // It may just have been thrown out: what it asks after that is not looked at.
                        if self.clients.get(index).is_none_or(|client| client.corrupt) {
                            break;
                        }
                        self.counters.commands += 1;
                        self.on_dirty(index, *sock);
                    }
                }
                dirty.clear();
            }
            index += 1;
        }
        self.dirty_scratch = dirty;
        work
    }

    pub(super) fn on_dirty(&mut self, client_index: u32, sock: u32) {
        if !self.redirect(client_index, sock, None, self.others()) {
            self.look_at(client_index, sock);
        }
    }

    /// How many shards there are beside us.
    const fn others(&self) -> u32 {
        self.config.count.saturating_sub(1)
    }

    /// Looks at a socket that is no other shard's.
    fn look_at(&mut self, client_index: u32, sock: u32) {
        let Some(client) = self.clients.get_mut(client_index) else { return };
        let region = client.region;
        let Some(socket) = region.socket(sock) else { return };
        let asked = client.take_op(sock, socket);
        let wants = socket.intent.load(Ordering::Acquire);
        if wants & intent::UNCUT != 0 {
            socket.intent.fetch_and(!intent::UNCUT, Ordering::AcqRel);
            if let Some(end) = client.end(sock) {
                self.uncut(end);
            }
        }
        let Some(client) = self.clients.get_mut(client_index) else { return };
        match client.slot(sock) {
            SlotUse::Flow(flow) => {
                let resets = asked && socket.op() == OpCode::Reset as u32;
                if asked && !resets {
                    self.answer_info(flow);
                }
                self.on_flow_command(flow, socket, wants);
                if resets {
                    self.reset(client_index, sock);
                }
            }
            SlotUse::Unknown if asked && is_connect(socket) && wants & intent::CLOSE == 0 => {
                self.on_connect(client_index, sock);
            }
            SlotUse::Unknown | SlotUse::Ended(_) => {
                if asked {
                    client.answer_op(sock, socket, if socket.op() == 0 { libc::EBADF } else { 0 });
                }
                if wants & intent::CLOSE != 0 && !region.free_sockets().is_set(sock) && !is_listeners(socket)
                {
                    let end = client.free_slot(sock);
                    self.release(end);
                }
            }
            SlotUse::Listener => {
                if asked {
                    client.answer_op(sock, socket, 0);
                }
                self.on_listener_command(client_index, sock);
            }
        }
    }

    fn on_flow_command(&mut self, index: u32, socket: &Socket, wants: u32) {
        let now = self.now;
        let default = self.config.tcp.config;
        let Some(flow) = self.flows.get_mut(index) else { return };
        if wants & intent::OWNED != 0 {
            flow.waiting = None;
        }
        if wants & intent::OPTIONS != 0 {
            socket.intent.fetch_and(!intent::OPTIONS, Ordering::AcqRel);
            apply_options(flow, &socket.options, now, &default);
            flow.lowat = lowat_of(&socket.options, self.config.tcp.notsent_lowat);
            if let Some(end) = flow.pair.filter(|_| counts_patience(socket)) {
                self.uncut(end);
            }
            self.tell_unsent(index);
            self.tell_rcvbuf(index);
        }
        // First of all, as timers of what is listed wait until it has sent.
        self.list_transmit(index);
        if !self.catch_up(index, socket) {
            return;
        }
        if wants & intent::START != 0 {
            self.start(index, socket, wants);
        }
        if wants & intent::MORE != 0 {
            self.watch_held(index);
        }
        self.carry_out(index, socket, wants);
        self.nudge(index);
        if wants & intent::TX_FULL != 0 {
            self.grow_tx(index);
            self.offer_space(index);
        }
    }

    /// Takes over what the program put into the streams and took out of them since the last look. False: it wrote nonsense.
    fn catch_up(&mut self, index: u32, socket: &Socket) -> bool {
        let positions = [socket.tx_tail.load(Ordering::Acquire), socket.rx_head.load(Ordering::Acquire)];
        self.catch_up_to(index, socket, positions)
    }

    /// As [`Self::catch_up`], up to these positions in the tx and the rx stream.
    pub(super) fn catch_up_to(&mut self, index: u32, socket: &Socket, [tail, head]: [u64; 2]) -> bool {
        let Some(flow) = self.flows.get_mut(index) else { return false };
        let client = flow.client;
        let moved =
            flow.take_queued(tail).and_then(|added| Ok((added, flow.take_consumed_to(socket, head)?)));
        let (added, consumed) = match moved {
            Ok(moved) => moved,
            Err(error) => {
                let (tx, rx, state) = (flow.tx, flow.rx, flow.tcb.state());
                tracing::warn!(
                    sock = flow.sock,
                    ?tx,
                    ?rx,
                    ?state,
                    done = flow.done,
                    "streams that don't fit"
                );
                self.throw_out(client, error);
                return false;
            }
        };
        if added > 0 {
            // The bytes first: whoever queued them said before whether more would follow.
            let more = socket.intent.load(Ordering::Acquire) & intent::MORE != 0;
            let urgent = flow.take_urgent(socket, added).unwrap_or(0);
            if urgent > 0 {
                self.user(index, UserCall::Send { added: urgent, more: false, urgent: true });
            }
            if added > urgent {
                self.user(index, UserCall::Send { added: added - urgent, more, urgent: false });
            }
        }
        if consumed > 0 {
            self.user(index, UserCall::Received { n: consumed });
        }
        true
    }

    /// Shutdown and close, each once.
    fn carry_out(&mut self, index: u32, socket: &Socket, wants: u32) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        let new = wants & !flow.done;
        flow.done |= wants & (intent::SHUT_WR | intent::SHUT_RD | intent::CLOSE);
        if new & intent::SHUT_WR != 0 {
            let both = flow.rx_fin;
            let hup = if both { status::HUP } else { 0 };
            socket.status.fetch_or(status::TX_FIN | hup, Ordering::AcqRel);
            self.user(index, UserCall::Shutdown);
            self.news(index, libc::EPOLLOUT | if both { libc::EPOLLHUP } else { 0 });
        }
        if new & intent::SHUT_RD != 0 {
            self.user(index, UserCall::ShutdownRead);
        }
        let both = intent::SHUT_RD | intent::SHUT_WR;
        if new & both != 0 && wants & both == both {
            self.deafen(index);
        }
        if new & intent::CLOSE != 0 {
            self.close_flow(index);
        }
    }

    /// The program is done with the socket: FIN after what is queued, or RST if it left bytes unread or
    /// lingers for no time at all.
    pub(super) fn close_flow(&mut self, index: u32) {
        let Some(flow) = self.flows.get_mut(index) else { return };
        flow.closed_by_program = true;
        flow.done |= intent::CLOSE;
        let (client, sock) = (flow.client, flow.sock);
        let Some(region) = self.clients.get(client).map(|c| c.region) else { return };
        let Some(socket) = region.socket(sock) else { return };
        // A program that just ended has not said what it read.
        if !self.catch_up(index, socket) {
            return;
        }
        let abort =
            socket.options.has(option::LINGER) && socket.options.linger_s.load(Ordering::Relaxed) == 0;
        let shut = self.flows.get(index).is_some_and(|flow| flow.done & intent::SHUT_WR != 0);
        if abort || shut || socket.rx_available() > 0 {
            // A reset follows, or may. What was handed over by `send` and `shutdown` went out before a `close` that came later; here both may
            // have come in one look.
            let _ = self.transmit_flow(index);
        }
        self.release_held(index);
        let unread = self.close_side(index) || self.flows.get(index).is_some_and(|flow| flow.uncounted > 0);
        self.user(index, if abort || unread { UserCall::Abort } else { UserCall::Close });
        self.list_transmit(index);
    }

    /// Ends the flow of a socket that goes on to be read: whoever has it finds it reset (Linux tcp_disconnect).
    fn reset(&mut self, client_index: u32, sock: u32) {
        let Some(client) = self.clients.get(client_index) else { return };
        let region = client.region;
        let Some(socket) = region.socket(sock) else { return };
        if let SlotUse::Flow(index) = client.slot(sock) {
            socket.error.store(libc::ECONNRESET, Ordering::Release);
            socket.status.fetch_and(!status::CONNECTING, Ordering::AcqRel);
            socket.status.fetch_or(status::DEAD | status::HUP, Ordering::AcqRel);
            let all = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLERR | libc::EPOLLHUP | libc::EPOLLRDHUP;
            self.news(index, all);
            self.close_side(index);
            self.user(index, UserCall::Abort);
            self.list_transmit(index);
        }
        if let Some(client) = self.clients.get(client_index) {
            client.answer_op(sock, socket, 0);
        }
    }

    /// Ends a flow by a reset; nobody will read its socket again.
    pub(super) fn abort(&mut self, index: u32) {
        if let Some(flow) = self.flows.get_mut(index) {
            flow.closed_by_program = true;
            self.close_side(index);
            self.user(index, UserCall::Abort);
            self.list_transmit(index);
        }
    }

    /// A call on the TCB, and what follows from it.
    pub(super) fn user(&mut self, index: u32, call: UserCall) {
        let now = self.now;
        let Some(flow) = self.flows.get_mut(index) else { return };
        // A refused call (the connection ended meanwhile) changes nothing: the program sees the status.
        if let Ok(actions) = flow.tcb.on_user(now, call) {
            if actions.is_quiet() {
                self.act_quietly(index, actions.transmit);
            } else {
                self.act(index, &actions, Payload::None);
            }
        } else if matches!(call, UserCall::Close | UserCall::Abort)
            && let Some(flow) = self.flows.get_mut(index)
        {
            flow.finished = true;
        }
    }

    /// The last descriptor of a socket is gone, perhaps with its process.
    pub(super) fn on_hangup(&mut self, number: u32, sock: u32, token: u32) {
        let Some(&index) = self.by_number.get(&number) else { return };
        // What the program did before it went (an accept, bytes) comes first.
        self.take_commands();
        if !self.redirect(index, sock, Some(token), self.others()) {
            self.hang_up(index, sock, token);
        }
    }

    fn hang_up(&mut self, index: u32, sock: u32, token: u32) {
        let Some(client) = self.clients.get_mut(index) else { return };
        let region = client.region;
        let Some(socket) = region.socket(sock) else { return };
        let stands = || socket.token.load(Ordering::Acquire) == token;
        if !stands() {
            return;
        }
        // A `recv` sets no bit: bytes that were read must not count as unread, or the close would be a reset.
        self.look_at(index, sock);
        // A socket that was closed before has left its descriptor to another: this is not about it, and the slot may be in
        // use again.
        if !stands() || socket.intent.load(Ordering::Acquire) & intent::CLOSE != 0 {
            return;
        }
        // Its program may have found that the descriptor is spoiled and be putting another there: one of us has the socket.
        if socket.token.compare_exchange(token, 0, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return;
        }
        let Some(client) = self.clients.get_mut(index) else { return };
        match client.slot(sock) {
            SlotUse::Flow(flow) => self.close_flow(flow),
            SlotUse::Listener => {}
            SlotUse::Unknown | SlotUse::Ended(_) => {
                if !region.free_sockets().is_set(sock) && !is_listeners(socket) {
                    let end = client.free_slot(sock);
                    self.release(end);
                }
            }
        }
    }

    /// Where the slot is nothing that we know of, but another shard's (a connection was passed on while its program or its end was under
    /// way to us, or the slot had another use when the bit was set), that one is told, so who connects or frees a slot is one shard. Told
    /// on `left` times at most: a program that writes one shard after another does not keep them busy.
    fn redirect(&self, client_index: u32, sock: u32, token: Option<u32>, left: u32) -> bool {
        if left == 0 {
            return false;
        }
        let Some(client) = self.clients.get(client_index) else { return false };
        if client.slot(sock) != SlotUse::Unknown {
            return false;
        }
        let Some(socket) = client.region.socket(sock) else { return false };
        let shard = socket.shard.load(Ordering::Acquire);
        if shard == self.config.index {
            return false;
        }
        // A number that no shard has is nonsense, whoever looks.
        let Some(inbox) = self.inbox_of(shard) else { return false };
        if !client.region.free_sockets().is_set(sock) {
            inbox.send(ToShard::Misdirected { client: client.shared.id, sock, token, left: left - 1 });
        }
        true
    }

    /// Another shard was told of a socket that is not its own.
    pub(super) fn on_misdirected(&mut self, number: u32, sock: u32, token: Option<u32>, left: u32) {
        let Some(&index) = self.by_number.get(&number) else { return };
        let Some(client) = self.clients.get(index).filter(|client| !client.corrupt && !client.gone) else {
            return;
        };
        let own = client
            .region
            .socket(sock)
            .is_some_and(|socket| socket.shard.load(Ordering::Acquire) == self.config.index);
        match token {
            _ if self.redirect(index, sock, token, left) => {}
            _ if !own && client.slot(sock) == SlotUse::Unknown => {}
            Some(token) => self.hang_up(index, sock, token),
            None => self.look_at(index, sock),
        }
    }

    fn answer_info(&mut self, index: u32) {
        let Some(flow) = self.flows.get(index) else { return };
        let Some(client) = self.clients.get(flow.client) else { return };
        let Some(socket) = client.region.socket(flow.sock) else { return };
        let Some(info) = client.region.info(flow.sock) else { return };
        report::fill_info(&self.info_of(flow), report::headers(&flow.tuple), info);
        client.answer_op(flow.sock, socket, 0);
    }
}

/// A listener's slot goes with the listener: other shards may have it yet ([`super::ListenRequest::holders`]).
fn is_listeners(socket: &Socket) -> bool {
    socket.status.load(Ordering::Acquire) & status::LISTENING != 0
}

fn is_connect(socket: &Socket) -> bool {
    let code = socket.op();
    [OpCode::Connect, OpCode::ConnectLoopback, OpCode::ConnectFast]
        .iter()
        .any(|&connect| code == connect as u32)
}

/// The TCB's settings that a socket's options stand for.
pub(super) fn tcb_config(options: &Options, base: Config, path: Path) -> Config {
    let mut config = base;
    config.nodelay = options.has(option::NODELAY);
    config.cork = options.has(option::CORK);
    config.keepalive = keepalive(options);
    config.user_timeout = Duration::from_millis(u64::from(options.user_timeout_ms.load(Ordering::Relaxed)));
    config.congestion = controller(options, base.congestion, path);
    let maxseg = options.maxseg.load(Ordering::Relaxed);
    if maxseg >= 88 {
        config.mss = config.mss.min(maxseg.min(65_495) as u16);
    }
    if let bytes @ 1.. = options.rcvbuf.load(Ordering::Relaxed) {
        // SO_RCVBUF: half is window, the rest is what Linux takes for overhead; and the window does not grow beyond.
        config.recv_capacity_max = bytes / 2;
        config.recv_capacity = config.recv_capacity_max.min(FIRST_MAX);
    }
    if let retries @ 1..=255 = options.syncnt.load(Ordering::Relaxed) {
        config.syn_retries = retries as u8;
    }
    config.fin_timeout = fin_timeout(options, base.fin_timeout);
    config.pacing_rate_max = pacing_rate(options);
    config.defer_accept = deferrals(options.defer_accept_s.load(Ordering::Relaxed));
    config
}

/// TCP_NOTSENT_LOWAT of a socket.
pub(super) fn lowat_of(options: &Options, default: u32) -> u32 {
    match options.notsent_lowat.load(Ordering::Relaxed) {
        0 => default,
        set => set,
    }
}

/// TCP_DEFER_ACCEPT: how many time-outs of a SYN-ACK so many seconds are, as Linux counts (secs_to_retrans).
fn deferrals(seconds: u32) -> u8 {
    let (mut period, mut timeout, mut count) = (1, 1, u8::from(seconds > 0));
    while seconds > period && count < u8::MAX {
        count += 1;
        timeout = (timeout * 2).min(120);
        period += timeout;
    }
    count
}

/// TCP_LINGER2: how long the peer of an orphan may take to close. Below 0 Linux does not wait at all.
fn fin_timeout(options: &Options, default: Duration) -> Duration {
    match options.linger2_s.load(Ordering::Relaxed) {
        0 => default,
        ..0 => Duration::from_millis(1),
        seconds => Duration::from_secs(u64::from(seconds.unsigned_abs()).min(120)),
    }
}

/// SO_MAX_PACING_RATE in bytes per second. A rate of 0 would never send.
fn pacing_rate(options: &Options) -> u64 {
    match !options.max_pacing.load(Ordering::Relaxed) {
        0 => u64::MAX,
        rate => rate,
    }
}

fn keepalive(options: &Options) -> Option<Keepalive> {
    if !options.has(option::KEEPALIVE) {
        return None;
    }
    let or = |value: u32, default: u64| if value == 0 { default } else { u64::from(value) };
    Some(Keepalive {
        idle: Duration::from_secs(or(options.keepidle_s.load(Ordering::Relaxed), 7_200)),
        interval: Duration::from_secs(or(options.keepintvl_s.load(Ordering::Relaxed), 75)),
        probes: or(options.keepcnt.load(Ordering::Relaxed), 9).min(255) as u8,
    })
}

fn controller(options: &Options, default: CongestionKind, path: Path) -> CongestionKind {
    let wanted = match options.congestion.load(Ordering::Relaxed) {
        congestion::RENO => CongestionKind::NewReno,
        congestion::CUBIC => CongestionKind::Cubic,
        congestion::BBR => CongestionKind::Bbr,
        _ => default,
    };
    match wanted {
        // Between two programs of one host there is nothing to model, and pacing would be all that it does. The default may
        // be BBR by the administrator's word.
        CongestionKind::Bbr if !matches!(path, Path::Device { .. }) => CongestionKind::Cubic,
        wanted => wanted,
    }
}

fn apply_options(flow: &mut Flow, options: &Options, now: utcp_proto::Instant, default: &Config) {
    let timeout = Duration::from_millis(u64::from(options.user_timeout_ms.load(Ordering::Relaxed)));
    let calls = [
        UserCall::SetNoDelay(options.has(option::NODELAY)),
        UserCall::SetCork(options.has(option::CORK)),
        UserCall::SetKeepalive(keepalive(options)),
        UserCall::SetUserTimeout(timeout),
        UserCall::SetCongestion(controller(options, default.congestion, flow.path)),
        UserCall::SetFinTimeout(fin_timeout(options, default.fin_timeout)),
        UserCall::SetPacingRate(pacing_rate(options)),
    ];
    for call in calls {
        // A connection that just ended refuses; its options matter to nobody then.
        let _ = flow.tcb.on_user(now, call);
    }
    if let retries @ 1..=255 = options.syncnt.load(Ordering::Relaxed) {
        let _ = flow.tcb.on_user(now, UserCall::SetSynRetries(retries as u8));
    }
    if options.has(option::QUICKACK) || options.has(option::NO_QUICKACK) {
        let _ = flow.tcb.on_user(now, UserCall::SetQuickAck(options.has(option::QUICKACK)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_of_deferral_in_time_outs() {
        let counts = [0, 1, 3, 7, 31, 63, 127, 247, 29_887, u32::MAX].map(deferrals);
        assert_eq!(counts, [0, 1, 2, 3, 5, 6, 7, 8, 255, 255]);
    }

    #[test]
    fn no_pacing_within_a_host() {
        let options = Options::default();
        let device = Path::Device { port: 0, next_hop: [0; 6] };
        let kind = |path| controller(&options, CongestionKind::Bbr, path);
        assert_eq!((kind(Path::Local(0)), kind(device)), (CongestionKind::Cubic, CongestionKind::Bbr));
        options.congestion.store(congestion::BBR, Ordering::Relaxed);
        assert_eq!(kind(Path::Local(0)), CongestionKind::Cubic);
    }
}
