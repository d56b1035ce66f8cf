//! An engine on a NIC in netmap mode, where there is neither: the provider of netmap-io stands for the module and the
//! NIC, TAP devices for what is on both sides of it.
//!
//! ```text
//!  kernel of this host ── TAP nm0 ──┐            ┌── TAP wire0 ── kernel of another host
//!                          host rings            NIC rings
//!                                   └─ provider ─┘
//!                                         │ netmap:nm0
//!                                      engine ── programs
//! ```
//!
//! The NIC goes down and up with the kernel's device, once all of its ports know (`told`). While the file `NETMAP_HOST_OUT` is there, the NIC is pulled out.
//!
//! With `NETMAP_HOST_SWITCH=vale0:wire` there is no NIC, but a switch with that port, where the TAP device at the cable's end is.
//!
//! With `NETMAP_HOST_SHARED=name` there is no engine, but what `utcp switch netmap:nm0 --name name` would run.
//!
//! With `NETMAP_HOST_PATIENT=1` frames for a full ring of the NIC wait in front of it (in the TAP device's queue), up to five seconds, and the
//! kernel takes as many as come.
//!
//! Takes the variables of `utcp engine`, and `NETMAP_HOST_CABLE` (the TAP device at the cable's end), `NETMAP_HOST_RINGS`
//! (pairs of the NIC). Frames come to a ring by their last byte, so that a flow comes to all of them.

mod told;

use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use utcp_engine::control::{Surroundings, run_in};
use utcp_engine::{Config, switch};
use utcp_netmap_io::provider::{NicShape, Provider, Shape, Side};
use utcp_netmap_io::{Device, OpenOptions, Port, PortError};

/// Name of the NIC, and of the kernel's device.
const NIC: &str = "nm0";
/// The NIC was pulled out, and nobody has opened it since. Its interface went with it and came back without addresses: the kernel has no
/// use for what comes by it. (Here the kernel's device is there all the time.)
static BARE: AtomicBool = AtomicBool::new(false);
/// Frames that may wait for the kernel, if none is to be lost.
const ROOM: usize = 1 << 17;
/// Between two looks.
const PAUSE: Duration = Duration::from_micros(200);

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("utcp-netmap-host: {error}");
            ExitCode::FAILURE
        }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn serve() -> Result<(), String> {
    let cable =
        variable("NETMAP_HOST_CABLE").ok_or("NETMAP_HOST_CABLE names the device at the cable's end")?;
    let rings = variable("NETMAP_HOST_RINGS").and_then(|text| text.parse().ok()).unwrap_or(1);
    let provider =
        Provider::new(Shape { buffers: 16_384, ..Shape::default() }).map_err(|error| error.to_string())?;
    if let Some(port) = variable("NETMAP_HOST_SWITCH") {
        return serve_with(&provider, &mut || join_switch(&provider, &port, &cable));
    }
    let shape = NicShape { rings, slots: 512, ..NicShape::default() };
    provider.add_nic(NIC, shape).map_err(|error| error.to_string())?;
    let patient = variable("NETMAP_HOST_PATIENT").is_some();
    if patient {
        provider.set_room(NIC, Side::Host, ROOM);
    }
    for (name, side) in [(NIC, Side::Host), (cable.as_str(), Side::Nic)] {
        let mut tap = tap(name).map_err(|error| error.to_string())?;
        let (provider, rings) = (provider.clone(), if side == Side::Nic { rings } else { 1 });
        let patience = Duration::from_secs(if patient { 5 } else { 0 });
        std::thread::spawn(move || {
            while let Ok(moved) = pump(&provider, side, rings, &mut *tap, patience) {
                if !moved {
                    std::thread::sleep(PAUSE);
                }
            }
        });
    }
    if let Some(file) = variable("NETMAP_HOST_OUT") {
        let provider = provider.clone();
        std::thread::spawn(move || watch(&provider, shape, std::path::Path::new(&file)));
    }
    match variable("NETMAP_HOST_SHARED") {
        Some(name) => share(&provider, &name),
        None => serve_with(&provider, &mut || Ok(())),
    }
}

/// A switch on the NIC, until it is killed.
fn share(provider: &Provider, name: &str) -> Result<(), String> {
    let words = |error: PortError| error.to_string();
    let options = OpenOptions { beside_kernel: true, ..OpenOptions::default() };
    let device = provider.open(&format!("netmap:{NIC}"), &options).map_err(words)?;
    let mut switch = switch::Switch::new(told::told(device, provider, NIC), name).map_err(words)?;
    println!("is shared");
    let (stop, _never) = std::io::pipe().map_err(|error| error.to_string())?;
    switch.run(stop.as_fd()).map_err(words)
}

/// An engine whose devices are the provider's.
fn serve_with(provider: &Provider, prepare: &mut dyn FnMut() -> Result<(), PortError>) -> Result<(), String> {
    prepare().map_err(|error| error.to_string())?;
    let provider = provider.clone();
    let config = Config::from_variables(variable).map_err(|error| error.to_string())?;
    let open = move |device: &str, options: &OpenOptions| -> Result<Device, PortError> {
        let opened = provider.open(device, options)?;
        Ok(if device.starts_with("netmap:") { told::told(opened, &provider, NIC) } else { opened })
    };
    run_in(config, Surroundings { open: Box::new(open), ..Surroundings::default() })
        .map_err(|error| error.to_string())
}

/// Frames pass between a port of a switch and a TAP device.
fn join_switch(provider: &Provider, port: &str, cable: &str) -> Result<(), PortError> {
    let mut port = provider.open(port, &OpenOptions::default())?.ports.swap_remove(0);
    let mut tap = tap(cable)?;
    std::thread::spawn(move || {
        while let Ok(moved) = relay(&mut *tap, &mut *port).and_then(|a| Ok(a | relay(&mut *port, &mut *tap)?))
        {
            if !moved {
                std::thread::sleep(PAUSE);
            }
        }
    });
    Ok(())
}

/// Moves what waits in one port to the other; whether there was anything.
fn relay(from: &mut dyn Port, to: &mut dyn Port) -> Result<bool, PortError> {
    let moved = from.rx_sync()? > 0;
    for frame in from.rx() {
        while !to.tx().push(&frame) {
            to.tx_sync()?;
        }
    }
    to.tx_sync()?;
    Ok(moved)
}

/// Pulls the NIC out and puts it back.
fn watch(provider: &Provider, shape: NicShape, file: &std::path::Path) {
    let mut present = true;
    loop {
        if file.exists() == present {
            present = !present;
            if present {
                let _ = provider.add_nic(NIC, shape);
            } else {
                BARE.store(true, Ordering::Relaxed);
                provider.remove(NIC);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The device as the kernel has it: checksums are whole, segments short.
fn tap(name: &str) -> Result<Box<dyn Port>, PortError> {
    let options = OpenOptions { vnet_header: false, ..OpenOptions::default() };
    Ok(utcp_netmap_io::open(&format!("tap:{name}"), &options)?.ports.swap_remove(0))
}

/// Moves frames between a TAP device and one side of the NIC; whether there were any.
fn pump(
    provider: &Provider,
    side: Side,
    rings: u16,
    tap: &mut dyn Port,
    patience: Duration,
) -> Result<bool, PortError> {
    let mut moved = tap.rx_sync()? > 0;
    if side == Side::Nic && BARE.load(Ordering::Relaxed) {
        BARE.store(!provider.is_read(NIC), Ordering::Relaxed);
        tap.rx().for_each(drop);
    }
    for frame in tap.rx() {
        let ring = u16::from(frame.last().copied().unwrap_or(0)) % rings;
        let until = Instant::now() + patience;
        // A full ring drops, as a NIC does.
        while !provider.send(NIC, side, ring, frame.bytes()) && Instant::now() < until {
            std::thread::sleep(PAUSE);
        }
    }
    for (_, frame) in provider.receive(NIC, side) {
        moved = true;
        while !tap.tx().push(&frame) {
            tap.tx_sync()?;
        }
    }
    tap.tx_sync()?;
    Ok(moved)
}
