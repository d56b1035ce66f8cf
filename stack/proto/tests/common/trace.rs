//! One line for a segment.

use utcp_proto::Transmit;

pub(super) fn describe(tx: &Transmit, len: usize) -> String {
    use utcp_proto::Flags;
    let mut flags = String::new();
    for (flag, letter) in [
        (Flags::SYN, 'S'),
        (Flags::FIN, 'F'),
        (Flags::RST, 'R'),
        (Flags::PSH, 'P'),
        (Flags::URG, 'U'),
        (Flags::ECE, 'E'),
        (Flags::CWR, 'W'),
    ] {
        if tx.flags.any(flag) {
            flags.push(letter);
        }
    }
    let ack = tx.ack.map_or(String::new(), |a| format!(" ack {}", a.raw()));
    let sack: Vec<String> =
        tx.options.sack.as_slice().iter().map(|b| format!("{}..{}", b.start.raw(), b.end.raw())).collect();
    let again = if tx.retransmission { " again" } else { "" };
    format!("{flags} {}+{len}{ack} win {}{again} {}", tx.seq.raw(), tx.wnd, sack.join(" "))
}
