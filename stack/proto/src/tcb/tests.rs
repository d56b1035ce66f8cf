//! What a connection costs in memory.

use super::*;
use core::mem::size_of;

/// 100 000 idle connections are an aim of the design.
#[test]
fn sizes() {
    std::println!(
        "Tcb {}: Send {} Receive {} AckState {} Timers {} Rtt {} Congestion {} Recovery {} Stats {} Config {}",
        size_of::<Tcb>(),
        size_of::<Send>(),
        size_of::<Receive>(),
        size_of::<AckState>(),
        size_of::<Timers>(),
        size_of::<Rtt>(),
        size_of::<Congestion>(),
        size_of::<Recovery>(),
        size_of::<Stats>(),
        size_of::<Config>(),
    );
    assert!(size_of::<Tcb>() <= 1_240, "{}", size_of::<Tcb>());
    // What every segment looks at: the variables of its side, and for a data segment when to acknowledge it.
    let (receive, transmit) = (size_of::<Receive>() + size_of::<AckState>(), size_of::<Send>());
    std::println!("hot: receive {receive}, transmit {transmit}");
    assert!(receive <= 128, "two cache lines: {receive}");
    assert!(transmit <= 128, "two cache lines: {transmit}");
    assert!(size_of::<HalfOpen>() <= 192, "{}", size_of::<HalfOpen>());
    assert!(size_of::<TimeWait>() <= 128, "{}", size_of::<TimeWait>());
}
