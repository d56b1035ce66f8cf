"""Starts a program that utcp can't follow into, on a connection or a listener that it goes on to hold itself.

alone.py PROGRAM: for each way to start it, what the other end of the connection saw.
"""

import os
import socket
import subprocess
import sys
import time

program = sys.argv[1]


def forked(arguments, number):
    child = os.fork()
    if child == 0:
        os.set_inheritable(number, True)
        os.execv(program, arguments)
    return child


def spawned(arguments, number):
    os.set_inheritable(number, True)
    child = os.posix_spawn(program, arguments, os.environ)
    os.set_inheritable(number, False)
    return child


def searched(arguments, number):
    child = os.fork()
    if child == 0:
        os.set_inheritable(number, True)
        os.environ["PATH"] = "/nowhere:" + os.path.dirname(program)
        os.execvp(os.path.basename(program), arguments)
    return child


def subprocessed(arguments, number):
    return subprocess.Popen(arguments, pass_fds=[number]).pid


def end(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


for start in [forked, spawned, searched, subprocessed]:
    listener = socket.create_server(("127.0.0.1", 0))
    near = socket.create_connection(listener.getsockname())
    far, _ = listener.accept()
    near.settimeout(20)
    near.send(b"early ")
    child = start([program, "read", str(far.fileno())], far.fileno())
    got = b""
    near.send(b"late")
    while len(got) < 10:
        got += near.recv(100)
    # Who started it has it, too.
    far.send(b" more")
    while len(got) < 15:
        got += near.recv(100)
    far.close()
    near.shutdown(socket.SHUT_WR)
    print(start.__name__, got, near.recv(100), end(child), flush=True)

    child = start([program, "accept", str(listener.fileno())], listener.fileno())
    # A connection that waits before it begins is reset: only its starter could have had it.
    while os.readlink(f"/proc/{child}/exe") != program:
        time.sleep(0.001)
    near = socket.create_connection(listener.getsockname(), timeout=20)
    near.send(b"hello")
    got = near.recv(100)
    near.shutdown(socket.SHUT_WR)
    print(start.__name__, got, near.recv(100), end(child), flush=True)
