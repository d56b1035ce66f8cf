//! `utcp engine`.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use tracing_subscriber::EnvFilter;
use utcp_engine::Config;
use utcp_engine::config::{parse_cores, parse_shards, system_path};
use utcp_engine::sys::UnixName;

/// Arguments of `utcp engine`. Each has a `UTCP_*` variable with the same meaning.
#[derive(clap::Args)]
pub struct Engine {
    /// Devices to drive, such as xdp:eth0, separated by commas; may be given several times.
    #[arg(long, value_name = "DEVICE")]
    device: Vec<String>,
    /// Cores of the shards, such as 0,2-3: one shard for each, pinned.
    #[arg(long, value_name = "LIST")]
    cores: Option<String>,
    /// Instead of cores: the most shards that the load may bring, not pinned [default: half of the cores, up to 8; one with devices].
    #[arg(long, value_name = "N", conflicts_with = "cores")]
    shards: Option<String>,
    /// Microseconds to look for more work before sleeping.
    #[arg(long, value_name = "US")]
    spin_us: Option<u64>,
    /// Microseconds that frames may gather in where they come thick; 0: none.
    #[arg(long, value_name = "US")]
    coalesce_us: Option<u64>,
    /// Serve every user of this network namespace, at /run/utcp (needs root).
    #[arg(long)]
    system: bool,
    /// Listen for programs at this path.
    #[arg(long, value_name = "PATH", conflicts_with = "system")]
    socket: Option<PathBuf>,
    /// Leave with the last program. (Programs start their own engine so.)
    #[arg(long)]
    embedded: bool,
    /// Write a byte to this descriptor when programs can come.
    #[arg(long, value_name = "FD", hide = true)]
    ready_fd: Option<i32>,
}

/// Runs the engine. A program that started it hears why it can't run.
pub fn main(arguments: Engine) -> Result<(), String> {
    let starter = arguments.ready_fd;
    let result = run(arguments);
    if let (Err(reason), Some(fd)) = (&result, starter) {
        utcp_engine::sys::tell_starter(fd, reason.as_bytes());
    }
    result
}

/// Variables that some part of utcp reads.
const KNOWN: [&str; 17] = [
    "UTCP_ENGINE",
    "UTCP_STACK",
    "UTCP_DISABLE",
    "UTCP_DEVICE",
    "UTCP_SPIN_US",
    "UTCP_COALESCE_US",
    "UTCP_CORES",
    "UTCP_SHARDS",
    "UTCP_FAULTS",
    "UTCP_TRACE",
    "UTCP_LOG",
    "UTCP_LOCAL",
    "UTCP_CUT_THROUGH",
    "UTCP_BIN",
    "UTCP_LIB",
    "UTCP_INHERIT",
    "UTCP_IO_URING",
];

fn name_unknown_variables() {
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("UTCP_") && !KNOWN.contains(&name.as_ref()) {
            tracing::warn!("{name} means nothing to utcp: see README for the variables it knows");
        }
    }
}

fn run(arguments: Engine) -> Result<(), String> {
    let mut config =
        Config::from_variables(|name| std::env::var(name).ok()).map_err(|error| error.to_string())?;
    if !arguments.device.is_empty() {
        config.devices = devices(&arguments.device);
    }
    if let Some(list) = arguments.cores {
        config.cores = parse_cores(&list).map_err(|error| error.to_string())?;
    }
    if let Some(count) = arguments.shards {
        config.shards = Some(parse_shards(&count).map_err(|error| error.to_string())?);
        config.cores.clear();
    }
    config.spin_us = arguments.spin_us.unwrap_or(config.spin_us);
    config.coalesce_us = arguments.coalesce_us.unwrap_or(config.coalesce_us);
    config.embedded = arguments.embedded;
    config.ready_fd = arguments.ready_fd;
    if arguments.system {
        let path = system_path().ok_or("can't tell which network namespace this is (/proc is missing)")?;
        config.name = UnixName::Path(path);
    } else if let Some(path) = arguments.socket {
        config.name = UnixName::Path(path);
    }
    log_to_stderr();
    name_unknown_variables();
    match utcp_engine::run(config) {
        // Two programs started an engine at the same time; the other one serves both.
        Err(utcp_engine::EngineError::AlreadyRunning(_)) if arguments.embedded => Ok(()),
        other => other.map_err(|error| error.to_string()),
    }
}

/// The devices of every `--device`, each a list as in UTCP_DEVICE. One that names none is left to be refused in words.
pub fn devices(lists: &[String]) -> Vec<String> {
    let of = |list: &String| {
        let devices = utcp_engine::station::split_devices(list);
        if devices.is_empty() { vec![list.clone()] } else { devices }
    };
    lists.iter().flat_map(of).collect()
}

fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("UTCP_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // Colours are for eyes: in a file or a journal they are noise.
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(ansi)
        .with_target(false)
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_devices_is_taken_as_from_the_environment() {
        let of = |lists: &[&str]| devices(&lists.iter().map(|list| (*list).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&["xdp:a,xdp:b"]), ["xdp:a", "xdp:b"]);
        assert_eq!(
            of(&["tap:t,addr=10.0.0.1/8,xdp:b", "xdp:c"]),
            ["tap:t,addr=10.0.0.1/8", "xdp:b", "xdp:c"]
        );
        assert_eq!(of(&[""]), [""], "nothing is no device, and not none");
    }

    /// What README tells a user to set is not called meaningless.
    #[test]
    fn every_variable_of_the_readme_is_known() {
        let readme = include_str!("../../../README.md");
        let rows = readme.lines().filter_map(|line| line.strip_prefix("| `UTCP_"));
        let names: Vec<_> =
            rows.filter_map(|row| row.split_once('`')).map(|(name, _)| format!("UTCP_{name}")).collect();
        assert!(names.len() > 10, "README has a table of them: {names:?}");
        for name in names {
            assert!(KNOWN.contains(&name.as_str()), "{name}");
        }
    }
}
