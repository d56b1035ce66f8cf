//! RFC 4821 and RFC 8899: probing for the path's MTU.

use crate::lab::{Lab, iss, seg, with_sack};
use utcp_proto::{Config, IcmpError, IcmpKind, MtuProbing, RecoveryState, Transmit};

fn config(mtu_probing: MtuProbing) -> Config {
    Config { mss: 1_460, mtu_probing, base_mss: 600, ..with_sack() }
}

/// Established, with full-sized data always waiting.
fn lab(mtu_probing: MtuProbing) -> Lab {
    let mut lab = Lab::passive(&config(mtu_probing));
    lab.wnd = 65_535;
    lab.get(seg(1, 0).ack(1));
    lab.send(400_000);
    lab
}

/// Acknowledges all of `sent` after ten milliseconds, and what follows, until a probe leaves; everything up to it is returned.
fn until_probe(lab: &mut Lab) -> (Vec<Transmit>, Transmit) {
    let mss = lab.tcb.info(lab.now).snd_mss;
    for _ in 0..40 {
        let sent = lab.drain();
        if let Some(at) = sent.iter().position(|tx| tx.len > mss) {
            let probe = sent[at];
            return (sent, probe);
        }
        let last = sent.last().expect("data leaves");
        lab.wait_ms(10);
        lab.get(seg(1, 0).ack(iss().distance_to(last.seq) + last.len));
    }
    panic!("no probe");
}

fn end(tx: &Transmit) -> u32 {
    iss().distance_to(tx.seq) + tx.len
}

/// §7.2, §7.3: it begins with a size that is certain, and asks for what the link carries; one probe at a time, followed by
/// segments of the old size.
#[test]
pub fn section_7_3_probe() {
    let mut lab = lab(MtuProbing::Always);
    assert_eq!(lab.tcb.info(lab.now).snd_mss, 600);
    let (sent, probe) = until_probe(&mut lab);
    assert_eq!((probe.len, probe.mss, probe.retransmission), (1_460, 1_460, false));
    assert_eq!(sent.iter().filter(|tx| tx.len > 600).count(), 1);
    let last = *sent.last().expect("some");
    assert!(end(&last) >= end(&probe) + 4 * 600, "its loss is told by the ACKs of others");
}

/// §7.6.2: it arrived, so that is the size.
#[test]
pub fn section_7_6_2_success() {
    let mut lab = lab(MtuProbing::Always);
    let (_, probe) = until_probe(&mut lab);
    lab.wait_ms(10);
    lab.get(seg(1, 0).ack(end(&probe)));
    assert_eq!(lab.tcb.info(lab.now).snd_mss, 1_460);
    assert!(lab.drain().iter().all(|tx| tx.len <= 1_460));
}

/// §7.6.1: the probe alone is lost: it goes again in pieces, the window stays as it is, and the next one is smaller.
#[test]
pub fn section_7_6_1_loss_of_a_probe() {
    let mut lab = lab(MtuProbing::Always);
    let mut sizes = Vec::new();
    for _ in 0..12 {
        let (sent, probe) = until_probe(&mut lab);
        let before = lab.tcb.info(lab.now);
        sizes.push(probe.len);
        let (start, last) = (iss().distance_to(probe.seq), *sent.last().expect("some"));
        // The path carries 1 000 bytes.
        let fits = probe.len <= 1_000;
        lab.wait_ms(10);
        if fits {
            lab.get(seg(1, 0).ack(end(&last)));
            assert_eq!(lab.tcb.info(lab.now).snd_mss, probe.len);
        } else {
            lab.get(seg(1, 0).ack(start));
            lab.get(seg(1, 0).ack(start).sack(end(&probe), end(&last)));
            let again = lab.drain();
            let pieces: Vec<_> = again.iter().filter(|tx| tx.retransmission).collect();
            assert!(pieces.len() > 1 && pieces.iter().all(|tx| tx.len <= before.snd_mss), "{pieces:?}");
            let info = lab.tcb.info(lab.now);
            assert_eq!(info.snd_ssthresh, u32::MAX, "no sign of congestion");
            assert!(info.snd_cwnd >= before.snd_cwnd && info.recovery == RecoveryState::Loss);
            lab.wait_ms(10);
            lab.get(seg(1, 0).ack(iss().distance_to(lab.tcb.snd_nxt())));
            assert_eq!(lab.tcb.info(lab.now).recovery, RecoveryState::Open);
        }
        if lab.tcb.info(lab.now).snd_mss > 1_000 - 8 {
            assert_eq!(sizes[0], 1_460);
            assert!(sizes.len() <= 9, "a binary search: {sizes:?}");
            return;
        }
    }
    panic!("never found: {sizes:?}");
}

/// §7.6.4: together with others it says nothing of the size: that is congestion.
#[test]
pub fn section_7_6_4_loss_of_more_than_the_probe() {
    let mut lab = lab(MtuProbing::Always);
    let (sent, probe) = until_probe(&mut lab);
    let start = iss().distance_to(probe.seq);
    let last = *sent.last().expect("some");
    lab.wait_ms(10);
    lab.get(seg(1, 0).ack(start));
    lab.get(seg(1, 0).ack(start).sack(end(&probe) + 600, end(&last)));
    assert_eq!(lab.tcb.info(lab.now).recovery, RecoveryState::Recovery);
    assert!(lab.tcb.info(lab.now).snd_ssthresh < u32::MAX);
}

/// Nobody asked for it.
#[test]
pub fn off_by_default() {
    let mut lab = lab(MtuProbing::Off);
    assert_eq!(lab.tcb.info(lab.now).snd_mss, 1_460);
    lab.drain();
    let mut lab = self::lab(MtuProbing::AfterBlackHole);
    assert_eq!(lab.tcb.info(lab.now).snd_mss, 1_460);
    assert!(lab.drain().iter().all(|tx| tx.len <= 1_460));
}

/// §7.4: without enough data behind it, the loss of a probe would be noticed by a timeout alone: there is none.
#[test]
pub fn section_7_4_no_probe_without_data_behind_it() {
    let mut lab = Lab::passive(&config(MtuProbing::Always));
    lab.wnd = 65_535;
    lab.get(seg(1, 0).ack(1));
    lab.send(6_000);
    assert_eq!(lab.drain().len(), 10);
    lab.wait_ms(10);
    lab.get(seg(1, 0).ack(6_001));
    assert!(lab.tcb.info(lab.now).snd_cwnd > 11);
    lab.send(2_400);
    assert_eq!(lab.drain().iter().map(|tx| tx.len).collect::<Vec<_>>(), [600; 4]);
    lab.send(6_000);
    assert_eq!(lab.expect().len, 1_460);
}

/// Tells the one in the lab that the path carries packets of `mtu` bytes.
fn too_big(lab: &mut Lab, mtu: u32) {
    let (now, seq) = (lab.now, lab.tcb.snd_una());
    let _ = lab.tcb.on_icmp(now, IcmpError { seq, kind: IcmpKind::TooBig { mtu } });
}

/// A segment leaves and is acknowledged after ten milliseconds.
fn turn(lab: &mut Lab) {
    lab.send(2_000);
    lab.drain();
    lab.wait_ms(10);
    lab.get(seg(1, 0).ack(iss().distance_to(lab.tcb.snd_nxt())));
}

/// RFC 1191 §6.3, RFC 8201 §4: what a router said of the path counts for ten minutes from the last time that it said so.
#[test]
pub fn rfc1191_section_6_3_a_routers_word_ages() {
    let mut lab = Lab::passive(&config(MtuProbing::Off));
    let mss = |lab: &Lab| lab.tcb.info(lab.now).snd_mss;
    turn(&mut lab);
    lab.send(2_000);
    lab.drain();
    too_big(&mut lab, 1_300);
    turn(&mut lab);
    assert_eq!(mss(&lab), 1_260);
    lab.wait_ms(300_000);
    turn(&mut lab);
    lab.send(2_000);
    lab.drain();
    too_big(&mut lab, 1_400);
    turn(&mut lab);
    assert_eq!(mss(&lab), 1_260, "it asks for nothing new");
    lab.send(2_000);
    lab.drain();
    too_big(&mut lab, 1_300);
    turn(&mut lab);
    lab.wait_ms(597_000);
    turn(&mut lab);
    assert_eq!(mss(&lab), 1_260, "it was said again");
    lab.wait_ms(3_000);
    turn(&mut lab);
    assert_eq!(mss(&lab), 1_460, "old");
    // The link has become shorter meanwhile, and that does not age.
    let now = lab.now;
    let _ = lab.tcb.on_link_mtu(now, 1_400);
    lab.send(2_000);
    lab.drain();
    too_big(&mut lab, 1_200);
    turn(&mut lab);
    assert_eq!(mss(&lab), 1_160);
    lab.wait_ms(601_000);
    turn(&mut lab);
    assert_eq!(mss(&lab), 1_360);
    lab.wait_ms(601_000);
    turn(&mut lab);
    assert_eq!(mss(&lab), 1_360);
}

/// While it counts, a link that grows changes nothing; nor does one that grew while the word was out outlive it.
#[test]
pub fn rfc1191_section_6_3_the_link_grows_meanwhile() {
    let mut lab = Lab::passive(&config(MtuProbing::Off));
    let mss = |lab: &Lab| lab.tcb.info(lab.now).snd_mss;
    turn(&mut lab);
    lab.send(2_000);
    lab.drain();
    too_big(&mut lab, 1_200);
    for mtu in [1_400, 1_300] {
        let now = lab.now;
        let _ = lab.tcb.on_link_mtu(now, mtu);
        assert_eq!(mss(&lab), 1_160);
    }
    turn(&mut lab);
    lab.wait_ms(601_000);
    turn(&mut lab);
    assert_eq!(mss(&lab), 1_260, "the link's own, which was no news when it came");
}

/// RFC 1191 §6.1: our own link's MTU counts as it is now. What a router said of the path stays said when the link grows.
#[test]
pub fn rfc1191_section_6_1_the_link_shrinks_and_grows() {
    let mut lab = lab(MtuProbing::Off);
    let mss = |lab: &Lab| lab.tcb.info(lab.now).snd_mss;
    let link = |lab: &mut Lab, mtu| {
        let now = lab.now;
        let _ = lab.tcb.on_link_mtu(now, mtu);
    };
    link(&mut lab, 9_000);
    assert_eq!(mss(&lab), 1_460);
    for _ in 0..2 {
        link(&mut lab, 1_000);
        assert_eq!(mss(&lab), 960);
        link(&mut lab, 800);
        assert_eq!(mss(&lab), 760);
        link(&mut lab, 1_200);
        assert_eq!(mss(&lab), 1_160);
        link(&mut lab, 9_000);
        assert_eq!(mss(&lab), 1_460, "what the peer takes");
    }
    let sent = lab.drain();
    let kind = IcmpKind::TooBig { mtu: 1_100 };
    let now = lab.now;
    let _ = lab.tcb.on_icmp(now, IcmpError { seq: sent[0].seq, kind });
    assert_eq!(mss(&lab), 1_060);
    link(&mut lab, 9_000);
    assert_eq!(mss(&lab), 1_060);
    link(&mut lab, 900);
    link(&mut lab, 9_000);
    assert_eq!(mss(&lab), 1_460, "the path is asked anew");
}
