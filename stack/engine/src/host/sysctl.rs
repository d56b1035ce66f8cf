//! The administrator's settings of TCP: what `net.ipv4.tcp_*` says in this network namespace is what a connection
//! begins with, on utcp as on the kernel.

use utcp_proto::{Config, CongestionKind, Duration, EcnMode};

/// The numbers of one setting; the first ones of those that stand there.
type Read<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The settings of connections in this network namespace, as they are now.
#[must_use]
pub fn tcp_settings() -> Config {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).ok();
    settings(&read)
}

fn numbers(read: Read<'_>, name: &str) -> Option<Vec<u64>> {
    read(name)?.split_whitespace().map(|word| word.parse().ok()).collect()
}

fn settings(read: Read<'_>) -> Config {
    let number = |name: &str| numbers(read, name)?.first().copied();
    let small = |name: &str, or: u8| number(name).map_or(or, |n| n.min(255) as u8);
    let is_on = |name: &str| number(name) != Some(0);
    let default = Config::DEFAULT;
    let largest = numbers(read, "tcp_rmem").and_then(|list| list.get(2).copied());
    let largest = largest.map_or(default.recv_capacity_max, |bytes| bytes.clamp(4096, 1 << 30) as u32);
    let orphan_retries = match small("tcp_orphan_retries", 0) {
        0 => default.orphan_retries, // Linux's own reading of 0.
        set => set,
    };
    let time = |name: &str, unit: fn(u64) -> Duration, or: Duration| {
        number(name).filter(|&n| n > 0).map_or(or, |n| unit(n.min(1 << 40)))
    };
    Config {
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
            .unwrap_or_default(),
        rto_min: time("tcp_rto_min_us", Duration::from_micros, default.rto_min),
        rto_max: time("tcp_rto_max_ms", Duration::from_millis, default.rto_max),
        syn_retries: small("tcp_syn_retries", default.syn_retries),
        synack_retries: small("tcp_synack_retries", default.synack_retries),
        retries: small("tcp_retries2", default.retries),
        orphan_retries,
        fin_timeout: time("tcp_fin_timeout", Duration::from_secs, default.fin_timeout),
        slow_start_after_idle: is_on("tcp_slow_start_after_idle"),
        ..default
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_the_default() {
        assert_eq!(settings(&|_| None), Config::DEFAULT);
        assert_eq!(settings(&|_| Some("nonsense".into())), Config::DEFAULT);
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
                    _ => return None,
                }
                .to_owned(),
            )
        };
        let config = settings(&read);
        assert_eq!((config.wscale(), config.timestamps, config.ecn), (8, false, EcnMode::Off));
        assert_eq!((config.congestion, config.syn_retries), (CongestionKind::NewReno, 5));
        assert_eq!((config.rto_min, config.orphan_retries), (Duration::from_millis(5), 8));
    }
}
