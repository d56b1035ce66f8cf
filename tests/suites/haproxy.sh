# haproxy 2.6's reg-tests (its clients and servers are varnishtest's)
packages=(haproxy varnish)

build() { source_of haproxy bookworm; }

run() {
    cd source
    HAPROXY_PROGRAM=/usr/sbin/haproxy VTEST_PROGRAM=/usr/bin/varnishtest \
        "${utcp[@]}" ./scripts/run-regtests.sh --j 2 --v "${words[@]}" 2>&1
}

cases() { sed -nE 's/^# *top *TEST (\.\/)?([^ ]+\.vtc) passed.*/pass \2/p; s/^# *top *TEST (\.\/)?([^ ]+\.vtc) (FAILED|TIMED OUT).*/fail \2/p; s/^# *top *TEST (\.\/)?([^ ]+\.vtc) skipped.*/skip \2/p'; }
