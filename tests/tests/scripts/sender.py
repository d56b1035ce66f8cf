# Sends zeros to whoever connects, until that one leaves. Arguments: address, port, congestion controller.
import socket, sys

listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, sys.argv[3].encode())
listener.bind((sys.argv[1], int(sys.argv[2])))
listener.listen()
print("listening", flush=True)
peer, _ = listener.accept()
assert peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).startswith(sys.argv[3].encode())
data = bytes(1 << 16)
try:
    while True:
        peer.sendall(data)
except OSError:
    pass
