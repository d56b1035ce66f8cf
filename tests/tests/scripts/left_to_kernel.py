"""Connections to a listener that the kernel takes over while others go on.

left_to_kernel.py serve HOW ADDRESS PORT: serves; after the first connection's word the listener becomes the kernel's, HOW
(group: a BPF program chooses; option: its filter is the kernel's to run; spawn: a program that can't have the library inherits it).
left_to_kernel.py ask ADDRESS PORT: what a client sees before and after.
"""

import ctypes
import os
import socket
import struct
import subprocess
import sys


def serve(how, address, port, program=None):
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    server.bind((address, int(port)))
    server.listen(64)
    print("listens", flush=True)
    first, _ = server.accept()
    assert first.recv(3) == b"now"
    # Always the first of the group, or all that comes: ret #0, ret #-1.
    number, answer = {"group": (51, 0), "option": (26, 0xFFFFFFFF), "spawn": (0, 0)}[how]
    code = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, answer))
    if how == "spawn":
        child = subprocess.Popen([program, "read", "0"], stdin=subprocess.DEVNULL, pass_fds=[server.fileno()])
        child.wait()
    else:
        server.setsockopt(socket.SOL_SOCKET, number, struct.pack("HxxxxxxP", 1, ctypes.addressof(code)))
    first.sendall(b"done")
    for word in [b"second", b"third"]:
        connection, _ = server.accept()
        connection.sendall(word)
        connection.close()
    assert first.recv(5) == b"still"
    first.sendall(b"there")


def ask(address, port):
    def connect():
        return socket.create_connection((address, int(port)), timeout=20)

    first = connect()
    first.sendall(b"now")
    print(first.recv(100))
    for _ in range(2):
        print(connect().recv(100))
    first.sendall(b"still")
    print(first.recv(100), first.recv(100))


{"serve": serve, "ask": ask}[sys.argv[1]](*sys.argv[2:])
