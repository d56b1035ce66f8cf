"""An echo server; whatever befalls one connection is that connection's alone."""
import selectors
import socket
import sys

ready = selectors.DefaultSelector()
server = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024)
server.setblocking(False)
ready.register(server, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in ready.select():
        try:
            if key.fileobj is server:
                connection = server.accept()[0]
                connection.setblocking(False)
                ready.register(connection, selectors.EVENT_READ)
                continue
            data = key.fileobj.recv(65536)
            if data:
                key.fileobj.send(data)
                continue
        except BlockingIOError:
            continue
        except OSError:
            pass
        if key.fileobj is not server:
            ready.unregister(key.fileobj)
            key.fileobj.close()
