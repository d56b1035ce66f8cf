//! The link of a NIC that is down once everybody knows it.
//!
//! Who asks the module in the very moment in which an interface goes down is caught (docs/netmap.md), and whether anybody does is
//! chance. Here the NIC follows the kernel's device as its ports are told of it: it is down when the last of them has been
//! told, from when on nobody may ask, and up before the first one is told that.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use utcp_netmap_io::provider::Provider;
use utcp_netmap_io::{Caps, Counters, Device, PollFd, PollFds, Port, PortError, RxRing, TxRing};

/// A port of the NIC `name`.
struct Told {
    port: Box<dyn Port>,
    provider: Provider,
    name: &'static str,
    up: bool,
    /// Ports of the NIC that have not been told that it is down.
    others_up: Arc<AtomicUsize>,
}

/// The same device, whose NIC goes down and up as its ports are told.
pub fn told(device: Device, provider: &Provider, name: &'static str) -> Device {
    let Device { ports, steering } = device;
    let others_up = Arc::new(AtomicUsize::new(ports.len()));
    let wrapped = |port| -> Box<dyn Port> {
        Box::new(Told { port, provider: provider.clone(), name, up: true, others_up: others_up.clone() })
    };
    Device { ports: ports.into_iter().map(wrapped).collect(), steering }
}

impl Port for Told {
    fn set_up(&mut self, up: bool) -> bool {
        let changed = std::mem::replace(&mut self.up, up) != up;
        if changed && up {
            self.others_up.fetch_add(1, Ordering::SeqCst);
            self.provider.set_up(self.name, true);
        }
        let alone = self.port.set_up(up);
        if changed && !up && self.others_up.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.provider.set_up(self.name, false);
            eprintln!("{} is down", self.name);
        }
        alone
    }

    fn caps(&self) -> &Caps {
        self.port.caps()
    }

    fn rx_sync(&mut self) -> Result<u32, PortError> {
        self.port.rx_sync()
    }

    fn tx_sync(&mut self) -> Result<u32, PortError> {
        self.port.tx_sync()
    }

    fn rings(&mut self) -> (RxRing<'_>, TxRing<'_>) {
        self.port.rings()
    }

    fn arm(&mut self) -> Result<bool, PortError> {
        self.port.arm()
    }

    fn poll_fds(&self) -> PollFds {
        self.port.poll_fds()
    }

    fn tx_poll_fd(&self) -> Option<PollFd> {
        self.port.tx_poll_fd()
    }

    fn rx_time(&self) -> Option<Duration> {
        self.port.rx_time()
    }

    fn resync_in(&self) -> Option<Duration> {
        self.port.resync_in()
    }

    fn counters(&self) -> Counters {
        self.port.counters()
    }
}
