//! What `utcp ss`, `why` and `clients` say about a running server.

use utcp_tests::nginx::Nginx;
use utcp_tests::{Engine, Lab, WAIT, on_kernel, wait_until};

#[test]
fn ss_shows_a_connection() {
    if on_kernel() {
        return;
    }
    let lab = Lab::new("ss");
    let engine = Engine::start(&lab);
    let nginx = Nginx::start(&lab, &engine);
    let script = format!(
        "import socket, time
s = socket.create_connection(('127.0.0.1', {}))
s.sendall(b'GET /hello HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')
s.recv(1000)
print(s.getsockname()[1])
time.sleep(60)",
        nginx.port
    );
    let mut client = lab.python(&script).under(&engine).spawn();
    client.wait_for_output("\n");
    let own_port = client.stdout().trim().to_owned();
    let ends: Vec<_> = engine.sockets().into_iter().filter(|s| s.state == "ESTAB").collect();
    assert_eq!(ends.len(), 2, "{ends:?}");
    let of_client = ends.iter().find(|s| s.local == format!("127.0.0.1:{own_port}"));
    let of_server = ends.iter().find(|s| s.local == format!("127.0.0.1:{}", nginx.port));
    let (of_client, of_server) = (of_client.expect("the client's end"), of_server.expect("the server's end"));
    assert_eq!(of_client.peer, of_server.local);
    assert_eq!(of_server.peer, of_client.local);
    assert!(of_client.line.contains(&format!("/{}", client.pid())), "{}", of_client.line);
    let workers = nginx.workers();
    assert!(
        workers.iter().any(|pid| of_server.line.contains(&format!("nginx/{pid}"))),
        "the owner is a worker of {workers:?}: {}",
        of_server.line
    );
    for word in ["cwnd:", "rtt:", "shard:", "path:same-host"] {
        assert!(of_server.line.contains(word), "{word}: {}", of_server.line);
    }
    drop(client);
    engine.wait_until_empty(WAIT);
}

#[test]
fn why_tells_in_words() {
    if on_kernel() {
        return;
    }
    let lab = Lab::new("why");
    let engine = Engine::start(&lab);
    let nginx = Nginx::start(&lab, &engine);
    let why = |what: &str| engine.ask(&format!("why {what}")).expect("utcp why answers");
    let port = why(&format!("port:{}", nginx.port));
    assert!(port.contains("accelerated") && !port.contains("not accelerated"), "{port}");
    assert!(port.contains("nginx"), "{port}");
    let process = why(&format!("pid:{}", nginx.master.pid()));
    assert!(process.contains("attached") || process.contains("served"), "{process}");
    let unknown = why("port:1");
    assert!(unknown.contains("not accelerated"), "{unknown}");
    // A connection that runs on the kernel, and why.
    let plain = Nginx::start_on_kernel(&Lab::new("why-kernel"), None);
    let _ = lab.run("curl").args(["-sS", "-m", "10"]).arg(plain.url("hello")).under(&engine).ok();
    let kernel = wait_until("the reason is told", WAIT, || {
        let text = why(&format!("port:{}", plain.port));
        text.contains("kernel").then_some(text)
    });
    assert!(kernel.contains("no program under utcp listens there"), "{kernel}");
}

#[test]
fn clients_come_and_go() {
    if on_kernel() {
        return;
    }
    let lab = Lab::new("clients");
    let engine = Engine::start(&lab);
    let nginx = Nginx::start(&lab, &engine);
    let clients = engine.ask("clients").expect("utcp clients answers");
    assert!(clients.contains("nginx"), "{clients}");
    drop(nginx);
    wait_until("nginx is gone", WAIT, || {
        (!engine.ask("clients").expect("it answers").contains("nginx")).then_some(())
    });
    assert_eq!(engine.sockets().len(), 0);
}

#[test]
fn tools_say_when_there_is_no_engine() {
    if on_kernel() {
        return;
    }
    let lab = Lab::new("nobody-there");
    let engine = Engine::new(&lab);
    for what in ["ss", "metrics", "clients"] {
        let run = lab.run(engine.program("utcp")).args([what, "--stack", engine.stack()]);
        let end = run.finish().no_crash();
        assert!(!end.status.success() && end.err.contains("No engine runs"), "{what}: {}", end.err);
    }
}

#[test]
fn top_shows_who_is_busy() {
    if on_kernel() {
        return;
    }
    let lab = Lab::new("top");
    let engine = Engine::start(&lab);
    let nginx = Nginx::start(&lab, &engine);
    let url = nginx.url("hello");
    let mut load = lab
        .run("ab")
        .args(["-q", "-k", "-t", "20", "-n", "10000000", "-c", "4", &url])
        .under(&engine)
        .spawn();
    wait_until("the load runs", WAIT, || (engine.counters().get("accepts") >= 4).then_some(()));
    let page = engine.ask("top --interval 0.3 --count 1").expect("utcp top answers");
    assert!(load.is_alive());
    let row = |name: &str| -> Vec<String> {
        let line = page
            .lines()
            .filter(|line| line.starts_with(name))
            .max_by_key(|line| line.split_whitespace().nth(1).and_then(|count| count.parse::<u32>().ok()));
        line.unwrap_or_else(|| panic!("{name}: {page}")).split_whitespace().map(str::to_owned).collect()
    };
    let (server, client) = (row("nginx/"), row("ab/"));
    assert_eq!(client[1], "4", "{page}");
    assert!(server[3] != "0" && server[4] != "0" && client[3] != "0" && client[4] != "0", "{page}");
}

/// An engine's socket takes the place of one that a dead engine left behind, and of nothing else.
#[test]
fn no_file_is_lost_to_a_socket() {
    if on_kernel() {
        return;
    }
    let lab = Lab::new("no-socket");
    let engine = Engine::new(&lab);
    let file = lab.file("precious", "precious");
    let run = lab.run(engine.program("utcp")).args(["engine", "--socket"]).arg(&file);
    let end = run.limit(std::time::Duration::from_secs(3)).finish();
    assert!(end.err.contains("something else than a socket"), "{}", end.err);
    assert_eq!(std::fs::read(&file).expect("it is still there"), b"precious");
    // What can't be made is told with its place.
    let below = file.join("socket");
    let run = lab.run(engine.program("utcp")).args(["engine", "--socket"]).arg(&below);
    let end = run.limit(std::time::Duration::from_secs(3)).finish();
    let words = format!("the engine's socket {} can't be made", below.display());
    assert!(end.err.contains(&words), "{}", end.err);
    // So is a switch that is not there.
    let end = lab.run(engine.program("utcp")).args(["switch", "nowhere", "--report"]).finish();
    assert!(end.err.contains("start `utcp switch xdp:nowhere`"), "{}", end.err);
}
