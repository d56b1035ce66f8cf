//! SYN cookies (RFC 4987 §3.6): a half-open connection that lives in the sequence number alone.
//!
//! ```text
//!  ISS = IRS + [ 5 bits: minute mod 32 | 3 bits: MSS index | 24 bits: hash(four-tuple, IRS, minute, MSS index) ]
//! ```
//!
//! What else the SYN offered (window scale, SACK, ECN) travels in the low six bits of our TSval, which the peer
//! echoes with its ACK; a peer without timestamps does without these.

use crate::actions::DropReason;
use crate::config::Config;
use crate::half_open::{Agreed, HalfOpen, ts_clock};
use crate::isn::Secret;
use crate::segment::{FourTuple, Segment, Transmit};
use crate::seq::SeqNum;
use crate::time::{Duration, Instant};

/// The MSS values that a cookie can carry; what the peer offered is rounded down to one of them.
const MSS_TABLE: [u16; 8] = [216, 536, 1_220, 1_360, 1_440, 1_460, 4_312, 8_960];
/// A cookie is good for this many minutes after the one it was made in.
const MINUTES_VALID: u64 = 2;
/// How long a cookie may be brought back at most.
pub const LIFETIME: Duration = Duration::from_secs((MINUTES_VALID + 1) * 60);
/// TSval: four bits of window scale (15 is none), then SACK, then ECN.
const TS_BITS: u32 = 6;
const TS_MASK: u32 = (1 << TS_BITS) - 1;
const WSCALE_NONE: u32 = 15;

fn minute(now: Instant) -> u64 {
    now.as_nanos() / 60_000_000_000
}

/// The SYN-ACK that answers `seg` and leaves nothing behind. The caller has checked that `seg` is a SYN without
/// ACK and RST.
#[must_use]
pub fn encode(secret: &Secret, cfg: &Config, now: Instant, tuple: FourTuple, seg: &Segment) -> Transmit {
    let mut half = HalfOpen::on_syn(cfg, now, tuple, SeqNum::new(0), seg);
    let index = MSS_TABLE.iter().rposition(|&mss| mss <= half.agreed.peer_mss).unwrap_or(0) as u32;
    half.iss = number(secret, &tuple, seg.seq, minute(now), index);
    if !half.agreed.timestamps {
        // RFC 4987 §3.6: without an echo these can't be remembered, so they are not agreed to.
        half.agreed =
            Agreed { wscale: false, rcv_wscale: 0, snd_wscale: 0, sack: false, ecn: false, ..half.agreed };
    }
    let mut tx = half.syn_ack(now);
    if let Some(ts) = &mut tx.options.timestamps {
        let wscale = if half.agreed.wscale { u32::from(half.agreed.snd_wscale) } else { WSCALE_NONE };
        let bits = wscale | u32::from(half.agreed.sack) << 4 | u32::from(half.agreed.ecn) << 5;
        // Round down, never up: the clock of the connection must not run behind a value it has shown.
        let clock = ts.val & !TS_MASK | bits;
        let ahead = SeqNum::new(clock).after(SeqNum::new(ts.val));
        ts.val = if ahead { clock.wrapping_sub(1 << TS_BITS) } else { clock };
    }
    tx
}

/// The half-open connection whose cookie `seg` brings back.
///
/// # Errors
/// [`DropReason::BadCookie`] if it is none of ours or too old; answer with [`crate::reset_for`].
pub fn decode(
    secret: &Secret,
    cfg: &Config,
    now: Instant,
    tuple: FourTuple,
    seg: &Segment,
) -> Result<HalfOpen, DropReason> {
    let iss = seg.ack.ok_or(DropReason::AckMissing)? - 1;
    let irs = seg.seq - 1;
    let field = irs.distance_to(iss);
    let index = field >> 24 & 7;
    let age = (minute(now).wrapping_sub(u64::from(field >> 27))) & 31;
    let then = minute(now).checked_sub(age).ok_or(DropReason::BadCookie)?;
    if age > MINUTES_VALID || number(secret, &tuple, irs, then, index) != iss {
        return Err(DropReason::BadCookie);
    }
    let peer_mss = MSS_TABLE.get(index as usize).copied().unwrap_or(536);
    let mut agreed = Agreed { peer_mss, ..Agreed::default() };
    if let (true, Some(ts)) = (cfg.timestamps, seg.options.timestamps) {
        // An echo from the future or from long ago was not made here: RFC 7323 §4.3 leaves it to us to check.
        let clock = ts_clock(now, cfg.ts_offset);
        if ts.ecr.wrapping_sub(1 << TS_BITS) != clock && SeqNum::new(ts.ecr).after(SeqNum::new(clock) + 1) {
            return Err(DropReason::BadCookie);
        }
        let bits = ts.ecr & TS_MASK;
        let wscale = bits & 15;
        agreed.timestamps = true;
        agreed.wscale = wscale != WSCALE_NONE;
        agreed.snd_wscale = if agreed.wscale { wscale.min(14) as u8 } else { 0 };
        agreed.rcv_wscale = if agreed.wscale { cfg.wscale() } else { 0 };
        agreed.sack = bits & 16 != 0;
        agreed.ecn = bits & 32 != 0;
    }
    Ok(HalfOpen::from_cookie(cfg, now, tuple, (iss, irs), agreed, seg))
}

/// The ISS of the cookie made for a SYN with sequence number `irs` in the given minute.
fn number(secret: &Secret, tuple: &FourTuple, irs: SeqNum, minute: u64, index: u32) -> SeqNum {
    let hash = secret.cookie(tuple, irs, minute << 3 | u64::from(index)) as u32 & 0x00ff_ffff;
    irs + ((minute as u32 & 31) << 27 | index << 24 | hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::{Endpoint, Flags, Options, Timestamps};
    use crate::wire::IpAddr;

    const SECRET: Secret = Secret::new(1, 2);

    fn tuple() -> FourTuple {
        FourTuple {
            local: Endpoint { addr: IpAddr::v4([10, 0, 0, 1]), port: 80 },
            remote: Endpoint { addr: IpAddr::v4([10, 0, 0, 2]), port: 4_000 },
        }
    }

    fn syn(options: Options) -> Segment {
        Segment {
            seq: SeqNum::new(0xffff_fff0),
            flags: Flags::SYN,
            wnd: 1_000,
            options,
            ..Segment::default()
        }
    }

    fn ack_of(syn_ack: &Transmit) -> Segment {
        let timestamps = syn_ack.options.timestamps.map(|ts| Timestamps { val: 78, ecr: ts.val });
        Segment {
            seq: syn_ack.ack.expect("an ACK"),
            ack: Some(syn_ack.seq + 1),
            wnd: 500,
            options: Options { timestamps, ..Options::default() },
            ..Segment::default()
        }
    }

    #[test]
    fn carries_all_options_with_timestamps() {
        let now = Instant::from_millis(987_654_321);
        let options = Options {
            mss: Some(1_400),
            wscale: Some(9),
            sack_permitted: true,
            timestamps: Some(Timestamps { val: 77, ecr: 0 }),
            ..Options::default()
        };
        let tx = encode(&SECRET, &Config::DEFAULT, now, tuple(), &syn(options));
        let later = now + Duration::from_secs(61);
        let half = decode(&SECRET, &Config::DEFAULT, later, tuple(), &ack_of(&tx)).expect("our cookie");
        assert_eq!(half.agreed.peer_mss, 1_360, "rounded down");
        assert_eq!((half.agreed.snd_wscale, half.agreed.wscale), (9, true));
        assert!(half.agreed.sack && half.agreed.timestamps && !half.agreed.ecn);
        assert_eq!((half.iss, half.irs), (tx.seq, SeqNum::new(0xffff_fff0)));
    }

    #[test]
    fn does_without_options_when_there_are_no_timestamps() {
        let now = Instant::from_millis(5);
        let options =
            Options { mss: Some(9_000), wscale: Some(9), sack_permitted: true, ..Options::default() };
        let tx = encode(&SECRET, &Config::DEFAULT, now, tuple(), &syn(options));
        assert_eq!((tx.options.wscale, tx.options.sack_permitted), (None, false));
        let half = decode(&SECRET, &Config::DEFAULT, now, tuple(), &ack_of(&tx)).expect("our cookie");
        assert_eq!((half.agreed.peer_mss, half.agreed.wscale, half.agreed.sack), (8_960, false, false));
    }

    #[test]
    fn refuses_what_is_old_or_forged() {
        let now = Instant::from_millis(1_000_000_000);
        let tx = encode(&SECRET, &Config::DEFAULT, now, tuple(), &syn(Options::default()));
        let ack = ack_of(&tx);
        let check = |tuple, now, seg: &Segment| decode(&SECRET, &Config::DEFAULT, now, tuple, seg).is_ok();
        assert!(check(tuple(), now, &ack));
        assert!(!check(tuple(), now + Duration::from_secs(240), &ack), "too old");
        assert!(!check(tuple().reversed(), now, &ack), "another connection");
        for bit in 0..32 {
            let forged = Segment { ack: ack.ack.map(|n| n + (1 << bit)), ..ack };
            assert!(!check(tuple(), now, &forged), "bit {bit}");
        }
    }
}
