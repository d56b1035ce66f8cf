//! Living beside the kernel on its own addresses: what is not ours reaches it, whatever we are doing; ports are taken and
//! given back as between any two programs.

use std::time::Duration;

use utcp_tests::nginx::Nginx;
use utcp_tests::{Engine, Host, Lab, Net, WAIT, ip, is_root, not_run, on_kernel, release_file, wait_until};

macro_rules! needs_root {
    () => {
        if !is_root() {
            return not_run("needs root for network namespaces");
        }
    };
}

fn on_device<'l>(lab: &'l Lab, host: &Host) -> Engine<'l> {
    Engine::new(lab).inside(host).set("UTCP_DEVICE", format!("xdp:{}", host.interface))
}

/// The kernel's side: echoes datagrams by address, group and broadcast, and counts frames with a VLAN tag.
fn kernel_services(host: &Host, port: u16) -> String {
    format!(
        "import ctypes, selectors, socket, struct
index = socket.if_nametoindex('{interface}')
def udp(family, addr, port):
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind((addr, port))
    return s
v4 = udp(socket.AF_INET, '', {port})
v4.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton('239.7.7.7') + socket.inet_aton('{addr}'))
v6 = udp(socket.AF_INET6, '::', {port})
v6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, socket.inet_pton(socket.AF_INET6, 'ff02::777') + struct.pack('@I', index))
dhcp = udp(socket.AF_INET, '', 67)
tagged = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
# Frames with a tag alone (SKF_AD_VLAN_TAG_PRESENT): the load's would fill the socket.
code = ((0x20, 0, 0, 0xfffff030), (0x15, 1, 0, 0), (0x06, 0, 0, 65536), (0x06, 0, 0, 0))
code = ctypes.create_string_buffer(b''.join(struct.pack('@HBBI', *step) for step in code))
tagged.setsockopt(socket.SOL_SOCKET, 26, struct.pack('@HP', 4, ctypes.addressof(code)))  # SO_ATTACH_FILTER
tagged.setsockopt(263, 8, 1)  # PACKET_AUXDATA: the tag stands beside the frame.
tagged.bind(('{interface}', 3))
poll = selectors.DefaultSelector()
for s in (v4, v6, dhcp, tagged): poll.register(s, selectors.EVENT_READ)
print('ready', flush=True)
seen = 0
while True:
    for key, _ in poll.select():
        s = key.fileobj
        if s is tagged:
            frame, more, _, _ = s.recvmsg(2048, 256)
            tag = [struct.unpack('@IIIHHHH', data)[5] for _, kind, data in more if kind == 8]
            if frame.endswith(b'tagged frame') and (tag == [5] or frame[12:16] == b'\\x81\\x00\\x00\\x05'):
                seen += 1
                v4.sendto(b'%d' % seen, ('{client}', {port}))
        else:
            data, peer = s.recvfrom(65536)
            s.sendto(data, peer)",
        interface = host.interface,
        addr = host.addr,
        client = "10.77.0.2",
    )
}

/// A kernel client of all of that: how many of each kind were answered.
fn kernel_client(server: &Host, client: &Host, port: u16) -> String {
    format!(
        "import os, socket, struct, subprocess
index = socket.if_nametoindex('{interface}')
def sender(family, port=0):
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    if family == socket.AF_INET:
        s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton('{own}'))
    s.bind(('', port))
    s.settimeout(5)
    return s
def echo(name, family, to, size, count, window=16):
    s, sent, got = sender(family), 0, set()
    while len(got) < count:
        while sent < count and sent - len(got) < window:
            s.sendto(struct.pack('!I', sent) + bytes(size - 4), to)
            sent += 1
        try: got.add(s.recv(65536)[:4])
        except TimeoutError: break
    print(name, len(got))
def ping(name, family, proto, kind, addr, size, count):
    s = socket.socket(family, socket.SOCK_RAW, proto)
    s.settimeout(5)
    got = 0
    for n in range(count):
        body = struct.pack('!HH', os.getpid() & 0xffff, n) + bytes(size)
        total = kind * 256 + sum(struct.unpack('!%dH' % (len(body) // 2), body))
        while total >> 16: total = (total & 0xffff) + (total >> 16)
        # The kernel sums ICMPv6 itself.
        s.sendto(struct.pack('!BBH', kind, 0, ~total & 0xffff) + body, (addr, 0))
        answer = b''
        try:
            while not answer.endswith(body): answer = s.recv(65536)
            got += 1
        except TimeoutError: break
    print(name, got)
v4, v6 = socket.AF_INET, socket.AF_INET6
echo('udp', v4, ('{addr}', {port}), 64, 20000)
echo('udp6', v6, ('{addr6}', {port}), 64, 5000)
echo('fragments', v4, ('{addr}', {port}), 8000, 500, 2)
echo('fragments6', v6, ('{addr6}', {port}), 8000, 500, 2)
echo('multicast', v4, ('239.7.7.7', {port}), 64, 200)
echo('multicast6', v6, ('ff02::777', {port}, 0, index), 64, 200)
echo('dhcp', v4, ('10.77.0.255', 67), 300, 200)
ping('icmp', v4, socket.IPPROTO_ICMP, 8, '{addr}', 56, 500)
ping('icmp in fragments', v4, socket.IPPROTO_ICMP, 8, '{addr}', 4000, 100)
ping('icmp6', v6, socket.IPPROTO_ICMPV6, 128, '{addr6}', 56, 500)
found = 0
for n in range(20):
    # Not flushed: that goes on until there is none, and the load beside it makes it anew at once. One that is gone can't be deleted.
    for known in ('{addr}', '{addr6}'):
        subprocess.run(['ip', 'neigh', 'del', known, 'dev', '{interface}'], stderr=subprocess.DEVNULL)
    s = sender(v4); s.sendto(b'a', ('{addr}', {port})); found += s.recv(9) == b'a'
    s = sender(v6); s.sendto(b'b', ('{addr6}', {port})); found += s.recv(9) == b'b'
print('arp and nd', found)
told, raw = sender(v4, {port}), socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
raw.bind(('{interface}', 0))
peer = bytes.fromhex(open('/sys/class/net/{interface}/address').read().replace(':', ''))
# A SYN to the very port that is served, but in VLAN 5.
ip = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 52, 0, 0, 64, 6, 0, socket.inet_aton('{own}'), socket.inet_aton('{addr}'))
tcp = struct.pack('!HHIIBBHHH', 4000, {port}, 1, 0, 0x50, 2, 1000, 0, 0)
frame = b'\\xff' * 6 + peer + b'\\x81\\x00\\x00\\x05\\x08\\x00' + ip + tcp + b'tagged frame'
for n in range(50):
    raw.send(frame)
    answer = told.recv(9)
print('vlan', int(answer))",
        interface = client.interface,
        own = client.addr,
        addr = server.addr,
        addr6 = server.addr6,
    )
}

/// While utcp serves a load on the address, everything else there is the kernel's: datagrams at a high rate, pings, fragments,
/// groups, broadcasts (DHCP), ARP and neighbour discovery, tagged frames.
#[test]
fn what_is_not_ours_reaches_the_kernel() {
    needs_root!();
    let (lab, net) = (Lab::new("neighbourhood"), Net::new());
    let engine = on_device(&lab, &net.server).run();
    let nginx = Nginx::start(&lab, &engine);
    // The very number that is served, by another protocol.
    let port = nginx.port;
    let mut services = lab.python(&kernel_services(&net.server, port)).inside(&net.server).spawn();
    services.wait_for_output("ready");
    let url = format!("http://{}:{}/hello", net.server.addr, nginx.port);
    let wrk = lab.run("wrk").args(["-t1", "-c10", "-d6s", &url]).inside(&net.client).spawn();
    let script = kernel_client(&net.server, &net.client, port);
    // `ip netns exec` brings the namespace's own /sys.
    let client = lab.run("ip").args(["netns", "exec", net.client.namespace(), "python3", "-c", &script]);
    let answered = client.limit(Duration::from_secs(60)).ok().text();
    let want = "udp 20000\nudp6 5000\nfragments 500\nfragments6 500\nmulticast 200\n\
                multicast6 200\ndhcp 200\nicmp 500\nicmp in fragments 100\nicmp6 500\narp and nd 40\nvlan 50\n";
    assert_eq!(answered, want);
    let report = wrk.finish().ok().text();
    assert!(!report.contains("Socket errors"), "{report}");
    engine.went_through(10);
    let counters = engine.counters();
    assert_eq!(
        (counters.get("dropped_frames"), counters.get("dropped_fragments")),
        (0, 0),
        "theirs came to us"
    );
}

/// `bind` and `listen` with these options, then waits; prints how it went.
fn take(port: u16, options: &str, listen: bool) -> String {
    format!(
        "import errno, socket, time
s = socket.socket()
for option in ({options}): s.setsockopt(socket.SOL_SOCKET, option, 1)
try:
    s.bind(('', {port}))
    if {listen}: s.listen()
    print('taken', flush=True)
    time.sleep(60)
except OSError as error:
    print(errno.errorcode[error.errno], flush=True)",
        listen = if listen { "True" } else { "False" }
    )
}

/// Two programs and one port, under utcp or on the kernel: the kernel's rules, in every order.
#[test]
fn a_port_is_taken_once() {
    needs_root!();
    let (lab, net) = (Lab::new("port-once"), Net::new());
    let engine = on_device(&lab, &net.server).run();
    let reuse_port = "socket.SO_REUSEPORT,";
    let reuse_addr = "socket.SO_REUSEADDR,";
    for (options, listen, second) in [
        ("", true, "EADDRINUSE"),
        ("", false, "EADDRINUSE"),
        (reuse_addr, true, "EADDRINUSE"),
        (reuse_addr, false, "taken"),
        (reuse_port, true, "taken"),
    ] {
        for ours in [[true, false], [false, true], [true, true]] {
            let port = lab.port();
            let start = |under: bool| {
                let run = lab.python(&take(port, options, listen));
                let run = if under { run.under(&engine) } else { run.inside(&net.server) }.spawn();
                let mut said = String::new();
                wait_until("it tells how it went", WAIT, || {
                    said = run.stdout().trim().to_owned();
                    (!said.is_empty()).then_some(())
                });
                (run, said)
            };
            let words = format!("options ({options}), listen {listen}, under utcp {ours:?}");
            let (_first, said) = start(ours[0]);
            assert_eq!(said, "taken", "the first, {words}");
            let (_second, said) = start(ours[1]);
            assert_eq!(said, second, "the second, {words}");
        }
    }
}

/// A server and its connection are killed: the kernel has the port at once, and serves there.
#[test]
fn a_dead_programs_ports_are_the_kernels() {
    needs_root!();
    let (lab, net) = (Lab::new("dead-ports"), Net::new());
    let engine = on_device(&lab, &net.server).run();
    let port = lab.port();
    let serve = |word: &str| {
        format!(
            "import socket
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('', {port}))
s.listen()
print('listens', flush=True)
while True:
    c, _ = s.accept()
    c.sendall(b'{word}')
    c.recv(1)"
        )
    };
    let hear = format!(
        "import socket
s = socket.create_connection(('{}', {port}), 5)
print(s.recv(100).decode())",
        net.server.addr
    );
    for round in 0..5 {
        let mut ours = lab.python(&serve("ours")).under(&engine).spawn();
        ours.wait_for_output("listens");
        engine.wait_for_listener(port);
        assert_eq!(lab.python(&hear).inside(&net.client).ok().text(), "ours\n", "round {round}");
        ours.signal(libc::SIGKILL);
        let _ = ours.end_within(WAIT);
        let mut kernels = lab.python(&serve("kernels")).inside(&net.server).spawn();
        kernels.wait_for_output("listens");
        let accepts = engine.counters().get("accepts");
        assert_eq!(lab.python(&hear).inside(&net.client).ok().text(), "kernels\n", "round {round}");
        if !on_kernel() {
            assert_eq!(engine.counters().get("accepts"), accepts, "it went through utcp");
        }
        kernels.signal(libc::SIGKILL);
        let _ = kernels.end_within(WAIT);
    }
    engine.wait_until_empty(WAIT);
}

/// The administrator's filters, there before the engine or put there later: those of the queueing discipline stand behind us, those of
/// nftables' ingress hook in front, and `utcp why` and `utcp doctor` name them.
#[test]
fn filters_stand_behind_or_are_named() {
    needs_root!();
    for before in [true, false] {
        let (lab, net) = (Lab::new("filters"), Net::new());
        let device = &net.server.interface;
        let within = |program: &str, words: &str| {
            let _ = lab.run(program).args(words.split(' ')).inside(&net.server).ok();
        };
        let filter = || {
            within("tc", &format!("qdisc add dev {device} clsact"));
            // Away with all TCP, by the oldest of classifiers and actions: to a cable that ends nowhere.
            within("ip", "link add void type veth peer name nowhere");
            within("ip", "link set void up");
            let rule = "protocol ip u32 match ip protocol 6 0xff action mirred egress redirect dev void";
            within("tc", &format!("filter add dev {device} ingress {rule}"));
        };
        if before {
            filter();
        }
        let engine = on_device(&lab, &net.server).run();
        let nginx = Nginx::start(&lab, &engine);
        let port = nginx.port;
        if !before {
            filter();
        }
        let url = format!("http://{}:{port}/hello", net.server.addr);
        let curl = || lab.run("curl").args(["-sf", "-m", "5", &url]).inside(&net.client);
        if on_kernel() {
            // It is the kernel's, which is not to have it.
            assert!(!curl().finish().status.success(), "dropped");
            within("tc", &format!("qdisc del dev {device} clsact"));
        }
        let _ = curl().ok();
        engine.went_through(1);
        within("nft", "add table netdev guard");
        let hook = format!("type filter hook ingress device {device} priority 0 ;");
        within("nft", &format!("add chain netdev guard early {{ {hook} }}"));
        within("nft", &format!("add rule netdev guard early tcp dport {port} drop"));
        let blocked = lab.run("curl").args(["-sf", "-m", "1", &url]).inside(&net.client).finish();
        assert!(!blocked.status.success(), "dropped, as for the kernel's sockets");
        if !on_kernel() {
            let why = engine.ask(&format!("why {port}")).expect("it answers");
            assert!(why.contains("rules of nftables at the ingress hook: guard early"), "{why}");
            // The engine has heard of it.
            assert!(why.contains("short frames go by packet sockets"), "{why}");
            let doctor = lab.run(release_file("utcp")).args(["doctor", &format!("xdp:{device}")]);
            let doctor = doctor.inside(&net.server).finish();
            assert!(doctor.text().contains("ingress chains guard early"), "{}", doctor.text());
        }
        within("nft", "delete table netdev guard");
        let _ = curl().ok();
    }
}

/// Whoever writes frames in a neighbour's name is not believed: answers go to the link address that the host has for it.
#[test]
fn answers_go_where_the_host_knows_the_neighbour() {
    needs_root!();
    let (lab, net) = (Lab::new("false-neighbour"), Net::new());
    let (server, client) = (&net.server, &net.client);
    let show = format!("/sys/class/net/{}/address", client.interface);
    let shown = lab.run("cat").arg(&show).inside(client).ok().text();
    let link_address = shown.trim();
    let known_at = |link_address: &str| {
        let entry = format!("{} lladdr {link_address} dev {}", client.addr, server.interface);
        ip(&lab, server, &format!("neigh replace {entry} nud permanent"));
    };
    known_at("02:00:00:00:00:77");
    let engine = on_device(&lab, server).run();
    let port = lab.port();
    let serve = format!(
        "import socket
server = socket.create_server(('', {port}))
print('listens', flush=True)
while True:
    c, _ = server.accept()
    c.sendall(b'welcome')
    c.close()"
    );
    let mut serving = lab.python(&serve).under(&engine).spawn();
    serving.wait_for_output("listens");
    engine.wait_for_listener(port);
    let connect = format!(
        "import socket
try: print(socket.create_connection(('{}', {port}), 2).recv(100).decode())
except TimeoutError: print('nobody')",
        server.addr
    );
    let connects = || lab.python(&connect).inside(client).ok().text().trim().to_owned();
    assert_eq!(connects(), "nobody", "the answers go to somebody else");
    known_at(link_address);
    wait_until("the neighbour is where it is", WAIT, || (connects() == "welcome").then_some(()));
    engine.went_through(1);
}
