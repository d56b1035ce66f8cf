//! The files that are built: what they need and what they show.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use utcp_tests::{Lab, release_file, repository};

fn tool(name: &str, args: &[&str], file: &Path) -> String {
    let output = Command::new(name).args(args).arg(file).output().unwrap_or_else(|e| panic!("{name}: {e}"));
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whatever it needs besides, a program would have to load, too: libgcc_s alone costs 100 µs per exec.
#[test]
fn the_library_needs_libc_alone() {
    let dynamic = tool("readelf", &["-dW"], &release_file("libutcp.so"));
    let needed: Vec<&str> = dynamic
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| line.split_once('[')?.1.split_once(']'))
        .map(|(name, _)| name)
        .collect();
    assert!(needed.contains(&"libc.so.6"), "{needed:?}");
    assert!(needed.iter().all(|n| *n == "libc.so.6" || n.starts_with("ld-linux")), "{needed:?}");
    assert!(!dynamic.contains("TEXTREL"), "text relocations");
}

fn exports() -> BTreeSet<String> {
    let symbols = tool("nm", &["-D", "--defined-only"], &release_file("libutcp.so"));
    symbols.lines().filter_map(|line| line.split_whitespace().nth(2)).map(str::to_owned).collect()
}

/// An export that libc doesn't have can only hide a name of the program's own.
#[test]
fn the_library_exports_only_names_of_libc() {
    let libc = libc_names();
    // liburing makes system calls of its own, so what makes rings there is taken over, too.
    let known = |name: &String| libc.contains(name) || name.starts_with("io_uring_");
    let strangers: Vec<String> = exports().into_iter().filter(|name| !known(name)).collect();
    assert!(strangers.is_empty(), "{strangers:?}");
}

fn libc_names() -> BTreeSet<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("our own maps");
    let path = maps.lines().find_map(|l| l.split_whitespace().last().filter(|p| p.ends_with("/libc.so.6")));
    let symbols = tool("nm", &["-D", "--defined-only"], Path::new(path.expect("libc is mapped")));
    let name = |line: &str| Some(line.split_whitespace().nth(2)?.split('@').next()?.to_owned());
    symbols.lines().filter_map(name).collect()
}

/// The calls of APPS.md's table, and the aliases that its programs or libc's headers use.
#[test]
fn the_library_intercepts_what_programs_call() {
    let wanted = "socket bind listen accept accept4 connect getsockname getpeername shutdown getsockopt setsockopt \
                  read write readv writev recv send recvfrom sendto recvmsg sendmsg sendfile sendfile64 splice \
                  close dup dup2 dup3 fcntl fcntl64 ioctl poll ppoll select pselect \
                  epoll_ctl epoll_wait epoll_pwait epoll_pwait2 vfork execve execv execvp posix_spawn \
                  posix_spawnp close_range closefrom syscall __read_chk __recv_chk __recvfrom_chk __poll_chk \
                  __ppoll_chk __read __write __close __connect __send __poll";
    let exports = exports();
    let missing: Vec<&str> = wanted.split_whitespace().filter(|name| !exports.contains(*name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Every name in the shim's table is exported, and nothing else.
#[test]
fn exports_come_from_the_one_table() {
    let exports = exports();
    let mut text = String::new();
    let folder = repository().join("shim/src");
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("the shim's sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                text.push_str(&std::fs::read_to_string(path).unwrap_or_default());
            }
        }
    }
    let words: BTreeSet<&str> = text.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let unknown: Vec<&String> = exports.iter().filter(|name| !words.contains(name.as_str())).collect();
    assert!(unknown.is_empty(), "exported, but in no source of the shim: {unknown:?}");
    assert!(exports.len() > 50, "{exports:?}");
}

#[test]
fn programs_that_use_no_sockets_notice_nothing() {
    let lab = Lab::new("no-sockets");
    let library = release_file("libutcp.so");
    let answer = lab.run("sh").args(["-c", "echo a | cat | wc -l"]).preload(&library).ok();
    assert_eq!(answer.text().trim(), "1");
    assert_eq!(answer.err, "", "it says nothing of its own accord");
}

#[test]
fn the_command_explains_itself() {
    let lab = Lab::new("help");
    let help = lab.run(release_file("utcp")).arg("--help").ok().text();
    for word in ["run", "engine", "ss", "why", "metrics"] {
        assert!(help.contains(word), "{word} is not in:\n{help}");
    }
    let wrong = lab.run(release_file("utcp")).arg("nonsense").finish();
    assert!(!wrong.status.success() && wrong.err.contains("nonsense"));
}
