//! What a module was seen to do, asked again: the facts that everything else here relies on.
//!
//! The same list for the kernel's module (`netmap-check`) and for the provider (a test), so that one can't differ from the
//! other unnoticed.

use std::io;

use super::abi::{Header, Mode, NAME_LEN, NIOCCTRL, PortInfo, Register, flag, kind};
use super::admin::Admin;
use super::control::{self, Dialect, Options};
use super::extra::ExtraBuffers;
use super::layout::{DIR_RX, DIR_TX};
use super::region::{Region, Side};
use super::sys::Handle;
use super::user::UserRing;

/// What was found.
pub type Finding = (&'static str, Result<(), String>);

/// Buffers asked for by [`Admin::manners`].
const EXTRA: u32 = 8;

fn errno(result: io::Result<()>, want: i32) -> Result<(), String> {
    match result {
        Err(error) if error.raw_os_error() == Some(want) => Ok(()),
        Err(error) => Err(format!("{error} instead of {}", io::Error::from_raw_os_error(want))),
        Ok(()) => Err(format!("it succeeded, instead of {}", io::Error::from_raw_os_error(want))),
    }
}

/// Asks about a port in another version's name.
fn asked_as(handle: &dyn Handle, version: u16, name: &str) -> io::Result<()> {
    let mut body = PortInfo::default();
    let mut header = Header {
        version,
        kind: kind::PORT_INFO_GET,
        reserved: 0,
        name: [0; NAME_LEN],
        options: 0,
        body: std::ptr::from_mut(&mut body).addr() as u64,
    };
    header.name.iter_mut().zip(name.bytes().take(NAME_LEN - 1)).for_each(|(to, from)| *to = from);
    // SAFETY: header and body belong together and live until the call returns.
    unsafe { handle.ioctl(NIOCCTRL, std::ptr::from_mut(&mut header).addr()) }
}

/// A port that was bound by hand.
struct Bound {
    handle: Box<dyn Handle>,
    reply: Register,
    region: Region,
}

impl Bound {
    fn new(admin: &Admin, name: &str, extra_bufs: u32) -> Result<Self, String> {
        let words = |error: io::Error| error.to_string();
        let handle = admin.handle().map_err(words)?;
        let wanted = Register {
            mode: Mode::AllNic as u32,
            flags: flag::NO_TX_POLL,
            extra_bufs,
            ..Register::default()
        };
        let reply = control::register(&*handle, Dialect::Today, name, &wanted, &mut Options::default());
        let reply = reply.map_err(words)?;
        let bytes = usize::try_from(reply.mem_size).unwrap_or(0);
        let memory = std::sync::Arc::new(handle.map(bytes).map_err(words)?);
        let region = Region::new(memory, usize::try_from(reply.offset).unwrap_or(usize::MAX))?;
        Ok(Self { handle, reply, region })
    }

    fn ring(&self, tx: bool) -> Result<UserRing, String> {
        self.region.ring(tx, Side::Nic, 0).map_err(str::to_owned)
    }
}

impl Admin {
    /// Asks the module what it does with right and wrong requests, on a port that nobody uses: one of VALE, or of a NIC that
    /// may lose its frames.
    #[must_use]
    pub fn manners(&self, name: &str) -> Vec<Finding> {
        vec![
            ("versions 14 and 15 are taken, 13 and 16 are not", self.versions(name)),
            ("an interface that is not there is ENXIO", self.nobody()),
            ("without rings, a sync is ENXIO, mmap EINVAL and waiting an error", self.unbound()),
            ("a second registration of a descriptor is EBUSY", self.twice(name)),
            (
                "tx rings have direction 1, rx rings 0, and the n-th rx ring is behind all tx rings",
                self.rings(name),
            ),
            ("a head that makes no sense is set back, and the sync succeeds", self.nonsense(name)),
            ("extra buffers come as a chain, and are free again after it was given back", self.extra(name)),
        ]
    }

    fn versions(&self, name: &str) -> Result<(), String> {
        let handle = self.handle().map_err(|error| error.to_string())?;
        for version in [14, 15] {
            // A port of VALE that nobody has opened is not there yet: that is an answer.
            match asked_as(&*handle, version, name) {
                Err(error) if error.raw_os_error() != Some(libc::ENXIO) => {
                    return Err(format!("version {version}: {error}"));
                }
                _ => {}
            }
        }
        [13, 16].into_iter().try_for_each(|version| errno(asked_as(&*handle, version, name), libc::EINVAL))
    }

    fn nobody(&self) -> Result<(), String> {
        let handle = self.handle().map_err(|error| error.to_string())?;
        errno(asked_as(&*handle, 14, "utcp-no-such"), libc::ENXIO)
    }

    fn unbound(&self) -> Result<(), String> {
        let handle = self.handle().map_err(|error| error.to_string())?;
        errno(control::tx_sync(&*handle), libc::ENXIO)?;
        errno(control::rx_sync(&*handle), libc::ENXIO)?;
        errno(handle.map(4096).map(drop), libc::EINVAL)?;
        if handle.in_error() { Ok(()) } else { Err("poll reports no error".into()) }
    }

    fn twice(&self, name: &str) -> Result<(), String> {
        let bound = Bound::new(self, name, 0)?;
        let wanted = Register { mode: Mode::AllNic as u32, ..Register::default() };
        let again = control::register(&*bound.handle, Dialect::Today, name, &wanted, &mut Options::default());
        errno(again.map(drop), libc::EBUSY)
    }

    fn rings(&self, name: &str) -> Result<(), String> {
        let bound = Bound::new(self, name, 0)?;
        // `Region` finds them by these rules, and refuses what has the other direction.
        let (tx, rx) = (bound.ring(true)?, bound.ring(false)?);
        let slots = (tx.slots.num_slots(), rx.slots.num_slots());
        if slots != (bound.reply.tx_slots, bound.reply.rx_slots) {
            return Err(format!("{slots:?} slots where the reply says {:?}", bound.reply));
        }
        match (DIR_TX, DIR_RX) {
            (1, 0) => Ok(()),
            other => Err(format!("directions {other:?}")),
        }
    }

    fn nonsense(&self, name: &str) -> Result<(), String> {
        let bound = Bound::new(self, name, 0)?;
        let mut tx = bound.ring(true)?;
        let good = tx.slots.head;
        tx.slots.head = tx.slots.num_slots() + 5;
        tx.publish();
        control::tx_sync(&*bound.handle).map_err(|error| format!("the sync says {error}"))?;
        tx.refresh();
        if tx.slots.head == good {
            Ok(())
        } else {
            Err(format!("head is {} instead of {good}", tx.slots.head))
        }
    }

    fn extra(&self, name: &str) -> Result<(), String> {
        // More often than buffers would last, were they lost.
        for round in 0..20 {
            let bound = Bound::new(self, name, EXTRA)?;
            let granted = bound.reply.extra_bufs;
            let ring = bound.ring(true)?;
            let mut extra = ExtraBuffers::new(&bound.region, ring.slots.buffers(), granted);
            let mut all = Vec::new();
            while let Some(buf) = extra.take() {
                all.push(buf);
            }
            let count = all.len();
            all.into_iter().for_each(|buf| extra.give(buf));
            extra.give_back(&bound.region);
            if granted == 0 || granted > EXTRA || count != granted as usize {
                return Err(format!("round {round}: {count} in the chain, {granted} granted of {EXTRA}"));
            }
        }
        Ok(())
    }
}
