//! Programs of the call language (`tests/differential`) at random: a pair or two of connected sockets, then calls on a few
//! names, each of which may be anything by then, or nothing.
//!
//! Every line is one strategy, so that a program shrinks to the lines that matter. What a program may observe is the same
//! whenever it is asked: no call waits for longer than its 30 ms (`limits`), little enough is sent that buffers don't
//! fill, and nothing is asked that depends on timers, buffer sizes or port numbers.

use std::ops::Range;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select, subsequence};

/// Names that sockets get; `c` and `a`, `d` and `b` are the ends of a connection at first, `l` and `m` the listeners.
const SOCKETS: &[&str] = &["c", "a", "c", "a", "c", "a", "l", "d", "b", "m", "x", "y"];
const NEW: &[&str] = &["x", "y", "x", "y", "z", "c", "a", "d"];
const LISTENERS: &[&str] = &["l", "l", "l", "m", "x", "y", "c"];
const SETS: &[&str] = &["e", "e", "f"];
const EVENTS: &[&str] = &["in", "out", "rdhup", "pri", "et", "oneshot"];

type Line = BoxedStrategy<String>;

/// Lines of a program.
pub fn program(lines: Range<usize>) -> impl Strategy<Value = Vec<String>> {
    let pair = |words: &'static str| {
        prop_oneof![3 => Just(words.to_owned()), 1 => Just(format!("{words} v6"))].boxed()
    };
    let beginning = (pair("pair c a l limits"), proptest::option::of(pair("pair d b m limits")), 0..3_usize);
    (beginning, vec(block(), lines)).prop_map(|((one, two, sets), rest)| {
        let mut all = vec!["loose".to_owned(), one];
        all.extend(two);
        all.extend(["epoll e", "epoll f"].map(str::to_owned).into_iter().take(sets));
        // A block of several lines is one element: it is dropped or kept as a whole.
        all.extend(rest.iter().flat_map(|block| block.lines()).map(str::to_owned));
        all
    })
}

fn socket() -> impl Strategy<Value = &'static str> {
    select(SOCKETS)
}

fn data() -> impl Strategy<Value = &'static str> {
    select(&["\"abc\"", "\"x\"", "bytes:100", "bytes:1500", "bytes:3000", "\"\""][..])
}

fn events() -> impl Strategy<Value = String> {
    subsequence(EVENTS, 0..4)
        .prop_map(|chosen| if chosen.is_empty() { "none".to_owned() } else { chosen.join("|") })
}

fn polled() -> impl Strategy<Value = String> {
    let events = select(&["in", "out", "in|out", "in|rdhup", "in|out|rdhup|pri", "none"][..]);
    (socket(), events).prop_map(|(name, events)| format!("{name}:{events}"))
}

fn flags(all: &'static [&'static str]) -> impl Strategy<Value = String> {
    subsequence(all, 0..=all.len().min(2)).prop_map(|chosen| chosen.join(" "))
}

fn line(text: &'static str) -> Line {
    Just(text.to_owned()).boxed()
}

/// `NAME CALL` with a name of `names`, for calls that take a descriptor and nothing that is drawn.
fn on(calls: &'static [&'static str], names: &'static [&'static str]) -> Line {
    (select(calls), select(names)).prop_map(|(call, name)| call.replace('@', name)).boxed()
}

fn sending() -> Line {
    prop_oneof![
        4 => (socket(), data(), flags(&["dontwait", "nosignal"])).prop_map(|(s, d, f)| format!("send {s} {d} {f}")),
        1 => (socket(), data()).prop_map(|(s, d)| format!("write {s} {d}")),
        1 => (socket(), data(), data()).prop_map(|(s, d, e)| format!("writev {s} {d} {e}")),
        1 => (socket(), data(), data()).prop_map(|(s, d, e)| format!("sendmsg {s} {d} {e}")),
        1 => socket().prop_map(|s| format!("send {s} \"ab\" oob")),
        1 => socket().prop_map(|s| format!("file g bytes:700\nsendfile {s} g 500")),
    ]
    .boxed()
}

fn receiving() -> Line {
    let count = || select(&["10", "2", "0", "200", "5000"][..]);
    prop_oneof![
        4 => (socket(), count(), flags(&["dontwait", "peek", "waitall", "trunc"]))
            .prop_map(|(s, n, f)| format!("recv {s} {n} {f}")),
        1 => (socket(), count()).prop_map(|(s, n)| format!("read {s} {n}")),
        1 => (socket(), count(), count()).prop_map(|(s, n, m)| format!("readv {s} {n} {m}")),
        1 => (socket(), count(), flags(&["dontwait", "peek"])).prop_map(|(s, n, f)| format!("recvmsg {s} {n} {f}")),
        1 => on(&["recv @ 1 oob", "drain @", "pipe r w\nsplice @ w 50 nonblock"], SOCKETS),
    ]
    .boxed()
}

fn readiness() -> Line {
    let set = || select(SETS);
    prop_oneof![
        2 => vec(polled(), 1..4).prop_map(|list| format!("poll 0 {}", list.join(" "))),
        1 => (socket(), socket()).prop_map(|(s, t)| format!("select 0 r:{s} w:{s} e:{s} r:{t}")),
        4 => (set(), select(&["add", "add", "mod"][..]), socket(), events())
            .prop_map(|(set, what, s, events)| format!("ctl {set} {what} {s} {events}")),
        1 => (set(), socket()).prop_map(|(set, s)| format!("ctl {set} del {s} none")),
        5 => set().prop_map(|set| format!("wait {set} 0")),
        1 => set().prop_map(|set| format!("wait {set} 15")),
        1 => select(&["epoll e", "epoll f", "close e", "dup f e", "ctl e add f in", "poll 0 e:in f:in"][..])
            .prop_map(str::to_owned),
    ]
    .boxed()
}

fn life() -> Line {
    prop_oneof![
        3 => (socket(), select(&["wr", "rd", "rdwr"][..])).prop_map(|(s, how)| format!("shutdown {s} {how}")),
        3 => on(&["close @", "close @", "setopt @ LINGER 1 0\nclose @", "setopt @ LINGER 1 0"], SOCKETS),
        2 => (select(NEW), socket()).prop_map(|(new, s)| format!("dup {new} {s}")),
        1 => (socket(), socket()).prop_map(|(s, t)| format!("dup2 {s} {t}")),
        2 => (select(NEW), flags(&["nonblock", "v6"])).prop_map(|(new, f)| format!("socket {new} limits {f}")),
        3 => (select(NEW), select(LISTENERS)).prop_map(|(s, l)| format!("connect {s} {l}")),
        1 => (select(NEW), select(LISTENERS)).prop_map(|(s, l)| format!("socket {s} limits\nconnect {s} {l}")),
        3 => (select(NEW), select(LISTENERS), flags(&["nonblock", "address"]))
            .prop_map(|(new, l, f)| format!("accept {new} {l} limits {f}")),
        1 => on(&["listen @ 8", "socket @ limits\nbind @ loopback", "socket @ limits\nbind @ loopback\nlisten @ 8"], NEW),
        1 => on(&["connect @ nobody"], NEW),
    ]
    .boxed()
}

fn looking() -> Line {
    prop_oneof![
        2 => on(&["getopt @ ERROR", "fionread @", "name @", "peer @", "getfl @", "fstat @", "atmark @"], SOCKETS),
        1 => on(
            &[
                "getopt @ TYPE",
                "getopt @ ACCEPTCONN",
                "getopt @ LINGER",
                "getopt @ RCVLOWAT",
                "getopt @ INFO",
                "getopt @ OOBINLINE",
                "getopt @ NODELAY",
                "getopt @ DOMAIN",
                "getfd @",
                "lseek @",
                "pread @",
            ],
            SOCKETS,
        ),
        1 => on(
            &[
                "setfl @ nonblock",
                "setfl @ block",
                "fionbio @ 1",
                "fionbio @ 0",
                "setopt @ RCVLOWAT 5",
                "setopt @ RCVLOWAT 1",
                "setopt @ OOBINLINE 1",
                "setopt @ KEEPALIVE 1",
                "setopt @ RCVTIMEO 20",
            ],
            SOCKETS,
        ),
    ]
    .boxed()
}

/// What happens while a call waits: something in another thread, or a signal.
fn waiting() -> Line {
    // A name whose number was closed elsewhere means another file by now.
    let closes = |text: &str| text.contains("close ") || text.contains("dup");
    let what = prop_oneof![sending(), life(), receiving()]
        .prop_filter("one line that closes nothing", move |text| !text.contains('\n') && !closes(text));
    let wait = on(&["recv @ 10", "recv @ 10 waitall", "poll 300 @:in|rdhup", "accept y @ limits"], SOCKETS);
    prop_oneof![
        2 => (what, wait.clone()).prop_map(|(what, wait)| format!("later 10 {what}\n{wait}\njoin")),
        1 => (select(&["", " restart"][..]), wait).prop_map(|(how, wait)| format!("alarm 10{how}\n{wait}")),
    ]
    .boxed()
}

fn call() -> Line {
    prop_oneof![6 => sending(), 6 => receiving(), 8 => readiness(), 6 => life(), 3 => looking()].boxed()
}

/// One call, or a few that belong together.
fn block() -> Line {
    prop_oneof![
        30 => call(),
        1 => waiting(),
        2 => vec(call(), 1..5)
            .prop_map(|lines| format!("fork\n{}\nend", lines.join("\n"))),
        1 => line("epoll e"),
        // Many in a row: what edges, one-shots and low water marks make of it.
        1 => (vec(sending(), 2..4), any::<Index>()).prop_map(|(lines, at)| {
            let last = at.get(SETS);
            format!("{}\nwait {last} 0\nwait {last} 0", lines.join("\n"))
        }),
    ]
    .boxed()
}
