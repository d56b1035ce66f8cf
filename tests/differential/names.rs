//! Names of constants: flags, events, options, errors.

use std::ffi::CStr;

unsafe extern "C" {
    fn strerrorname_np(error: libc::c_int) -> *const libc::c_char;
}

/// `EAGAIN` and the like.
pub fn errno(error: i32) -> String {
    // SAFETY: libc's function; it returns null or a literal.
    let name = unsafe { strerrorname_np(error) };
    if name.is_null() {
        return error.to_string();
    }
    // SAFETY: not null, so a literal of libc.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

const MSG: &[(&str, i32)] = &[
    ("peek", libc::MSG_PEEK),
    ("waitall", libc::MSG_WAITALL),
    ("dontwait", libc::MSG_DONTWAIT),
    ("trunc", libc::MSG_TRUNC),
    ("more", libc::MSG_MORE),
    ("nosignal", libc::MSG_NOSIGNAL),
    ("oob", libc::MSG_OOB),
    ("errqueue", libc::MSG_ERRQUEUE),
    ("zerocopy", libc::MSG_ZEROCOPY),
    ("waitforone", libc::MSG_WAITFORONE),
];

const EVENTS: &[(&str, u32)] = &[
    ("in", 0x1),
    ("pri", 0x2),
    ("out", 0x4),
    ("err", 0x8),
    ("hup", 0x10),
    ("nval", 0x20),
    ("rdnorm", 0x40),
    ("rdband", 0x80),
    ("wrnorm", 0x100),
    ("wrband", 0x200),
    ("rdhup", 0x2000),
    ("exclusive", 1 << 28),
    ("oneshot", 1 << 30),
    ("et", 1 << 31),
];

/// Sum of the flags of send and recv among `words`.
pub fn message_flags<'a>(words: impl Iterator<Item = &'a str>) -> i32 {
    words.filter_map(|word| MSG.iter().find(|(name, _)| *name == word)).fold(0, |sum, (_, flag)| sum | flag)
}

/// Sum of the events in a word such as `in|rdhup`.
pub fn events(word: &str) -> u32 {
    word.split('|')
        .filter(|name| !name.is_empty() && *name != "none")
        .map(|name| EVENTS.iter().find(|(n, _)| *n == name).unwrap_or_else(|| panic!("event {name}")).1)
        .fold(0, |sum, event| sum | event)
}

/// The word for a sum of events.
pub fn events_text(sum: u32) -> String {
    let names: Vec<&str> =
        EVENTS.iter().filter(|(_, event)| sum & event != 0).map(|(name, _)| *name).collect();
    if names.is_empty() { "none".to_owned() } else { names.join("|") }
}

/// Level and number of a socket option.
pub fn option(word: &str) -> (i32, i32) {
    let sol = libc::SOL_SOCKET;
    let tcp = libc::IPPROTO_TCP;
    match word {
        "ERROR" => (sol, libc::SO_ERROR),
        "TYPE" => (sol, libc::SO_TYPE),
        "DOMAIN" => (sol, libc::SO_DOMAIN),
        "PROTOCOL" => (sol, libc::SO_PROTOCOL),
        "ACCEPTCONN" => (sol, libc::SO_ACCEPTCONN),
        "REUSEADDR" => (sol, libc::SO_REUSEADDR),
        "REUSEPORT" => (sol, libc::SO_REUSEPORT),
        "KEEPALIVE" => (sol, libc::SO_KEEPALIVE),
        "LINGER" => (sol, libc::SO_LINGER),
        "SNDBUF" => (sol, libc::SO_SNDBUF),
        "RCVBUF" => (sol, libc::SO_RCVBUF),
        "RCVLOWAT" => (sol, libc::SO_RCVLOWAT),
        "SNDLOWAT" => (sol, libc::SO_SNDLOWAT),
        "RCVTIMEO" => (sol, libc::SO_RCVTIMEO),
        "SNDTIMEO" => (sol, libc::SO_SNDTIMEO),
        "BROADCAST" => (sol, libc::SO_BROADCAST),
        "OOBINLINE" => (sol, libc::SO_OOBINLINE),
        "PRIORITY" => (sol, libc::SO_PRIORITY),
        "DONTROUTE" => (sol, libc::SO_DONTROUTE),
        "TIMESTAMP" => (sol, libc::SO_TIMESTAMP),
        "SNDBUFFORCE" => (sol, libc::SO_SNDBUFFORCE),
        "BINDTODEVICE" => (sol, libc::SO_BINDTODEVICE),
        "ZEROCOPY" => (sol, libc::SO_ZEROCOPY),
        "COOKIE" => (sol, libc::SO_COOKIE),
        "MEMINFO" => (sol, libc::SO_MEMINFO),
        "PEERNAME" => (sol, libc::SO_PEERNAME),
        "MAX_PACING_RATE" => (sol, libc::SO_MAX_PACING_RATE),
        "SELECT_ERR_QUEUE" => (sol, libc::SO_SELECT_ERR_QUEUE),
        "BUSY_POLL" => (sol, libc::SO_BUSY_POLL),
        "PREFER_BUSY_POLL" => (sol, libc::SO_PREFER_BUSY_POLL),
        "PASSCRED" => (sol, libc::SO_PASSCRED),
        "ATTACH_REUSEPORT_EBPF" => (sol, libc::SO_ATTACH_REUSEPORT_EBPF),
        "INCOMING_NAPI_ID" => (sol, libc::SO_INCOMING_NAPI_ID),
        "INQ" => (tcp, libc::TCP_INQ),
        "WINDOW_CLAMP" => (tcp, libc::TCP_WINDOW_CLAMP),
        "ULP" => (tcp, libc::TCP_ULP),
        "REPAIR_QUEUE" => (tcp, libc::TCP_REPAIR_QUEUE),
        "SAVE_SYN" => (tcp, libc::TCP_SAVE_SYN),
        "SAVED_SYN" => (tcp, libc::TCP_SAVED_SYN),
        "MD5SIG" => (tcp, libc::TCP_MD5SIG),
        "MTU" => (libc::IPPROTO_IP, libc::IP_MTU),
        "MTU_DISCOVER" => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
        "RECVERR" => (libc::IPPROTO_IP, libc::IP_RECVERR),
        "RECVTTL" => (libc::IPPROTO_IP, libc::IP_RECVTTL),
        "UNICAST_HOPS" => (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
        "RECVPKTINFO" => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
        "BOGUS" => (sol, 9999),
        "NODELAY" => (tcp, libc::TCP_NODELAY),
        "CORK" => (tcp, libc::TCP_CORK),
        "MAXSEG" => (tcp, libc::TCP_MAXSEG),
        "KEEPIDLE" => (tcp, libc::TCP_KEEPIDLE),
        "KEEPINTVL" => (tcp, libc::TCP_KEEPINTVL),
        "KEEPCNT" => (tcp, libc::TCP_KEEPCNT),
        "SYNCNT" => (tcp, libc::TCP_SYNCNT),
        "LINGER2" => (tcp, libc::TCP_LINGER2),
        "DEFER_ACCEPT" => (tcp, libc::TCP_DEFER_ACCEPT),
        "QUICKACK" => (tcp, libc::TCP_QUICKACK),
        "USER_TIMEOUT" => (tcp, libc::TCP_USER_TIMEOUT),
        "FASTOPEN" => (tcp, libc::TCP_FASTOPEN),
        "FASTOPEN_CONNECT" => (tcp, libc::TCP_FASTOPEN_CONNECT),
        "FASTOPEN_NO_COOKIE" => (tcp, libc::TCP_FASTOPEN_NO_COOKIE),
        "NOTSENT_LOWAT" => (tcp, libc::TCP_NOTSENT_LOWAT),
        "INFO" => (tcp, libc::TCP_INFO),
        "CONGESTION" => (tcp, libc::TCP_CONGESTION),
        "TCP_BOGUS" => (tcp, 9999),
        "TOS" => (libc::IPPROTO_IP, libc::IP_TOS),
        "TTL" => (libc::IPPROTO_IP, libc::IP_TTL),
        "FREEBIND" => (libc::IPPROTO_IP, libc::IP_FREEBIND),
        "BIND_ADDRESS_NO_PORT" => (libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT),
        "TRANSPARENT" => (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
        "V6ONLY" => (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
        "TCLASS" => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
        _ => panic!("option {word}"),
    }
}
