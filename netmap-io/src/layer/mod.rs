//! Layers: ports that wrap another port and change or watch what passes.

pub mod capture;
pub mod faults;
mod spec;

pub use capture::{Capture, Tracer};
pub use faults::{FaultError, FaultSpec};

use crate::{Device, PortError};

impl Device {
    /// Puts the fault layer around every port. Each queue and direction draws from a stream of its own, so
    /// that a seed gives the same faults again.
    pub fn with_faults(mut self, spec: &FaultSpec) -> Result<Self, PortError> {
        let ports = std::mem::take(&mut self.ports);
        self.ports = ports.into_iter().map(|port| faults::wrap_spec(port, spec)).collect::<Result<_, _>>()?;
        Ok(self)
    }

    /// Writes every frame of every port to `capture`.
    #[must_use]
    pub fn with_capture(mut self, capture: &Capture) -> Self {
        let ports = std::mem::take(&mut self.ports);
        self.ports = ports.into_iter().map(|port| capture.wrap(port)).collect();
        self
    }
}
