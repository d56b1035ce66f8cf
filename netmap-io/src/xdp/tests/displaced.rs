//! What others can do to our program once it stands on an interface: only who names its link takes it away, and that is told.

use super::super::asm::{Asm, Reg};
use super::super::bpf::{self, Kind, Program};
use super::super::hook::{hooked, put};
use super::super::program::XDP_PASS;
use super::*;

/// Somebody else's program, that lets everything pass.
fn firewall() -> Program {
    let mut asm = Asm::default();
    asm.mov_imm(Reg::R0, XDP_PASS);
    asm.exit();
    Program::load("firewall", Kind::Xdp, &asm.finish()).unwrap()
}

#[test]
fn ours_stays_until_its_link_is_named() {
    skip_without!(namespaces);
    for mode in [XdpMode::Native, XdpMode::Generic] {
        let net = Network::new(1, 1500);
        let options =
            OpenOptions { rx_slots: 64, tx_slots: 64, xdp_mode: mode, kept: true, ..OpenOptions::default() };
        let device = net.open(&net.a, "xdp:nio-a", &options).unwrap();
        let steering = device.steering.clone().unwrap();
        let ifindex = device.ports[0].caps().ifindex.unwrap();
        let link = steering.hold().unwrap();
        net.a.run(move || {
            let foreign = firewall();
            let before = hooked(ifindex).unwrap().unwrap();
            // As libxdp attaches, and as `ip link set … xdp` does; in both modes, and `off`.
            for native in [true, false] {
                foreign.attach(ifindex, native).unwrap_err();
                put(ifindex, foreign.raw_fd(), native).unwrap_err();
                // In the mode that is not ours there is nothing to take off, which succeeds.
                let _ = put(ifindex, -1, native);
                assert_eq!(hooked(ifindex).unwrap(), Some(before), "{mode:?}, native {native}");
            }
            assert_eq!(steering.trouble(), None, "{mode:?}");
            // As `bpftool link` does.
            foreign.replace_in(&link).unwrap();
            let trouble = steering.trouble().expect("another program in the place of ours");
            assert!(trouble.contains("\"firewall\" (number "), "{trouble}");
            bpf::detach(&link).unwrap();
            let trouble = steering.trouble().expect("no program of ours any more");
            assert!(trouble.contains("taken off"), "{trouble}");
        });
    }
}
