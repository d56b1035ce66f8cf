/* Calls that move bytes. */
#include "odd.h"

static const struct length {
    const char *name;
    size_t n;
} LENGTHS[] = {{"0", 0}, {"5", 5}, {"INT_MAX", INT_MAX}, {"SSIZE_MAX", SSIZE_MAX}, {"-1", (size_t)-1}};

static const int COUNTS[] = {INT_MIN, -1, 0, 1, 1024, 1025, INT_MAX};

/* Buffers by pointer and length. What is more than there is goes with pointers that lead nowhere only. */
static void buffers(void) {
    for (size_t p = 0; p < COUNT(PLACES); p++)
        for (size_t n = 0; n < COUNT(LENGTHS); n++) {
            if (p == 0 && LENGTHS[n].n > sizeof room)
                continue;
            char *at = place(p);
            const char *name = PLACES[p].name, *length = LENGTHS[n].name;
            size_t len = LENGTHS[n].n;
            CASE_AND_LOOK(read(fd, at, len), "read(%s, %s)", name, length);
            CASE_AND_LOOK(recv(fd, at, len, 0), "recv(%s, %s)", name, length);
            CASE_AND_LOOK(recv(fd, at, len, MSG_PEEK), "recv(%s, %s, PEEK)", name, length);
            CASE_AND_LOOK(recv(fd, at, len, MSG_TRUNC), "recv(%s, %s, TRUNC)", name, length);
            CASE_AND_LOOK(recv(fd, at, len, MSG_OOB), "recv(%s, %s, OOB)", name, length);
            CASE_AND_LOOK(write(fd, at, len), "write(%s, %s)", name, length);
            CASE_AND_LOOK(send(fd, at, len, 0), "send(%s, %s)", name, length);
            CASE_AND_LOOK(send(fd, at, len, MSG_OOB), "send(%s, %s, OOB)", name, length);
            CASE(pread(fd, at, len, 0), "pread(%s, %s)", name, length);
            CASE(pwrite(fd, at, len, -1), "pwrite(%s, %s)", name, length);
        }
}

static void flags(void) {
    for (int bit = 0; bit < 32; bit++) {
        int flag = (int)(1u << bit);
        CASE_AND_LOOK(recv(fd, room, 5, flag), "recv(ok, 5, %#x)", flag);
        CASE_AND_LOOK(send(fd, room, 5, flag), "send(ok, 5, %#x)", flag);
        CASE_AND_LOOK(send(fd, room, 0, flag), "send(ok, 0, %#x)", flag);
        CASE_AND_LOOK(recv(fd, room, 0, flag), "recv(ok, 0, %#x)", flag);
    }
    TRY_AND_LOOK(recv(fd, room, 5, MSG_PEEK | MSG_TRUNC));
    TRY_AND_LOOK(recv(fd, room, 5, MSG_PEEK | MSG_OOB));
    TRY_AND_LOOK(recv(fd, room, 9, MSG_WAITALL | MSG_PEEK));
    TRY_AND_LOOK(send(fd, room, 5, MSG_NOSIGNAL | MSG_MORE));
    TRY_AND_LOOK(syscall(SYS_read, fd, BAD, 5));
    TRY_AND_LOOK(syscall(SYS_write, fd, BAD, 5));
    TRY_AND_LOOK(syscall(SYS_sendto, fd, room, 5, 0, NULL, -1));
}

static void vectors(void) {
    static struct iovec many[1024];
    const struct {
        const char *name;
        struct iovec list[2];
    } LISTS[] = {
        {"ok ok", {{room, 2}, {room + 8, 2}}},
        {"len -1", {{room, (size_t)-1}, {room, 1}}},
        {"len SSIZE_MAX", {{room, 1}, {none, SSIZE_MAX}}},
        {"sum", {{none, SSIZE_MAX}, {none, SSIZE_MAX}}},
        {"bad 0", {{BAD, 0}, {room, 2}}},
        {"bad 1", {{BAD, 1}, {room, 2}}},
        {"ok bad", {{room, 2}, {BAD, 2}}},
        {"ok none", {{room, 2}, {none, 2}}},
        {"ok len -1", {{room, 2}, {room, (size_t)-1}}},
        {"zeros", {{room, 0}, {NULL, 0}}},
    };
    for (size_t i = 0; i < COUNT(LISTS); i++) {
        const struct iovec *list = LISTS[i].list;
        const char *name = LISTS[i].name;
        struct msghdr header = {.msg_iov = (struct iovec *)list, .msg_iovlen = 2};
        CASE_AND_LOOK(readv(fd, list, 2), "readv(%s)", name);
        CASE_AND_LOOK(writev(fd, list, 2), "writev(%s)", name);
        CASE_AND_LOOK(preadv2(fd, list, 2, -1, 0), "preadv2(%s)", name);
        CASE_AND_LOOK(pwritev2(fd, list, 2, -1, 0), "pwritev2(%s)", name);
        CASE_AND_LOOK(recvmsg(fd, &header, 0), "recvmsg(%s)", name);
        CASE_AND_LOOK(sendmsg(fd, &header, 0), "sendmsg(%s)", name);
    }
    for (size_t i = 0; i < 1024; i++)
        many[i] = (struct iovec){room, 1};
    for (size_t i = 0; i < COUNT(COUNTS); i++) {
        int count = COUNTS[i];
        for (size_t p = 0; p < 4; p++) {
            const struct iovec *list = p == 0 ? many : place(p);
            CASE_AND_LOOK(readv(fd, list, count), "readv(%s, %d)", PLACES[p].name, count);
            CASE_AND_LOOK(writev(fd, list, count), "writev(%s, %d)", PLACES[p].name, count);
            CASE(preadv(fd, list, count, 0), "preadv(%s, %d)", PLACES[p].name, count);
            CASE(pwritev(fd, list, count, -1), "pwritev(%s, %d)", PLACES[p].name, count);
            CASE_AND_LOOK(preadv2(fd, list, count, -1, 0), "preadv2(%s, %d)", PLACES[p].name, count);
            CASE_AND_LOOK(pwritev2(fd, list, count, -1, 0), "pwritev2(%s, %d)", PLACES[p].name, count);
        }
    }
    struct iovec one = {room, 5};
    for (int bit = 0; bit < 32; bit++) {
        int flag = (int)(1u << bit);
        CASE_AND_LOOK(preadv2(fd, &one, 1, -1, flag), "preadv2(ok, %#x)", flag);
        CASE_AND_LOOK(pwritev2(fd, &one, 1, -1, flag), "pwritev2(ok, %#x)", flag);
    }
    static const off_t AT[] = {-2, 0, 1, LONG_MAX, LONG_MIN};
    for (size_t i = 0; i < COUNT(AT); i++) {
        CASE(preadv2(fd, &one, 1, AT[i], 0), "preadv2(ok, at %ld)", (long)AT[i]);
        CASE(pwritev2(fd, &one, 1, AT[i], 0), "pwritev2(ok, at %ld)", (long)AT[i]);
        CASE(preadv(fd, &one, 1, AT[i]), "preadv(ok, at %ld)", (long)AT[i]);
        CASE(pread(fd, room, 5, AT[i]), "pread(ok, at %ld)", (long)AT[i]);
    }
}

/* Addresses of datagrams, which a stream ignores or judges. */
static void addresses(void) {
    static const int LENS[] = {INT_MIN, -1, 0, 1, 2, 16, 28, 128, 129, INT_MAX};
    for (size_t i = 0; i < COUNT(LENS); i++)
        for (size_t p = 0; p < 4; p++) {
            struct sockaddr *to = p == 0 ? (struct sockaddr *)&lo4 : place(p);
            const char *name = PLACES[p].name;
            int n = LENS[i];
            socklen_t len = (socklen_t)n;
            CASE_AND_LOOK(sendto(fd, room, 5, 0, to, len), "sendto(%s, %d)", name, n);
            struct iovec one = {room, 5};
            struct msghdr header = {.msg_name = to, .msg_namelen = len, .msg_iov = &one, .msg_iovlen = 1};
            CASE_AND_LOOK(sendmsg(fd, &header, 0), "sendmsg(name %s, %d)", name, n);
            CASE_AND_LOOK(recvmsg(fd, &header, 0), "recvmsg(name %s, %d)", name, n);
            if (n == 16)
                CASE(sendto(fd, room, 5, MSG_FASTOPEN, to, len), "sendto(%s, FASTOPEN)", name);
            char from[256];
            CASE_AND_LOOK(recvfrom(fd, room, 5, 0, p == 0 ? (struct sockaddr *)from : place(p), &len), "recvfrom(%s, %d)", name, n);
            if (i == 0) {
                CASE_AND_LOOK(recvfrom(fd, room, 5, 0, (struct sockaddr *)from, p == 0 ? NULL : place(p)), "recvfrom(ok, len %s)", name);
                CASE_AND_LOOK(recvfrom(fd, room, 5, 0, NULL, p == 0 ? NULL : place(p)), "recvfrom(null, len %s)", name);
            }
        }
}

static void headers(void) {
    static char control[256];
    struct iovec one = {room, 5};
    for (size_t p = 1; p < 6; p++) {
        CASE_AND_LOOK(recvmsg(fd, place(p), 0), "recvmsg(%s)", PLACES[p].name);
        CASE_AND_LOOK(sendmsg(fd, place(p), 0), "sendmsg(%s)", PLACES[p].name);
        CASE_AND_LOOK(recvmmsg(fd, place(p), 1, 0, NULL), "recvmmsg(%s)", PLACES[p].name);
        CASE_AND_LOOK(sendmmsg(fd, place(p), 1, 0), "sendmmsg(%s)", PLACES[p].name);
    }
    static const size_t LENS[] = {0, 1, 15, 16, 64, INT_MAX, (size_t)-1};
    for (size_t p = 0; p < 4; p++)
        for (size_t i = 0; i < COUNT(LENS); i++) {
            struct msghdr header = {.msg_iov = &one, .msg_iovlen = 1, .msg_control = p == 0 ? control : place(p), .msg_controllen = LENS[i]};
            memset(control, 0, sizeof control);
            CASE_AND_LOOK(sendmsg(fd, &header, 0), "sendmsg(control %s, %ld)", PLACES[p].name, (long)LENS[i]);
            CASE_AND_LOOK(recvmsg(fd, &header, 0), "recvmsg(control %s, %ld)", PLACES[p].name, (long)LENS[i]);
        }
    static const struct {
        size_t len;
        int level, type;
    } HEADS[] = {{16, SOL_SOCKET, SCM_RIGHTS}, {20, SOL_SOCKET, SCM_RIGHTS}, {20, SOL_SOCKET, 99}, {20, IPPROTO_IP, IP_TTL}, {20, IPPROTO_TCP, 1},
                 {0, SOL_SOCKET, 1}, {(size_t)-1, 0, 0}, {20, 99, 99}, {28, SOL_SOCKET, SCM_CREDENTIALS}, {20, SOL_SOCKET, SO_MARK}, {20, SOL_SOCKET, SO_TIMESTAMPING_OLD}};
    for (size_t i = 0; i < COUNT(HEADS); i++) {
        union {
            char bytes[64];
            struct cmsghdr head;
        } control = {.head = {.cmsg_len = HEADS[i].len, .cmsg_level = HEADS[i].level, .cmsg_type = HEADS[i].type}};
        struct msghdr header = {.msg_iov = &one, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = 32};
        CASE_AND_LOOK(sendmsg(fd, &header, 0), "sendmsg(head %zu)", i);
    }
    for (int bit = 0; bit < 32; bit++) {
        struct msghdr header = {.msg_iov = &one, .msg_iovlen = 1, .msg_flags = -1};
        int flag = (int)(1u << bit);
        if (begin("recvmsg(%#x)", flag)) {
            long result = recvmsg(fd, &header, flag);
            int error = errno;
            if (result >= 0)
                tell("flags %#x", header.msg_flags);
            errno = error;
            end(result, 1);
        }
        struct mmsghdr two[2] = {{.msg_hdr = header}, {.msg_hdr = header}};
        CASE_AND_LOOK(recvmmsg(fd, two, 2, flag, NULL), "recvmmsg(2, %#x)", flag);
        if (state != PEER_CLOSED) /* Whether the first is answered before the second is sent is nobody's promise. */
            CASE_AND_LOOK(sendmmsg(fd, two, 2, flag), "sendmmsg(2, %#x)", flag);
    }
    static const struct timespec TIMES[] = {{0, 0}, {-1, 0}, {0, -1}, {0, 1000000000}, {LONG_MAX, 0}, {0, LONG_MIN}};
    struct mmsghdr two[2] = {{.msg_hdr = {.msg_iov = &one, .msg_iovlen = 1}}, {.msg_hdr = {.msg_iov = &one, .msg_iovlen = 1}}};
    for (size_t i = 0; i < COUNT(TIMES); i++) {
        struct timespec time = TIMES[i];
        CASE_AND_LOOK(recvmmsg(fd, two, 2, 0, &time), "recvmmsg(time %ld %ld)", (long)TIMES[i].tv_sec, (long)TIMES[i].tv_nsec);
    }
    TRY_AND_LOOK(recvmmsg(fd, two, 2, 0, BAD));
    TRY_AND_LOOK(recvmmsg(fd, two, 0, 0, NULL));
    TRY_AND_LOOK(recvmmsg(fd, NULL, 0, 0, NULL));
    TRY_AND_LOOK(sendmmsg(fd, two, 0, 0));
    TRY_AND_LOOK(sendmmsg(fd, NULL, 0, 0));
    static const size_t IOVLENS[] = {0, 1025, INT_MAX, (size_t)-1};
    for (size_t i = 0; i < COUNT(IOVLENS); i++) {
        struct msghdr header = {.msg_iov = &one, .msg_iovlen = IOVLENS[i]};
        CASE_AND_LOOK(recvmsg(fd, &header, 0), "recvmsg(iovlen %ld)", (long)IOVLENS[i]);
        CASE_AND_LOOK(sendmsg(fd, &header, 0), "sendmsg(iovlen %ld)", (long)IOVLENS[i]);
    }
}

/* Bytes of files, and counts that no file has. */
static void files(void) {
    static const size_t SIZES[] = {0, 5, 0x7ffff000, 0x7ffff001, SSIZE_MAX, (size_t)SSIZE_MAX + 1, (size_t)-5, (size_t)-1};
    static const off_t AT[] = {-1, 0, 3, 99, LONG_MAX};
    char name[] = "/tmp/odd-XXXXXX";
    int file = mkstemp(name), folder = open("/", O_RDONLY);
    if (file < 0 || write(file, "0123456789", 10) != 10)
        die(name);
    int readable = open(name, O_RDONLY), writable = open(name, O_WRONLY);
    unlink(name);
    for (size_t i = 0; i < COUNT(SIZES); i++) {
        size_t n = SIZES[i];
        CASE_AND_LOOK((lseek(readable, 0, SEEK_SET), sendfile(fd, readable, NULL, n)), "sendfile(%zd)", (ssize_t)n);
        CASE_AND_LOOK(sendfile(fd, writable, NULL, n), "sendfile(writable, %zd)", (ssize_t)n);
        CASE_AND_LOOK(sendfile(fd, folder, NULL, n), "sendfile(folder, %zd)", (ssize_t)n);
        CASE_AND_LOOK(sendfile(fd, -1, NULL, n), "sendfile(-1, %zd)", (ssize_t)n);
        CASE_AND_LOOK(sendfile(fd, fd, NULL, n), "sendfile(itself, %zd)", (ssize_t)n);
        CASE_AND_LOOK(sendfile(readable, fd, NULL, n), "sendfile(to readable, %zd)", (ssize_t)n);
        CASE_AND_LOOK(sendfile(-1, fd, NULL, n), "sendfile(to -1, %zd)", (ssize_t)n);
        for (size_t at = 0; at < COUNT(AT); at++) {
            off_t from = AT[at];
            CASE_AND_LOOK(sendfile(fd, readable, &from, n), "sendfile(at %ld, %zd)", (long)AT[at], (ssize_t)n);
        }
        CASE_AND_LOOK(sendfile(fd, readable, BAD, n), "sendfile(at bad, %zd)", (ssize_t)n);
    }
    close(file);
    close(readable);
    close(writable);
    close(folder);
}

/* More descriptors than there may be, and flags of files. */
static void descriptors(void) {
    static struct pollfd many[2048];
    static const nfds_t COUNTS_OF[] = {0, 1, 127, 128, 129, 2048, 0x80000000u, (nfds_t)1 << 32 | 1, (nfds_t)-1};
    struct rlimit before, few;
    getrlimit(RLIMIT_NOFILE, &before);
    few = before;
    few.rlim_cur = 128;
    setrlimit(RLIMIT_NOFILE, &few);
    for (size_t i = 0; i < COUNT(COUNTS_OF); i++) {
        nfds_t n = COUNTS_OF[i];
        struct timespec none_of_it = {0, 0};
        for (size_t at = 0; at < COUNT(many); at++)
            many[at] = (struct pollfd){.fd = -1};
        CASE((many[0] = (struct pollfd){fd, POLLOUT, 0}, poll(many, n, 0)), "poll(%ld)", (long)n);
        CASE((many[0] = (struct pollfd){fd, POLLOUT, 0}, ppoll(many, n, &none_of_it, NULL)), "ppoll(%ld)", (long)n);
        CASE((many[0] = (struct pollfd){fd, POLLIN, 0}, poll(many, n, 3)), "poll(%ld, 3 ms)", (long)n);
    }
    setrlimit(RLIMIT_NOFILE, &before);
    static const int FLAGS[] = {0, O_APPEND, O_NOATIME, O_APPEND | O_NOATIME | O_NONBLOCK, O_SYNC | O_TRUNC | O_CREAT | O_PATH | O_RDONLY, O_DIRECT | O_APPEND, -1};
    for (size_t i = 0; i < COUNT(FLAGS); i++)
        if (begin("F_SETFL %#x", FLAGS[i])) {
            long result = fcntl(fd, F_SETFL, FLAGS[i]);
            int error = errno;
            tell("then %#x", fcntl(fd, F_GETFL));
            errno = error;
            end(result, 0);
        }
}

/* Sockets in memory: what can be had, and what TCP_ZEROCOPY_RECEIVE says of it. */
static void maps(void) {
    static const int PROTECTIONS[] = {PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_EXEC, PROT_NONE};
    static const int KINDS[] = {MAP_SHARED, MAP_PRIVATE, 0};
    for (size_t p = 0; p < COUNT(PROTECTIONS); p++)
        for (size_t k = 0; k < COUNT(KINDS); k++)
            for (size_t n = 0; n < 3; n++) {
                if (!begin("mmap(%zu, %#x, %#x)", n * 4096, PROTECTIONS[p], KINDS[k]))
                    continue;
                void *at = mmap(NULL, n * 4096, PROTECTIONS[p], KINDS[k], fd, 0);
                int error = errno;
                if (at != MAP_FAILED)
                    munmap(at, n * 4096);
                errno = error;
                end(at == MAP_FAILED ? -1 : 0, 1);
            }
    for (socklen_t room = 8; room <= 28; room += 4) {
        if (!begin("TCP_ZEROCOPY_RECEIVE(%d)", (int)room))
            continue;
        unsigned words[16] = {0};
        socklen_t len = room;
        void *at = mmap(NULL, 8192, PROT_READ, MAP_SHARED, fd, 0);
        if (at != MAP_FAILED)
            memcpy(words, &at, sizeof at);
        words[2] = 8192;
        long got = getsockopt(fd, IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, words, &len);
        int error = errno;
        if (got == 0)
            tell("len %d: %u, hint %u, inq %u, error %u", (int)len, words[2], words[3], words[4], words[5]);
        if (at != MAP_FAILED)
            munmap(at, 8192);
        errno = error;
        end(got, 1);
    }
}

static void cases(void) {
    maps();
    files();
    descriptors();
    buffers();
    flags();
    vectors();
    addresses();
    headers();
}
