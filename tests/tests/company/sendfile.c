/* sendfile from eight threads, each from its own place of one file, whose own position nobody may move. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>

#define THREADS 8
#define PART 700000

static int file, listener;
static struct sockaddr_in address;

static void fail(const char *what) {
    printf("%s: %s\n", what, strerror(errno));
    exit(1);
}

static unsigned char byte_at(size_t i) { return (unsigned char)(i * 2654435761u >> 13); }

static void *sender(void *unused) {
    int fd = accept(listener, NULL, NULL);
    unsigned char part;
    if (fd < 0 || recv(fd, &part, 1, 0) != 1)
        fail("accept or recv");
    off64_t offset = (off64_t)part * PART;
    for (size_t left = PART; left > 0;) {
        ssize_t sent = sendfile64(fd, file, &offset, left < 60000 ? left : 60000);
        if (sent <= 0)
            fail("sendfile");
        left -= (size_t)sent;
    }
    if (offset != (off64_t)(part + 1) * PART)
        fail("the offset");
    close(fd);
    return unused;
}

static void *reader(void *number) {
    unsigned char part = (unsigned char)(long)number, buffer[9000];
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0 || send(fd, &part, 1, 0) != 1)
        fail("connect or send");
    size_t got = 0;
    ssize_t n;
    while ((n = recv(fd, buffer, sizeof buffer, 0)) > 0)
        for (ssize_t i = 0; i < n; i++, got++)
            if (buffer[i] != byte_at((size_t)part * PART + got))
                fail("a byte");
    if (n < 0 || got != PART)
        fail("the end");
    close(fd);
    return NULL;
}

int main(int count, char **words) {
    unsigned char *all = malloc(THREADS * PART);
    if (count < 2 || all == NULL)
        return 2;
    for (size_t i = 0; i < THREADS * PART; i++)
        all[i] = byte_at(i);
    file = open(words[1], O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (file < 0 || write(file, all, THREADS * PART) != THREADS * PART || lseek(file, 123, SEEK_SET) != 123)
        fail("the file");
    socklen_t len = sizeof address;
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, len) < 0 || listen(listener, 64) < 0)
        fail("listen");
    getsockname(listener, (struct sockaddr *)&address, &len);
    pthread_t senders[THREADS], readers[THREADS];
    for (long i = 0; i < THREADS; i++) {
        pthread_create(&senders[i], NULL, sender, NULL);
        pthread_create(&readers[i], NULL, reader, (void *)i);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(senders[i], NULL);
        pthread_join(readers[i], NULL);
    }
    if (lseek(file, 0, SEEK_CUR) != 123)
        fail("the file's own position");
    puts("ok");
    return 0;
}
