/* A connection whose bytes go through a ring of liburing's, compiled against its headers. */
#include <arpa/inet.h>
#include <liburing.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int run(struct io_uring *ring, struct io_uring_sqe *sqe) {
    struct io_uring_cqe *cqe;
    (void)sqe;
    if (io_uring_submit_and_wait(ring, 1) < 0 || io_uring_wait_cqe(ring, &cqe) < 0)
        return -1;
    int result = cqe->res;
    io_uring_cqe_seen(ring, cqe);
    return result;
}

#define DO(call, ...) (sqe = io_uring_get_sqe(&ring), io_uring_prep_##call(sqe, __VA_ARGS__), run(&ring, sqe))

int main(void) {
    struct io_uring ring;
    struct io_uring_sqe *sqe;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    char buffer[64] = "";
    int made = io_uring_queue_init(8, &ring, 0);
    printf("ring: %d\n", made);
    if (made < 0)
        return 0;
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    bind(listener, (struct sockaddr *)&address, len);
    listen(listener, 4);
    getsockname(listener, (struct sockaddr *)&address, &len);
    printf("connect: %d\n", DO(connect, client, (struct sockaddr *)&address, len));
    int server = DO(accept, listener, NULL, NULL, 0);
    printf("accept: %d\n", server >= 0);
    printf("send: %d\n", DO(send, client, "through the ring", 16, 0));
    printf("recv: %d\n", DO(recv, server, buffer, sizeof buffer, 0));
    printf("%s\n", buffer);
    printf("close: %d\n", DO(close, server));
    printf("end: %d\n", DO(recv, client, buffer, sizeof buffer, 0));
    return 0;
}
