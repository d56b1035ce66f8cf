//! A stack's side: the port at the end of its pipe, and the steering by messages.

use std::fmt;
use std::io::{self, Read, Write};
use std::ops::RangeInclusive;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::held;
use super::message::{LEN, Question, Welcome, read_answer};
use crate::pipe::{self, sys};
use crate::{Device, Flow, OpenOptions, PeerVerdict, PortError, Steering, Tuple};

/// The switch answers at once, or is in trouble.
const PATIENCE: Duration = Duration::from_secs(5);

/// Takes part in the switch `name`.
pub(crate) fn open(name: &str, options: &OpenOptions) -> Result<Device, PortError> {
    let device = format!("switch:{name}");
    let failed = |error: io::Error| match error.raw_os_error() {
        Some(libc::ECONNREFUSED | libc::ENOENT) => PortError::Option {
            option: device.clone(),
            reason: format!(
                "no switch of that name runs in this network namespace; start `utcp switch xdp:{name}`"
            ),
        },
        Some(libc::EUSERS) => PortError::InUse {
            what: device.clone(),
            detail: format!("it has its {} stacks", super::STACKS_MAX),
        },
        Some(libc::EACCES) => PortError::Privilege {
            what: "taking part in a switch",
            need: "the switch's own user, or root",
            setcap: "",
        },
        _ => PortError::io(format!("joining {device}"), error),
    };
    let stream = super::address(name).and_then(|at| UnixStream::connect_addr(&at)).map_err(|error| {
        held::missed(name);
        failed(error)
    })?;
    // Anybody can take a name that no switch has.
    match sys::peer_user(&stream).map_err(failed)? {
        user if user == 0 || user == sys::effective_user() => {}
        _ => return Err(failed(io::Error::from_raw_os_error(libc::EACCES))),
    }
    stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
        .map_err(failed)?;
    let hello = Question::Hello(options.stack.clone(), held::client_port(name));
    let welcome = ask(&stream, &hello).map_err(failed)?;
    let fds = sys::receive_descriptors(&stream).map_err(failed)?;
    let link = if welcome.holds {
        let [link] = sys::receive_descriptors(&stream).map_err(failed)?;
        Some(link)
    } else {
        None
    };
    held::keep(name, welcome.client_ports.0, link);
    let port = pipe::borrow(&device, fds, |caps| {
        let Welcome { ifindex, mtu, mtu_max, mac, local, rx_checksum, client_ports, interface, .. } = welcome;
        caps.name.clone_from(&device);
        caps.interface = Some(interface);
        caps.ifindex = Some(ifindex);
        caps.mac = mac;
        caps.peer_mac = None;
        (caps.mtu, caps.mtu_max) = (mtu, mtu_max);
        (caps.local, caps.rx_checksum) = (local, rx_checksum);
        caps.client_ports = Some(client_ports);
        caps.mode = "a switch's pipe".into();
    })?;
    let steering = SwitchSteering { device, stream: Mutex::new(stream) };
    Ok(Device { ports: vec![port], steering: Some(Arc::new(steering)) })
}

fn ask(mut stream: &UnixStream, question: &Question) -> io::Result<Welcome> {
    stream.write_all(&question.to_bytes())?;
    let mut bytes = [0; LEN];
    stream.read_exact(&mut bytes)?;
    let other = || io::Error::new(io::ErrorKind::InvalidData, "the switch is of another version");
    match read_answer(&bytes).ok_or_else(other)? {
        (0, welcome) => Ok(welcome),
        (errno, _) => Err(io::Error::from_raw_os_error(errno)),
    }
}

struct SwitchSteering {
    device: String,
    /// One question at a time.
    stream: Mutex<UnixStream>,
}

impl SwitchSteering {
    fn ask(&self, what: &dyn fmt::Display, question: &Question) -> Result<(), PortError> {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        ask(&stream, question).map(drop).map_err(|error| match error.raw_os_error() {
            Some(libc::EADDRINUSE) => PortError::InUse {
                what: what.to_string(),
                detail: "another stack of this switch has it".into(),
            },
            Some(libc::ENOSPC) => PortError::NoRoom {
                what: what.to_string(),
                limit: format!("this stack has as many tuples as one of {} may have", self.device),
            },
            Some(libc::EPIPE | libc::ECONNRESET) | None => {
                PortError::Gone { device: self.device.clone(), reason: format!("the switch: {error}") }
            }
            _ => PortError::io(format!("registering {what}"), error),
        })
    }
}

impl Steering for SwitchSteering {
    fn register(&self, tuple: Tuple) -> Result<(), PortError> {
        self.register_range(tuple, tuple.port..=tuple.port)
    }

    fn unregister(&self, tuple: Tuple) -> Result<(), PortError> {
        self.unregister_range(tuple, tuple.port..=tuple.port)
    }

    fn register_range(&self, first: Tuple, ports: RangeInclusive<u16>) -> Result<(), PortError> {
        self.ask(&first, &Question::Register(first, ports))
    }

    fn unregister_range(&self, first: Tuple, ports: RangeInclusive<u16>) -> Result<(), PortError> {
        self.ask(&first, &Question::Unregister(first, ports))
    }

    fn register_flow(&self, flow: Flow, verdict: PeerVerdict) -> Result<(), PortError> {
        self.ask(&flow, &Question::RegisterFlow(flow, verdict))
    }

    fn unregister_flow(&self, flow: Flow) -> Result<(), PortError> {
        self.ask(&flow, &Question::UnregisterFlow(flow))
    }

    fn describe(&self) -> String {
        format!("{} by messages", self.device)
    }
}
