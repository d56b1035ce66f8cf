//! The engine of one run.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::child::{Launch, Process};
use crate::net::Net;
use crate::{Error, parse};

const START_PATIENCE: Duration = Duration::from_secs(10);
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Where utcp's own files are.
#[derive(Debug, Clone)]
pub struct Files {
    /// libutcp.so
    pub library: PathBuf,
    /// utcp
    pub command: PathBuf,
    /// utcp-load
    pub load: PathBuf,
    /// utcp-lean
    pub lean: PathBuf,
}

impl Files {
    /// In one folder.
    ///
    /// # Errors
    /// [`Error::NotBuilt`].
    pub fn in_folder(folder: &Path) -> Result<Self, Error> {
        let find = |name: &str| {
            let path = folder.join(name);
            path.canonicalize().map_err(|_| Error::NotBuilt(path))
        };
        Ok(Self {
            library: find("libutcp.so")?,
            command: find("utcp")?,
            load: find("utcp-load")?,
            lean: find("utcp-lean")?,
        })
    }
}

/// Counters by name.
pub type Counters = HashMap<String, u64>;

/// How an engine is started.
#[derive(Debug, Clone, Default)]
pub struct Setup<'a> {
    /// Programs find it by this `UTCP_STACK`.
    pub stack: String,
    /// Its device string, if it has one.
    pub device: Option<String>,
    /// Cores of its shards.
    pub cores: Option<&'a str>,
    /// Folder of its control group.
    pub group: Option<&'a Path>,
}

/// A running engine. Dropped, it is killed.
#[derive(Debug)]
pub struct Engine {
    process: Process,
    stack: String,
    netns: Option<String>,
    files: Files,
    directory: PathBuf,
}

impl Engine {
    /// Starts one for programs of the server's namespace.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(files: &Files, net: &Net, setup: &Setup<'_>, directory: &Path) -> Result<Self, Error> {
        let Setup { stack, device, cores, group } = setup;
        let launch = Launch::new(&files.command)
            .named(&format!("engine-{stack}"))
            .args(["engine"])
            .args(device.iter().flat_map(|device| ["--device", device]))
            .args(cores.iter().flat_map(|cores| ["--cores", cores]))
            .env("UTCP_STACK", stack)
            .group(*group)
            .netns(net.server_netns());
        let process = launch.start(directory)?;
        let mut engine = Self {
            process,
            stack: stack.clone(),
            netns: net.server_netns().map(str::to_owned),
            files: files.clone(),
            directory: directory.join(format!("metrics-{stack}")),
        };
        std::fs::create_dir_all(&engine.directory).map_err(Error::io("can't make a folder"))?;
        // Not through `engine.process.wait_ready`, whose closure would borrow the engine twice.
        let answers = crate::interrupt::wait_for(START_PATIENCE, || {
            if let Some(status) = engine.process.ended()? {
                return Err(engine.process.failure(status));
            }
            Ok(engine.counters().is_ok())
        })?;
        if answers {
            return Ok(engine);
        }
        Err(Error::Late { name: "the engine".to_owned(), what: "answer", tail: engine.process.said() })
    }

    /// Its process group.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// What it counts.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn counters(&self) -> Result<Counters, Error> {
        let text = Launch::new(&self.files.command)
            .args(["metrics", "--stack", &self.stack])
            .netns(self.netns.as_deref())
            .run(&self.directory, Duration::from_secs(5))?;
        Ok(parse::counters(&text).into_iter().collect())
    }

    /// Puts a program under this engine.
    #[must_use]
    pub fn serve(&self, launch: Launch) -> Launch {
        launch
            .env("LD_PRELOAD", &self.files.library)
            .env("UTCP_STACK", &self.stack)
            .env("UTCP_BIN", &self.files.command)
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it crashed, or does not end by itself.
    pub fn stop(mut self) -> Result<(), Error> {
        if let Some(status) = self.process.ended()? {
            return Err(self.process.failure(status));
        }
        self.process.stop(STOP_PATIENCE)
    }
}

/// How much each counter grew.
#[must_use]
pub fn growth(before: &Counters, after: &Counters) -> Counters {
    after
        .iter()
        .map(|(name, value)| (name.clone(), value.saturating_sub(before.get(name).copied().unwrap_or(0))))
        .collect()
}

/// # Errors
/// [`Error::FellBack`] if a counter grew by less than `wanted`.
pub fn expect_growth(growth: &Counters, counter: &'static str, wanted: u64) -> Result<(), Error> {
    let seen = growth.get(counter).copied().unwrap_or(0);
    if seen >= wanted { Ok(()) } else { Err(Error::FellBack { counter, seen, wanted }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_what_was_added() {
        let before = Counters::from([("accepts".to_owned(), 10)]);
        let after = Counters::from([("accepts".to_owned(), 60), ("connects".to_owned(), 3)]);
        let growth = growth(&before, &after);
        assert_eq!((growth["accepts"], growth["connects"]), (50, 3));
        assert!(expect_growth(&growth, "accepts", 50).is_ok());
        let error = expect_growth(&growth, "accepts", 51).unwrap_err();
        assert!(error.to_string().contains("did not go through utcp"), "{error}");
        assert!(expect_growth(&growth, "nothing", 1).is_err());
    }
}
