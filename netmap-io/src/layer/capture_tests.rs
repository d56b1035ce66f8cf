//! The capture, read back by a reader that knows nothing of the writer.

use super::*;
use crate::OpenOptions;
use crate::conformance::{self, Pair};

/// A sink that the test can look into, or that fails after so many bytes.
#[derive(Clone)]
struct Sink {
    bytes: Arc<Mutex<Vec<u8>>>,
    room: usize,
}

impl Sink {
    fn new(room: usize) -> Self {
        Self { bytes: Arc::default(), room }
    }

    fn blocks(&self) -> Vec<(u32, Vec<u8>)> {
        let bytes = self.bytes.lock().unwrap();
        let mut rest = bytes.as_slice();
        let mut blocks = Vec::new();
        while !rest.is_empty() {
            let word = |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().unwrap());
            let length = word(4) as usize;
            assert_eq!(length % 4, 0, "blocks are whole words");
            assert_eq!(word(length - 4) as usize, length, "the length stands at both ends");
            blocks.push((word(0), rest[8..length - 4].to_vec()));
            rest = &rest[length..];
        }
        blocks
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut all = self.bytes.lock().unwrap();
        if all.len() + bytes.len() > self.room {
            return Err(io::ErrorKind::StorageFull.into());
        }
        all.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn pair(capture: &Capture) -> [Box<dyn Port>; 2] {
    let options = OpenOptions { rx_slots: 16, tx_slots: 16, ..OpenOptions::default() };
    crate::pipe::pair("seen", &options).unwrap().map(|port| capture.wrap(port))
}

/// Interface, direction, frame and comment of each packet.
fn packets(sink: &Sink) -> Vec<(u32, u32, Vec<u8>, Option<String>)> {
    let packets = sink.blocks().into_iter().filter(|(kind, _)| *kind == ENHANCED_PACKET);
    packets
        .map(|(_, body)| {
            let word = |at: usize| u32::from_ne_bytes(body[at..at + 4].try_into().unwrap());
            let length = word(12) as usize;
            assert_eq!(word(16) as usize, length, "captured whole");
            let mut at = 20 + length.next_multiple_of(4);
            let (mut way, mut comment) = (0, None);
            loop {
                let half = |at: usize| u16::from_ne_bytes(body[at..at + 2].try_into().unwrap());
                let (code, len) = (half(at), usize::from(half(at + 2)));
                match code {
                    0 => break,
                    EPB_FLAGS => way = word(at + 4),
                    OPT_COMMENT => {
                        comment = Some(String::from_utf8(body[at + 4..at + 4 + len].to_vec()).unwrap());
                    }
                    other => panic!("option {other}"),
                }
                at += 4 + len.next_multiple_of(4);
            }
            (word(0), way, body[20..20 + length].to_vec(), comment)
        })
        .collect()
}

#[test]
fn both_directions_are_written_with_their_interface() {
    let sink = Sink::new(usize::MAX);
    let capture = Capture::new(sink.clone()).unwrap();
    let [mut a, mut b] = pair(&capture);
    assert!(a.tx().push(b"first frame") && a.tx().push(b"second"));
    a.tx_sync().unwrap();
    capture.comment("how it began");
    capture.comment("and on");
    b.rx_sync().unwrap();
    b.rx().next().unwrap();
    // The second is unread: it is not written again.
    b.rx_sync().unwrap();
    assert!(b.tx().push(b"answer"));
    b.tx_sync().unwrap();
    a.tx_sync().unwrap();
    a.rx_sync().unwrap();
    let comment = |words: &str| Some(words.to_owned());
    let want = [
        (0, 2, b"first frame".to_vec(), None),
        (0, 2, b"second".to_vec(), None),
        (1, 1, b"first frame".to_vec(), comment("how it began\nand on")),
        (1, 1, b"second".to_vec(), None),
        (1, 2, b"answer".to_vec(), None),
        (0, 1, b"answer".to_vec(), None),
    ];
    assert_eq!(packets(&sink), want);
    let kinds: Vec<u32> = sink.blocks().iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds[..3], [SECTION_HEADER, INTERFACE, INTERFACE]);
}

#[test]
fn a_full_disk_ends_the_capture_and_not_the_traffic() {
    let sink = Sink::new(400);
    let capture = Capture::new(sink.clone()).unwrap();
    let [mut a, mut b] = pair(&capture);
    for n in 0..100 {
        assert!(a.tx().push(&[n; 60]));
        a.tx_sync().unwrap();
        b.rx_sync().unwrap();
        assert_eq!(b.rx().next().unwrap().bytes(), [n; 60]);
    }
    let lost = a.counters().capture_lost + b.counters().capture_lost;
    assert_eq!(packets(&sink).len() as u64 + lost, 200);
    assert!(lost > 190 && capture.error().is_some(), "{lost} lost, {:?}", capture.error());
}

#[test]
fn a_captured_port_conforms() {
    let capture = Capture::new(io::sink()).unwrap();
    let [a, b] = pair(&capture);
    let frame = |_, len: usize| (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let mut pair =
        Pair { a, b, frame: Box::new(frame), frame_len_min: 14, pushes_back: true, kicks_max: 1, skip: &[] };
    let mut failures = Vec::new();
    conformance::run(&mut pair, |case, result| {
        if let Err(error) = result {
            failures.push(format!("{}: {error}", case.name));
        }
    });
    assert!(failures.is_empty(), "{failures:#?}");
}

/// A sample for other readers: `cargo test -- --ignored sample` writes `$UTCP_SAMPLE`.
#[test]
#[ignore = "writes a file for people"]
fn sample() {
    use crate::Proto;
    use crate::testing::Frame;
    let file =
        std::fs::File::create(std::env::var_os("UTCP_SAMPLE").expect("UTCP_SAMPLE names a file")).unwrap();
    let capture = Capture::new(file).unwrap();
    let [mut a, mut b] = pair(&capture);
    for n in 0..3 {
        capture.comment(&format!("frame {n}"));
        let frame = Frame::new(Proto::TCP, ([10, 0, 0, 1].into(), 1000 + n), ([10, 0, 0, 2].into(), 80));
        assert!(a.tx().push(&frame.payload(b"hello").build()));
        a.tx_sync().unwrap();
        b.rx_sync().unwrap();
    }
}

/// What the device dropped, and what is missing in the file, stands in it: soon after the first packet, and at the end.
#[test]
fn drops_are_told_in_the_file() {
    let sink = Sink::new(usize::MAX);
    let capture = Capture::new(sink.clone()).unwrap();
    let options = OpenOptions { rx_slots: 16, tx_slots: 16, ..OpenOptions::default() };
    let [mut a, mut b] = crate::pipe::pair("counted", &options).unwrap();
    let mut tracer = capture.tracer(&mut *b);
    tracer.lost = 7;
    for _ in 0..3 {
        assert!(a.tx().push(&[0; 60]));
        a.tx_sync().unwrap();
        tracer.rx_sync(&mut *b).unwrap();
        b.rx().for_each(drop);
    }
    tracer.finish(&*b);
    let blocks = sink.blocks();
    let kinds: Vec<u32> = blocks.iter().map(|(kind, _)| *kind).collect();
    let [packet, told] = [ENHANCED_PACKET, INTERFACE_STATISTICS];
    assert_eq!((&kinds[2..5], kinds.last()), (&[packet, told, packet][..], Some(&told)));
    let option = |body: &[u8], code: u16| {
        let mut rest = &body[12..];
        while u16::from_ne_bytes([rest[0], rest[1]]) != code {
            rest = &rest[4 + usize::from(u16::from_ne_bytes([rest[2], rest[3]])).next_multiple_of(4)..];
        }
        u64::from_ne_bytes(rest[4..12].try_into().unwrap())
    };
    for ((_, body), received) in [(&blocks[3], 1), (&blocks[blocks.len() - 1], 3)] {
        let all = [ISB_IFRECV, ISB_IFDROP, ISB_OSDROP].map(|code| option(body, code));
        assert_eq!((body[..4].to_vec(), all), (vec![0; 4], [received, 0, 7]));
    }
}
