"OAI-PMH against servers of others, faults, kills and recordings: nothing lost, nothing doubled, a clear message"
import json, random, threading
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pyarrow.parquet as pq
import pytest
from lxml import etree

from conftest import RECORDED, recorded
from lifelab.clean.clean import clean, drafts
from lifelab.collect.catalogue import entry
from lifelab.collect.collect import collect
from lifelab.collect.item import Item, Mark, as_line
from lifelab.collect.ledger import Ledger
from lifelab.collect.oai import HOSTS, OaiError, _call, harvest, item_of, oai, query_of
from lifelab.collect.pace import Host
from lifelab.collect.philarchive import philarchive
from lifelab.collect.replay import Reply, faulty, replay
from lifelab.collect.replay_oai import GATE, SHELF, Holding, replay_oai
from lifelab.collect.session import Refused, Session, wait_for
from lifelab.collect.verdict import verdict
from lifelab.collect.world import How, using

BASE = 'https://example.org/oai'

def ask_all(query, at, mark=None, stop=None, service=oai, tries=6):
    "(items, marks) of a listing; it is cut off after `stop` marks"
    query = {'base':BASE} | query
    async def go():
        items, marks = [], []
        hosts = {h: Host(rate=1e6, tries=tries, to=('oaipmh.arxiv.org',)) for h in (*HOSTS, 'example.org')}
        stand_ins = {f'https://{h}':str(at) for h in hosts}
        async with Session(stand_ins, hosts) as ask:
            async for x in service(query, ask, mark):
                (marks if isinstance(x, Mark) else items).append(x)
                if stop is not None and len(marks)>=stop: break
        return items, marks
    return wait_for(go())

def run(app, query=None, **kw):
    with replay(app) as at: return (*ask_all(query or {}, at, **kw), at.seen)

def names(items): return [i.id.rpartition(':')[2] for i in items]
def shelf_of(n, seed=0): return [Holding(f'{k:03d}', f'2026-{1+k//28:02d}-{1+k%28:02d}T{k%24:02d}:00:00Z', f'Work {k}', ('Moss, Ada',),
    f'What work number {k} is about, in a sentence that is long enough.', deleted=k%11==7) for k in range(n)]

# -- servers that others wrote ----------------------------------------------------------------------------------------

@contextmanager
def served(answer):
    "A WSGI server around answer(dict of arguments) → bytes"
    def app(env, start):
        body = answer(dict(parse_qsl(env['QUERY_STRING'], keep_blank_values=True)))
        start('200 OK', [('Content-Type', 'text/xml; charset=utf-8'), ('Content-Length', str(len(body)))])
        return [body]
    class Quiet(WSGIRequestHandler):
        def log_message(self, *a): pass
    server = make_server('127.0.0.1', 0, app, handler_class=Quiet)
    t = threading.Thread(target=server.serve_forever, args=(.05,), daemon=True); t.start()
    try: yield f'http://127.0.0.1:{server.server_port}'
    finally: server.shutdown(); server.server_close(); t.join(5)

def at_of(h): return datetime.strptime(h.stamp, '%Y-%m-%dT%H:%M:%SZ')
def fields(h): return dict(title=[h.title], creator=list(h.creators), description=[h.text], date=[h.year], language=[h.language], rights=[h.rights],
    identifier=[f'https://example.org/rec/{h.name}'])

def oaipmh_server(shelf, page=4):
    "The library `oaipmh` holding a shelf"
    from oaipmh import common, error, metadata, server
    class Holdings:
        def identify(self): return common.Identify('Peer', BASE, '2.0', ['a@example.org'], datetime(2020, 1, 1), 'persistent', 'YYYY-MM-DDThh:mm:ssZ', ['identity'])
        def one(self, h): return (common.Header(None, f'oai:example.org:{h.name}', at_of(h), list(h.sets), h.deleted), common.Metadata(None, fields(h)), None)
        def listRecords(self, metadataPrefix, set=None, from_=None, until=None):
            if metadataPrefix!='oai_dc': raise error.CannotDisseminateFormatError(metadataPrefix)
            return [self.one(h) for h in sorted(shelf, key=lambda h: h.stamp) if (not set or set in h.sets) and (not from_ or at_of(h)>=from_)
                and (not until or at_of(h)<=until)]
        def listMetadataFormats(self, identifier=None): return [('oai_dc', 'http://a.org/x.xsd', 'http://www.openarchives.org/OAI/2.0/oai_dc/')]
        def getRecord(self, metadataPrefix, identifier):
            found = [h for h in shelf if identifier==f'oai:example.org:{h.name}']
            if not found: raise error.IdDoesNotExistError(identifier)
            return self.one(found[0])
    registry = metadata.MetadataRegistry()
    registry.registerWriter('oai_dc', server.oai_dc_writer)
    return server.Server(Holdings(), registry, resumption_batch_size=page).handleRequest

def oai_repo_server(shelf, page=4):
    "The library `oai_repo` holding a shelf; it counts what was taken back, and does not list it"
    import oai_repo
    by = lambda: {f'oai:example.org:{h.name}': h for h in sorted(shelf, key=lambda h: h.stamp)}
    class Holdings(oai_repo.DataInterface):
        limit = page
        def get_identify(self):
            return oai_repo.Identify(repository_name='Peer', base_url=BASE, admin_email=['a@example.org'], earliest_datestamp='2020-01-01T00:00:00Z',
                deleted_record='persistent', granularity='YYYY-MM-DDThh:mm:ssZ', compression=[])
        def is_valid_identifier(self, identifier): return identifier in by()
        def get_metadata_formats(self, identifier=None):
            return [oai_repo.MetadataFormat('oai_dc', 'http://www.openarchives.org/OAI/2.0/oai_dc.xsd', 'http://www.openarchives.org/OAI/2.0/oai_dc/')]
        def get_record_header(self, identifier):
            h = by()[identifier]
            return oai_repo.RecordHeader(identifier, h.stamp, list(h.sets), 'deleted' if h.deleted else None)
        def get_record_metadata(self, identifier, metadataprefix):
            h, dc = by()[identifier], 'http://purl.org/dc/elements/1.1/'
            if h.deleted: return None
            root = etree.Element('{http://www.openarchives.org/OAI/2.0/oai_dc/}dc', nsmap=dict(dc=dc))
            for k,vs in fields(h).items():
                for v in vs: etree.SubElement(root, f'{{{dc}}}{k}').text = v
            return root
        def get_record_abouts(self, identifier): return []
        def list_set_specs(self, identifier=None, cursor=0): return sorted({s for h in shelf for s in h.sets}), None, None
        def get_set(self, setspec): return oai_repo.Set(setspec, setspec, [])
        def list_identifiers(self, metadataprefix, filter_from=None, filter_until=None, filter_set=None, cursor=0):
            when = lambda h: at_of(h).replace(tzinfo=timezone.utc)
            found = [i for i,h in by().items() if (not filter_set or filter_set in h.sets) and (not filter_from or when(h)>=filter_from)
                and (not filter_until or when(h)<=filter_until)]
            return found[cursor:cursor+page], len(found), str(sorted((h.name, h.stamp) for h in shelf))
    repo = oai_repo.OAIRepository(Holdings())
    return lambda args: bytes(repo.process(args))

PEERS = [oaipmh_server, oai_repo_server]
def told_by(peer, n): return [replace(h, deleted=h.deleted and peer is oaipmh_server) for h in shelf_of(n)]

@pytest.mark.parametrize('peer', PEERS)
def test_a_server_of_others_is_listed_whole(peer):
    shelf = told_by(peer, 23)
    with served(peer(shelf)) as at: items, marks = ask_all({}, at)
    assert sorted(names(items))==[h.name for h in shelf] and len(marks)==6 and marks[-1].full
    assert {i.id[-3:] for i in items if i.withdrawn}=={h.name for h in shelf if h.deleted}
    assert sum(i.withdrawn for i in items)==(2 if peer is oaipmh_server else 0)
    for i,h in zip(items, shelf):
        if not h.deleted: assert (i.title, i.licence, i.version, i.language)==(h.title, 'CC-BY-4.0', h.stamp, 'en') and entry(etree.fromstring(i.data)).text==(h.text,)

@pytest.mark.parametrize('peer', PEERS)
@pytest.mark.parametrize('a, b, n', [('2026-01-05', '2026-01-10', 6), ('2026-01-05T04:00:00Z', '2026-01-05T04:00:00Z', 1), ('2026-01-20', '', 4),
    ('', '2026-01-02T01:00:00Z', 2), ('2026-01-05T04:00:01Z', '2026-01-06', 1), ('2027-01-01', '', 0)])
def test_dates_choose_the_same_records_at_a_server_of_others(peer, a, b, n):
    shelf = told_by(peer, 23)
    with served(peer(shelf)) as at: items, marks = ask_all({k: v for k,v in (('from', a), ('until', b)) if v}, at)
    want = [h.name for h in shelf if (not a or h.stamp[:len(a)]>=a) and (not b or h.stamp[:len(b)]<=b)]
    assert names(items)==want and len(want)==n and marks[-1].full==(not b)

@pytest.mark.parametrize('peer', PEERS)
def test_a_refresh_at_a_server_of_others_brings_changes_and_withdrawals(peer):
    shelf = told_by(peer, 23)
    with served(peer(shelf)) as at:
        _, marks = ask_all({}, at)
        assert datetime.now(timezone.utc).strftime('%Y-%m')>=marks[-1].since[:7]>'2026-01'
        shelf[3] = replace(shelf[3], stamp='2098-01-01T00:00:00Z', title='Work 3, mended')
        if peer is oaipmh_server: shelf[4] = replace(shelf[4], stamp='2098-01-01T00:00:01Z', deleted=True)
        items, later = ask_all({}, at, mark=marks[-1])
    want = [('003', 'Work 3, mended', False)]+[('004', '', True)]*(peer is oaipmh_server)
    assert [(i.id[-3:], i.title, i.withdrawn) for i in items]==want and not later[-1].full

def test_a_server_that_counts_what_it_does_not_list():
    shelf = shelf_of(23)
    with served(oai_repo_server(shelf)) as at: items, marks = ask_all({}, at)
    assert names(items)==[h.name for h in shelf if not h.deleted] and marks[-1].total==23 and marks[-1].full, 'a second round found no more'

def test_tokens_that_others_void_when_their_list_changes():
    shelf, n = told_by(oai_repo_server, 40), [0]
    inner = oai_repo_server(shelf)
    def moving(args):
        n[0] += 1
        if n[0]==6: shelf[0] = replace(shelf[0], stamp='2098-01-01T00:00:00Z', title='moved')
        return inner(args)
    with served(moving) as at: items, marks = ask_all({}, at)
    assert {i.id for i in items}=={f'oai:example.org:{h.name}' for h in shelf} and [i.title for i in items if i.id.endswith(':000')]==['Work 0', 'moved']
    assert len(items)==41 and n[0]>12

@pytest.mark.parametrize('peer', PEERS)
def test_errors_of_servers_of_others_help(peer):
    with served(peer(shelf_of(5))) as at:
        with pytest.raises(ValueError, match='choose one of oai_dc'): ask_all(dict(metadataPrefix='mods'), at)
        items, _ = ask_all(dict(ids=['oai:example.org:001', 'oai:example.org:zzz']), at)
    assert [(i.id, i.problem) for i in items]==[('oai:example.org:001', ''), ('oai:example.org:zzz', 'not found at the source')]

# -- faults -----------------------------------------------------------------------------------------------------------

WHOLE = [h.name for h in SHELF]

@pytest.mark.parametrize('plan', [['429', '503', '503', '429', '503', None, '429'], [None, '503', None, '429', '429', None, '503'], [None, 'cut', None, 'cut'],
    ['html', None, None, 'html'], [None, 'half gzip', None, 'half gzip'], [None, 'wrong bytes', None, 'wrong bytes'], ['drip']*4])
@pytest.mark.parametrize('dialect', ['plain', 'philarchive'])
def test_faults_that_pass_lose_and_double_nothing(plan, dialect):
    items, marks, seen = run(faulty(replay_oai(dialect), plan), service=harvest)
    assert names(items)==WHOLE and len(seen)==5+sum(p not in (None, 'drip') for p in plan)

def test_a_declared_length_beyond_reason_is_refused_unread():
    with pytest.raises(ValueError, match='10000000000 bytes, more than'): run(faulty(replay_oai('plain'), [None, 'huge']), service=harvest)

def test_a_redirect_inward_is_refused():
    with pytest.raises(ValueError, match='may not send us'): run(faulty(replay_oai(), [None, None, 'inward']))

def test_html_that_stays_is_named():
    with pytest.raises(Refused, match='502 Bad Gateway'): run(faulty(replay_oai(), ['html']*9), tries=2)
    with pytest.raises(Refused, match='is this the base address'): run(lambda req: Reply(404, {}, b'<html><body>Not found</body></html>'))
    with pytest.raises(ValueError, match='neither records nor an error'): run(lambda req: Reply(200, {}, b'<OAI-PMH><Identify/></OAI-PMH>'))

@pytest.mark.parametrize('status', [200, 403, 503])
def test_a_page_that_keeps_programs_out_is_named_and_not_evaded(status):
    page = Reply(status, {'Content-Type':'text/html', 'cf-mitigated':'challenge', 'Retry-After':'0'}, GATE)
    with replay(lambda req: page) as at:
        with pytest.raises(ValueError, match='Just a moment.*not evaded. Write to the archive'): ask_all({}, at, tries=2)
        assert len(at.seen)==(2 if status==503 else 1) and all(r.headers['user-agent'].startswith('lifelab/') and 'cookie' not in r.headers for r in at.seen)

def test_the_gate_in_the_middle_of_a_listing_keeps_the_place():
    app = replay_oai()
    def closing(req): return app(req) if len(app.given)<2 else Reply(403, {'Content-Type':'text/html'}, GATE)
    with replay(app) as at: first, marks = ask_all({}, at, stop=2)
    with pytest.raises(ValueError, match='Just a moment'): run(closing, mark=marks[-1])
    with replay(app) as at: rest, _ = ask_all({}, at, mark=marks[-1])
    assert names(first+rest)==WHOLE

@pytest.mark.parametrize('stale', [(1,), (2,), (3,), (1, 3), (2, 4, 6)])
@pytest.mark.parametrize('dialect', ['plain', 'zenodo', 'philarchive', 'arxiv'])
def test_tokens_that_run_out(dialect, stale):
    items, marks, seen = run(replay_oai(dialect, stale=stale), service=harvest)
    assert sorted(names(items))==sorted(WHOLE) and marks[-1].full
    assert all('from' not in dict(r.query) for r in seen), 'eleven records do not prove an order'

def test_a_list_in_order_goes_on_from_its_last_date_and_another_from_its_beginning():
    shelf = shelf_of(60)
    for by_date,want in ((True, ['', '2026-02-02T05:00:00Z']), (False, ['', ''])):
        items, marks, seen = run(replay_oai(shelf=shelf, page=6, stale=(5,), by_date=by_date))
        assert len(items)==60 and {i.id[-3:] for i in items}=={h.name for h in shelf}
        froms = [dict(r.query).get('from', '') for r in seen if 'metadataPrefix' in dict(r.query)]
        assert len(froms)==2 and (froms[1]>'2026-01-20' if by_date else froms[1]=='')

def test_days_are_asked_in_days():
    shelf = shelf_of(60)
    items, marks, seen = run(replay_oai('arxiv', shelf, page=6, stale=(5,)), dict(base='arxiv', **{'from':'2026-01-01T00:00:00Z'}))
    froms = [f for r in seen if (f := dict(r.query).get('from'))]
    assert len(items)==60 and froms[0]=='2026-01-01' and len(froms[1])==10>len('2026-01-1') and marks[-1].since=='2026-11-19T12:00:00Z'
    _, _, seen = run(replay_oai('arxiv', shelf), dict(base='arxiv'), mark=marks[-1])
    assert dict(seen[1].query)['from']=='2026-11-19'

def test_tokens_that_always_run_out_end_with_a_message():
    with pytest.raises(ValueError, match='run out again and again, after 3 records: ask for less'): run(replay_oai(stale=range(99)))

def test_the_same_token_twice_ends_with_a_message():
    with pytest.raises(ValueError, match='same resumption token twice'): run(replay_oai(loops=True))

@pytest.mark.parametrize('dialect', ['plain', 'philarchive'])
def test_a_list_that_shifts_while_it_is_read(dialect):
    app, n = replay_oai(dialect), [0]
    def shifting(req):
        n[0] += 1
        if n[0]==3: app.shelf[0] = replace(app.shelf[0], stamp='2026-11-21T00:00:00Z', title='moved to the end')
        return app(req)
    items, marks, _ = run(shifting, service=harvest)
    if dialect=='plain': assert set(names(items))==set(WHOLE) and marks[-1].full
    else: assert set(WHOLE)-set(names(items))=={'004'}, 'without a size nobody can know; the next full listing finds it'

def test_a_size_that_is_a_guess_takes_nothing_for_withdrawn():
    app = replay_oai()
    def boasting(req): r = app(req); return replace(r, body=r.body.replace(b'completeListSize="11"', b'completeListSize="8091628"'))
    items, marks, seen = run(boasting)
    assert names(items)==WHOLE and not marks[-1].full and len(seen)==5

def test_twins_are_told_once_and_what_changed_is_told_again():
    twin = [*SHELF, SHELF[0], SHELF[4], replace(SHELF[2], stamp='2026-10-01T00:00:00Z', title='mended')]
    items, _, _ = run(replay_oai(shelf=twin))
    assert len(items)==12 and [i.title for i in items if i.id.endswith(':003')]==['Gliders that count', 'mended']

# -- kills ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('dialect', ['plain', 'zenodo', 'philarchive', 'arxiv'])
@pytest.mark.parametrize('stop', [1, 2, 3])
def test_a_killed_listing_goes_on(dialect, stop):
    app = replay_oai(dialect)
    with replay(app) as at:
        first, marks = ask_all({}, at, stop=stop, service=harvest)
        rest, later = ask_all({}, at, mark=Mark(resume=str(marks[-1].resume), since=marks[-1].since), service=harvest)
    assert sorted(names(first+rest))==sorted(WHOLE) and later[-1].full and later[-1].since=='2026-11-19T12:00:00Z'

@pytest.mark.parametrize('by_date', [True, False])
def test_a_killed_listing_whose_tokens_are_gone_loses_nothing(by_date, tmp_path):
    app, ids = replay_oai(shelf=shelf_of(60), page=6, by_date=by_date), []
    with Ledger(tmp_path/'l.sqlite') as book, replay(app) as at:
        for stop in (4, None):
            mark = book.begin('a')
            items, marks = ask_all({}, at, mark=mark, stop=stop)
            ids += names(items)
            book.offer('a', items, marks[-1], last=stop is None)
            app.forget()
        got = [dict(r) for r in book.rows('a')] if hasattr(book, 'rows') else []
        assert book.listed('a') and len(set(ids))==60 and (len(ids)==60 or not by_date) and len(got) in (0, 60, 55)
        assert book.mark('a').since=='2026-11-19T12:00:00Z' and book.mark('a').full
        app.shelf[2], app.now = replace(app.shelf[2], stamp='2026-11-20T00:00:00Z', deleted=True), '2026-11-25T00:00:00Z'
        items, marks = ask_all({}, at, mark=book.begin('a'))
        assert names(items)==['002'] and book.offer('a', items, marks[-1], last=True)=={'withdrawn':1}

def test_a_killed_refresh_stays_a_refresh():
    app = replay_oai()
    with replay(app) as at:
        _, first = ask_all({}, at, stop=1, mark=Mark(since='2026-02-01T00:00:00Z'))
        rest, later = ask_all({}, at, mark=first[-1])
    assert first[-1].since=='2026-02-01T00:00:00Z' and not later[-1].full and later[-1].since=='2026-11-19T12:00:00Z'

def test_forty_archives_with_random_manners():
    draw = random.Random(7)
    for _ in range(40):
        shelf = [Holding(f'{k:03d}', f'2026-0{draw.randint(1, 3)}-0{draw.randint(1, 9)}T00:00:0{draw.randint(0, 9)}Z', f'Work {k}', ('A, B',), 'Words enough to keep.',
            deleted=draw.random()<.2) for k in range(draw.randint(1, 40))]
        app = replay_oai(draw.choice(['plain', 'zenodo', 'philarchive', 'arxiv']), shelf, page=draw.randint(2, 9), by_date=draw.random()<.5,
            stale=tuple(draw.sample(range(4, 30), 2)))
        with replay(app) as at:
            items, marks = ask_all({}, at, stop=draw.choice([None, 1, 2, 3]), service=harvest)
            more, last = ask_all({}, at, mark=marks[-1], service=harvest) if marks[-1].resume else ([], marks)
        assert {i.id[-3:] for i in items+more}=={h.name for h in shelf} and last[-1].full

def test_collected_cleaned_and_refreshed(tmp_path):
    app = replay_oai(page=5)
    with replay(app) as at:
        how = dict(instead={BASE:f'{at}/oai'})
        with using(How(**how)): first = collect(tmp_path, 'tiny', sources=f'oai:{BASE}')
        assert first.counts['out']==6 and first.licences=={'CC-BY-4.0':5, 'CC0-1.0':1}, first
        assert clean(tmp_path, 'tiny').counts['out']==8
        [made] = tmp_path.glob('*/records/text-*.parquet')
        said = {r['title']: r for r in pq.read_table(made).to_pylist()}
        assert {t for t,r in said.items() if not r['train']}=={'The smell of an absent flower', 'Closed notes on soil'}
        lichen = said['Is a lichen one organism?']
        assert lichen['text'].startswith('Is a lichen one organism? Ada Moss and Bo Fern, 2025.') and lichen['url']=='https://example.org/rec/001'
        assert lichen['attribution']=='Moss and Fern (2025), An archive that is not there, CC-BY-4.0' and said['Sobre la vida sin célula']['language']=='es'
        app.shelf[0], app.now = replace(app.shelf[0], stamp='2026-12-01T00:00:00Z', deleted=True), '2026-12-20T00:00:00Z'
        with using(How(refresh=True, **how)): second = collect(tmp_path, 'tiny', sources=f'oai:{BASE}')
        assert second.counts['out']==5 and second.counts['dropped']['withdrawn']==1 and dict(at.seen[-1].query)['from']=='2026-11-19T12:00:00Z'

def test_a_place_that_cannot_be_read_is_named():
    for text in ('{', '{"sort": 1}', '[]'):
        with pytest.raises(ValueError, match='list this source anew'): run(replay_oai(), mark=Mark(resume=text))

# -- what comes out ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('dialect, prefix', [('plain', 'oai_dc'), ('plain', 'datacite'), ('zenodo', 'oai_dc'), ('arxiv', 'arXiv'), ('arxiv', 'oai_dc')])
def test_every_item_can_be_read_by_stage_2(dialect, prefix, tmp_path):
    items, _, _ = run(replay_oai(dialect), dict(metadataPrefix=prefix))
    for i in items:
        if i.withdrawn: continue
        (tmp_path/'x').write_bytes(i.data)
        [d] = drafts(dict(format=i.format, id=i.id, title=i.title), tmp_path/'x', None)
        h = next(h for h in SHELF if h.name==i.id[-3:])
        assert 'reason' not in d and d['text'].endswith(h.text) and '&' not in d['text'] and '<' not in d['text'], d

def test_a_record_that_lacks_a_part_is_told_not_lost():
    app = replay_oai(page=20)
    def broken(req):
        body = app(req).body.replace(b'<identifier>oai:example.org:001</identifier>', b'', 1)
        a, b = body.find(b'<metadata>', body.find(b'org:002')), body.find(b'</metadata>', body.find(b'org:002'))
        return Reply(200, {'Content-Type':'text/xml'}, body if a<0 else body[:a]+body[b+11:])
    items, _, _ = run(broken)
    assert len(items)==11 and sorted(i.problem for i in items if i.problem)==['a record without an identifier', 'a record without metadata']

def test_terms_beside_a_record_govern():
    record = etree.fromstring('<record><header><identifier>oai:a:1</identifier></header><metadata><x:dc xmlns:x="http://www.openarchives.org/OAI/2.0/oai_dc/" '
        'xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>T</dc:title><dc:rights>https://creativecommons.org/licenses/by-nc-nd/4.0/</dc:rights></x:dc></metadata>'
        '<about><rights><rightsReference ref="https://creativecommons.org/publicdomain/zero/1.0/"/></rights></about></record>')
    assert item_of(record, BASE, 'oai_dc').licence=='CC0-1.0'
    record.remove(record[-1])
    assert item_of(record, BASE, 'oai_dc').licence=='CC-BY-NC-ND-4.0' and item_of(record, 'https://zenodo.org/oai2d', 'oai_dc').licence=='CC0-1.0'
    assert 'by-nc-nd' in item_of(record, 'https://zenodo.org/oai2d', 'oai_dc').evidence

def test_arxiv_may_send_its_old_address_to_its_new_one():
    app = replay_oai('arxiv')
    def old(req): return app(req) if req.path=='/oai' else Reply(301, {'Location':f"https://oaipmh.arxiv.org/oai?{req.raw.partition('?')[2]}"})
    items, _, _ = run(old, dict(base='https://export.arxiv.org/oai2'))
    assert len(items)==11

def test_a_planted_key_goes_nowhere(monkeypatch):
    for k in ('NCBI_API_KEY', 'XENO_CANTO_KEY'): monkeypatch.setenv(k, 'planted8f0a1c')
    items, marks, seen = run(replay_oai())
    with pytest.raises(ValueError) as e: run(replay_oai(), dict(metadataPrefix='planted8f0a1c'))
    with pytest.raises(ValueError) as f: ask_all(dict(base='https://me:planted8f0a1c@example.org/oai'), 'http://127.0.0.1:9')
    assert 'planted8f0a1c' not in ' '.join([*map(as_line, items), *map(repr, marks), *(r.raw+str(r.headers) for r in seen), str(f.value)])

def test_files_of_identifiers(tmp_path):
    (tmp_path/'ids.txt').write_text('# mine\noai:zenodo.org:001\n\noai:zenodo.org:404\noai:zenodo.org:091\n', encoding='utf-8')
    q = query_of(str(tmp_path/'ids.txt'))
    app = replay_oai('zenodo')
    with replay(app) as at:
        items, marks = ask_all(q, at, stop=2)
        rest, _ = ask_all(q, at, mark=marks[-1])
    assert [(i.id[-3:], i.problem, i.withdrawn) for i in items+rest]==[('001', '', False), ('404', 'not found at the source', False), ('091', '', True)]
    (tmp_path/'ids.txt').write_text('oai:zenodo.org:1\noai:arXiv.org:1\n', encoding='utf-8')
    with pytest.raises(ValueError, match='those of one server'): query_of(str(tmp_path/'ids.txt'))

def test_philarchive_cannot_be_reached_round_the_corner():
    for base in ('philarchive', 'https://philarchive.org/oai.pl', 'https://PhilArchive.org:443/oai.pl', 'https://philarchive.org./oai.pl', 'https://api.philpapers.org/oai.pl'):
        with replay(replay_oai('philarchive')) as at:
            with pytest.raises(ValueError, match='written permission'): ask_all(dict(base=base, permission=dict(who='x', when='2026-01-01', words='a b c d')), at)
            assert not at.seen
    p = dict(who='A keeper', when='2026-05-01', words='You may list our records.', covers=['records', 'training'])
    items, _, _ = run(replay_oai('philarchive'), dict(base='philarchive', permission=p), service=philarchive)
    assert len(items)==11 and not any(verdict(i)[0] for i in items), 'no open licence: the policy has the last word'

# -- recordings -------------------------------------------------------------------------------------------------------

FOLDER = RECORDED/'oai_pmh'
FILES = sorted(FOLDER.rglob('*.xml'))

def meta(path): m = Path(f'{path}.meta.json'); return json.loads(m.read_text(encoding='utf-8')) if m.exists() else dict(status=200, headers={}, request={'uri':''})

def recording(path):
    m = meta(path)
    kept = {k: v for k,v in m['headers'].items() if k.lower() not in ('content-length', 'transfer-encoding', 'content-encoding', 'connection')}
    return Reply(m['status'], kept, path.read_bytes())

def zenodo():
    "A server that answers what was recorded, and nothing else"
    by = {tuple(sorted(parse_qsl(urlsplit(meta(f)['request']['uri']).query))): f for f in FILES if f.parent.name.startswith('zenodo')}
    return lambda req: recording(by[tuple(sorted(req.query))]) if tuple(sorted(req.query)) in by else Reply(404, {}, b'not recorded')

@recorded
@pytest.mark.parametrize('path', FILES, ids=lambda p: p.name)
def test_every_recording_parses(path):
    if path.parent.name=='philpapers': return
    async def go(at):
        async with Session({'https://zenodo.org':at}, {'zenodo.org':Host(rate=1e6, tries=1)}) as ask:
            return await _call(ask, 'https://zenodo.org/oai2d', verb='ListMetadataFormats')
    with replay(lambda req: recording(path)) as at:
        code = path.stem.rpartition('_422_')[2] if '_422_' in path.stem else path.stem if path.parent.name=='spec_examples' else ''
        if code:
            with pytest.raises(OaiError) as e: wait_for(go(at))
            assert e.value.code=={'badPrefix':'badArgument', 'badSet':'noRecordsMatch'}.get(code, code)
        else: assert wait_for(go(at)).find('{*}'+path.stem.split('_')[-1 if 'Identify' in path.stem else 0]) is not None
        assert len(at.seen)==1

@recorded
def test_the_recorded_chain_of_zenodo():
    items, marks, seen = run(zenodo(), dict(base='zenodo'))
    assert [i.id.rpartition(':')[2] for i in items][:4]==['8435696', '8435639', '8433301', '8433364'] and len(items)==9==len({i.id for i in items})
    gone = [i for i in items if i.withdrawn]
    first = items[0]
    assert first.title.startswith('PocketCoffea: a configuration layer') and first.citation['DOI']=='10.5281/zenodo.8435696' and first.licence=='CC0-1.0'
    assert 'by/4.0' in first.evidence and first.attribution=='Matteo Marchegiani (2023), Zenodo, CC0-1.0' and first.about=='https://doi.org/10.5281/zenodo.8435696'
    assert marks[0].total==8_091_628 and not marks[-1].full and marks[-1].since=='2026-08-12T17:56:48Z' and len(seen)==4 and len(gone)<=1

@recorded
def test_the_recorded_page_of_zenodo(tmp_path):
    with replay(zenodo()) as at: items, marks = ask_all(dict(base='zenodo', **{'from':'2026-04-01'}), at, stop=1)
    assert len(items)==50 and marks[0].total==1_345_244
    read = []
    for i in items:
        (tmp_path/'x').write_bytes(i.data)
        read += drafts(dict(format=i.format, id=i.id, title=i.title), tmp_path/'x', None)
    kept = [d for d in read if 'reason' not in d]
    assert {d['reason'] for d in read if 'reason' in d}=={'no abstract'} and len(kept)>=44
    assert not any('&lt;' in d['text'] or '<p>' in d['text'] or '&nbsp;' in d['text'] for d in kept) and {i.language for i in items}>={'en', 'es', 'uz', 'ta', 'ru'}

@recorded
def test_the_recorded_errors_of_zenodo():
    with replay(zenodo()) as at:
        with pytest.raises(ValueError, match="has no format 'XXX': choose one of .*datacite.*oai_dc"): ask_all(dict(base='zenodo', metadataPrefix='XXX'), at)
        for narrow in ({'set':'XXX'}, {'from':'2030-01-01'}): assert ask_all(dict(base='zenodo', **narrow), at)[0]==[]
        items, _ = ask_all(dict(base='zenodo', ids=['oai:zenodo.org:10357859', 'oai:zenodo.org:XXX']), at)
        assert [i.problem for i in items]==['', 'not found at the source'] and items[0].title=='Research Data Management Organiser (RDMO)'
        full, _ = ask_all(dict(base='zenodo', metadataPrefix='datacite', ids=['oai:zenodo.org:10357859']), at)
        assert full[0].format=='datacite' and full[0].citation['type']=='software' and 'Apache-2.0'==entry(etree.fromstring(full[0].data)).licence
        assert len(full[0].citation['author'])==9==len(items[0].citation['author'])
        _, marks = ask_all(dict(base='zenodo'), at, stop=1)
        lost = json.dumps({**json.loads(marks[0].resume), 'token':'XXX'})
        items, _ = ask_all(dict(base='zenodo'), at, mark=Mark(resume=lost))
    assert len(items)==9

@recorded
def test_the_recorded_record_of_philpapers():
    i = item_of(etree.fromstring((FOLDER/'philpapers/record_SILGGG_2017.xml').read_bytes()), 'https://philarchive.org/oai.pl', 'oai_dc')
    assert (i.id, i.version, i.language, i.licence)==('oai:philpapers.org/rec/SILGGG', '2017-01-29T15:25:15Z', 'en', 'unknown')
    assert 'https://philpapers.org/help/terms.html' in i.evidence and i.about=='https://philpapers.org/rec/SILGGG' and i.citation['type']=='book'
    assert i.path=='philpapers.org/rec/SILGGG.xml' and not verdict(i)[0] and i.citation['author'][0]==dict(family='Silvestri', given='Paolo')
