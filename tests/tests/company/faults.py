# Pointers that lead nowhere and lengths that can't be, in calls that are not about utcp at all, before and after the first socket of a
# program: errors of the kernel's, never a fault.
import ctypes, os, socket

libc = ctypes.CDLL(None, use_errno=True)
NOWHERE = ctypes.c_void_p(2**64 - 1)


class Header(ctypes.Structure):
    _fields_ = [("name", ctypes.c_void_p), ("namelen", ctypes.c_int), ("iov", ctypes.c_void_p), ("iovlen", ctypes.c_size_t),
                ("control", ctypes.c_void_p), ("controllen", ctypes.c_size_t), ("flags", ctypes.c_int)]


def tell(what, result):
    print(what, result, os.strerror(ctypes.get_errno()) if result < 0 else "")


def waits(when):
    time = ctypes.create_string_buffer(16)
    tell(when + " poll", libc.poll(NOWHERE, 1, 0))
    tell(when + " ppoll", libc.ppoll(NOWHERE, 1, time, None))
    for at in range(3):
        sets = [NOWHERE if n == at else None for n in range(3)]
        tell(when + " select", libc.select(4, *sets, time))
        tell(when + " pselect", libc.pselect(4, *sets, time, None))
    tell(when + " select by number", libc.syscall(23, 4, None, None, None, NOWHERE))


def messages(when, number):
    byte = ctypes.create_string_buffer(b"x")
    vector = (ctypes.c_uint64 * 2)(ctypes.addressof(byte), 1)
    whole = Header(None, 0, ctypes.addressof(vector), 1, None, 0, 0)
    for control, length in [(NOWHERE.value, 24), (ctypes.addressof(byte), 2**62), (NOWHERE.value, 2**62)]:
        whole.control, whole.controllen = control, length
        tell(when + " sendmsg", libc.sendmsg(number, ctypes.byref(whole), 0))
    tell(when + " sendmsg", libc.sendmsg(number, NOWHERE, 0))


waits("before")
pair = socket.socketpair()
messages("before", pair[0].fileno())
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
accepted, _ = server.accept()
waits("after")
messages("after", pair[0].fileno())

client.send(b"abcdef")
place, length, room = ctypes.create_string_buffer(64), ctypes.c_int(-1), ctypes.create_string_buffer(16)
tell("recvfrom", libc.recvfrom(accepted.fileno(), place, 2, socket.MSG_WAITALL, room, ctypes.byref(length)))
length.value = 16
tell("recvfrom", libc.recvfrom(accepted.fileno(), place, 2, socket.MSG_WAITALL, room, ctypes.byref(length)))
print(place.value, length.value)
vector = (ctypes.c_uint64 * 2)(ctypes.addressof(place), 2)
whole = Header(ctypes.addressof(room), -1, ctypes.addressof(vector), 1, None, 0, 0)
tell("recvmsg", libc.recvmsg(accepted.fileno(), ctypes.byref(whole), 0))
tell("sendmsg", libc.sendmsg(accepted.fileno(), ctypes.byref(whole), 0))
whole.name = None
tell("recvmsg", libc.recvmsg(accepted.fileno(), ctypes.byref(whole), 0))
print(place.value)
