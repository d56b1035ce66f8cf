//! Programs that put sockets into rings neither hang nor lose a byte, whichever way `UTCP_IO_URING` says.

use std::time::Duration;

use utcp_tests::{Engine, Lab, is_installed, not_run, on_kernel};

fn rings<'a>(lab: &'a Lab, word: &str) -> utcp_tests::Run<'a> {
    lab.run(env!("CARGO_BIN_EXE_utcp-rings")).arg(word).limit(Duration::from_secs(20))
}

/// Rings work, and the sockets in them, those that were utcp's before among them, are the kernel's.
#[test]
fn sockets_in_rings_are_the_kernels() {
    let lab = Lab::new("rings");
    for word in ["early", "late"] {
        let kernel = rings(&lab, word).ok().text();
        let engine = Engine::start(&lab);
        let utcp = rings(&lab, word).under(&engine).ok().text();
        assert_eq!(utcp, kernel, "{word}");
        assert!(utcp.contains("27 7 before") && utcp.ends_with("plain after\n"), "{utcp}");
    }
}

/// No rings: the program does without, over utcp.
#[test]
fn refused_rings_leave_the_sockets_accelerated() {
    let lab = Lab::new("no-rings");
    for word in ["early", "late"] {
        let engine = Engine::start(&lab);
        let text = rings(&lab, word).under(&engine).env("UTCP_IO_URING", "refuse").ok().text();
        if !on_kernel() {
            assert!(text.starts_with("no ring: Function not implemented"), "{text}");
            assert!(text.ends_with("plain before hello\n"), "{text}");
        }
        engine.went_through(1);
    }
}

const NODE: &str = "const http = require('http');
const fs = require('fs');
const server = http.createServer((request, response) => {
  fs.readFile('/proc/self/stat', () => fs.stat('/', () => response.end('x'.repeat(100000))));
});
server.listen(0, '127.0.0.1', async () => {
  const url = `http://127.0.0.1:${server.address().port}/`;
  for (let i = 0; i < 20; i++) {
    const all = await Promise.all([1, 2, 3, 4].map(() => fetch(url).then((answer) => answer.text())));
    if (all.some((text) => text.length !== 100000)) throw new Error('cut short');
  }
  console.log('done');
  process.exit(0);
});";

/// node's event loop with its own use of io_uring switched on.
#[test]
fn node_with_rings() {
    if !is_installed("node") {
        return not_run("node is not installed");
    }
    let lab = Lab::new("node-rings");
    for setting in ["kernel", "refuse"] {
        let engine = Engine::start(&lab);
        let run =
            lab.run("node").args(["-e", NODE]).env("UV_USE_IO_URING", "1").env("UTCP_IO_URING", setting);
        let end = run.under(&engine).limit(Duration::from_secs(60)).ok();
        assert_eq!(end.text(), "done\n", "{setting}");
        if setting == "refuse" {
            engine.went_through(4);
        }
    }
}

const BY_LIBURING: &str = "import ctypes, os, sys
try: ctypes.CDLL('liburing.so.2', ctypes.RTLD_GLOBAL)
except OSError: sys.exit(0)
every = ctypes.CDLL(None)
ring = ctypes.create_string_buffer(4096)
print(every.io_uring_queue_init(8, ring, 0))";

/// liburing makes its system calls itself: its own functions are taken over.
#[test]
fn rings_by_liburing() {
    let lab = Lab::new("liburing");
    for (setting, answer) in [("kernel", "0\n"), ("refuse", "-38\n")] {
        let engine = Engine::start(&lab);
        let text = lab.python(BY_LIBURING).under(&engine).env("UTCP_IO_URING", setting).ok().text();
        assert!(text.is_empty() || text == answer || on_kernel(), "{setting}: {text}");
    }
}
