# SO_PEEK_OFF: where a peek begins, and who moves that.
import socket, threading, time

SO_PEEK_OFF = 42
PEEK, DONTWAIT = socket.MSG_PEEK, socket.MSG_DONTWAIT


def tell(call, *words):
    try:
        print(call(*words), end=" ")
    except OSError as error:
        print(error.strerror, end=" ")


def offset():
    tell(end.getsockopt, socket.SOL_SOCKET, SO_PEEK_OFF)
    print()


def put(value):
    tell(end.setsockopt, socket.SOL_SOCKET, SO_PEEK_OFF, value)
    offset()


def later(data):
    threading.Timer(0.1, lambda: peer.send(data)).start()


listener = socket.create_server(("127.0.0.1", 0))
peer = socket.create_connection(listener.getsockname())
end, _ = listener.accept()
offset()
put(0)
peer.send(b"abcdefgh")
end.recv(8, PEEK | socket.MSG_WAITALL)
put(0)
tell(end.recv, 2, PEEK)
tell(end.recv, 3, PEEK)
offset()
tell(end.recv, 2)
offset()
tell(end.recv, 9, PEEK)
offset()
tell(end.recv, 9, PEEK | DONTWAIT)
tell(end.recv, 4)
offset()
tell(end.recv, 9, PEEK | DONTWAIT)
tell(end.recv, 9)
offset()
put(-7)
peer.send(b"xyz")
tell(end.recv, 3, PEEK | socket.MSG_WAITALL)
tell(end.recv, 2, PEEK)
offset()
put(5)
later(b"0123")
tell(end.recv, 2, PEEK | socket.MSG_WAITALL)
offset()
tell(end.recv, 3, PEEK | socket.MSG_TRUNC | DONTWAIT)
put(1)
later(b"4567")
tell(end.recv, 9, PEEK | socket.MSG_WAITALL)
offset()
peer.shutdown(socket.SHUT_WR)
tell(end.recv, 99, PEEK)
tell(end.recv, 99, socket.MSG_WAITALL)
tell(end.recv, 9, PEEK)
offset()
listener.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 3)
peer = socket.create_connection(listener.getsockname())
end, _ = listener.accept()
offset()
peer.send(b"abcdef")
tell(end.recv, 3, PEEK | socket.MSG_WAITALL)
offset()
