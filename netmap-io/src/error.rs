//! What can go wrong with a port, in words that say what to do.

use std::io;

use crate::layer::FaultError;
use crate::spec::SpecError;

/// Everything that opening or driving a port can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PortError {
    /// The device string is not one of ours.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A fault string that makes no sense.
    #[error(transparent)]
    Faults(#[from] FaultError),
    /// No interface of that name is visible in this network namespace.
    #[error("no interface named {name:?} in this network namespace; `ip link` lists those that are there")]
    NoInterface {
        /// The name that was asked for.
        name: String,
    },
    /// The interface has fewer queues than the device string names.
    #[error("{name} has {queues} queue(s), so queue {queue} does not exist; use {name}-0 … {name}-{last}", last = queues - 1)]
    NoQueue {
        /// Interface.
        name: String,
        /// Queue that was asked for.
        queue: u32,
        /// Number of queues that it has.
        queues: u32,
    },
    /// The kernel refused for want of a privilege.
    #[error(
        "{what} needs {need}; run the engine with it (root, `setcap {setcap}+ep`, or the container's --cap-add)"
    )]
    Privilege {
        /// The step that was refused.
        what: &'static str,
        /// The capabilities in the kernel's words, e.g. `CAP_NET_ADMIN and CAP_BPF`.
        need: &'static str,
        /// The same in the words of setcap(8).
        setcap: &'static str,
    },
    /// Someone else has the queue or the interface's XDP hook.
    #[error("{what} is in use: {detail}")]
    InUse {
        /// The interface or queue.
        what: String,
        /// By whom, and what to do.
        detail: String,
    },
    /// The locked-memory limit is too small for the ring buffers.
    #[error(
        "{need_bytes} bytes of packet memory exceed the locked-memory limit; raise `ulimit -l`, grant CAP_IPC_LOCK, or ask for fewer slots"
    )]
    LockedMemory {
        /// Bytes that were asked for.
        need_bytes: u64,
    },
    /// The kernel's verifier refused the steering program; `log` is its answer.
    #[error("the kernel refused the steering program ({source}); its verifier says:\n{log}")]
    Verifier {
        /// errno of BPF_PROG_LOAD.
        source: io::Error,
        /// The verifier's log.
        log: String,
    },
    /// The steering has as many tuples as it may have.
    #[error("no room to register {what}: {limit}")]
    NoRoom {
        /// The tuple.
        what: String,
        /// Whose limit it is, and what would raise it.
        limit: String,
    },
    /// An option that this port can't honour.
    #[error("{option}: {reason}")]
    Option {
        /// The option and its value.
        option: String,
        /// Why not, and what would do.
        reason: String,
    },
    /// The device went away: interface removed, peer of a pipe gone.
    #[error("{device} is gone ({reason}); open it again when it is back")]
    Gone {
        /// The device string.
        device: String,
        /// What the kernel said, or what was seen.
        reason: String,
    },
    /// Nobody opened the other end of a pipe.
    #[error(
        "{device}: nobody opened the other end within {waited_s} s; start the other engine with the same name"
    )]
    PeerAbsent {
        /// The device string.
        device: String,
        /// Seconds.
        waited_s: u64,
    },
    /// Any other refusal of the kernel.
    #[error("{what}: {source}")]
    System {
        /// The step that failed.
        what: String,
        /// errno.
        source: io::Error,
    },
}

impl PortError {
    /// Wraps an error of the standard library.
    pub(crate) fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::System { what: what.into(), source }
    }
}
