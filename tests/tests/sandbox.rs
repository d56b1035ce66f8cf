//! Programs that give up system calls after their start.

use utcp_tests::{Engine, Lab, is_installed, not_run};

/// Answers connections; after the first it is killed for mapping memory, and for taking messages with descriptors.
const PROGRAM: &str = r#"
#include <arpa/inet.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CHECK(what) ((what) ? (void)0 : exit(1))
#define KILL(call) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##call, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)

static void give_up_calls(int by_number) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        KILL(mmap), KILL(recvmsg), KILL(sendmsg), KILL(socketpair), KILL(execve),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog all = {.len = sizeof filter / sizeof *filter, .filter = filter};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    if (by_number) CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &all) == 0);
    else CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &all) == 0);
}

static void answer(int listener) {
    static char bytes[100];
    int fd = accept(listener, NULL, NULL);
    CHECK(fd >= 0);
    for (ssize_t got; (got = recv(fd, bytes, sizeof bytes, 0)) > 0;) {
        struct pollfd one = {.fd = fd, .events = POLLOUT};
        CHECK(poll(&one, 1, 1000) == 1 && send(fd, bytes, (size_t)got, 0) == got);
    }
    CHECK(close(fd) == 0);
}

int main(int count, char **words) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(count == 3);
    at.sin_port = htons((unsigned short)atoi(words[1]));
    CHECK(listener >= 0 && bind(listener, (void *)&at, sizeof at) == 0 && listen(listener, 8) == 0);
    answer(listener);
    give_up_calls(!strcmp(words[2], "number"));
    CHECK(write(1, "closed\n", 7) == 7);
    for (;;) answer(listener);
}
"#;

/// Five connections of one program.
const CLIENT: &str = r"
import socket, sys
for n in range(int(sys.argv[2])):
    end = socket.create_connection(('127.0.0.1', int(sys.argv[1])))
    for part in (b'a' * 90, b'b' * 50000):
        end.sendall(part)
        got = b''
        while len(got) < len(part):
            got += end.recv(65536)
        assert got == part
    end.close()
print('done')
";

fn gives_up_calls(how: &str) {
    if !is_installed("cc") {
        return not_run("no C compiler");
    }
    let lab = Lab::new(&format!("sandbox-{how}"));
    let program = lab.path("closed");
    let build = lab.run("cc").args(["-O1", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&program);
    let _ = build.arg(lab.file("closed.c", PROGRAM)).ok();
    for path in ["off", "on"] {
        let engine = Engine::new(&lab).set("UTCP_CUT_THROUGH", path).run();
        let port = lab.port();
        let mut server = lab.run(&program).args([port.to_string(), how.to_owned()]).under(&engine).spawn();
        server.wait_for_listener(port);
        let talk = |count: &str| {
            let text =
                lab.python(CLIENT).args([port.to_string(), count.to_owned()]).under(&engine).ok().text();
            assert_eq!(text, "done\n");
        };
        talk("1");
        server.wait_for_output("closed");
        // Other programs than before: nothing that was made for the first will do.
        talk("40");
        talk("2");
        assert!(server.is_alive(), "{}", server.stderr());
        engine.went_through(43);
    }
}

#[test]
fn no_calls_that_map_memory_after_prctl() {
    gives_up_calls("prctl");
}

#[test]
fn no_calls_that_map_memory_after_seccomp() {
    gives_up_calls("number");
}
