//! What operators do to servers while requests come: reload, upgrade, replicate. None of the requests may fail.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use utcp_tests::nginx::Nginx;
use utcp_tests::redis::Redis;
use utcp_tests::{Engine, Lab, Running, WAIT, children, is_root, not_run, on_kernel, signal_pid, wait_until};

/// Whether `program` is installed; if not, the test says so.
fn have(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()));
    if !found {
        not_run(&format!("{program} is not installed"));
    }
    found
}

/// ab: a connection for each request, eight at a time, until it is stopped.
struct Load(Running);

impl Load {
    fn start(lab: &Lab, engine: &Engine<'_>, port: u16, path: &str) -> Self {
        let url = format!("http://127.0.0.1:{port}/{path}");
        let run = lab.run("ab").args(["-q", "-s", "20", "-n", "1000000", "-c", "8"]).arg(url);
        Self(run.limit(Duration::from_secs(60)).under(engine).spawn())
    }

    /// Ends it once it made at least `requests` more; none may have failed.
    fn stop(mut self, engine: &Engine<'_>, requests: u64) {
        let before = engine.counters();
        wait_until("requests are answered", Duration::from_secs(60), || {
            let enough = if on_kernel() {
                self.0.cpu_ticks() >= 20 // Nobody counts there; it has been at work for a while.
            } else {
                engine.counters().since(&before, "accepts") >= requests
            };
            (enough || !self.0.is_alive()).then_some(())
        });
        assert!(self.0.is_alive(), "ab gave up: {}", self.0.stderr());
        self.0.signal(libc::SIGINT);
        let end = self.0.finish();
        let (report, errors) = (end.text(), end.err);
        assert!(report.contains("Failed requests:        0\n"), "{report}{errors}");
        assert!(!report.contains("Non-2xx"), "{report}");
    }
}

/// The process id in a file, once it is there.
fn pid_in(file: &Path) -> Option<u32> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Without `idle-close-on-response` a worker that stops resets whoever has not sent a request yet, on the kernel, too.
fn haproxy_config(lab: &Lab, port: u16, backend: u16) -> PathBuf {
    let socket = lab.path("haproxy.sock").display().to_string();
    lab.file(
        "haproxy.cfg",
        format!(
            "global
                stats socket {socket} mode 600 level admin expose-fd listeners
                hard-stop-after 20s
                nbthread 2
             defaults
                mode http
                timeout connect 10s
                timeout client 20s
                timeout server 20s
                option idle-close-on-response
             frontend in
                bind *:{port}
                default_backend out
             backend out
                server one 127.0.0.1:{backend}\n"
        ),
    )
}

/// Makes a haproxy master reload. It loses signals that come while it starts, and says when it has got one.
fn reload(master: &Running) {
    let said = || master.stderr().matches("Reloading HAProxy").count();
    let before = said();
    let mut asked: Option<Instant> = None;
    wait_until("haproxy reloads", WAIT, || {
        if asked.is_none_or(|at| at.elapsed() > Duration::from_secs(1)) {
            master.signal(libc::SIGUSR2);
            asked = Some(Instant::now());
        }
        (said() > before).then_some(())
    });
}

/// SIGUSR2: the master executes itself anew, its new worker gets the listeners from the old one (-x), which ends when its
/// connections have.
#[test]
fn haproxy_reload_hands_its_listeners_over() {
    if !have("haproxy") {
        return;
    }
    let lab = Lab::new("haproxy-reload");
    let engine = Engine::start(&lab);
    let nginx = Nginx::start(&lab, &engine);
    let port = lab.port();
    let config = haproxy_config(&lab, port, nginx.port);
    let mut master = lab.run("haproxy").args(["-W", "-db", "-f"]).arg(config).under(&engine).spawn();
    master.wait_for_listener(port);
    engine.wait_for_listener(port);
    let load = Load::start(&lab, &engine, port, "hello");
    for _ in 0..3 {
        let before = children(master.pid());
        reload(&master);
        wait_until("a new worker is there and the old one is gone", Duration::from_secs(30), || {
            let now = children(master.pid());
            (!now.is_empty() && now.iter().all(|pid| !before.contains(pid))).then_some(())
        });
    }
    load.stop(&engine, 1000);
    engine.went_through(1000);
}

/// SIGUSR2 and SIGQUIT: a new master with the old one's listeners by exec, its workers beside the old ones, then the old
/// ones go.
#[test]
fn nginx_binary_upgrade() {
    let lab = Lab::new("nginx-upgrade");
    let engine = Engine::start(&lab);
    let port = lab.port();
    let folder = lab.path("nginx");
    std::fs::create_dir_all(folder.join("logs")).expect("a folder can be made");
    let errors = lab.path("nginx-error.log");
    let config = lab.file(
        "nginx/nginx.conf",
        format!(
            "daemon off; {} worker_processes 2; pid {1}/nginx.pid; error_log {2} info;
             events {{ worker_connections 1000; }}
             http {{ access_log off; client_body_temp_path {1}/body; proxy_temp_path {1}/proxy;
                 fastcgi_temp_path {1}/fastcgi; uwsgi_temp_path {1}/uwsgi; scgi_temp_path {1}/scgi;
                 server {{ listen {port}; location = /hello {{ return 200 \"hello\\n\"; }} }} }}\n",
            if is_root() { "user www-data;" } else { "" },
            folder.display(),
            errors.display(),
        ),
    );
    // nginx refuses to upgrade as long as the process that started it is its parent.
    let pid_file = folder.join("nginx.pid");
    let script = format!(
        "($(command -v nginx) -p {0} -c {1} -e {3} & until [ -s {2} ]; do sleep 0.05; done); exec sleep 600",
        folder.display(),
        config.display(),
        pid_file.display(),
        errors.display(),
    );
    let shell = lab.run("/bin/sh").arg("-c").arg(script).under(&engine).spawn();
    let mut old = wait_until("nginx writes its process id", WAIT, || pid_in(&pid_file));
    wait_until("nobody is its parent", WAIT, || children(shell.pid()).is_empty().then_some(()));
    engine.wait_for_listener(port);
    let ready = |pid: u32| (children(pid).len() == 2).then_some(());
    wait_until("it has its workers", WAIT, || ready(old));
    let load = Load::start(&lab, &engine, port, "hello");
    for _ in 0..2 {
        signal_pid(old, libc::SIGUSR2);
        let new = wait_until("the new master is there", WAIT, || pid_in(&pid_file).filter(|&pid| pid != old));
        wait_until("it has its workers", WAIT, || ready(new));
        signal_pid(old, libc::SIGQUIT);
        wait_until("the old master is gone", Duration::from_secs(30), || {
            // Its memory goes before its children get another parent.
            (!Path::new(&format!("/proc/{old}/exe")).exists() && children(old).is_empty()).then_some(())
        });
        old = new;
    }
    load.stop(&engine, 1000);
    engine.went_through(1000);
    drop(shell);
}

/// A replica takes over 20 000 keys while more are written, then follows.
#[test]
fn redis_replication() {
    let lab = Lab::new("redis-replication");
    let engine = Engine::start(&lab);
    let start = |folder: &str| {
        let redis = Redis::start_with(&lab, |run| {
            let dir = lab.path(folder);
            std::fs::create_dir_all(&dir).expect("a folder can be made");
            run.arg("--dir").arg(dir).args(["--enable-debug-command", "yes"]).under(&engine)
        });
        engine.wait_for_listener(redis.port);
        redis
    };
    let (master, replica) = (start("redis-one"), start("redis-two"));
    let ask = |redis: &Redis, args: &[&str]| redis.cli(&lab, args).under(&engine).ok().text();
    ask(&master, &["debug", "populate", "20000", "key", "300"]);
    let args = ["-q", "-n", "40000", "-c", "10", "-r", "20000", "-d", "200", "-t", "set"];
    let writes = master.benchmark(&lab, &args).under(&engine).spawn();
    let port = master.port.to_string();
    assert_eq!(ask(&replica, &["replicaof", "127.0.0.1", &port]), "OK\n");
    wait_until("the replica has caught up", Duration::from_secs(60), || {
        ask(&replica, &["info", "replication"]).contains("master_link_status:up").then_some(())
    });
    let report = writes.finish().ok();
    assert!(!report.text().contains("rror") && !report.err.contains("rror"), "{}", report.err);
    wait_until("both have the same", WAIT, || {
        let digests = [&master, &replica].map(|redis| ask(redis, &["debug", "digest"]));
        (digests[0] == digests[1]).then_some(())
    });
    assert!(ask(&replica, &["dbsize"]).trim().parse::<u32>().expect("a number") >= 20_000);
    // 10 of the benchmark, one of the replica.
    engine.went_through(11);
}

/// Snapshots and rewrites of the log, each by a forked child, while clients write. The child's copies of all sockets come and go, and what
/// it wrote is what was there.
#[test]
fn redis_saves_in_the_background() {
    let lab = Lab::new("redis-bgsave");
    let engine = Engine::start(&lab);
    let dir = lab.path("save");
    std::fs::create_dir_all(&dir).expect("a folder can be made");
    let start = || {
        let redis = Redis::start_with(&lab, |run| {
            let run = run.arg("--dir").arg(&dir).args(["--enable-debug-command", "yes"]);
            run.args(["--rdb-key-save-delay", "20"]).under(&engine)
        });
        engine.wait_for_listener(redis.port);
        redis
    };
    let redis = start();
    let ask = |redis: &Redis, args: &[&str]| redis.cli(&lab, args).under(&engine).ok().text();
    ask(&redis, &["debug", "populate", "5000", "key", "300"]);
    let args = ["-q", "-n", "60000", "-c", "20", "-r", "5000", "-d", "200", "-t", "set,lpush,get"];
    let mut writes = redis.benchmark(&lab, &args).under(&engine).spawn();
    let mut saved = 0;
    while writes.is_alive() {
        let (save, field) =
            if saved % 2 == 0 { ("bgsave", "rdb_bgsave") } else { ("bgrewriteaof", "aof_rewrite") };
        assert!(ask(&redis, &[save]).contains("started"), "{save}");
        wait_until("it is saved", Duration::from_secs(30), || {
            ask(&redis, &["info", "persistence"]).contains(&format!("{field}_in_progress:0")).then_some(())
        });
        saved += 1;
    }
    let report = writes.finish().ok();
    assert!(!report.text().contains("rror") && !report.err.contains("rror"), "{}", report.err);
    let told = ask(&redis, &["info", "persistence"]);
    assert!(saved > 0 && told.contains("rdb_last_bgsave_status:ok"), "{told}");
    assert!(told.contains("aof_last_bgrewrite_status:ok"), "{told}");
    assert_eq!(ask(&redis, &["config", "set", "rdb-key-save-delay", "0"]), "OK\n");
    assert!(ask(&redis, &["bgsave"]).contains("started"));
    wait_until("the last is saved", WAIT, || {
        ask(&redis, &["info", "persistence"]).contains("rdb_bgsave_in_progress:0").then_some(())
    });
    assert!(ask(&redis, &["info", "persistence"]).contains("rdb_last_bgsave_status:ok"));
    let digest = ask(&redis, &["debug", "digest"]);
    drop(redis);
    let again = start();
    // It answers before it has read all.
    wait_until("the file is read", WAIT, || {
        ask(&again, &["info", "persistence"]).contains("\nloading:0").then_some(())
    });
    assert_eq!(ask(&again, &["debug", "digest"]), digest);
    engine.went_through(20);
}

/// Two workers that share the primary's listener, which they get over a unix socket.
#[test]
fn node_cluster() {
    if !have("node") {
        return;
    }
    let lab = Lab::new("node-cluster");
    let engine = Engine::start(&lab);
    let port = lab.port();
    let script = format!(
        "const cluster = require('cluster'), http = require('http');
         cluster.schedulingPolicy = cluster.SCHED_NONE;
         if (cluster.isPrimary) {{
             cluster.fork(); cluster.fork();
             let listening = 0;
             cluster.on('listening', () => {{ if (++listening == 2) console.log('both listen'); }});
             cluster.on('exit', () => process.exit(1));
         }} else {{
             http.createServer((_, response) => response.end('hello\\n')).listen({port}, '127.0.0.1');
         }}"
    );
    let file = lab.file("cluster.js", script);
    let mut primary = lab.run("node").arg(file).under(&engine).spawn();
    primary.wait_for_output("both listen");
    engine.wait_for_listener(port);
    Load::start(&lab, &engine, port, "").stop(&engine, 4000);
    assert!(primary.is_alive(), "{}", primary.stderr());
    engine.went_through(4000);
}

/// Four forked processes accept from one listener; one after the other is replaced while requests come.
#[test]
fn python_multiprocessing_server() {
    let lab = Lab::new("python-processes");
    let engine = Engine::start(&lab);
    let port = lab.port();
    let script = format!(
        "import multiprocessing, socket
def serve(listener, requests):
    for _ in range(requests):
        connection, _ = listener.accept()
        with connection:
            asked = b''
            while not asked.endswith(b'\\r\\n\\r\\n'):
                asked += connection.recv(1000)
            connection.sendall(b'HTTP/1.0 200 OK\\r\\nContent-Length: 6\\r\\n\\r\\nhello\\n')
context = multiprocessing.get_context('fork')
listener = socket.create_server(('127.0.0.1', {port}), backlog=64)
start = lambda: context.Process(target=serve, args=(listener, 50))
workers = [start() for _ in range(4)]
for worker in workers: worker.start()
print('ready')
while True:
    for number, worker in enumerate(workers):
        worker.join(0.01)
        if worker.exitcode is not None:
            assert worker.exitcode == 0
            workers[number] = start()
            workers[number].start()"
    );
    let mut server = lab.python(&script).under(&engine).spawn();
    server.wait_for_output("ready");
    engine.wait_for_listener(port);
    Load::start(&lab, &engine, port, "").stop(&engine, 4000);
    assert!(server.is_alive(), "{}", server.stderr());
    engine.went_through(4000);
}

/// A process for each of 20 clients.
#[test]
fn postgresql_with_twenty_clients() {
    let Some(folder) = postgresql() else { return not_run("postgresql is not installed") };
    if !is_root() {
        return not_run("postgresql needs a user of its own, and only root can be one"); // It refuses to be root.
    }
    let lab = Lab::new("postgresql");
    let user = 65_534;
    lab.give_to(user);
    let engine = Engine::new(&lab).owned_by(user).run();
    let as_user = |program: &str| lab.run(folder.join(program)).as_user(user, user);
    let data = lab.path("data");
    let _ = as_user("initdb").args(["-A", "trust", "-U", "test", "-N", "-D"]).arg(&data).ok();
    let port = lab.port().to_string();
    let server =
        as_user("postgres").arg("-D").arg(&data).args(["-p", &port, "-c", "listen_addresses=127.0.0.1"]);
    let server = server.args(["-c", "unix_socket_directories=", "-c", "fsync=off"]).under(&engine);
    let mut server = server.limit(Duration::from_secs(120)).spawn();
    server.wait_for_listener(port.parse().expect("a number"));
    engine.wait_for_listener(port.parse().expect("a number"));
    // It listens before it has started up, and turns clients away until then.
    wait_until("the database system is ready", WAIT, || {
        server.stderr().contains("ready to accept connections").then_some(())
    });
    let bench = |args: &[&str]| {
        let run = as_user("pgbench").args(["-h", "127.0.0.1", "-p", &port, "-U", "test"]).args(args);
        run.arg("postgres").under(&engine).ok().text()
    };
    let _ = bench(&["-i", "-q", "-s", "1"]);
    let report = bench(&["-c", "20", "-j", "2", "-t", "20", "-n"]);
    assert!(report.contains("number of transactions actually processed: 400/400"), "{report}");
    assert!(report.contains("number of failed transactions: 0"), "{report}");
    engine.went_through(21);
}

/// Where Debian puts the server's programs, outside of PATH.
fn postgresql() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let folders = versions.flatten().map(|version| version.path().join("bin"));
    folders.into_iter().find(|folder| folder.join("postgres").exists() && folder.join("pgbench").exists())
}
/// sshd executes itself with each connection it accepted.
#[test]
fn ssh_login() {
    if !have("sshd") || !have("ssh") || !have("ssh-keygen") {
        return;
    }
    if !is_root() {
        return not_run("sshd lets others in only as root");
    }
    let lab = Lab::new("ssh");
    let engine = Engine::start(&lab);
    let port = lab.port();
    for name in ["host", "user"] {
        let _ = lab.run("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(lab.path(name)).ok();
    }
    std::fs::create_dir_all("/run/sshd").expect("root makes folders");
    let config = lab.file(
        "sshd_config",
        format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\n\
             StrictModes no\nPermitRootLogin yes\n",
            lab.path("host").display(),
            lab.path("user.pub").display()
        ),
    );
    let mut sshd = lab.run("/usr/sbin/sshd").args(["-D", "-e", "-f"]).arg(config).under(&engine).spawn();
    sshd.wait_for_listener(port);
    engine.wait_for_listener(port);
    for number in 0..5 {
        let run = lab.run("ssh").args(["-F", "none", "-p", &port.to_string(), "-i"]).arg(lab.path("user"));
        let run = run.args([
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "BatchMode=yes",
        ]);
        let run =
            run.args(["root@127.0.0.1", &format!("echo login {number}; head -c 1000000 /dev/zero | wc -c")]);
        assert_eq!(run.under(&engine).ok().text(), format!("login {number}\n1000000\n"));
    }
    if !on_kernel() {
        engine.went_through(5);
    }
}
