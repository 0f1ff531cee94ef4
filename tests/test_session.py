"""Asking services: what passes is asked again, what does not is told, nobody is asked who should not be, and no key is told."""
import asyncio, gzip, json, re, time

import pytest

from lifelab.collect import session as module
from lifelab.collect.address import public
from lifelab.collect.item import Item, Mark
from lifelab.collect.pace import Host
from lifelab.collect.replay import FAULTS, Reply, faulty, replay
from lifelab.collect.session import Answer, Inflate, Inward, Refused, Session, listed, wait_for

API = 'https://api.example.org'
XML = b'<?xml version="1.0"?><records>'+b'<r>life</r>'*500+b'</records>'

@pytest.fixture(autouse=True)
def soon(monkeypatch):
    "Waits between attempts are short, and drawn no more"
    monkeypatch.setattr(module, 'backoff', lambda n: .01)

def ask(at, *args, host=None, instead=None, timeout=60., **more):
    "One question to a service on this machine"
    async def go():
        async with Session(instead or {API:at}, {'api.example.org':host or Host(rate=5000)}, timeout) as s: return await s.ask(*(args or (API+'/x',)), **more)
    return wait_for(go())

@pytest.mark.parametrize('storm', [['429']*5, ['503', '429', '503'], ['cut', '429', 'cut'], ['half gzip', 'half gzip']])
def test_storm(storm):
    with replay(faulty(lambda req: Reply(body=XML), storm)) as at: assert ask(at).body==XML and len(at.seen)==len(storm)+1

@pytest.mark.parametrize('fault,said', [('429', 'rate limit exceeded'), ('503', 'Service Unavailable'), ('cut', r'gave no answer \(tried 6 times\): '), ('half gzip', 'breaks off early')])
def test_storm_without_end(fault, said):
    with replay(faulty(lambda req: Reply(body=XML), [fault]*9)) as at, pytest.raises(Refused, match=said): ask(at)
    assert len(at.seen)==6

def test_nobody_listens():
    with pytest.raises(Refused, match=r'^api.example.org cannot be reached \(tried 6 times\): is this machine online\? \(') as e: ask('http://127.0.0.1:1')
    assert e.value.answer.status==0 and 'answered' not in str(e.value) and 'Error' not in str(e.value)

def test_retry_after_is_kept_by_all(monkeypatch):
    rests = []
    monkeypatch.setattr(Host, 'pause', lambda self, secs: rests.append(secs))
    with replay(lambda req: Reply(429, {'Retry-After':'23'}) if len(at.seen)==1 else Reply(body=b'{}')) as at: assert ask(at).json()=={}
    assert rests==[23.]

@pytest.mark.parametrize('status', [400, 401, 403, 404, 410, 422, 501])
def test_a_refusal_is_not_repeated(status):
    with replay(lambda req: Reply(status, {}, b'cannotDisseminateFormat')) as at:
        with pytest.raises(Refused, match=f'answered {status} : cannotDisseminate') as e: ask(at)
        assert len(at.seen)==1 and e.value.answer.status==status
        assert ask(at, ok=(200, status)).status==status, 'a service may take it for an answer'

def test_a_service_knows_what_passes():
    def app(req): return Reply(400, {}, b'{"error":"timeout, try again"}') if len(at.seen)<3 else Reply(body=b'{"n":1}')
    with replay(app) as at: assert ask(at, again=lambda a: a.status==400 and b'try again' in a.body).json()=={'n':1}
    with replay(lambda req: Reply(body=b'{"error":"Search Backend failed"}') if len(at.seen)<2 else Reply(body=b'{"n":1}')) as at:
        assert ask(at, again=lambda a: b'Backend failed' in a.body).json()=={'n':1}, 'an error under 200'

def test_html_where_xml_was_due():
    with replay(faulty(lambda req: Reply(body=XML), ['html'])) as at, pytest.raises(Refused, match='a web page came|XML was expected'): ask(at).xml()
    with replay(lambda req: Reply(body=b'<html><title>Just a moment...</title></html>')) as at, pytest.raises(Refused, match='a web page came'): ask(at).xml()

def test_packed_answers():
    with replay(lambda req: Reply(200, {'Content-Encoding':'gzip'}, gzip.compress(XML))) as at: assert ask(at).body==XML
    assert at.seen[0].headers['accept-encoding']=='gzip, deflate'
    with replay(lambda req: Reply(200, {'Content-Encoding':'gzip'}, b'')) as at, pytest.raises(Refused, match='breaks off'): ask(at)

def test_too_much():
    bomb = gzip.compress(bytes(5_000_000))
    with replay(lambda req: Reply(200, {'Content-Encoding':'gzip'}, bomb)) as at, pytest.raises(Refused, match='more than 100,000'): ask(at, most=100_000)
    with replay(lambda req: FAULTS['huge'](Reply(body=XML))) as at, pytest.raises(Refused, match='10000000000 bytes'): ask(at)
    with replay(lambda req: Reply(stream=iter(lambda: bytes(2**16), None))) as at, pytest.raises(Refused, match='more than'): ask(at, most=10**6)
    assert len(at.seen)==1

def test_drip_ends():
    def app(req): return Reply(body=XML*20, drip=.05) if len(at.seen)==1 else Reply(body=XML)
    with replay(app) as at: assert ask(at, timeout=.1).body==XML and len(at.seen)==2, 'each piece comes in time, the whole would take far too long'

# -- where it may go -------------------------------------------------------------------------------

INWARD = ['http://169.254.169.254/latest/meta-data/', 'http://localhost/x', 'http://127.0.0.1:8000/', 'https://[::1]/', 'https://[::ffff:10.0.0.1]/', 'https://10.1.2.3/', 'https://a.localhost/',
    'http://2130706433/', 'http://0x7f000001/', 'http://127.1/', 'http://0/', 'http://localhost./', 'http://127.0.0.1./']

@pytest.mark.parametrize('to', INWARD)
def test_no_way_inward(to):
    with pytest.raises(Inward): Session().where(to)
    name = re.sub(r'^\w+://([^/]*).*', r'\1', to)
    for host in (Host(rate=5000), Host(rate=5000, to=(name, name.strip('[]')))):
        with replay(lambda req: Reply(302, {'Location':to})) as at:
            with pytest.raises(ValueError, match='may not send us|not on the public internet|https to http'): ask(at, host=host)
            assert len(at.seen)==1

@pytest.mark.parametrize('ip', ['10.0.0.7', '127.0.0.1', '::1', 'fd00::1', '169.254.169.254'])
def test_a_name_that_resolves_inward(ip, monkeypatch):
    import aiohttp
    async def resolve(self, host, port=0, family=0): return [dict(hostname=host, host='130.14.29.110', port=port, family=2, proto=0, flags=0), dict(hostname=host, host=ip, port=port, family=2, proto=0, flags=0)]
    monkeypatch.setattr(aiohttp.ThreadedResolver, 'resolve', resolve)
    assert not public(ip)
    async def go():
        async with Session() as s: await s.ask('https://rebound.example.org/x')
    with pytest.raises(Inward, match='not on the public internet'): wait_for(go())

def test_redirects():
    hosts = {'api.example.org':Host(rate=5000, to=('mirror.example.org',)), 'mirror.example.org':Host(rate=5000)}
    def app(req): return Reply(303, {'Location':'https://mirror.example.org/m?b=2&a=1'}) if req.path=='/x' else Reply(body=f'{req.method} {req.raw}'.encode())
    async def go(at):
        async with Session({API:at, 'https://mirror.example.org':at}, hosts) as s: return await s.ask(API+'/x', form=dict(q='life'))
    with replay(app) as at: a = wait_for(go(at))
    assert (a.text(), a.url)==('GET /m?b=2&a=1', 'https://mirror.example.org/m?b=2&a=1') and at.seen[0].method=='POST' and at.seen[0].get('q')=='life'
    with replay(lambda req: Reply(307, {'Location':'/y'}) if req.path=='/x' else Reply(body=req.method.encode())) as at: assert ask(at, API+'/x', form=dict(q='life')).text()=='POST'
    with replay(lambda req: Reply(302, {'Location':req.raw+'x'})) as at, pytest.raises(Refused, match='in a circle'): ask(at)
    with replay(lambda req: Reply(302, {'Location':'https://elsewhere.org/'})) as at, pytest.raises(Refused, match='elsewhere.org, where api.example.org may not'): ask(at)

# -- pace ------------------------------------------------------------------------------------------

def test_no_more_than_allowed_at_once():
    inside, most = [], []
    def app(req):
        inside.append(1); most.append(len(inside)); time.sleep(.01); inside.pop()
        return Reply(body=b'{}')
    async def go(at):
        async with Session({API:at}, {'api.example.org':Host(rate=5000, at_once=3)}) as s: await asyncio.gather(*(s.ask(f'{API}/{k}') for k in range(20)))
    with replay(app) as at: wait_for(go(at))
    assert max(most)<=3 and len(at.seen)==20

def test_a_host_outlives_its_loop():
    hosts = {'api.example.org':Host(rate=5000, at_once=1)}
    async def go(at):
        async with Session({API:at}, hosts) as s: await asyncio.gather(*(s.ask(f'{API}/{k}') for k in range(4)))
    with replay(lambda req: Reply(body=b'{}')) as at:
        for _ in range(3): wait_for(go(at))
    assert len(at.seen)==12

# -- keys ------------------------------------------------------------------------------------------

def test_a_planted_key_is_never_told(monkeypatch):
    monkeypatch.setenv('NCBI_API_KEY', 'planted-4711')
    said = []
    for reply in (Reply(400, {}, b'API key planted-4711 invalid'), Reply(429, {'Retry-After':'0'}, b'planted-4711'), Reply(302, {'Location':'https://elsewhere.org/?api_key=planted-4711'}), Reply(200, {}, b'<html>planted-4711')):
        with replay(lambda req: reply) as at, pytest.raises(ValueError) as e: ask(at, API+'/x', params=dict(api_key='planted-4711', db='nuccore')).xml()
        said.append(str(e.value))
    with pytest.raises(Refused) as e: ask('http://127.0.0.1:9', API+'/x', params=dict(api_key='planted-4711'), host=Host(rate=5000, tries=1))
    assert not [s for s in [*said, str(e.value)] if 'planted' in s], said

# -- listings --------------------------------------------------------------------------------------

async def shelf(query, ask, mark=None):
    "A service of three pages"
    page = int(mark.resume) if mark and mark.resume else 1
    while page:
        found = (await ask.ask(f'{API}/list', dict(page=page))).json()
        for i in found['ids']: yield Item(i)
        page = found.get('next')
        yield Mark(resume=str(page or ''), total=6)

def pages(req):
    k = int(req.get('page'))
    return Reply(body=json.dumps(dict(ids=[f'a{2*k-1}', f'a{2*k}']) | (dict(next=k+1) if k<3 else {})).encode())

@pytest.mark.parametrize('seed', range(4))
def test_a_listing_through_storms(seed):
    import random
    plan = random.Random(seed).choices(['429', '503', 'cut', 'half gzip', None], k=5)
    with replay(faulty(pages, plan)) as at: items, mark = listed(shelf, {}, instead={API:at})
    assert [i.id for i in items]==['a1', 'a2', 'a3', 'a4', 'a5', 'a6'] and mark==Mark(total=6)

def test_a_listing_goes_on():
    with replay(pages) as at:
        some, mark = listed(shelf, {}, most=3, instead={API:at})
        rest, end = listed(shelf, {}, instead={API:at}, mark=mark)
    assert [i.id for i in some]==['a1', 'a2', 'a3'] and mark.resume=='2' and [i.id for i in rest]==['a3', 'a4', 'a5', 'a6'] and end.resume==''
