"""NCBI and PMC against replay servers with faults, an independent S3 server, and recordings of the real service."""
import asyncio, io
from dataclasses import replace
from datetime import date, timedelta

import pytest

from conftest import RECORDED, recorded, storage
from lifelab.clean.clean import drafts
from lifelab.collect.entrez import EUTILS, Forgotten, NotGiven, complaints, parsed, passing, read
from lifelab.collect.item import Item, Mark, as_line
from lifelab.collect.ncbi import BATCH, fetch, item_of, ncbi, query_of, split
from lifelab.collect.pace import Host
from lifelab.collect.pmc import BUCKET, pmc
from lifelab.collect.replay import Reply, faulty, replay
from lifelab.collect.replay_ncbi import Entry, replay_ncbi
from lifelab.collect.replay_pmc import files_of, jats_of, miniature, replay_pmc
from lifelab.collect.row import COLUMNS, item_row
from lifelab.collect.session import Answer, Refused, Session
from lifelab.core.profile import profile

@pytest.fixture(autouse=True)
def nobody(monkeypatch):
    "No key and no address of the person who runs the tests; no waits between attempts"
    for k in ('NCBI_API_KEY', 'LIFELAB_EMAIL'): monkeypatch.delenv(k, raising=False)
    monkeypatch.setattr('lifelab.collect.session.backoff', lambda n: 0.)

def asked(at, query, mark=None, most=None, content=False, rate=1e6):
    "(items, marks) of a listing, with their content when it is wanted"
    async def go():
        items, marks = [], []
        async with Session({EUTILS[:-1]:at+'/entrez/eutils'}, {'eutils.ncbi.nlm.nih.gov':Host(rate=rate)}) as ask:
            async for x in ncbi(query, ask, mark):
                (marks if isinstance(x, Mark) else items).append(x)
                if most is not None and len(marks)>=most: break
            if content:
                free = [i for i in items if not i.problem]
                items = [x for a in range(0, len(free), BATCH) for x in [y async for y in fetch(free[a:a+BATCH], ask)]]
        return items, marks
    return asyncio.run(go())

def letters(n, at=0):
    "So many sequence records"
    return [Entry(10_000+i, f'AB{i:06d}.1', f'made-up plasmid {i}', 120+i%7, words='Escherichia coli') for i in range(at, at+n)]

def papers(n, per_day=None):
    "So many articles, some days apart"
    day = lambda i: f'20{10+i//(per_day or 2000)//300:02d}/{1+i//(per_day or 2000)%12:02d}/{1+i//(per_day or 2000)%28:02d}'
    return [Entry(1000+i, '', f'Study {i} of replicators', 0, day(i), day(i), words='They copied.') for i in range(n)]

def posts(at, tool): return [r for r in at.seen if r.path.endswith(f'{tool}.fcgi')]

# ---- lists

def test_a_list_is_lossless_over_pages_and_goes_on_after_a_stop():
    want = [f'AB{i:06d}.1' for i in range(450)]
    with replay(replay_ncbi(dict(nuccore=letters(450)), rate=1e6)) as at:
        items, marks = asked(at, dict(ids=want))
        assert [i.id for i in items]==want and not any(i.problem for i in items)
        assert marks[-1].full and marks[-1].since and not marks[-1].resume and marks[-1].total==450
        first, cut = asked(at, dict(ids=want), most=1)
        rest, _ = asked(at, dict(ids=want), cut[-1])
        assert [i.id for i in first+rest]==want
        other, _ = asked(at, dict(ids=want[:10]), cut[-1])
        assert len(other)==10, 'a place in another list is not believed'

def test_ids_that_do_not_come_are_asked_for_again_and_then_reported():
    with replay(replay_ncbi(lost=('J01859.1',), rate=1e6)) as at:
        items, _ = asked(at, dict(ids=['U00096.3', 'J01859.1', 'not_an_id', 'NC_777777', 'u00096.3', 'U00096']))
        n = len(posts(at, 'esummary'))
    by = {i.id: i for i in items}
    assert not by['U00096.3'].problem and n==2
    for i in ('J01859.1', 'not_an_id', 'NC_777777'): assert by[i].problem.startswith('not found at the source')
    assert 'u00096.3' not in by and 'U00096' not in by, 'three names of one record are one record'

def test_replaced_and_suppressed_are_problems_at_first_and_withdrawals_later():
    ids = dict(ids=['U00096.2', 'NC_099999.1'])
    with replay(replay_ncbi(rate=1e6)) as at:
        first, marks = asked(at, ids)
        later, _ = asked(at, ids, marks[-1])
    assert [(i.withdrawn, i.problem) for i in first]==[(False, 'replaced by U00096.3: ask for that one'), (False, 'suppressed')]
    assert [i.withdrawn for i in later]==[True, True]

def test_a_new_version_is_a_change_of_the_same_thing():
    app = replay_ncbi(rate=1e6)
    with replay(app) as at:
        a, _ = asked(at, dict(ids=['J01859']))
        app.data['nuccore'][4] = replace(app.data['nuccore'][4], acc='J01859.2', changed='2026/01/02')
        b, _ = asked(at, dict(ids=['J01859']))
    assert (a[0].id, a[0].version, b[0].id, b[0].version)==('J01859', 'J01859.1 2018/08/31', 'J01859', 'J01859.2 2026/01/02')

def test_a_list_may_be_a_file(tmp_path):
    (tmp_path/'genomes.txt').write_text('# of the paper\nU00096.3\tK-12\n\nNC_001416.1 # its phage\nU00096.3\n')
    (tmp_path/'proteins.txt').write_text('P0A7B8\nP12345\n')
    assert query_of(str(tmp_path/'genomes.txt'))==dict(db='nuccore', ids=['U00096.3', 'NC_001416.1', 'U00096.3'])
    assert query_of(f"protein:{tmp_path/'proteins.txt'}")==dict(db='protein', ids=['P0A7B8', 'P12345'])
    with replay(replay_ncbi(rate=1e6)) as at: items, _ = asked(at, dict(ids=str(tmp_path/'genomes.txt')))
    assert [i.id for i in items]==['U00096.3', 'NC_001416.1']

# ---- searches

def test_a_search_is_paged_through_the_history():
    with replay(replay_ncbi(dict(nuccore=letters(450)), rate=1e6)) as at:
        items, marks = asked(at, query_of('nuccore:made-up plasmid[title]'))
        pages = posts(at, 'esummary')
    assert len({i.id for i in items})==len(items)==450 and marks[-1].total==450 and marks[-1].full
    assert len(pages)==3 and all(p.get('WebEnv') and not p.get('id') for p in pages)
    assert items[0].id=='AB000449' and items[0].version=='AB000449.1 2020/01/01'

@pytest.mark.parametrize('life', [1, 2, 3])
def test_a_forgotten_search_is_run_again_without_loss(life):
    "The WebEnv dies after every page or two"
    with replay(replay_ncbi(dict(nuccore=letters(950)), rate=1e6, life=life)) as at:
        items, _ = asked(at, query_of('nuccore:made-up plasmid[title]'))
        assert len(posts(at, 'esearch'))<=6
    assert len(items)==950==len({i.id for i in items})

def test_a_search_that_comes_back_in_another_order_loses_nothing():
    app = replay_ncbi(dict(nuccore=letters(450)), rate=1e6, life=1)
    with replay(app) as at:
        import lifelab.collect.replay_ncbi as m
        with pytest.MonkeyPatch.context() as p:
            turn, found = [0], m.found
            def other(*a): turn[0] += 1; out = found(*a); return out[turn[0]*37%len(out):]+out[:turn[0]*37%len(out)]
            p.setattr(m, 'found', other)
            app.life = 2
            items, _ = asked(at, query_of('nuccore:made-up plasmid[title]'))
    assert len(items)==450==len({i.id for i in items})

def test_a_search_that_is_always_forgotten_is_told():
    with replay(replay_ncbi(dict(nuccore=letters(350)), rate=1e6, life=0)) as at:
        with pytest.raises(ValueError, match='NCBI forgets a search of 350 records'): asked(at, query_of('nuccore:made-up plasmid[title]'))

def test_a_search_forgotten_between_two_runs_is_run_again():
    app = replay_ncbi(dict(nuccore=letters(450)), rate=1e6)
    with replay(app) as at:
        first, marks = asked(at, query_of('nuccore:made-up plasmid[title]'), most=1)
        assert len(first)==200
        app.kept.clear()
        app.data['nuccore'] += letters(5, at=450)
        rest, last = asked(at, query_of('nuccore:made-up plasmid[title]'), marks[-1])
    assert {i.id for i in first+rest}=={f'AB{i:06d}' for i in range(455)} and last[-1].full
    assert len({i.id for i in rest})==len(rest)

def test_a_search_goes_on_where_it_stood():
    with replay(replay_ncbi(dict(nuccore=letters(450)), rate=1e6)) as at:
        first, marks = asked(at, query_of('nuccore:made-up plasmid[title]'), most=2)
        n = len(posts(at, 'esearch'))
        rest, _ = asked(at, query_of('nuccore:made-up plasmid[title]'), marks[-1])
        assert len(posts(at, 'esearch'))==n, 'the history still knows it'
    assert len(first)==400 and len(rest)==50 and len({i.id for i in first+rest})==450

def test_records_added_meanwhile_do_not_shift_the_pages():
    app = replay_ncbi(dict(nuccore=letters(450)), rate=1e6)
    def shifting(req):
        if req.path.endswith('esummary.fcgi'): app.data['nuccore'] += letters(1, at=len(app.data['nuccore'])+1000)
        return app(req)
    with replay(shifting) as at: items, _ = asked(at, query_of('nuccore:made-up plasmid[title]'))
    assert {f'AB{i:06d}' for i in range(450)}=={i.id for i in items} and len(items)==450

def test_a_summary_left_out_of_a_page_is_found_and_reported():
    with replay(replay_ncbi(dict(nuccore=letters(5)), rate=1e6, lost=('AB000003.1',))) as at:
        items, _ = asked(at, query_of('nuccore:made-up plasmid[title]'))
    lost = [i for i in items if i.problem]
    assert len(items)==5 and [i.id for i in lost]==['10003'] and 'not found at the source' in lost[0].problem

@pytest.mark.parametrize('term', ['made-up AND zebra', 'zebra'])
def test_a_word_that_ncbi_would_leave_out_stops_the_search(term):
    with replay(replay_ncbi(dict(nuccore=letters(5)), rate=1e6)) as at:
        with pytest.raises(ValueError, match="nuccore knows no 'zebra'"): asked(at, dict(db='nuccore', term=term))

def test_pubmed_beyond_its_reach_is_cut_by_days():
    "12,000 articles, 9,999 of which one search can reach: every one is listed once"
    with replay(replay_ncbi(dict(pubmed=papers(12_000)), rate=1e6)) as at:
        items, marks = asked(at, query_of('pubmed:replicators[title]'))
        windows = [(r.get('mindate'), r.get('maxdate')) for r in posts(at, 'esearch') if r.get('mindate')]
    assert len(items)==12_000==len({i.id for i in items}) and not any(i.problem for i in items) and marks[-1].full and marks[-1].total==12_000
    assert windows and not any(i.train and i.licence!='unknown' for i in items)

def test_a_day_beyond_reach_is_said():
    with replay(replay_ncbi(dict(pubmed=papers(60, per_day=40)), rate=1e6, cap=20)) as at:
        import lifelab.collect.ncbi as m
        with pytest.MonkeyPatch.context() as p:
            p.setattr(m, 'REACH', 20)
            items, marks = asked(at, query_of('pubmed:replicators[title]'))
    assert len([i for i in items if not i.problem])==40 and '20 of 60 records of this search cannot be reached' in items[-1].problem and not marks[-1].full

def test_windows_survive_a_stop():
    import lifelab.collect.ncbi as m
    days = [(date(2020, 1, 1)+timedelta(i//3)).strftime('%Y/%m/%d') for i in range(300)]
    made = [Entry(1000+i, '', f'Study {i} of replicators', 0, d, d, words='They copied.') for i,d in enumerate(days)]
    with replay(replay_ncbi(dict(pubmed=made), rate=1e6, cap=50)) as at, pytest.MonkeyPatch.context() as p:
        p.setattr(m, 'REACH', 50); p.setattr(m, 'PAGE', 20)
        got, mark = [], None
        for _ in range(200):
            items, marks = asked(at, query_of('pubmed:replicators[title]'), mark, most=1)
            got += items; mark = marks[-1]
            if not mark.resume: break
    assert len(got)==300==len({i.id for i in got}) and mark.full

def test_dates_of_the_query_and_of_the_windows_hold_together():
    with replay(replay_ncbi(dict(pubmed=papers(100, per_day=5)), rate=1e6)) as at:
        every, _ = asked(at, query_of('pubmed:replicators[title]'))
        some, _ = asked(at, dict(db='pubmed', term='replicators[title]', mindate='2010-03-01', maxdate='2010/06'))
    assert 0<len(some)<len(every) and len({i.id for i in some})==len(some)

def test_a_refresh_asks_for_new_and_changed_with_a_days_overlap():
    app = replay_ncbi(dict(pubmed=papers(50)), rate=1e6)
    with replay(app) as at:
        items, marks = asked(at, query_of('pubmed:replicators[title]'))
        since = marks[-1].since
        quiet, again = asked(at, query_of('pubmed:replicators[title]'), marks[-1])
        assert quiet==[] and not again[-1].full and again[-1].since>=since
        app.data['pubmed'][5] = replace(app.data['pubmed'][5], changed=since)
        app.data['pubmed'].append(Entry(77_777, '', 'New replicators', 0, since, since, words='More.'))
        later, _ = asked(at, query_of('pubmed:replicators[title]'), marks[-1])
        windows = {(r.get('datetype'), r.get('mindate')) for r in posts(at, 'esearch') if r.get('datetype')}
    assert {i.id for i in later}=={str(app.data['pubmed'][5].uid), '77777'} and len(later)==2
    assert {k for k,_ in windows}=={'edat', 'mdat'} and all(d<since for _,d in windows)
    old = {i.id: i.version for i in items}
    assert all(old.get(i.id)!=i.version for i in later)

# ---- faults

@pytest.mark.parametrize('plan', [['429']*5, ['503']*5, ['cut']*3, ['html']*3, ['half gzip']*3, ['drip'], [None, '429', '503', 'cut', 'html']])
def test_faults_that_pass(plan):
    want = [f'AB{i:06d}.1' for i in range(250)]
    with replay(faulty(replay_ncbi(dict(nuccore=letters(250)), rate=1e6), plan)) as at:
        items, _ = asked(at, dict(ids=want), content=True)
    assert [i.id for i in items]==want and all(i.data for i in items)

def test_a_web_page_for_ever_is_told():
    with replay(faulty(replay_ncbi(rate=1e6), ['html']*20)) as at:
        with pytest.raises(ValueError, match='502 Bad Gateway'): asked(at, dict(ids=['U00096.3']))

def test_a_redirect_inward_is_refused():
    with replay(faulty(replay_ncbi(rate=1e6), ['inward']*9)) as at:
        with pytest.raises(ValueError, match='may not send us'): asked(at, dict(ids=['U00096.3']))

def test_json_errors_under_200_are_errors():
    said = lambda body: (lambda req: Reply(200, {'Content-Type':'application/json'}, body))
    with replay(said(b'{"error":"API rate limit exceeded","count":"4"}')) as at:
        with pytest.raises(ValueError, match='rate limit'): asked(at, dict(ids=['U00096.3']))
    with replay(said(b'{"header":{},"esearchresult":{"ERROR":"Empty Term in the\nrequest"}}')) as at:
        with pytest.raises(ValueError, match='Empty Term'): asked(at, dict(db='nuccore', term='x[y]'))

_EMPTY = (b'<?xml version="1.0" encoding="UTF-8" ?>\n<!DOCTYPE eSummaryResult PUBLIC "-//NLM//DTD esummary v1 20041029//EN" '
    b'"https://eutils.ncbi.nlm.nih.gov/eutils/dtd/20041029/esummary-v1.dtd">\n<eSummaryResult></eSummaryResult>\n')

def test_an_empty_root_is_no_record():
    with replay(lambda req: Reply(200, {}, _EMPTY)) as at:
        items, _ = asked(at, dict(ids=['U00096.3']))
    assert items[0].problem.startswith('not found at the source')

def test_the_real_pace_is_not_refused_and_a_spent_allowance_is_waited_for():
    with replay(replay_ncbi(dict(nuccore=letters(900)))) as at:
        items, _ = asked(at, dict(ids=[f'AB{i:06d}.1' for i in range(900)]), rate=3.)
    assert len(items)==900
    waits = []
    app = lambda req: (lambda r: Reply(r.status, {**r.headers, 'X-RateLimit-Remaining':'0'}, r.body))(replay_ncbi(rate=1e6)(req))
    with replay(app) as at, pytest.MonkeyPatch.context() as p:
        p.setattr(Host, 'pause', lambda self, secs: waits.append(secs))
        asked(at, dict(ids=['U00096.3']))
    assert waits==[1.]

def test_a_key_is_used_and_never_told(monkeypatch):
    monkeypatch.setenv('NCBI_API_KEY', 'planted-key-4711'); monkeypatch.setenv('LIFELAB_EMAIL', 'planted.person@example.org')
    with replay(replay_ncbi(rate=1e6, keys=('planted-key-4711',))) as at:
        items, marks = asked(at, query_of('nuccore:Escherichia coli[orgn]'), content=True)
        assert all(r.get('api_key')=='planted-key-4711' and r.get('email') and r.get('tool')=='lifelab' for r in at.seen)
        told = ' '.join(map(as_line, items))+repr(marks)+repr(items)+' '.join(r.raw for r in at.seen)
    assert 'planted' not in told and len(items)==3
    with replay(replay_ncbi(rate=1e6)) as at:
        with pytest.raises(ValueError, match='does not know the key') as e: asked(at, dict(ids=['U00096.3']))
    assert 'planted' not in str(e.value)
    with replay(lambda req: Reply(403, {}, b'blocked: planted-key-4711 of planted.person@example.org')) as at:
        with pytest.raises(ValueError, match='403') as e: asked(at, dict(ids=['U00096.3']))
    assert 'planted' not in str(e.value)

def test_no_empty_key_is_sent():
    with replay(replay_ncbi(rate=1e6)) as at:
        asked(at, dict(ids=['U00096.3']))
        assert not any(k in ('api_key', 'email') for r in at.seen for k,_ in r.query)

# ---- content

def test_content_is_cut_into_records_that_are_whole():
    want = [f'AB{i:06d}.1' for i in range(120)]
    with replay(replay_ncbi(dict(nuccore=letters(120)), rate=1e6)) as at:
        items, _ = asked(at, dict(ids=want), content=True)
        assert len(posts(at, 'efetch'))==3
    from Bio import SeqIO
    for i in items:
        r = SeqIO.read(io.StringIO(i.data.decode()), 'genbank')
        assert r.id==i.id and len(r)==i.request['letters'] and i.data.endswith(b'//\n')
    alone, _ = asked_alone(want[7])
    assert alone[0].data==items[7].data, 'the same bytes, fetched alone or among others'

def asked_alone(name):
    with replay(replay_ncbi(dict(nuccore=letters(120)), rate=1e6)) as at: return asked(at, dict(ids=[name]), content=True)

@pytest.mark.parametrize('more', [dict(stutter=3), dict(short=1), dict(short=2)])
def test_content_after_stutters_and_short_answers(more):
    "A time-out that calls itself 400, and texts that end early under status 200"
    for db,ids in (('nuccore', [f'AB{i:06d}.1' for i in range(9)]), ('protein', ['P0A7B8', 'AAC73113.1']), ('pubmed', ['900000', '900001', '900002'])):
        with replay(replay_ncbi(dict(nuccore=letters(9)), rate=1e6, **more)) as at:
            items, _ = asked(at, dict(db=db, ids=ids), content=True)
        with replay(replay_ncbi(dict(nuccore=letters(9)), rate=1e6)) as at: calm, _ = asked(at, dict(db=db, ids=ids), content=True)
        assert [(i.id, i.data, i.problem) for i in items]==[(i.id, i.data, '') for i in calm] and all(i.data for i in calm), (db, more)

def test_content_that_never_comes_whole_is_a_problem():
    with replay(replay_ncbi(dict(nuccore=letters(3)), rate=1e6, short=99)) as at:
        items, _ = asked(at, dict(ids=['AB000000.1', 'AB000001.1', 'AB000002.1']), content=True)
    assert any(i.problem for i in items) and not any(i.data and i.problem for i in items) and all(i.data or i.problem for i in items)

def test_content_left_out_is_a_problem():
    app = replay_ncbi(rate=1e6)
    with replay(lambda req: (app.lost.add('U00096.3') if req.path.endswith('efetch.fcgi') else None) or app(req)) as at:
        items, _ = asked(at, dict(ids=['NC_001416.1', 'U00096.3']), content=True)
    assert [(i.id, bool(i.data), bool(i.problem)) for i in items]==[('NC_001416.1', True, False), ('U00096.3', False, True)]

def test_a_whole_chromosome_is_streamed_from_its_address():
    doc = {'Id':'1', 'AccessionVersion':'NC_000001.11', 'Caption':'NC_000001', 'Length':248_956_422, 'Title':'Homo sapiens chromosome 1', 'Status':'live'}
    i = item_of('nuccore', doc)
    assert i.url.endswith('efetch.fcgi?db=nuccore&id=NC_000001.11&rettype=gbwithparts&retmode=text') and i.guess>600_000_000

@pytest.mark.parametrize('query,kinds', [('U00096.3', {'dna', 'protein'}), ('protein:P0A7B8', {'protein'}), ('taxonomy:562', {'text'}), ('pubmed:morphogenesis', {'text'})])
def test_stage_2_reads_what_stage_1_fetched(query, kinds, tmp_path):
    from types import SimpleNamespace
    with replay(replay_ncbi(rate=1e6)) as at: item, = asked(at, query_of(query), content=True)[0]
    (tmp_path/'raw').write_bytes(item.data)
    card = SimpleNamespace(name='n', attribution='', domain='biology', language='', url='', modality='', region='', school='', simulated=False, licence_evidence='')
    row = item_row(card, item, '0'*64, len(item.data))
    out = list(drafts(row, tmp_path/'raw', profile('tiny') if callable(profile) else profile))
    assert set(row)==set(COLUMNS) and not [d for d in out if 'reason' in d], out
    assert {d.get('modality', 'text') for d in out}==kinds


# ---- recordings of the real service

def body(*parts): return RECORDED.joinpath(*parts).read_bytes()

@recorded
def test_recorded_summaries_become_items():
    docs = lambda *p: [d for d in parsed(body('ncbi_entrez', *p)) if isinstance(d, dict)]
    a, b = (item_of('nuccore', d) for d in docs('taxize', 'esummary_nucleotide_b.xml'))
    assert (a.id, a.version, a.request['letters'], a.attribution)==('X78312', 'X78312.1 1995/09/11', 1369, 'ENA X78312.1')
    assert (b.id, b.title, b.licence)==('KM495596', 'Helianthus annuus isolate TX16R microsatellite AHASL1 sequence', 'LicenseRef-INSDC')
    one, = docs('taxize', 'esummary_nucleotide_a.xml')
    assert item_of('nuccore', one, 'AJ748748').id=='AJ748748' and docs('taxize', 'esummary_nucleotide_keyless.xml')==[one]
    p, q = (item_of('protein', d) for d in docs('biopython', 'esummary3.xml'))
    assert (p.version, q.version)==('AAO47091.1 2016/07/25', 'AAO49381.1 2003/03/02') and p.format=='fasta' and p.licence=='LicenseRef-INSDC'
    assert [item_of('nuccore', d).version for d in docs('biopython', 'esummary4.xml')]==['AY207443.1 2003/03/05', 'AY205604.1 2016/07/25']
    t, = (item_of('taxonomy', d) for d in docs('taxize', 'esummary_taxonomy.xml'))
    assert (t.id, t.title, t.version, t.problem)==('4751', 'Fungi', '2022/01/12', '')
    assert [d['Id'] for d in docs('taxize', 'esummary_children.xml')][:3]==['584652', '451864', '112252']
    m, n = (item_of('pubmed', d) for d in docs('biopython', 'esummary1.xml'))
    assert m.title=='Zirconium granuloma following treatment of rhus dermatitis.' and m.licence=='unknown' and m.id=='11850928'
    assert m.citation['author'][0]==dict(family='LoPresti', given='PJ') and m.citation['issued']=={'date-parts':[[1965]]} and m.version!=n.version

@recorded
def test_recorded_searches():
    r = parsed(body('ncbi_entrez', 'biopython', 'esearch2.xml'))
    assert (r['Count'], r['WebEnv'], r['QueryKey'], len(r['IdList']))==('42249', 'MCID_6927d6e7fee3e90f880ec190', '1', 100)
    assert parsed(body('ncbi_entrez', 'biopython', 'esearch6.xml'))['IdList'][0]=='3069587804'
    for name in ('esearch1', 'esearch3', 'esearch7'): assert int(parsed(body('ncbi_entrez', 'biopython', f'{name}.xml'))['Count'])>0
    for path in (('biopython', 'esearch8.xml'), ('taxize', 'esearch_taxonomy_nohit_PhraseNotFound.xml')):
        r = parsed(body('ncbi_entrez', *path))
        assert r['Count']=='0' and r['ErrorList']['PhraseNotFound'][0] in ('abcXYZ', 'aaa')
    assert parsed(body('ncbi_entrez', 'taxize', 'esearch_taxonomy_hit.xml'))['Count']=='1'
    assert parsed(body('ncbi_entrez', 'biopython', 'epost1.xml'))['WebEnv']

@recorded
def test_recorded_complaints():
    of = lambda *p: complaints(body(*p))
    assert of('ncbi_entrez', 'biopython', 'epost2.xml')==['Invalid db name specified: nothing'] and len(of('ncbi_entrez', 'biopython', 'epost3.xml'))==2
    assert of('ncbi_entrez', 'biopython', 'esummary8.xml')==['Neither query_key nor id specified']
    assert of('ncbi_entrez', 'taxize', 'esummary_ERROR_invalid_uid_a.xml')==['Invalid uid gwa2_scaffold_1731_16S_1 at position= 0']
    assert read(Answer(200, {}, body('ncbi_entrez', 'taxize', 'esummary_ERROR_invalid_uid_a.xml'), ''))[0].tag=='ERROR'
    for name in ('entrez_efetch_expired_webenv_200.xml', 'entrez_esearch_expired_webenv_200.json'):
        with pytest.raises(Forgotten): read(Answer(200, {}, body('transcribed', name), ''))
    with pytest.raises(NotGiven, match='Empty Term'): read(Answer(200, {}, body('transcribed', 'entrez_esearch_json_error_200.json'), ''))
    assert of('transcribed', 'entrez_429_keyless.json')==['API rate limit exceeded'] and of('transcribed', 'entrez_400_bad_key.json')==['API key invalid']
    late, ok = (body('ncbi_entrez', 'taxize', n) for n in ('efetch_HTTP400_backend_timeout.xml', 'efetch_retry_ok.xml'))
    assert passing(Answer(400, {}, late, '')) and not passing(Answer(200, {}, ok, '')) and not complaints(ok)
    assert not passing(Answer(400, {}, body('transcribed', 'entrez_efetch_400_no_ids.xml'), '')) and not passing(Answer(400, {}, body('transcribed', 'entrez_400_bad_key.json'), ''))

@recorded
def test_the_recorded_timeout_and_its_retry_are_replayed(tmp_path):
    late, ok = (body('ncbi_entrez', 'taxize', n) for n in ('efetch_HTTP400_backend_timeout.xml', 'efetch_retry_ok.xml'))
    left = [Reply(400, {'Content-Type':'text/xml'}, late), Reply(200, {'Content-Type':'text/xml'}, ok)]
    taxa = [Item(str(u), format='taxonomy-xml', request=dict(params=dict(db='taxonomy', id=str(u), retmode='xml'))) for u in (6452, 6455, 6454, 110524)]
    async def go(at):
        async with Session({EUTILS[:-1]:at+'/entrez/eutils'}) as ask: return [x async for x in fetch(taxa, ask)]
    with replay(lambda req: left.pop(0)) as at: got = asyncio.run(go(at))
    assert [i.id for i in got]==['6452', '6455', '6454', '110524'] and all(i.data and not i.problem for i in got) and not left
    from lifelab.clean.entrez import taxonomy_xml
    said = [d['text'] for i in got for d in taxonomy_xml(i.data, {})]
    assert len(said)==4 and [t.split('phylum ')[1].split(',')[0] for t in said]==['Mollusca', 'Mollusca', 'Mollusca', 'Arthropoda'], said

@recorded
def test_recorded_content():
    flat, seq = body('ncbi_entrez', 'sequences', 'NC_005816.gb'), body('ncbi_entrez', 'sequences', 'NC_005816.fna')
    (names, n, data), = split('nuccore', flat)
    assert names==['NC_005816.1'] and n==9609 and data==flat and split('nuccore', flat+b'\n'+flat[:5000])==[(names, n, data)]
    (names, n, data), = split('protein', seq)
    assert 'NC_005816.1' in names and n==9609 and data==seq.rstrip()+b'\n'
    a, b = split('pubmed', body('ncbi_entrez', 'biopython', 'pubmed1.xml'))
    assert (a[0], b[0])==(['12091962'], ['9997'])
    from lifelab.clean.entrez import pubmed_xml
    (x,), (y,) = (list(pubmed_xml(d, {})) for _,_,d in (a, b))
    assert x['reason']=='no abstract' and y['text'].startswith('Electron paramagnetic resonance') and y['language']=='en'
    assert [n for n,_,_ in split('taxonomy', body('ncbi_entrez', 'biopython', 'taxonomy.xml'))][0]==['9615']
    from Bio import SeqIO
    assert len(SeqIO.read(io.StringIO(flat.decode()), 'genbank'))==9609


# ---- PubMed Central

def papers_of(at, query, mark=None, most=None, bucket=BUCKET[:-1]):
    "(items, marks) of a listing of PubMed Central"
    async def go():
        items, marks = [], []
        async with Session({bucket:at}, {'pmc-oa-opendata.s3.amazonaws.com':Host(rate=1e6, at_once=8)}) as ask:
            async for x in pmc(query, ask, mark):
                (marks if isinstance(x, Mark) else items).append(x)
                if most is not None and len(marks)>=most: break
        return items, marks
    return asyncio.run(go())

def shelf(n):
    "So many papers, every third in three versions"
    by = 'https://creativecommons.org/licenses/by/4.0/'
    return {k: v for i in range(n) for ver in ((1, 2, 11) if i%3==0 else (1,)) for k,v in files_of(7000000+i, ver, 'CC BY', jats_of(7000000+i, f'Paper {i}', by)).items()}

@pytest.mark.parametrize('most', [1, 2, 7, 1000])
def test_pages_of_the_bucket_split_papers_and_lose_none(most):
    with replay(replay_pmc(shelf(40), most=most)) as at: items, marks = papers_of(at, dict(prefix='PMC70000'))
    assert [i.id for i in items]==[f'PMC{7000000+i}' for i in range(40)] and marks[-1].full
    assert [i.version.split()[0].rpartition('.')[2] for i in items[:4]]==['11', '1', '1', '11'], 'the latest version, by number'

def test_a_listing_of_the_bucket_goes_on_where_it_stood():
    with replay(replay_pmc(shelf(40), most=10)) as at:
        got, mark, n = [], None, 0
        while n<10 and (mark is None or mark.resume):
            items, marks = papers_of(at, dict(prefix='PMC70000'), mark, most=1)
            got += items; mark = marks[-1]; n += 1
    assert [i.id for i in got]==[f'PMC{7000000+i}' for i in range(40)] and n==4 and mark.full

def test_a_list_of_papers_goes_on_and_names_what_is_missing():
    want = [f'PMC{7000000+i}' for i in range(40)]+['PMC1', 'PMC7000003.2', 'PMC7000003.9']
    with replay(replay_pmc(shelf(40))) as at:
        first, marks = papers_of(at, dict(ids=want), most=1)
        rest, last = papers_of(at, dict(ids=want), marks[-1])
    by = {i.id: i for i in first+rest}
    assert len(first+rest)==len(by)==43 and set(by)==set(want) and len(first)==16
    assert by['PMC7000003.2'].version.startswith('PMC7000003.2 ') and by['PMC1'].problem==by['PMC7000003.9'].problem.replace('PMC7000003.9', 'PMC1')

@pytest.mark.parametrize('plan', [['503']*5, ['cut']*4, ['half gzip']*4, ['drip'], [None, None, '503', 'cut', None, '503']])
def test_faults_of_the_bucket_that_pass(plan):
    with replay(faulty(replay_pmc(most=7), plan)) as at: items, _ = papers_of(at, dict(prefix='PMC9000'))
    assert len(items)==7==len({i.id for i in items}) and items[0].licence=='CC-BY-4.0'

def test_a_page_in_place_of_the_listing_and_a_redirect_inward_are_told():
    with replay(faulty(replay_pmc(), ['html']*9)) as at:
        with pytest.raises(ValueError, match='web page|XML was expected'): papers_of(at, dict(prefix='PMC9000'))
    with replay(faulty(replay_pmc(), ['inward']*9)) as at:
        with pytest.raises(ValueError, match='may not send us'): papers_of(at, dict(prefix='PMC9000'))

def test_a_token_that_does_not_change_ends_the_listing():
    page = (b'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>true</IsTruncated>'
        b'<NextContinuationToken>same</NextContinuationToken></ListBucketResult>')
    with replay(lambda req: Reply(200, {}, page)) as at:
        with pytest.raises(ValueError, match='goes in a circle'): papers_of(at, dict(prefix='PMC9000'))

def test_only_the_beginning_of_an_open_paper_is_read():
    files = miniature()
    long = jats_of(9000003, 'Free loops', 'https://creativecommons.org/publicdomain/zero/1.0/', 3000)
    files |= files_of(9000003, 1, 'CC0', long)
    with replay(replay_pmc(files)) as at:
        items, _ = papers_of(at, dict(ids=['PMC9000003', 'PMC9000002']))
        reads = [r for r in at.seen if r.path.endswith('.xml')]
    assert [r.headers.get('range') for r in reads]==['bytes=0-32767'] and len(long)>200_000 and items[0].size==len(long)
    assert items[1].licence=='LicenseRef-CC-BY-NC-ND', 'nobody reads a paper that may not be used'

def test_a_refresh_of_the_bucket_looks_at_young_files_only():
    files = miniature()
    with replay(replay_pmc(files)) as at:
        first, marks = papers_of(at, dict(prefix='PMC9000'))
        quiet, again = papers_of(at, dict(prefix='PMC9000'), marks[-1])
        assert len(first)==7 and quiet==[] and not again[-1].full
        later, _ = papers_of(at, dict(prefix='PMC9000'), Mark(since='2026-04-13T20:00:00Z'))
        assert len(later)==7 and [i.withdrawn for i in later if i.id=='PMC9000004']==[True], 'a day of overlap; a retraction is a withdrawal'
        gone, _ = papers_of(at, dict(ids=['PMC4242']), marks[-1])
        assert gone[0].withdrawn

def test_stage_2_reads_a_paper(tmp_path):
    (tmp_path/'raw').write_bytes(miniature()['PMC9000003.1/PMC9000003.1.xml'])
    out = list(drafts(dict(format='jats', modality='text'), tmp_path/'raw', profile('tiny')))
    assert [d['title'] for d in out]==['Free loops — Abstract', 'Free loops — Results']

def test_an_s3_server_that_we_did_not_write(monkeypatch):
    "moto is an independent S3: its listing, its tokens, its ranges"
    monkeypatch.setenv('MOTO_S3_DEFAULT_MAX_KEYS', '17')
    with storage('pmc-oa-opendata') as (at, s3):
        files = shelf(12)|miniature()
        for k,v in files.items(): s3.put_object(Bucket='pmc-oa-opendata', Key=k, Body=v, ACL='public-read')
        pages = len(list(s3.get_paginator('list_objects_v2').paginate(Bucket='pmc-oa-opendata', Prefix='PMC7')))
        items, marks = papers_of(f'{at}/pmc-oa-opendata', dict(prefix='PMC7'))
        mine, _ = papers_of(f'{at}/pmc-oa-opendata', dict(ids=['PMC9000001', 'PMC9000001.1', 'PMC9000006', 'PMC5']))
    assert pages>1, 'more than one page'
    assert [i.id for i in items]==[f'PMC{7000000+i}' for i in range(12)] and {i.licence for i in items}=={'CC-BY-4.0'} and marks[-1].full
    assert {i.id: i.licence for i in mine}=={'PMC9000001':'CC-BY-4.0', 'PMC9000001.1':'CC-BY-3.0', 'PMC9000006':'unknown', 'PMC5':'unknown'}
    assert all(i.size==len(files[f'{i.version.split()[0]}/{i.version.split()[0]}.xml']) for i in items)

@recorded
def test_a_recorded_paper_states_its_licence():
    from lifelab.collect.paper import paper
    from lifelab.collect.pmc import licence_of
    p = paper(body('ncbi_entrez', 'biopython', 'efetch_pmc.xml'))
    assert (p.licence, p.doi, p.year)==('CC-BY-NC-4.0', '10.1183/23120541.50193-2021', '2021')
    assert licence_of('CC BY', p.licence)[0]=='unknown' and licence_of('CC BY-NC', '')[0]=='LicenseRef-CC-BY-NC'
