//! The bodies of the fuzz targets (`fuzz/`) on bytes that are nearly right: the wire parsers beside other people's, and a TCB
//! whose fate bytes choose.
#![allow(missing_docs)]

mod bodies;

use proptest::prelude::*;
use utcp_proto::wire::tcp;
use utcp_proto::{Flags, Options, SackBlock, SackBlocks, SeqNum, Timestamps, Transmit};

fn options() -> impl Strategy<Value = Options> {
    (
        prop::option::of(any::<u16>()),
        prop::option::of(0u8..=14),
        any::<bool>(),
        prop::option::of(any::<(u32, u32)>()),
        proptest::collection::vec(any::<(u32, u32)>(), 0..3),
    )
        .prop_map(|(mss, wscale, sack_permitted, timestamps, blocks)| {
            let mut sack = SackBlocks::NONE;
            for (start, end) in blocks {
                sack.push(SackBlock { start: SeqNum::new(start), end: SeqNum::new(end) });
            }
            let timestamps = timestamps.map(|(val, ecr)| Timestamps { val, ecr });
            Options { mss, wscale, sack_permitted, timestamps, sack, ..Options::default() }
        })
}

/// A header of our own, some bytes of it changed, and something behind it.
fn spoilt_header() -> impl Strategy<Value = Vec<u8>> {
    let changes = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (options(), any::<(u32, u32, u8, u16)>(), changes, proptest::collection::vec(any::<u8>(), 0..20))
        .prop_map(|(options, (seq, ack, flags, wnd), changes, payload)| {
            let tx = Transmit {
                seq: SeqNum::new(seq),
                ack: (flags & 0x10 != 0).then_some(SeqNum::new(ack)),
                flags: Flags::from_bits(flags),
                wnd,
                options,
                ..Transmit::default()
            };
            let mut bytes = vec![0; tcp::HEADER_LEN_MAX + 20];
            let len = tcp::emit(&tx, 80, 1_000, &mut bytes).unwrap_or(0);
            bytes.truncate(len);
            for (index, byte) in changes {
                if !bytes.is_empty() {
                    let at = index.index(bytes.len());
                    bytes[at] = byte;
                }
            }
            bytes.extend(payload);
            bytes
        })
}

/// Small numbers often: lengths and kinds are made of them.
fn byte() -> impl Strategy<Value = u8> {
    prop_oneof![3 => any::<u8>(), 2 => 0u8..12, 1 => prop::sample::select(vec![0x45, 0x60, 0x50, 0x80, 6, 44])]
}

fn settings() -> ProptestConfig {
    let cases = std::env::var("UTCP_PROP_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(5_000);
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) }
}

proptest! {
    #![proptest_config(settings())]

    #[test]
    fn any_bytes_mean_the_same_to_all_parsers(bytes in proptest::collection::vec(byte(), 0..120)) {
        bodies::wire::all(&bytes);
    }

    #[test]
    fn spoilt_headers_mean_the_same_to_all_parsers(bytes in spoilt_header()) {
        bodies::wire::all(&bytes);
    }

    #[test]
    fn a_tcb_takes_anything(bytes in proptest::collection::vec(any::<u8>(), 0..800)) {
        bodies::tcb::steps(&bytes);
    }
}
