//! A socket that is made while its process forks.

use utcp_tests::{Engine, Lab, is_installed, not_run};

/// A library whose fork handler was asked for before ours, so that it runs after it: as another thread may at that moment.
const LIBRARY: &str = r"
#include <pthread.h>
void (*in_fork)(void);
static void prepare(void) { if (in_fork) in_fork(); }
__attribute__((constructor)) static void begin(void) { pthread_atfork(prepare, 0, 0); }
";

const PROGRAM: &str = r#"
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(what) ((what) ? (void)0 : (perror(#what), exit(1)))

extern void (*in_fork)(void);
static struct sockaddr_in at = {.sin_family = AF_INET};
static int listener, ends[2];

static void connect_both(void) {
    CHECK((ends[0] = socket(AF_INET, SOCK_STREAM, 0)) >= 0);
    CHECK(connect(ends[0], (void *)&at, sizeof at) == 0);
    CHECK((ends[1] = accept(listener, NULL, NULL)) >= 0);
}

int main(void) {
    socklen_t len = sizeof at;
    int closed[2], status;
    char byte;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK((listener = socket(AF_INET, SOCK_STREAM, 0)) >= 0);
    CHECK(bind(listener, (void *)&at, len) == 0 && listen(listener, 8) == 0);
    CHECK(getsockname(listener, (void *)&at, &len) == 0 && pipe(closed) == 0);
    connect_both(); /* Whatever is made once is made now. */
    CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
    in_fork = connect_both;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(read(closed[0], &byte, 1) == 1);
        CHECK(send(ends[0], "x", 1, 0) == 1 && recv(ends[1], &byte, 1, 0) == 1 && byte == 'x');
        _exit(0);
    }
    in_fork = NULL;
    CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
    connect_both(); /* What waits for the next socket is not what the child has. */
    CHECK(send(ends[0], "y", 1, 0) == 1 && recv(ends[1], &byte, 1, 0) == 1 && byte == 'y');
    CHECK(write(closed[1], "", 1) == 1);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    puts("done");
    return 0;
}
"#;

/// The child has it, too, though it is younger than the fork's beginning: the parent's close leaves the connection to the child.
#[test]
fn what_is_made_during_a_fork_is_the_childs_too() {
    if !is_installed("cc") {
        return not_run("no C compiler");
    }
    let lab = Lab::new("forks-during");
    let (library, program) = (lab.path("libduring.so"), lab.path("during"));
    let compile = |options: &[&str], source: &std::path::Path, to: &std::path::Path| {
        let run = lab.run("cc").args(["-O1", "-Wall", "-Werror"]).args(options);
        run.arg("-o").arg(to).arg(source)
    };
    let _ = compile(&["-shared", "-fPIC"], &lab.file("library.c", LIBRARY), &library).ok();
    let folder = format!("-Wl,-rpath,{}", lab.path("").display());
    let _ = compile(&[&folder], &lab.file("during.c", PROGRAM), &program).arg(&library).ok();
    for path in ["off", "on"] {
        let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", path).run();
        assert_eq!(lab.run(&program).under(&engine).ok().text(), "done\n");
        engine.went_through(3);
    }
}

/// What the child of `clone` has, and what it does to it.
const CLONES: &str = r#"
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(what) ((what) ? (void)0 : (perror(#what), _exit(1)))

static struct sockaddr_in at = {.sin_family = AF_INET};
static int listener, ends[2], closed[2];
static char stack[1 << 16] __attribute__((aligned(16)));

static void connect_both(void) {
    CHECK((ends[0] = socket(AF_INET, SOCK_STREAM, 0)) >= 0);
    CHECK(connect(ends[0], (void *)&at, sizeof at) == 0);
    CHECK((ends[1] = accept(listener, NULL, NULL)) >= 0);
}

static int exchange(void) {
    char byte;
    return send(ends[0], "x", 1, 0) == 1 && recv(ends[1], &byte, 1, 0) == 1 && byte == 'x';
}

static int use(void *argument) { /* with memory of its own, after the parent has let go */
    char byte;
    CHECK(argument == &at && read(closed[0], &byte, 1) == 1);
    CHECK(exchange());
    return 0;
}

static int let_go(void *argument) { /* on the parent's memory: the numbers are the child's own */
    CHECK(argument == &at && close(ends[0]) == 0 && dup2(closed[0], ends[1]) == ends[1] && close(listener) == 0);
    _exit(0);
}

int main(void) {
    socklen_t len = sizeof at;
    int status;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK((listener = socket(AF_INET, SOCK_STREAM, 0)) >= 0);
    CHECK(bind(listener, (void *)&at, len) == 0 && listen(listener, 8) == 0);
    CHECK(getsockname(listener, (void *)&at, &len) == 0 && pipe(closed) == 0);
    connect_both();
    pid_t child = clone(use, stack + sizeof stack, SIGCHLD, &at);
    CHECK(child > 0 && close(ends[0]) == 0 && close(ends[1]) == 0);
    connect_both(); /* What waits for the next socket is not what the child has. */
    CHECK(exchange() && write(closed[1], "", 1) == 1);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    child = clone(let_go, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, &at);
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    CHECK(exchange());
    CHECK(clone(let_go, NULL, 0, NULL) == -1 && errno == EINVAL);
    CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
    connect_both();
    CHECK(exchange());
    puts("done");
    return 0;
}
"#;

/// A child by `clone` is one by `fork` or `vfork`: it has its own numbers, and a connection is there until both have closed it.
#[test]
fn a_child_by_clone_has_its_own_numbers() {
    if !is_installed("cc") {
        return not_run("no C compiler");
    }
    let lab = Lab::new("forks-clone");
    let (source, program) = (lab.file("clone.c", CLONES), lab.path("clone"));
    let _ = lab.run("cc").args(["-O1", "-Wall", "-Werror", "-o"]).arg(&program).arg(source).ok();
    for path in ["off", "on"] {
        let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", path).run();
        assert_eq!(lab.run(&program).under(&engine).ok().text(), "done\n");
        engine.went_through(3);
    }
}
