/* Calls from everywhere at once: threads on shared descriptors, signal handlers that use the socket of the call they
 * interrupt, forks, cancelled threads, jumps out of handlers.
 *
 *   stress shared|late|signals|forks|cancel SECONDS SEED
 *
 * Sockets of one owner carry numbered bytes, and every one is checked; on the others anything may come of a call but a crash or
 * a hang. At the end all descriptors are closed and counted, "done" is printed, and the program waits to be ended, so that
 * whoever started it can look for what stayed behind. A watchdog aborts when nothing moves for 20 seconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHECK(what) ((what) ? (void)0 : fail(#what, __LINE__))

static atomic_ulong moves; /* calls that returned, for the watchdog */
static atomic_ulong checked; /* bytes that were what they should be */
static time_t end;
static struct sockaddr_in server; /* where `listener` listens */
static int listener = -1;

static void fail(const char *what, int line) {
    int error = errno;
    fprintf(stderr, "line %d: not so: %s (errno %s)\n", line, what, strerrorname_np(error));
    abort();
}

static int over(void) { return time(NULL) >= end; }

static unsigned next(unsigned *seed) { return *seed = *seed * 1103515245u + 12345u, *seed >> 8; }

static void *watch(void *unused) {
    unsigned long before = ~0ul;
    for (int still = 0; still < 20; sleep(1)) {
        unsigned long now = atomic_load(&moves);
        still = now == before ? still + 1 : 0;
        before = now;
    }
    fprintf(stderr, "nothing moved for 20 s\n");
    abort();
    return unused;
}

static int listen_here(struct sockaddr_in *at) {
    socklen_t len = sizeof *at;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    memset(at, 0, sizeof *at);
    at->sin_family = AF_INET;
    at->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(fd >= 0 && bind(fd, (void *)at, len) == 0 && listen(fd, 256) == 0);
    CHECK(getsockname(fd, (void *)at, &len) == 0);
    return fd;
}

/* Two connected sockets of our own. */
static void pair(int ends[2]) {
    struct sockaddr_in at;
    int l = listen_here(&at);
    ends[0] = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(ends[0] >= 0);
    int connected;
    do connected = connect(ends[0], (void *)&at, sizeof at);
    while (connected != 0 && errno == EINTR); /* Then it goes on by itself. */
    CHECK(connected == 0 || errno == EISCONN || errno == EALREADY);
    do ends[1] = accept(l, NULL, NULL);
    while (ends[1] < 0 && errno == EINTR);
    CHECK(ends[1] >= 0 && close(l) == 0);
}

static unsigned char numbered(unsigned long position) { return (unsigned char)(position % 251); }

static void send_numbered(int fd, unsigned long *position, size_t count) {
    unsigned char bytes[4096];
    for (size_t at = 0; at < count; at++) bytes[at] = numbered(*position + at);
    for (size_t sent = 0; sent < count;) {
        ssize_t got = send(fd, bytes + sent, count - sent, MSG_NOSIGNAL);
        CHECK(got > 0 || errno == EINTR);
        if (got > 0) sent += (size_t)got;
    }
    *position += count;
    atomic_fetch_add(&moves, 1);
}

/* Receives until `count` numbered bytes have come; others (from handlers) are 0xff, and are counted. */
static unsigned long receive_numbered(int fd, unsigned long *position, size_t count) {
    unsigned char bytes[4096];
    unsigned long strange = 0;
    while (count > 0) {
        ssize_t got = recv(fd, bytes, count < sizeof bytes ? count : sizeof bytes, 0);
        CHECK(got > 0 || (got < 0 && errno == EINTR));
        for (ssize_t at = 0; at < got; at++) {
            if (bytes[at] == 0xff) {
                strange++;
            } else {
                CHECK(bytes[at] == numbered(*position));
                ++*position, --count;
            }
        }
        atomic_fetch_add(&moves, 1);
    }
    atomic_fetch_add(&checked, 1);
    return strange;
}

static void talk(unsigned seed, int ends[2]) { /* back and forth over a connection of one's own */
    unsigned long there = 0, arrived = 0, back = 0, returned = 0;
    while (!over()) {
        size_t count = 1 + next(&seed) % 4000;
        send_numbered(ends[0], &there, count);
        receive_numbered(ends[1], &arrived, count);
        send_numbered(ends[1], &back, count);
        receive_numbered(ends[0], &returned, count);
    }
}

static void run_threads(int count, void *(*body)(void *), unsigned seed) {
    pthread_t threads[count];
    for (int at = 0; at < count; at++) CHECK(pthread_create(&threads[at], NULL, body, (void *)(size_t)(seed + at)) == 0);
    for (int at = 0; at < count; at++) CHECK(pthread_join(threads[at], NULL) == 0);
}

/* ---- shared: who closes a number and who uses it do not agree */

#define SHARED 48
static atomic_int shared[SHARED];
/* Made before the rest begins and closed after it, so that no number that somebody remembers is ever one of them. */
static int ours[4][2];

static int any(unsigned *seed) { return atomic_load(&shared[next(seed) % SHARED]); }

static void keep(unsigned *seed, int fd) {
    if (fd < 0) return;
    int old = atomic_exchange(&shared[next(seed) % SHARED], fd);
    if (old >= 0) close(old);
}

static void one_call(unsigned *seed) {
    char bytes[3000];
    struct epoll_event event = {.events = next(seed) & (EPOLLIN | EPOLLOUT | EPOLLRDHUP), .data.u64 = 7};
    struct epoll_event events[8];
    int fd = any(seed);
    memset(bytes, 'x', sizeof bytes);
    switch (next(seed) % 16) {
    case 0: keep(seed, socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)); break;
    case 1:
    case 2: connect(fd, (void *)&server, sizeof server); break;
    case 3:
    case 4: keep(seed, accept4(listener, NULL, NULL, SOCK_NONBLOCK)); break;
    case 5:
    case 6: send(fd, bytes, next(seed) % sizeof bytes, MSG_NOSIGNAL | MSG_DONTWAIT); break;
    case 7:
    case 8: recv(fd, bytes, sizeof bytes, MSG_DONTWAIT | (next(seed) % 4 == 0 ? MSG_PEEK : 0)); break;
    case 9: keep(seed, dup(fd)); break;
    case 10: {
        /* Onto a number that one of us owns: taken out first, so that nobody else closes it. */
        int onto = atomic_exchange(&shared[next(seed) % SHARED], -1);
        if (onto >= 0 && fd >= 0) dup2(fd, onto), keep(seed, onto);
        else if (onto >= 0) close(onto);
        break;
    }
    case 11: {
        int old = atomic_exchange(&shared[next(seed) % SHARED], -1);
        if (old >= 0) close(old);
        break;
    }
    case 12:
        if (next(seed) % 8 == 0) keep(seed, epoll_create1(0));
        epoll_ctl(any(seed), (int)(1 + next(seed) % 3), fd, &event);
        break;
    case 13: epoll_wait(fd, events, 8, 0); break;
    case 14: shutdown(fd, (int)(next(seed) % 3)); break;
    default: {
        struct pollfd list[2] = {{.fd = fd, .events = POLLIN | POLLOUT}, {.fd = any(seed), .events = POLLIN}};
        poll(list, 2, (int)(next(seed) % 2));
    }
    }
    atomic_fetch_add(&moves, 1);
}

static void *calls(void *seed_of) {
    unsigned seed = (unsigned)(size_t)seed_of * 2654435761u;
    unsigned which = (unsigned)(size_t)seed_of % 64;
    if (which < 4) talk(seed, ours[which]);
    while (!over()) one_call(&seed);
    return NULL;
}

static void many_threads(unsigned seed) {
    for (int at = 0; at < SHARED; at++) shared[at] = -1;
    for (int at = 0; at < 4; at++) pair(ours[at]);
    fcntl(listener, F_SETFL, O_NONBLOCK);
    run_threads(64, calls, seed * 64);
    for (int at = 0; at < SHARED; at++)
        if (shared[at] >= 0) close(shared[at]);
    for (int at = 0; at < 4; at++) CHECK(close(ours[at][0]) == 0 && close(ours[at][1]) == 0);
}

/* ---- late: who shuts a number down finds something else there by then; who has connections of his own notices nothing */

#define TARGETS 4
static atomic_int targets[TARGETS];
static int marker[2];

/* A listener, and connections to it alone. */
struct door { int fd; struct sockaddr_in at; };

static void meet(const struct door *door, int ends[2]) {
    struct linger at_once = {.l_onoff = 1};
    CHECK((ends[0] = socket(AF_INET, SOCK_STREAM, 0)) >= 0 && connect(ends[0], (void *)&door->at, sizeof door->at) == 0);
    CHECK(setsockopt(ends[0], SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once) == 0);
    CHECK((ends[1] = accept(door->fd, NULL, NULL)) >= 0);
}

static void *shut_down(void *seed_of) {
    unsigned seed = (unsigned)(size_t)seed_of;
    for (; !over(); atomic_fetch_add(&moves, 1)) {
        int fd = atomic_load(&targets[next(&seed) % TARGETS]);
        if (fd >= 0) shutdown(fd, (int)(next(&seed) % 3));
    }
    return NULL;
}

static void *replace(void *seed_of) {
    unsigned seed = (unsigned)(size_t)seed_of;
    struct door door;
    int target = dup(marker[0]), ends[2];
    CHECK(target >= 0 && (door.fd = listen_here(&door.at)) >= 0);
    atomic_store(&targets[seed % TARGETS], target);
    while (!over()) {
        meet(&door, ends);
        CHECK(dup2(ends[0], target) == target && close(ends[0]) == 0);
        for (unsigned yields = next(&seed) % 4; yields > 0; yields--) sched_yield();
        CHECK(dup2(marker[0], target) == target && close(ends[1]) == 0);
        atomic_fetch_add(&moves, 1);
    }
    CHECK(close(door.fd) == 0);
    return NULL; /* The number stays: somebody may be about to use it. */
}

static void *meet_and_talk(void *seed_of) {
    unsigned seed = (unsigned)(size_t)seed_of;
    struct door door = {0};
    int ends[2];
    CHECK((door.fd = listen_here(&door.at)) >= 0);
    while (!over()) {
        unsigned long there = 0, arrived = 0;
        meet(&door, ends);
        for (unsigned rounds = next(&seed) % 4; rounds > 0; rounds--) {
            sched_yield();
            send_numbered(ends[0], &there, 100);
            receive_numbered(ends[1], &arrived, 100);
        }
        CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
    }
    CHECK(close(door.fd) == 0);
    return NULL;
}

static void late(unsigned seed) {
    pthread_t threads[16];
    for (int at = 0; at < TARGETS; at++) targets[at] = -1;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, marker) == 0);
    for (int at = 0; at < 16; at++) {
        void *(*body)(void *) = at < TARGETS ? replace : at < 12 ? shut_down : meet_and_talk;
        CHECK(pthread_create(&threads[at], NULL, body, (void *)(size_t)(seed * TARGETS + (unsigned)at)) == 0);
    }
    for (int at = 0; at < 16; at++) CHECK(pthread_join(threads[at], NULL) == 0);
    for (int at = 0; at < TARGETS; at++) CHECK(close(targets[at]) == 0);
    CHECK(close(marker[0]) == 0 && close(marker[1]) == 0);
}

/* ---- signals: the handler sends and peeks on the socket of the call that it interrupts */

static _Thread_local volatile int under_way = -1;
static _Thread_local volatile unsigned long sent_by_handler;

static void on_signal(int number) {
    int before = errno, fd = under_way;
    unsigned char byte = 0xff, bytes[64];
    (void)number;
    if (fd >= 0) {
        if (send(fd, &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1) sent_by_handler++;
        recv(fd, bytes, sizeof bytes, MSG_DONTWAIT | MSG_PEEK);
    }
    errno = before;
}

static void handle(int number, int flags) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = flags};
    CHECK(sigaction(number, &action, NULL) == 0);
}

static void *talk_interrupted(void *seed_of) {
    unsigned seed = (unsigned)(size_t)seed_of;
    unsigned long there = 0, arrived = 0, back = 0, returned = 0, strange[2] = {0, 0};
    int ends[2];
    pair(ends);
    under_way = ends[0];
    while (!over()) {
        size_t count = 1 + next(&seed) % 4000;
        send_numbered(ends[0], &there, count);
        strange[1] += receive_numbered(ends[1], &arrived, count);
        send_numbered(ends[1], &back, count);
        strange[0] += receive_numbered(ends[0], &returned, count);
    }
    under_way = -1;
    CHECK(shutdown(ends[0], SHUT_WR) == 0);
    unsigned char byte;
    for (ssize_t got; (got = recv(ends[1], &byte, 1, 0)) != 0;) {
        CHECK(got == 1 ? byte == 0xff : errno == EINTR);
        strange[1] += got == 1;
    }
    CHECK(strange[0] == 0 && strange[1] == sent_by_handler);
    CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
    return NULL;
}

static void *storm(void *threads_of) {
    pthread_t *threads = threads_of;
    for (unsigned at = 0; !over(); at++) {
        pthread_kill(threads[at % 6], at % 2 ? SIGUSR1 : SIGUSR2);
        usleep(150);
    }
    return NULL;
}

static void signals(unsigned seed) {
    pthread_t threads[6], sender;
    struct itimerval timer = {.it_interval.tv_usec = 1000, .it_value.tv_usec = 1000}, none = {0};
    handle(SIGALRM, 0), handle(SIGUSR1, 0), handle(SIGUSR2, SA_RESTART);
    setitimer(ITIMER_REAL, &timer, NULL);
    for (int at = 0; at < 6; at++)
        CHECK(pthread_create(&threads[at], NULL, talk_interrupted, (void *)(size_t)(seed + at)) == 0);
    CHECK(pthread_create(&sender, NULL, storm, threads) == 0);
    CHECK(pthread_join(sender, NULL) == 0);
    for (int at = 0; at < 6; at++) CHECK(pthread_join(threads[at], NULL) == 0);
    setitimer(ITIMER_REAL, &none, NULL);
}

/* ---- forks: children that use, leave and are killed with what they inherited */

static atomic_int serving = 1; /* until the last child has had its answers */

static void *answer(void *unused) {
    while (atomic_load(&serving)) {
        struct pollfd one = {.fd = listener, .events = POLLIN};
        if (poll(&one, 1, 100) != 1) continue;
        int fd = accept(listener, NULL, NULL);
        if (fd < 0) continue;
        unsigned char bytes[4096];
        for (ssize_t got; (got = recv(fd, bytes, sizeof bytes, 0)) > 0;)
            for (ssize_t sent = 0, now; sent < got; sent += now)
                if ((now = send(fd, bytes + sent, (size_t)(got - sent), MSG_NOSIGNAL)) <= 0) goto gone;
    gone:
        close(fd);
        atomic_fetch_add(&moves, 1);
    }
    return unused;
}

static void child(unsigned seed, int ends[2]) {
    unsigned long there = 0, returned = 0;
    switch (seed % 6) {
    case 0: kill(getpid(), SIGKILL), pause(); break;
    case 1: close(ends[0]), close(ends[1]), _exit(0);
    case 2: execl("/bin/true", "true", NULL), _exit(1);
    case 3: exit(0);
    default: {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        CHECK(fd >= 0 && connect(fd, (void *)&server, sizeof server) == 0);
        for (int round = 0; round < 3; round++) {
            send_numbered(fd, &there, 1 + seed % 3000);
            receive_numbered(fd, &returned, 1 + seed % 3000);
        }
        _exit(0);
    }
    }
}

static void forks(unsigned seed) {
    pthread_t servers[3];
    unsigned long there = 0, arrived = 0;
    int ends[2];
    pair(ends);
    /* Of three that were told of a connection one gets it; the others must not sleep in accept when no more come. */
    CHECK(fcntl(listener, F_SETFL, O_NONBLOCK) == 0);
    for (int at = 0; at < 3; at++) CHECK(pthread_create(&servers[at], NULL, answer, NULL) == 0);
    while (!over()) {
        pid_t children[6];
        unsigned drawn[6];
        for (int at = 0; at < 6; at++) {
            drawn[at] = next(&seed);
            children[at] = fork();
            if (children[at] == 0) child(drawn[at], ends);
        }
        send_numbered(ends[0], &there, 2000); /* What the children have, too, goes on meanwhile. */
        receive_numbered(ends[1], &arrived, 2000);
        for (int at = 0; at < 6; at++) {
            int status;
            CHECK(waitpid(children[at], &status, 0) == children[at]);
            CHECK(drawn[at] % 6 == 0 ? WIFSIGNALED(status) : WIFEXITED(status) && WEXITSTATUS(status) == 0);
        }
        atomic_fetch_add(&moves, 1);
    }
    atomic_store(&serving, 0);
    for (int at = 0; at < 3; at++) CHECK(pthread_join(servers[at], NULL) == 0);
    CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
}

/* ---- cancel: a thread that is cancelled in a call, and a jump out of one, leave a socket that works */

struct sleeper { int fd, set, kind; };

static void *sleep_in_a_call(void *sleeper_of) {
    struct sleeper *it = sleeper_of;
    struct epoll_event event;
    struct pollfd one = {.fd = it->fd, .events = POLLIN};
    char byte;
    switch (it->kind) {
    case 0: recv(it->fd, &byte, 1, 0); break;
    case 1: accept(listener, NULL, NULL); break;
    case 2: epoll_wait(it->set, &event, 1, -1); break;
    case 3: poll(&one, 1, -1); break;
    default: read(it->fd, &byte, 1);
    }
    return NULL;
}

static _Thread_local sigjmp_buf landing;
static void jump(int number) { siglongjmp(landing, number); }

static void cancel(unsigned seed) {
    struct sigaction action = {.sa_handler = jump};
    struct itimerval soon = {.it_value.tv_usec = 300};
    unsigned long there = 0, arrived = 0;
    struct epoll_event event = {.events = EPOLLIN};
    int ends[2], set = epoll_create1(0);
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    pair(ends);
    CHECK(epoll_ctl(set, EPOLL_CTL_ADD, ends[1], &event) == 0);
    sigset_t alarms;
    sigemptyset(&alarms), sigaddset(&alarms, SIGALRM);
    while (!over()) {
        struct sleeper it = {.fd = ends[1], .set = set, .kind = (int)(next(&seed) % 5)};
        pthread_t thread;
        void *result;
        pthread_sigmask(SIG_BLOCK, &alarms, NULL);
        CHECK(pthread_create(&thread, NULL, sleep_in_a_call, &it) == 0);
        usleep(next(&seed) % 400);
        CHECK(pthread_cancel(thread) == 0 && pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED);
        pthread_sigmask(SIG_UNBLOCK, &alarms, NULL);
        send_numbered(ends[0], &there, 100);
        receive_numbered(ends[1], &arrived, 100);
        if (sigsetjmp(landing, 1) == 0) {
            char byte;
            setitimer(ITIMER_REAL, &soon, NULL);
            it.kind = (int)(next(&seed) % 5);
            if (it.kind == 0) recv(ends[1], &byte, 1, 0);
            else sleep_in_a_call(&it);
            CHECK(!"nothing comes");
        }
        send_numbered(ends[0], &there, 100);
        CHECK(epoll_wait(set, &event, 1, 5000) == 1);
        receive_numbered(ends[1], &arrived, 100);
    }
    CHECK(close(set) == 0 && close(ends[0]) == 0 && close(ends[1]) == 0);
}

static int open_numbers(void) {
    int count = 0;
    for (int fd = 0; fd < 4096; fd++) count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

int main(int count, char **words) {
    if (count != 4) return 2;
    unsigned seed = (unsigned)atoi(words[3]);
    pthread_t watchdog;
    signal(SIGPIPE, SIG_IGN);
    int before = open_numbers();
    end = time(NULL) + atoi(words[2]);
    listener = listen_here(&server);
    sigset_t all, none; /* No signal is the watchdog's. */
    sigfillset(&all), sigemptyset(&none);
    CHECK(pthread_sigmask(SIG_SETMASK, &all, NULL) == 0);
    CHECK(pthread_create(&watchdog, NULL, watch, NULL) == 0);
    CHECK(pthread_sigmask(SIG_SETMASK, &none, NULL) == 0);
    if (!strcmp(words[1], "shared")) many_threads(seed);
    else if (!strcmp(words[1], "late")) late(seed);
    else if (!strcmp(words[1], "signals")) signals(seed);
    else if (!strcmp(words[1], "forks")) forks(seed);
    else if (!strcmp(words[1], "cancel")) cancel(seed);
    else return 2;
    CHECK(close(listener) == 0);
    int left = open_numbers() - before;
    printf("%d descriptors left, %lu calls, %lu exchanges checked\ndone\n", left, moves, checked);
    fflush(stdout);
    CHECK(left == 0);
    for (;;) {
        atomic_fetch_add(&moves, 1);
        usleep(100000);
    }
}
