//! What a stack and the switch say to each other: 64 bytes each way, one answer for each question.

use std::net::Ipv6Addr;
use std::ops::RangeInclusive;

use crate::{Flow, PeerVerdict, Proto, Tuple};

/// Bytes of a question or an answer.
pub(super) const LEN: usize = 64;
/// First byte of everything: another version of utcp is told from ours.
pub(super) const VERSION: u8 = 2;
const NAME_MAX: usize = 32;

/// What a stack asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// First, with its name for people, and the first of the client ports that it had before (0: none): takes part. After
    /// the answer come its pipe's descriptors, and then what keeps the steering, if the answer says so.
    Hello(String, u16),
    /// Take frames to every port of the range.
    Register(Tuple, RangeInclusive<u16>),
    /// Give them back to the kernel.
    Unregister(Tuple, RangeInclusive<u16>),
    /// An exception for one flow.
    RegisterFlow(Flow, PeerVerdict),
    /// No exception any more.
    UnregisterFlow(Flow),
    /// A tool: what was done for whom. The answer is text up to the end.
    Report,
}

/// What the switch answers to [`Question::Hello`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Welcome {
    pub(super) ifindex: u32,
    pub(super) mtu: u32,
    pub(super) mtu_max: u32,
    pub(super) mac: [u8; 6],
    pub(super) local: bool,
    pub(super) rx_checksum: bool,
    /// Another descriptor comes: [`Steering::hold`](crate::Steering::hold)'s.
    pub(super) holds: bool,
    /// The stack's own client ports.
    pub(super) client_ports: (u16, u16),
    pub(super) interface: String,
}

/// Writes fields one behind the other.
struct Writer {
    bytes: [u8; LEN],
    at: usize,
}

impl Writer {
    fn new(kind: u8) -> Self {
        let mut bytes = [0; LEN];
        (bytes[0], bytes[1]) = (VERSION, kind);
        Self { bytes, at: 2 }
    }

    fn put(mut self, field: &[u8]) -> Self {
        if let Some(room) = self.bytes.get_mut(self.at..self.at + field.len()) {
            room.copy_from_slice(field);
        }
        self.at += field.len();
        self
    }

    fn tuple(self, tuple: Tuple) -> Self {
        self.put(&tuple.addr.octets()).put(&tuple.port.to_be_bytes()).put(&[tuple.proto.0])
    }

    fn range(self, ports: &RangeInclusive<u16>) -> Self {
        self.put(&ports.start().to_be_bytes()).put(&ports.end().to_be_bytes())
    }

    fn flow(self, flow: Flow) -> Self {
        self.tuple(flow.local).put(&flow.peer_addr.octets()).put(&flow.peer_port.to_be_bytes())
    }

    fn text(self, text: &str) -> Self {
        let mut end = text.len().min(NAME_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.put(&text.as_bytes()[..end])
    }
}

/// Reads them again. Behind the end everything is 0.
struct Reader<'a> {
    bytes: &'a [u8; LEN],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let field = self.bytes.get(self.at..self.at + N).and_then(|field| field.try_into().ok());
        self.at += N;
        field.unwrap_or([0; N])
    }

    fn half(&mut self) -> u16 {
        u16::from_be_bytes(self.take())
    }

    fn word(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    fn tuple(&mut self) -> Tuple {
        let addr = Ipv6Addr::from(self.take::<16>());
        Tuple { addr, port: self.half(), proto: Proto(self.take::<1>()[0]) }
    }

    fn range(&mut self) -> RangeInclusive<u16> {
        self.half()..=self.half()
    }

    fn flow(&mut self) -> Flow {
        Flow { local: self.tuple(), peer_addr: Ipv6Addr::from(self.take::<16>()), peer_port: self.half() }
    }

    fn text(&mut self) -> String {
        let bytes = self.take::<NAME_MAX>();
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }
}

impl Question {
    pub(super) fn to_bytes(&self) -> [u8; LEN] {
        let take = |verdict: &PeerVerdict| [u8::from(*verdict == PeerVerdict::Take)];
        let written = match self {
            Self::Hello(name, port) => Writer::new(1).put(&port.to_be_bytes()).text(name),
            Self::Register(tuple, ports) => Writer::new(2).tuple(*tuple).range(ports),
            Self::Unregister(tuple, ports) => Writer::new(3).tuple(*tuple).range(ports),
            Self::RegisterFlow(flow, verdict) => Writer::new(4).flow(*flow).put(&take(verdict)),
            Self::UnregisterFlow(flow) => Writer::new(5).flow(*flow),
            Self::Report => Writer::new(6),
        };
        written.bytes
    }

    /// `None`: nothing that this version says.
    pub(super) fn from_bytes(bytes: &[u8; LEN]) -> Option<Self> {
        let mut reader = Reader { bytes, at: 2 };
        if bytes[0] != VERSION {
            return None;
        }
        Some(match bytes[1] {
            1 => {
                let port = reader.half();
                Self::Hello(reader.text(), port)
            }
            2 => Self::Register(reader.tuple(), reader.range()),
            3 => Self::Unregister(reader.tuple(), reader.range()),
            4 => {
                let flow = reader.flow();
                let take = reader.take::<1>() == [1];
                Self::RegisterFlow(flow, if take { PeerVerdict::Take } else { PeerVerdict::LeaveToKernel })
            }
            5 => Self::UnregisterFlow(reader.flow()),
            6 => Self::Report,
            _ => return None,
        })
    }
}

/// An answer: 0 or an errno, and what belongs to it.
pub(super) fn answer(errno: i32, welcome: &Welcome) -> [u8; LEN] {
    Writer::new(0)
        .put(&errno.to_be_bytes())
        .put(&welcome.ifindex.to_be_bytes())
        .put(&welcome.mtu.to_be_bytes())
        .put(&welcome.mtu_max.to_be_bytes())
        .put(&welcome.mac)
        .put(&[u8::from(welcome.local), u8::from(welcome.rx_checksum), u8::from(welcome.holds)])
        .put(&welcome.client_ports.0.to_be_bytes())
        .put(&welcome.client_ports.1.to_be_bytes())
        .text(&welcome.interface)
        .bytes
}

/// Reads an answer. `None`: another version.
pub(super) fn read_answer(bytes: &[u8; LEN]) -> Option<(i32, Welcome)> {
    let mut reader = Reader { bytes, at: 2 };
    if bytes[0] != VERSION {
        return None;
    }
    let errno = i32::from_be_bytes(reader.take());
    let welcome = Welcome {
        ifindex: reader.word(),
        mtu: reader.word(),
        mtu_max: reader.word(),
        mac: reader.take(),
        local: reader.take::<1>() == [1],
        rx_checksum: reader.take::<1>() == [1],
        holds: reader.take::<1>() == [1],
        client_ports: (reader.half(), reader.half()),
        interface: reader.text(),
    };
    Some((errno, welcome))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_is_understood() {
        let tuple = Tuple::new([10, 0, 0, 1], 80, Proto::TCP);
        let flow = Flow { local: tuple, peer_addr: crate::mapped([10, 0, 0, 2].into()), peer_port: 4000 };
        for question in [
            Question::Hello("a-stack".into(), 61_512),
            Question::Register(tuple, 80..=90),
            Question::Unregister(tuple, 80..=80),
            Question::RegisterFlow(flow, PeerVerdict::Take),
            Question::RegisterFlow(flow, PeerVerdict::LeaveToKernel),
            Question::UnregisterFlow(flow),
            Question::Report,
        ] {
            assert_eq!(Question::from_bytes(&question.to_bytes()), Some(question));
        }
        let welcome = Welcome {
            ifindex: 7,
            mtu: 1500,
            mtu_max: 1774,
            mac: [2, 0, 0, 0, 0, 1],
            local: true,
            rx_checksum: false,
            holds: true,
            client_ports: (61_000, 61_511),
            interface: "eth0".into(),
        };
        assert_eq!(read_answer(&answer(98, &welcome)), Some((98, welcome)));
        assert_eq!(Question::from_bytes(&[0; LEN]), None);
        assert_eq!(read_answer(&[9; LEN]), None);
    }
}
