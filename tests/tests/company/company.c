/* A small program with two ends of many connections: what a library meets in other company.
 *
 *   company ROUNDS [WORDS...]     what to do first, in this order:
 *     closes     closes every descriptor but the standard ones, one by one, as daemons do
 *     range      the same by close_range
 *     from       the same by closefrom
 *     midway     all of these once more while connections live
 *     nofile=N   a limit of N descriptors; raised to the old one halfway
 *     chroot=F   folder F is the root from the first socket on
 *     ticks      a signal every two milliseconds, all the time
 *
 * Its last line is "ok CONNECTIONS" or what went wrong. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define BYTES 30000

static int listener;
static volatile int ticks;

static void fail(const char *what) {
    printf("%s: %s\n", what, strerror(errno));
    exit(1);
}

static void tick(int signal) {
    (void)signal;
    ticks++;
}

/* Sends back what comes, until the end. */
static void *echo(void *argument) {
    int fd = (int)(long)argument;
    char buffer[4096];
    ssize_t got;
    while ((got = recv(fd, buffer, sizeof buffer, 0)) != 0) {
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            fail("recv");
        for (ssize_t sent = 0; sent < got;) {
            ssize_t n = send(fd, buffer + sent, (size_t)(got - sent), MSG_NOSIGNAL);
            if (n < 0 && errno != EINTR)
                fail("send");
            if (n > 0)
                sent += n;
        }
    }
    close(fd);
    return NULL;
}

static void *serve(void *rounds) {
    for (long i = 0; i < (long)rounds; i++) {
        int fd;
        while ((fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) < 0)
            if (errno != EINTR)
                fail("accept");
        pthread_t thread;
        if (pthread_create(&thread, NULL, echo, (void *)(long)fd) != 0)
            fail("pthread_create");
        pthread_detach(thread);
    }
    return NULL;
}

/* One connection: bytes go out as the other end takes them, and come back whole. */
static void round_trip(const struct sockaddr_in *address, unsigned seed) {
    static char out[BYTES], in[BYTES];
    for (size_t i = 0; i < BYTES; i++)
        out[i] = (char)(seed = seed * 1103515245 + 12345) >> 3;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), set = epoll_create1(EPOLL_CLOEXEC);
    if (fd < 0 || set < 0)
        fail("socket or epoll_create1");
    if (connect(fd, (const struct sockaddr *)address, sizeof *address) < 0 && errno != EINPROGRESS)
        fail("connect");
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.fd = fd};
    if (epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) < 0)
        fail("epoll_ctl");
    size_t sent = 0, got = 0;
    while (got < BYTES) {
        int ready = epoll_wait(set, &event, 1, 20000);
        if (ready < 0 && errno == EINTR)
            continue;
        if (ready != 1)
            fail("epoll_wait");
        if ((event.events & EPOLLOUT) && sent < BYTES) {
            size_t piece = 1 + (seed = seed * 1103515245 + 12345) % 5000;
            ssize_t n = write(fd, out + sent, piece < BYTES - sent ? piece : BYTES - sent);
            if (n < 0 && errno != EAGAIN && errno != EINTR)
                fail("write");
            if (n > 0)
                sent += (size_t)n;
            if (sent == BYTES) {
                event.events = EPOLLIN;
                if (epoll_ctl(set, EPOLL_CTL_MOD, fd, &event) < 0 || shutdown(fd, SHUT_WR) < 0)
                    fail("epoll_ctl or shutdown");
            }
        }
        ssize_t n = read(fd, in + got, BYTES - got);
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            fail("read");
        if (n == 0)
            fail("an early end");
        if (n > 0)
            got += (size_t)n;
    }
    if (memcmp(in, out, BYTES) != 0)
        fail("bytes");
    struct pollfd last = {.fd = fd, .events = POLLIN};
    while (poll(&last, 1, 20000) < 0 && errno == EINTR)
        ;
    if (read(fd, in, 1) != 0)
        fail("the end");
    if (close(fd) < 0 || close(set) < 0)
        fail("close");
}

/* Every descriptor but the standard ones and the listener. */
static void close_others(const char *how) {
    int keep = listener;
    if (strcmp(how, "closes") == 0) {
        for (int fd = 3; fd < 65536; fd++)
            if (fd != keep)
                close(fd);
    } else if (strcmp(how, "range") == 0) {
        if (keep > 3)
            close_range(3, (unsigned)keep - 1, 0);
        close_range(keep < 3 ? 3 : (unsigned)keep + 1, ~0U, 0);
    } else {
        closefrom(keep < 3 ? 3 : keep + 1);
    }
}

int main(int count, char **words) {
    long rounds = count > 1 ? atol(words[1]) : 10;
    struct rlimit before, now;
    int midway = 0, limited = 0;
    const char *root = NULL;
    getrlimit(RLIMIT_NOFILE, &before);
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 2; i < count; i++) {
        if (strncmp(words[i], "nofile=", 7) == 0) {
            now = (struct rlimit){(rlim_t)atol(words[i] + 7), before.rlim_max};
            if (setrlimit(RLIMIT_NOFILE, &now) < 0)
                fail("setrlimit");
            limited = 1;
        } else if (strncmp(words[i], "chroot=", 7) == 0) {
            root = words[i] + 7;
        } else if (strcmp(words[i], "midway") == 0) {
            midway = 1;
        } else if (strcmp(words[i], "ticks") == 0) {
            struct itimerval often = {{0, 2000}, {0, 2000}};
            struct sigaction action = {.sa_handler = tick, .sa_flags = SA_RESTART};
            sigaction(SIGALRM, &action, NULL);
            setitimer(ITIMER_REAL, &often, NULL);
        } else {
            close_others(words[i]);
        }
    }
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, len) < 0 || listen(listener, 64) < 0)
        fail("listen");
    if (root != NULL && (chroot(root) < 0 || chdir("/") < 0))
        fail("chroot");
    getsockname(listener, (struct sockaddr *)&address, &len);
    pthread_t server;
    pthread_create(&server, NULL, serve, (void *)rounds);
    for (long i = 0; i < rounds; i++) {
        round_trip(&address, (unsigned)i);
        if (i == rounds / 2 && limited)
            setrlimit(RLIMIT_NOFILE, &before);
        if (midway && i % 7 == 3)
            close_others(i % 3 == 0 ? "closes" : i % 3 == 1 ? "range" : "from");
    }
    pthread_join(server, NULL);
    printf("ok %ld\n", rounds);
    return 0;
}
