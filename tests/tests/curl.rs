//! curl as it comes from Debian: the simplest client there is. The first test to look at when all fail.

use utcp_tests::nginx::Nginx;
use utcp_tests::{Engine, Lab, release_file};

#[test]
fn gets_a_page_from_nginx() {
    let lab = Lab::new("curl-page");
    let engine = Engine::start(&lab);
    let nginx = Nginx::start(&lab, &engine);
    let page = lab.run("curl").args(["-sS", "-m", "10"]).arg(nginx.url("hello")).under(&engine).ok();
    assert_eq!(page.text(), "hello\n");
    engine.went_through(1);
}

#[test]
fn runs_by_utcp_run() {
    let lab = Lab::new("curl-run");
    let engine = Engine::start(&lab);
    let nginx = Nginx::start(&lab, &engine);
    let url = nginx.url("hello");
    // `under` preloads the library into the command `utcp` as well, which must not hurt.
    let run = if utcp_tests::on_kernel() { lab.run("env") } else { lab.run(release_file("utcp")).arg("run") };
    let page = run.args(["curl", "-sS", "-m", "10", &url]).under(&engine).ok();
    assert_eq!(page.text(), "hello\n");
    engine.went_through(1);
}

#[test]
fn gets_the_same_bytes() {
    let lab = Lab::new("curl-bytes");
    let engine = Engine::start(&lab);
    let nginx = Nginx::start(&lab, &engine);
    for len in [0, 1, 1000, 65_536, 1_000_000, 16_000_000] {
        let name = format!("file-{len}");
        let file = lab.random_file(&format!("www/{name}"), len);
        let got = lab.path("got");
        let _ = lab
            .run("curl")
            .args(["-sS", "-m", "20", "-o"])
            .arg(&got)
            .arg(nginx.url(&name))
            .under(&engine)
            .ok();
        assert!(
            std::fs::read(&got).expect("curl wrote a file") == std::fs::read(&file).expect("ours"),
            "{len} bytes"
        );
        engine.went_through(1);
    }
}

#[test]
fn sends_a_body() {
    let lab = Lab::new("curl-post");
    let engine = Engine::start(&lab);
    let settings = utcp_tests::nginx::Settings {
        server: "client_max_body_size 64m; client_body_in_file_only off; \
                 location = /sink { proxy_pass http://127.0.0.1:$server_port/echo; } \
                 location = /echo { return 200 \"$content_length\\n\"; }"
            .to_owned(),
        ..Default::default()
    };
    let nginx = Nginx::start_with(&lab, &engine, &settings, |run| run.under(&engine));
    let body = lab.random_file("body", 8_000_000);
    let data = format!("@{}", body.display());
    let curl = lab.run("curl").args(["-sS", "-m", "20", "-H", "Expect:", "--data-binary", &data]);
    // nginx is a client of itself here: three sockets of utcp in one process.
    let answer = curl.arg(nginx.url("sink")).under(&engine).ok();
    assert_eq!(answer.text().trim(), "8000000");
    engine.went_through(2);
}

#[test]
fn keeps_a_connection() {
    let lab = Lab::new("curl-keep");
    let engine = Engine::start(&lab);
    let nginx = Nginx::start(&lab, &engine);
    let urls = vec![nginx.url("hello"); 50];
    let answer =
        lab.run("curl").args(["-sS", "-m", "20", "-w", "%{num_connects}"]).args(urls).under(&engine).ok();
    assert_eq!(answer.text().matches("hello\n").count(), 50);
    assert_eq!(answer.text().matches("hello\n1").count(), 1, "one connection: {}", answer.text());
    engine.went_through(1);
}

#[test]
fn talks_ipv6() {
    let lab = Lab::new("curl-6");
    let engine = Engine::start(&lab);
    let nginx = Nginx::start(&lab, &engine);
    let url = format!("http://[::1]:{}/hello", nginx.port);
    assert_eq!(lab.run("curl").args(["-sS", "-m", "10", &url]).under(&engine).ok().text(), "hello\n");
    engine.went_through(1);
}

/// A closed port: ECONNREFUSED, and at once.
#[test]
fn is_refused_where_nobody_listens() {
    let lab = Lab::new("curl-refused");
    let engine = Engine::start(&lab);
    let url = format!("http://127.0.0.1:{}/", lab.port());
    let answer = lab.run("curl").args(["-sS", "-m", "10", &url]);
    let answer = answer.under(&engine).finish().no_crash();
    // CURLE_COULDNT_CONNECT; a time-out is another. The words for it differ from version to version.
    assert_eq!(answer.status.code(), Some(7), "{}", answer.err);
}

/// A server on the kernel: the connection runs there, and no flow is made for it.
#[test]
fn reaches_a_kernel_server() {
    let lab = Lab::new("curl-kernel-server");
    let engine = Engine::start(&lab);
    let nginx = Nginx::start_on_kernel(&lab, None);
    let before = engine.counters();
    assert_eq!(
        lab.run("curl").args(["-sS", "-m", "10"]).arg(nginx.url("hello")).under(&engine).ok().text(),
        "hello\n"
    );
    if !utcp_tests::on_kernel() {
        assert_eq!(engine.counters().since(&before, "connects"), 0);
    }
}

/// A kernel client of a server under utcp: its kernel listener serves it.
#[test]
fn is_served_on_the_kernel() {
    let lab = Lab::new("curl-kernel-client");
    let engine = Engine::start(&lab);
    let nginx = Nginx::start(&lab, &engine);
    for _ in 0..20 {
        assert_eq!(lab.run("curl").args(["-sS", "-m", "10"]).arg(nginx.url("hello")).ok().text(), "hello\n");
    }
    // And again under utcp: accept takes from both.
    assert_eq!(
        lab.run("curl").args(["-sS", "-m", "10"]).arg(nginx.url("hello")).under(&engine).ok().text(),
        "hello\n"
    );
    engine.went_through(1);
}
