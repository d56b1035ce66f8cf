//! Servers and clients of our own, on plain sockets and epoll.
//!
//! They make the calls that any program makes, through libc, so the same binary runs on the kernel
//! and, with libutcp.so in front, on utcp.

mod accept;
mod echo;
mod epoll;
mod msg;
mod pingpong;
mod stream;

use std::io;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use accept::{accept, connect};
pub use echo::echo;
pub use msg::{Messages, msg};
pub use pingpong::{Pingpong, pingpong, pingpong_unix};
pub use stream::{sink, stream};

/// When a client is done.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    /// After so many operations.
    Operations(u64),
    /// After so long.
    Time(Duration),
}

/// What a client prints at its end, as one line of JSON.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Operations that succeeded: messages, round trips, MiB.
    pub operations: u64,
    /// Connections made.
    pub connections: u64,
    /// Operations per second; where a connection carries one message alone that is connections per second.
    pub per_second: f64,
    /// Operations and connections that failed.
    pub errors: u64,
    /// Latency percentiles in µs.
    pub p50_us: Option<f64>,
    /// 99 %.
    pub p99_us: Option<f64>,
    /// 99.9 %.
    pub p999_us: Option<f64>,
}

/// What a client has done, and whether that is enough.
#[derive(Debug)]
struct Meter {
    until: Until,
    start: Instant,
    counts: crate::meter::Meter,
}

impl Meter {
    fn new(until: Until) -> io::Result<Self> {
        Ok(Self { until, start: Instant::now(), counts: crate::meter::Meter::new()? })
    }

    /// An operation ended that began (or, in an open loop, should have begun) at `began`.
    fn done(&mut self, began: Instant, now: Instant) {
        self.counts.done(u64::try_from((now - began).as_nanos()).unwrap_or(u64::MAX));
    }

    fn enough(&self, now: Instant) -> bool {
        match self.until {
            Until::Operations(operations) => self.counts.operations + self.counts.errors >= operations,
            Until::Time(time) => now - self.start >= time,
        }
    }

    fn summary(&self) -> Summary {
        self.counts.summary(self.start.elapsed().as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    fn serve(server: fn(&TcpListener) -> io::Result<()>) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || server(&listener).unwrap());
        address
    }

    fn echo_one(listener: &TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        echo(&[listener.try_clone()?.into()])
    }

    #[test]
    fn connections_alone() {
        let summary = connect(serve(accept), 4, Until::Operations(50)).unwrap();
        assert!(summary.operations >= 50 && summary.connections >= summary.operations, "{summary:?}");
        assert_eq!(summary.errors, 0);
    }

    #[test]
    fn connections_that_stay_and_an_open_loop() {
        let at = serve(echo_one);
        let load = Messages { bytes: 64, messages: 0, connections: 4, rate: None };
        let summary = msg(at, load, Until::Operations(100)).unwrap();
        assert_eq!((summary.connections, summary.errors), (4, 0));
        let paced = msg(at, Messages { rate: Some(1000.0), ..load }, Until::Operations(50)).unwrap();
        assert!(paced.per_second <= 1100.0 && paced.operations >= 50, "{paced:?}");
    }

    #[test]
    fn messages_come_back() {
        let at = serve(echo_one);
        for (messages, bytes) in [(1, 1), (3, 64), (2, 300_000)] {
            let load = Messages { bytes, messages, connections: 5, rate: None };
            let summary = msg(at, load, Until::Operations(60)).unwrap();
            assert!(summary.operations >= 60, "{summary:?}");
            assert_eq!(summary.errors, 0);
            assert!(summary.connections >= 60 / u64::from(messages), "{summary:?}");
        }
    }

    #[test]
    fn refused_connections_are_errors_and_end() {
        let at = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let load = Messages { bytes: 1, messages: 1, connections: 2, rate: None };
        let summary = msg(at, load, Until::Operations(10)).unwrap();
        assert_eq!(summary.operations, 0);
        assert!(summary.errors >= 10);
    }

    #[test]
    fn ping_and_pong() {
        let at = serve(echo_one);
        let summary = pingpong(at, Pingpong { bytes: 64, rate: None }, Until::Operations(100)).unwrap();
        assert_eq!((summary.operations, summary.errors), (100, 0));
        assert!(summary.p50_us.unwrap() > 0.0 && summary.p50_us <= summary.p999_us);
        let paced = pingpong(at, Pingpong { bytes: 64, rate: Some(1000.0) }, Until::Operations(50)).unwrap();
        assert!(paced.per_second <= 1100.0, "{paced:?}");
    }

    #[test]
    fn a_stream_arrives_whole() {
        let at = serve(sink);
        for flows in [1, 4] {
            let summary = stream(at, flows, Until::Operations(20)).unwrap();
            assert_eq!((summary.operations, summary.errors), (20, 0));
            assert_eq!(summary.connections, u64::from(flows));
        }
    }
}
