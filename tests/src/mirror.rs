//! A server that tells each connection which address it comes from, and who asks it.

use crate::{Host, Lab, Running};

/// The server's script: it listens on `port` of every address, and says `word` behind the address, to be told from others.
#[must_use]
pub fn mirror(port: u16, word: &str) -> String {
    format!(
        "import socket
s = socket.create_server(('::', {port}), family=socket.AF_INET6, dualstack_ipv6=True)
print('listens', flush=True)
while True:
    c, peer = s.accept()
    c.sendall((peer[0].removeprefix('::ffff:') + ' {word}').strip().encode())
    c.close()"
    )
}

/// Such a server on `host`, beside utcp.
#[must_use]
pub fn serve(lab: &Lab, host: &Host, port: u16, word: &str) -> Running {
    let mut server = lab.python(&mirror(port, word)).inside(host).spawn();
    server.wait_for_output("listens");
    server
}

/// The script that connects, from `from` if that is an address, and prints what the server says, or the error.
#[must_use]
pub fn visit(to: &str, port: u16, from: &str) -> String {
    visit_marked(to, port, from, 0)
}

/// The same, from a socket with the mark `mark` (SO_MARK) unless that is 0.
#[must_use]
pub fn visit_marked(to: &str, port: u16, from: &str, mark: u32) -> String {
    format!(
        "import errno, socket
s = socket.socket(socket.AF_INET6 if ':' in '{to}' else socket.AF_INET)
s.settimeout(10)
if {mark}: s.setsockopt(socket.SOL_SOCKET, 36, {mark})  # SO_MARK
try:
    if '{from}':
        s.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
        s.bind(('{from}', 0))
    s.connect(('{to}', {port}))
    print(s.makefile().read())
except OSError as error:
    print(errno.errorcode.get(error.errno, error))"
    )
}
