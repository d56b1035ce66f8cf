"""A listener goes to another program over a socket; that one waits for it by its bare number. With `keeper`: it goes from there to a third."""
import os
import socket
import subprocess
import sys

SERVER = """
import ctypes, select, socket, struct, sys
way, how = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
data, control = ctypes.create_string_buffer(1), ctypes.create_string_buffer(24)
vector = ctypes.create_string_buffer(struct.pack('@PN', ctypes.addressof(data), 1))
message = ctypes.create_string_buffer(struct.pack('@PIPNPNi4xI4x', 0, 0, ctypes.addressof(vector), 1, ctypes.addressof(control), 24, 0, 0))
if how.endswith('recvmmsg'):
    assert ctypes.CDLL(None).recvmmsg(way.fileno(), message, 1, 0, None) == 1
    number = struct.unpack_from('@i', control, 16)[0]
else:
    number = socket.recv_fds(way, 1, 1)[1][0]
# Before anything else is asked of the number.
if how.startswith('select'):
    assert select.select([number], [], [], 10)[0]
else:
    waits = select.poll()
    waits.register(number, select.POLLIN)
    assert waits.poll(10000)
connection, _ = socket.socket(fileno=number).accept()
connection.sendall(connection.recv(100) + how.encode())
"""
KEEPER = """
import socket, sys
way = socket.socket(fileno=int(sys.argv[1]))
number = socket.recv_fds(way, 1, 1)[1][0]
socket.send_fds(way, [b'x'], [number])
way.recv(1)
"""

listener = socket.create_server(("127.0.0.1", 0))


def start(script, how):
    near, far = socket.socketpair()
    child = subprocess.Popen([sys.executable, "-c", script, str(far.fileno()), how], pass_fds=[far.fileno()])
    socket.send_fds(near, [b"x"], [listener.fileno()])
    return near, child


if len(sys.argv) > 1:
    near, child = start(KEEPER, "")
    back = socket.recv_fds(near, 1, 1)[1][0]
    print("passed on", flush=True)
    near.recv(1)
for how in ["select by recvmsg", "poll by recvmsg", "select by recvmmsg", "poll by recvmmsg"]:
    client = socket.create_connection(listener.getsockname(), timeout=10)
    client.sendall(b"hello ")
    near, child = start(SERVER, how)
    print(client.recv(100) + client.recv(100))
    assert child.wait() == 0
