//! What else may be in a program's process, and around it: other preloaded libraries, debuggers, sanitizers, sandboxes, a limit of
//! descriptors, pointers that lead nowhere. The programs are small and in C (`company/`), so that each finds what it says.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use utcp_tests::{Engine, Lab, Run, is_installed, is_root, not_run, on_kernel, release_file, wait_until};

const COMPANY: &str = include_str!("company/company.c");
const SANDBOX: &str = include_str!("company/sandbox.c");
const SENDFILE: &str = include_str!("company/sendfile.c");
const LIMIT: &str = include_str!("company/limit.c");
const RING: &str = include_str!("company/ring.c");
const PEEK: &str = include_str!("company/peek.py");
const FAULTS: &str = include_str!("company/faults.py");
const ALONE: &str = include_str!("company/alone.c");
const STARTER: &str = include_str!("company/alone.py");

/// `source`, compiled with `options`; `None`, and the test says so, where that can't be.
fn build(lab: &Lab, name: &str, source: &str, options: &[&str]) -> Option<PathBuf> {
    if !is_installed("cc") {
        not_run("no C compiler");
        return None;
    }
    let (from, to) = (lab.file(&format!("{name}.c"), source), lab.path(name));
    let run = lab.run("cc").args(["-O1", "-g", "-pthread", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&to);
    let end = run.arg(from).args(options).finish();
    if !end.status.success() {
        assert!(!options.is_empty(), "{}", end.err);
        not_run(&format!("cc {}: {}", options.join(" "), end.err.lines().next().unwrap_or_default()));
        return None;
    }
    Some(to)
}

/// Both same-host paths.
const PATHS: [&str; 2] = ["on", "off"];

/// Runs `program` on both paths, as `how` says; it makes connections, and all of them over utcp.
fn connects<'l>(lab: &'l Lab, how: impl Fn(&Engine<'_>) -> Run<'l>) {
    for path in PATHS {
        let engine = Engine::new(lab).set("UTCP_CUT_THROUGH", path).run();
        let end = how(&engine).limit(Duration::from_secs(60)).ok();
        assert!(end.text().contains("ok "), "{path}: {}{}", end.text(), end.err);
        engine.went_through(3);
    }
}

fn library(names: &[&str]) -> Option<PathBuf> {
    let folders = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64"];
    let found = folders.iter().flat_map(|folder| names.iter().map(move |name| Path::new(folder).join(name)));
    let found = found.into_iter().find(|path| path.is_file());
    if found.is_none() {
        not_run(&format!("{} is not installed", names[0]));
    }
    found
}

/// The program with utcp before and behind another library.
fn beside(name: &str, other: &[&str], variable: (&str, &str)) {
    let lab = Lab::new(name);
    let Some(program) = build(&lab, "company", COMPANY, &[]) else { return };
    let Some(other) = library(other) else { return };
    let ours = release_file("libutcp.so");
    for list in [[&ours, &other], [&other, &ours]] {
        let list = list.map(|path| path.display().to_string()).join(":");
        connects(&lab, |engine| {
            let run = lab.run(&program).args(["20"]).under(engine).env(variable.0, variable.1);
            if on_kernel() { run.preload(&other) } else { run.preload(&list) }
        });
    }
}

#[test]
fn beside_jemalloc() {
    beside("jemalloc", &["libjemalloc.so.2"], ("MALLOC_CONF", "narenas:2"));
}

#[test]
fn beside_libfaketime() {
    beside("faketime", &["faketime/libfaketimeMT.so.1"], ("FAKETIME", "+3d x2"));
}

#[test]
fn under_valgrind() {
    if !is_installed("valgrind") {
        return not_run("valgrind is not installed");
    }
    let lab = Lab::new("valgrind");
    let Some(program) = build(&lab, "company", COMPANY, &[]) else { return };
    // Little address space, a machine of its own, and every read and write looked at. Not its count of lost memory at the end: for that it
    // goes through every word that is mapped, and the engine's regions are large.
    connects(&lab, |engine| {
        let run =
            lab.run("valgrind").args(["-q", "--leak-check=no", "--error-exitcode=9"]).arg(&program).arg("4");
        run.under(engine)
    });
}

#[test]
fn in_a_debugger() {
    if !is_installed("gdb") {
        return not_run("gdb is not installed");
    }
    let lab = Lab::new("gdb");
    let Some(program) = build(&lab, "company", COMPANY, &[]) else { return };
    let commands = "set pagination off
        handle SIGALRM nostop noprint pass
        break recv
        run
        backtrace
        stepi 40
        finish
        delete
        continue";
    connects(&lab, |engine| {
        let run = lab.run("gdb").args(["-q", "-batch", "-nx"]);
        let lines = commands.lines().map(str::trim).flat_map(|line| ["-ex", line]);
        run.args(lines).arg("--args").arg(&program).args(["10", "ticks"]).under(engine)
    });
}

#[test]
fn stopped_by_a_debugger_at_any_time() {
    if !is_installed("gdb") {
        return not_run("gdb is not installed");
    }
    let lab = Lab::new("gdb-attach");
    let Some(program) = build(&lab, "company", COMPANY, &[]) else { return };
    let engine = Engine::start(&lab);
    let run = lab.run(&program).args(["3000", "ticks"]).under(&engine).limit(Duration::from_secs(300));
    let mut running = run.spawn();
    wait_until("it connects", Duration::from_secs(20), || {
        (on_kernel() || engine.counters().get("accepts") > 0).then_some(())
    });
    for _ in 0..2 {
        let pid = running.pid().to_string();
        let gdb = lab.run("gdb").args(["-q", "-batch", "-nx", "-p", &pid]);
        let end =
            gdb.args(["-ex", "thread apply all backtrace 2", "-ex", "stepi 5", "-ex", "detach"]).finish();
        assert!(end.text().contains("detached") || !running.is_alive(), "{}{}", end.text(), end.err);
    }
    let end = running.finish();
    assert!(end.text().contains("ok 3000"), "{}{}", end.text(), end.err);
}

fn sanitized(kind: &str, variable: (&str, &str)) {
    let lab = Lab::new(kind);
    let option = format!("-fsanitize={kind}");
    let Some(program) = build(&lab, "company", COMPANY, &[&option]) else { return };
    connects(&lab, |engine| lab.run(&program).args(["20"]).under(engine).env(variable.0, variable.1));
}

/// It refuses to start behind any other library, unless it is told not to.
#[test]
fn built_with_the_address_sanitizer() {
    sanitized("address", ("ASAN_OPTIONS", "verify_asan_link_order=0"));
}

/// What two threads do with two ends of a connection is no race: the copies of ours are not libc's, which it watches.
#[test]
fn built_with_the_thread_sanitizer() {
    sanitized("thread", ("TSAN_OPTIONS", "halt_on_error=1"));
}

/// What service managers put around a server: Debian's units of redis and memcached have all of it.
#[test]
fn in_a_sandbox() {
    let lab = Lab::new("sandbox");
    let Some(program) = build(&lab, "company", COMPANY, &[]) else { return };
    let Some(sandbox) = build(&lab, "sandbox", SANDBOX, &[]) else { return };
    connects(&lab, |engine| {
        let run = lab.run(&sandbox).args(["families", "no-wx", "calls", "kill", "--"]).arg(&program);
        run.arg("20").under(engine)
    });
    // Without an engine, one can't be started there: it may ask the kernel for no addresses. The program runs on the kernel and says why.
    let engine = Engine::new(&lab).by_programs();
    let run = lab.run(&sandbox).args(["families", "--"]).arg(&program).arg("20").under(&engine);
    let end = run.ok();
    assert!(end.text().contains("ok 20"), "{}", end.text());
    assert!(on_kernel() || end.err.contains("sockets of this process use the kernel"), "{}", end.err);
}

/// No way to gain rights, and another root folder.
#[test]
fn without_rights_and_in_another_root() {
    let lab = Lab::new("rights");
    let Some(program) = build(&lab, "company", COMPANY, &[]) else { return };
    let wrapper = ["setpriv", "--no-new-privs", "--inh-caps=-all"];
    connects(&lab, |engine| lab.run(&program).arg("20").by(&wrapper).under(engine));
    if !is_root() {
        return not_run("a root folder of one's own needs root");
    }
    connects(&lab, |engine| {
        let folder = lab.path("root").display().to_string();
        std::fs::create_dir_all(&folder).expect("a folder");
        lab.run(&program).args(["20", &format!("chroot={folder}")]).under(engine)
    });
}

#[test]
fn every_descriptor_is_closed() {
    let lab = Lab::new("closes");
    let Some(program) = build(&lab, "company", COMPANY, &[]) else { return };
    connects(&lab, |engine| lab.run(&program).args(["20", "closes"]).under(engine));
    connects(&lab, |engine| lab.run(&program).args(["20", "range", "midway"]).under(engine));
    connects(&lab, |engine| lab.run(&program).args(["20", "from", "nofile=64", "midway"]).under(engine));
    connects(&lab, |engine| lab.run(&program).args(["40", "nofile=32"]).under(engine));
}

/// The same words on the kernel and on both paths of utcp.
fn as_on_the_kernel<'l>(lab: &'l Lab, run: impl Fn() -> Run<'l>) {
    let kernel = run().ok().text();
    for path in PATHS {
        let engine = Engine::new(lab).set("UTCP_CUT_THROUGH", path).run();
        let utcp = run().under(&engine).limit(Duration::from_secs(20)).ok().text();
        assert_eq!(utcp, kernel, "{path}");
    }
}

/// Descriptors that wait to be used again are the program's when it needs their numbers.
#[test]
fn every_descriptor_is_used() {
    let lab = Lab::new("limit");
    let Some(program) = build(&lab, "limit", LIMIT, &[]) else { return };
    as_on_the_kernel(&lab, || lab.run(&program));
}

#[test]
fn pointers_that_lead_nowhere() {
    let lab = Lab::new("faults");
    let script = lab.file("faults.py", FAULTS);
    as_on_the_kernel(&lab, || lab.run("python3").arg(&script));
}

/// SO_PEEK_OFF on a connection, and on what a listener that has it accepts.
#[test]
fn peeks_move_on() {
    let lab = Lab::new("peek");
    let script = lab.file("peek.py", PEEK);
    as_on_the_kernel(&lab, || lab.run("python3").arg(&script));
}

#[test]
fn files_are_sent_by_many_threads() {
    let lab = Lab::new("sendfile");
    let Some(program) = build(&lab, "sendfile", SENDFILE, &[]) else { return };
    let file = lab.path("file");
    for path in PATHS {
        let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", path).run();
        let end = lab.run(&program).arg(&file).under(&engine).limit(Duration::from_secs(30)).ok();
        assert_eq!(end.text(), "ok\n", "{path}");
        engine.went_through(8);
    }
}

#[test]
fn a_program_compiled_with_liburing() {
    let lab = Lab::new("ring");
    let Some(program) = build(&lab, "ring", RING, &["-luring"]) else { return };
    as_on_the_kernel(&lab, || lab.run(&program));
    if on_kernel() {
        return;
    }
    let engine = Engine::start(&lab);
    let end = lab.run(&program).under(&engine).env("UTCP_IO_URING", "refuse").ok();
    assert_eq!(end.text(), format!("ring: {}\n", -libc::ENOSYS));
}

/// A program that has no dynamic linker, or another user's rights, inherits a connection and reads first, or a listener: it is as on the kernel,
/// for it, for who started it, and for the other end.
#[test]
fn a_program_without_the_library() {
    let lab = Lab::new("alone");
    let Some(program) = build(&lab, "alone", ALONE, &["-static"]) else { return };
    let mut programs = vec![program];
    if is_root() {
        let Some(other) = build(&lab, "other", ALONE, &[]) else { return };
        std::os::unix::fs::chown(&other, Some(65_534), None).expect("root may");
        std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o4755)).expect("ours");
        programs.push(other);
    }
    let run = || lab.python(STARTER).args(&programs).limit(Duration::from_secs(60));
    let plain = run().ok();
    assert_eq!(plain.text().matches(" 0\n").count(), 8 * programs.len(), "{}", plain.text());
    for path in PATHS {
        let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", path).run();
        assert_eq!(run().under(&engine).ok().text(), plain.text(), "{path}");
        engine.went_through(8 * programs.len() as u64);
    }
}
