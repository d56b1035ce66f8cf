//! What an administrator asks of the module: ports, memories, switches. For `netmap-check` and whoever sets a machine up.
//!
//! Every call is one request of [`control`](super::control) on a descriptor of its own, but for the loop of the kernel,
//! which needs one that is bound.

use std::io;
use std::sync::Arc;

use super::abi::{
    CsbToKernel, CsbToUser, KloopStart, Mode, OptCsb, PoolsInfo, PortHdr, PortInfo, Register, ValeAttach,
    ValeDetach, ValeList, ValeNewif, ValePolling, flag,
};
use super::control::{self, Dialect, Options};
use super::sys::{Handle, Kernel, Module};
use crate::provider::Provider;

/// Sizes of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortSizes {
    /// Bytes of its memory.
    pub mem_size: u64,
    /// Number of its memory: ports of one can swap buffers.
    pub mem_id: u16,
    /// Rings to send and to receive.
    pub rings: (u16, u16),
    /// The same of the host's stack.
    pub host_rings: (u16, u16),
    /// Slots of each.
    pub slots: (u32, u32),
}

/// What a memory is made of: number and bytes of its interfaces, rings and buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pools {
    /// Bytes of all.
    pub mem_size: u64,
    /// Number of the memory.
    pub mem_id: u16,
    /// Of `netmap_if`s.
    pub interfaces: (u32, u32),
    /// Of rings.
    pub rings: (u32, u32),
    /// Of buffers.
    pub buffers: (u32, u32),
}

/// A netmap to administrate.
pub struct Admin {
    module: Box<dyn Module>,
}

impl Default for Admin {
    /// The kernel's module.
    fn default() -> Self {
        Self { module: Box::new(Kernel) }
    }
}

impl From<Provider> for Admin {
    fn from(provider: Provider) -> Self {
        Self { module: Box::new(provider) }
    }
}

pub use super::manners::Finding;

impl Admin {
    pub(crate) fn handle(&self) -> io::Result<Box<dyn Handle>> {
        self.module.open()
    }

    fn ask<R: control::Request>(&self, name: &str, body: &mut R::Body) -> io::Result<String> {
        control::ask::<R>(&*self.module.open()?, name, body, &mut Options::default())
    }

    /// The interface that the module speaks: `14 and 15`, or the version of an old one.
    ///
    /// # Errors
    /// No module, or none that we know.
    pub fn version(&self) -> io::Result<String> {
        Ok(match control::dialect(&*self.module.open()?)? {
            Dialect::Today => "14 and 15".into(),
            Dialect::Legacy(version) => version.to_string(),
        })
    }

    /// Sizes of a port.
    ///
    /// # Errors
    /// ENXIO: there is none of that name.
    pub fn port(&self, name: &str) -> io::Result<PortSizes> {
        let handle = self.module.open()?;
        let dialect = control::dialect(&*handle)?;
        let PortInfo {
            mem_size,
            tx_slots,
            rx_slots,
            tx_rings,
            rx_rings,
            host_tx_rings,
            host_rx_rings,
            mem_id,
            ..
        } = control::port_info(&*handle, dialect, name)?;
        Ok(PortSizes {
            mem_size,
            mem_id,
            rings: (tx_rings, rx_rings),
            host_rings: (host_tx_rings, host_rx_rings),
            slots: (tx_slots, rx_slots),
        })
    }

    /// What the memory of a port is made of.
    ///
    /// # Errors
    /// ENXIO: there is no such port.
    pub fn pools(&self, name: &str, mem_id: u16) -> io::Result<Pools> {
        let mut body = PoolsInfo { mem_id, ..PoolsInfo::default() };
        self.ask::<control::GetPools>(name, &mut body)?;
        Ok(Pools {
            mem_size: body.mem_size,
            mem_id: body.mem_id,
            interfaces: (body.if_total, body.if_size),
            rings: (body.ring_total, body.ring_size),
            buffers: (body.buf_total, body.buf_size),
        })
    }

    /// The ports of all switches.
    ///
    /// # Errors
    /// The module is built without VALE.
    pub fn vale_ports(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        let mut body = ValeList::default();
        // One request for each; ENOENT behind the last. A bound, should the answer never come.
        while names.len() < 4096 {
            match self.ask::<control::ListVale>("", &mut body) {
                Ok(name) => names.push(name),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
                Err(error) => return Err(error),
            }
            body.port_index += 1;
        }
        Ok(names)
    }

    /// Makes a port of VALE that outlives its users, such as `v0`, to be put on a switch as `vale0:v0`.
    ///
    /// # Errors
    /// EEXIST, or the sizes are not allowed.
    pub fn new_vale_interface(&self, name: &str, rings: u16, slots: u32) -> io::Result<()> {
        let mut body = ValeNewif {
            tx_slots: slots,
            rx_slots: slots,
            tx_rings: rings,
            rx_rings: rings,
            ..ValeNewif::default()
        };
        self.ask::<control::NewValeInterface>(name, &mut body).map(drop)
    }

    /// Ends what [`Self::new_vale_interface`] made.
    ///
    /// # Errors
    /// ENXIO: there is none of that name.
    pub fn delete_vale_interface(&self, name: &str) -> io::Result<()> {
        control::delete_vale_interface(&*self.module.open()?, name)
    }

    /// Puts an interface on a switch (`vale0:eth0`), with the host's stack if `host`. Its port's number.
    ///
    /// # Errors
    /// ENXIO, EBUSY.
    pub fn attach(&self, name: &str, host: bool) -> io::Result<u32> {
        let mode = if host { Mode::NicAndHost } else { Mode::AllNic };
        let register = Register { mode: mode as u32, ..Register::default() };
        let mut body = ValeAttach { register, ..ValeAttach::default() };
        self.ask::<control::AttachToVale>(name, &mut body)?;
        Ok(body.port_index)
    }

    /// Takes it off again.
    ///
    /// # Errors
    /// ENXIO, EBUSY.
    pub fn detach(&self, name: &str) -> io::Result<()> {
        self.ask::<control::DetachFromVale>(name, &mut ValeDetach::default()).map(drop)
    }

    /// Lets threads of the kernel poll an interface that is on a switch, from core `first` on, one for each ring; or
    /// ends that.
    ///
    /// # Errors
    /// ENXIO, EINVAL.
    pub fn poll_in_kernel(&self, name: &str, cores: Option<(u32, u32)>) -> io::Result<()> {
        // Several threads; one is mode 1.
        let of = |(first_cpu, cpus): (u32, u32)| ValePolling {
            mode: if cpus > 1 { 2 } else { 1 },
            first_cpu,
            cpus,
            pad: 0,
        };
        match cores {
            Some(cores) => self.ask::<control::StartPolling>(name, &mut of(cores)).map(drop),
            None => self.ask::<control::StopPolling>(name, &mut of((0, 1))).map(drop),
        }
    }

    /// Bytes of virtio-net header in front of a port's frames: 0, 10 or 12.
    ///
    /// # Errors
    /// ENXIO: there is no such port.
    pub fn header_len(&self, name: &str) -> io::Result<u32> {
        let mut body = PortHdr::default();
        self.ask::<control::GetPortHeader>(name, &mut body)?;
        Ok(body.header_len)
    }

    /// Sets it. The port has to be open, and one of VALE.
    ///
    /// # Errors
    /// ENXIO, EINVAL.
    pub fn set_header_len(&self, name: &str, header_len: u32) -> io::Result<()> {
        self.ask::<control::SetPortHeader>(name, &mut PortHdr { header_len, pad: 0 }).map(drop)
    }

    /// Binds a port whose rings the kernel syncs in a loop, so that nobody else makes a call for it.
    ///
    /// # Errors
    /// As a registration; EOPNOTSUPP: the module is built without it.
    pub fn looped(&self, name: &str) -> io::Result<Looped> {
        let handle = self.module.open()?;
        let wanted = Register { mode: Mode::AllNic as u32, flags: flag::EXCLUSIVE, ..Register::default() };
        let reply = control::register(&*handle, Dialect::Today, name, &wanted, &mut Options::default())?;
        let rings = usize::from(reply.tx_rings) + usize::from(reply.rx_rings);
        let mut csb = Csb {
            to_kernel: (0..rings).map(|_| CsbToKernel::default()).collect(),
            to_user: (0..rings).map(|_| CsbToUser::default()).collect(),
        };
        let option = OptCsb {
            to_kernel: csb.to_kernel.as_mut_ptr().addr() as u64,
            to_user: csb.to_user.as_mut_ptr().addr() as u64,
            ..OptCsb::default()
        };
        control::enable_csb(&*handle, option)?;
        Ok(Looped(Arc::new(Loop { handle, _csb: csb })))
    }
}

/// The rings' words where they stand outside the rings.
#[derive(Debug)]
struct Csb {
    to_kernel: Vec<CsbToKernel>,
    to_user: Vec<CsbToUser>,
}

#[derive(Debug)]
struct Loop {
    // Closed first: the kernel uses the words as long as the handle is open.
    handle: Box<dyn Handle>,
    _csb: Csb,
}

/// A port with a loop of the kernel's.
#[derive(Debug)]
pub struct Looped(Arc<Loop>);

impl Looped {
    /// Is the loop, until [`LoopStopper::stop`]: call it on a thread of its own. `sleep_us`: how long it sleeps when there is
    /// nothing to do.
    ///
    /// # Errors
    /// The module refuses.
    pub fn run(&self, sleep_us: u32) -> io::Result<()> {
        let mut body = KloopStart { sleep_us, pad: 0 };
        control::ask::<control::StartLoop>(&*self.0.handle, "", &mut body, &mut Options::default()).map(drop)
    }

    /// Who ends it.
    #[must_use]
    pub fn stopper(&self) -> LoopStopper {
        LoopStopper(self.0.clone())
    }
}

/// Ends the loop of a [`Looped`].
#[derive(Debug)]
pub struct LoopStopper(Arc<Loop>);

impl LoopStopper {
    /// Waits until it has ended.
    ///
    /// # Errors
    /// None runs.
    pub fn stop(&self) -> io::Result<()> {
        control::stop_loop(&*self.0.handle)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::netmap::region::{Region, Side};
    use crate::provider::Shape;
    use crate::{OpenOptions, RxRing, TxRing};

    #[track_caller]
    fn until(what: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(20), "{what}");
            std::thread::yield_now();
        }
    }

    /// Nobody makes a call for the port: what its words say outside of its rings goes out, comes in, and is given back.
    #[test]
    fn frames_pass_by_the_loop() {
        let provider = Provider::new(Shape::default()).unwrap();
        let admin = Admin::from(provider.clone());
        let mut peer = provider.open("vale0:p", &OpenOptions::default()).unwrap().ports.remove(0);
        let looped = admin.looped("vale0:k").unwrap();
        let bytes = usize::try_from(admin.port("vale0:k").unwrap().mem_size).unwrap();
        let memory = Arc::new(looped.0.handle.map(bytes).unwrap());
        // The first interface of its memory.
        let region = Region::new(memory, 0).unwrap();
        let [mut tx, mut rx] = [true, false].map(|tx| region.ring(tx, Side::Nic, 0).unwrap());
        let Csb { to_kernel, to_user } = &looped.0._csb;
        let (stopper, this) = (looped.stopper(), Looped(looped.0.clone()));
        let thread = std::thread::spawn(move || this.run(100));
        let frame = |n: u8| [&[0xff; 6][..], &[2, 0, 0, 0, 0, n], &[0x88, 0xb5, n]].concat();
        for n in 1..=3_u8 {
            assert!(TxRing::new(&mut tx.slots).push(&frame(n)));
            to_kernel[0].cur.store(n.into(), Ordering::Release);
            to_kernel[0].head.store(n.into(), Ordering::Release);
            until("the loop sends it", || to_user[0].hwcur.load(Ordering::Acquire) == u32::from(n));
            until("it comes", || peer.rx_sync().unwrap() == 1);
            assert_eq!(peer.rx().next().unwrap().bytes(), frame(n));
            assert!(peer.tx().push(&frame(n + 100)));
            peer.tx_sync().unwrap();
            until("the loop shows what came", || to_user[1].hwtail.load(Ordering::Acquire) == u32::from(n));
            rx.slots.tail = n.into();
            assert_eq!(RxRing::new(&mut rx.slots).next().unwrap().bytes(), frame(n + 100));
            to_kernel[1].cur.store(n.into(), Ordering::Release);
            to_kernel[1].head.store(n.into(), Ordering::Release);
            until("the loop takes it back", || to_user[1].hwcur.load(Ordering::Acquire) == u32::from(n));
        }
        stopper.stop().unwrap();
        thread.join().unwrap().unwrap();
        assert_eq!(provider.violations(), Vec::<String>::new());
    }
}
