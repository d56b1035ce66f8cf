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
