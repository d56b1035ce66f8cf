# memcached 1.6.18's t/*.t
packages=(build-essential libevent-dev perl)

build() {
    source_of memcached bookworm
    cd source
    # Otherwise the tests meet the server over unix sockets.
    ./configure --disable-unix-socket
    make -j2
}

run() {
    cd source
    [ "${#words[@]}" -gt 0 ] || words=(t/*.t)
    # t/lib starts the servers by fork and exec of a shell: the preload reaches them by the environment.
    "${utcp[@]}" prove -j2 --timer "${words[@]}" 2>&1
}

# A file is a case: numbers of assertions mean nothing when some are left out.
cases() {
    sed -nE 's/^(\[[0-9:]+\] )?(t\/[^ ]+\.t) \.+ *ok.*/pass \2/p; s/^(\[[0-9:]+\] )?(t\/[^ ]+\.t) \.+ *skipped.*/skip \2/p
        s/^(t\/[^ ]+\.t) +\(Wstat.*/fail \1/p'
}
