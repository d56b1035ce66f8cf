//! What an engine is told when it starts: by its command line and by `UTCP_*` variables.

use std::fmt;
use std::path::PathBuf;

use crate::sys::{self, UnixName};

/// Settings of one engine.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where programs find it.
    pub name: UnixName,
    /// Started by a program's shim: it leaves with its last client.
    pub embedded: bool,
    /// Device strings (`xdp:eth0`, `tap:utcp0,addr=10.9.0.2/24`), none for same-host traffic only.
    pub devices: Vec<String>,
    /// Cores of the shards; one shard each. Empty: shards that are not pinned.
    pub cores: Vec<usize>,
    /// Without cores: how many shards the load may bring at most; the first one is always there. None: half of the cores.
    pub shards: Option<usize>,
    /// How long a shard looks at most for work after the last before it sleeps, µs.
    pub spin_us: u64,
    /// How long frames may gather at most where they come thick, µs.
    pub coalesce_us: u64,
    /// Faults to inject on every device (see netmap-io), for tests.
    pub faults: Option<String>,
    /// File for a trace of every frame on every device, from the start on.
    pub trace: Option<PathBuf>,
    /// Whether programs of one host talk without a device. False only to test the device path.
    pub local: bool,
    /// Whether the bytes of connections between programs of one host go straight from one to the other. False to test
    /// the path by segments on one host.
    pub cut_through: bool,
    /// Descriptor to write a byte to when the engine is ready.
    pub ready_fd: Option<i32>,
}

/// Why the settings are not usable; the text says what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigError {
    /// A variable or option has a value that means nothing.
    Value {
        /// Its name.
        name: &'static str,
        /// What it says.
        value: String,
        /// What it may say.
        wanted: &'static str,
    },
    /// The stack's name can't be part of a socket name.
    StackName(String),
    /// Cores say how many shards there are.
    CoresAndShards,
    /// Faults that don't exist: told also where no device is there that could have them.
    Faults {
        /// The whole list.
        value: String,
        /// What is wrong with it, in words.
        error: String,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CoresAndShards => {
                f.write_str("UTCP_CORES and UTCP_SHARDS: one shard stands on each core, set one of the two")
            }
            Self::Faults { value, error } => write!(f, "UTCP_FAULTS={value}: {error}"),
            Self::Value { name, value, wanted } => write!(f, "{name}={value}: expected {wanted}"),
            Self::StackName(name) => {
                write!(f, "stack name {name:?}: use 1 to 32 letters, digits, '-' or '_'")
            }
        }
    }
}

impl std::error::Error for ConfigError {}

/// Microseconds that a shard spins at most by default before it sleeps: more than twice a wake-up across cores (18 to 30 µs
/// on virtual machines), or program and shard would take turns sleeping through each other's answers.
pub const SPIN_US_DEFAULT: u64 = 50;
/// Microseconds that frames may gather in at most by default. Half as long seldom brings a batch from fifty connections over veth, and twice as long
/// saved no more CPU time and brought answers later (docs/device.md).
pub const COALESCE_US_DEFAULT: u64 = 100;
/// More is as much as this: what a connection waits for its answer at most.
pub const COALESCE_US_MAX: u64 = 1000;
/// More is as much as this: a second, as in programs.
pub const SPIN_US_MAX: u64 = 1_000_000;

impl Config {
    /// The defaults, changed by what `variable` (usually the environment) says.
    ///
    /// # Errors
    /// [`ConfigError`] names the variable.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let devices = match variable("UTCP_DEVICE") {
            None => Vec::new(),
            Some(list) => crate::station::split_devices(&list),
        };
        if variable("UTCP_CORES").is_some() && variable("UTCP_SHARDS").is_some() {
            return Err(ConfigError::CoresAndShards);
        }
        Ok(Self {
            name: user_name(variable("UTCP_STACK").as_deref())?,
            embedded: false,
            devices,
            cores: match variable("UTCP_CORES") {
                None => Vec::new(),
                Some(list) => parse_cores(&list)?,
            },
            shards: match variable("UTCP_SHARDS") {
                None => None,
                Some(value) => Some(parse_shards(&value)?),
            },
            spin_us: microseconds(
                "UTCP_SPIN_US",
                variable("UTCP_SPIN_US"),
                SPIN_US_DEFAULT,
                "a number of microseconds, 0 to sleep at once",
            )?,
            coalesce_us: microseconds(
                "UTCP_COALESCE_US",
                variable("UTCP_COALESCE_US"),
                COALESCE_US_DEFAULT,
                "a number of microseconds, 0 to look at every frame at once",
            )?,
            faults: variable("UTCP_FAULTS").filter(|f| !f.is_empty()).map(known_faults).transpose()?,
            trace: variable("UTCP_TRACE").filter(|f| !f.is_empty()).map(PathBuf::from),
            local: switch("UTCP_LOCAL", variable("UTCP_LOCAL").as_deref(), true)?,
            cut_through: switch("UTCP_CUT_THROUGH", variable("UTCP_CUT_THROUGH").as_deref(), true)?,
            ready_fd: None,
        })
    }

    /// How many shards can have ports: with cores, all; otherwise the first one, which alone is always there.
    #[must_use]
    pub fn shards_with_ports(&self) -> usize {
        self.cores.len().max(1)
    }

    /// How many shards there are, busy or not.
    #[must_use]
    pub fn shards_at_most(&self) -> usize {
        match self.cores.len() {
            0 => self.shards.unwrap_or_else(|| self.shards_by_default()),
            cores => cores,
        }
    }

    /// What comes by devices is the first shard's, and a connection over one that another is asked for takes a way round by it. So an
    /// engine with devices has more than one shard by order alone.
    fn shards_by_default(&self) -> usize {
        // It knows of affinity and of a control group's quota.
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if self.devices.is_empty() { shards_of(cores) } else { 1 }
    }
}

/// How many shards the load may bring on so many cores: half of them, the programs need the others.
fn shards_of(cores: usize) -> usize {
    (cores / 2).clamp(1, utcp_abi::layout::SHARDS_MAX)
}

/// How many shards the load may bring.
///
/// # Errors
/// [`ConfigError::Value`].
pub fn parse_shards(value: &str) -> Result<usize, ConfigError> {
    let most = 1..=utcp_abi::layout::SHARDS_MAX;
    value.trim().parse().ok().filter(|shards| most.contains(shards)).ok_or_else(|| ConfigError::Value {
        name: "UTCP_SHARDS",
        value: value.to_owned(),
        wanted: "the most shards that there may be, 1 to 8",
    })
}

fn microseconds(
    name: &'static str,
    value: Option<String>,
    default: u64,
    wanted: &'static str,
) -> Result<u64, ConfigError> {
    let Some(value) = value else { return Ok(default) };
    value.parse().map_err(|_| ConfigError::Value { name, value, wanted })
}

/// `value`, if it is a list of faults.
fn known_faults(value: String) -> Result<String, ConfigError> {
    match value.parse::<utcp_netmap_io::FaultSpec>() {
        Ok(_) => Ok(value),
        Err(error) => Err(ConfigError::Faults { error: error.to_string(), value }),
    }
}

/// What a variable that says on or off means.
fn switch(name: &'static str, value: Option<&str>, default: bool) -> Result<bool, ConfigError> {
    match value {
        None => Ok(default),
        Some("1" | "on" | "yes") => Ok(true),
        Some("0" | "off" | "no") => Ok(false),
        Some(value) => Err(ConfigError::Value { name, value: value.to_owned(), wanted: "on or off" }),
    }
}

/// The socket name of the calling user's own engine in this network namespace.
///
/// # Errors
/// [`ConfigError::StackName`].
pub fn user_name(stack: Option<&str>) -> Result<UnixName, ConfigError> {
    let uid = sys::euid();
    match stack {
        None | Some("") => Ok(UnixName::Abstract(format!("utcp/{uid}"))),
        Some(stack) => {
            let legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if stack.len() > 32 || !stack.chars().all(legal) {
                return Err(ConfigError::StackName(stack.to_owned()));
            }
            Ok(UnixName::Abstract(format!("utcp/{uid}/{stack}")))
        }
    }
}

/// The name of a stack, from its engine's socket.
#[must_use]
pub(crate) fn stack_of(name: &UnixName) -> &str {
    match name {
        UnixName::Abstract(name) => name.split('/').nth(2).unwrap_or("default"),
        UnixName::Path(path) => path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("system"),
    }
}

/// The socket path of the system's engine in this network namespace.
#[must_use]
pub fn system_path() -> Option<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let inode = std::fs::metadata("/proc/self/ns/net").ok()?.ino();
    Some(PathBuf::from(format!("/run/utcp/{inode}.sock")))
}

/// A list of cores: `0,2-3`.
///
/// # Errors
/// [`ConfigError::Value`].
pub fn parse_cores(list: &str) -> Result<Vec<usize>, ConfigError> {
    let wrong = || ConfigError::Value {
        name: "UTCP_CORES",
        value: list.to_owned(),
        wanted: "cores of this machine, at most 8, such as 0 or 0,2-3",
    };
    let allowed = sys::cores();
    let mut cores = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: usize = first.trim().parse().map_err(|_| wrong())?;
        let last: usize = last.trim().parse().map_err(|_| wrong())?;
        if last < first || last - first > 4096 {
            return Err(wrong());
        }
        cores.extend(first..=last);
    }
    if cores.is_empty()
        || cores.len() > utcp_abi::layout::SHARDS_MAX
        || !cores.iter().all(|core| allowed.contains(core))
    {
        return Err(wrong());
    }
    Ok(cores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_checked() {
        let own = sys::cores()[0];
        assert_eq!(parse_cores(&own.to_string()), Ok(vec![own]));
        for wrong in ["", "x", "1-", "-1", "99999", "3-1", "0-9999999"] {
            assert!(parse_cores(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn bad_variables_say_what_to_do() {
        let error = |name: &'static str, value: &'static str| {
            Config::from_variables(|n| (n == name).then(|| value.to_owned())).unwrap_err().to_string()
        };
        assert_eq!(
            error("UTCP_COALESCE_US", "1ms"),
            "UTCP_COALESCE_US=1ms: expected a number of microseconds, 0 to look at every frame at once"
        );
        assert_eq!(
            error("UTCP_SPIN_US", "fast"),
            "UTCP_SPIN_US=fast: expected a number of microseconds, 0 to sleep at once"
        );
        for wrong in ["", "0", "9", "two", "-1"] {
            assert!(error("UTCP_SHARDS", wrong).contains("1 to 8"), "{wrong}");
        }
        let both = |name: &str| matches!(name, "UTCP_CORES" | "UTCP_SHARDS").then(|| "1".to_owned());
        let both = Config::from_variables(both).expect_err("two answers to one question").to_string();
        assert!(both.contains("UTCP_CORES") && both.contains("UTCP_SHARDS"), "{both}");
        assert!(error("UTCP_STACK", "a/b").contains("letters"));
        assert!(error("UTCP_LOCAL", "maybe").contains("on or off"));
        // Without a device, too: nobody else would say that it is nonsense.
        assert!(error("UTCP_FAULTS", "lose=1%").contains("UTCP_FAULTS=lose=1%: "));
        assert!(error("UTCP_FAULTS", "loss=200%").contains("200%"));
    }

    #[test]
    fn shards_take_half_of_the_cores_and_all_of_those_that_are_named() {
        let by_cores: Vec<usize> = [1, 2, 3, 4, 7, 16, 64].map(shards_of).into();
        assert_eq!(by_cores, [1, 1, 1, 2, 3, 8, 8]);
        let config = |settings: &[(&str, &str)]| {
            let find = |name: &str| settings.iter().find(|(known, _)| *known == name);
            Config::from_variables(|name| find(name).map(|(_, value)| (*value).to_owned()))
                .expect("good ones")
        };
        let of = |settings| (config(settings).shards_at_most(), config(settings).shards_with_ports());
        assert_eq!(of(&[("UTCP_SHARDS", "3")]), (3, 1));
        assert_eq!(of(&[("UTCP_SHARDS", "3"), ("UTCP_DEVICE", "xdp:eth0")]), (3, 1));
        assert_eq!(of(&[("UTCP_DEVICE", "xdp:eth0")]), (1, 1));
        assert_eq!(of(&[("UTCP_CORES", "0,1")]), (2, 2));
    }
}
