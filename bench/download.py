"""Files and megabytes a second of the download engine beside aria2c, pooch and plain httpx, over a shaped line (50 ms, 1 Gbit/s) and unshaped.

    python bench/download.py [--small 2000] [--large 20] [--rounds 3] [--only shaped|unshaped] [--folder DIR]

Everything is served by nginx on this machine. The engine and aria2c take all files, in turn, with 16 connections each, and the figures are medians over
the rounds; `aria2c_sum` is aria2c that checks a SHA-256 as well. pooch and httpx fetch one file after the other, as their documentation shows, so over the shaped line they take a
tenth of the files; httpx takes no hash. CPU seconds are those of the client. `--folder /dev/shm` leaves the disk out of it.
"""
import argparse, asyncio, hashlib, json, os, random, resource, shutil, signal, socket, statistics, subprocess, sys, tempfile, time
from pathlib import Path

SIZES = dict(small=20_000, large=25_000_000)
HOST = 'https://files.example.org'

# -- the peers: each runs in a process of its own and prints what it took ---------------------------

def lifelab(at, names, out):
    "This engine, with 16 connections; without `Host` a host of files gets 8"
    from lifelab.collect.budget import Budget
    from lifelab.collect.download import download
    from lifelab.collect.item import Item
    from lifelab.collect.pace import Host
    from lifelab.collect.session import Session
    from lifelab.collect.store import Store
    import aiohttp, keyring; keyring.get_keyring() # Before the clock starts, as the other peers' imports are
    async def go():
        async with Session({HOST:at}, {HOST[8:]:Host(rate=1e6, at_once=16)}) as ask:
            wanted = ((n, Item(n, f'{HOST}/{n}')) for n in names)
            return [g async for g in download(wanted, ask, out/'parts', Store(out/'raw'), Budget(min_free=0))]
    began = time.monotonic(), time.process_time()
    got = asyncio.run(go())
    took = time.monotonic()-began[0], time.process_time()-began[1]
    assert len(got)==len(names) and not [g for g in got if g.problem], [g.problem for g in got if g.problem][:3]
    return *took, sum(g.size for g in got)

def aria2c(at, names, out, hashed=False):
    "aria2c -x16, sixteen files at once"
    known = json.loads((out.parent/'sums.json').read_text())
    (out/'urls').write_text(''.join(f'{at}/{n}\n'+(f' checksum=sha-256={known[n][7:]}\n' if hashed else '') for n in names))
    began = time.monotonic()
    subprocess.run(['aria2c', '-q', '-x16', '-j16', '-i', out/'urls', '-d', out/'files'], check=True)
    secs, used = time.monotonic()-began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return secs, used.ru_utime+used.ru_stime, sum(p.stat().st_size for p in (out/'files').iterdir())

def aria2c_sum(at, names, out):
    "The same, with a SHA-256 of each file, as the engine takes it"
    return aria2c(at, names, out, hashed=True)

def pooch(at, names, out):
    "pooch.retrieve, one file after the other, with the hash it asks for"
    import logging, pooch
    pooch.get_logger().setLevel(logging.ERROR)
    known = json.loads((out.parent/'sums.json').read_text())
    began = time.monotonic(), time.process_time()
    for n in names: pooch.retrieve(f'{at}/{n}', known[n], fname=n, path=out/'files')
    return time.monotonic()-began[0], time.process_time()-began[1], sum(p.stat().st_size for p in (out/'files').iterdir())

def httpx(at, names, out):
    "One httpx.Client, one file after the other"
    import httpx
    (out/'files').mkdir()
    began = time.monotonic(), time.process_time()
    with httpx.Client() as web:
        for n in names:
            with web.stream('GET', f'{at}/{n}') as r, open(out/'files'/n, 'wb') as f:
                for b in r.iter_bytes(): f.write(b)
    return time.monotonic()-began[0], time.process_time()-began[1], sum(p.stat().st_size for p in (out/'files').iterdir())

PEERS = {f.__name__: f for f in (lifelab, aria2c, aria2c_sum, pooch, httpx)}

def missing(peer):
    "How to get a peer that is not here; '' when it is"
    from importlib.util import find_spec
    if peer in ('aria2c', 'aria2c_sum'): return '' if shutil.which('aria2c') else 'aria2c is not installed (apt install aria2)'
    return '' if find_spec(peer) else f'{peer} is not installed (pip install {peer})'

def run_peer(peer, at, names, folder):
    "Seconds, CPU seconds and bytes of one peer"
    out = folder/'out'
    shutil.rmtree(out, ignore_errors=True); out.mkdir()
    (folder/'names.json').write_text(json.dumps(names))
    done = subprocess.run([sys.executable, __file__, '--peer', peer, '--at', at, '--folder', str(folder)], capture_output=True, text=True)
    shutil.rmtree(out)
    if done.returncode: sys.exit(f'{peer} failed: {done.stderr[-1500:]}')
    return json.loads(done.stdout.splitlines()[-1])

# -- the server, and the line to it ----------------------------------------------------------------

CONF = """daemon off; {user} worker_processes 1; pid {tmp}/pid; error_log {tmp}/log;
events {{ worker_connections 512; }}
http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; default_type application/octet-stream;
  client_body_temp_path {tmp}/b; proxy_temp_path {tmp}/p; fastcgi_temp_path {tmp}/f; uwsgi_temp_path {tmp}/u; scgi_temp_path {tmp}/s;
  server {{ listen {port}; root {root}; }} }}"""

def serve(root, tmp, port, inside=()):
    "Start nginx, or else Python's own server, where `inside` leads; the process"
    if not (nginx := shutil.which('nginx') or shutil.which('nginx', path='/usr/sbin')):
        print('nginx is not installed (apt install nginx-light): aiohttp serves')
        code = f"from aiohttp import web; a = web.Application(); a.router.add_static('/', {str(root)!r}); web.run_app(a, port={port}, print=None)"
        return subprocess.Popen([*inside, sys.executable, '-c', code])
    tmp.mkdir()
    (tmp/'conf').write_text(CONF.format(user='user root;' if os.getuid()==0 else '', tmp=tmp, port=port, root=root))
    return subprocess.Popen([*inside, nginx, '-c', tmp/'conf', '-e', tmp/'log'])

def wait_until(at):
    "Wait until a server answers"
    host, port = at[7:].split(':')
    for _ in range(200):
        try: socket.create_connection((host, int(port)), 1).close(); return
        except OSError: time.sleep(.05)
    sys.exit(f'{at} does not answer')

def sh(*cmd, ok=True): return subprocess.run([str(c) for c in cmd], check=ok, capture_output=True, text=True)

class Line:
    "A network namespace behind 50 ms and 1 Gbit/s: veth and netem, or where the kernel has no netem, two tunnels and a process that holds packets back"
    name, near, far = f'llb{os.getpid()}', '10.231.77.1', '10.231.77.2'
    def __enter__(self):
        self.held, n = None, self.name
        sh('ip', 'netns', 'add', n)
        sh('ip', 'link', 'add', f'{n}a', 'type', 'veth', 'peer', 'name', f'{n}b', 'netns', n)
        shape = ('root', 'netem', 'delay', '25ms', 'rate', '1gbit', 'limit', '20000')
        if sh('tc', 'qdisc', 'add', 'dev', f'{n}a', *shape, ok=False).returncode==0:
            sh('ip', 'netns', 'exec', n, 'tc', 'qdisc', 'add', 'dev', f'{n}b', *shape)
            self.how = 'veth and netem'
        else:
            sh('ip', 'link', 'del', f'{n}a')
            self.held = subprocess.Popen([sys.executable, __file__, '--hold', n])
            self.how = 'two tunnels (this kernel has no netem), packets of 9,000 bytes'
            while sh('ip', 'netns', 'exec', n, 'ip', 'link', 'show', f'{n}b', ok=False).returncode: time.sleep(.05)
        for at,dev,where in ((self.near, f'{n}a', ()), (self.far, f'{n}b', ('ip', 'netns', 'exec', n))):
            sh(*where, 'ip', 'addr', 'add', f'{at}/24', 'dev', dev)
            sh(*where, 'ip', 'link', 'set', dev, 'up', *(('mtu', '9000') if self.held else ()))
        return self
    def __exit__(self, *err):
        if self.held: self.held.terminate(); self.held.wait()
        sh('ip', 'link', 'del', f'{self.name}a', ok=False)
        sh('ip', 'netns', 'del', self.name, ok=False)

def hold(name, delay=.025, rate=125e6, most=.1):
    "Carry packets between two tunnels, each held for `delay` seconds at `rate` bytes a second; what waits longer than `most` seconds is dropped"
    import ctypes, fcntl, select, struct
    from collections import deque
    def tunnel(dev):
        fd = os.open('/dev/net/tun', os.O_RDWR|os.O_NONBLOCK)
        fcntl.ioctl(fd, 0x400454ca, struct.pack('16sH', dev.encode(), 0x1001)) # TUNSETIFF: IFF_TUN | IFF_NO_PI
        return fd
    a = tunnel(f'{name}a')
    with open(f'/run/netns/{name}') as ns:
        if ctypes.CDLL(None).setns(ns.fileno(), 0x40000000): sys.exit('setns failed')
    b = tunnel(f'{name}b')
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    ways = {a: (b, deque()), b: (a, deque())}
    free, poll, now = {a: 0., b: 0.}, select.poll(), time.monotonic
    for fd in ways: poll.register(fd, select.POLLIN)
    while True:
        first = min((q[0][0] for _,q in ways.values() if q), default=now()+1)
        for fd,_ in poll.poll(max(0, (first-now())*1000)):
            for _ in range(64):
                try: p = os.read(fd, 65536)
                except BlockingIOError: break
                t = now()
                if free[fd]-t>most: continue
                free[fd] = max(t, free[fd])+len(p)/rate
                ways[fd][1].append((free[fd]+delay, p))
        t = now()
        for to,q in ways.values():
            while q and q[0][0]<=t:
                try: os.write(to, q.popleft()[1])
                except OSError: pass # A full queue drops, as a line does

# -- one run ---------------------------------------------------------------------------------------

def measure(where, at, names, folder, rounds):
    "Print the table of one line"
    share = 10 if where=='shaped' else 1
    for kind in names:
        rows = {}
        for k in range(rounds):
            for peer in PEERS:
                if missing(peer) or k and peer in ('pooch', 'httpx'): continue
                some = names[kind][:max(2, len(names[kind])//share)] if peer in ('pooch', 'httpx') else names[kind]
                secs, cpu, size = run_peer(peer, at, some, folder)
                assert size==len(some)*SIZES[kind], f'{peer} brought {size} bytes'
                rows.setdefault(peer, []).append((len(some)/secs, size/secs/1e6, cpu/size*1e9, len(some)))
        med = {p: [statistics.median(c) for c in zip(*r)] for p,r in rows.items()}
        for p,(fs,mbs,cpu,n) in med.items():
            of = f'{mbs/med["aria2c"][1]:5.2f}' if 'aria2c' in med else '    -'
            print(f'{where:9} {kind:6} {p:10} {n:6.0f} {fs:9.1f} {mbs:8.1f} {of:>9} {cpu:12.1f}', flush=True)

def main():
    "Both lines, both kinds of file, every peer that is installed"
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--small', type=int, default=2000); ap.add_argument('--large', type=int, default=20)
    ap.add_argument('--rounds', type=int, default=3); ap.add_argument('--only', choices=['shaped', 'unshaped'])
    ap.add_argument('--folder', type=Path)
    for hidden in ('--peer', '--at', '--hold'): ap.add_argument(hidden, help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.hold: return hold(a.hold)
    if a.peer: return print(json.dumps(PEERS[a.peer](a.at, json.loads((a.folder/'names.json').read_text()), a.folder/'out')))
    for peer in PEERS:
        if why := missing(peer): print(why)
    names = dict(small=[f's{k:05}.bin' for k in range(a.small)], large=[f'l{k:03}.bin' for k in range(a.large)])
    with tempfile.TemporaryDirectory(dir=a.folder) as tmp:
        tmp, sums, draw = Path(tmp), {}, random.Random(0)
        (tmp/'www').mkdir()
        for kind in names:
            for n in names[kind]: data = draw.randbytes(SIZES[kind]); (tmp/'www'/n).write_bytes(data); sums[n] = 'sha256:'+hashlib.sha256(data).hexdigest()
        (tmp/'sums.json').write_text(json.dumps(sums))
        print(f"{'line':9} {'files':6} {'peer':10} {'n':>6} {'files/s':>9} {'MB/s':>8} {'of aria2c':>9} {'CPU s per GB':>12}")
        if a.only!='shaped':
            with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
            web = serve(tmp/'www', tmp/'near', port)
            try: wait_until(at := f'http://127.0.0.1:{port}'); measure('unshaped', at, names, tmp, a.rounds)
            finally: web.terminate(); web.wait()
        if a.only=='unshaped': return
        if os.getuid() or not shutil.which('ip'): return print('no shaped line: network namespaces need root and iproute2')
        with Line() as line:
            print(f'shaped by {line.how}')
            web = serve(tmp/'www', tmp/'far', 8080, ('ip', 'netns', 'exec', line.name))
            try: wait_until(at := f'http://{line.far}:8080'); measure('shaped', at, names, tmp, a.rounds)
            finally: web.terminate(); web.wait()

if __name__=='__main__': main()
