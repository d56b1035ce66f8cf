//! `utcp switch DEVICE`: shares a device between several stacks.

use std::os::fd::AsFd;

use utcp_engine::{DeviceSpec, OpenOptions, open_device, switch, sys};

/// Arguments of `utcp switch`.
#[derive(clap::Args)]
pub struct Switch {
    /// The device to share, such as xdp:eth0; with --report, a switch's name.
    #[arg(value_name = "DEVICE")]
    device: String,
    /// What stacks call it (UTCP_DEVICE=switch:NAME); the interface's name unless given.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Say what a running switch has done for each of its stacks.
    #[arg(long)]
    report: bool,
}

/// Moves frames until a signal ends it.
pub fn main(arguments: &Switch) -> Result<(), String> {
    let name = name(arguments)?;
    if arguments.report {
        let text = switch::report(&name).map_err(|error| unheard(&name, &error))?;
        print!("{text}");
        return Ok(());
    }
    let signals = sys::termination().map_err(|error| format!("watching for signals: {error}"))?;
    // What no stack has registered is the kernel's, on netmap as well.
    let tuples_max = switch::TUPLES_MAX;
    let options = OpenOptions { kept: true, beside_kernel: true, tuples_max, ..OpenOptions::default() };
    let device = open_device(&arguments.device, &options).map_err(|error| error.to_string())?;
    let mut switch = switch::Switch::new(device, &name).map_err(|error| error.to_string())?;
    eprintln!("utcp: {} is shared as switch:{name}", arguments.device);
    switch.run(signals.as_fd()).map_err(|error| error.to_string())
}

/// Why a switch does not answer.
fn unheard(name: &str, error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => {
            format!("no switch {name} runs in this network namespace; start `utcp switch xdp:{name}`")
        }
        _ => format!("switch:{name} does not answer: {error}"),
    }
}

fn name(arguments: &Switch) -> Result<String, String> {
    if let Some(name) = &arguments.name {
        return Ok(name.clone());
    }
    let spec = arguments.device.parse::<DeviceSpec>();
    match spec {
        Ok(DeviceSpec::Xdp { interface, .. }) => Ok(interface),
        Ok(DeviceSpec::Tap { name } | DeviceSpec::Switch { name } | DeviceSpec::Pipe { name }) => Ok(name),
        Ok(DeviceSpec::Netmap { name, .. }) => Ok(name.replace(':', "-")),
        Err(_) if arguments.report => Ok(arguments.device.clone()),
        Err(error) => Err(error.to_string()),
    }
}
