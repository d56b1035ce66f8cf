//! What the program's signal handlers ask of interrupted calls.

use crate::sys::{at_mut, call};

/// The kernel's sigaction.
#[repr(C)]
#[derive(Default)]
struct Action {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

/// Whether every handler that the program has installed asks for SA_RESTART. poll is never restarted by the
/// kernel, whatever the handler says, but the calls that we build on poll are; which signal came can't be told.
pub fn all_restart() -> bool {
    (1..=64).all(|signal| {
        let mut action = Action::default();
        let known = call!(libc::SYS_rt_sigaction, signal, 0, at_mut(&mut action), 8).is_ok();
        let has_handler = known && action.handler > 1; // 0 is SIG_DFL, 1 is SIG_IGN.
        !has_handler || action.flags & libc::SA_RESTART as u64 != 0
    })
}
