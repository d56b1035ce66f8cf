# node 20's tests of net and http
packages=(python3)

build() { source_of nodejs trixie; }

run() {
    cd source
    [ "${#words[@]}" -gt 0 ] || words=('parallel/test-net-*' 'parallel/test-http-*')
    "${utcp[@]}" python3 tools/test.py -j1 --shell="$(command -v node)" -p tap "${words[@]}" 2>&1
}

cases() { sed -nE 's/^ok [0-9]+ ([a-z]+\/[^ ]+) # skip.*/skip \1/p; s/^ok [0-9]+ ([a-z]+\/[^ ]+)$/pass \1/p; s/^not ok [0-9]+ ([a-z]+\/[^ ]+).*/fail \1/p'; }
