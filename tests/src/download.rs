//! A download in whose middle something happens, however long that takes.

use std::path::PathBuf;
use std::time::Duration;

use crate::{Host, Lab, Running};

/// Reads three quarters in no hurry (8 MB a second), and the rest when the gate is there. The receive buffer is small, so that the
/// server can't be done before.
const CLIENT: &str = "
import os, socket, sys, time
from urllib.parse import urlsplit
url, out, gate = sys.argv[1:]
at = urlsplit(url)
s = socket.socket(socket.AF_INET6 if ':' in at.hostname else socket.AF_INET)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 200000)
s.settimeout(90)
s.connect((at.hostname, at.port))
s.sendall(f'GET {at.path} HTTP/1.0\\r\\n\\r\\n'.encode())
def more():
    data = s.recv(65536)
    assert data, 'it ended early'
    return data
head = b''
while b'\\r\\n\\r\\n' not in head: head += more()
head, body = head.split(b'\\r\\n\\r\\n', 1)
size = next(int(line.split()[1]) for line in head.lower().split(b'\\r\\n') if line.startswith(b'content-length:'))
with open(out, 'wb') as file:
    got = file.write(body)
    is_open = False
    while got < size:
        data = more()
        got += file.write(data)
        while not is_open:
            is_open = os.path.exists(gate)
            time.sleep(len(data) / 8e6)
            if got < size * 3 / 4: break
assert got == size";

/// A client that is still at it until [`Download::end`].
#[derive(Debug)]
pub struct Download {
    client: Running,
    got: PathBuf,
    gate: PathBuf,
}

impl Download {
    /// Of several, each has a `name` of its own.
    #[must_use]
    pub fn start(lab: &Lab, host: &Host, url: &str, name: &str) -> Self {
        let (got, gate) = (lab.path(name), lab.path(&format!("{name}-to-its-end")));
        // Of the one before.
        let _ = std::fs::remove_file(&gate);
        let client = lab.python(CLIENT).arg(url).arg(&got).arg(&gate);
        let client = client.inside(host).limit(Duration::from_secs(100)).spawn();
        Self { client, got, gate }
    }

    /// Whether it has not failed.
    pub fn goes_on(&mut self) -> bool {
        self.client.is_alive()
    }

    /// The rest comes, and what came is what the server has in `file`.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    pub fn end(mut self, file: &std::path::Path) {
        std::fs::write(&self.gate, "").expect("a file");
        let _ = self.client.end_within(Duration::from_secs(100)).ok();
        let same = std::fs::read(file).expect("ours") == std::fs::read(&self.got).expect("the client's");
        assert!(same, "the file arrived changed");
    }
}
