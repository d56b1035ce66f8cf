"""In which order an epoll set reports what came while its program did something else.

serve ADDR PORT: prints the rounds in which the order was another.
send ADDR PORT [S]: each round sends over connections, ends one and makes one, in a random order, with so many seconds between.
"""

import random
import select
import socket
import sys
import time

ROUNDS, CONNECTIONS = 60, 20
role, addr, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
pause = float(sys.argv[4]) if len(sys.argv) > 4 else 0


def serve():
    listener = socket.create_server((addr, port))
    control, _ = listener.accept()
    connections = {name: listener.accept()[0] for name in range(CONNECTIONS)}
    loop = select.epoll()
    loop.register(listener, select.EPOLLIN)
    names = {listener.fileno(): "new"}
    for name, connection in connections.items():
        names[connection.fileno()] = name
        loop.register(connection, select.EPOLLIN)
    wrong = []
    control.send(b"next")
    while (line := control.recv(1000)) != b"end":
        sent = [word if word == "new" else int(word) for word in line.decode().split()]
        seen = []
        # Until all of it is there. Nothing is taken, so each look reports everything.
        while len(seen) < len(sent):
            seen = [names[number] for number, _ in loop.poll(0.1)]
        if seen != sent:
            wrong.append((sent, seen))
        for name in seen:
            if name == "new":
                new, _ = listener.accept()
            elif not connections[name].recv(10):
                ended = name
                del names[connections[name].fileno()]
                loop.unregister(connections[name])
                connections[name].close()
        connections[ended] = new
        names[new.fileno()] = ended
        loop.register(new, select.EPOLLIN)
        control.send(b"next")
    print(wrong)


def send():
    def connect():
        connection = socket.create_connection((addr, port))
        # Nagle's algorithm would make some wait for an acknowledgement.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    control, connections = connect(), [connect() for _ in range(CONNECTIONS)]
    control.recv(10)
    for number in range(ROUNDS):
        random.seed(number)
        names = random.sample(range(CONNECTIONS), random.randrange(3, CONNECTIONS))
        ended = names[0]
        names.append("new")
        random.shuffle(names)
        for name in names:
            time.sleep(pause)
            if name == "new":
                new = connect()
            elif name == ended:
                connections[name].shutdown(socket.SHUT_WR)
            else:
                connections[name].send(b"x")
        control.send(" ".join(map(str, names)).encode())
        control.recv(10)
        connections[ended].close()
        connections[ended] = new
    control.send(b"end")


{"serve": serve, "send": send}[role]()
