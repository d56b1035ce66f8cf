/* One line for each call with an odd argument in a state of a TCP socket: what it returns, the errno, the signals, and what the socket is
 * like afterwards. The same words on every stack that behaves alike.
 *
 *   PROGRAM [STATE...]       only these states
 *
 *   ODD_EVERY      only every so-manyth case, 1 if not given
 *   ODD_ONLY       a file: only the cases that it names, a line for each, as they are printed in front of " = "
 *   ODD_PATIENCE   times as long for what takes an unknown time, 1 if not given
 *
 * Each case has a socket of its own. Nothing blocks for longer than a tick, which is a signal. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

/* Compilers know that these arguments are wrong. */
#pragma GCC diagnostic ignored "-Wpragmas"
#pragma GCC diagnostic ignored "-Wnonnull"
#pragma GCC diagnostic ignored "-Wstringop-overflow"
#pragma GCC diagnostic ignored "-Wstringop-overread"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-variable"

#define COUNT(list) (sizeof(list) / sizeof *(list))

enum state {
    FRESH, FRESH6, BOUND, LISTENING, WAITING, CONNECTING, REFUSED, CONNECTED, ACCEPTED, CONNECTED6, DATA, SHUT_READ, SHUT_WRITE, SHUT_BOTH, PEER_SHUT,
    PEER_CLOSED, RESET, FULL, BLOCKING, STATES
};
static const char *const STATE[STATES] = {
    "fresh", "fresh6", "bound", "listening", "waiting", "connecting", "refused", "connected", "accepted", "connected6", "data", "shut-read",
    "shut-write", "shut-both", "peer-shut", "peer-closed", "reset", "full", "blocking",
};

/* The socket of a case, the other end, and whatever else has to live as long. */
static int fd, peer, listener;
static int others[8];
static int live;
static enum state state;
static long every = 1, patience = 1, number_of_case;
static char *only;
static char label[256];
/* What else there is to tell of a case. */
static char remark[64];
static volatile int ticks, pipes;

static char room[1 << 16];
static char *none, *edge, *fixed;
#define BAD ((void *)-1)

/* Pointers: to enough bytes, to none, to two. */
static const struct place {
    const char *name;
    char **at;
} PLACES[] = {{"ok", NULL}, {"null", NULL}, {"bad", NULL}, {"none", &none}, {"edge", &edge}, {"fixed", &fixed}};

static void *place(size_t which) {
    return which == 0 ? room : which == 1 ? NULL : which == 2 ? BAD : *PLACES[which].at;
}

static void die(const char *what) {
    printf("%s: %s: %s: %s\n", STATE[state], label, what, strerror(errno));
    exit(1);
}

static void tick(int signal) {
    (void)signal;
    if (++ticks > 250) {
        static const char text[] = "it hangs\n";
        if (write(1, label, strlen(label)) < 0 || write(1, text, sizeof text - 1) < 0)
            _exit(3);
        _exit(2);
    }
}

static void broken(int signal) {
    (void)signal;
    pipes++;
}

static int keep(int number) {
    if (number < 0)
        die("making the state");
    return others[live++] = number;
}

static struct sockaddr_in lo4;
static struct sockaddr_in6 lo6;

/* Where `of` is bound, as an address to connect to. */
static socklen_t address_of(int of, struct sockaddr_storage *to) {
    socklen_t len = sizeof *to;
    if (getsockname(of, (struct sockaddr *)to, &len) < 0)
        die("getsockname");
    return len;
}

static int make_listener(int family, int backlog) {
    int new = keep(socket(family, SOCK_STREAM, 0));
    const void *at = family == AF_INET ? (void *)&lo4 : (void *)&lo6;
    if (bind(new, at, family == AF_INET ? sizeof lo4 : sizeof lo6) < 0 || listen(new, backlog) < 0)
        die("a listener");
    return new;
}

static int await(int of, short events) {
    struct pollfd one = {.fd = of, .events = events};
    int got;
    while ((got = poll(&one, 1, 5000)) < 0 && errno == EINTR)
        ;
    if (got != 1)
        die("waiting for the state");
    return one.revents;
}

static void join(int family) {
    struct sockaddr_storage at;
    listener = make_listener(family, 8);
    fd = socket(family, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&at, address_of(listener, &at)) < 0)
        die("connect");
    await(listener, POLLIN);
    peer = accept(listener, NULL, NULL);
    if (peer < 0)
        die("accept");
    struct linger now = {1, 0};
    setsockopt(peer, SOL_SOCKET, SO_LINGER, &now, sizeof now); /* No TIME-WAIT: there are thousands. */
}

static void make(void) {
    static const int small = 8192;
    struct sockaddr_storage at;
    fd = peer = listener = -1;
    live = 0;
    int family = state == FRESH6 || state == CONNECTED6 ? AF_INET6 : AF_INET;
    if (state <= REFUSED)
        fd = socket(family, SOCK_STREAM, 0);
    else
        join(family);
    switch (state) {
    case BOUND:
    case LISTENING:
    case WAITING:
        if (bind(fd, (struct sockaddr *)&lo4, sizeof lo4) < 0)
            die("bind");
        if (state != BOUND && listen(fd, 4) < 0)
            die("listen");
        if (state == WAITING) {
            int client = keep(socket(AF_INET, SOCK_STREAM, 0));
            if (connect(client, (struct sockaddr *)&at, address_of(fd, &at)) < 0)
                die("connect");
            await(fd, POLLIN);
        }
        break;
    case CONNECTING: {
        /* To a listener that has no room for one more. */
        listener = make_listener(AF_INET, 0);
        socklen_t len = address_of(listener, &at);
        for (int i = 0; i < 3; i++) {
            int one = i == 2 ? fd : keep(socket(AF_INET, SOCK_STREAM, 0));
            fcntl(one, F_SETFL, O_NONBLOCK);
            if (connect(one, (struct sockaddr *)&at, len) < 0 && errno != EINPROGRESS)
                die("connect");
            struct pollfd first = {.fd = one, .events = POLLOUT};
            if (i < 1 && poll(&first, 1, 5000) != 1)
                die("the first connection");
        }
        break;
    }
    case REFUSED: {
        int closed = socket(AF_INET, SOCK_STREAM, 0);
        if (bind(closed, (struct sockaddr *)&lo4, sizeof lo4) < 0)
            die("bind");
        socklen_t len = address_of(closed, &at);
        keep(closed); /* Bound, and does not listen. */
        fcntl(fd, F_SETFL, O_NONBLOCK);
        if (connect(fd, (struct sockaddr *)&at, len) < 0 && errno != EINPROGRESS)
            die("connect");
        await(fd, POLLOUT);
        break;
    }
    case ACCEPTED: {
        int other = fd;
        fd = peer;
        peer = other;
        break;
    }
    case DATA:
        if (send(peer, "hello", 5, 0) != 5)
            die("send");
        await(fd, POLLIN);
        break;
    case SHUT_READ:
    case SHUT_WRITE:
    case SHUT_BOTH:
        if (shutdown(fd, (int)(state - SHUT_READ)) < 0)
            die("shutdown");
        if (state != SHUT_READ)
            await(peer, POLLRDHUP);
        break;
    case PEER_SHUT:
        if (shutdown(peer, SHUT_WR) < 0)
            die("shutdown");
        await(fd, POLLRDHUP);
        break;
    case PEER_CLOSED:
    case RESET: {
        struct linger never = {0, 0};
        if (state == PEER_CLOSED)
            setsockopt(peer, SOL_SOCKET, SO_LINGER, &never, sizeof never);
        close(peer);
        peer = -1;
        await(fd, POLLRDHUP);
        break;
    }
    case FULL:
        fcntl(fd, F_SETFL, O_NONBLOCK);
        /* Until nothing moves any more, on the way or at either end. */
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
        setsockopt(peer, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
        for (int idle = 0; idle < 8; idle++) {
            if (send(fd, room, sizeof room, MSG_NOSIGNAL) > 0)
                idle = 0;
            usleep((useconds_t)(200 * patience));
        }
        break;
    default:
        break;
    }
    if (state != BLOCKING)
        fcntl(fd, F_SETFL, O_NONBLOCK);
}

static void unmake(void) {
    struct linger now = {1, 0};
    if (fd >= 0) {
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
        close(fd);
    }
    if (peer >= 0)
        close(peer);
    for (int i = 0; i < live; i++) {
        setsockopt(others[i], SOL_SOCKET, SO_LINGER, &now, sizeof now);
        close(others[i]);
    }
}

/* More of the result, errno untouched. */
static void tell(const char *format, ...) {
    va_list words;
    va_start(words, format);
    vsnprintf(remark, sizeof remark, format, words);
    va_end(words);
}

/* A number that stands for a new descriptor. */
static long opened(int number) {
    if (number < 0)
        return -1;
    int before = errno;
    close(number);
    errno = before;
    return 1000;
}

static int is_wanted(void) {
    char line[512];
    snprintf(line, sizeof line, "\n%s: %s\n", STATE[state], label);
    return only ? strstr(only, line) != NULL : number_of_case++ % every == 0;
}

/* Whether the case is wanted; then its socket is made. */
static int begin(const char *format, ...) {
    va_list words;
    va_start(words, format);
    vsnprintf(label, sizeof label, format, words);
    va_end(words);
    if (!is_wanted())
        return 0;
    make();
    remark[0] = 0;
    ticks = pipes = 0;
    struct itimerval soon = {{0, 20000 * patience}, {0, 20000 * patience}};
    setitimer(ITIMER_REAL, &soon, NULL);
    errno = 0;
    return 1;
}

static const char *error_name(int error) {
    const char *name = strerrorname_np(error);
    return name ? name : "?";
}

/* What the call returned; `after`: also what is left of the socket. */
static void end(long result, int after) {
    int error = errno;
    struct itimerval never = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &never, NULL);
    printf("%s: %s = %ld", STATE[state], label, result);
    if (result < 0)
        printf(" %s", error_name(error));
    if (pipes)
        printf(" SIGPIPE");
    if (remark[0])
        printf(" %s", remark);
    if (after && fd >= 0) {
        struct pollfd one = {.fd = fd, .events = (short)0x3fff};
        int waiting = -1, pending = -1;
        socklen_t len = sizeof pending;
        /* What is sent to a socket that was closed comes back as a reset. */
        if (state == PEER_CLOSED && result > 0 && (strstr(label, "send") || strstr(label, "write")))
            await(fd, 0);
        poll(&one, 1, 0);
        int asked = ioctl(fd, FIONREAD, &waiting);
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &pending, &len);
        printf("; %#x, %d waiting (%d), %s", (unsigned)(unsigned short)one.revents, waiting, asked, pending > 0 ? error_name(pending) : "fine");
    }
    printf("\n");
    unmake();
}

/* One case: a call in the state, named as it is written or by the words before it. */
#define TRY(call) do { if (!begin("%s", #call)) break; long result_ = (long)(call); end(result_, 0); } while (0)
#define TRY_AND_LOOK(call) do { if (!begin("%s", #call)) break; long result_ = (long)(call); end(result_, 1); } while (0)
#define CASE(call, ...) do { if (!begin(__VA_ARGS__)) break; long result_ = (long)(call); end(result_, 0); } while (0)
#define CASE_AND_LOOK(call, ...) do { if (!begin(__VA_ARGS__)) break; long result_ = (long)(call); end(result_, 1); } while (0)

static void cases(void);

static long setting(const char *name) {
    const char *value = getenv(name);
    long number = value ? atol(value) : 1;
    return number > 0 && number <= 40 ? number : 1;
}

/* The file that ODD_ONLY names, behind a line's end. */
static void read_only(void) {
    const char *path = getenv("ODD_ONLY");
    if (!path)
        return;
    struct stat what;
    int from = open(path, O_RDONLY);
    if (from < 0 || fstat(from, &what) < 0)
        die(path);
    only = calloc(1, (size_t)what.st_size + 3);
    only[0] = '\n';
    if (read(from, only + 1, (size_t)what.st_size) != what.st_size)
        die(path);
    strcat(only, "\n");
    close(from);
}

int main(int count, char **words) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *map = mmap(NULL, 4 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        die("mmap");
    none = map + page;
    edge = none - 2;
    fixed = none + page;
    memset(room, 'x', sizeof room);
    mprotect(none, page, PROT_NONE);
    mprotect(fixed, page, PROT_READ);
    mprotect(fixed + page, page, PROT_NONE);
    every = setting("ODD_EVERY");
    patience = setting("ODD_PATIENCE");
    read_only();
    lo4.sin_family = AF_INET;
    lo4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    lo6.sin6_family = AF_INET6;
    lo6.sin6_addr = in6addr_loopback;
    struct sigaction action = {.sa_handler = tick};
    sigaction(SIGALRM, &action, NULL);
    action.sa_handler = broken;
    sigaction(SIGPIPE, &action, NULL);
    for (state = FRESH; state < STATES; state++) {
        int wanted = count < 2;
        for (int i = 1; i < count; i++)
            wanted |= strcmp(words[i], STATE[state]) == 0;
        if (wanted)
            cases();
    }
    printf("done\n");
    return 0;
}
