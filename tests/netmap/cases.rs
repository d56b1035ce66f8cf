//! What is asked of netmap alone, besides what every port must do: names and options, the old interface, frames of several
//! slots, one ring at a time, and how the module answers at all.

use std::time::{Duration, Instant};

use utcp_netmap_io::admin::Admin;
use utcp_netmap_io::provider::{NicShape, Provider, Shape, Side};
use utcp_netmap_io::{Device, OpenOptions, Port, PortError, Proto, SlotFlags, Tuple};

use crate::{ETHERTYPE, MODULE, SWITCH, Tally, check, joined, open};

/// Opens a device of the module's or the provider's.
type Opener<'o> = &'o dyn Fn(&str, &OpenOptions) -> Result<Device, PortError>;

/// How long a frame may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Everything over the provider: what is wrong here is wrong in this program, and not in a module.
pub fn over_the_provider(tally: &mut Tally) {
    let provider = match Provider::new(Shape { buffers: 32_768, ..Shape::default() }) {
        Ok(provider) => provider,
        Err(error) => return tally.failed("the provider of our own", &error.to_string()),
    };
    let shape = NicShape { rings: 2, slots: 1024, ..NicShape::default() };
    for name in ["ut0", "ut1", "ut2"] {
        if let Err(error) = provider.add_nic(name, shape) {
            return tally.failed(&format!("the provider's {name}"), &error.to_string());
        }
    }
    provider.join("ut0", "ut1");
    let from: Opener<'_> = &|device, options| provider.open(device, options);
    match (first(from, "netmap:ut0-1"), first(from, "netmap:ut1-1")) {
        (Ok(a), Ok(b)) => check(tally, a, b, MODULE),
        (Err(error), _) | (_, Err(error)) => tally.failed("the provider's NICs", &error),
    }
    manners(tally, &Admin::from(provider.clone()), "ut2", "the provider");
    tally.result("the provider: what is not ours passes between NIC and kernel", beside(&provider));
    everywhere(tally, from, &Admin::from(provider.clone()), "the provider");
    tally.result("the provider: no buffer is lost or in two places", provider.check_buffers());
}

fn beside(provider: &Provider) -> Result<(), String> {
    let words = |error: utcp_netmap_io::PortError| error.to_string();
    let options = OpenOptions { beside_kernel: true, ..OpenOptions::default() };
    let mut device = provider.open("netmap:ut2-0", &options).map_err(words)?;
    let steering = device.steering.take().ok_or("no steering")?;
    steering.register(Tuple::new([10, 0, 0, 1], 80, Proto::TCP)).map_err(words)?;
    let mut foreign = vec![0xff; 60];
    foreign[12..14].copy_from_slice(&ETHERTYPE);
    let mut ours = vec![0; 60];
    ours[12] = 8;
    (ours[14], ours[23]) = (0x45, 6);
    ours[26..34].copy_from_slice(&[10, 0, 0, 9, 10, 0, 0, 1]);
    ours[37] = 80;
    let port = &mut device.ports[0];
    let mut seen = 0;
    for _ in 0..1000 {
        provider.send("ut2", Side::Nic, 0, &foreign);
        provider.send("ut2", Side::Nic, 0, &ours);
        provider.send("ut2", Side::Host, 0, &foreign);
        port.rx_sync().map_err(words)?;
        seen += port.rx().filter(|frame| frame.bytes() == ours).count();
        port.tx_sync().map_err(words)?;
        provider.receive("ut2", Side::Nic);
        provider.receive("ut2", Side::Host);
    }
    let counters = port.counters();
    match (seen, counters.to_host, counters.from_host > 900) {
        (1000, 1000, true) => Ok(()),
        other => Err(format!("ours, to the kernel, from the kernel: {other:?}")),
    }
}

/// How the module answers.
pub fn manners(tally: &mut Tally, admin: &Admin, name: &str, who: &str) {
    match admin.version() {
        Ok(version) => println!("note  {who}: interface version {version}"),
        Err(error) => return tally.failed(who, &error.to_string()),
    }
    for (fact, found) in admin.manners(name) {
        tally.result(&format!("{who}: {fact}"), found);
    }
}

/// Everything that needs the module and no hardware.
pub fn over_the_module(tally: &mut Tally) {
    let admin = Admin::default();
    manners(tally, &admin, "vale_utcp:m", "the module");
    joined(tally, "vale_utcp:a", "vale_utcp:b", SWITCH);
    joined(tally, "netmap:utcpcheck{1", "netmap:utcpcheck}1", MODULE);
    everywhere(tally, &utcp_netmap_io::open, &admin, "the module");
}

/// What module and provider have to do alike.
fn everywhere(tally: &mut Tally, from: Opener<'_>, admin: &Admin, who: &str) {
    old_interface(tally, from, who);
    let mut tell = |what: &str, found| tally.result(&format!("{who}: {what}"), found);
    let pipe = fragments(from, "netmap:utcpfrag{1", "netmap:utcpfrag}1");
    tell("a pipe: a frame of several slots arrives whole", pipe);
    tell("VALE: a frame of several slots arrives whole", fragments(from, "vale_utcp:f", "vale_utcp:g"));
    tell("@conf: a port of VALE has the slots and rings that it was asked for", conf(from, admin));
    tell("VALE: an interface that outlives its users is made and ended", persistent(admin));
    tell("VALE: the length of a port's virtio-net header is set and told", header(from, admin));
    tell("VALE: a long frame behind a virtio-net header arrives in one piece", long_frames(from));
    tell("VALE: a segment is cut for a port without that header", cut_frames(from));
    tell("the time of a sync is told", timestamps(from));
    tell("a loop of the kernel's starts and stops", looped(admin));
}

/// The same pipe by the interface of old modules.
fn old_interface(tally: &mut Tally, from: Opener<'_>, who: &str) {
    let options = OpenOptions { old_interface: true, ..OpenOptions::default() };
    let opened = |device: &str| from(device, &options).map(|mut opened| opened.ports.swap_remove(0));
    match (opened("netmap:utcpold{2"), opened("netmap:utcpold}2")) {
        (Ok(a), Ok(b)) => check(tally, a, b, MODULE),
        (Err(error), _) | (_, Err(error)) => {
            tally.failed(&format!("{who}: the old interface"), &error.to_string());
        }
    }
}

fn first(from: Opener<'_>, device: &str) -> Result<Box<dyn Port>, String> {
    Ok(from(device, &OpenOptions::default()).map_err(words)?.ports.swap_remove(0))
}

fn words(error: impl Into<utcp_netmap_io::PortError>) -> String {
    error.into().to_string()
}

/// Sends pieces of one frame, and puts together what comes.
fn fragments(from: Opener<'_>, a: &str, b: &str) -> Result<(), String> {
    let (mut a, mut b) = (first(from, a)?, first(from, b)?);
    let mut whole = vec![0xff; 6];
    whole.extend([2, 0, 0, 0, 0, 9]);
    whole.extend(ETHERTYPE);
    whole.extend((0..4000_u32).map(|n| (n % 251) as u8));
    let pieces: Vec<&[u8]> = whole.chunks(1500).collect();
    for (at, piece) in pieces.iter().enumerate() {
        let mut tx = a.tx();
        let mut slot = tx.slot().ok_or("no room for a piece")?;
        slot[..piece.len()].copy_from_slice(piece);
        let more = if at + 1 < pieces.len() { SlotFlags::MORE_FRAG } else { 0 };
        slot.commit_flags(piece.len(), more);
    }
    a.tx_sync().map_err(words)?;
    let mut got = Vec::new();
    let until = Instant::now() + PATIENCE;
    while got.len() < whole.len() {
        b.rx_sync().map_err(words)?;
        for piece in b.rx() {
            got.extend_from_slice(piece.bytes());
        }
        if Instant::now() > until {
            return Err(format!("{} of {} bytes arrived", got.len(), whole.len()));
        }
    }
    if got == whole { Ok(()) } else { Err("the bytes differ".into()) }
}

fn conf(from: Opener<'_>, admin: &Admin) -> Result<(), String> {
    let port = first(from, "vale_utcp:c@conf:slots=512,rings=2")?;
    let sizes = admin.port("vale_utcp:c").map_err(|error| error.to_string())?;
    match (port.caps().rx_slots, port.caps().tx_slots, sizes.rings) {
        (512, 512, (2, 2)) => Ok(()),
        other => Err(format!("rx slots, tx slots and rings are {other:?}")),
    }
}

fn persistent(admin: &Admin) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    admin.new_vale_interface("utcpv", 1, 256).map_err(|error| format!("making it: {error}"))?;
    let attached = admin.attach("vale_utcp:utcpv", false).map_err(|error| format!("attaching it: {error}"));
    let listed =
        admin.vale_ports().map_err(text).map(|names| names.iter().any(|name| name.contains("utcpv")));
    let detached = attached
        .and_then(|_| admin.detach("vale_utcp:utcpv").map_err(|error| format!("detaching it: {error}")));
    let ended = admin.delete_vale_interface("utcpv").map_err(|error| format!("ending it: {error}"));
    detached?;
    ended?;
    if listed? { Ok(()) } else { Err("it is not in the list of ports".into()) }
}

fn header(from: Opener<'_>, admin: &Admin) -> Result<(), String> {
    let _port = first(from, "vale_utcp:h")?;
    let text = |error: std::io::Error| error.to_string();
    for len in [12, 10, 0] {
        admin.set_header_len("vale_utcp:h", len).map_err(text)?;
        let told = admin.header_len("vale_utcp:h").map_err(text)?;
        if told != len {
            return Err(format!("{told} instead of {len}"));
        }
    }
    Ok(())
}

fn open_with_header(from: Opener<'_>, device: &str) -> Result<Box<dyn Port>, String> {
    let options = OpenOptions { vnet_header: true, ..OpenOptions::default() };
    Ok(from(device, &options).map_err(words)?.ports.swap_remove(0))
}

/// What comes within a while, at most `bytes` of it behind the first `skip` of each frame.
fn collect(port: &mut dyn Port, skip: usize, bytes: usize) -> Result<(usize, Vec<u8>), String> {
    let (mut frames, mut got) = (0, Vec::new());
    let until = Instant::now() + PATIENCE;
    while got.len() < bytes {
        port.rx_sync().map_err(words)?;
        for frame in port.rx() {
            frames += 1;
            got.extend_from_slice(frame.bytes().get(skip..).unwrap_or_default());
        }
        if Instant::now() > until {
            return Err(format!("{} of {bytes} bytes came in {frames} frames", got.len()));
        }
    }
    Ok((frames, got))
}

fn long_frames(from: Opener<'_>) -> Result<(), String> {
    for header in [10, 12] {
        let mut a = open_with_header(from, &format!("vale_utcp:v{header}@vnet={header}"))?;
        let mut b = open_with_header(from, &format!("vale_utcp:w{header}@vnet={header}"))?;
        let mut frame = vec![0; 10];
        frame.extend([0xff; 6]);
        frame.extend([2, 0, 0, 0, 0, 9]);
        frame.extend(ETHERTYPE);
        frame.extend((0..30_000_u32).map(|n| (n % 251) as u8));
        if !a.tx().push(&frame) {
            return Err("no room for a long frame".into());
        }
        a.tx_sync().map_err(words)?;
        let (frames, got) = collect(&mut *b, 0, frame.len())?;
        if frames != 1 || got != frame {
            return Err(format!(
                "header of {header}: {frames} frames, {} bytes of {}",
                got.len(),
                frame.len()
            ));
        }
    }
    Ok(())
}

/// A TCP segment of 20 000 bytes, to be cut into frames of an ordinary MTU.
fn cut_frames(from: Opener<'_>) -> Result<(), String> {
    const HEADERS: usize = 54;
    let mut a = open_with_header(from, "vale_utcp:g12@vnet=12")?;
    let mut plain = first(from, "vale_utcp:plain")?;
    let payload: Vec<u8> = (0..20_000_u32).map(|n| (n % 251) as u8).collect();
    // Checksum wanted; TCP over IPv4; headers, size of a piece, where the checksum begins, and where it goes from there.
    let mut frame = vec![1, 1];
    for half in [HEADERS as u16, 1448, 34, 16] {
        frame.extend(half.to_ne_bytes());
    }
    frame.extend([0xff; 6]);
    frame.extend([2, 0, 0, 0, 0, 9, 8, 0, 0x45, 0]);
    frame.extend(((40 + payload.len()) as u16).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 78, 1, 1, 10, 78, 1, 2]);
    frame.extend([0x1b, 0x59, 0x1b, 0x5a, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
    frame.extend(&payload);
    if !a.tx().push(&frame) {
        return Err("no room for a long frame".into());
    }
    a.tx_sync().map_err(words)?;
    let (frames, got) = collect(&mut *plain, HEADERS, payload.len())?;
    if got == payload && frames == payload.len().div_ceil(1514 - HEADERS) {
        Ok(())
    } else {
        Err(format!("{frames} frames, {} bytes of {}", got.len(), payload.len()))
    }
}

fn timestamps(from: Opener<'_>) -> Result<(), String> {
    let options = OpenOptions { timestamps: true, ..OpenOptions::default() };
    let mut opened = from("netmap:utcptime{1", &options).map_err(words)?;
    opened.ports[0].rx_sync().map_err(words)?;
    let told = opened.ports[0].rx_time().ok_or("nothing is told")?;
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    let apart = now.max(told) - now.min(told);
    if apart < Duration::from_secs(2) { Ok(()) } else { Err(format!("it is {apart:?} from now")) }
}

fn looped(admin: &Admin) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let looped = admin.looped("vale_utcp:k").map_err(text)?;
    let stopper = looped.stopper();
    let thread = std::thread::spawn(move || looped.run(1000));
    std::thread::sleep(Duration::from_millis(100));
    stopper.stop().map_err(|error| format!("stopping it: {error}"))?;
    thread.join().map_err(|_| "its thread broke".to_owned())?.map_err(|error| format!("running it: {error}"))
}

/// Every ring pair of a NIC by itself, where there are several.
pub fn ring_by_ring(tally: &mut Tally, device: &str) {
    let Some(interface) =
        device.strip_prefix("netmap:").filter(|name| !name.contains(['-', '^', '*', '{', '}']))
    else {
        return;
    };
    let Ok(sizes) = Admin::default().port(interface) else { return };
    for ring in 0..sizes.rings.0.min(sizes.rings.1) {
        let device = format!("netmap:{interface}-{ring}");
        let opened =
            open(&device).map_err(words).and_then(|mut port| port.rx_sync().map_err(words).map(drop));
        tally.result(&format!("{device} opens alone"), opened);
    }
}
