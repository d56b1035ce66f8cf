//! Memory that others write: what is in it may be an error, and no more.

use super::*;
use crate::SlotFlags;
use crate::netmap::abi::{Mode, NIOCRXSYNC, NIOCTXSYNC, Register, flag};
use crate::ring::Buffers;

/// Of the only interface, and of its rings: see the provider's memory.
const INTERFACE: usize = 0;
const TX_RING: usize = 64 << 10;

/// What a word of the region does to whoever opens the port.
fn opened_with(at: usize, word: u32) -> Result<(), String> {
    let provider = provider(Shape::default());
    provider.add_nic("nma", ONE).unwrap();
    // The interface is written at registration: an extra one holds the place, and the next is as this was.
    let spoil = Spoil { provider: provider.clone(), at, word };
    let spec = "netmap:nma".parse().unwrap();
    open::open(&spoil, &spec, &OpenOptions::default()).map(drop).map_err(|error| error.to_string())
}

/// The provider, but a word of its memory changes before it is mapped.
struct Spoil {
    provider: Provider,
    at: usize,
    word: u32,
}

#[derive(Debug)]
struct SpoiltHandle {
    inner: Box<dyn sys::Handle>,
    provider: Provider,
    at: usize,
    word: u32,
}

impl Module for Spoil {
    fn open(&self) -> io::Result<Box<dyn sys::Handle>> {
        let (inner, provider) = (Module::open(&self.provider)?, self.provider.clone());
        Ok(Box::new(SpoiltHandle { inner, provider, at: self.at, word: self.word }))
    }
}

impl sys::Handle for SpoiltHandle {
    unsafe fn ioctl(&self, request: u64, argument: usize) -> io::Result<()> {
        // SAFETY: by the caller's contract.
        unsafe { self.inner.ioctl(request, argument) }
    }
    fn map(&self, bytes: usize) -> io::Result<crate::sys::Mapping> {
        self.provider.scribble(self.at, self.word);
        self.inner.map(bytes)
    }
    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.inner.fd()
    }
}

#[test]
fn a_region_that_makes_no_sense_is_an_error() {
    for (at, word, want) in [
        (INTERFACE + 24, u32::MAX, "the table of rings is outside"),
        (INTERFACE + 24, 0, "the ring has no memory"),
        (INTERFACE + 24, 50, "the ring has no memory"),
        (INTERFACE + 56, 0, "the ring has no memory"),
        (INTERFACE + 56, 3, "a ring is outside the region"),
        (INTERFACE + 60, 0x7fff_ffff, "a ring is outside the region"),
        (INTERFACE + 60, 0x8000_0000, "a ring is outside the region"),
        // Not where the published structure may stand: nothing depends on that.
        (INTERFACE + 56, TX_RING as u32 + 8, "a ring has the other direction"),
        (INTERFACE + 56, TX_RING as u32 + 64, "a ring has the other direction"),
        (TX_RING + 4, 0x7fff_ffff, "a ring's buffers are outside"),
        (TX_RING + 4, 0xffff_0000, "a ring's buffers are outside"),
        (TX_RING + 8, 0, "a ring's slots are outside"),
        (TX_RING + 8, 1, "a ring's slots are outside"),
        (TX_RING + 8, 1 << 20, "a ring's slots are outside"),
        (TX_RING + 8, u32::MAX, "a ring's slots are outside"),
        (TX_RING + 12, 0, "buffers have an odd size"),
        (TX_RING + 12, 63, "buffers have an odd size"),
        (TX_RING + 12, u32::MAX, "buffers have an odd size"),
        (TX_RING + 16, 0, "a ring has the other direction"),
    ] {
        let error = opened_with(at, word).expect_err("it opened");
        assert!(error.contains(want), "word {at} = {word:#x}: {error}");
    }
    // Indices are the other side's at any time: nonsense is put up with.
    for at in [TX_RING + 20, TX_RING + 24, TX_RING + 28] {
        assert_eq!(opened_with(at, u32::MAX), Ok(()));
    }
}

/// An offset so large that it fits no word together with a frame's length: such a slot is skipped, and what is behind its buffer not read.
#[test]
fn an_offset_that_goes_round_leads_nowhere() {
    const RX_RING: usize = TX_RING + 2 * 4096;
    const MASK: usize = 56;
    const SLOT_PTR: usize = 256 + 8;
    let provider = provider(Shape::default());
    provider.add_nic("nma", ONE).unwrap();
    let spoil = Spoil { provider: provider.clone(), at: RX_RING + MASK, word: u32::MAX };
    let spec = "netmap:nma".parse().unwrap();
    let mut port = open::open(&spoil, &spec, &OpenOptions::default()).unwrap().ports.remove(0);
    let [good, wrapping, outside] = [64, u32::MAX - 15, 2048 - 59];
    for (slot, offset) in (0..).zip([good, wrapping, outside, good]) {
        provider.scribble(RX_RING + SLOT_PTR + slot * 16, offset);
        assert!(provider.send("nma", Side::Nic, 0, &[slot as u8; 60]));
    }
    port.rx_sync().unwrap();
    assert_eq!(port.rx().map(|frame| frame.len()).collect::<Vec<_>>(), [60, 60]);
    assert_eq!(port.counters().rx_bad_slot, 2);
}

/// What somebody writes into the region just before a request, once.
type Meddling = std::sync::Arc<std::sync::Mutex<Option<(u64, usize, u32)>>>;

/// The provider, and somebody who meddles.
struct Meddler(Provider, Meddling);

#[derive(Debug)]
struct MeddledHandle {
    inner: Box<dyn sys::Handle>,
    provider: Provider,
    meddling: Meddling,
}

impl Module for Meddler {
    fn open(&self) -> io::Result<Box<dyn sys::Handle>> {
        let (inner, provider) = (Module::open(&self.0)?, self.0.clone());
        Ok(Box::new(MeddledHandle { inner, provider, meddling: self.1.clone() }))
    }
}

impl sys::Handle for MeddledHandle {
    unsafe fn ioctl(&self, request: u64, argument: usize) -> io::Result<()> {
        let mut meddling = self.meddling.lock().unwrap();
        if let Some((_, at, word)) = meddling.take_if(|(when, ..)| *when == request) {
            self.provider.scribble(at, word);
        }
        // SAFETY: by the caller's contract.
        unsafe { self.inner.ioctl(request, argument) }
    }
    fn map(&self, bytes: usize) -> io::Result<crate::sys::Mapping> {
        self.inner.map(bytes)
    }
    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.inner.fd()
    }
}

/// Our head is spoilt between our word and the sync: the module sets it back, which is counted, and frames pass again.
#[test]
fn a_ring_that_was_set_back_is_counted_and_goes_on() {
    const RX_RING: usize = TX_RING + 2 * 4096;
    const HEAD: usize = 20;
    let provider = provider(Shape::default());
    provider.add_nic("nma", ONE).unwrap();
    let meddling = Meddling::default();
    let meddler = Meddler(provider.clone(), meddling.clone());
    let spec = "netmap:nma".parse().unwrap();
    let mut port = open::open(&meddler, &spec, &OpenOptions::default()).unwrap().ports.remove(0);
    let meddle = |request, at, word| *meddling.lock().unwrap() = Some((request, at, word));
    for round in 1..=3_u8 {
        meddle(NIOCTXSYNC, TX_RING + HEAD, 1000);
        assert!(port.tx().push(b"lost with its head"));
        port.tx_sync().unwrap();
        assert_eq!(port.counters().ring_resets, u64::from(round));
        assert!(port.tx().push(&[round; 60]) && port.tx_sync().is_ok());
        assert_eq!(provider.receive("nma", Side::Nic), [(0, vec![round; 60])]);
    }
    assert!(provider.send("nma", Side::Nic, 0, b"seen twice"));
    assert_eq!(port.rx_sync().unwrap(), 1);
    assert!(port.rx().map(|frame| frame.to_vec()).eq([b"seen twice"]));
    // What the module thinks was not given back it shows again.
    meddle(NIOCRXSYNC, RX_RING + HEAD, u32::MAX);
    assert_eq!((port.rx_sync().unwrap(), port.counters().ring_resets), (1, 4));
    assert!(port.rx().map(|frame| frame.to_vec()).eq([b"seen twice"]));
    assert_eq!(port.rx_sync().unwrap(), 0);
    assert!(provider.send("nma", Side::Nic, 0, b"and once"));
    assert_eq!(port.rx_sync().unwrap(), 1);
    assert!(port.rx().map(|frame| frame.to_vec()).eq([b"and once"]));
    assert_eq!((port.counters().ring_resets, *meddling.lock().unwrap()), (4, None));
}

/// The chain of extra buffers stands in memory of others: it ends where it leads nowhere, where it goes round, and where there were no more.
#[test]
fn a_chain_of_buffers_that_makes_no_sense_ends() {
    let chain = |spoil: &dyn Fn(&region::Region, Buffers), granted: u32| {
        let provider = provider(Shape::default());
        provider.add_nic("nma", ONE).unwrap();
        let handle = Module::open(&provider).unwrap();
        let flags = flag::NO_TX_POLL;
        let wanted = Register { mode: Mode::AllNic as u32, flags, extra_bufs: 4, ..Register::default() };
        let today = control::Dialect::Today;
        let reply =
            control::register(&*handle, today, "nma", &wanted, &mut control::Options::default()).unwrap();
        let memory = std::sync::Arc::new(handle.map(usize::try_from(reply.mem_size).unwrap()).unwrap());
        let look = || region::Region::new(memory.clone(), usize::try_from(reply.offset).unwrap()).unwrap();
        let region = look();
        let buffers = region.ring(true, region::Side::Nic, 0).unwrap().slots.buffers();
        assert_eq!(reply.extra_bufs, 4);
        spoil(&region, buffers);
        extra::ExtraBuffers::new(&look(), buffers, granted).count()
    };
    let second = |region: &region::Region, buffers: Buffers| buffers.link(region.bufs_head()).unwrap();
    assert_eq!(chain(&|_, _| (), 4), 4);
    assert_eq!(chain(&|_, _| (), 3), 3);
    assert_eq!(chain(&|_, _| (), 1000), 4);
    assert_eq!(chain(&|region, _| region.set_bufs_head(u32::MAX), 4), 0);
    assert_eq!(chain(&|region, _| region.set_bufs_head(1), 4), 0, "the module's own");
    assert_eq!(chain(&|region, buffers| buffers.set_link(region.bufs_head(), 1 << 30), 4), 1);
    assert_eq!(chain(&|region, buffers| buffers.set_link(region.bufs_head(), region.bufs_head()), 1000), 1);
    let round = |region: &region::Region, buffers: Buffers| {
        buffers.set_link(second(region, buffers), region.bufs_head());
    };
    assert_eq!(chain(&round, 1000), 2);
}

/// Words of interface and rings change under a port that is in use; nothing but errors and lost frames may come of it.
#[test]
fn scribbling_in_the_region_makes_no_port_panic() {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..30 {
        let provider = provider(Shape { buffers: 1200, ..Shape::default() });
        provider.add_nic("nma", NicShape { slots: 8, ..ONE }).unwrap();
        let options = OpenOptions { beside_kernel: round % 2 == 0, ..OpenOptions::default() };
        let mut port = provider.open("netmap:nma", &options).unwrap().ports.remove(0);
        for _ in 0..200 {
            provider.send("nma", Side::Nic, 0, &[1; 60]);
            provider.send("nma", Side::Host, 0, &[2; 60]);
            // Four rings of a page each, of which the header and eight slots count.
            let ring = TX_RING + (random() % 4) as usize * 4096;
            let at = ring + (random() % 96) as usize * 4 + if random() % 2 == 0 { 0 } else { 16 };
            let word = match random() % 4 {
                0 => u32::MAX,
                1 => (random() % 16) as u32,
                2 => 0,
                _ => random() as u32,
            };
            provider.scribble(at, word);
            let _ = port.rx_sync();
            let (mut rx, mut tx) = port.rings();
            let _ = rx.peek().map(|frame| frame.len());
            rx.forward(&mut tx);
            rx.for_each(|frame| assert!(frame.len() <= 65_535));
            tx.push(&[3; 60]);
            let _ = (port.tx_sync(), port.arm(), port.counters(), port.resync_in());
            provider.receive("nma", Side::Nic);
            provider.receive("nma", Side::Host);
        }
    }
}

/// The shortest rings that there are: one slot is always the module's.
#[test]
fn rings_of_a_few_slots_carry_everything() {
    for slots in [2, 3, 4] {
        for driver in [Driver::Native, Driver::Emulated] {
            let provider = provider(Shape::default());
            for nic in ["nma", "nmb"] {
                provider.add_nic(nic, NicShape { slots, driver, ..ONE }).unwrap();
            }
            provider.join("nma", "nmb");
            let [mut a, mut b] = ["netmap:nma", "netmap:nmb"].map(|name| open_one(&provider, name));
            let (mut sent, mut seen) = (0_u32, 0_u32);
            let mut rounds = 0;
            while seen < 500 {
                if sent < 500 && a.tx().push(&[&[9; 60][..], &sent.to_be_bytes()].concat()) {
                    sent += 1;
                }
                a.tx_sync().unwrap();
                b.rx_sync().unwrap();
                for frame in b.rx() {
                    assert_eq!(frame[60..], seen.to_be_bytes());
                    seen += 1;
                }
                rounds += 1;
                assert!(
                    rounds < 5000,
                    "{slots} slots, {driver:?}: {seen} of {sent} frames in {rounds} rounds"
                );
            }
            drop((a, b));
            assert_eq!((provider.violations(), provider.check_buffers()), (vec![], Ok(())));
        }
    }
}

/// Ports of a switch whose peers send what makes no sense: nothing but lost frames comes of it.
#[test]
fn a_switch_full_of_nonsense_is_put_up_with() {
    let provider = provider(Shape::default());
    let options = OpenOptions { vnet_header: true, ..OpenOptions::default() };
    let mut victim = provider.open("vale0:v@vnet=12", &options).unwrap().ports.remove(0);
    let mut plain = open_one(&provider, "vale0:p@conf:slots=128");
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..3000_u32 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let len = (state >> 33) as usize % 70;
        let more = if state >> 60 < 11 { SlotFlags::MORE_FRAG } else { 0 };
        let mut tx = plain.tx();
        if let Some(mut slot) = tx.slot() {
            slot[..len].fill((state >> 20) as u8);
            slot.commit_flags(len, more);
        }
        if round % 7 == 0 {
            plain.tx_sync().unwrap();
        }
        let before = victim.counters().rx_dropped;
        victim.rx_sync().unwrap();
        for frame in victim.rx() {
            assert!(frame.len() >= 10 && frame.len() <= 65_535, "{}", frame.len());
        }
        assert!(victim.counters().rx_dropped >= before);
    }
    assert!(plain.tx_sync().is_ok() && victim.arm().is_ok());
}
