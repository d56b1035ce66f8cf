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

/// The child of `vfork` decides which of two connections and a listener its program inherits.
const CHOOSES: &str = r#"
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(what) ((what) ? (void)0 : (perror(#what), _exit(1)))

static int fds[3]; /* a listener and both ends of a connection */

static int look(char **numbers) { /* the program that the child becomes */
    for (; *numbers; numbers++)
        printf(" %s", fcntl(atoi(*numbers), F_GETFD) < 0 ? "-" : "open");
    puts("");
    return 0;
}

static int set(int fd, int on) { return fcntl(fd, F_SETFD, on ? FD_CLOEXEC : 0); }

static void choose(char how) {
    switch (how) {
    case 'n': break;
    case 'a': CHECK(set(fds[0], 1) == 0 && set(fds[1], 1) == 0); break;
    case 'b': CHECK(set(fds[1], 1) == 0 && set(fds[2], 1) == 0 && set(fds[2], 0) == 0); break;
    case 'i': CHECK(ioctl(fds[2], FIOCLEX) == 0); break;
    case 'r': CHECK(syscall(SYS_close_range, fds[0], ~0U, 4) == 0); break;
    case 'd': CHECK(dup3(fds[0], fds[1], O_CLOEXEC) == fds[1]); break;
    case 'g': CHECK(fcntl(fds[1], F_GETFD) == 0 && fcntl(fds[2], F_GETFD) == 0); break;
    }
}

int main(int count, char **words) {
    if (count > 1)
        return look(words + 1);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    char numbers[3][16], *arguments[] = {"look", numbers[0], numbers[1], numbers[2], NULL};
    CHECK((fds[0] = socket(AF_INET, SOCK_STREAM, 0)) >= 0);
    CHECK(bind(fds[0], (void *)&at, len) == 0 && listen(fds[0], 8) == 0);
    CHECK(getsockname(fds[0], (void *)&at, &len) == 0);
    CHECK((fds[1] = socket(AF_INET, SOCK_STREAM, 0)) >= 0 && connect(fds[1], (void *)&at, len) == 0);
    CHECK((fds[2] = accept(fds[0], NULL, NULL)) >= 0);
    for (int i = 0; i < 3; i++)
        sprintf(numbers[i], "%d", fds[i]);
    for (const char *how = "nabirdg"; *how; how++) {
        int status;
        printf("%c", *how), fflush(stdout);
        pid_t child = vfork();
        if (child == 0) {
            choose(*how);
            execv("/no/such/program", arguments); /* A path is searched. */
            execv("/proc/self/exe", arguments);
            _exit(1);
        }
        CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
        CHECK(fcntl(fds[1], F_GETFD) == 0 && fcntl(fds[2], F_GETFD) == 0);
    }
    return 0;
}
"#;

/// What a program inherits is what the child of `vfork` said last of FD_CLOEXEC, by whichever call; the parent's is as it was.
#[test]
fn a_child_by_vfork_says_what_is_inherited() {
    if !is_installed("cc") {
        return not_run("no C compiler");
    }
    let lab = Lab::new("forks-vfork");
    let (source, program) = (lab.file("vfork.c", CHOOSES), lab.path("vfork"));
    let _ = lab.run("cc").args(["-O1", "-Wall", "-o"]).arg(&program).arg(source).ok();
    let wanted = "n open open open\na - - open\nb open - open\ni open open -\nr - - -\nd open - open\ng open open open\n";
    assert_eq!(lab.run(&program).ok().text(), wanted, "the kernel");
    for path in ["off", "on"] {
        let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", path).run();
        assert_eq!(lab.run(&program).under(&engine).ok().text(), wanted, "cut-through {path}");
        engine.went_through(1);
    }
}
