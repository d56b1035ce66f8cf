# Connects, reads for some seconds and prints how many bytes came. Arguments: address, port, seconds.
import socket, sys, time

deadline = time.monotonic() + float(sys.argv[3])
peer = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10)
count = 0
while (left := deadline - time.monotonic()) > 0:
    peer.settimeout(left)
    try:
        got = len(peer.recv(1 << 18))
    except TimeoutError:
        break
    assert got, "the sender left"
    count += got
print(count)
