use super::*;

const A: IpAddr = IpAddr::v4([10, 0, 0, 1]);
const B: IpAddr = IpAddr::v4([10, 0, 0, 2]);

fn sack(n: u32) -> SackBlocks {
    let mut blocks = SackBlocks::NONE;
    for i in 0..n {
        let start = SeqNum::new(1_000 * i);
        blocks.push(SackBlock { start, end: start + 100 });
    }
    blocks
}

fn round_trip(options: Options) {
    let tx = Transmit {
        seq: SeqNum::new(0xdead_beef),
        ack: Some(SeqNum::new(7)),
        flags: Flags::PSH,
        wnd: 0x1234,
        urg: 9,
        options,
        ..Transmit::default()
    };
    let mut out = [0u8; 70];
    let n = emit(&tx, 80, 40_000, &mut out).expect("room");
    assert_eq!(n % 4, 0);
    out[n..n + 3].copy_from_slice(b"abc");
    let (header, payload) = out.split_at_mut(n);
    fill_checksum(A, B, header, [&payload[..1], &payload[1..3]]);
    let bytes = &out[..n + 3];
    assert_eq!(verify(A, B, bytes, Verify::Full), Ok(()));
    let repr = parse(bytes).expect("a header");
    assert_eq!((repr.src_port, repr.dst_port, repr.payload), (80, 40_000, n));
    assert_eq!(repr.segment, Segment { len: 3, ..Segment::from_transmit(&tx) });
    assert_eq!(emit(&tx, 1, 2, &mut out[..n - 1]), Err(WireError::NoRoom));
}

#[test]
fn every_combination_of_options_round_trips() {
    let ts = Some(Timestamps { val: 1, ecr: 2 });
    for bits in 0..64 {
        let options = Options {
            mss: (bits & 1 != 0).then_some(1_460),
            wscale: (bits & 2 != 0).then_some(7),
            sack_permitted: bits & 4 != 0,
            timestamps: if bits & 8 != 0 { ts } else { None },
            sack: sack(if bits & 16 != 0 { 1 } else { 0 }),
            fast_open: (bits & 32 != 0).then_some(FastOpenCookie::REQUEST),
        };
        round_trip(options);
    }
    for n in 0..=4 {
        round_trip(Options { sack: sack(n), ..Options::default() });
    }
    for n in [4, 6, 8, 16] {
        let cookie = FastOpenCookie::new(&[5; 16][..n]);
        round_trip(Options { fast_open: cookie, ..Options::default() });
        let cookie = cookie.map(|cookie| cookie.experimental(true));
        round_trip(Options { fast_open: cookie, ..Options::default() });
    }
}

#[test]
fn too_many_options_are_refused() {
    let options = Options { timestamps: Some(Timestamps::default()), sack: sack(4), ..Options::default() };
    let tx = Transmit { options, ..Transmit::default() };
    assert_eq!(emit(&tx, 1, 2, &mut [0; 100]), Err(WireError::BadOption));
}

#[track_caller]
fn check_options(raw: &[u8], expected: Result<Options, WireError>) {
    assert_eq!(parse_options(raw), expected);
}

/// RFC 9293 §3.2, MUST-7: "be prepared to handle an illegal option length".
#[test]
fn options_from_a_careless_or_hostile_peer() {
    let none = Options::default();
    check_options(&[1, 1, 1, 0, 99, 99], Ok(none));
    check_options(&[253, 4, 1, 2, 2, 4, 5, 180], Ok(Options { mss: Some(1_460), ..none }));
    check_options(&[2, 0, 0, 0], Err(WireError::BadOption));
    check_options(&[2, 1, 0, 0], Err(WireError::BadOption));
    check_options(&[1, 1, 1, 8], Err(WireError::BadOption));
    check_options(&[8, 10, 0, 0], Err(WireError::BadOption));
    check_options(&[2, 3, 5, 0], Ok(none));
    check_options(&[2, 4, 0, 0], Ok(none));
    check_options(&[3, 3, 99, 0], Ok(Options { wscale: Some(14), ..none }));
    check_options(&[5, 5, 1, 1, 1, 0, 0, 0], Ok(none));
}

#[test]
fn malformed_headers_are_named() {
    let mut out = [0u8; 24];
    emit(&Transmit::default(), 1, 2, &mut out).expect("room");
    assert_eq!(parse(&out[..19]), Err(WireError::Truncated));
    out[12] = 4 << 4;
    assert_eq!(parse(&out), Err(WireError::BadLength));
    out[12] = 7 << 4;
    assert_eq!(parse(&out), Err(WireError::Truncated));
}

#[test]
fn partial_checksums_count_only_where_allowed() {
    let mut out = [0u8; 25];
    let n = emit(&Transmit::default(), 1, 2, &mut out).expect("room");
    out[n..].copy_from_slice(b"abcde");
    fill_partial_checksum(A, B, &mut out[..n], 25);
    assert_eq!(verify(A, B, &out, Verify::AllowPartial), Ok(()));
    assert_eq!(verify(A, B, &out, Verify::Full), Err(WireError::BadChecksum));
    out[16] ^= 1;
    assert_eq!(verify(A, B, &out, Verify::AllowPartial), Err(WireError::BadChecksum));
    assert_eq!(verify(A, B, &out, Verify::Trust), Ok(()));
    let (header, payload) = out.split_at_mut(n);
    fill_checksum(A, B, header, [payload, &[]]);
    assert_eq!(verify(A, B, &out, Verify::AllowPartial), Ok(()));
    for bit in 0..25 * 8 {
        let mut bad = out;
        bad[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(verify(A, B, &bad, Verify::Full), Err(WireError::BadChecksum), "bit {bit}");
    }
}
