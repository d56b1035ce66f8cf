//! Memory that others write: what is in it may be an error, and no more.

use super::*;

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
            rx.for_each(|frame| assert!(frame.len() <= 2048));
            tx.push(&[3; 60]);
            let _ = (port.tx_sync(), port.arm(), port.counters(), port.resync_in());
            provider.receive("nma", Side::Nic);
            provider.receive("nma", Side::Host);
        }
    }
}
