//! Threads that are cancelled while they are busy: a call that is a cancellation point is one though nothing makes it wait.

use utcp_tests::{Engine, Lab, is_installed, not_run};

/// Each kind of call, again and again, on a connection that never keeps it waiting.
const PROGRAM: &str = r#"
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define CHECK(what) ((what) ? (void)0 : (perror(#what), _exit(1)))
static const char *names[] = {"recv", "read", "recvmsg", "send", "write", "writev", "sendmsg", "poll", "select", "epoll_wait", "accept", "connect"};
enum { RECV, READ, RECVMSG, SEND, WRITE, WRITEV, SENDMSG, POLL, SELECT, EPOLL, ACCEPT, CONNECT, KINDS };
static struct sockaddr_in at = {.sin_family = AF_INET};
static int listener, ends[2], set;
static atomic_int rounds, cleaned;

static void clean(void *argument) { (void)argument, atomic_fetch_add(&cleaned, 1); }

static void *busy(void *kind_of) {
    int kind = (int)(size_t)kind_of, client = -1, server = -1;
    char byte = 'x';
    struct iovec list = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message = {.msg_iov = &list, .msg_iovlen = 1};
    struct pollfd one = {.fd = ends[0], .events = POLLOUT};
    struct epoll_event event;
    fd_set out;
    pthread_cleanup_push(clean, NULL);
    for (;; atomic_fetch_add(&rounds, 1)) {
        switch (kind) {
        case RECV: CHECK(recv(ends[1], &byte, 1, MSG_PEEK) == 1); break;
        case READ: CHECK(read(ends[1], &byte, 0) == 0); break;
        case RECVMSG: CHECK(recvmsg(ends[1], &message, MSG_PEEK) == 1); break;
        case SEND: CHECK(send(ends[0], &byte, 0, 0) == 0); break;
        case WRITE: CHECK(write(ends[0], &byte, 0) == 0); break;
        case WRITEV: list.iov_len = 0; CHECK(writev(ends[0], &list, 1) == 0); break;
        case SENDMSG: list.iov_len = 0; CHECK(sendmsg(ends[0], &message, 0) == 0); break;
        case POLL: CHECK(poll(&one, 1, -1) == 1); break;
        case SELECT: FD_ZERO(&out); FD_SET(ends[0], &out); CHECK(select(ends[0] + 1, NULL, &out, NULL, NULL) == 1); break;
        case EPOLL: CHECK(epoll_wait(set, &event, 1, -1) == 1); break;
        case ACCEPT: case CONNECT:
            /* The other call of the two can't be cancelled. */
            pthread_setcancelstate(kind == CONNECT ? PTHREAD_CANCEL_ENABLE : PTHREAD_CANCEL_DISABLE, NULL);
            CHECK((client = socket(AF_INET, SOCK_STREAM, 0)) >= 0 && connect(client, (void *)&at, sizeof at) == 0);
            pthread_setcancelstate(kind == ACCEPT ? PTHREAD_CANCEL_ENABLE : PTHREAD_CANCEL_DISABLE, NULL);
            CHECK((server = accept(listener, NULL, NULL)) >= 0);
            pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
            struct linger at_once = {.l_onoff = 1};
            CHECK(setsockopt(client, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once) == 0);
            CHECK(close(client) == 0 && close(server) == 0);
        }
    }
    pthread_cleanup_pop(0);
    return NULL;
}

/* What is no cancellation point is none, whatever is under way. */
static void *careful(void *argument) {
    int on = 1;
    CHECK(pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL) == 0 && pthread_cancel(pthread_self()) == 0);
    CHECK(setsockopt(ends[0], SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on) == 0 && shutdown(ends[0], SHUT_WR) == 0);
    return argument;
}

int main(void) {
    socklen_t len = sizeof at;
    struct epoll_event event = {.events = EPOLLOUT};
    pthread_t thread;
    void *result;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK((listener = socket(AF_INET, SOCK_STREAM, 0)) >= 0 && bind(listener, (void *)&at, len) == 0 && listen(listener, 64) == 0);
    CHECK(getsockname(listener, (void *)&at, &len) == 0);
    CHECK((ends[0] = socket(AF_INET, SOCK_STREAM, 0)) >= 0 && connect(ends[0], (void *)&at, len) == 0);
    CHECK((ends[1] = accept(listener, NULL, NULL)) >= 0 && send(ends[0], "x", 1, 0) == 1);
    CHECK((set = epoll_create1(0)) >= 0 && epoll_ctl(set, EPOLL_CTL_ADD, ends[0], &event) == 0);
    for (int kind = 0; kind < KINDS; kind++) {
        struct timespec until;
        atomic_store(&rounds, 0), atomic_store(&cleaned, 0);
        CHECK(pthread_create(&thread, NULL, busy, (void *)(size_t)kind) == 0);
        while (atomic_load(&rounds) < 100) usleep(100);
        CHECK(pthread_cancel(thread) == 0 && clock_gettime(CLOCK_REALTIME, &until) == 0);
        until.tv_sec += 5;
        if (pthread_timedjoin_np(thread, &result, &until) != 0) {
            printf("%s: not cancelled\n", names[kind]), fflush(stdout), _exit(0);
        }
        printf("%s: %s, cleaned up %d\n", names[kind], result == PTHREAD_CANCELED ? "cancelled" : "returned", atomic_load(&cleaned));
    }
    CHECK(pthread_create(&thread, NULL, careful, &at) == 0 && pthread_join(thread, &result) == 0);
    printf("careful: %s\n", result == &at ? "returned" : "cancelled");
    puts("done");
    return 0;
}
"#;

#[test]
fn a_busy_thread_is_cancelled() {
    same_as_on_the_kernel("cancelled", PROGRAM);
}

/// Threads that are cancelled in their sleep, one after the other; what they slept with is not lost.
const SLEEPERS: &str = r#"
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <unistd.h>

#define CHECK(what) ((what) ? (void)0 : (perror(#what), _exit(1)))
static struct sockaddr_in at = {.sin_family = AF_INET};
static int listener, ends[2];

static void *asleep(void *kind_of) {
    struct pollfd two[2] = {{.fd = ends[0], .events = POLLIN}, {.fd = ends[1], .events = POLLIN}};
    fd_set list;
    FD_ZERO(&list); FD_SET(ends[0], &list); FD_SET(ends[1], &list);
    switch ((size_t)kind_of) {
    case 0: poll(two, 2, -1); break;
    case 1: select(ends[1] + 1, &list, NULL, NULL, NULL); break;
    default: accept(listener, NULL, NULL);
    }
    CHECK(!"nothing comes");
    return NULL;
}

static int numbers(void) {
    DIR *folder = opendir("/proc/self/fd");
    int count = 0;
    CHECK(folder != NULL);
    while (readdir(folder)) count++;
    closedir(folder);
    return count;
}

int main(void) {
    socklen_t len = sizeof at;
    struct epoll_event event = {.events = EPOLLIN};
    int before = 0, set;
    void *result;
    char byte;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK((listener = socket(AF_INET, SOCK_STREAM, 0)) >= 0 && bind(listener, (void *)&at, len) == 0 && listen(listener, 64) == 0);
    CHECK(getsockname(listener, (void *)&at, &len) == 0);
    CHECK((ends[0] = socket(AF_INET, SOCK_STREAM, 0)) >= 0 && connect(ends[0], (void *)&at, len) == 0);
    CHECK((ends[1] = accept(listener, NULL, NULL)) >= 0);
    for (int round = 0; round < 200; round++) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, asleep, (void *)(size_t)(round % 3)) == 0);
        usleep(1000);
        CHECK(pthread_cancel(thread) == 0 && pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED);
        if (round == 10) before = numbers();
    }
    int more = numbers() - before;
    printf("%s numbers\n", more > 5 ? "more" : "as many");
    CHECK((set = epoll_create1(0)) >= 0 && epoll_ctl(set, EPOLL_CTL_ADD, ends[1], &event) == 0);
    CHECK(send(ends[0], "x", 1, 0) == 1 && epoll_wait(set, &event, 1, 5000) == 1 && recv(ends[1], &byte, 1, 0) == 1);
    puts("done");
    return 0;
}
"#;

#[test]
fn sleepers_that_are_cancelled_leave_nothing() {
    same_as_on_the_kernel("sleepers", SLEEPERS);
}

/// Sleeps that a handler leaves by siglongjmp, and sleeps within a handler, on its own stack and on another.
const LEFT: &str = r#"
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define CHECK(what) ((what) ? (void)0 : (perror(#what), _exit(1)))
static struct sockaddr_in at = {.sin_family = AF_INET};
static int listener, ends[2], others[2];
static sigjmp_buf out;
static volatile int nested;

static void leave(int signal) { (void)signal; siglongjmp(out, 1); }

static void sleep_within(int signal) {
    (void)signal;
    for (int round = 0; round < 20; round++) {
        struct pollfd two[2] = {{.fd = others[0], .events = POLLIN}, {.fd = others[1], .events = POLLIN}};
        CHECK(poll(two, 2, 1) == 0);
        nested++;
    }
    CHECK(send(ends[1], "x", 1, 0) == 1);
}

static void later(void) {
    struct itimerval soon = {.it_value.tv_usec = 1500};
    CHECK(setitimer(ITIMER_REAL, &soon, NULL) == 0);
}

static void asleep(int kind) {
    struct pollfd two[2] = {{.fd = ends[0], .events = POLLIN}, {.fd = ends[1], .events = POLLIN}};
    fd_set list;
    FD_ZERO(&list); FD_SET(ends[0], &list); FD_SET(ends[1], &list);
    if (sigsetjmp(out, 1)) return;
    later();
    switch (kind) {
    case 0: poll(two, 2, -1); break;
    case 1: select(ends[1] + 1, &list, NULL, NULL, NULL); break;
    default: accept(listener, NULL, NULL);
    }
    CHECK(!"nothing comes");
}

static void connected(int pair[2]) {
    socklen_t len = sizeof at;
    CHECK((pair[0] = socket(AF_INET, SOCK_STREAM, 0)) >= 0 && connect(pair[0], (void *)&at, len) == 0);
    CHECK((pair[1] = accept(listener, NULL, NULL)) >= 0);
}

int main(void) {
    socklen_t len = sizeof at;
    struct epoll_event event = {.events = EPOLLIN};
    char byte;
    int set;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK((listener = socket(AF_INET, SOCK_STREAM, 0)) >= 0 && bind(listener, (void *)&at, len) == 0 && listen(listener, 64) == 0);
    CHECK(getsockname(listener, (void *)&at, &len) == 0);
    connected(ends), connected(others);
    signal(SIGALRM, leave);
    for (int round = 0; round < 300; round++) asleep(round % 3);
    for (int own = 0; own < 2; own++) {
        struct pollfd two[2] = {{.fd = ends[0], .events = POLLIN}, {.fd = others[0], .events = POLLIN}};
        stack_t stack = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16};
        struct sigaction action = {.sa_handler = sleep_within, .sa_flags = own ? SA_ONSTACK : 0};
        CHECK(sigaltstack(&stack, NULL) == 0 && sigaction(SIGALRM, &action, NULL) == 0);
        later();
        int got = poll(two, 2, 10000);
        if (got < 0) got = poll(two, 2, 10000);
        printf("%d: %s, %d sleeps within\n", own, got == 1 && two[0].revents == POLLIN ? "woken" : "not woken", nested);
        CHECK(recv(ends[0], &byte, 1, 0) == 1);
    }
    /* The interests of sleeps that are over are in nobody's way. */
    for (int count = 0; count < 8; count++)
        CHECK((set = epoll_create1(0)) >= 0 && epoll_ctl(set, EPOLL_CTL_ADD, ends[1], &event) == 0);
    CHECK(send(ends[0], "x", 1, 0) == 1 && epoll_wait(set, &event, 1, 5000) == 1 && recv(ends[1], &byte, 1, 0) == 1);
    puts("done");
    return 0;
}
"#;

#[test]
fn sleeps_that_are_left_leave_nothing() {
    same_as_on_the_kernel("sleeps-left", LEFT);
}

fn same_as_on_the_kernel(name: &str, text: &str) {
    if !is_installed("cc") {
        return not_run("no C compiler");
    }
    let lab = Lab::new(name);
    let (source, program) = (lab.file("program.c", text), lab.path("program"));
    let _ = lab.run("cc").args(["-O1", "-Wall", "-Werror", "-pthread", "-o"]).arg(&program).arg(source).ok();
    let kernel = lab.run(&program).ok().text();
    assert!(kernel.ends_with("done\n"), "{kernel}");
    for path in ["on", "off"] {
        let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", path).run();
        assert_eq!(lab.run(&program).under(&engine).ok().text(), kernel, "cut-through {path}");
        engine.went_through(1);
    }
}
