/* A program that writes rubbish into every page it shares with the engine and with its peers, while it goes on calling.
 *
 *   vandal PORT SEED MILLISECONDS
 *
 * It makes some connections to the echo server at PORT and one to itself, then threads scribble and call until the time is over, or
 * until it dies of what it did to itself: both are fine. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SOCKETS = 24, AREAS = 512 };

static uint64_t state;
static int sockets[SOCKETS];
static struct area { uint64_t *start; size_t words; } areas[AREAS];
static size_t count;
static struct timespec until;

static uint64_t number(uint64_t *from)
{
	*from ^= *from << 13;
	*from ^= *from >> 7;
	*from ^= *from << 17;
	return *from;
}

static int is_over(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec > until.tv_sec || (now.tv_sec == until.tv_sec && now.tv_nsec > until.tv_nsec);
}

static int connected(int port)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	char text[] = "vandal\n", back[sizeof text];
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) < 0)
		return -1;
	if (send(fd, text, sizeof text, MSG_NOSIGNAL) != sizeof text || recv(fd, back, sizeof back, MSG_WAITALL) != sizeof back)
		return -1;
	return fd;
}

/* What is mapped shared, writable and without a file: what utcp gave us. */
static void find_areas(void)
{
	char line[512];
	FILE *maps = fopen("/proc/self/maps", "r");
	while (maps && count < AREAS && fgets(line, sizeof line, maps)) {
		uint64_t from, to;
		char rights[5];
		if (sscanf(line, "%lx-%lx %4s", &from, &to, rights) == 3 && !strcmp(rights, "rw-s") && strstr(line, "memfd:"))
			areas[count++] = (struct area){ (uint64_t *)from, (to - from) / 8 };
	}
	if (maps)
		fclose(maps);
}

static uint64_t rubbish(uint64_t *from, uint64_t old)
{
	uint64_t r = number(from);
	switch (r % 7) {
	case 0: return number(from);
	case 1: return old + 1 + r / 7 % 9000;
	case 2: return old - 1 - r / 7 % 9000;
	case 3: return old ^ 1ull << (r / 7 % 64);
	case 4: return UINT64_MAX;
	case 5: return 0;
	default: return r / 7 % 65536;
	}
}

static void *scribble(void *seed)
{
	uint64_t from = (uint64_t)seed;
	while (!is_over())
		for (int i = 0; i < 64; i++) {
			struct area area = areas[number(&from) % count];
			/* Heads of areas have the words that matter. */
			size_t limit = area.words >> number(&from) % 16;
			uint64_t *word = &area.start[number(&from) % (limit ? limit : area.words)];
			*(volatile uint64_t *)word = rubbish(&from, *word);
			if (number(&from) % 256 == 0)
				usleep(number(&from) % 200);
		}
	return NULL;
}

static void *call(void *argument)
{
	uint64_t from = (uint64_t)argument;
	int port = (int)(from >> 32);
	char bytes[4096] = "";
	int set = epoll_create1(0);
	while (!is_over()) {
		int *fd = &sockets[number(&from) % SOCKETS];
		struct epoll_event event = { .events = EPOLLIN | EPOLLOUT };
		switch (number(&from) % 8) {
		case 0: case 1: send(*fd, bytes, number(&from) % sizeof bytes, MSG_DONTWAIT | MSG_NOSIGNAL); break;
		case 2: case 3: recv(*fd, bytes, sizeof bytes, MSG_DONTWAIT); break;
		case 4: epoll_ctl(set, EPOLL_CTL_ADD, *fd, &event); break;
		case 5: epoll_wait(set, &event, 1, 0); break;
		case 6: shutdown(*fd, number(&from) % 3); break;
		default: {
			struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
			close(*fd);
			*fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
			connect(*fd, (struct sockaddr *)&to, sizeof to);
		}
		}
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[3];
	if (argc != 4)
		return 2;
	int port = atoi(argv[1]);
	long ms = atol(argv[3]);
	state = strtoull(argv[2], NULL, 10) * 0x9e3779b97f4a7c15 + 1;
	struct sockaddr_in here = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof here;
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(listener, (struct sockaddr *)&here, len) < 0 || listen(listener, 8) < 0 || getsockname(listener, (struct sockaddr *)&here, &len) < 0)
		return 3;
	for (int i = 0; i < SOCKETS; i++) {
		if (i == 0) {
			sockets[i] = socket(AF_INET, SOCK_STREAM, 0);
			if (connect(sockets[i], (struct sockaddr *)&here, len) < 0)
				return 4;
		} else if (i == 1) {
			sockets[i] = accept(listener, NULL, NULL);
		} else if (i < 12) {
			sockets[i] = connected(port);
			if (sockets[i] < 0)
				return 5;
		} else {
			sockets[i] = -1;
		}
	}
	find_areas();
	if (!count)
		return 6;
	printf("%zu areas\n", count);
	fflush(stdout);
	alarm(ms / 1000 + 2); /* Its own library may hang of it. */
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += ms % 1000 * 1000000;
	until.tv_sec += ms / 1000 + until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	for (int i = 0; i < 2; i++)
		pthread_create(&threads[i], NULL, call, (void *)((uint64_t)port << 32 | (number(&state) & 0xffffffff)));
	pthread_create(&threads[2], NULL, scribble, (void *)number(&state));
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	_exit(0);
}
