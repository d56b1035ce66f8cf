//! How an engine comes up: name, page, devices, shards, then the control loop.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use utcp_netmap_io::FaultSpec;
use utcp_netmap_io::{OpenOptions, Proto, Tuple};
use utcp_proto::isn::Secret;

use super::listeners::to_std;
use super::{Control, EngineError, Source};
use crate::config::Config;
use crate::host::{HostMirror, HostView};
use crate::life::Life;
use crate::shard::{DevicePort, Inbox, Outbox, Shard, ShardConfig};
use crate::station::{DeviceConfig, Station};
use crate::sys::{self, UnixName};

fn system(doing: &'static str) -> impl Fn(io::Error) -> EngineError {
    move |error| EngineError::System { doing, error }
}

/// Opened devices: ports by shard, and what steers frames to them.
#[derive(Default)]
struct Opened {
    ports: Vec<Vec<DevicePort>>,
    steerings: Vec<(u32, Arc<dyn utcp_netmap_io::Steering>)>,
    names: Vec<String>,
    interfaces: Vec<(String, u32)>,
}

/// Runs an engine until it is told to stop or, if embedded, until its last client left.
///
/// # Errors
/// [`EngineError`] if it can't start.
pub fn run(config: Config) -> Result<(), EngineError> {
    sys::raise_descriptor_limit();
    let signals = sys::termination().map_err(system("watching for signals"))?;
    let door = open_door(&config.name)?;
    let shard_count = config.cores.len().max(1) as u32;
    let life = Arc::new(Life::new(shard_count).map_err(system("making the engine's page"))?);
    let (mirror, host) = HostMirror::open().map_err(system("reading the host's addresses and routes"))?;
    let outbox = Arc::new(Outbox::new().map_err(system("making a doorbell"))?);
    let mut opened = open_devices(&config, &host, shard_count)?;
    let random = sys::random::<16>().map_err(system("reading random bytes"))?;
    let (k0, k1) = random.split_at(8);
    let word = |bytes: &[u8]| bytes.iter().fold(0u64, |n, &b| n << 8 | u64::from(b));
    let secret = Secret::new(word(k0), word(k1));
    let mut inboxes = Vec::new();
    for index in 0..shard_count {
        let inbox = Arc::new(Inbox::new().map_err(system("making a doorbell"))?);
        inboxes.push(inbox.clone());
        let settings = ShardConfig {
            index,
            count: shard_count,
            core: config.cores.get(index as usize).copied(),
            spin_ns: config.spin_us * 1000,
            local: config.local,
            secret,
        };
        let ports = std::mem::take(&mut opened.ports[index as usize]);
        let mut shard = Shard::new(settings, life.clone(), inbox, outbox.clone(), ports, host.clone())
            .map_err(system("making a shard"))?;
        std::thread::Builder::new()
            .name(format!("utcp-shard-{index}"))
            .spawn(move || shard.run())
            .map_err(system("starting a shard"))?;
    }
    let epoll = sys::Epoll::new().map_err(system("making an epoll"))?;
    for (fd, source) in [
        (door.as_fd(), Source::Door),
        (mirror.fd(), Source::Netlink),
        (outbox.doorbell().as_fd(), Source::Outbox),
        (signals.as_fd(), Source::Signal),
    ] {
        epoll.add(fd, libc::EPOLLIN, source.pack()).map_err(system("watching for programs"))?;
    }
    let ready_fd = config.ready_fd;
    let path = config.name.clone();
    let mut control = Control {
        devices: config.devices.clone(),
        config,
        epoll,
        door,
        life,
        inboxes,
        outbox,
        steerings: opened.steerings,
        port_names: opened.names,
        interfaces: opened.interfaces,
        trace: None,
        mirror,
        host,
        channels: HashMap::new(),
        clients: HashMap::new(),
        tokens: HashMap::new(),
        lingering_ports: Vec::new(),
        kernel_log: Vec::new(),
        next_number: 0,
        empty_since: None,
        stop: false,
    };
    if let Some(file) = control.config.trace.clone() {
        control.trace_to_file(&file)?;
    }
    if let Some(fd) = ready_fd {
        // SAFETY: whoever started us gave us this descriptor for this one byte; nobody else uses it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let _ = io::Write::write_all(&mut fs::File::from(fd), b"1");
    }
    tracing::info!(name = ?control.config.name, shards = shard_count, devices = ?control.devices, "engine runs");
    let result = control.run();
    control.finish_trace();
    if let UnixName::Path(path) = path {
        let _ = fs::remove_file(path);
    }
    result
}

/// The socket where programs come in. A path that a dead engine left behind is replaced.
fn open_door(name: &UnixName) -> Result<OwnedFd, EngineError> {
    let running = || {
        EngineError::AlreadyRunning(match name {
            UnixName::Abstract(name) => format!("@{name}"),
            UnixName::Path(path) => path.display().to_string(),
        })
    };
    if let UnixName::Path(path) = name {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(system("making the folder of the engine's socket"))?;
        }
        if sys::connect_seqpacket(name).is_ok() {
            return Err(running());
        }
        let _ = fs::remove_file(path);
    }
    match sys::listen_seqpacket(name) {
        Ok(door) => {
            if let UnixName::Path(path) = name {
                let everybody = fs::Permissions::from_mode(0o666);
                fs::set_permissions(path, everybody)
                    .map_err(system("opening the engine's socket to users"))?;
            }
            Ok(door)
        }
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(running()),
        Err(error) => Err(EngineError::System { doing: "listening for programs", error }),
    }
}

fn open_devices(config: &Config, host: &HostView, shards: u32) -> Result<Opened, EngineError> {
    let mut opened = Opened { ports: (0..shards).map(|_| Vec::new()).collect(), ..Opened::default() };
    let mut next = 0;
    let options = OpenOptions { vnet_header: true, ..OpenOptions::default() };
    for device in &config.devices {
        let failed = |error| EngineError::Device { device: device.clone(), error };
        let DeviceConfig { device: name, station } =
            DeviceConfig::parse(device).map_err(|error| EngineError::Setting(error.to_string()))?;
        let mut open = utcp_netmap_io::open(&name, &options).map_err(failed)?;
        if let Some(faults) = &config.faults {
            let spec = faults
                .parse::<FaultSpec>()
                .map_err(|error| EngineError::Setting(format!("UTCP_FAULTS={faults}: {error}")))?;
            tracing::warn!(%device, faults, "faults are injected on purpose");
            open = open.with_faults(&spec).map_err(failed)?;
        }
        if station.is_some() && open.ports.len() > 1 {
            let words = "a host of its own has one ring: name one (netmap:eth0-0), and let the NIC use one";
            return Err(EngineError::Setting(format!("{name}: {words}")));
        }
        let ifindex = open.ports.first().and_then(|port| port.caps().ifindex);
        opened.interfaces.extend(ifindex.map(|ifindex| (device.clone(), ifindex)));
        for port in open.ports {
            opened.names.push(port.caps().name.clone());
            let station = station.as_ref().map(|config| Station::new(config, port.caps()));
            opened.ports[next % shards as usize].push(DevicePort::new(port, station));
            next += 1;
        }
        if let (Some(steering), Some(ifindex)) = (open.steering, ifindex) {
            let ports = crate::shard::DEVICE_PORTS;
            for addr in host.local_addresses_of(ifindex) {
                let first = Tuple::new(to_std(addr), ports.start as u16, Proto::TCP);
                steering
                    .register_range(first, ports.start as u16..=(ports.end - 1) as u16)
                    .map_err(failed)?;
            }
            opened.steerings.push((ifindex, steering));
        }
    }
    Ok(opened)
}
