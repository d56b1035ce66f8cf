//! How an engine comes up: name, page, devices, shards, then the control loop.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use utcp_netmap_io::{OpenOptions, PortError};
use utcp_proto::isn::Secret;

use super::devices::{Device, steered_addresses};
use super::{Control, EngineError, Source};
use crate::config::Config;
use crate::host::{HostMirror, HostView};
use crate::life::Life;
use crate::shard::{DevicePort, Directory, Inbox, Outbox, Shard, ShardConfig};
use crate::sys::{self, UnixName};

fn system(doing: &'static str) -> impl Fn(io::Error) -> EngineError {
    move |error| EngineError::System { doing, error }
}

/// Opened devices, and their ports by shard.
#[derive(Default)]
struct Opened {
    ports: Vec<Vec<DevicePort>>,
    devices: Vec<Device>,
}

/// What an engine takes from outside: its devices, and who gives its shards their turns.
pub struct Surroundings {
    /// Opens a device by its string.
    pub open: Box<OpenDevice>,
    /// Called with each shard on a thread of its own. Ordinarily [`Shard::run`]; a test that wants virtual time takes
    /// the shard away and calls [`Shard::turn`].
    pub drive: Arc<dyn Fn(Shard) + Send + Sync>,
}

/// As [`utcp_netmap_io::open`].
pub type OpenDevice = dyn FnMut(&str, &OpenOptions) -> Result<utcp_netmap_io::Device, PortError> + Send;

impl Default for Surroundings {
    fn default() -> Self {
        Self { open: Box::new(utcp_netmap_io::open), drive: Arc::new(|mut shard| shard.run()) }
    }
}

/// Runs an engine until it is told to stop or, if embedded, until its last client left.
///
/// # Errors
/// [`EngineError`] if it can't start.
pub fn run(config: Config) -> Result<(), EngineError> {
    run_in(config, Surroundings::default())
}

/// [`run`], in other surroundings than those of the host.
///
/// # Errors
/// [`EngineError`] if it can't start.
pub fn run_in(config: Config, mut surroundings: Surroundings) -> Result<(), EngineError> {
    sys::raise_descriptor_limit();
    let signals = sys::termination().map_err(system("watching for signals"))?;
    let door = open_door(&config.name)?;
    let shard_count = config.shards_at_most() as u32;
    let life = Arc::new(Life::new(shard_count).map_err(system("making the engine's page"))?);
    let (mirror, host) = HostMirror::open().map_err(system("reading the host's addresses and routes"))?;
    let outbox = Arc::new(Outbox::new().map_err(system("making a doorbell"))?);
    // Before the devices look for rules themselves.
    let rules = super::rules::subscribe().ok();
    let balance = super::balance::Balance::new(shard_count, !config.cores.is_empty());
    life.page().active.store(balance.active(), std::sync::atomic::Ordering::Relaxed);
    let mut opened = open_devices(&config, &host, shard_count, &mut *surroundings.open)?;
    let tcp = crate::host::tcp_settings();
    life.page().fast_open.store(tcp.fast_open.flags, std::sync::atomic::Ordering::Relaxed);
    life.page().notsent_lowat.store(tcp.notsent_lowat, std::sync::atomic::Ordering::Relaxed);
    let random = sys::random::<16>().map_err(system("reading random bytes"))?;
    let (k0, k1) = random.split_at(8);
    let word = |bytes: &[u8]| bytes.iter().fold(0u64, |n, &b| n << 8 | u64::from(b));
    let secret = Secret::new(word(k0), word(k1));
    let inbox = |_| Inbox::new().map(Arc::new).map_err(system("making a doorbell"));
    let inboxes: Vec<Arc<Inbox>> = (0..shard_count).map(inbox).collect::<Result<_, _>>()?;
    let settings = ShardConfig {
        index: 0,
        count: shard_count,
        core: None,
        spin_ns: config.spin_us.min(crate::config::SPIN_US_MAX) * 1000,
        coalesce_ns: config.coalesce_us.min(crate::config::COALESCE_US_MAX) * 1000,
        local: config.local,
        cut_through: config.cut_through,
        secret,
        tcp,
    };
    let make = |settings, inbox, ports| {
        Shard::new(settings, life.clone(), inbox, outbox.clone(), ports, host.clone())
    };
    let ports = std::mem::take(&mut opened.ports);
    start_shards(&config.cores, &settings, &inboxes, ports, make, &surroundings.drive)?;
    let epoll = sys::Epoll::new().map_err(system("making an epoll"))?;
    for (fd, source) in [
        (door.as_fd(), Source::Door),
        (mirror.fd(), Source::Netlink),
        (outbox.doorbell().as_fd(), Source::Outbox),
        (signals.as_fd(), Source::Signal),
    ] {
        epoll.add(fd, libc::EPOLLIN, source.pack()).map_err(system("watching for programs"))?;
    }
    if let Some(rules) = &rules {
        epoll.add(rules.fd(), libc::EPOLLIN, Source::Rules.pack()).map_err(system("watching for rules"))?;
    }
    let ready_fd = config.ready_fd;
    let path = config.name.clone();
    let mut control = Control {
        config,
        epoll,
        door,
        spare: super::door::Spare::new(),
        life,
        inboxes,
        outbox,
        devices: opened.devices,
        open: surroundings.open,
        trace: None,
        mirror,
        rules,
        host,
        sources: Arc::default(),
        channels: HashMap::new(),
        clients: HashMap::new(),
        tokens: HashMap::new(),
        relay: None,
        pairs: HashMap::new(),
        lingering: Default::default(),
        heirs: Default::default(),
        left: Default::default(),
        balance,
        groups: super::groups::Groups::default(),
        kernel_log: Vec::new(),
        next_number: 0,
        empty_since: None,
        stop: false,
    };
    if let Some(file) = control.config.trace.clone() {
        control.trace_to_file(&file)?;
    }
    control.tell_sources();
    // A device may be a bridge's member already.
    control.join_bridges();
    if let Some(fd) = ready_fd {
        // SAFETY: whoever started us gave us this descriptor for this one byte; nobody else uses it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let _ = io::Write::write_all(&mut fs::File::from(fd), b"1");
    }
    tracing::info!(name = ?control.config.name, shards = shard_count, devices = ?control.config.devices, "engine runs");
    let result = control.run();
    control.finish_trace();
    if let UnixName::Path(path) = path {
        let _ = fs::remove_file(path);
    }
    result
}

/// Makes the shards, on these cores if there are any, and starts a thread for each.
fn start_shards(
    cores: &[usize],
    settings: &ShardConfig,
    inboxes: &[Arc<Inbox>],
    ports: Vec<Vec<DevicePort>>,
    make: impl Fn(ShardConfig, Arc<Inbox>, Vec<DevicePort>) -> io::Result<Shard>,
    drive: &Arc<dyn Fn(Shard) + Send + Sync>,
) -> Result<(), EngineError> {
    let count = settings.count;
    let all: Arc<[Arc<Inbox>]> = inboxes.iter().cloned().collect();
    let with_ports = ports.iter().filter(|ports| !ports.is_empty()).count();
    // Shards that come and go share all client ports, or the first one alone had few.
    let come_and_go = cores.is_empty() && count > 1;
    let directory =
        (with_ports > 1 || come_and_go).then(|| Arc::new(Directory::new(inboxes, with_ports > 1)));
    for (index, (inbox, ports)) in (0..count).zip(inboxes.iter().zip(ports)) {
        let settings = ShardConfig { index, core: cores.get(index as usize).copied(), ..settings.clone() };
        let shard = make(settings, inbox.clone(), ports).map_err(system("making a shard"))?;
        let next = match cores.is_empty() {
            // The first one has all ports.
            true => (index > 0).then_some(0),
            false => (count > 1).then_some((index + 1) % count),
        };
        let shard = shard.among_others(all.clone(), directory.clone(), next.filter(|_| with_ports > 0));
        let drive = drive.clone();
        std::thread::Builder::new()
            .name(format!("utcp-shard-{index}"))
            .spawn(move || drive(shard))
            .map_err(system("starting a shard"))?;
    }
    Ok(())
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
            fs::create_dir_all(folder).map_err(|error| not_there(path, &error))?;
        }
        if sys::connect_seqpacket(name).is_ok() {
            return Err(running());
        }
        match fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => {
                let _ = fs::remove_file(path);
            }
            // Somebody's file, which is not ours to replace.
            Ok(_) => {
                let words = format!("{}: there is something else than a socket", path.display());
                return Err(EngineError::Setting(words));
            }
            Err(_) => {}
        }
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
        Err(error) => Err(match name {
            UnixName::Path(path) => not_there(path, &error),
            UnixName::Abstract(_) => system("listening for programs")(error),
        }),
    }
}

/// Why the engine's socket can't be made at `path`.
fn not_there(path: &Path, error: &io::Error) -> EngineError {
    let place = path.display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => EngineError::Setting(format!(
            "this user may not make {place}; a system engine is root's, and --socket names another place"
        )),
        _ => EngineError::Setting(format!(
            "the engine's socket {place} can't be made: {error}; --socket names another place"
        )),
    }
}

fn open_devices(
    config: &Config,
    host: &HostView,
    shards: u32,
    open: &mut OpenDevice,
) -> Result<Opened, EngineError> {
    let mut opened = Opened { ports: (0..shards).map(|_| Vec::new()).collect(), ..Opened::default() };
    let mut next = 0;
    for text in &config.devices {
        let (mut device, ports) = Device::open(text, config, open)?;
        for port in ports {
            let shard = next % config.shards_with_ports();
            device.place(shard, opened.ports[shard].len());
            opened.ports[shard].push(port);
            next += 1;
        }
        opened.devices.push(device);
    }
    let addresses = steered_addresses(&opened.devices, host);
    for (device, addresses) in opened.devices.iter_mut().zip(addresses) {
        let text = device.text.clone();
        device.steer_clients(&addresses).map_err(|error| EngineError::Device { device: text, error })?;
    }
    Ok(opened)
}
