// A program that is linked statically and works on an inherited descriptor.
//   alone read FD    answers each line, shouted, and says at the end of file how many bytes came
//   alone accept FD  the same with the first connection that it accepts
#include <ctype.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int count, char **words) {
    if (count != 3) return 2;
    int fd = atoi(words[2]);
    if (!strcmp(words[1], "accept")) fd = accept(fd, 0, 0);
    int kind = 0;
    socklen_t len = sizeof kind;
    if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_TYPE, &kind, &len) || kind != SOCK_STREAM) return 3;
    char bytes[100];
    long got, all = 0;
    for (;;) {
        struct pollfd one = {.fd = fd, .events = POLLIN};
        if (poll(&one, 1, 20000) != 1) return 4;
        if ((got = read(fd, bytes, sizeof bytes)) <= 0) break;
        all += got;
        for (long at = 0; at < got; at++) bytes[at] = toupper((unsigned char)bytes[at]);
        if (write(fd, bytes, got) != got) return 5;
    }
    if (got < 0) return 6;
    printf("%ld bytes\n", all);
    return 0;
}
