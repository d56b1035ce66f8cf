"""Exchanges with the echo server until it's told to end; every byte is looked at."""
import signal
import socket
import sys

over = False


def end(*_):
    global over
    over = True


signal.signal(signal.SIGUSR1, end)
connections = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(4)]
for connection in connections:
    connection.settimeout(20)
print("ready", flush=True)
rounds = 0
while not over:
    for number, connection in enumerate(connections):
        message = f"{rounds}-{number}-".encode() * 40
        connection.sendall(message)
        got = b""
        while len(got) < len(message):
            part = connection.recv(65536)
            assert part, f"{connection} was closed"
            got += part
        assert got == message, (got, message)
    if rounds % 16 == 0:
        connections[rounds // 16 % 4].close()
        connections[rounds // 16 % 4] = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
        connections[rounds // 16 % 4].settimeout(20)
    rounds += 1
print("rounds", rounds, flush=True)
