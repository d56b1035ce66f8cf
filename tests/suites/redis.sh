# redis 7.0's Tcl suite, against one running server
packages=(build-essential tcl)
limit=900

build() {
    source_of redis bookworm
    make -C source -j2 MALLOC=libc
}

run() {
    cd source
    "${utcp[@]}" ./src/redis-server --port 6379 --protected-mode no --save "" --enable-debug-command yes \
        --enable-protected-configs yes >../server.log 2>&1 &
    local server=$!
    until ./src/redis-cli ping 2>/dev/null | grep -q PONG; do
        kill -0 "$server" || return
        sleep 0.1
    done
    [ "${#words[@]}" -gt 0 ] || words=(--skipunit unit/introspection --tags -slow)
    "${utcp[@]}" ./runtest --host 127.0.0.1 --port 6379 --clients 1 "${words[@]}" 2>&1
    kill "$server"
}

# "[ok]: name (12 ms)", with colours; a name may come again in another file.
cases() {
    sed 's/\x1b\[[0-9;]*m//g' | awk '
        /^\[[0-9]*\/[0-9]* done\]: |^\[testing\]: / { sub(/ \([0-9]+ seconds\)/, ""); next }
        /^Testing / { unit = $2 }
        /^\[ok\]: / { sub(/^\[ok\]: /, ""); sub(/ \([0-9.]+ m?s\)$/, ""); print "pass", unit ": " $0 }
        /^\[(err|exception|timeout)\]: / { sub(/^\[[a-z]+\]: /, ""); sub(/ in tests\/.*/, ""); print "fail", unit ": " $0 }'
}
