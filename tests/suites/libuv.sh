# libuv 1.44's tests
packages=(build-essential autoconf automake libtool)

build() {
    source_of libuv1 bookworm
    cd source
    sh autogen.sh
    ./configure
    make -j2 check TESTS=
}

run() {
    cd source
    if [ "${#words[@]}" = 0 ]; then
        "${utcp[@]}" ./test/run-tests 2>&1
    else
        for word in "${words[@]}"; do "${utcp[@]}" ./test/run-tests "$word" 2>&1; done
    fi
}

cases() { sed -nE 's/^ok [0-9]+ - ([a-z0-9_]+) # SKIP.*/skip \1/p; s/^ok [0-9]+ - ([a-z0-9_]+)$/pass \1/p; s/^not ok [0-9]+ - ([a-z0-9_]+).*/fail \1/p'; }
