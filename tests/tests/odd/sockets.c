/* Calls about sockets as such: names, connections, options, and files and pipes at the other end. */
#include "odd.h"

/* Where EFAULT is the answer, lengths are not told: whether the kernel writes them before the place fails differs between its versions. */

static const int LENS[] = {INT_MIN, -1, 0, 1, 2, 4, 8, 15, 16, 24, 27, 28, 128, 129, INT_MAX};

/* Addresses to bind and connect to, that no packet ever leaves for. */
static void addresses(void) {
    static struct sockaddr_in v4, unspec, family, zero, many;
    static struct sockaddr_in6 v6, scoped;
    static struct sockaddr_un local;
    v4 = lo4;
    unspec = lo4;
    unspec.sin_family = AF_UNSPEC;
    family = lo4;
    family.sin_family = 9999;
    zero.sin_family = AF_INET;
    many = lo4;
    many.sin_addr.s_addr = htonl(INADDR_BROADCAST);
    v6 = lo6;
    scoped = lo6;
    scoped.sin6_addr.s6_addr[0] = 0xfe;
    scoped.sin6_addr.s6_addr[1] = 0x80;
    local.sun_family = AF_UNIX;
    const struct {
        const char *name;
        void *at;
    } LIST[] = {{"v4", &v4}, {"v6", &v6}, {"unspec", &unspec}, {"family", &family}, {"zero", &zero}, {"broadcast", &many}, {"unix", &local}, {"scoped", &scoped},
                {"null", NULL}, {"bad", BAD}, {"none", none}, {"edge", edge}};
    for (size_t a = 0; a < COUNT(LIST); a++)
        for (size_t i = 0; i < COUNT(LENS); i++) {
            const char *name = LIST[a].name;
            void *at = LIST[a].at;
            int n = LENS[i];
            /* What is behind a small structure is anything. */
            if (n > 28 && a < 8 && n <= 128)
                continue;
            CASE_AND_LOOK(bind(fd, at, (socklen_t)n), "bind(%s, %d)", name, n);
            CASE_AND_LOOK(connect(fd, at, (socklen_t)n), "connect(%s, %d)", name, n);
        }
}

static void listening(void) {
    static const int NUMBERS[] = {INT_MIN, -1, 0, 1, 2, 3, INT_MAX};
    for (size_t i = 0; i < COUNT(NUMBERS); i++) {
        int n = NUMBERS[i];
        CASE_AND_LOOK(listen(fd, n), "listen(%d)", n);
        CASE_AND_LOOK(shutdown(fd, n), "shutdown(%d)", n);
        if (n >= 0 && n < 3)
            for (int second = 0; second < 3; second++)
                CASE_AND_LOOK((shutdown(fd, n), errno = 0, shutdown(fd, second)), "shutdown(%d, then %d)", n, second);
    }
    for (size_t i = 0; i < COUNT(NUMBERS); i++) {
        int n = NUMBERS[i];
        if (n != 0)
            CASE_AND_LOOK(dup3(1, fd, n), "dup3(file, fd, %d)", n); /* It stays what it is. */
        CASE_AND_LOOK(dup3(fd, fd, n), "dup3(fd, fd, %d)", n);
        CASE_AND_LOOK(dup3(fd, INT_MAX, n), "dup3(fd, INT_MAX, %d)", n);
    }
    TRY_AND_LOOK((listen(fd, 1), errno = 0, listen(fd, 2)));
    TRY_AND_LOOK((shutdown(fd, SHUT_RDWR), errno = 0, listen(fd, 2)));
    for (size_t i = 0; i < COUNT(LENS); i++)
        for (size_t p = 0; p < 5; p++) {
            static struct sockaddr_storage at;
            socklen_t len = (socklen_t)LENS[i];
            struct sockaddr *to = p == 0 ? (struct sockaddr *)&at : place(p);
            if (state == BLOCKING)
                continue;
            if (!begin("accept(%s, %d)", PLACES[p].name, LENS[i]))
                continue;
            long got = opened(accept(fd, to, &len));
            int error = errno;
            if (error != EFAULT)
                tell("len %d", (int)len);
            errno = error;
            end(got, 0);
        }
    static struct sockaddr_storage at;
    TRY(opened(accept(fd, NULL, NULL)));
    TRY(opened(accept(fd, (struct sockaddr *)&at, NULL)));
    TRY(opened(accept(fd, (struct sockaddr *)&at, BAD)));
    TRY(opened(accept(fd, (struct sockaddr *)&at, (socklen_t *)none)));
    TRY(opened(accept(fd, NULL, BAD)));
    for (int bit = 0; bit < 32; bit++)
        CASE(opened(accept4(fd, NULL, NULL, (int)(1u << bit))), "accept4(%#x)", 1u << bit);
    TRY(opened(accept4(fd, NULL, NULL, -1)));
}

static void names(void) {
    for (size_t i = 0; i < COUNT(LENS); i++)
        for (size_t p = 0; p < 5; p++)
            for (int remote = 0; remote < 2; remote++) {
                static struct sockaddr_storage at;
                memset(&at, 0xee, sizeof at);
                socklen_t len = (socklen_t)LENS[i];
                struct sockaddr *to = p == 0 ? (struct sockaddr *)&at : place(p);
                if (!begin("%s(%s, %d)", remote ? "getpeername" : "getsockname", PLACES[p].name, LENS[i]))
                    continue;
                long got = remote ? getpeername(fd, to, &len) : getsockname(fd, to, &len);
                int error = errno;
                if (error != EFAULT)
                    tell("len %d family %d", (int)len, (int)at.ss_family);
                errno = error;
                end(got, 0);
            }
    static struct sockaddr_storage at;
    TRY(getsockname(fd, (struct sockaddr *)&at, NULL));
    TRY(getsockname(fd, (struct sockaddr *)&at, BAD));
    TRY(getsockname(fd, NULL, NULL));
    TRY(getpeername(fd, (struct sockaddr *)&at, NULL));
    TRY(getpeername(fd, (struct sockaddr *)&at, BAD));
    TRY(getpeername(fd, NULL, NULL));
    TRY(sockatmark(fd));
    TRY(isfdtype(fd, S_IFSOCK));
    TRY(isfdtype(fd, S_IFREG));
    TRY(isfdtype(fd, -1));
}

/* What a controller tells of itself is a matter of which it is; the default is the machine's choice. BBR tells something, where it is allowed. */
static void choose_controller(void) {
    static const char *name;
    if (!name) {
        char allowed[256] = {0};
        int from = open("/proc/sys/net/ipv4/tcp_allowed_congestion_control", O_RDONLY);
        name = from >= 0 && read(from, allowed, sizeof allowed - 1) > 0 && strstr(allowed, "bbr") ? "bbr" : "reno";
        close(from);
    }
    setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, (socklen_t)strlen(name));
    errno = 0;
}

/* Levels and names that there are, and some that there are not, with odd lengths and places. */
static void options(void) {
    static const struct {
        int level, last;
    } LEVELS[] = {{SOL_SOCKET, 90}, {IPPROTO_TCP, 50}, {IPPROTO_IP, 60}, {IPPROTO_IPV6, 90}, {IPPROTO_UDP, 3}, {IPPROTO_ICMP, 3}, {SOL_RAW, 2}, {-1, 2}, {INT_MAX, 1}};
    static const int ODD[] = {-1, 0, 1, 3, 4, 5, INT_MAX};
    static char value[256];
    for (size_t l = 0; l < COUNT(LEVELS); l++)
        for (int name = -1; name <= LEVELS[l].last; name++) {
            int level = LEVELS[l].level;
            for (size_t i = 0; i < COUNT(ODD); i++) {
                socklen_t len = (socklen_t)ODD[i];
                if (ODD[i] > 5)
                    len = sizeof value;
                if (!begin("getsockopt(%d, %d, len %d)", level, name, (int)len))
                    continue;
                if (level == IPPROTO_TCP && name == TCP_CC_INFO)
                    choose_controller();
                long got = getsockopt(fd, level, name, value, &len);
                int error = errno;
                if (error != EFAULT)
                    tell("len %d", (int)len);
                errno = error;
                end(got, 0);
            }
            for (size_t p = 1; p < 4; p++) {
                socklen_t len = 4;
                if (level == IPPROTO_TCP && name == TCP_CC_INFO && p < 4)
                    CASE((choose_controller(), getsockopt(fd, level, name, place(p), &len)), "getsockopt(%d, %d, to %s)", level, name, PLACES[p].name);
                else
                    CASE(getsockopt(fd, level, name, place(p), &len), "getsockopt(%d, %d, to %s)", level, name, PLACES[p].name);
                CASE(getsockopt(fd, level, name, value, place(p)), "getsockopt(%d, %d, len at %s)", level, name, PLACES[p].name);
                CASE(setsockopt(fd, level, name, place(p), 4), "setsockopt(%d, %d, from %s)", level, name, PLACES[p].name);
            }
            static const int LENGTHS[] = {-1, 0, 1, 3};
            for (size_t i = 0; i < COUNT(LENGTHS); i++) {
                memset(value, 0, sizeof value);
                CASE(setsockopt(fd, level, name, value, (socklen_t)LENGTHS[i]), "setsockopt(%d, %d, len %d)", level, name, LENGTHS[i]);
            }
        }
}

/* Values of options: what they are afterwards. */
static void values(void) {
    static const struct {
        int level, last;
    } LEVELS[] = {{SOL_SOCKET, 90}, {IPPROTO_TCP, 50}, {IPPROTO_IP, 60}, {IPPROTO_IPV6, 90}};
    static const int ODD[] = {INT_MIN, -1, 0, 1, 2, 255, 256, INT_MAX};
    for (size_t l = 0; l < COUNT(LEVELS); l++)
        for (int name = 0; name <= LEVELS[l].last; name++)
            for (size_t i = 0; i < COUNT(ODD); i++) {
                int level = LEVELS[l].level, value = ODD[i], then[64] = {0};
                if (!begin("setsockopt(%d, %d, %d)", level, name, value))
                    continue;
                long got = setsockopt(fd, level, name, &value, sizeof value);
                int error = errno;
                socklen_t len = sizeof value;
                int asked = getsockopt(fd, level, name, then, &len);
                if (got == 0 && asked == 0 && level != IPPROTO_TCP)
                    tell("now %d", then[0]);
                errno = error;
                end(got, 0);
            }
}

static void controls(void) {
    /* More often than once: only some of all cases are run. */
    for (int time = 0; time < 4; time++) {
        static char room_for[64];
        CASE(fcntl(fd, F_SETFL, O_DIRECT), "%d: F_SETFL O_DIRECT", time);
        CASE(ioctl(fd, 0x8906, room_for), "%d: SIOCGSTAMP", time);
        CASE(ioctl(fd, 0x8907, room_for), "%d: SIOCGSTAMPNS", time);
        CASE(ioctl(fd, 0x80108906, room_for), "%d: SIOCGSTAMP_NEW", time);
        CASE(ioctl(fd, SIOCPROTOPRIVATE, room_for), "%d: SIOCPROTOPRIVATE", time);
        CASE(ioctl(fd, SIOCPROTOPRIVATE + 15, room_for), "%d: SIOCPROTOPRIVATE + 15", time);
    }
}

static void cases(void) {
    controls();
    addresses();
    listening();
    names();
    options();
    values();
}
