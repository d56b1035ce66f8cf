# the Linux Test Project's system calls on sockets and descriptors
packages=(build-essential autoconf automake pkgconf git)
as_root=yes
limit=2400

# Debian has no package of it. UTCP_LTP names a repository or a clone of it elsewhere.
build() {
    git clone -q --depth 1 "${UTCP_LTP:-https://github.com/linux-test-project/ltp}" source
    cd source
    make autotools
    ./configure
    make -C lib -j2
    local calls=(accept accept4 bind clone close close_range connect dup dup2 dup3 epoll_create epoll_create1 epoll_ctl
        epoll_pwait epoll_wait eventfd eventfd2 execve execveat fcntl fork getpeername getsockname getsockopt io_uring ioctl
        kcmp listen pidfd_getfd pipe pipe2 poll ppoll pread preadv preadv2 pselect pwrite pwritev pwritev2 read readv recv
        recvfrom recvmmsg recvmsg select send sendfile sendmmsg sendmsg sendto setsockopt shutdown signalfd signalfd4 socket
        socketcall socketpair sockioctl splice tee vfork vmsplice write writev)
    local call
    for call in "${calls[@]}"; do make -k -j2 -C "testcases/kernel/syscalls/$call"; done
    for call in "${calls[@]}"; do find "$PWD/testcases/kernel/syscalls/$call" -type f -executable ! -name '*.sh'; done |
        sed -E 's,(.*)/(.*),\2 \1,' >../programs
}

run() {
    local tag program words_of status
    export LTPROOT=$PWD/source TMPDIR=/tmp LTP_COLORIZE_OUTPUT=n
    PATH=$PATH:$(cut -d' ' -f2 programs | sort -u | paste -sd:)
    # "tag program words", as LTP's own list has it; what was built here.
    while read -r tag program words_of; do
        grep -q "^$program " programs || continue
        [[ $tag != fork1[34] ]] || continue # Process ids and address space, for minutes.
        [ "${#words[@]}" = 0 ] || [[ " ${words[*]} " == *" $tag "* ]] || continue
        echo "== $tag"
        # shellcheck disable=SC2086
        timeout -k 5 100 "${utcp[@]}" "$program" $words_of </dev/null 2>&1
        status=$?
        echo "== $tag ended with $status"
    done < <(grep -E '^[a-z]' source/runtest/syscalls)
}

# A program is a case. It ends with 32 where something that it needs is not there, 0 if all was well.
cases() { sed -nE 's/^== ([^ ]+) ended with 0$/pass \1/p; s/^== ([^ ]+) ended with 32$/skip \1/p; s/^== ([^ ]+) ended with .*/fail \1/p' | awk '{ if (!($2 in seen)) print; seen[$2] = 1 }'; }
