//! Signals while a call waits: what ends it, what goes on, and what the program is told of its handlers.

use std::time::Duration;

use utcp_tests::{Engine, Lab, is_installed, not_run};

/// Says a line for each kind of call, the same on the kernel.
const PROGRAM: &str = r#"
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CHECK(what) ((what) ? (void)0 : (printf("line %d: %s: %s\n", __LINE__, #what, strerror(errno)), fflush(stdout), _exit(1)))
#define BIG (1 << 20)
enum { RECV, POLL, POLL_TWO, SELECT, EPOLL, SEND, ACCEPT, CALLS };
static const char *names[] = {"recv", "poll", "poll of two", "select", "epoll_wait", "send", "accept"};
static struct sockaddr_in at;
static int listener, pipes[2];
static char bytes[BIG];
static volatile int handled;

static void noted(int signal) { (void)signal; }
static void noted_too(int signal) { (void)signal; }
static void install(void (*handler)(int), int flags) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
}

struct call { int kind, fd; volatile int started, done, result, error; pthread_t thread; };

static void *run(void *argument) {
    struct call *call = argument;
    struct pollfd list[2] = {{.fd = call->fd, .events = POLLIN}, {.fd = pipes[0], .events = POLLIN}};
    struct epoll_event event;
    char byte;
    fd_set set;
    FD_ZERO(&set);
    if (call->kind == SELECT) FD_SET(call->fd, &set);
    call->started = 1;
    switch (call->kind) {
    case RECV: call->result = recv(call->fd, &byte, 1, 0); break;
    case POLL: call->result = poll(list, 1, -1); break;
    case POLL_TWO: call->result = poll(list, 2, -1); break;
    case SELECT: call->result = select(call->fd + 1, &set, NULL, NULL, NULL); break;
    case EPOLL: call->result = epoll_wait(call->fd, &event, 1, -1); break;
    case SEND: call->result = send(call->fd, bytes, BIG, 0); break;
    default: call->result = accept(call->fd, NULL, NULL);
    }
    call->error = call->result < 0 ? errno : 0;
    call->done = 1;
    return NULL;
}

static void pass(long ns) {
    struct timespec from, now;
    clock_gettime(CLOCK_MONOTONIC, &from);
    do clock_gettime(CLOCK_MONOTONIC, &now);
    while ((now.tv_sec - from.tv_sec) * 1000000000L + now.tv_nsec - from.tv_nsec < ns);
}

static void begin(struct call *call, int kind, int fd) {
    *call = (struct call){.kind = kind, .fd = fd};
    CHECK(pthread_create(&call->thread, NULL, run, call) == 0);
    while (!call->started) ;
}

static int ended(struct call *call, int ms) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += ms / 1000;
    until.tv_nsec += ms % 1000 * 1000000L;
    if (until.tv_nsec >= 1000000000L) until.tv_sec++, until.tv_nsec -= 1000000000L;
    return pthread_timedjoin_np(call->thread, NULL, &until) == 0;
}

static void pair(int *client, int *server) {
    CHECK((*client = socket(AF_INET, SOCK_STREAM, 0)) >= 0 && connect(*client, (void *)&at, sizeof at) == 0);
    CHECK((*server = accept(listener, NULL, NULL)) >= 0);
}

static void fill(int fd) {
    CHECK(fcntl(fd, F_SETFL, O_NONBLOCK) == 0);
    for (int idle = 0; idle < 20; idle++) {
        while (send(fd, bytes, BIG, 0) > 0) idle = 0;
        CHECK(errno == EAGAIN);
        usleep(1000);
    }
    CHECK(fcntl(fd, F_SETFL, 0) == 0);
}

/* What a program has to wait on for `kind`, and its peer. */
static int subject(int kind, int *client, int *server) {
    pair(client, server);
    if (kind == SEND) fill(*client);
    if (kind == EPOLL) {
        int set = epoll_create1(0);
        struct epoll_event event = {.events = EPOLLIN};
        CHECK(set >= 0 && epoll_ctl(set, EPOLL_CTL_ADD, *client, &event) == 0);
        return set;
    }
    if (kind == ACCEPT) {
        struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        int other = socket(AF_INET, SOCK_STREAM, 0);
        CHECK(other >= 0 && bind(other, (void *)&any, sizeof any) == 0 && listen(other, 8) == 0);
        return other;
    }
    return *client;
}

/* Something else is put at the number, then the thread is told by a signal: it is in the call, or comes upon what is there. */
static void replaced(int kind, int rounds) {
    int marker[2], client, server;
    struct call call;
    install(noted, 0);
    for (int round = 0; round < rounds; round++) {
        int fd = subject(kind, &client, &server);
        CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, marker) == 0 && close(marker[1]) == 0);
        begin(&call, kind, fd);
        pass(round % 60 * 2000L);
        CHECK(dup2(marker[0], fd) == fd && pthread_kill(call.thread, SIGUSR1) == 0);
        if (!ended(&call, 10000)) printf("%s: asleep for good after %d rounds\n", names[kind], round), fflush(stdout), _exit(1);
        close(marker[0]), close(fd), close(server);
        if (fd != client) close(client);
    }
    printf("%s: ended\n", names[kind]);
}

/* Signals come until it ends: the first may be too early. */
static int interrupted(int kind, int fd, int *error, int ms) {
    struct call call;
    int parts = 0;
again:
    begin(&call, kind, fd);
    for (int n = 0; n < ms && !call.done; n++) pthread_kill(call.thread, SIGUSR1), usleep(1000);
    if (!call.done) {
        install(noted, 0); /* This ends it in any case. */
        for (int n = 0; n < 5000 && !call.done; n++) pthread_kill(call.thread, SIGUSR1), usleep(1000);
        CHECK(ended(&call, 5000));
        return 0;
    }
    CHECK(ended(&call, 5000));
    if (kind == SEND && call.result > 0 && parts++ < 100) goto again; /* There was a little room. */
    *error = call.error;
    return 1;
}

static void flags(int kind, int option) {
    int client, server, error = 0, fd = subject(kind, &client, &server);
    struct timeval time = {.tv_sec = 60};
    const char *limits = option ? " with a timeout" : "";
    if (option) CHECK(setsockopt(fd, SOL_SOCKET, option, &time, sizeof time) == 0);
    install(noted, 0);
    int ends = interrupted(kind, fd, &error, 5000);
    printf("%s%s: %s\n", names[kind], limits, ends ? strerror(error) : "goes on");
    install(noted_too, SA_RESTART);
    ends = interrupted(kind, fd, &error, option || (kind != RECV && kind != SEND && kind != ACCEPT) ? 5000 : 100);
    printf("%s%s, SA_RESTART: %s\n", names[kind], limits, ends ? strerror(error) : "goes on");
    close(fd), close(server);
    if (fd != client) close(client);
}

/* A signal that waits and that the call alone lets in, whether or not it waits itself. */
static void counted(int signal) { (void)signal; handled++; }
static void let_in(void) {
    struct timespec none = {0}, soon = {.tv_nsec = 20000000};
    struct epoll_event event = {.events = EPOLLIN};
    int client, server, set = epoll_create1(0);
    sigset_t usr1, open;
    fd_set list;
    pair(&client, &server);
    CHECK(set >= 0 && epoll_ctl(set, EPOLL_CTL_ADD, client, &event) == 0);
    sigemptyset(&usr1), sigaddset(&usr1, SIGUSR1);
    CHECK(pthread_sigmask(SIG_BLOCK, &usr1, &open) == 0);
    install(counted, 0);
    for (int round = 0; round < 12; round++) {
        struct pollfd two[2] = {{.fd = client, .events = POLLIN}, {.fd = pipes[0], .events = POLLIN}};
        int before = handled, result, ready = round / 3 % 2, kind = round % 3;
        struct timespec *time = round < 6 ? &none : &soon;
        if (ready) CHECK(send(server, "x", 1, 0) == 1 && poll(two, 1, 5000) == 1);
        CHECK(raise(SIGUSR1) == 0);
        FD_ZERO(&list); FD_SET(client, &list);
        errno = 0;
        if (kind == 0) result = ppoll(two, 2, time, &open);
        else if (kind == 1) result = ppoll(two, 1, time, &open);
        else result = pselect(client + 1, &list, NULL, NULL, time, &open);
        printf("let in, %s, time %d: %d %s, handled %d\n", kind == 2 ? "pselect" : "ppoll", round >= 6, result, strerror(errno), handled - before);
        struct timespec at_once = {0};
        sigtimedwait(&usr1, NULL, &at_once);
        if (ready) CHECK(recv(client, bytes, 1, 0) == 1);
    }
    CHECK(raise(SIGUSR1) == 0);
    int before = handled, result = epoll_pwait(set, &event, 1, 0, &open);
    printf("let in, epoll_pwait, time 0: %d, handled %d\n", result, handled - before);
    CHECK(pthread_sigmask(SIG_SETMASK, &open, NULL) == 0);
    close(set), close(client), close(server);
}

static const char *name(void *handler) {
    return handler == (void *)noted ? "noted" : handler == (void *)noted_too ? "noted_too" : handler == (void *)SIG_DFL ? "default"
        : handler == (void *)SIG_IGN ? "ignored" : "unknown";
}

static void told(const char *when) {
    struct sigaction now;
    CHECK(sigaction(SIGUSR2, NULL, &now) == 0);
    printf("%s: %s, restart %d, mask %d\n", when, name((void *)now.sa_handler), !!(now.sa_flags & SA_RESTART), sigismember(&now.sa_mask, SIGUSR2));
}

static void handlers(void) {
    struct sigaction old, new = {.sa_handler = noted, .sa_flags = SA_RESETHAND};
    told("at first");
    printf("before: %s\n", name((void *)signal(SIGUSR2, noted)));
    told("signal");
    printf("before: %s\n", name((void *)signal(SIGUSR2, noted_too)));
    CHECK(siginterrupt(SIGUSR2, 1) == 0);
    told("siginterrupt");
    printf("before: %s\n", name((void *)signal(SIGUSR2, noted)));
    told("signal behind it");
    printf("before: %s\n", name((void *)sigset(SIGUSR2, noted_too)));
    told("sigset");
    printf("before: %s\n", name((void *)sigset(SIGUSR2, SIG_HOLD)));
    printf("held: %d\n", sigset(SIGUSR2, noted) == SIG_HOLD);
    told("sigset again");
    CHECK(sigaction(SIGUSR2, &new, &old) == 0);
    printf("before: %s\n", name((void *)old.sa_handler));
    CHECK(raise(SIGUSR2) == 0);
    told("once");
    printf("before: %s\n", name((void *)signal(SIGUSR2, SIG_IGN)));
    told("ignored");
    CHECK(sigaction(SIGKILL, &new, NULL) < 0 && errno == EINVAL && signal(SIGKILL, noted) == SIG_ERR && sigaction(99, &new, NULL) < 0);
    told("after nonsense");
}

int main(int count, char **words) {
    int rounds = count > 1 ? atoi(words[1]) : 200;
    at = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    CHECK((listener = socket(AF_INET, SOCK_STREAM, 0)) >= 0 && bind(listener, (void *)&at, size) == 0 && listen(listener, 64) == 0);
    CHECK(getsockname(listener, (void *)&at, &size) == 0 && pipe(pipes) == 0);
    CHECK(signal(SIGPIPE, SIG_IGN) != SIG_ERR); /* A send to a marker. */
    handlers();
    let_in();
    for (int kind = RECV; kind < CALLS; kind++) flags(kind, 0);
    flags(RECV, SO_RCVTIMEO);
    flags(SEND, SO_SNDTIMEO);
    flags(ACCEPT, SO_RCVTIMEO);
    /* Another number in the set than the one that is replaced: nothing tells who waits on a set. */
    for (int kind = RECV; kind < CALLS; kind++) replaced(kind, kind == SEND ? rounds / 5 : rounds);
    puts("done");
}
"#;

#[test]
fn a_handler_ends_what_waits() {
    if !is_installed("cc") {
        not_run("no C compiler");
        return;
    }
    let lab = Lab::new("interrupts");
    let program = lab.path("interrupts");
    let source = lab.file("interrupts.c", PROGRAM);
    lab.run("cc")
        .args(["-O1", "-Wall", "-Wextra", "-Werror", "-Wno-deprecated-declarations", "-pthread", "-o"])
        .arg(&program)
        .arg(source)
        .ok();
    let run = |engine: Option<&Engine<'_>>| {
        let run = lab.run(&program).limit(Duration::from_secs(120));
        let run = match engine {
            Some(engine) => run.under(engine),
            None => run,
        };
        let text = run.ok().text();
        assert!(text.ends_with("done\n"), "{text}");
        text
    };
    let kernel = run(None);
    for path in ["on", "off"] {
        let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", path).run();
        assert_eq!(run(Some(&engine)), kernel, "cut-through {path}");
        engine.went_through(1000);
    }
}
