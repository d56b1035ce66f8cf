# A peer without a TCP: it writes the segments itself, brings a connection of utcp into each state and resets it there.
# Arguments: interface, our address (not the kernel's), the other's MAC, address and port. Prints a line per state.
import random, socket, struct, sys, time

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
interface, ours, mac, theirs, service = sys.argv[1:5] + [int(sys.argv[5])]
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
wire.bind((interface, 0))
own_mac = wire.getsockname()[4]
source, target = socket.inet_aton(ours), socket.inet_aton(theirs)


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Connection:
    def __init__(self, local, remote):
        self.local, self.remote = local, remote
        self.seq, self.ack = random.getrandbits(32), 0

    def send(self, flags, data=b"", seq=None, ack=None):
        seq = self.seq if seq is None else seq
        ack = (self.ack if ack is None else ack) if flags & ACK else 0
        tcp = struct.pack("!HHIIBBHHH", self.local, self.remote, seq & 0xFFFFFFFF, ack, 80, flags, 60000, 0, 0) + data
        pseudo = source + target + struct.pack("!HH", 6, len(tcp))
        tcp = tcp[:16] + struct.pack("!H", checksum(pseudo + tcp)) + tcp[18:]
        ip = struct.pack("!BBHHHBBH4s4s", 69, 0, 20 + len(tcp), 0, 0, 64, 6, 0, source, target)
        ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
        wire.send(bytes.fromhex(mac.replace(":", "")) + own_mac + b"\x08\x00" + ip + tcp)

    def next(self, what, wanted, seconds=5):
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            wire.settimeout(left)
            try:
                frame = wire.recv(65536)
            except TimeoutError:
                break
            ip = frame[14:]
            if ip[9] != 6 or ip[12:16] != target or ip[16:20] != source:
                continue
            tcp = ip[(ip[0] & 15) * 4 :]
            sport, dport, seq, ack, offset, flags = struct.unpack("!HHIIBB", tcp[:14])
            if (sport, dport) == (self.remote, self.local) and wanted(flags):
                return seq, ack
        raise SystemExit(f"no {what} came")

    def handshake(self):
        self.send(SYN)
        self.seq += 1
        seq, _ = self.next("SYN-ACK", lambda flags: flags & (SYN | ACK) == SYN | ACK)
        self.ack = (seq + 1) & 0xFFFFFFFF
        return self

    def established(self, command):
        self.handshake().send(ACK)
        self.send(ACK | PSH, command)
        self.seq += len(command)
        if command == b"s":
            self.fin_at, _ = self.next("FIN", lambda flags: flags & FIN)
        else:
            self.next("ACK", lambda flags: flags & ACK and not flags & SYN)
        return self

    def take_fin(self):
        self.ack = (self.fin_at + 1) & 0xFFFFFFFF
        self.send(ACK)
        return self

    def give_fin(self):
        self.send(FIN | ACK)
        self.seq += 1
        self.next("ACK of our FIN", lambda flags: flags & ACK)
        return self


def last_ack():
    connection = Connection(port(), service).established(b"l")
    connection.send(FIN | ACK)
    connection.seq += 1
    connection.next("FIN of a program that closed", lambda flags: flags & FIN)
    return connection


def port():
    return random.randrange(10_000, 60_000)


def new(command):
    return Connection(port(), service).established(command)


STATES = {
    "SYN-RECEIVED": lambda: Connection(port(), service).handshake(),
    "ESTABLISHED": lambda: new(b"e"),
    "FIN-WAIT-1": lambda: new(b"s"),
    "FIN-WAIT-2": lambda: new(b"s").take_fin(),
    "CLOSING": lambda: new(b"s").give_fin(),
    "CLOSE-WAIT": lambda: new(b"e").give_fin(),
    "LAST-ACK": last_ack,
}
for name, reach in STATES.items():
    connection = reach()
    # RFC 5961 §3.2: in the window but not exact: a challenge, and the connection lives.
    connection.send(RST, seq=connection.seq + 1)
    connection.next(f"challenge in {name}", lambda flags: flags & ACK and not flags & RST)
    # Out of the window: nothing at all.
    connection.send(RST, seq=connection.seq - 100_000)
    connection.send(RST)
    # Nothing stands there any more: whoever asks is reset.
    connection.send(ACK | PSH, b"?")
    connection.next(f"reset after {name}", lambda flags: flags & RST)
    print(name, flush=True)

# TIME-WAIT is not cut short by a reset (RFC 1337): the last FIN is still acknowledged.
connection = new(b"s").take_fin().give_fin()
connection.send(RST)
connection.send(FIN | ACK, seq=connection.seq - 1)
connection.next("ACK of the FIN that was repeated", lambda flags: flags & ACK and not flags & RST)
print("TIME-WAIT", flush=True)

# SYN-SENT: somebody connects to us. Resets that acknowledge nothing, or something else, don't count.
print("connect now", flush=True)
waiting = Connection(4_000, 0)
deadline = time.monotonic() + 10
while time.monotonic() < deadline:
    ip = wire.recv(65536)[14:]
    tcp = ip[(ip[0] & 15) * 4 :]
    if ip[9] == 6 and ip[12:16] == target and tcp[2:4] == struct.pack("!H", 4_000):
        waiting.remote, seq = struct.unpack("!H", tcp[:2])[0], struct.unpack("!I", tcp[4:8])[0]
        break
waiting.send(RST, seq=0)
waiting.send(RST | ACK, seq=0, ack=(seq + 2) & 0xFFFFFFFF)
waiting.next("SYN again", lambda flags: flags & SYN)
waiting.send(RST | ACK, seq=0, ack=(seq + 1) & 0xFFFFFFFF)
print("SYN-SENT", flush=True)
