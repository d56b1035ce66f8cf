//! What a port's name makes the module hear: every registration, word for word, in today's interface and in the old one.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use super::*;
use crate::netmap::abi::{
    Header, Legacy, NIOCCTRL, NIOCREGIF, Opt, OptExtmem, OptOffsets, Register, flag, kind, option,
};
use crate::sys::Mapping;

/// The provider, and what it was asked.
#[derive(Clone)]
struct Recorder {
    provider: Provider,
    heard: Arc<Mutex<Vec<String>>>,
}

#[derive(Debug)]
struct Recording {
    inner: Box<dyn sys::Handle>,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Module for Recorder {
    fn open(&self) -> io::Result<Box<dyn sys::Handle>> {
        let inner = Module::open(&self.provider)?;
        Ok(Box::new(Recording { inner, heard: self.heard.clone() }))
    }
}

/// The bits of a registration's flags, as letters: those of a port's name, `v` for a virtio-net header, `?` for any other. That
/// waiting must not send is always asked.
fn letters(flags: u64) -> String {
    let known = [
        ('x', flag::EXCLUSIVE),
        ('z', flag::ZCOPY_MON),
        ('t', flag::MONITOR_TX),
        ('r', flag::MONITOR_RX),
        ('R', flag::RX_RINGS_ONLY),
        ('T', flag::TX_RINGS_ONLY),
        ('v', flag::ACCEPT_VNET_HDR),
    ];
    assert_eq!(flags & flag::NO_TX_POLL, flag::NO_TX_POLL);
    let all = known.iter().fold(flag::NO_TX_POLL, |all, (_, bit)| all | bit);
    let rest = if flags & !all == 0 { None } else { Some('?') };
    known.iter().filter(|(_, bit)| flags & bit != 0).map(|(letter, _)| *letter).chain(rest).collect()
}

fn name_of(field: &[u8]) -> String {
    field.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect()
}

/// Today's registration in a line: port, mode, ring, flags, and what else is not as it would be.
///
/// # Safety
/// `argument` is what `NIOCCTRL` takes.
unsafe fn registration(argument: usize) -> Option<String> {
    // SAFETY: the caller's contract, for this and for what it leads to.
    unsafe {
        let header = *std::ptr::with_exposed_provenance::<Header>(argument);
        if header.kind != kind::REGISTER {
            return None;
        }
        let body = *std::ptr::with_exposed_provenance::<Register>(usize::try_from(header.body).unwrap());
        let mut line = format!("{} mode {} ring {}", name_of(&header.name), body.mode, body.ring_id);
        let flags = letters(body.flags);
        if !flags.is_empty() {
            line += &format!(" /{flags}");
        }
        let Register { tx_rings, rx_rings, host_tx_rings, host_rx_rings, tx_slots, rx_slots, .. } = body;
        for (what, value) in [
            ("memory", u32::from(body.mem_id)),
            ("tx rings", tx_rings.into()),
            ("rx rings", rx_rings.into()),
            ("host tx rings", host_tx_rings.into()),
            ("host rx rings", host_rx_rings.into()),
            ("tx slots", tx_slots),
            ("rx slots", rx_slots),
            ("extra", body.extra_bufs),
        ] {
            if value != 0 {
                line += &format!(", {what} {value}");
            }
        }
        let mut at = usize::try_from(header.options).unwrap();
        while at != 0 {
            let Opt { next, kind, .. } = *std::ptr::with_exposed_provenance::<Opt>(at);
            line += &match kind {
                option::OFFSETS => {
                    let asked = *std::ptr::with_exposed_provenance::<OptOffsets>(at);
                    format!(
                        ", offset {} of {}, {} bits",
                        asked.offset_initial, asked.offset_max, asked.offset_bits
                    )
                }
                option::EXTMEM => {
                    let OptExtmem { memory, pools, .. } = *std::ptr::with_exposed_provenance::<OptExtmem>(at);
                    assert!(memory != 0);
                    format!(
                        ", extmem {} bytes, {} buffers of {}",
                        pools.mem_size, pools.buf_total, pools.buf_size
                    )
                }
                other => format!(", option {other}"),
            };
            at = usize::try_from(next).unwrap();
        }
        Some(line)
    }
}

impl sys::Handle for Recording {
    unsafe fn ioctl(&self, request: u64, argument: usize) -> io::Result<()> {
        let line = match request {
            // SAFETY: by the caller's contract.
            NIOCCTRL => unsafe { registration(argument) },
            NIOCREGIF => {
                // SAFETY: by the caller's contract.
                let asked = unsafe { *std::ptr::with_exposed_provenance::<Legacy>(argument) };
                let Legacy { name, version, ring_id, flags, arg1, arg2, arg3, command, .. } = asked;
                assert_eq!((arg1, command), (0, 0));
                let name = name_of(&name);
                Some(format!(
                    "{name} version {version} ring {ring_id:#06x} flags {flags:#x} memory {arg2} extra {arg3}"
                ))
            }
            _ => None,
        };
        self.heard.lock().unwrap().extend(line);
        // SAFETY: by the caller's contract.
        unsafe { self.inner.ioctl(request, argument) }
    }
    fn map(&self, bytes: usize) -> io::Result<Mapping> {
        self.inner.map(bytes)
    }
    fn fd(&self) -> BorrowedFd<'_> {
        self.inner.fd()
    }
}

/// A NIC of three ring pairs and two of the host's, and another one.
fn recorder(legacy: bool) -> Recorder {
    let provider = provider(Shape { legacy, ..Shape::default() });
    provider.add_nic("nma", NicShape { rings: 3, host_rings: 2, ..ONE }).unwrap();
    provider.add_nic("nmb", ONE).unwrap();
    Recorder { provider, heard: Arc::default() }
}

#[track_caller]
fn check(legacy: bool, text: &str, options: &OpenOptions, want: &[&str]) {
    let recorder = recorder(legacy);
    let spec = text.parse().unwrap();
    // Some of these the provider has not: what counts is what it was asked.
    let _ = open::open(&recorder, &spec, options);
    assert_eq!(*recorder.heard.lock().unwrap(), want, "{text}");
}

/// Modes: 1 all of the NIC's, 4 one pair of those, 8 one pair of the host's.
#[test]
fn a_name_asks_for_these_rings() {
    let plain = OpenOptions::default();
    let check = |text: &str, want: &[&str]| check(false, text, &plain, want);
    check("netmap:nma", &["nma mode 4 ring 0", "nma mode 4 ring 1", "nma mode 4 ring 2"]);
    check("netmap:nma-2", &["nma mode 4 ring 2"]);
    check("netmap:nma-2/x", &["nma mode 4 ring 2 /x"]);
    check("netmap:nma-1/R", &["nma mode 4 ring 1 /R"]);
    check("netmap:nma-1/T", &["nma mode 4 ring 1 /T"]);
    check("netmap:nma-1/xT", &["nma mode 4 ring 1 /xT"]);
    // Monitors read: which direction they watch is all that they say, and that they copy nothing.
    check("netmap:nma-1/t", &["nma mode 4 ring 1 /t"]);
    check("netmap:nma-1/r", &["nma mode 4 ring 1 /r"]);
    check("netmap:nma-1/zr", &["nma mode 4 ring 1 /zr"]);
    check("netmap:nma-1/ztr", &["nma mode 4 ring 1 /ztr"]);
    // The host's rings alone: the NIC's are held, so that frames of the kernel come there.
    check("netmap:nma^", &["nma mode 1 ring 0 /T", "nma mode 8 ring 0", "nma mode 8 ring 1"]);
    check("netmap:nma^1", &["nma mode 1 ring 0 /T", "nma mode 8 ring 1"]);
    check("netmap:nma^1/T", &["nma mode 8 ring 1 /T"]);
    check("netmap:nma-0@7", &["nma mode 4 ring 0, memory 7"]);
    check("netmap:nma-0@share=netmap:nmb", &["nma mode 4 ring 0, memory 1"]);
    check("netmap:nma-0@share=netmap:nmb/x", &["nma mode 4 ring 0, memory 1"]);
    check(
        "netmap:nma-0@conf:tx-rings=3,rx-rings=2,host-tx-rings=4,host-rx-rings=5,tx-slots=64,rx-slots=128",
        &[
            "nma mode 4 ring 0, tx rings 3, rx rings 2, host tx rings 4, host rx rings 5, tx slots 64, rx slots 128",
        ],
    );
    check("netmap:nma-0@offset=64", &["nma mode 4 ring 0, offset 64 of 64, 0 bits"]);
    check("netmap:nma-0@offset:initial=16,bits=12", &["nma mode 4 ring 0, offset 16 of 16, 12 bits"]);
    check("netmap:x{1", &["x{1 mode 1 ring 0"]);
    check("netmap:x}ab/x", &["x}ab mode 1 ring 0 /x"]);
    check(
        "netmap:x{1@conf:rings=2",
        &["x{1 mode 4 ring 0, tx rings 2, rx rings 2", "x{1 mode 4 ring 1, tx rings 2, rx rings 2"],
    );
    check("vale0:a", &["vale0:a mode 1 ring 0"]);
    check("vale0:a/R", &["vale0:a mode 1 ring 0 /R"]);
    check("vale0:a@vnet=12", &["vale0:a mode 1 ring 0 /v"]);
    check("vale0:a-1@conf:rings=2", &["vale0:a mode 4 ring 1, tx rings 2, rx rings 2"]);
}

/// The file that the memory is to be is mapped, and its pools are cut as asked.
#[test]
fn memory_of_ours_is_offered() {
    let file = std::env::temp_dir().join(format!("utcp-extmem-{}", std::process::id()));
    std::fs::write(&file, vec![0; 1 << 16]).unwrap();
    let text = format!("netmap:nma-0@extmem:file={},buf-num=20,buf-size=2048", file.display());
    check(
        false,
        &text,
        &OpenOptions::default(),
        &["nma mode 4 ring 0, extmem 65536 bytes, 20 buffers of 2048"],
    );
    std::fs::remove_file(&file).unwrap();
}

/// Beside the kernel: the NIC's rings, then each direction of the host's by itself, with buffers for what has to wait.
#[test]
fn beside_the_kernel_the_hosts_rings_are_asked_for() {
    let beside = OpenOptions { beside_kernel: true, ..OpenOptions::default() };
    check(
        false,
        "netmap:nma-1",
        &beside,
        &["nma mode 4 ring 1", "nma mode 8 ring 0 /T, extra 256", "nma mode 8 ring 0 /R"],
    );
    check(
        true,
        "netmap:nmb",
        &beside,
        &[
            "nmb version 12 ring 0x1000 flags 0x4 memory 0 extra 0",
            "nmb version 12 ring 0x1000 flags 0x4002 memory 0 extra 256",
            "nmb version 12 ring 0x1000 flags 0x2002 memory 0 extra 0",
        ],
    );
}

/// Modes and flags in one word, the ring and how to wait in another, and a pipe's end is a mode.
#[test]
fn an_old_module_hears_its_own_words() {
    let plain = OpenOptions::default();
    let check = |text: &str, want: &[&str]| check(true, text, &plain, want);
    check("netmap:nma-2", &["nma version 12 ring 0x1002 flags 0x4 memory 0 extra 0"]);
    check("netmap:nma-2/x", &["nma version 12 ring 0x1002 flags 0x804 memory 0 extra 0"]);
    check("netmap:nma-1/zt@5", &["nma version 12 ring 0x1001 flags 0x504 memory 5 extra 0"]);
    check(
        "netmap:nma^/R",
        &[
            "nma version 12 ring 0x1000 flags 0x4001 memory 0 extra 0",
            "nma version 12 ring 0x1000 flags 0x2002 memory 0 extra 0",
        ],
    );
    check("netmap:x{3", &["x version 12 ring 0x1003 flags 0x5 memory 0 extra 0"]);
    check("netmap:x}3", &["x version 12 ring 0x1003 flags 0x6 memory 0 extra 0"]);
    check("vale0:a", &["vale0:a version 12 ring 0x1000 flags 0x1 memory 0 extra 0"]);
    // What it has no words for is not asked.
    check("netmap:x{abc", &[]);
    check("netmap:nma-0@offset=16", &[]);
}
