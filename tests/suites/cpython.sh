# CPython 3.11's tests of sockets, selectors and servers
packages=(python3.11)
limit=1800

build() {
    # Unpacked rather than installed: it belongs to one version of python, the tests to nearly any.
    apt-get download -q libpython3.11-testsuite
    dpkg -x ./*.deb unpacked
    mkdir lib
    cp -r /usr/lib/python3.11/test lib/
    cp -r unpacked/usr/lib/python3.11/test lib/
    rm -r ./*.deb unpacked
}

run() {
    [ "${#words[@]}" -gt 0 ] || words=(test_socket test_selectors test_epoll test_poll test_socketserver test_asyncore
        test_asynchat test_httplib test_httpservers test_ftplib test_poplib test_smtplib test_telnetlib test_urllib2_localnet
        test_xmlrpc test_ssl test_asyncio test_multiprocessing_spawn test_logging)
    PYTHONPATH=$PWD/lib "${utcp[@]}" /usr/bin/python3.11 -m test -v --timeout 600 \
        --ignore '*VSOCK*' -u network "${words[@]}" 2>&1
}

# "test_name (test.test_socket.Class.test_name) ... ok", perhaps with other output between the dots and the word.
cases() {
    awk '
        match($0, /^test[A-Za-z0-9_]* \([A-Za-z0-9_.]+\)/) { name = substr($0, RSTART, RLENGTH); sub(/^[^(]*\(/, "", name); sub(/\)$/, "", name) }
        name != "" && /(^|\.\.\. )ok$/ { print "pass", name; name = "" }
        name != "" && /(^|\.\.\. )(FAIL|ERROR|unexpected success)$/ { print "fail", name; name = "" }
        name != "" && /(^|\.\.\. )(skipped .*|expected failure)$/ { print "skip", name; name = "" }
        /^(FAIL|ERROR): .*\([A-Za-z0-9_.]+\)/ { it = $0; sub(/^[^(]*\(/, "", it); sub(/\).*/, "", it); print "fail", it }'
}
