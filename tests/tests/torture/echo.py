"""Echo servers of every kind, and clients that do everything at random; each byte is checked.

Usage: echo.py SECONDS SEED. Clients use both families. Ends with 1 and a line for each failure, which names the kind of the
server and how far it had come.
"""
import asyncio, os, random, select, signal, socket, struct, sys, threading, time

PATIENCE = 10  # seconds without a byte that count as a hang
IN, OUT = select.EPOLLIN, select.EPOLLOUT
GONE = (ConnectionResetError, BrokenPipeError)


def next_connection(listener):
    connection, _ = listener.accept()
    connection.setblocking(True)
    return connection


def echo(connection):
    """To the end of what comes, by blocking calls."""
    try:
        while data := connection.recv(random.choice([1, 10, 1000, 65536])):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # The client's choice: some reset the connection.
    connection.close()


def threads(listener):
    while True:
        threading.Thread(target=echo, args=(next_connection(listener),), daemon=True).start()


def fork(listener):
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection = next_connection(listener)
        if os.fork() == 0:
            listener.close()
            echo(connection)
            os._exit(0)
        connection.close()


class Events:
    """A loop over readiness: kind is select, poll, epoll or edge."""

    FULL = 200_000  # bytes that wait for a client that doesn't read

    def __init__(self, listener, kind):
        listener.setblocking(False)
        self.listener, self.kind, self.open = listener, kind, {}
        if kind == "poll":
            self.set = select.poll()
            self.set.register(listener, IN)
        elif kind != "select":
            self.set = select.epoll()
            self.set.register(listener, IN | select.EPOLLEXCLUSIVE)

    def ready(self):
        if self.kind != "select":
            return {fd for fd, _ in self.set.poll()}
        reads = [c for c, waiting, ended in self.open.values() if not ended and len(waiting) < self.FULL]
        writes = [c for c, waiting, _ in self.open.values() if waiting]
        reads, writes, _ = select.select([self.listener, *reads], writes, [])
        return {c.fileno() for c in reads + writes}

    def accept(self):
        try:
            connection, _ = self.listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        connection.setblocking(False)
        self.open[connection.fileno()] = [connection, bytearray(), False]
        if self.kind == "edge":
            self.set.register(connection, IN | OUT | select.EPOLLET)
        elif self.kind != "select":
            self.set.register(connection, IN)
        self.step(connection.fileno())

    def step(self, fd):
        state = self.open[fd]
        connection, waiting, _ = state
        moved = True
        try:
            while moved:
                moved = self.read(state) | self.write(state)
                if self.kind != "edge":
                    break
        except GONE:
            return self.drop(fd)
        if state[2] and not waiting:
            return self.drop(fd)
        if self.kind in ("poll", "epoll"):
            wants_more = not state[2] and len(waiting) < self.FULL
            self.set.modify(connection, (IN if wants_more else 0) | (OUT if waiting else 0))

    def read(self, state):
        connection, waiting, ended = state
        if ended or len(waiting) >= self.FULL:
            return False
        try:
            data = connection.recv(random.choice([100, 65536]))
        except BlockingIOError:
            return False
        waiting += data
        state[2] = not data
        return True

    def write(self, state):
        connection, waiting, _ = state
        try:
            sent = connection.send(waiting[: random.choice([10, 100_000])]) if waiting else 0
        except BlockingIOError:
            return False
        del waiting[:sent]
        return sent > 0

    def drop(self, fd):
        connection, _, _ = self.open.pop(fd)
        if self.kind != "select":
            self.set.unregister(fd)
        connection.close()

    def run(self):
        while True:
            for fd in self.ready():
                if fd == self.listener.fileno():
                    self.accept()
                elif fd in self.open:
                    self.step(fd)


async def coroutines(listener):
    async def serve(reader, writer):
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except GONE:
            pass
        writer.close()

    server = await asyncio.start_server(serve, sock=listener)
    await server.serve_forever()


SERVERS = {
    "threads": threads,
    "fork": fork,
    "select": lambda listener: Events(listener, "select").run(),
    "poll": lambda listener: Events(listener, "poll").run(),
    "epoll": lambda listener: Events(listener, "epoll").run(),
    "edge": lambda listener: Events(listener, "edge").run(),
    "asyncio": lambda listener: asyncio.run(coroutines(listener)),
}


class Client:
    """One process that makes connections one after another."""

    def __init__(self, seed, addresses, ports):
        self.random, self.addresses, self.ports = random.Random(seed), addresses, ports

    def run(self, end):
        done = 0
        while time.time() < end:
            kind, port = self.random.choice(self.ports)
            try:
                self.connection(port)
            except Exception as error:
                print(f"{kind}, connection {done}: {type(error).__name__} {error}", flush=True)
                return 1
            done += 1
        print(f"{done} connections", flush=True)
        return 0

    def connection(self, port):
        chance = self.random
        data = chance.randbytes(chance.choice([0, 1, 5, 100, 5000, 70_000, 300_000, 2_000_000]))
        address = chance.choice(self.addresses)
        it = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        it.settimeout(PATIENCE)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            if chance.random() < 0.2:
                it.setsockopt(socket.SOL_SOCKET, option, chance.choice([1, 5000, 60_000]))
        it.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, chance.random() < 0.3)
        it.connect((address, port))
        way = chance.random()
        if way < 0.06:
            pass  # A connection without a byte.
        elif way < 0.12:
            it.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            it.send(b"reset follows")
        elif way < 0.16:
            it.send(data[:1000])
        else:
            if way < 0.3:
                copy = it.dup()
                it.close()
                it = copy
                it.settimeout(PATIENCE)
            self.exchange(it, data)
        it.close()

    def exchange(self, it, data):
        """Sends and reads at the same time, as two threads."""
        got, failures = bytearray(), []

        def read():
            chance = random.Random(len(data))
            try:
                while True:
                    if chance.random() < 0.1:
                        it.recv(100, socket.MSG_PEEK)
                    piece = it.recv(chance.choice([1, 100, 10_000, 200_000]))
                    if not piece:
                        return
                    got.extend(piece)
            except OSError as error:
                failures.append(error)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        sent = 0
        where = lambda: f"{it.getsockname()}: {len(data)} bytes, {sent} sent, {len(got)} back"
        try:
            while sent < len(data):
                size = self.random.choice([1 if len(data) <= 5000 else 777, 1000, 50_000, 1_000_000])
                piece = data[sent : sent + size]
                if self.random.random() < 0.3:
                    sent += it.sendmsg([piece[: size // 2], piece[size // 2 :]])
                else:
                    sent += it.send(piece)
                if self.random.random() < 0.01:
                    time.sleep(self.random.random() * 0.02)
        except OSError as error:
            raise Exception(f"{error} while sending, {where()}")
        it.shutdown(socket.SHUT_WR)
        reader.join(3 * PATIENCE)
        if failures or reader.is_alive():
            raise Exception(f"{failures or 'no end'} while reading, {where()}")
        if got != data:
            raise Exception(f"other bytes, {where()}")


def start(work):
    pid = os.fork()
    if pid == 0:
        os._exit(work() or 0)
    return pid


def main():
    seconds, seed = float(sys.argv[1]), int(sys.argv[2])
    ports, servers = [], []
    for kind, serve in SERVERS.items():
        listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
        ports.append((kind, listener.getsockname()[1]))
        for _ in range(2):
            servers.append(start(lambda: serve(listener)))
        listener.close()
    end = time.time() + seconds
    clients = [Client(seed * 1000 + n, ["127.0.0.1", "::1"], ports) for n in range(6)]
    running = [start(lambda: client.run(end)) for client in clients]
    failed = [pid for pid in running if os.waitpid(pid, 0)[1] != 0]
    for pid in servers:
        os.kill(pid, signal.SIGKILL)
    sys.exit(1 if failed else 0)


main()
