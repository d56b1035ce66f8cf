//! Our parsers beside those of `etherparse` and `smoltcp`: what we accept they accept, with the same meaning, and what we
//! refuse they refuse or we say why.

use etherparse::{Ipv4HeaderSlice, Ipv6Slice, TcpHeaderSlice, TcpOptionElement};
use smoltcp::wire::{Ipv4Packet, TcpOption, TcpPacket};
use utcp_proto::wire::{WireError, checksum, ipv4, ipv6, tcp};
use utcp_proto::{Flags, Options};

/// All three, on the same bytes.
pub fn all(bytes: &[u8]) {
    check_ipv4(bytes);
    check_ipv4(&repaired_ipv4(bytes));
    check_ipv6(bytes);
    check_ipv6(&repaired_ipv6(bytes));
    check_tcp(bytes);
}

/// With a version, a length and a checksum that are right: random bytes hardly ever get past those.
fn repaired_ipv4(bytes: &[u8]) -> Vec<u8> {
    let mut packet = bytes.to_vec();
    if packet.len() >= 20 {
        packet[0] = 0x40 | packet[0] & 15;
        packet[2..4].copy_from_slice(&(bytes.len() as u16).to_be_bytes());
        packet[10..12].fill(0);
        let header = (usize::from(packet[0] & 15) * 4).min(packet.len());
        let sum = checksum::of(&packet[..header]).to_be_bytes();
        packet[10..12].copy_from_slice(&sum);
    }
    packet
}

fn repaired_ipv6(bytes: &[u8]) -> Vec<u8> {
    let mut packet = bytes.to_vec();
    if packet.len() >= 40 {
        packet[0] = 0x60 | packet[0] & 15;
        let len = (packet.len() - 40) as u16;
        packet[4..6].copy_from_slice(&len.to_be_bytes());
        // Extension headers half of the time.
        if packet[7] & 1 == 0 {
            packet[6] = [0, 43, 44, 60][usize::from(packet[7] >> 1) % 4];
        }
    }
    packet
}

fn check_ipv4(packet: &[u8]) {
    let theirs = Ipv4HeaderSlice::from_slice(packet);
    let second = Ipv4Packet::new_checked(packet);
    match ipv4::parse(packet) {
        Ok((ours, range)) => {
            let theirs = theirs.expect("etherparse takes what we take");
            assert_eq!(ours.src.v4_bytes(), theirs.source());
            assert_eq!(ours.dst.v4_bytes(), theirs.destination());
            assert_eq!(ours.protocol, theirs.protocol().0);
            assert_eq!(ours.ttl, theirs.ttl());
            assert_eq!(ours.dscp, theirs.dcp().value());
            assert_eq!(ours.ecn, theirs.ecn().value());
            assert_eq!(ours.ident, theirs.identification());
            assert_eq!(ours.dont_fragment, theirs.dont_fragment());
            assert_eq!(ours.fragment.is_some(), theirs.is_fragmenting_payload());
            let (offset, more) = ours.fragment.map_or((0, false), |f| (f.offset, f.more));
            assert_eq!(offset, u32::from(theirs.fragments_offset().value()) * 8);
            assert_eq!(more, theirs.more_fragments());
            assert_eq!(range, theirs.slice().len()..usize::from(theirs.total_len()));
            let second = second.expect("smoltcp takes what we take");
            assert!(sums_up(&packet[..range.start]), "we took a bad checksum");
            assert_eq!(range, usize::from(second.header_len())..usize::from(second.total_len()));
            assert_eq!(offset, u32::from(second.frag_offset()));
        }
        // What smoltcp takes and we refuse: a bad checksum, or another version, which it does not look at.
        Err(reason) => {
            if let Ok(second) = second
                && second.header_len() >= 20
            {
                let header = &packet[..usize::from(second.header_len())];
                let why = second.version() != 4 || !sums_up(header);
                assert!(why, "{reason:?} where smoltcp finds nothing wrong: {packet:02x?}");
            }
        }
    }
}

/// RFC 791: the ones' complement sum of a whole header is all ones. (smoltcp's own check is always true under a fuzzer.)
fn sums_up(header: &[u8]) -> bool {
    let sum: u64 = header.chunks_exact(2).map(|word| u64::from(word[0]) << 8 | u64::from(word[1])).sum();
    sum != 0 && sum.is_multiple_of(0xffff)
}

fn check_ipv6(packet: &[u8]) {
    let (Ok((ours, range)), Ok(theirs)) = (ipv6::parse(packet), Ipv6Slice::from_slice(packet)) else {
        return;
    };
    let header = theirs.header();
    assert_eq!(ours.src.0, header.source());
    assert_eq!(ours.dst.0, header.destination());
    assert_eq!(ours.hop_limit, header.hop_limit());
    assert_eq!((ours.dscp, ours.ecn), (header.dscp().value(), header.ecn().value()));
    assert_eq!(ours.flow_label, header.flow_label().value());
    // A length of zero means a jumbogram to it (RFC 2675), which takes all that is there.
    if header.payload_length() == 0 {
        return;
    }
    // It walks over headers that are the payload for us: authentication, mobility, HIP, Shim6.
    if matches!(ours.protocol, 51 | 135 | 139 | 140) {
        return;
    }
    let payload = theirs.payload();
    assert_eq!(ours.fragment.is_some(), payload.fragmented, "{packet:02x?}");
    // We look no further than the header of a fragment.
    if ours.fragment.is_none() {
        assert_eq!(ours.protocol, payload.ip_number.0, "{packet:02x?}");
        assert_eq!(&packet[range], payload.payload, "{packet:02x?}");
    }
}

fn check_tcp(bytes: &[u8]) {
    let theirs = TcpHeaderSlice::from_slice(bytes);
    let ours = match tcp::parse(bytes) {
        Ok(ours) => ours,
        Err(WireError::BadOption) => return,
        Err(reason) => {
            assert!(theirs.is_err(), "{reason:?} where etherparse finds nothing wrong: {bytes:02x?}");
            return;
        }
    };
    let theirs = theirs.expect("etherparse takes what we take");
    let segment = &ours.segment;
    assert_eq!((ours.src_port, ours.dst_port), (theirs.source_port(), theirs.destination_port()));
    assert_eq!(segment.seq.raw(), theirs.sequence_number());
    assert_eq!(
        segment.ack.map(utcp_proto::SeqNum::raw),
        theirs.ack().then(|| theirs.acknowledgment_number())
    );
    assert_eq!((segment.wnd, segment.urg), (theirs.window_size(), theirs.urgent_pointer()));
    assert_eq!(ours.payload, theirs.slice().len());
    for (flag, set) in [
        (Flags::FIN, theirs.fin()),
        (Flags::SYN, theirs.syn()),
        (Flags::RST, theirs.rst()),
        (Flags::PSH, theirs.psh()),
        (Flags::URG, theirs.urg()),
        (Flags::ECE, theirs.ece()),
        (Flags::CWR, theirs.cwr()),
    ] {
        assert_eq!(segment.flags.any(flag), set);
    }
    check_options(&segment.options, &theirs);
    if let Ok(second) = TcpPacket::new_checked(bytes) {
        check_second_options(&segment.options, second.options());
    }
}

/// `etherparse` stops at the first option that is not as it should be; then there is nothing to compare.
fn check_options(ours: &Options, theirs: &TcpHeaderSlice<'_>) {
    let mut seen = Options::default();
    for element in theirs.options_iterator() {
        match element {
            Ok(TcpOptionElement::Noop) => {}
            Ok(TcpOptionElement::MaximumSegmentSize(mss)) => seen.mss = Some(mss).filter(|&mss| mss != 0),
            Ok(TcpOptionElement::WindowScale(shift)) => seen.wscale = Some(shift.min(14)),
            Ok(TcpOptionElement::SelectiveAcknowledgementPermitted) => seen.sack_permitted = true,
            Ok(TcpOptionElement::Timestamp(val, ecr)) => {
                seen.timestamps = Some(utcp_proto::Timestamps { val, ecr });
            }
            Ok(TcpOptionElement::SelectiveAcknowledgement(first, rest)) => {
                for (start, end) in std::iter::once(first).chain(rest.into_iter().flatten()) {
                    let (start, end) = (utcp_proto::SeqNum::new(start), utcp_proto::SeqNum::new(end));
                    seen.sack.push(utcp_proto::SackBlock { start, end });
                }
            }
            Err(_) => return,
        }
    }
    // It does not know this one, and would have stopped at it.
    assert_eq!(Options { fast_open: None, ..*ours }, seen);
}

/// `smoltcp` knows all but Fast Open and skips what it does not know.
fn check_second_options(ours: &Options, mut raw: &[u8]) {
    let (mut mss, mut wscale, mut permitted, mut timestamps) = (None, None, false, None);
    while !raw.is_empty() {
        let Ok((rest, option)) = TcpOption::parse(raw) else { return };
        match option {
            TcpOption::EndOfList => break,
            TcpOption::MaxSegmentSize(size) => mss = Some(size).filter(|&size| size != 0),
            TcpOption::WindowScale(shift) => wscale = Some(shift.min(14)),
            TcpOption::SackPermitted => permitted = true,
            TcpOption::TimeStamp { tsval, tsecr } => timestamps = Some((tsval, tsecr)),
            _ => {}
        }
        raw = rest;
    }
    assert_eq!((ours.mss, ours.wscale, ours.sack_permitted), (mss, wscale, permitted));
    assert_eq!(ours.timestamps.map(|ts| (ts.val, ts.ecr)), timestamps);
}
