//! The administrator's settings of TCP: what `net.ipv4.tcp_*` says in this network namespace is what a connection
//! begins with, on utcp as on the kernel.

use utcp_proto::{Config, CongestionKind, Duration, EcnMode, MtuProbing, siphash};

use crate::shard::fast_open::{FastOpenKeys, FastOpenSettings};
use crate::shard::streams::{FIRST_MAX, STREAM_LOG2};

/// What connections begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSettings {
    /// What the TCB is told.
    pub config: Config,
    /// Bytes that a program may have queued on a new connection (`tcp_wmem`'s second number).
    pub send_capacity: u32,
    /// Fast Open.
    pub fast_open: FastOpenSettings,
    /// Bytes not sent yet from which on a socket is not writable (`tcp_notsent_lowat`).
    pub notsent_lowat: u32,
}

impl TcpSettings {
    /// Linux's own defaults, and streams as they lie in a socket's slot.
    pub const DEFAULT: Self = Self {
        config: Config { recv_capacity: 1 << STREAM_LOG2, ..Config::DEFAULT },
        send_capacity: 1 << STREAM_LOG2,
        fast_open: FastOpenSettings { flags: 1, keys: FastOpenKeys::NONE },
        notsent_lowat: u32::MAX,
    };
}

/// Linux's default for `tcp_rmem`'s second number. A new connection's window is half of it there; ours is what lies in
/// every slot anyway, and grows with the first round trips, unless somebody asked for more.
const RMEM_DEFAULT: u64 = 131_072;

/// Reads one setting.
type Read<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The settings of connections in this network namespace, as they are now.
#[must_use]
pub fn tcp_settings() -> TcpSettings {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).ok();
    settings(&read)
}

fn numbers(read: Read<'_>, name: &str) -> Option<Vec<u64>> {
    read(name)?.split_whitespace().map(|word| word.parse().ok()).collect()
}

fn settings(read: Read<'_>) -> TcpSettings {
    let number = |name: &str| numbers(read, name)?.first().copied();
    let small = |name: &str, or: u8| number(name).map_or(or, |n| n.min(255) as u8);
    let is_on = |name: &str| number(name) != Some(0);
    let default = TcpSettings::DEFAULT.config;
    let largest = numbers(read, "tcp_rmem").and_then(|list| list.get(2).copied());
    let largest = largest.map_or(default.recv_capacity_max, |bytes| bytes.clamp(4096, 1 << 30) as u32);
    let second = |name: &str| numbers(read, name).and_then(|list| list.get(1).copied());
    let own = 1u64 << STREAM_LOG2;
    let bounded = |bytes: u64| bytes.clamp(own, u64::from(FIRST_MAX)) as u32;
    let recv_capacity =
        second("tcp_rmem").filter(|&bytes| bytes > RMEM_DEFAULT).map_or(own, |bytes| bytes / 2);
    let orphan_retries = match small("tcp_orphan_retries", 0) {
        0 => default.orphan_retries, // Linux's own reading of 0.
        set => set,
    };
    let time = |name: &str, unit: fn(u64) -> Duration, or: Duration| {
        number(name).filter(|&n| n > 0).map_or(or, |n| unit(n.min(1 << 40)))
    };
    let config = Config {
        recv_capacity: bounded(recv_capacity),
        recv_capacity_max: largest,
        window_scaling: is_on("tcp_window_scaling"),
        timestamps: is_on("tcp_timestamps"),
        sack: is_on("tcp_sack"),
        ecn: match number("tcp_ecn") {
            Some(0) => EcnMode::Off,
            // 3 and 4 ask for accurate ECN, of which RFC 3168's is what we have.
            Some(1 | 3 | 4) => EcnMode::Active,
            _ => EcnMode::Passive,
        },
        congestion: read("tcp_congestion_control")
            .and_then(|name| CongestionKind::from_name(name.trim().as_bytes()))
            // The kernel's BBR is another one than ours: whoever wants ours asks for it.
            .filter(|&kind| kind != CongestionKind::Bbr)
            .unwrap_or_default(),
        rto_min: time("tcp_rto_min_us", Duration::from_micros, default.rto_min),
        rto_max: time("tcp_rto_max_ms", Duration::from_millis, default.rto_max),
        syn_retries: small("tcp_syn_retries", default.syn_retries),
        synack_retries: small("tcp_synack_retries", default.synack_retries),
        retries: small("tcp_retries2", default.retries),
        orphan_retries,
        fin_timeout: time("tcp_fin_timeout", Duration::from_secs, default.fin_timeout),
        mtu_probing: match number("tcp_mtu_probing") {
            Some(1) => MtuProbing::AfterBlackHole,
            Some(2) => MtuProbing::Always,
            _ => MtuProbing::Off,
        },
        base_mss: number("tcp_base_mss").map_or(default.base_mss, |bytes| bytes.clamp(88, 65_495) as u16),
        path_mtu_age_s: number("route/mtu_expires")
            .filter(|&seconds| seconds > 0)
            .map_or(default.path_mtu_age_s, |seconds| seconds.min(u64::from(u16::MAX)) as u16),
        slow_start_after_idle: is_on("tcp_slow_start_after_idle"),
        challenge_gap: number("tcp_invalid_ratelimit")
            .map_or(default.challenge_gap, |ms| Duration::from_millis(ms.min(1 << 20))),
        ..default
    };
    let fast_open = FastOpenSettings {
        flags: number("tcp_fastopen").map_or(1, |flags| flags as u32),
        keys: read("tcp_fastopen_key").map_or(FastOpenKeys::NONE, |text| keys(&text)),
    };
    TcpSettings {
        config,
        send_capacity: second("tcp_wmem").map_or(1 << STREAM_LOG2, bounded),
        fast_open,
        notsent_lowat: number("tcp_notsent_lowat").map_or(u32::MAX, |bytes| bytes as u32),
    }
}

/// `tcp_fastopen_key`: a key, and perhaps behind a comma the one before it.
fn keys(text: &str) -> FastOpenKeys {
    let mut list = text.trim().split(',').map(key);
    match list.next().flatten() {
        Some(current) => FastOpenKeys { current: Some(current), before: list.next().flatten() },
        None => FastOpenKeys::NONE,
    }
}

/// Four numbers in hexadecimal. Zeros are none.
fn key(text: &str) -> Option<siphash::Key> {
    let mut words = [0u64; 4];
    for (word, text) in words.iter_mut().zip(text.split('-')) {
        *word = u64::from_str_radix(text, 16).ok()?;
    }
    let [a, b, c, d] = words;
    (words != [0; 4]).then_some(siphash::Key([a | b << 32, c | d << 32]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_the_default() {
        assert_eq!(settings(&|_| None), TcpSettings::DEFAULT);
        assert_eq!(settings(&|_| Some("nonsense".into())), TcpSettings::DEFAULT);
    }

    #[test]
    fn keys_of_fast_open() {
        let first = siphash::Key([0x0000_0002_0000_0001, 0x0000_000b_0000_000a]);
        let one = FastOpenKeys { current: Some(first), before: None };
        assert_eq!(keys("00000001-00000002-0000000a-0000000b\n"), one);
        let second = siphash::Key([1 << 32, 0]);
        let two = FastOpenKeys { before: Some(second), ..one };
        let text = "00000001-00000002-0000000a-0000000b,00000000-00000001-00000000-00000000\n";
        assert_eq!(keys(text), two);
        for none in ["", "x", "00000000-00000000-00000000-00000000\n"] {
            assert_eq!(keys(none), FastOpenKeys::NONE, "{none}");
        }
    }

    #[test]
    fn what_is_said_counts() {
        let read = |name: &str| {
            Some(
                match name {
                    "tcp_rmem" => "4096\t540000\t15728640\n",
                    "tcp_timestamps" | "tcp_ecn" | "tcp_orphan_retries" => "0\n",
                    "tcp_congestion_control" => "reno\n",
                    "tcp_syn_retries" => "5\n",
                    "tcp_rto_min_us" => "5000\n",
                    "route/mtu_expires" => "120\n",
                    _ => return None,
                }
                .to_owned(),
            )
        };
        let TcpSettings { config, send_capacity, .. } = settings(&read);
        assert_eq!((config.recv_capacity, send_capacity), (FIRST_MAX, 1 << STREAM_LOG2));
        assert_eq!((config.wscale(), config.timestamps, config.ecn), (8, false, EcnMode::Off));
        assert_eq!((config.congestion, config.syn_retries), (CongestionKind::NewReno, 5));
        assert_eq!((config.rto_min, config.orphan_retries), (Duration::from_millis(5), 8));
        assert_eq!(config.path_mtu_age_s, 120);
    }
}
