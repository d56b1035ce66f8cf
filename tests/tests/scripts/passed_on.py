"""A listener on which this program has slept in `accept` goes to others, by exec and by SCM_RIGHTS, with the library and without."""
import os, socket, subprocess, sys, threading, time

ASK = """import socket, sys
s = socket.create_connection(('127.0.0.1', int(sys.argv[1])), 10)
s.settimeout(10)
print(s.recv(9).decode())"""
TAKE = """import socket, sys
way = socket.socket(fileno=int(sys.argv[1]))
s = socket.socket(fileno=socket.recv_fds(way, 1, 1)[1][0]) if sys.argv[2] == 'sent' else way
print('takes', flush=True)
s.accept()[0].sendall(b'child')"""

port = int(sys.argv[1])
server = socket.create_server(('127.0.0.1', port))
plain = {**os.environ, 'LD_PRELOAD': '', 'UTCP_DISABLE': '1'}


def start(script, *arguments, **more):
    return subprocess.Popen([sys.executable, '-c', script, *arguments], stdout=subprocess.PIPE, text=True, **more)


def taker(how, env):
    near, far = socket.socketpair()
    fd = far.fileno() if how == 'sent' else server.fileno()
    child = start(TAKE, str(fd), how, pass_fds=[fd], env=env)
    if how == 'sent':
        socket.send_fds(near, [b'x'], [server.fileno()])
    assert child.stdout.readline() == 'takes\n'
    time.sleep(0.3)  # It sleeps in accept, or has failed.
    return child


for how in ['exec', 'sent']:
    for env in [plain, dict(os.environ)]:
        sleeper = threading.Thread(target=lambda: server.accept()[0].sendall(b'parent'))
        sleeper.start()
        time.sleep(0.1)
        client = start(ASK, str(port), env=plain)
        sleeper.join()
        print(how, client.communicate()[0].strip())
        child = taker(how, env)
        print(how, start(ASK, str(port), env=plain).communicate()[0].strip(), child.wait())
