"""Starts a program that utcp can't follow into, on a connection or a listener that it goes on to hold itself.

alone.py PROGRAM...: for each of them and each way to start it, what the other end of the connection saw.
"""

import itertools
import os
import socket
import subprocess
import sys
import time



def forked(arguments, *numbers):
    child = os.fork()
    if child == 0:
        inherit(numbers)
        os.execv(program, arguments)
    return child


def spawned(arguments, *numbers):
    inherit(numbers)
    child = os.posix_spawn(program, arguments, os.environ)
    inherit(numbers, False)
    return child


def searched(arguments, *numbers):
    child = os.fork()
    if child == 0:
        inherit(numbers)
        os.environ["PATH"] = "/nowhere:" + os.path.dirname(program)
        os.execvp(os.path.basename(program), arguments)
    return child


def subprocessed(arguments, *numbers):
    return subprocess.Popen(arguments, pass_fds=numbers).pid


def inherit(numbers, yes=True):
    for number in numbers:
        os.set_inheritable(number, yes)


def end(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


for program, start in itertools.product(sys.argv[1:], [forked, spawned, searched, subprocessed]):
    listener = socket.create_server(("127.0.0.1", 0))
    near = socket.create_connection(listener.getsockname())
    far, _ = listener.accept()
    near.settimeout(20)
    near.send(b"early ")
    # One that waits for its starter to accept it, who has the listener, too.
    waiting = socket.create_connection(listener.getsockname(), timeout=20)
    waiting.send(b"patient")
    child = start([program, "read", str(far.fileno())], far.fileno(), listener.fileno())
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
    accepted, _ = listener.accept()
    accepted.send(accepted.recv(100).upper())
    print(waiting.recv(100))

    listener = socket.create_server(("127.0.0.1", 0))
    child = start([program, "accept", str(listener.fileno())], listener.fileno())
    # A connection that waits before it begins is its starter's.
    while os.readlink(f"/proc/{child}/exe") != program:
        time.sleep(0.001)
    near = socket.create_connection(listener.getsockname(), timeout=20)
    near.send(b"hello")
    got = near.recv(100)
    near.shutdown(socket.SHUT_WR)
    print(start.__name__, got, near.recv(100), end(child), flush=True)
