//! What a script expects against what the stack sent, field by field.

use crate::script::{Ecn, Flags, Packet, Tcp, TcpOption};
use crate::settings::Settings;
use crate::wire::Received;

fn same<T: PartialEq + Copy + std::fmt::Display>(what: &str, wanted: T, got: T) -> Result<(), String> {
    if wanted == got { Ok(()) } else { Err(format!("{what} is {got}, not {wanted}")) }
}

/// AE, CWR and ECE as one number.
fn ace(flags: Flags) -> u8 {
    u8::from(flags.ae) << 2 | flags.bits >> 6
}

/// The segment in the script's numbers.
pub fn segments(wanted: &Tcp, got: &Tcp, settings: &Settings) -> Result<(), String> {
    let mut mask = if wanted.flags.ace { !(Flags::ECE | Flags::CWR) } else { 0xff };
    if wanted.len > settings.peer_mss {
        // Linux marks the last piece of each unit that it hands to a device, whose size depends on its pacing.
        mask &= !Flags::PSH;
    }
    if wanted.flags.bits & mask != got.flags.bits & mask
        || !wanted.flags.ace && wanted.flags.ae != got.flags.ae
    {
        return Err(format!("flags are {}, not {}", got.flags, wanted.flags));
    }
    if wanted.flags.ace {
        same("the ACE counter", ace(wanted.flags), ace(got.flags))?;
    }
    same("the sequence number", wanted.seq, got.seq)?;
    same("the payload", wanted.len, got.len)?;
    same("ack", wanted.ack, got.ack)?;
    if let (Some(wanted), Some(got)) = (wanted.win, got.win) {
        same("win", wanted, got)?;
    }
    same("the urgent pointer", wanted.urg, got.urg)?;
    match (&wanted.options, &got.options) {
        (Some(wanted), Some(got)) => options(wanted, got, settings),
        _ => Ok(()),
    }
}

fn options(wanted: &[TcpOption], got: &[TcpOption], settings: &Settings) -> Result<(), String> {
    if wanted.len() != got.len() {
        return Err("the options differ".into());
    }
    for (wanted, got) in wanted.iter().zip(got) {
        match (wanted, got) {
            (TcpOption::Ts { val: wanted, .. }, TcpOption::Ts { val: got, .. }) => {
                let apart = i64::from(got.wrapping_sub(*wanted).cast_signed()).abs();
                if apart * settings.ts_tick > settings.tolerance {
                    return Err(format!("TSval is {got}, not {wanted}"));
                }
            }
            _ if wanted == got => {}
            _ => return Err("the options differ".into()),
        }
    }
    Ok(())
}

/// The IP header and the payload.
pub fn headers(packet: &Packet, got: &Received) -> Result<(), String> {
    let ecn = got.header.tos & 3;
    match packet.ip.ecn {
        Some(Ecn::Is(wanted)) => same("ECN", wanted, ecn)?,
        Some(Ecn::Ect01) if !matches!(ecn, 1 | 2) => {
            return Err(format!("ECN is {ecn}, not ECT(0) or ECT(1)"));
        }
        _ => {}
    }
    if let Some(wanted) = packet.ip.tos {
        same("TOS", wanted, got.header.tos)?;
    }
    if let Some(wanted) = packet.ip.ttl {
        same("TTL", wanted, got.header.ttl)?;
    }
    if got.blank { Ok(()) } else { Err("the payload is not what the program wrote".into()) }
}

/// Two segments that follow each other as one: where the stack cuts a long one is between it and its device.
///
/// # Errors
/// They don't belong together.
pub fn join(first: Received, next: &Received) -> Result<Received, String> {
    if next.tcp.seq != first.tcp.seq.wrapping_add(first.tcp.len) || next.tcp.len == 0 {
        return Err(format!(
            "{} bytes were sent, and then other ones ({} from {} on)",
            first.tcp.len,
            next.tcp.len,
            next.tcp.seq.wrapping_sub(first.tcp.seq)
        ));
    }
    let mut whole = first;
    // PSH and FIN are the last one's, CWR is the first one's.
    let last = Flags::PSH | Flags::FIN;
    whole.tcp.flags.bits = whole.tcp.flags.bits & !last | next.tcp.flags.bits & last;
    whole.tcp.len += next.tcp.len;
    whole.blank &= next.blank;
    (whole.tcp.win, whole.tcp.ack) = (next.tcp.win, next.tcp.ack);
    Ok(whole)
}
