# One end of a conversation in which both send and both check what they get. Arguments: serve|call, address, port, then
# words: send=N expect=N bytes, write=N bytes in a call, read=N bytes in a call, stall=S seconds before the first read,
# rcvbuf=N, maxseg=N, nodelay=1, lag=S seconds between the last byte and the end of our side, abort=1: end by a reset.
# Prints "done" when everything came as it should.
import random, socket, struct, sys, threading, time

role, addr, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
given = dict(word.split("=") for word in sys.argv[4:])
number = lambda name, default: type(default)(given.get(name, default))
PATTERN = random.Random(5).randbytes(65_521) * 3


def pattern(at, n):
    at %= 65_521
    return PATTERN[at : at + n]


def options(sock):
    if "rcvbuf" in given:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, number("rcvbuf", 0))
    if "maxseg" in given:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, number("maxseg", 0))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, number("nodelay", 0))


def send(sock):
    total, write = number("send", 0), number("write", 65_536)
    at = 0
    while at < total:
        at += sock.send(pattern(at, min(write, total - at)))
    time.sleep(number("lag", 0.0))
    if not number("abort", 0):
        sock.shutdown(socket.SHUT_WR)


def receive(sock):
    total, read = number("expect", 0), number("read", 65_536)
    time.sleep(number("stall", 0.0))
    at = 0
    while data := sock.recv(read):
        assert data == pattern(at, len(data)), f"wrong bytes between {at} and {at + len(data)}"
        at += len(data)
    assert at == total, f"{at} bytes came, {total} were to come"


family = socket.AF_INET6 if ":" in addr else socket.AF_INET
if role == "serve":
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    options(listener)
    listener.bind((addr, port))
    listener.listen()
    print("listening", flush=True)
    sock, _ = listener.accept()
else:
    sock = socket.socket(family)
    options(sock)
    sock.settimeout(20)
    sock.connect((addr, port))
    sock.settimeout(None)

sender = threading.Thread(target=send, args=(sock,))
sender.start()
if number("abort", 0):
    sender.join()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
else:
    receive(sock)
    sender.join()
sock.close()
print("done", flush=True)
