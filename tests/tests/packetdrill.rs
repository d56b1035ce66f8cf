//! Our packetdrill scripts, each as a case of its own: `tests/packetdrill/README.md`.

use std::process::Command;

use utcp_tests::{not_run, release_file, repository};

/// Runs every script whose name begins with `topic`, over every version of IP.
#[track_caller]
fn scripts(topic: &str) {
    let folder = repository().join("tests/packetdrill/scripts");
    let entries = std::fs::read_dir(&folder).expect("the folder of scripts").flatten();
    let mut files: Vec<_> = entries.map(|entry| entry.path()).collect();
    files.retain(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(topic)));
    assert!(!files.is_empty(), "no script is called {topic}*");
    let output = Command::new(env!("CARGO_BIN_EXE_utcp-packetdrill"))
        .args(files)
        .env("UTCP_LIBRARY", release_file("libutcp.so"))
        .output()
        .expect("the runner starts");
    let said = String::from_utf8_lossy(&output.stdout);
    if said.contains("no network namespace to be had") {
        return not_run("neither root nor user namespaces");
    }
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

macro_rules! topics {
    ($($name:ident: $topic:literal;)*) => {
        $(#[test] fn $name() { scripts($topic); })*

        /// A script that no case runs would test nothing.
        #[test]
        fn every_script_has_a_case() {
            let folder = repository().join("tests/packetdrill/scripts");
            for entry in std::fs::read_dir(folder).expect("the folder of scripts").flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                assert!([$($topic),*].iter().any(|topic| name.starts_with(topic)), "{name} has no case");
            }
        }
    };
}

topics! {
    challenge_ack: "challenge-";
    closing: "close-";
    ecn: "ecn-";
    fast_open: "fastopen-";
    handshakes: "handshake-";
    keep_alive: "keepalive";
    paws: "paws";
    rack: "rack-";
    retransmission: "retransmission-";
    sack: "sack-";
    syn_retransmission: "syn-";
    tail_loss_probe: "tlp-";
    tcp_info: "tcp-info-";
    urgent_data: "urgent";
    user_timeout: "user-timeout";
    zero_window: "window-";
}
