/* A program that uses every descriptor that it may have. What it is told must not depend on who stands behind its sockets. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

static void tell(const char *what, int result) {
    printf("%s: %s\n", what, result < 0 ? strerror(errno) : "ok");
}

/* Uses up every number; one of them. */
static int fill(void) {
    int last = -1, fd;
    while ((fd = dup(0)) >= 0)
        last = fd;
    return last;
}

int main(void) {
    struct rlimit limit = {64, 64};
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    int pair[2];
    setrlimit(RLIMIT_NOFILE, &limit);
    int listener = socket(AF_INET, SOCK_STREAM, 0), set = epoll_create1(0);
    tell("bind", bind(listener, (struct sockaddr *)&address, len));
    tell("listen", listen(listener, 8));
    getsockname(listener, (struct sockaddr *)&address, &len);
    /* Sockets that came and went leave their numbers. */
    int many[30];
    for (int i = 0; i < 30; i++)
        many[i] = socket(AF_INET, SOCK_STREAM, 0);
    tell("thirty sockets", many[29]);
    for (int i = 0; i < 30; i++)
        close(many[i]);
    for (int i = 0; i < 30; i++)
        many[i] = open("/dev/null", O_RDONLY);
    tell("thirty files", many[29]);
    int one = fill();
    tell("dup", dup(0));
    tell("open", open("/dev/null", O_RDONLY));
    tell("pipe", pipe(pair));
    tell("socketpair", socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    tell("eventfd", eventfd(0, 0));
    tell("socket", socket(AF_INET, SOCK_STREAM, 0));
    tell("accept", accept(listener, NULL, NULL));
    close(one);
    int client = socket(AF_INET, SOCK_STREAM, 0);
    tell("socket", client);
    /* An epoll set learns of its first socket when there is no number left. */
    struct epoll_event event = {.events = EPOLLIN, .data.fd = 1};
    tell("epoll_ctl", epoll_ctl(set, EPOLL_CTL_ADD, listener, &event));
    tell("connect", connect(client, (struct sockaddr *)&address, len));
    tell("epoll_wait", epoll_wait(set, &event, 1, 5000));
    tell("accept", accept(listener, NULL, NULL));
    /* The trick of event loops: a number that is kept for this. */
    close(many[0]);
    int accepted = accept(listener, NULL, NULL);
    tell("accept", accepted);
    close(accepted);
    tell("open", open("/dev/null", O_RDONLY));
    tell("open", open("/dev/null", O_RDONLY));
    return 0;
}
