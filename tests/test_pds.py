"""The Planetary Data System, the raw image feed of Mars and the archive's IMG: faults, hostile input, and recordings of the real services."""
import hashlib, json, re
from dataclasses import replace

import numpy as np
import pytest

from conftest import RECORDED, recorded
from lifelab.clean import clean as stage2
from lifelab.clean.archive_image import archive_planes, from_pds3, from_vicar
from lifelab.clean.unpack import Refused as Unread
from lifelab.collect import mars as mars_of, pds as pds_of
from lifelab.collect.item import Item, Mark, as_line
from lifelab.collect.mars import caption as words, looked, mars, numbers
from lifelab.collect.pace import Host
from lifelab.collect.pds import HARVEST, Stopped, caption, citation, files_of, first, items_of, pds, query_of, terms, told, values
from lifelab.collect.replay import Reply, Request, faulty, replay
from lifelab.collect.replay_mars import days, replay_mars, shot
from lifelab.collect.replay_pds import NAVCAM, archive, horizon, labelled, replay_files, replay_pds, vicar
from lifelab.collect.session import Session, listed, wait_for
from lifelab.collect.world import card_of
from lifelab.core.profile import profile

REGISTRY, PORTAL, FILES, FEED = 'https://pds.mcp.nasa.gov', 'https://pds.nasa.gov', 'https://pds-imaging.jpl.nasa.gov', 'https://mars.nasa.gov'
BROWSE = dict(mission='perseverance', instrument='navcam')


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    "No pauses between requests, small pages"
    monkeypatch.setattr(pds_of, 'HOSTS', {n: replace(h, rate=1000., at_once=4, gate=None) for n, h in pds_of.HOSTS.items()})
    monkeypatch.setattr(mars_of, 'HOSTS', {'mars.nasa.gov': Host(rate=1000.)})
    monkeypatch.setattr(pds_of, 'PAGE', 5)
    monkeypatch.setattr('lifelab.collect.session.backoff', lambda n: 0.)


def ask_pds(app, query=BROWSE, mark=None, most=None):
    "What a registry lists"
    with replay(app) as at: return listed(pds, query, most, {REGISTRY: at}, mark)


def walked(service, query, app, there, mark=None):
    "Everything a service yields, items and marks"
    async def go():
        async with Session({there: at}) as ask: return [x async for x in service(query, ask, mark)]
    with replay(app) as at: return wait_for(go())


def lids(items): return [i.id for i in items]


# -- listing: nothing lost, nothing doubled --------------------------------------------------------

@pytest.mark.parametrize('tie', [False, True])
@pytest.mark.parametrize('page', [1, 3, 4, 500])
def test_every_page_size_with_and_without_ties(monkeypatch, tie, page):
    monkeypatch.setattr(pds_of, 'PAGE', page)
    items, last = ask_pds(replay_pds(archive(13, tie)[0]))
    assert len(items)==len(set(lids(items)))==13 and last.full and last.resume==''


def test_ties_would_be_lost_by_the_moment_of_harvest_alone():
    products = [p for p in archive(8, tie=True)[0] if p['type']=='Product_Browse']
    moments = [first(p, HARVEST) for p in products]
    assert len(set(moments))<len(moments), 'the tie mode must hold ties, or the test above proves nothing'


@pytest.mark.parametrize('plan', [['503', '429', None, '503'], ['html', None, 'html'], ['cut', None, 'cut'], ['wrong bytes'], ['half gzip', None, 'half gzip'], ['drip']])
def test_faults_cost_nothing(plan):
    items, last = ask_pds(faulty(replay_pds(archive(9)[0]), plan))
    assert len(items)==len(set(lids(items)))==9 and last.full


def test_gateway_timeouts_are_asked_again():
    assert len(ask_pds(replay_pds(archive(3)[0], slow=3))[0])==3
    with pytest.raises(ValueError, match='answered 504 6 times'): ask_pds(replay_pds(slow=99))


def test_hits_of_minus_one_and_no_summary():
    assert len(ask_pds(replay_pds(archive(11)[0], hits=False))[0])==11
    app = replay_pds(archive(11)[0])
    def bare(req):
        r = app(req)
        d = json.loads(r.body)
        d.pop('summary', None)
        return Reply(r.status, r.headers, json.dumps(d).encode())
    assert len(ask_pds(bare)[0])==11


def test_registry_that_stops_early_is_told_and_can_go_on():
    products = archive(12)[0]
    with pytest.raises(Stopped, match='counts 12 products and gives no more after 5'): ask_pds(replay_pds(products, bug=5))
    async def until_it_stops():
        out = []
        async with Session({REGISTRY: at}) as ask:
            try:
                async for x in pds(BROWSE, ask): out.append(x)
            except Stopped: return out
    with replay(replay_pds(products, bug=5)) as at: got = wait_for(until_it_stops())
    marks = [x for x in got if isinstance(x, Mark)]
    rest = walked(pds, BROWSE, replay_pds(products), REGISTRY, marks[-1])
    both = [x.id for x in got+rest if isinstance(x, Item)]
    assert len(both)==len(set(both))==12 and rest[-1].full


def test_registry_that_ignores_where_to_go_on():
    app = replay_pds(archive(12)[0])
    def stuck(req):
        req.query = [(k, v) for k, v in req.query if k!='search-after']
        return app(req)
    with pytest.raises(Stopped, match='same page again'): ask_pds(stuck)


@pytest.mark.parametrize('stop', range(1, 16, 2))
def test_killed_anywhere_it_goes_on(stop):
    products = archive(13, tie=True)[0]
    seen = walked(pds, BROWSE, replay_pds(products), REGISTRY)[:stop]
    marks = [n for n, x in enumerate(seen) if isinstance(x, Mark)]
    kept, mark = (seen[:marks[-1]], seen[marks[-1]]) if marks else ([], None)
    rest = walked(pds, BROWSE, replay_pds(products), REGISTRY, mark)
    both = [x.id for x in kept+rest if isinstance(x, Item)]
    assert len(both)==len(set(both))==13 and rest[-1].full and rest[-1].since


def test_reharvested_while_it_is_read():
    "A product that is harvested again moves to the end: it comes once, and the listing ends"
    products, n = archive(12)[0], [0]
    moved = next(p for p in products if p['type']=='Product_Browse')
    def app(req):
        n[0] += 1
        if n[0]==3: moved['properties'][HARVEST] = ['2026-01-01T00:00:00.000000001Z']
        return replay_pds(products)(req)
    items, last = ask_pds(app)
    assert len(items)==len(set(lids(items)))==12 and last.since=='2025-12-04T14:18:02.073957812Z'


def test_whole_mission_camera_by_camera():
    items, last = ask_pds(replay_pds(archive(3)[0]), dict(mission='perseverance'))
    assert [i.problem for i in items]==['']*3+['not found at the source']*5 and not last.full


# -- redirects ---------------------------------------------------------------------------------

def test_portal_sends_us_on_and_reorders_the_query(monkeypatch):
    monkeypatch.setattr(pds_of, 'BASE', f'{PORTAL}/api/search/1')
    with replay(replay_pds(archive(12, tie=True)[0])) as registry, replay(replay_pds(moved=REGISTRY)) as portal:
        items, _ = listed(pds, BROWSE, instead={REGISTRY: registry, PORTAL: portal})
        assert len(items)==len(set(lids(items)))==12
        assert any('search-after' in r.raw for r in registry.seen) and [k for k, _ in registry.seen[-1].query]==sorted(k for k, _ in registry.seen[-1].query)


@pytest.mark.parametrize('to', ['http://169.254.169.254/', 'https://evil.example.org/', 'http://pds.nasa.gov/'])
def test_redirect_elsewhere_is_refused(to):
    with pytest.raises(ValueError, match='may not send us|https to http'): ask_pds(lambda req: Reply(307, {'Location': to}))


# -- versions ----------------------------------------------------------------------------------

def named(vid, harvest='2025-12-04T14:18:02.073957801Z', by='null'):
    p = json.loads(json.dumps(next(p for p in archive(1)[0] if p['type']=='Product_Browse')))
    p['id'] = p['id'].split('::')[0]+'::'+vid
    p['properties'] |= {'lidvid': [p['id']], 'vid': [vid], HARVEST: [harvest], 'ops:Provenance.ops:superseded_by': [by]}
    return p


def test_newest_version_wins_even_when_the_registry_gives_several():
    every = [p for p in archive(1)[0] if p['type']!='Product_Browse']+[named('2.0'), named('13.0', '2025-12-04T14:18:02.073957802Z')]
    items, _ = ask_pds(replay_pds(every))
    assert [(i.version, '::' in i.id) for i in items]==[('13.0', False)]


def test_all_versions_are_named_by_lidvid():
    items, _ = ask_pds(replay_pds(archive(3)[0]), BROWSE | dict(versions='all'))
    last = [i for i in items if 'nlf_0672' in i.id]
    assert len(items)==4 and [i.id[-3:] for i in last]==['1.0', '2.0'] and last[0].problem.endswith('has no file of its own')


def test_one_version_that_is_superseded_is_withdrawn_at_the_refresh():
    old, new = named('1.0', by='urn:x::2.0'), named('2.0', '2026-01-01T00:00:00.000000001Z')
    first_time, _ = ask_pds(replay_pds([old, new]), dict(lid=old['id']))
    again, mark = ask_pds(replay_pds([old, new]), dict(lid=old['id']), Mark(since='2025-12-31T00:00:00Z'))
    assert [(i.id, i.withdrawn) for i in first_time]==[(old['id'], False)] and [(i.id, i.withdrawn) for i in again]==[(old['id'], True)] and not mark.full
    newest, _ = ask_pds(replay_pds([old, new]), dict(lid=old['id'].split('::')[0]), Mark(since='2025-12-31T00:00:00Z'))
    assert [(i.version, i.withdrawn) for i in newest]==[('2.0', False)]


def test_refresh_sends_the_moment_unchanged_and_takes_up_what_follows():
    products = archive(12)[0]
    _, last = ask_pds(replay_pds(products))
    with replay(replay_pds(products)) as at:
        none, mark = listed(pds, BROWSE, None, {REGISTRY: at}, last)
        assert none==[] and mark.since==last.since=='2025-12-04T14:18:02.073957812Z' and f'gt "{last.since}"' in at.seen[-1].get('q')
    more = archive(14)[0]
    fresh, mark = ask_pds(replay_pds(more), mark=last)
    assert len(fresh)==2 and not mark.full and mark.since.endswith('814Z')


# -- what is asked and what comes back ---------------------------------------------------------

def test_only_documented_parameters_and_an_explicit_form():
    with replay(replay_pds(archive(12)[0])) as at:
        listed(pds, BROWSE, instead={REGISTRY: at})
        assert {k for r in at.seen for k, _ in r.query}<={'q', 'fields', 'limit', 'sort', 'search-after'}
        assert {r.headers['accept'] for r in at.seen}=={'application/json'}
        assert all(len(r.raw)<6000 for r in at.seen)


@pytest.mark.parametrize('query,says', [(dict(q='lid = "a"'), r'400 for the query.*UnparsableQParamException.*its reference: [0-9a-f-]{36}'),
    (dict(lid='urn:nasa:pds:a b'), 'is no LID'), (dict(lib='x'), "did you mean 'lid'"), (dict(lid=NAVCAM, want='browser'), "did you mean 'browse'"), (dict(), 'one of them')])
def test_queries_that_cannot_be_asked(query, says):
    with pytest.raises(ValueError, match=says): ask_pds(replay_pds(), query)


def test_form_that_is_not_known_is_told():
    app = replay_pds()
    def picky(req):
        req.headers['accept'] = 'image/png'
        return app(req)
    with pytest.raises(ValueError, match=r'answers 406.*Supported formats.*its reference: 0000'): ask_pds(picky, dict(q='(lid eq "a")'))


@pytest.mark.parametrize('service', ['pds', 'mars'])
def test_examples_make_cards(service):
    made = [card_of(f'{service}:{text}') for text, _ in dict(pds=pds_of, mars=mars_of)[service].EXAMPLES]
    assert len({c.name for c in made})==len(made) and all(c.service==service and c.domain=='astrobiology' and c.query for c in made)


def test_html_that_stays_is_told():
    with pytest.raises(ValueError, match='Bad Gateway'): ask_pds(faulty(replay_pds(), ['html']*20))


def test_404_of_a_gateway_is_not_a_missing_product():
    with pytest.raises(ValueError, match='answered 404'): ask_pds(lambda req: Reply(404, {}, b'<html>Not Found</html>'), dict(lid=f'{NAVCAM}:browse:a'))


def test_list_of_names_with_one_that_is_missing(tmp_path):
    some = [p['id'].split('::')[0] for p in archive(2)[0] if p['type']=='Product_Browse']
    (tmp_path/'names.txt').write_text(f'# mine\n{some[0]}\n\n{NAVCAM}:browse:nope # gone\n{some[1]}\n')
    items, _ = ask_pds(replay_pds(archive(2)[0]), query_of(str(tmp_path/'names.txt')))
    assert [(i.id, i.problem) for i in items]==[(some[0], ''), (f'{NAVCAM}:browse:nope', 'not found at the source'), (some[1], '')]


def test_bundle_tells_why_it_skips_and_most_counts_what_can_be_had():
    items, mark = ask_pds(replay_pds(archive(4)[0]), dict(lid=NAVCAM, most=3))
    assert sum(not i.problem for i in items)==3 and any('ask for want=data' in i.problem for i in items) and not mark.full and mark.total==3
    empty, mark = ask_pds(replay_pds([p for p in archive(2)[0] if p['type']=='Product_Bundle']), dict(lid=NAVCAM))
    assert len(empty)==1 and 'lists nothing' in empty[0].problem and not mark.full, 'an empty listing withdraws nothing'


def test_planted_key_never_shows(monkeypatch):
    monkeypatch.setenv('NCBI_API_KEY', 'planted0key1')
    everything = walked(pds, BROWSE, replay_pds(archive(3)[0]), REGISTRY)+walked(mars, dict(sols=669), replay_mars(), FEED)
    assert 'planted0key1' not in repr([as_line(x) if isinstance(x, Item) else x for x in everything])
    with pytest.raises(ValueError) as e: ask_pds(lambda req: Reply(400, {}, b'bad key=planted0key1'))
    assert 'planted0key1' not in str(e.value)


# -- content, to the records -------------------------------------------------------------------

@pytest.mark.parametrize('want', ['browse', 'data'])
def test_from_listing_to_records(want, tmp_path):
    products, files = archive(2)
    items, _ = ask_pds(replay_pds(products), BROWSE | dict(want=want))
    async def get(i):
        async with Session({FILES: at}) as ask: return (await ask.ask(i.url)).body
    for i in items:
        with replay(replay_files(files)) as at:
            data = b'<label/>' if i.id.endswith('#label') else wait_for(get(i))
        if i.id.endswith('#label'): assert not i.train; continue
        assert hashlib.md5(data).hexdigest()==i.md5 and len(data)==i.size
        (tmp_path/'a').write_bytes(data)
        row = dict(item='a', source='pds', path=i.path, format=i.format, title=i.title, caption=i.caption, licence=i.licence, attribution=i.attribution, domain=i.domain)
        draft = stage2.mended(next(stage2.drafts(row, tmp_path/'a', profile('tiny'))))
        record = stage2.to_record(draft, row)
        assert record.modality=='image' and record.train and record.attribution=='NASA/JPL-Caltech' and 'Target: Mars' in record.caption


@pytest.mark.parametrize('spoil,why', [(lambda d: d[:len(d)-1], 'corrupt'), (lambda d: d[:50], 'corrupt'), (lambda d: b'', 'corrupt'), (lambda d: b'PDS_VERSION_ID = PDS3\r\nEND\r\n', 'corrupt'),
    (lambda d: d.replace(b'LINES = 64', b'LINES = 99999999999'), 'too large'), (lambda d: d.replace(b'LINES = 64', b'LINES = 99'), 'corrupt')])
def test_spoilt_img_is_refused(spoil, why):
    with pytest.raises(Unread) as e: archive_planes(spoil(labelled(horizon().mean(-1).astype('i2'))))
    assert e.value.reason==why


@pytest.mark.parametrize('pointer', ['^IMAGE = ("/etc/passwd", 1)', '^IMAGE = "../../etc/passwd"', "^IMAGE = ('/etc/passwd',1)", '^IMAGE = /etc/passwd', '^TABLE = ("/etc/passwd", 1)',
    '^STRUCTURE = "/etc/passwd"', '^IMAGE = {}\r\n^EXTRA = (1,\r\n"/etc/passwd")', '^IMAGE = (\r\n"/etc/passwd", 1)', 'OBJECT = TABLE\r\n^STRUCTURE = "/etc/passwd"\r\nEND_OBJECT = TABLE\r\n^IMAGE = {}'])
def test_label_that_points_out_of_its_file(pointer):
    with pytest.raises(Unread, match='another file'): from_pds3(labelled(horizon().mean(-1).astype('i2'), pointer))


@pytest.mark.parametrize('spoil', [lambda d: d.replace(b'NL=64', b'NL=-4'), lambda d: d.replace(b'NL=64', b'NL=0x'), lambda d: d.replace(b"'HALF'", b"'COMP'"), lambda d: d.replace(b"'BSQ'", b"'XYZ'"),
    lambda d: d.replace(b'NBB=0', b'NBB=9'), lambda d: b'LBLSIZE=99999999  '+d[18:], lambda d: d.replace(b'NLB=0', b'NLB=-1'), lambda d: d.replace(b'LBLSIZE=', b'LBLSIZE=x')])
def test_spoilt_vicar_is_refused(spoil):
    with pytest.raises(Unread): from_vicar(spoil(vicar(horizon().mean(-1).astype('i2'))))


def test_colours_and_reals():
    px = np.moveaxis(horizon(seed=2), -1, 0)
    h = f"LBLSIZE=200       FORMAT='BYTE' ORG='BSQ' NL=64 NS=96 NB=3 RECSIZE=96".encode().ljust(200, b'\0')
    assert (archive_planes(h+px.tobytes())[0]==horizon(seed=2)).all()
    real = horizon(seed=2).mean(-1).astype('>f4')
    real[3] = np.nan
    h = f"LBLSIZE=200       FORMAT='REAL' ORG='BSQ' NL=64 NS=96 NB=1 RECSIZE=384 INTFMT='HIGH' REALFMT='IEEE'".encode().ljust(200, b'\0')
    assert archive_planes(h+real.tobytes()).shape==(1, 64, 96, 3)


# -- the feed ----------------------------------------------------------------------------------

def ask_mars(app, query, mark=None):
    with replay(app) as at: return listed(mars, query, None, {FEED: at}, mark)


@pytest.mark.parametrize('short', [3, 7, 100])
@pytest.mark.parametrize('arriving', [0, 1, 5])
def test_pictures_that_arrive_while_a_sol_is_read(short, arriving):
    items, _ = ask_mars(replay_mars(days({670: 20}), [shot(670, 500+n) for n in range(arriving)], short), dict(sols=670))
    assert len(items)==len(set(lids(items)))==20+(arriving if short<20 else 0), 'what arrives after the only page was read is for the next refresh'


@pytest.mark.parametrize('plan', [['503', '429'], ['html', None, 'cut'], ['half gzip', 'wrong bytes']])
def test_faults_of_the_feed_cost_nothing(plan):
    items, last = ask_mars(faulty(replay_mars(), plan), dict(sols=(669, 671)))
    assert len(items)==len(set(lids(items)))==142 and last.full


def test_cameras_are_joined_by_a_bar_and_pages_hold_a_hundred():
    with replay(replay_mars()) as at:
        items, _ = listed(mars, dict(sols=670, cameras=('NAVCAM_LEFT', 'MCZ_LEFT')), None, {FEED: at})
        assert len(items)==65 and all(r.get('num')=='100' and '%7C' in r.raw for r in at.seen)
    assert {i.attribution for i in items}=={'NASA/JPL-Caltech', 'NASA/JPL-Caltech/ASU/MSSS'}


def test_latest_and_what_came_later():
    items, last = ask_mars(replay_mars(), dict(latest=True))
    assert len(items)==7 and not last.full and json.loads(last.since)['sol']==671
    late = dict(shot(671, 50), date_received='2026-01-01T00:00:00Z')
    fresh, mark = ask_mars(replay_mars(days()+[late, dict(shot(672, 1), date_received='2026-01-02T00:00:00Z')]), dict(latest=True), last)
    assert {late['imageid'], shot(672, 1)['imageid']}<=set(lids(fresh)) and json.loads(mark.since)==dict(received='2026-01-02T00:00:00Z', sol=672)
    again, _ = ask_mars(replay_mars(days()+[late]), dict(sols=(669, 671)), mark)
    assert lids(again)==[late['imageid']], 'what came days before the last refresh is not listed again'


@pytest.mark.parametrize('stop', [1, 6, 80, 137, 141])
def test_killed_anywhere_the_feed_goes_on_by_sols(stop):
    seen = walked(mars, dict(sols=(669, 671)), replay_mars(), FEED)[:stop]
    marks = [n for n, x in enumerate(seen) if isinstance(x, Mark)]
    kept, mark = (seen[:marks[-1]], seen[marks[-1]]) if marks else ([], None)
    rest = walked(mars, dict(sols=(669, 671)), replay_mars(), FEED, mark)
    both = [x.id for x in kept+rest if isinstance(x, Item)]
    assert len(both)==len(set(both))==142


def test_empty_feed_withdraws_nothing():
    items, last = ask_mars(replay_mars([]), dict(sols=670))
    assert items==[] and not last.full


def test_feed_that_is_something_else():
    for body, says in ((b'{"type":"rss"}', 'was expected'), (b'{"images":[{}],"type":"mars2020-images-list-1.1"}', 'without an imageid')):
        with pytest.raises(ValueError, match=says): ask_mars(lambda req: Reply(200, {}, body), dict(sols=1))
    with pytest.raises(ValueError, match='no mark of the Mars feed'): ask_mars(replay_mars(), dict(sols=1), Mark(since='yesterday'))
    with pytest.raises(ValueError, match='no newest sol'): ask_mars(replay_mars([]), dict(latest=True))


# -- recordings --------------------------------------------------------------------------------

@recorded
def test_recorded_products():
    page = json.loads((RECORDED/'nasa_pds/search_api/page1_limit100.json').read_text())
    data = [i for p in page['data'] for i in items_of(p, 'data')]
    videos = [i for i in data if i.format=='mp4']
    assert len(videos)==99 and data[0].problem=='Product_Bundle has no file of its own' and sum(i.id.endswith('#label') for i in data)==99
    v = next(i for i in videos if 'puc1_00000005_023_002312' in i.id)
    assert (v.size, v.md5, v.version) == (12495953, '01e50d16ab94b130540a00d9e91d4243', '1.0')
    assert v.url=='https://pds-imaging.jpl.nasa.gov/archive/m20/cumulative/m2020_edlcam_raw/document_video/puc1_00000005_023_002312.mp4'
    assert v.path=='m20/cumulative/m2020_edlcam_raw/document_video/puc1_00000005_023_002312.mp4' and v.licence=='LicenseRef-JPL-image'
    assert v.citation['author']==[{'family': 'Maki', 'given': 'Justin M.'}] and v.citation['DOI']=='10.17189/1522910' and v.citation['issued']=={'date-parts': [[2021]]}
    assert '3000' not in v.caption and 'TBD' not in v.caption and 'Target: Mars.' in v.caption and 'Taken 2021-02-18 20:44:28 UTC.' in v.caption
    assert all(i.md5 and i.size for i in videos) and len({i.id for i in data})==len(data)==199
    assert values(page['data'][1], 'ops:Provenance.ops:superseded_by')==[] and first(page['data'][0], HARVEST)=='2025-12-03T23:38:57.969886913Z'
    assert all(i.problem and 'ask for want=data' in i.problem for p in page['data'][1:] for i in items_of(p))


@recorded
def test_recorded_listing_with_few_fields():
    page = json.loads((RECORDED/'nasa_pds/search_api/mars2020_edlcam_doi_206_fields.json').read_text())
    assert len({p['id'] for p in page['data']})==page['summary']['hits']==206
    assert all(items_of(p)[0].problem.endswith('has no file of its own') and items_of(p)[0].version for p in page['data'])
    assert citation(page['data'][0])['DOI']=='10.17189/1522910'


@recorded
def test_recorded_products_served_again():
    "The recorded products through the replay server, page by page"
    page = json.loads((RECORDED/'nasa_pds/search_api/page1_limit100.json').read_text())
    items, last = ask_pds(replay_pds(page['data']), dict(q='(pds:Citation_Information.pds:doi eq "10.17189/1522910")', want='data'))
    assert len({i.id for i in items})==len(items)==199 and last.since==max((first(p, HARVEST) for p in page['data']))
    inside, _ = ask_pds(replay_pds(page['data']), dict(lid='urn:nasa:pds:m2020_edlcam_raw', want='data'))
    assert sum(i.format=='mp4' for i in inside)==99


@recorded
def test_recorded_refusals():
    said, ref = told((RECORDED/'transcribed/pds_400_unparsable_q.txt').read_text())
    assert said.startswith('UnparsableQParamException') and ref=='00000000-0000-0000-0000-000000000000'
    assert told((RECORDED/'transcribed/pds_404_not_found.txt').read_text())[0]=='NotFoundException: No product found with identifier urn:nasa:pds:nope'


@recorded
def test_replay_server_knows_the_documented_parameters():
    from lifelab.collect.replay_pds import KNOWN
    spec = (RECORDED/'nasa_pds/spec/PDS_APIs-search-1.6.0-swagger.yaml').read_text()
    named = set(re.findall(r'name: ([\w-]+)\n\s+in: query', spec))
    assert named==set(KNOWN)


@recorded
def test_recorded_feed():
    feed = json.loads((RECORDED/'nasa_mars_raw/rss_list_page0_num3.json').read_text())
    items = [mars_of.item_of(i) for i in feed['images']]
    assert [i.id[-7:] for i in items]==['01_095J', '02_095J', '03_095J'] and {i.attribution for i in items}=={'NASA/JPL-Caltech'}
    assert items[0].path=='sol-01965/NRF_1965_0841393386_816ECM_N0910806NCAM03965_01_095J01.png' and items[0].version=='2026-08-31T02:02:58Z'
    assert 'Sol 1965' in items[0].caption and 'local mean solar time of 15:28:38' in items[0].caption and '\n' not in items[0].caption
    az, el = looked((1, 0, 0, 0), numbers(feed['images'][1]['camera']['camera_vector'], 3))
    assert abs((az-360)-float(feed['images'][1]['extended']['mastAz']))<15 and abs(el)<10, "the camera's direction is given in the rover's frame, as the mast's is"
    ours = json.loads(replay_mars()(Request('GET', '/rss/api/', [('feed', 'raw_images')], {}, '')).body)
    assert set(feed)==set(ours) and set(feed['images'][0])==set(ours['images'][0]) and {k: type(v) for k, v in feed.items()}=={k: type(v) for k, v in ours.items()}
    past = json.loads((RECORDED/'transcribed/mars_raw_past_end.json').read_text())
    assert past['images']==[] and past['type']==mars_of.KIND


@recorded
def test_recorded_picture_reaches_the_records(tmp_path):
    meta = json.loads((RECORDED/'nasa_mars_raw/NRF_0731_0731848568_991ECM_N0361610NCAM12731_04_195J01-metadata.json').read_text())
    path = RECORDED/'nasa_mars_raw/NRF_0731_0731848568_991ECM_N0361610NCAM12731_04_195J01.png'
    row = dict(item='a', source='mars', path=path.name, format='png', title='Sol 731', caption=words(dict(meta, title='Sol 731')))
    got = list(stage2.drafts(row, path, profile('tiny')))
    assert len(got)>1 and all('Navigation Camera' in d['caption'] for d in got if 'reason' not in d)
