/* Runs a program in the sandbox that a service manager would put around it.
 *
 *   sandbox WORDS... -- PROGRAM...
 *     families   no sockets but of unix, IPv4 and IPv6 (EAFNOSUPPORT)
 *     no-wx      no memory that is written and run (EPERM)
 *     calls      no calls for administrators and debuggers, as in "@system-service" (EPERM)
 *     kill       whoever makes one all the same is ended (SIGSYS) */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct sock_filter code[1024];
static unsigned short used;

static void add(unsigned short what, unsigned k, unsigned char yes, unsigned char no) {
    code[used++] = (struct sock_filter){what, yes, no, k};
}
static void load(unsigned offset) { add(BPF_LD | BPF_W | BPF_ABS, offset, 0, 0); }
static void call(void) { load(offsetof(struct seccomp_data, nr)); }
static void word(int n) { load((unsigned)(offsetof(struct seccomp_data, args) + (size_t)n * 8)); }
static void end(unsigned what) { add(BPF_RET | BPF_K, what, 0, 0); }
static void jump_if(unsigned value, unsigned char no) { add(BPF_JMP | BPF_JEQ | BPF_K, value, 0, no); }

/* What systemd's @system-service leaves out, of the calls that are there on every machine. */
static const int refused[] = {
    SYS_acct, SYS_add_key, SYS_bpf, SYS_clock_adjtime, SYS_delete_module, SYS_finit_module, SYS_init_module, SYS_kcmp,
    SYS_kexec_load, SYS_lookup_dcookie, SYS_mount, SYS_move_mount, SYS_open_by_handle_at, SYS_perf_event_open, SYS_personality,
    SYS_pidfd_getfd, SYS_pivot_root, SYS_process_vm_readv, SYS_process_vm_writev, SYS_ptrace, SYS_quotactl, SYS_reboot,
    SYS_request_key, SYS_setdomainname, SYS_sethostname, SYS_settimeofday, SYS_swapoff, SYS_swapon, SYS_syslog,
    SYS_umount2, SYS_unshare, SYS_userfaultfd, SYS_vhangup, SYS_vmsplice, SYS_fanotify_init, SYS_setns, SYS_adjtimex,
};

int main(int count, char **words) {
    int at = 1, families = 0, no_wx = 0, calls = 0;
    unsigned no = SECCOMP_RET_ERRNO | EPERM;
    for (; at < count && strcmp(words[at], "--") != 0; at++) {
        if (strcmp(words[at], "families") == 0)
            families = 1;
        if (strcmp(words[at], "no-wx") == 0)
            no_wx = 1;
        if (strcmp(words[at], "calls") == 0)
            calls = 1;
        if (strcmp(words[at], "kill") == 0)
            no = SECCOMP_RET_KILL_PROCESS;
    }
    if (at + 1 >= count)
        return 2;
    if (families) {
        call();
        jump_if(SYS_socket, 5);
        word(0);
        add(BPF_JMP | BPF_JEQ | BPF_K, AF_UNIX, 3, 0);
        add(BPF_JMP | BPF_JEQ | BPF_K, AF_INET, 2, 0);
        add(BPF_JMP | BPF_JEQ | BPF_K, AF_INET6, 1, 0);
        end(SECCOMP_RET_ERRNO | EAFNOSUPPORT);
    }
    if (no_wx) {
        call();
        jump_if(SYS_mmap, 4);
        word(2);
        add(BPF_ALU | BPF_AND | BPF_K, PROT_EXEC | PROT_WRITE, 0, 0);
        jump_if(PROT_EXEC | PROT_WRITE, 1);
        end(no);
        call();
        jump_if(SYS_mprotect, 3);
        word(2);
        add(BPF_JMP | BPF_JSET | BPF_K, PROT_EXEC, 0, 1);
        end(no);
    }
    if (calls) {
        call();
        for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
            jump_if((unsigned)refused[i], 1);
            end(no);
        }
    }
    end(SECCOMP_RET_ALLOW);
    struct sock_fprog program = {used, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0) {
        perror("sandbox");
        return 2;
    }
    execvp(words[at + 1], words + at + 1);
    perror("execvp");
    return 2;
}
