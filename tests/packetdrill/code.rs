//! Snippets of Python between `%{` and `}%`: each sees the fields of TCP_INFO as they were at its time. They run at
//! the end, in one interpreter, so that a later one sees what an earlier one remembered.

use std::io::Write;
use std::process::{Command, Stdio};

/// Fields of `struct tcp_info`: name, offset, bytes.
const FIELDS: [(&str, usize, usize); 59] = [
    ("tcpi_state", 0, 1),
    ("tcpi_ca_state", 1, 1),
    ("tcpi_retransmits", 2, 1),
    ("tcpi_probes", 3, 1),
    ("tcpi_backoff", 4, 1),
    ("tcpi_options", 5, 1),
    ("tcpi_wscales", 6, 1),
    ("tcpi_bits", 7, 1),
    ("tcpi_rto", 8, 4),
    ("tcpi_ato", 12, 4),
    ("tcpi_snd_mss", 16, 4),
    ("tcpi_rcv_mss", 20, 4),
    ("tcpi_unacked", 24, 4),
    ("tcpi_sacked", 28, 4),
    ("tcpi_lost", 32, 4),
    ("tcpi_retrans", 36, 4),
    ("tcpi_fackets", 40, 4),
    ("tcpi_last_data_sent", 44, 4),
    ("tcpi_last_ack_sent", 48, 4),
    ("tcpi_last_data_recv", 52, 4),
    ("tcpi_last_ack_recv", 56, 4),
    ("tcpi_pmtu", 60, 4),
    ("tcpi_rcv_ssthresh", 64, 4),
    ("tcpi_rtt", 68, 4),
    ("tcpi_rttvar", 72, 4),
    ("tcpi_snd_ssthresh", 76, 4),
    ("tcpi_snd_cwnd", 80, 4),
    ("tcpi_advmss", 84, 4),
    ("tcpi_reordering", 88, 4),
    ("tcpi_rcv_rtt", 92, 4),
    ("tcpi_rcv_space", 96, 4),
    ("tcpi_total_retrans", 100, 4),
    ("tcpi_pacing_rate", 104, 8),
    ("tcpi_max_pacing_rate", 112, 8),
    ("tcpi_bytes_acked", 120, 8),
    ("tcpi_bytes_received", 128, 8),
    ("tcpi_segs_out", 136, 4),
    ("tcpi_segs_in", 140, 4),
    ("tcpi_notsent_bytes", 144, 4),
    ("tcpi_min_rtt", 148, 4),
    ("tcpi_data_segs_in", 152, 4),
    ("tcpi_data_segs_out", 156, 4),
    ("tcpi_delivery_rate", 160, 8),
    ("tcpi_busy_time", 168, 8),
    ("tcpi_rwnd_limited", 176, 8),
    ("tcpi_sndbuf_limited", 184, 8),
    ("tcpi_delivered", 192, 4),
    ("tcpi_delivered_ce", 196, 4),
    ("tcpi_bytes_sent", 200, 8),
    ("tcpi_bytes_retrans", 208, 8),
    ("tcpi_dsack_dups", 216, 4),
    ("tcpi_reord_seen", 220, 4),
    ("tcpi_rcv_ooopack", 224, 4),
    ("tcpi_snd_wnd", 228, 4),
    ("tcpi_rcv_wnd", 232, 4),
    ("tcpi_rehash", 236, 4),
    ("tcpi_total_rto", 240, 2),
    ("tcpi_total_rto_recoveries", 242, 2),
    ("tcpi_total_rto_time", 244, 4),
];

/// Names of values.
const NAMES: &str = "TCP_ESTABLISHED, TCP_SYN_SENT, TCP_SYN_RECV, TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_TIME_WAIT, TCP_CLOSE, \
                     TCP_CLOSE_WAIT, TCP_LAST_ACK, TCP_LISTEN, TCP_CLOSING = range(1, 12)\n\
                     TCP_CA_Open, TCP_CA_Disorder, TCP_CA_CWR, TCP_CA_Recovery, TCP_CA_Loss = range(5)\n\
                     TCPI_OPT_TIMESTAMPS, TCPI_OPT_SACK, TCPI_OPT_WSCALE, TCPI_OPT_ECN = 1, 2, 4, 8\n\
                     TCPI_OPT_ECN_SEEN, TCPI_OPT_SYN_DATA, TCPI_OPT_USEC_TS, TCPI_OPT_TFO_CHILD = 16, 32, 64, 128\n";

/// What has been collected.
#[derive(Debug, Default)]
pub struct Snippets {
    program: String,
}

impl Snippets {
    /// Adds the snippet of a line, with `struct tcp_info` as it is now.
    pub fn add(&mut self, line: usize, code: &str, info: &[u8]) {
        let mut program = format!("line = {line}\n");
        for (name, at, len) in FIELDS {
            let Some(bytes) = info.get(at..at + len) else { continue };
            let value = bytes.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
            program += &format!("{name} = {value}\n");
        }
        program += "tcpi_snd_wscale, tcpi_rcv_wscale = tcpi_wscales & 15, tcpi_wscales >> 4\n";
        program +=
            "tcpi_delivery_rate_app_limited, tcpi_fastopen_client_fail = tcpi_bits & 1, tcpi_bits >> 1 & 3\n";
        self.program += &program;
        self.program += code.trim();
        self.program.push('\n');
    }

    /// Runs them.
    ///
    /// # Errors
    /// The line of the snippet that failed, and Python's words.
    pub fn run(&self) -> Result<(), (usize, String)> {
        if self.program.is_empty() {
            return Ok(());
        }
        // The hook says which snippet it was.
        let hook = "import sys, traceback\ndef tell(kind, value, trace):\n    \
                    print(f'{line}|{traceback.format_exception_only(kind, value)[-1].strip()}|' + \
                    (traceback.extract_tb(trace)[-1].lineno and SOURCE[traceback.extract_tb(trace)[-1].lineno - 1]))\n\
                    sys.excepthook = tell\nSOURCE = sys.stdin.read().split('\\n')\nline = 0\n\
                    exec(compile('\\n'.join(SOURCE), 'script', 'exec'))\n";
        let spoilt = |error: std::io::Error| (0, format!("python3: {error}"));
        let mut child = Command::new("python3")
            .args(["-c", hook])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(spoilt)?;
        if let Some(mut input) = child.stdin.take() {
            let program = format!("{NAMES}inf = 0x7fffffff\n{}", self.program);
            input.write_all(program.as_bytes()).map_err(spoilt)?;
        }
        let output = child.wait_with_output().map_err(spoilt)?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let mut parts = text.splitn(3, '|');
        let line = parts.next().and_then(|line| line.parse().ok()).unwrap_or(0);
        let (error, source) = (parts.next().unwrap_or(&text), parts.next().unwrap_or_default());
        Err((line, format!("{error} in: {source}")))
    }
}
