"""The engine against servers that are busy, break off, lie, drip, and lead astray; against a full disk, a closing window and kill -9."""
import asyncio, gc, gzip, hashlib, os, random, re, shutil, signal, subprocess, sys, time
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from lifelab.collect import download as engine
from lifelab.collect.budget import Budget
from lifelab.collect.download import Got, Stopped, download
from lifelab.collect.item import Item
from lifelab.collect.pace import Host
from lifelab.collect.part import NoDisk, Part
from lifelab.collect.replay import FAULTS, Reply, faulty, ranged, replay
from lifelab.collect.session import Session, wait_for
from lifelab.collect.store import Store

sha = lambda data: hashlib.sha256(data).hexdigest()
md5 = lambda data: hashlib.md5(data).hexdigest()
body = lambda name, n=200_000: random.Random(str(name)).randbytes(n)
BODY = body('one')
ONE = Item('one', 'https://files.example.org/one.bin')
GIVEN = replace(ONE, size=len(BODY), sha256=sha(BODY))

@pytest.fixture(autouse=True)
def soon(monkeypatch):
    "Waits between attempts are short, and drawn no more"
    monkeypatch.setattr(engine, 'backoff', lambda n: .01)

def fetch(at, items, at_dir, hosts=None, budget=None, **more):
    "Everything that the engine yields for items"
    async def go():
        async with Session({'https://files.example.org':at}, hosts or {'files.example.org':Host(rate=5000, at_once=8)}) as ask:
            wanted = [(i.id, i) for i in items] if isinstance(items, (list, tuple)) else items
            return [g async for g in download(wanted, ask, at_dir/'parts', Store(at_dir/'raw'), budget or Budget(min_free=0), **more)]
    return wait_for(go())

def one(req): return ranged(req, BODY)
def many(req): return ranged(req, body(req.path), etag=f'"{sha(req.path.encode())[:8]}"')
def ranges(at): return [r.headers.get('range', '') for r in at.seen]
def parts(at_dir): return sorted(p.name for p in (at_dir/'parts').iterdir())
def items_of(n, **more): return [Item(f'i{k}', f'https://files.example.org/f{k}', **more) for k in range(n)]

def sound(got, at_dir, data=BODY):
    "A result is whole: its hash, its size, its place, its bytes"
    return (got.problem, got.sha256, got.size, got.path)==('', sha(data), len(data), Store(at_dir/'raw').path(sha(data))) and got.path.read_bytes()==data

def test_plain(tmp_path):
    with replay(lambda req: ranged(req, BODY, headers={'Last-Modified':'Sun, 01 Mar 2020 08:00:00 GMT'})) as at: got, = fetch(at, [ONE], tmp_path)
    assert sound(got, tmp_path) and (got.key, got.etag, got.modified)==('one', '"1"', 'Sun, 01 Mar 2020 08:00:00 GMT')
    assert at.seen[0].headers['accept-encoding']=='identity' and 'range' not in at.seen[0].headers and parts(tmp_path)==[]

def test_what_is_in_the_store_is_not_asked_for(tmp_path):
    with replay(one) as at:
        fetch(at, [ONE], tmp_path)
        got, = fetch(at, [GIVEN], tmp_path)
    assert sound(got, tmp_path) and len(at.seen)==1

def test_data_problem_and_empty(tmp_path):
    items = [Item('d', data=b'ATG'), Item('p', problem='restricted species'), Item('w', withdrawn=True), Item('e', 'https://files.example.org/empty'), Item('n')]
    with replay(lambda req: Reply(body=b'')) as at: got = {g.key: g for g in fetch(at, items, tmp_path)}
    assert sound(got['d'], tmp_path, b'ATG') and sound(got['e'], tmp_path, b'') and len(at.seen)==1
    assert got['p'].problem=='restricted species' and 'withdrawn' in got['w'].problem and 'no http(s) address' in got['n'].problem

@pytest.mark.parametrize('storm', [['429']*5, ['503', '429', '503', '503'], ['429', 'cut', '503', 'cut']])
def test_storm(storm, tmp_path):
    with replay(faulty(one, storm)) as at: got, = fetch(at, [GIVEN], tmp_path)
    assert sound(got, tmp_path) and len(at.seen)==len(storm)+1

def test_storm_over_many_loses_and_doubles_nothing(tmp_path):
    plan = random.Random(7).choices([None, '429', '503', 'cut'], k=120)
    with replay(faulty(many, plan)) as at: got = fetch(at, items_of(60), tmp_path, hosts={'files.example.org':Host(rate=5000, tries=12)})
    assert sorted(g.key for g in got)==sorted(i.id for i in items_of(60)) and all(sound(g, tmp_path, body('/f'+g.key[1:])) for g in got)

def test_storm_without_end_is_told(tmp_path):
    with replay(faulty(many, ['503']*6, only=lambda req: req.path=='/f1')) as at: got = {g.key: g for g in fetch(at, items_of(3), tmp_path, most=1)}
    assert not got['i0'].problem and not got['i2'].problem
    with replay(lambda req: Reply(503, {'Retry-After':'0'}) if req.path=='/f1' else many(req)) as at: got = {g.key: g for g in fetch(at, items_of(3), tmp_path)}
    assert got['i1'].problem=='files.example.org answered 503 (6 attempts)' and sound(got['i0'], tmp_path, body('/f0')) and sound(got['i2'], tmp_path, body('/f2'))

def test_nobody_listens(tmp_path):
    got, = fetch('http://127.0.0.1:1', [ONE], tmp_path)
    assert re.match(r'files.example.org cannot be reached \(tried 6 times\): is this machine online\? \(', got.problem) and 'Error' not in got.problem

def test_a_silent_host_is_left_alone(tmp_path):
    hosts = {'files.example.org':Host(rate=5000, at_once=4, tries=2)}
    with replay(lambda req: Reply(503, {'Retry-After':'0'})) as at: got = fetch(at, items_of(500), tmp_path, hosts=hosts, most=40)
    left = [g for g in got if 'left for the next run' in g.problem]
    assert len(got)==500 and len(left)>=500-32-40 and len(at.seen)<=2*(32+40), 'a hundred thousand items are not asked for one by one'
    with replay(lambda req: Reply(404)) as at: got = fetch(at, items_of(60), tmp_path)
    assert len(at.seen)==60, 'a host that refuses is not silent'

def test_retry_after_rests_the_whole_host(tmp_path, monkeypatch):
    rests = []
    monkeypatch.setattr(Host, 'pause', lambda self, secs: rests.append(secs))
    def app(req): return Reply(429, {'Retry-After':'17'}) if len(at.seen)==1 else one(req)
    with replay(app) as at: got, = fetch(at, [GIVEN], tmp_path)
    assert sound(got, tmp_path) and rests==[17.]

def test_a_refusal_is_not_repeated_and_stops_nobody(tmp_path):
    def app(req): return Reply(404, {}, b'no such file, key=planted-77') if req.path=='/f1' else many(req)
    with replay(app) as at: got = {g.key: g for g in fetch(at, items_of(4), tmp_path)}
    assert 'answered 404' in got['i1'].problem and 'no such file' in got['i1'].problem and 'planted-77' not in got['i1'].problem
    assert [r.path for r in at.seen].count('/f1')==1 and all(sound(got[f'i{k}'], tmp_path, body(f'/f{k}')) for k in (0, 2, 3))

def test_cut_goes_on_where_it_broke(tmp_path):
    served = []
    def app(req):
        r = one(req)
        if len(at.seen)==1: r.cut = 120_000
        served.append(len(r.body) if r.cut is None else r.cut)
        return r
    with replay(app) as at: got, = fetch(at, [ONE], tmp_path)
    assert sound(got, tmp_path) and ranges(at)==['', 'bytes=120000-'] and at.seen[1].headers['if-range']=='"1"' and sum(served)==len(BODY)

def test_cut_without_a_tag_begins_anew(tmp_path):
    def app(req): return Reply(200, {'ETag':'W/"1"'}, BODY, cut=120_000 if len(at.seen)==1 else None)
    with replay(app) as at: got, = fetch(at, [ONE], tmp_path)
    assert sound(got, tmp_path) and ranges(at)==['', '']

def test_cut_by_date(tmp_path):
    when = {'Last-Modified':'Sun, 01 Mar 2020 08:00:00 GMT'}
    def app(req):
        if len(at.seen)==1: return Reply(200, when, BODY, cut=120_000)
        assert req.headers['if-range']==when['Last-Modified']
        return Reply(206, when | {'Content-Range':f'bytes 120000-199999/200000'}, BODY[120_000:])
    with replay(app) as at: got, = fetch(at, [ONE], tmp_path)
    assert sound(got, tmp_path) and len(at.seen)==2

def test_cut_again_and_again_gets_there(tmp_path):
    data = body('long', 1_000_000)
    def app(req):
        r = ranged(req, data)
        r.cut = 100_000 if len(r.body)>100_000 else None
        return r
    with replay(app) as at: got, = fetch(at, [ONE], tmp_path)
    assert sound(got, tmp_path, data) and len(at.seen)==10, 'more cuts than tries, but each got further'

def test_cut_at_the_start_for_ever_ends(tmp_path):
    with replay(lambda req: Reply(200, {}, BODY, cut=100_000)) as at: got, = fetch(at, [ONE], tmp_path)
    assert 'attempts' in got.problem and len(at.seen)==7, 'without a tag no attempt gets further than the first'

def test_changed_between_attempts_is_fetched_whole(tmp_path):
    new = body('new')
    def app(req): return replace(ranged(req, BODY), cut=120_000) if len(at.seen)==1 else ranged(req, new, etag='"2"')
    with replay(app) as at: got, = fetch(at, [ONE], tmp_path)
    assert sound(got, tmp_path, new) and ranges(at)==['', 'bytes=120000-'] and got.etag=='"2"'

@pytest.mark.parametrize('lie', [{'ETag':'"2"'}, {'Content-Range':'bytes 0-199999/200000'}, {'Content-Range':'bytes 120000-199998/199999'}, {'Content-Range':'nonsense'}])
def test_a_rest_that_does_not_fit_is_not_taken(lie, tmp_path):
    def app(req):
        if len(at.seen)==1: return replace(one(req), cut=120_000)
        r = one(req)
        return replace(r, headers=r.headers | lie, body=bytes(len(r.body))) if len(at.seen)==2 else r
    with replay(app) as at: got, = fetch(at, [ONE], tmp_path)
    assert sound(got, tmp_path) and ranges(at)==['', 'bytes=120000-', '']

def test_a_part_nobody_asked_for(tmp_path):
    def app(req): return Reply(206, {'Content-Range':'bytes 100-199999/200000'}, BODY[100:]) if len(at.seen)==1 else one(req)
    with replay(app) as at: got, = fetch(at, [ONE], tmp_path)
    assert sound(got, tmp_path) and len(at.seen)==2

def test_a_whole_part_needs_no_request(tmp_path):
    p = Part(tmp_path/'parts', sha(f'one\n{ONE.url}\n'.encode())[:40])
    (tmp_path/'parts').mkdir()
    p.anew(ONE.url, {'etag':'"1"'}, len(BODY), ''); p.add(BODY); p.save()
    with replay(one) as at: got, = fetch(at, [ONE], tmp_path)
    assert sound(got, tmp_path) and at.seen==[] and parts(tmp_path)==[]

def test_a_whole_part_of_unknown_length(tmp_path):
    p = Part(tmp_path/'parts', sha(f'one\n{ONE.url}\n'.encode())[:40])
    (tmp_path/'parts').mkdir()
    p.anew(ONE.url, {'etag':'"1"'}, None, ''); p.add(BODY); p.save()
    with replay(one) as at: got, = fetch(at, [ONE], tmp_path)
    assert sound(got, tmp_path) and ranges(at)==['bytes=200000-'], '416 says that nothing follows'
    p.anew(ONE.url, {'etag':'"1"'}, None, ''); p.add(BODY+b'more'); p.save()
    with replay(one) as at: got, = fetch(at, [ONE], tmp_path)
    assert sound(got, tmp_path) and ranges(at)==['bytes=200004-', ''], '416 with another length: anew'

@pytest.mark.parametrize('promise', [dict(sha256=sha(BODY)), dict(md5=md5(BODY).upper()), dict(size=len(BODY))])
def test_wrong_bytes(promise, tmp_path):
    wrong = FAULTS['wrong bytes'] if 'size' not in promise else lambda r: replace(r, body=r.body[:-5])
    def app(req): return wrong(one(req)) if len(at.seen)<=2 else one(req)
    with replay(app) as at: got, = fetch(at, [replace(ONE, **promise)], tmp_path)
    assert sound(got, tmp_path) and ranges(at)==['', '', ''], 'retried from the start'
    shutil.rmtree(tmp_path/'raw')
    with replay(lambda req: wrong(one(req))) as at: got, = fetch(at, [replace(ONE, **promise)], tmp_path)
    assert re.search(r'promised.*3 attempts', got.problem) and len(at.seen)==3 and got.path is None and parts(tmp_path)==[]
    assert not [p for p in (tmp_path/'raw').rglob('*') if p.is_file()], 'nothing wrong reaches the store'

def test_md5_that_the_server_states(tmp_path):
    head = {'ETag':f'"{md5(BODY)}"', 'x-amz-request-id':'7'}
    def app(req): return Reply(200, head, FAULTS['wrong bytes'](Reply(body=BODY)).body if len(at.seen)==1 else BODY)
    with replay(app) as at: got, = fetch(at, [ONE], tmp_path)
    assert sound(got, tmp_path) and len(at.seen)==2

def test_wrong_rest_is_found_by_the_hash(tmp_path):
    def app(req):
        r = one(req)
        return replace(r, cut=120_000) if len(at.seen)==1 else FAULTS['wrong bytes'](r) if len(at.seen)==2 else r
    with replay(app) as at: got, = fetch(at, [GIVEN], tmp_path)
    assert sound(got, tmp_path) and ranges(at)==['', 'bytes=120000-', '']

@pytest.mark.parametrize('coding', ['gzip', 'deflate', 'x-gzip'])
def test_packed_for_the_way(coding, tmp_path):
    import zlib
    text = b'ACGT'*50_000
    with replay(lambda req: Reply(200, {'Content-Encoding':coding, 'ETag':'"z"'}, zlib.compress(text) if coding=='deflate' else gzip.compress(text))) as at:
        got, = fetch(at, [replace(ONE, size=len(text), md5=md5(text))], tmp_path)
    assert sound(got, tmp_path, text)

def test_truncated_gzip(tmp_path):
    with replay(faulty(one, ['half gzip', 'half gzip'])) as at: got, = fetch(at, [ONE], tmp_path)
    assert sound(got, tmp_path) and ranges(at)==['', '', '']
    shutil.rmtree(tmp_path/'raw')
    with replay(faulty(one, ['half gzip']*9)) as at: got, = fetch(at, [ONE], tmp_path)
    assert 'breaks off early' in got.problem and not (tmp_path/'raw').exists()

def test_a_gz_file_stays_packed(tmp_path):
    packed = gzip.compress(b'ATG'*1000, mtime=0)
    with replay(lambda req: ranged(req, packed, headers={'Content-Encoding':'x-gzip'})) as at:
        got, = fetch(at, [replace(ONE, url=ONE.url+'.fasta.gz', md5=md5(packed))], tmp_path)
    assert sound(got, tmp_path, packed)

def test_a_bomb_is_stopped(tmp_path):
    bomb = gzip.compress(bytes(30_000_000))
    with replay(lambda req: Reply(200, {'Content-Encoding':'gzip'}, bomb)) as at: got, = fetch(at, [ONE], tmp_path, budget=Budget(min_free=0, max_item=1_000_000))
    assert 'max_item' in got.problem and parts(tmp_path)==[]

def test_html_where_a_picture_was_due(tmp_path):
    picture = replace(ONE, format='png')
    with replay(faulty(one, ['html'])) as at: got, = fetch(at, [picture], tmp_path)
    assert sound(got, tmp_path)
    shutil.rmtree(tmp_path/'raw')
    with replay(faulty(one, ['html']*9)) as at: got, = fetch(at, [picture], tmp_path)
    assert got.problem=='a web page came instead of the file (3 attempts)' and len(at.seen)==3
    with replay(faulty(one, ['html'])) as at: got, = fetch(at, [replace(ONE, format='html')], tmp_path)
    assert got.problem=='' and got.path.read_bytes().startswith(b'<!DOCTYPE html>')

def test_html_in_place_of_the_rest_costs_nothing(tmp_path):
    def app(req): return replace(one(req), cut=120_000) if len(at.seen)==1 else FAULTS['html'](one(req)) if len(at.seen)==2 else one(req)
    with replay(app) as at: got, = fetch(at, [replace(ONE, format='png')], tmp_path)
    assert sound(got, tmp_path) and ranges(at)==['', 'bytes=120000-', 'bytes=120000-']

def test_ten_gigabytes_declared(tmp_path):
    with replay(faulty(many, ['huge'], only=lambda req: req.path=='/f0')) as at: got = {g.key: g for g in fetch(at, items_of(2), tmp_path, most=1)}
    assert 'one item may have 4,000,000,000: raise max_item' in got['i0'].problem and sound(got['i1'], tmp_path, body('/f1'))
    free = shutil.disk_usage(tmp_path).free
    with replay(lambda req: Reply(200, {}, BODY, declared=free+10**9)) as at: got, = fetch(at, [ONE], tmp_path, budget=Budget(min_free=0, max_item=10**18))
    assert 'do not fit on the disk' in got.problem and parts(tmp_path)==[]
    with replay(one) as at: got, = fetch(at, [replace(ONE, size=10**10)], tmp_path)
    assert 'max_item' in got.problem and at.seen==[], 'said beforehand: not even asked'

def test_more_than_the_listing_said_is_not_read(tmp_path):
    with replay(lambda req: Reply(200, {}, BODY, declared=3_000_000_000)) as at: got, = fetch(at, [GIVEN], tmp_path)
    assert '3,000,000,000 bytes are offered, 200,000 were promised (3 attempts)'==got.problem

def test_endless_without_a_length_is_cut_off(tmp_path):
    sent = []
    def endless():
        while True: sent.append(2**16); yield bytes(2**16)
    with replay(lambda req: Reply(200, {}, stream=endless())) as at: got, = fetch(at, [ONE], tmp_path, budget=Budget(min_free=0, max_item=2_000_000))
    assert 'max_item' in got.problem and sum(sent)<30_000_000 and parts(tmp_path)==[]

def test_slow_drip(tmp_path):
    def app(req):
        r = one(req)
        return replace(r, drip=.02) if len(at.seen)==1 else r
    with replay(app) as at: got, = fetch(at, [GIVEN], tmp_path, slow=(1_000_000, .2))
    first = int(ranges(at)[1][6:-1])
    assert sound(got, tmp_path) and ranges(at)[0]=='' and 1024<=first<100_000, 'the rest is asked for, not the whole'
    with replay(faulty(lambda req: Reply(200, {}, BODY), ['drip']*9)) as at: got, = fetch(at, [replace(ONE, id='two')], tmp_path, slow=(1_000_000, .05), hosts={'files.example.org':Host(rate=5000, tries=3)})
    assert 'too slow (3 attempts)' in got.problem

def test_our_own_speed_limit_is_not_slowness(tmp_path):
    began = time.monotonic()
    with replay(one) as at: got, = fetch(at, [GIVEN], tmp_path, budget=Budget(min_free=0, rate=400_000), slow=(1_000_000, .1))
    assert sound(got, tmp_path) and len(at.seen)==1 and time.monotonic()-began>.3

@pytest.mark.parametrize('to', ['http://169.254.169.254/latest/meta-data/', 'https://192.168.0.1/x', 'https://localhost/x', 'https://[::1]/x', 'file:///etc/passwd'])
def test_redirect_inward(to, tmp_path):
    inside = re.sub(r'^\w+://([^/]*).*', r'\1', to)
    hosts = {'files.example.org':Host(rate=5000, to=(inside, inside.strip('[]')))}
    for allowed in (None, hosts):
        with replay(lambda req: Reply(302, {'Location':to})) as at: got, = fetch(at, [ONE], tmp_path, hosts=allowed)
        assert re.search('may not send us|not on the public internet|from https to http|no http', got.problem) and len(at.seen)==1, got.problem

def test_a_name_that_points_inward(tmp_path, monkeypatch):
    import aiohttp
    async def inward(self, host, port=0, family=0): return [dict(hostname=host, host='10.0.0.7', port=port, family=2, proto=0, flags=0)]
    monkeypatch.setattr(aiohttp.ThreadedResolver, 'resolve', inward)
    with replay(one) as at: got, = fetch(at, [replace(ONE, url='https://outside.example.org/x')], tmp_path)
    assert got.problem=='outside.example.org leads to 10.0.0.7, which is not on the public internet: not asked'

def test_redirects_that_are_allowed(tmp_path):
    def app(req): return Reply(302, {'Location':'https://files.example.org/cdn/one'}) if req.path=='/one.bin' else one(req)
    with replay(app) as at: got, = fetch(at, [ONE], tmp_path)
    assert sound(got, tmp_path) and [r.path for r in at.seen]==['/one.bin', '/cdn/one']
    with replay(lambda req: Reply(302, {'Location':req.raw+'x'})) as at: got, = fetch(at, [ONE], tmp_path)
    assert 'in a circle' in got.problem

def test_path_tricks(tmp_path):
    names = ['../../../../etc/passwd', '/abs', 'a\x00b', 'nul', 'x'*4000, '..', 'é\udc80', 'a/b\\c']
    items = [Item(n, f'https://files.example.org/f{k}', path=n) for k,n in enumerate(names)]
    lab = tmp_path/'deep/in/here'
    with replay(many) as at: got = fetch(at, items, lab)
    assert sorted(g.key for g in got)==sorted(names) and not [g for g in got if g.problem]
    assert {p for p in tmp_path.rglob('*') if p.is_file()}=={g.path for g in got} and len({g.path for g in got})==len(names)

def test_duplicate_ids(tmp_path):
    items = items_of(3)*4
    with replay(many) as at: got = fetch(at, items, tmp_path)
    assert len(got)==12 and len(at.seen)==3 and all(sound(g, tmp_path, body('/f'+g.key[1:])) for g in got)

def test_same_id_other_version(tmp_path):
    items = [Item('a', 'https://files.example.org/f1', version='1'), Item('a', 'https://files.example.org/f2', version='2')]
    with replay(many) as at:
        got = {g.item.version: g for g in fetch(at, items, tmp_path)}
        both = fetch(at, [replace(i, version='') for i in items], tmp_path)
    assert {g.sha256 for g in both}=={sha(body('/f1')), sha(body('/f2'))}, 'one id at two addresses: neither is written into the other'
    assert sound(got['1'], tmp_path, body('/f1')) and sound(got['2'], tmp_path, body('/f2'))

def test_a_listing_that_fails_loses_nothing(tmp_path):
    async def listing():
        for i in items_of(5): yield i.id, i
        raise RuntimeError('the listing broke')
    got = []
    async def go(at):
        async with Session({'https://files.example.org':at}) as ask:
            async for g in download(listing(), ask, tmp_path/'parts', Store(tmp_path/'raw'), Budget(min_free=0)): got.append(g)
    with replay(many) as at, pytest.raises(RuntimeError, match='listing broke'): wait_for(go(at))
    assert len(got)==5 and all(sound(g, tmp_path, body('/f'+g.key[1:])) for g in got)

# -- budgets ---------------------------------------------------------------------------------------

def test_window(tmp_path):
    asked = []
    def wanted():
        for i in items_of(3): asked.append(i.id); yield i.id, i
    night = Budget('21:00-05:00', min_free=0)
    with replay(many) as at:
        last, = fetch(at, wanted(), tmp_path, budget=night, now=lambda: datetime(2026, 11, 21, 12))
        assert last==Stopped('window', 'it is 12:00, outside the window 21:00-05:00') and at.seen==[] and asked==[]
        assert len(fetch(at, wanted(), tmp_path, budget=night, now=lambda: datetime(2026, 11, 21, 23)))==3

def test_window_closes_under_way(tmp_path):
    clock = lambda: datetime(2026, 11, 21, 4, 59) if len(at.seen)<3 else datetime(2026, 11, 21, 5)
    big = items_of(2)
    def app(req):
        r = ranged(req, body(req.path, 2_000_000), etag=f'"{req.path[1:]}"')
        return replace(r, drip=.002) if None in at.seen else r
    with replay(lambda req: app(req)) as at:
        at.seen.append(None)
        first = fetch(at, big, tmp_path, budget=Budget('21:00-05:00', min_free=0), now=clock)
    assert [type(x) for x in first]==[Stopped] and len(parts(tmp_path))==4, 'two parts with their notes'
    with replay(app) as at: got = fetch(at, big, tmp_path)
    assert all(sound(g, tmp_path, body('/f'+g.key[1:], 2_000_000)) for g in got) and all(int(r[6:-1])>1000 for r in ranges(at)) and parts(tmp_path)==[]

def test_max_bytes_over_several_nights(tmp_path):
    items, done, spent, nights = items_of(12), {}, [], 0
    while len(done)<12 and nights<20:
        nights += 1
        n = []
        with replay(many) as at: out = fetch(at, [i for i in items if i.id not in done], tmp_path, budget=Budget(min_free=0, max_bytes=700_000), told=lambda host, k: n.append(k))
        assert not set(r.path.replace('/f', 'i') for r in at.seen) & set(done), 'what is finished is not asked for'
        done |= {g.key: g for g in out if isinstance(g, Got)}
        spent.append(sum(n))
        assert isinstance(out[-1], Stopped)==(sum(n)>=700_000) and (not isinstance(out[-1], Stopped) or out[-1].kind=='bytes')
    assert all(sound(g, tmp_path, body('/f'+g.key[1:])) for g in done.values()) and len(done)==12
    assert sum(spent)<=12*200_000+300_000 and nights in (4, 5), (spent, 'what came before a stop is not fetched again')

@contextmanager
def small_disk(at_dir, size):
    at_dir.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(at_dir)], capture_output=True).returncode: pytest.skip('mounting a small disk needs root')
    try: yield at_dir
    finally: subprocess.run(['umount', '-l', str(at_dir)], check=True)

def test_disk_full(tmp_path):
    data = {f'/f{k}': body(k, 900_000) for k in range(8)}
    def app(req): return ranged(req, data[req.path], etag=f'"{req.path[1:]}"')
    def hidden(req): r = app(req); return replace(r, headers={**r.headers}, stream=[r.body], body=b'') # Says nothing of its size, so only the disk can tell
    with small_disk(tmp_path/'disk', '4m') as disk:
        with replay(hidden) as at: first = fetch(at, items_of(8), disk)
        done = {g.key: g for g in first[:-1]}
        assert first[-1]==Stopped('disk', f'No space left on device, in {disk}/parts: make room, and what is under way goes on') and len(done)<5
        assert all(sound(g, disk, data['/f'+g.key[1:]]) for g in done.values())
        subprocess.run(['mount', '-o', 'remount,size=64m', str(disk)], check=True)
        with replay(app) as at: rest = fetch(at, [i for i in items_of(8) if i.id not in done], disk)
        assert all(sound(g, disk, data['/f'+g.key[1:]]) for g in rest) and len(rest)+len(done)==8 and parts(disk)==[]
        assert any(r.startswith('bytes=') for r in ranges(at)), 'what was under way went on'

def test_disk_full_by_a_patched_write(tmp_path, monkeypatch):
    real = Part.write
    def write(self, last=False):
        if self.size>600_000: self.held, self.n_held = [], 0; raise NoDisk(28, 'No space left on device')
        return real(self, last)
    data = body('big', 1_500_000)
    def app(req): return ranged(req, data)
    monkeypatch.setattr(Part, 'write', write)
    with replay(app) as at: out = fetch(at, [ONE], tmp_path)
    assert [type(x) for x in out]==[Stopped] and out[0].kind=='disk' and 'make room' in out[0].why
    monkeypatch.setattr(Part, 'write', real)
    with replay(app) as at: got, = fetch(at, [ONE], tmp_path)
    assert sound(got, tmp_path, data)

def test_disk_is_left_free(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    with replay(many) as at: out = fetch(at, items_of(3), tmp_path, budget=Budget(min_free=free+10**9))
    assert [type(x) for x in out]==[Stopped] and 'min_free' in out[0].why and at.seen==[]

# -- killed ----------------------------------------------------------------------------------------

KILLED = '''
import asyncio, os, sys
from pathlib import Path
from lifelab.collect.budget import Budget
from lifelab.collect.download import download
from lifelab.collect.item import Item
from lifelab.collect.pace import Host
from lifelab.collect.session import Session
from lifelab.collect.store import Store
import aiohttp
at, folder, n = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
ledger = folder/'done.txt'
def done(): return {l.split()[0] for l in (ledger.read_text() if ledger.exists() else '').split('\\n')[:-1] if l}
async def run():
    have = done()
    async with Session({'https://files.example.org':at}, {'files.example.org':Host(rate=5000, at_once=3)}) as ask:
        wanted = ((f'i{k}', Item(f'i{k}', f'https://files.example.org/f{k}')) for k in range(n) if f'i{k}' not in have)
        async for g in download(wanted, ask, folder/'parts', Store(folder/'raw'), Budget(min_free=0)):
            assert not g.problem, g.problem
            with open(ledger, 'a') as f: f.write(f'{g.key} {g.sha256}\\n')
def child():
    a, b = os.pipe()
    if pid := os.fork(): os.close(a); return pid, b
    try: os.read(a, 1); asyncio.run(run()); os._exit(0)
    except BaseException as e: print(repr(e), file=sys.stderr, flush=True); os._exit(1)
for _ in sys.stdin:
    pid, begin = child()
    print(pid, flush=True); sys.stdin.readline()
    os.write(begin, b'1'); os.close(begin)
    print(os.waitpid(pid, 0)[1], flush=True)
'''

class Killer:
    "Serves files, and kills the client once so many bytes have gone out"
    def __init__(self, data): self.data, self.pid, self.left = data, None, 0
    def __call__(self, req):
        r = ranged(req, self.data[req.path], etag=f'"{req.path[1:]}"')
        return replace(r, body=b'', stream=self.metered(r.body), declared=len(r.body))
    def metered(self, data):
        for k in range(0, len(data), 2**14):
            yield data[k:k+2**14]
            time.sleep(.001) # Else it all lies in the sockets, and nothing has come
            self.left -= 2**14
            if self.left<0 and self.pid:
                with suppress(ProcessLookupError): os.kill(self.pid, signal.SIGKILL)

def test_kill_at_twenty_moments(tmp_path):
    n, sizes, seed = 48, [3_000, 40_000, 700_000, 6_000_000], 20261121
    server = Killer({f'/f{k}': body(k, sizes[k%4]) for k in range(n)})
    ledger, draw, ends = tmp_path/'done.txt', random.Random(seed), []
    print('seed', seed)
    with replay(server) as at:
        p = subprocess.Popen([sys.executable, '-c', KILLED, at, str(tmp_path), str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            for k in range(21):
                finished, begun = {l.split()[0] for l in (ledger.read_text() if ledger.exists() else '').split('\n')[:-1]}, len(at.seen)
                p.stdin.write('\n'); p.stdin.flush()
                pid = int(p.stdout.readline())
                server.left, server.pid = draw.uniform(0, 6_000_000), pid if k<20 else None
                p.stdin.write('\n'); p.stdin.flush()
                ends.append(int(p.stdout.readline()))
                server.pid = None
                asked = {r.path.replace('/f', 'i') for r in at.seen[begun:]}
                assert not asked & finished, f'round {k}: finished and asked again: {sorted(asked & finished)}'
        finally: p.kill(); p.wait()
    assert ends.count(signal.SIGKILL)>=15 and ends[-1]==0, ends
    lines = ledger.read_text().split('\n')[:-1]
    assert dict(l.split() for l in lines)=={f'i{k}': sha(server.data[f'/f{k}']) for k in range(n)} and len(lines)==n, 'each once'
    assert {p.name: sha(p.read_bytes()) for p in (tmp_path/'raw').rglob('*') if p.is_file()}=={sha(d): sha(d) for d in server.data.values()}
    assert list((tmp_path/'parts').iterdir())==[] and sum(r.startswith('bytes=') for r in ranges(at))>=10, 'parts went on'

# -- many, and large -------------------------------------------------------------------------------

LARGE = '''
import asyncio, sys
from pathlib import Path
from lifelab.collect.budget import Budget
from lifelab.collect.download import download
from lifelab.collect.item import Item
from lifelab.collect.session import Session
from lifelab.collect.store import Store
async def run(at, folder):
    async with Session({'https://files.example.org':at}) as ask:
        wanted = ((f'i{k}', Item(f'i{k}', f'https://files.example.org/f{k}')) for k in range(8))
        async for g in download(wanted, ask, folder/'parts', Store(folder/'raw'), Budget(min_free=0)): print(g.sha256, g.size, g.problem)
asyncio.run(run(sys.argv[1], Path(sys.argv[2])))
print(next(int(l.split()[1])//1024 for l in open('/proc/self/status') if l.startswith('VmHWM')))
'''

def test_memory_with_large_files(tmp_path):
    block, n = random.Random(1).randbytes(2**20), 300
    whole = hashlib.sha256()
    for _ in range(n): whole.update(block)
    def app(req):
        k = n if req.path=='/f0' else 20
        return Reply(200, {}, stream=(block for _ in range(k)), declared=k*2**20)
    with replay(app) as at: done = subprocess.run([sys.executable, '-c', LARGE, at, str(tmp_path)], capture_output=True, text=True)
    *got, mb = done.stdout.split('\n')[:-1]
    assert done.returncode==0, done.stderr
    assert f'{whole.hexdigest()} {n*2**20} ' in got and len(got)==8 and int(mb)<200, (got, mb)

def test_hundred_thousand(tmp_path, monkeypatch):
    "A listing is taken as there is room: what is under way and what is held stay the same from the first to the last"
    n, taken, open_at_once, high = 100_000, 0, 0, [0, 0]
    class Answer:
        status = 200
        def __init__(self, data): self.headers, self.data = {'Content-Length':str(len(data))}, data
        @property
        def content(self): return self
        async def iter_any(self): yield self.data
    @asynccontextmanager
    async def opened(self, url, **more):
        nonlocal open_at_once
        open_at_once += 1
        high[1] = max(high[1], open_at_once)
        await asyncio.sleep(0)
        yield Answer(url[-1:].encode()), url
        open_at_once -= 1
    def listing():
        nonlocal taken
        for k in range(n): taken += 1; yield f'i{k}', Item(f'i{k}', f'https://files.example.org/f{k}')
    async def go():
        seen, marks = 0, {}
        async with Session() as ask:
            async for g in download(listing(), ask, tmp_path/'parts', Store(tmp_path/'raw'), Budget(min_free=0), most=64):
                assert not g.problem
                seen += 1
                high[0] = max(high[0], taken-seen)
                if seen in (n//10, n): gc.collect(); marks[seen] = len(gc.get_objects())
        return seen, marks
    monkeypatch.setattr(Session, 'open', opened)
    monkeypatch.setattr(Part, 'write', lambda self, last=False: self.sha.update(b''.join(self.held)) or self.held.clear())
    monkeypatch.setattr(Store, 'accept', lambda self, path, sha: tmp_path)
    seen, marks = asyncio.run(go())
    assert seen==n and high[0]<=64+1 and high[1]<=64, high
    assert marks[n]-marks[n//10]<1000, marks
