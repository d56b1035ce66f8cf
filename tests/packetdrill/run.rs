//! Plays a script: calls, packets to the stack, and packets expected from it, each at its time.

use crate::calls::{Prepared, Program};
use crate::code::Snippets;
use crate::connection::{Connection, Role};
use crate::script::{Action, Body, Call, Event, Expr, Flags, Packet, Script, Tcp, TcpOption, Time, Us};
use crate::settings::Settings;
use crate::wire::{self, Received};
use crate::world::{Outcome, World};
use crate::{compare, symbols};

/// How long a packet expected at any time (`*`) is waited for.
const ANY_TIME: Us = 600_000_000;

/// A call that has not returned yet.
struct Pending {
    line: usize,
    name: String,
    prepared: Option<Prepared>,
    result: Expr,
    errno: Option<String>,
    /// When it has to return; `None`: at once.
    until: Option<Us>,
}

/// A script under way.
pub struct Run<'a> {
    settings: &'a mut Settings,
    world: World,
    program: Program,
    connection: Option<Connection>,
    listening: bool,
    pending: Option<Pending>,
    snippets: Snippets,
    /// The descriptor whose TCP_INFO snippets see.
    tested: i32,
    next_port: u16,
}

/// Something went other than the script says, and where.
pub struct Failure {
    pub line: usize,
    pub why: String,
}

impl<'a> Run<'a> {
    pub fn new(settings: &'a mut Settings, world: World, program: Program) -> Self {
        Self {
            settings,
            world,
            program,
            connection: None,
            listening: false,
            pending: None,
            snippets: Snippets::default(),
            tested: -1,
            next_port: 40_000,
        }
    }

    /// Plays it all.
    ///
    /// # Errors
    /// The first thing that went wrong.
    pub fn play(mut self, script: &Script) -> Result<(), Failure> {
        self.world.begin();
        let mut last = 0;
        for event in &script.events {
            last = event.line;
            self.event(event).map_err(|why| Failure { line: event.line, why })?;
        }
        self.finish_call().map_err(|why| Failure { line: last, why })?;
        self.snippets.run().map_err(|(line, why)| Failure { line, why })
    }

    fn event(&mut self, event: &Event) -> Result<(), String> {
        let now = self.world.now();
        let (from, to) = match event.time {
            Time::Any => (now, now + ANY_TIME),
            Time::At(from, to) => (from, to),
            Time::After(from, to) => (now + from, now + to),
        };
        if let Action::Outbound(packet) = &event.action {
            return self.outbound(packet, from, to, event.time == Time::Any);
        }
        if let Action::Call(_) | Action::Code(_) = &event.action {
            self.finish_call_before(from)?;
        }
        self.world.pass(from, |_| false)?;
        self.look_at_call(false)?;
        match &event.action {
            Action::Inbound(packet) => self.inbound(packet),
            Action::Call(call) => self.call(event.line, call, now),
            Action::Command(command) => {
                self.settings.command(command)?;
                self.world.take_settings();
                Ok(())
            }
            Action::Code(code) => self.code(event.line, code),
            Action::Outbound(_) => Ok(()),
        }
    }

    // Calls.

    fn call(&mut self, line: usize, call: &Call, begun: Us) -> Result<(), String> {
        if let Some((value, errno)) = self.program.pipe(call)? {
            return self.verify((value, errno), &call.result, call.errno.as_deref());
        }
        let mut prepared = self.program.prepare(call)?;
        let job = std::mem::replace(&mut prepared.job, Box::new(|| (0, 0)));
        self.note(call)?;
        // A blocking call's end counts from where its beginning counts.
        let until = call.until.map(|until| begun + until);
        self.pending = Some(Pending {
            line,
            name: call.name.clone(),
            prepared: Some(prepared),
            result: call.result.clone(),
            errno: call.errno.clone(),
            until,
        });
        self.world.call(job)?;
        self.look_at_call(true)
    }

    /// What a call means for the connection under test.
    fn note(&mut self, call: &Call) -> Result<(), String> {
        let flag = |at: usize| call.args.get(at).map_or(Ok(0), crate::calls::number);
        let known = match call.args.first().map(crate::calls::number) {
            Some(Ok(fd)) => self.connection.is_some() && self.tested == self.program.fd(fd),
            _ => false,
        };
        let opens = match call.name.as_str() {
            // To nowhere: the connection ends.
            "connect" => !matches!(call.args.get(1), Some(Expr::Word(to)) if to == "AF_UNSPEC"),
            // On a socket that has a connection it is a send as any other.
            "sendto" => flag(3)? & i64::from(libc::MSG_FASTOPEN) != 0 && !known,
            "sendmsg" => flag(2)? & i64::from(libc::MSG_FASTOPEN) != 0 && !known,
            "close" if known => {
                self.tested = -1;
                false
            }
            "listen" => {
                self.listening = true;
                false
            }
            _ => false,
        };
        let idle = self.connection.as_ref().is_none_or(|c| c.role != Role::Connecting);
        if opens && idle {
            self.connection = Some(Connection::connecting(self.settings));
        }
        if opens && let Some(fd) = call.args.first() {
            self.tested = self.program.fd(crate::calls::number(fd)?);
        }
        Ok(())
    }

    /// The call under way may have returned. `started`: it was made just now, and has to return at once unless it blocks.
    fn look_at_call(&mut self, started: bool) -> Result<(), String> {
        let Some(pending) = &mut self.pending else { return Ok(()) };
        let Some(outcome) = self.world.take_outcome() else {
            if started && pending.until.is_none() {
                return Err(format!("{}() blocks", pending.name));
            }
            return Ok(());
        };
        let Some(pending) = self.pending.take() else { return Ok(()) };
        let (line, name) = (pending.line, pending.name.clone());
        self.returned(pending, outcome).map_err(|why| format!("{name}() of line {line}: {why}"))
    }

    fn returned(&mut self, pending: Pending, outcome: Outcome) -> Result<(), String> {
        let now = self.world.now();
        if let Some(until) = pending.until
            && (now - until).abs() > self.settings.tolerance
        {
            return Err(format!("returned at {}, not at {}", seconds(now), seconds(until)));
        }
        let Some(prepared) = pending.prepared else { return Ok(()) };
        let (value, errno) = outcome;
        if prepared.gives_fd && value >= 0 {
            if let Expr::Int(script) = pending.result {
                if script < 0 {
                    return Err(format!("returned a descriptor, not {script}"));
                }
                self.program.learn(script, value as i32);
            }
            if pending.name.starts_with("accept") {
                self.tested = value as i32;
            }
            return (prepared.check)(value);
        }
        self.verify((value, errno), &pending.result, pending.errno.as_deref())?;
        (prepared.check)(value)
    }

    fn verify(&self, (value, errno): Outcome, wanted: &Expr, error: Option<&str>) -> Result<(), String> {
        let got = if value < 0 { format!("-1 {}", symbols::errno_name(errno)) } else { value.to_string() };
        if *wanted != Expr::Ellipsis {
            let wanted = crate::calls::number(wanted)?;
            if wanted != value {
                return Err(format!("returned {got}, not {wanted} {}", error.unwrap_or_default()));
            }
        }
        match error.filter(|_| value < 0) {
            Some(name) if symbols::errno(name) != Some(errno) => {
                Err(format!("returned {got}, not -1 {name}"))
            }
            _ => Ok(()),
        }
    }

    /// One call at a time: the one before has to end first.
    fn finish_call_before(&mut self, time: Us) -> Result<(), String> {
        if !self.world.is_busy() {
            return self.look_at_call(false);
        }
        self.world.pass(time + self.settings.tolerance, |world| !world.is_busy())?;
        self.look_at_call(false)?;
        if self.world.is_busy() { Err("the call before has not returned".into()) } else { Ok(()) }
    }

    fn finish_call(&mut self) -> Result<(), String> {
        let Some(until) = self.pending.as_ref().and_then(|pending| pending.until) else { return Ok(()) };
        self.finish_call_before(until)
    }

    fn code(&mut self, line: usize, code: &str) -> Result<(), String> {
        let (job, room) = self.program.tcp_info(self.tested);
        self.world.call(job)?;
        let outcome = self.world.take_outcome().ok_or("TCP_INFO blocks")?;
        let info = if outcome.0 == 0 { room.read(256) } else { Vec::new() };
        self.snippets.add(line, code, &info);
        Ok(())
    }

    // Packets.

    fn inbound(&mut self, packet: &Packet) -> Result<(), String> {
        let bytes = match &packet.body {
            Body::Tcp(tcp) => {
                let mss = tcp.options.iter().flatten().find_map(|option| match option {
                    TcpOption::Mss(mss) => Some(u32::from(*mss)),
                    _ => None,
                });
                self.settings.peer_mss = mss.unwrap_or(self.settings.peer_mss);
                self.meet(tcp);
                let port = self.next_port;
                let connection =
                    self.connection.get_or_insert_with(|| Connection::stray(self.settings, port));
                connection.inbound(packet, tcp)?
            }
            Body::Icmp(icmp) => {
                let connection = self.connection.as_ref().ok_or("there is no connection to speak of")?;
                connection.icmp(icmp)?
            }
            Body::Other(what) => return Err(format!("{what} packets are not for a TCP stack")),
        };
        self.world.inject(&bytes)?;
        self.look_at_call(false)
    }

    /// A SYN for a listener begins a new connection.
    fn meet(&mut self, tcp: &Tcp) {
        let syn = tcp.flags.has(Flags::SYN) && !tcp.flags.has(Flags::ACK);
        let free = match &self.connection {
            None => true,
            Some(connection) => self.listening && connection.role != Role::Connecting && !connection.is_new(),
        };
        let fresh = self.connection.is_none() || std::mem::take(&mut self.listening);
        if syn && free && fresh {
            self.next_port += 1;
            self.connection = Some(Connection::arriving(self.settings, self.next_port, tcp.seq));
            self.listening = false;
        }
    }

    fn outbound(&mut self, packet: &Packet, from: Us, to: Us, any: bool) -> Result<(), String> {
        let Body::Tcp(wanted) = &packet.body else {
            return Err("only segments are sent by a TCP stack".into());
        };
        let tolerance = if any { 0 } else { self.settings.tolerance };
        let (mut whole, mut at): (Option<Received>, Us) = (None, 0);
        loop {
            let have = whole.as_ref().map_or(0, |segment| segment.tcp.len);
            let enough = whole.is_some() && (have >= wanted.len || self.settings.strict_segments);
            if enough {
                break;
            }
            let Some((time, segment)) = self.next_sent(wanted, to + tolerance)? else {
                let so_far = whole.map_or(String::new(), |segment| {
                    format!("; up to now: {}", self.told(&segment.tcp, wanted))
                });
                return Err(format!(
                    "expected {}, nothing was sent until {}{so_far}",
                    wire::show(wanted),
                    seconds(to)
                ));
            };
            at = time;
            whole = Some(match whole {
                None => segment,
                Some(first) => compare::join(first, &segment)
                    .map_err(|why| format!("expected {}: {why}", wire::show(wanted)))?,
            });
        }
        let Some(segment) = whole else { return Ok(()) };
        let told = self.told(&segment.tcp, wanted);
        let complain = |why: String| {
            format!("{why}\n  expected {}\n  got      {told} at {}", wire::show(wanted), seconds(at))
        };
        if at < from - tolerance || at > to + tolerance {
            return Err(complain(format!(
                "timing: expected at {}, sent at {}",
                range(from, to),
                seconds(at)
            )));
        }
        let connection = self.connection.as_mut().ok_or("there is no connection")?;
        connection.check(packet, wanted, &segment, self.settings).map_err(complain)?;
        // What was sent earlier than now was looked at late.
        self.world.pass(at, |_| false)?;
        self.look_at_call(false)
    }

    /// A segment as the script would write it.
    fn told(&self, tcp: &Tcp, _wanted: &Tcp) -> String {
        let relative = self.connection.as_ref().map(|connection| connection.told(tcp));
        wire::show(relative.as_ref().unwrap_or(tcp))
    }

    /// The next segment of the connection under test, and when it was sent.
    fn next_sent(&mut self, wanted: &Tcp, until: Us) -> Result<Option<(Us, Received)>, String> {
        loop {
            self.world.pass(until, |world| !world.sent.is_empty())?;
            self.look_at_call(false)?;
            let Some((at, segment)) = self.world.sent.pop_front() else { return Ok(None) };
            if self.settings.verbose {
                eprintln!("{} > {}", seconds(at), self.told(&segment.tcp, wanted));
            }
            let Some(connection) = &mut self.connection else { continue };
            if connection.owns(&segment, wanted) {
                return Ok(Some((at, segment)));
            }
        }
    }
}

pub fn seconds(us: Us) -> String {
    format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
}

fn range(from: Us, to: Us) -> String {
    if from == to { seconds(from) } else { format!("{}~{}", seconds(from), seconds(to)) }
}
