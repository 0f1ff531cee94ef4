"""Xeno-canto against what a notebook cell cannot show: storms, pages that shift, kills between pages, odd records, a planted key, recordings of the service."""
import asyncio, hashlib, json, random
from dataclasses import replace

import pytest

from conftest import RECORDED, recorded
from lifelab.clean.clean import drafts
from lifelab.collect import canto as module
from lifelab.collect.canto import API, EXAMPLES, HOSTS, TAGS, canto, caption, query_of, recording, tagged
from lifelab.collect.download import Got, download
from lifelab.collect.item import Mark, as_line
from lifelab.collect.pace import Host
from lifelab.collect.replay import Reply, faulty, replay
from lifelab.collect.replay_canto import chirps, record, replay_canto
from lifelab.collect.session import Session
from lifelab.collect.store import Store
from lifelab.collect.verdict import verdict
from lifelab.core.profile import profile

KEY = 'planted-k3y-0a1b2c'
XC = 'https://xeno-canto.org'
ALL = dict(query='nr:1-999999', per_page=50)


@pytest.fixture(autouse=True)
def key(monkeypatch): monkeypatch.setenv('XENO_CANTO_KEY', KEY)


def quick(**more): return {'xeno-canto.org':Host(rate=10_000, **more)}


def asked(app, query=ALL, mark=None, stop=None, **host):
    "(items, marks) of a listing; it is broken off after `stop` marks"
    async def go(at):
        items, marks = [], []
        async with Session({XC:at}, quick(**host)) as ask:
            async for x in canto(query, ask, mark):
                (marks if isinstance(x, Mark) else items).append(x)
                if stop and len(marks)==stop: break
        return items, marks
    with replay(app) as at: return asyncio.run(go(at))


def numbers(items): return [int(i.id[2:]) for i in items]


def server(n=130, **more): return replay_canto(n, key=KEY, **more)


HERE = set(range(100_001, 100_131))


# Listing ----------------------------------------------------------------------------------------------------------------------------------

def test_everything_once_and_the_marks_say_where():
    items, marks = asked(server())
    assert sorted(numbers(items))==sorted(HERE) and marks[-1].full and marks[-1].total==130 and marks[-1].since
    assert all(m.resume and not m.since for m in marks[:-1]) and marks[0].total==130


@pytest.mark.parametrize('n', [0, 1, 49, 50, 51, 100, 101])
def test_page_boundaries(n):
    items, marks = asked(server(n))
    assert len(items)==len(set(numbers(items)))==n and marks[-1]==replace(marks[-1], resume='', total=n, full=True)


@pytest.mark.parametrize('plan', [['429'], ['503'], ['html'], ['cut'], ['half gzip'], [None, '429', '503', 'html', 'cut', None, '503'], ['drip']])
def test_faults_that_pass(plan):
    items, marks = asked(faulty(server(), plan))
    assert sorted(numbers(items))==sorted(HERE) and marks[-1].full


@pytest.mark.parametrize('slow', ['429', '503'])
def test_the_pace_of_the_service(slow):
    items, _ = asked(server(pace=1000, slow=slow), tries=50)
    assert sorted(numbers(items))==sorted(HERE)


@pytest.mark.parametrize('status', [429, 503])
def test_a_storm_that_does_not_end(status):
    with pytest.raises(ValueError, match=f'asked too often or is busy .{status}'): asked(lambda req: Reply(status, {'Retry-After':'0'}), tries=3)


def test_a_web_page_that_does_not_end():
    page = Reply(200, {'Content-Type':'text/html', 'Retry-After':'0'}, b'<html><title>Just a moment...</title></html>')
    with pytest.raises(ValueError, match='gave no listing.*Just a moment'): asked(lambda req: page, tries=2)


@pytest.mark.parametrize('body, says', [(b'[]', 'no list of recordings'), (b'{"recordings": null}', 'no list of recordings'), (b'not json', 'JSON was expected')])
def test_answers_that_are_no_listing(body, says):
    with pytest.raises(ValueError, match=says): asked(lambda req: Reply(200, {}, body), tries=1)


def test_a_redirect_inwards_is_not_followed():
    with pytest.raises(ValueError, match='may not send us'): asked(faulty(server(), ['inward']))


# Pages that shift -------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('seed', range(12))
def test_uploads_and_withdrawals_while_pages_are_read(seed):
    "Whatever comes or goes, what was there all the time is named once"
    g = random.Random(seed)
    come, gone = [record(500+i) for i in range(g.randint(0, 4))], g.sample(sorted(HERE), g.randint(0, 4))
    items, marks = asked(server(arrive=come, leave=gone, past_end=seed%2==1))
    named = numbers(items)
    assert len(named)==len(set(named)) and HERE-set(gone)<=set(named)<=HERE|{int(r['id']) for r in come}
    assert not marks[-1].resume and marks[-1].since


def test_withdrawals_that_end_a_page_early():
    "The last page vanishes while the listing stands before it"
    items, _ = asked(server(101, leave=[100_001, 100_002, 100_003], past_end=True))
    assert HERE & set(range(100_004, 100_102))<=set(numbers(items)) and len(items)==len(set(numbers(items)))


@pytest.mark.parametrize('query', ['auto:no', 'nr:1-999999', 'nr:100001-999999 auto:no'])
def test_uploads_that_never_cease_are_kept_out(query):
    "The second reading is frozen at the highest number of the first; without that none would ever hold still"
    items, marks = asked(server(arrive=[record(500+i) for i in range(60)]), dict(query=query, per_page=50))
    assert HERE<=set(numbers(items)) and len(items)==len(set(numbers(items))) and marks[-1].full


def test_an_upload_behind_the_last_page_is_seen():
    "It comes after the last page was read, and is found because that page is read again"
    app, n = server(), []
    def late(req):
        n.append(req)
        if len(n)==4: app.all.append(record(500))
        return app(req)
    items, _ = asked(late)
    assert set(numbers(items))==HERE|{100_501} and len(items)==131


@pytest.mark.parametrize('stop', range(1, 8))
@pytest.mark.parametrize('happens', [{}, dict(arrive=[record(500), record(501)]), dict(leave=[100_001, 100_060])])
def test_going_on_after_a_kill_at_any_page(stop, happens):
    app = server(**happens)
    before, marks = asked(app, stop=stop)
    after, _ = asked(app, mark=Mark(marks[-1].resume)) if marks[-1].resume else ([], [])
    both = numbers(before)+numbers(after)
    assert HERE-set(happens.get('leave', ()))<=set(both)
    if not happens: assert len(both)==130, 'none of them twice'


def test_a_shift_before_a_kill_is_not_forgotten_after_it():
    "One is withdrawn before the second page: the count fits again by then, but one has slipped through"
    app = server(leave=[100_001])
    before, marks = asked(app, stop=2)
    assert json.loads(marks[-1].resume)['steady'] is False
    after, _ = asked(app, mark=Mark(marks[-1].resume))
    assert HERE-{100_001}<=set(numbers(before)+numbers(after))


def listing(total, rows=3):
    "A service that tells the totals of `total` in turn"
    told = iter(total)
    def app(req):
        n = next(told)
        return Reply(200, {}, json.dumps(dict(numRecordings=str(n), numSpecies='1', page=1, numPages=1, recordings=[record(i) for i in range(rows)])).encode())
    return app


def test_a_list_that_never_holds_still():
    with pytest.raises(ValueError, match=r'changed during each of 6 readings.*nr:1-100003'): asked(listing(range(4, 99)))


def test_a_service_that_counts_wrongly_but_steadily():
    items, marks = asked(listing([4]*9))
    assert len(items)==3 and not marks[-1].full, 'we do not take the missing one for withdrawn'


# Refresh ----------------------------------------------------------------------------------------------------------------------------------

def test_refresh_asks_only_for_what_came_since():
    app = server()
    with replay(app) as at:
        async def go():
            async with Session({XC:at}, quick()) as ask: return [x async for x in canto({'query':'gen:Turdus'}, ask, Mark(since='2025-03-01'))]
        *items, last = [x for x in asyncio.run(go()) if not (isinstance(x, Mark) and x.resume)]
        assert at.seen[0].get('query')=='gen:Turdus since:2025-03-01'
    assert {i.version>='2025-03-01' for i in items}=={True} and 0<len(items)<130 and not last.full and last.since


@pytest.mark.parametrize('own, since, asks', [('since:2026-01-01', '2025-01-01', '2026-01-01'), ('since:2024-01-01', '2025-01-01', '2025-01-01'), ('since:3', '2025-01-01', '2025-01-01')])
def test_the_later_of_two_dates(own, since, asks):
    with replay(server()) as at:
        async def go():
            async with Session({XC:at}, quick()) as ask: return [x async for x in canto({'query':f'gen:Turdus {own}'}, ask, Mark(since=since))]
        asyncio.run(go())
        assert at.seen[0].get('query')==f'gen:Turdus since:{asks}'


def test_numbers_are_all_answered_for():
    items, marks = asked(server(), {'ids':[100_001, 100_003, 100_008, 999, 5]})
    assert {i.id: i.problem.split(':')[0] for i in items}=={'XC5':'not found at the source', 'XC999':'not found at the source', 'XC100001':'', 'XC100003':'',
        'XC100008':'restricted species'}
    again, _ = asked(server(), {'ids':[100_001, 100_003, 999, 5]}, mark=Mark(marks[1].resume))
    assert [i.id for i in again]==['XC100001', 'XC100003'] and marks[-1].full


# Queries and key --------------------------------------------------------------------------------------------------------------------------

def test_every_tag_of_the_sheet_is_known():
    assert tagged(' '.join(f'{t}:x' for t in TAGS)) and len(set(TAGS))==35
    for text,_ in EXAMPLES: query_of(text)


def test_a_list_of_numbers_in_a_file(tmp_path):
    (f := tmp_path/'numbers.txt').write_text('# from the paper\nXC100001\n100003, xc5\n\n')
    assert query_of(str(f))=={'ids':[5, 100_001, 100_003]}


@pytest.mark.parametrize('query, says', [(dict(query='Turdus merula'), 'gen:Turdus sp:merula'), (dict(query='gne:Turdus'), "did you mean 'gen'"),
    (dict(query='gen:Turdus', per_page=10), '50 to 500'), (dict(query='gen:Turdus', per_page='99'), '50 to 500'), (dict(qery='gen:Turdus'), "did you mean 'query'")])
def test_queries_that_cannot_be_right_ask_nobody(query, says):
    with replay(server()) as at:
        async def go():
            async with Session({XC:at}, quick()) as ask: return [x async for x in canto(query, ask)]
        with pytest.raises(ValueError, match=says): asyncio.run(go())
        assert not at.seen


def test_no_key_no_question(monkeypatch):
    monkeypatch.delenv('XENO_CANTO_KEY'); monkeypatch.setattr('lifelab.collect.secret._from_keyring', lambda n: '')
    with pytest.raises(ValueError, match='export XENO_CANTO_KEY'): asked(server())


@pytest.mark.parametrize('reply', [None, Reply(401, {}, f'{{"message":"bad key {KEY}"}}'.encode()), Reply(400, {}, f'{{"error":{{"message":"no {KEY}"}}}}'.encode()),
    Reply(500, {'Retry-After':'0'}, KEY.encode()), Reply(418, {}, f'key={KEY}'.encode()), Reply(302, {'Location':f'https://evil.org/?key={KEY}'}),
    Reply(200, {}, f'{{"key":"{KEY}"}}'.encode()), Reply(200, {}, b'{}', declared=99)])
def test_the_key_goes_into_the_request_and_nowhere_else(reply, caplog):
    app = server() if reply is None else lambda req: reply
    if reply is None:
        items, marks = asked(app)
        said = repr(items)+repr(marks)+''.join(map(as_line, items))
    else:
        with pytest.raises(ValueError) as e: asked(app, tries=2)
        said, error = '', e.value
        while error: said, error = said+str(error)+repr(error.args), error.__cause__ or error.__context__
        assert len(said)>40
    assert KEY not in said+caplog.text and 'k3y' not in said


def test_the_pace_is_kept_at_the_real_address_only(monkeypatch):
    asks = []
    async def page(ask, *a): asks.append(ask.hosts.get('xeno-canto.org')); return 0, 0, []
    monkeypatch.setattr(module, '_page', page)
    async def go(instead):
        async with Session(instead) as ask: return [x async for x in canto({'query':'gen:Turdus'}, ask)]
    asyncio.run(go({})); asyncio.run(go({XC:'http://127.0.0.1:1'}))
    assert (asks[0].rate, asks[0].at_once, asks[0].hourly)==(1, 1, 1000) and asks[1] is None and asks[0] is not HOSTS['xeno-canto.org']


# Records ----------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('change', [{k: None} for k in record(0) if k!='id']+[{k: ''} for k in record(0) if k!='id']+[{k: []} for k in record(0) if k!='id']+
    [{'length':'x'}, {'also':'Parus'}, {'also':[None, 5]}, {'sono':None}, {'_meta':[]}, {'date':'2024-13-45'}, {'date':2024}, {'id':254_462}, {'unheard-of':{}}])
def test_a_field_may_be_anything(change):
    i = recording(record(0) | change)
    assert i.id in ('XC100001', 'XC254462') and i.caption.endswith('.') and i.url in ('', f'{XC}/{i.id[2:]}/download') and 'None' not in i.caption+i.title+i.attribution


def test_dates_lengths_and_words():
    r = record(0)
    assert 'on' not in caption(r | dict(date='0000-00-00', also=[], loc='', cnt='')).split() and 'in June 1998' in caption(r | {'date':'1998-06-00'})
    assert recording(r | {'length':'1:02:03', 'smp':48_000}).guess==3723*2*48_000 and recording(r | {'length':''}).guess is None
    assert recording(r | {'file-name':'x.mp3', 'length':'0:10'}).guess==240_000
    assert recording(r | {'en':'Jerdon&amp;#039;s Bushlark'}).title.startswith("Jerdon's Bushlark")
    assert recording(r | {'rec':'<b>A</b>&amp;amp;B'}).attribution.startswith('<b>A</b>&B')


@pytest.mark.parametrize('lic, spdx, kept', [('//creativecommons.org/licenses/by-nc-sa/4.0/', 'CC-BY-NC-SA-4.0', False), ('https://creativecommons.org/licenses/by/3.0/', 'CC-BY-3.0', True),
    ('https://creativecommons.org/licenses/by-sa/4.0/', 'CC-BY-SA-4.0', True), ('//creativecommons.org/licenses/by-nc-nd/2.5/', 'CC-BY-NC-ND-2.5', False),
    ('https://creativecommons.org/licenses/by-nd/4.0/', 'CC-BY-ND-4.0', False), ('//creativecommons.org/publicdomain/zero/1.0/', 'CC0-1.0', True),
    ('//creativecommons.org/publicdomain/mark/1.0/', 'LicenseRef-PublicDomain', True), (None, 'unknown', False), ('all rights reserved', 'unknown', False)])
def test_licences(lic, spdx, kept):
    i = recording(record(0) | {'lic':lic})
    assert (i.licence, verdict(i)[0], i.problem, i.train)==(spdx, kept, '', '-ND' not in spdx) and (lic is None or lic.removeprefix('//') in i.evidence)


def test_the_real_addresses_follow_from_the_number_alone():
    i = recording(record(0) | {'file':'https://evil.org/x.exe', 'url':'https://evil.org/', 'file-name':'../../etc/passwd.wav'})
    assert i.url==f'{XC}/100001/download' and i.about==f'{XC}/100001' and i.path=='Turdus-merula/XC100001.wav' and i.request['params']=={'query':'nr:100001'}


# Sounds -----------------------------------------------------------------------------------------------------------------------------------

def fetched(app, tmp_path, items):
    async def go(at):
        async with Session({XC:at}, quick(to=('www.xeno-canto.org',))) as ask:
            return [g async for g in download([(i.id, i) for i in items], ask, tmp_path/'parts', Store(tmp_path/'raw')) if isinstance(g, Got)]
    with replay(app) as at: return {g.key: g for g in asyncio.run(go(at))}, at.seen


def test_a_sound_is_fetched_through_the_redirect_and_goes_on_where_it_was_cut(tmp_path):
    items, _ = asked(server(), {'ids':[100_001, 100_008]})
    got, seen = fetched(faulty(server(), ['cut'], lambda req: 'uploaded' in req.path), tmp_path, items)
    assert got['XC100001'].sha256==hashlib.sha256(chirps(100_001)).hexdigest() and not got['XC100001'].problem
    assert got['XC100008'].problem.startswith('restricted species') and not any('100008' in r.path for r in seen)
    assert any(r.headers.get('range', '').startswith('bytes=') for r in seen), 'the second attempt asks for the rest'
    assert all(KEY not in r.raw for r in seen), 'the sounds need no key'


def test_stage_two_reads_what_came(tmp_path):
    i = asked(server(), {'ids':[100_001]})[0][0]
    (f := tmp_path/'x').write_bytes(chirps(100_001))
    row = dict(item='0'*64, source='xeno-canto', path=i.path, format=i.format, title=i.title, caption=i.caption, licence=i.licence)
    made = list(drafts(row, f, profile('tiny')))
    assert made and not [d for d in made if 'reason' in d and d['reason']!='short rest'] and {d['modality'] for d in made if 'blob' in d}=={'audio'}


# Recordings of the service ----------------------------------------------------------------------------------------------------------------

@recorded
def test_a_recorded_listing():
    body = (RECORDED/'xeno_canto/v3_XC254462.json').read_bytes()
    items, marks = asked(lambda req: Reply(200, {'Content-Type':'application/json'}, body), {'query':'nr:254462'})
    i, = items
    assert (i.id, i.format, i.licence, i.train, i.problem, i.guess, i.version)==('XC254462', 'mp3', 'CC-BY-SA-4.0', True, '', 253*24_000, '2015-06-29')
    assert i.caption==('Song of Lazuli Bunting (Passerina amoena; male, female), recorded at Prairie Trail, Custer State Park, South Dakota, United States on '
        '23 June 2015; in the background Pipilo maculatus.')
    assert i.attribution=='Jonathon Jongsma, XC254462, https://xeno-canto.org/254462, CC-BY-SA-4.0' and i.path=='Passerina-amoena/XC254462.mp3'
    assert i.citation['issued']=={'date-parts':[[2015, 6, 23]]} and i.url=='https://xeno-canto.org/254462/download' and marks[-1].full and marks[-1].total==1
    assert i.title=='Lazuli Bunting (Passerina amoena), song, XC254462' and i.request==dict(method='GET', url=API, params={'query':'nr:254462'})


@recorded
@pytest.mark.parametrize('name, status, says', [('xeno_canto/v3_error_401_key.json', 401, "does not accept the key.*Missing or invalid 'key'"),
    ('transcribed/xeno_canto_400_no_tags.json', 400, 'only accepts queries using tags'), ('transcribed/xeno_canto_400_missing_parameter_documented.json', 400, 'No query specified')])
def test_recorded_refusals(name, status, says):
    body = (RECORDED/name).read_bytes()
    meta = RECORDED/f'{name}.meta.json'
    if meta.exists(): assert json.loads(meta.read_text())['status']==status
    with pytest.raises(ValueError, match=says): asked(lambda req: Reply(status, {'Content-Type':'application/json'}, body))


@recorded
def test_every_recording_of_the_service_is_read_by_a_test():
    found = {str(p.relative_to(RECORDED)) for p in RECORDED.glob('xeno_canto/*')} | {str(p.relative_to(RECORDED)) for p in RECORDED.glob('transcribed/xeno_canto_*')}
    assert {f for f in found if not f.endswith('.meta.json')}=={'xeno_canto/v3_XC254462.json', 'xeno_canto/v3_error_401_key.json',
        'transcribed/xeno_canto_400_no_tags.json', 'transcribed/xeno_canto_400_missing_parameter_documented.json'}


@recorded
def test_the_stand_in_gives_the_fields_of_the_recording():
    ours, theirs = record(0), json.loads((RECORDED/'xeno_canto/v3_XC254462.json').read_text())['recordings'][0]
    assert set(theirs)<=set(ours) and set(ours)-set(theirs)<={'status', '_meta'}
    assert ours['sono'].keys()==theirs['sono'].keys() and ours['osci'].keys()==theirs['osci'].keys()
