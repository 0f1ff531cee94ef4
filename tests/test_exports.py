"""The papers that go with a collection, read back by programs that know nothing of LifeLab: BibTeX, CSL, Croissant, SPDX, the hub's cards, Markdown."""
import hashlib, json, random, resource, socket, subprocess, sys, warnings
from pathlib import Path

import pyarrow as pa, pyarrow.parquet as pq, pytest, yaml

from lifelab.collect.bill import bill
from lifelab.collect.cite import bibtex, cite, key_of, rows_of, source_refs, sources_of
from lifelab.collect.croissant import FIELDS, croissant
from lifelab.collect.datacard import datacard
from lifelab.collect.row import COLUMNS
from lifelab.collect.store import Store
from lifelab.collect.thanks import SHARE, attribution
from lifelab.core.lab import write_table
from lifelab.core.licence import TERMS, ruling
from lifelab.core.terms import licences

NASTY = ['100% & more_or_less #1 {', '} closing', r'\input{/etc/passwd}', '<script>alert(1)</script>', '<i>E. coli</i> K-12', '$x^2$ ~ y', '生命とは何か', 'a | b',
    '[x](javascript:alert(1))', '`code` *bold* _it_', 'two\nlines\r\nand\ttabs', 'zero\x00byte', 'quote " and @misc{x,', "d'Été, naïve", 'ends in \\', '# heading', '<!-- c',
    '![i](https://evil.example/x.png)', '> quoted', '---', '{{double}}', 'cell | --- |', '&lt;b&gt;', '\u202eright to left', 'https://evil.example/bare']
LICENCES = ['CC-BY-4.0', 'CC-BY-SA-4.0', 'CC0-1.0', 'MIT', 'LicenseRef-INSDC', 'LicenseRef-PublicDomain', 'LicenseRef-own.terms', 'CC-BY-NC-ND-4.0', 'unknown',
    'MIT OR CC-BY-3.0', 'CC-BY-SA-3.0 AND MIT', 'free, I think', 'GFDL-1.3-or-later', 'CC-BY-2.5', 'Apache-2.0']
NO = 'birds of | <b>"night"</b>'

def people(r):
    "Authors as services give them, and as they should not"
    return r.choice([[{'family':'Díaz', 'given':'María'}], [{'literal':'Kim and Sons, Ltd.'}], [{'family':r.choice(NASTY), 'given':'A. and B.'}],
        [{'family':'Walt', 'given':'S.', 'non-dropping-particle':'van der'}, {'family':'Li', 'given':'Y.', 'suffix':'Jr.'}], []])

def reference(r, i):
    "A citation with every kind of trouble"
    return {'type':r.choice(['article-journal', 'dataset', 'book', 'song', 'chapter', 'report', 'article-newspaper']), 'title':f'{r.choice(NASTY)} no. {i}',
        'author':people(r), 'container-title':r.choice(['', 'J. Life & Death', NASTY[1]]), 'publisher':r.choice(['', 'P & Q {']), 'page':'1-5', 'DOI':f'10.1234/a<b>{{{i}}}',
        'URL':f'https://e.example/{i}?q=a b&c=%7B}}', 'issued':r.choice([{'date-parts':[[2019, 3, 1]]}, {'raw':'spring of 1899'}, {}])}

def made(where, n=90, seed=7):
    "A stage 1 folder with n hostile rows from three sources; its rows"
    r, store, rows = random.Random(seed), Store(where/'raw'), []
    for i in range(n):
        lic = LICENCES[i%len(LICENCES)]
        text = f'content {i}'.encode()
        row = dict.fromkeys(COLUMNS, '') | dict(source=('alpha', 'beta', NO)[i%3], path=f'd/{i:03} {NASTY[i%5]}', item=store.put(text), format='text',
            bytes=len(text), licence=lic, train=ruling(lic).train and i%11!=0, attribution='' if i%7==0 else f'Maker {i}, {r.choice(NASTY)}',
            url=r.choice(['', f'https://e.example/p/{i}', f'https://e.example/{i}/<"|>', 'javascript:alert(1)']), domain='biology', modality=r.choice(['text', 'audio', 'dna']),
            language=r.choice(['', 'en', 'ja']), title=f'T{i} {r.choice(NASTY)}' if i%9 else '', simulated=i%13==0, id=f'id {i}' if i%2 else f'ID.{i}', md5=hashlib.md5(text).hexdigest())
        if i%4: row['citation'] = json.dumps(reference(r, i))
        rows.append(row)
    types = {'bytes':pa.int64(), 'train':pa.bool_(), 'simulated':pa.bool_()}
    write_table(where/'items.parquet', rows, pa.schema([(c, types.get(c, pa.string())) for c in COLUMNS]), sort=['source', 'path'])
    gone = [dict(source=x['source'], path=x['path'], reason='no licence' if x['licence']=='unknown' else 'licence forbids', detail=f"{x['licence']}: why") for x in rows if not x['train']]
    gone += [dict(source='alpha', path=f'never {i}', reason='licence forbids', detail='CC-BY-NC-4.0: forbids commercial use') for i in range(3)]
    write_table(where/'dropped.parquet', gone+[dict(source='beta', path='x', reason='not fetched', detail='503: '+NASTY[3])], sort=['source', 'path'])
    entry = lambda name, **kw: dict(dict(name=name, title=NASTY[0], version='1.0', package='', licence='MIT', licence_evidence=NASTY[3], used=True, why='open',
        attribution='The source', citation='', url='https://e.example', domain='biology', modality='text', language='en', files=30, bytes=300, sha256=''), **kw)
    (where/'manifest.yaml').write_text(yaml.safe_dump([entry('alpha', package='alpha_wheel', sha256='a'*64, citation='Kim A. et al. A {title. J Life 1, 2 (2020). doi:10.1/x'),
        entry('beta', title=NASTY[7]), entry(NO, title=NO, licence='free, I think'), entry('absent', used=False, files=0, bytes=0, licence='unknown', why='offline')]))
    return sorted(rows, key=lambda x: (x['source'], x['path']))

@pytest.fixture(scope='module')
def lab(tmp_path_factory):
    "A lab with hostile rows and all its papers; (stage folder, rows)"
    where = tmp_path_factory.mktemp('lab')/'01_collect'
    rows = made(where)
    for write in (cite, attribution, bill, croissant, datacard): write(where)
    return where, rows

# -- references ------------------------------------------------------------------------------------

def test_bibtex_is_read_by_another_parser(lab):
    import bibtexparser
    where, rows = lab
    library = bibtexparser.parse_string((where/'citations.bib').read_text())
    assert library.failed_blocks==[] and len({e.key.lower() for e in library.entries})==len(library.entries)
    refs = json.loads((where/'citations.json').read_text())
    assert [e.key for e in library.entries]==[key_of(r['id']) for r in refs]
    assert 'absent' not in {r['id'] for r in refs} and len(refs)==3+sum(bool(r['citation']) or r['url'].startswith('https://doi.org') for r in rows)
    by = {e.key: e for e in library.entries}
    for r in refs:
        e = by[key_of(r['id'])]
        assert {'type', 'title'}<=set(r) and 'title' in e.fields_dict and (r.get('URL') is None or 'url' in e.fields_dict)
        if e.entry_type=='article': assert e.fields_dict['journal'].value
        assert all(v.value.count('{')==v.value.count('}') for v in e.fields)

def test_latex_commands_in_titles_stay_text(lab):
    text = (lab[0]/'citations.bib').read_text()
    assert '\\input' not in text and text.count(r'\textbackslash{}input\textbraceleft{}')>0 and r'\textit{E. coli}' in text

def test_csl_json_is_rendered_by_another_program(lab):
    from citeproc import Citation, CitationItem, CitationStylesBibliography, CitationStylesStyle, formatter
    from citeproc.source.json import CiteProcJSON
    refs = json.loads((lab[0]/'citations.json').read_text())
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        plain = [{k: v for k,v in r.items() if v and k not in ('annote',) and not (k=='issued' and 'raw' in v)} for r in refs if r.get('type')!='document']
        shown = CitationStylesBibliography(CitationStylesStyle('harvard-cite-them-right', validate=False), CiteProcJSON(plain), formatter.plain)
        for r in plain: shown.register(Citation([CitationItem(r['id'])]))
        out = [str(b) for b in shown.bibliography()]
    assert len(out)==len(plain) and any('Kim' in o and '2020' in o and 'A {title' in o for o in out)
    print(*out[:6], sep='\n')
    assert sum('生命とは何か' in o for o in out)==sum('生命とは何か' in r['title'] for r in plain)

def test_keys_do_not_depend_on_the_neighbours(tmp_path):
    a, b = tmp_path/'a'/'01_collect', tmp_path/'b'/'01_collect'
    made(a, 40), made(b, 80)
    keys = lambda w: cite(w) and {r['id']: key_of(r['id']) for r in json.loads((w/'citations.json').read_text())}
    few, many = keys(a), keys(b)
    assert few.items()<=many.items()

def test_items_of_the_same_name_keep_a_key_each(tmp_path):
    c = json.dumps({'title':'A'})
    write_table(tmp_path/'items.parquet', [dict(source='s', path=p, id=i, title='', url='', attribution='', citation=c) for p,i in (('1', 'x'), ('2', 'x'), ('3', 'X'))])
    (tmp_path/'manifest.yaml').write_text(yaml.safe_dump([dict(name='s', title='S')]))
    cite(tmp_path)
    keys = [key_of(r['id']).lower() for r in json.loads((tmp_path/'citations.json').read_text())]
    assert len(keys)==len(set(keys))==4

def test_every_card_of_the_project_can_be_cited():
    from dataclasses import asdict
    from lifelab.collect.cards import cards
    for c in cards():
        refs = source_refs(asdict(c))
        assert refs[0]['id']==c.name and all(r['title'] and bibtex(r).count('{')==bibtex(r).count('}') for r in refs)
        if 'doi:' in c.citation: assert all(r.get('DOI', '').startswith('10.') and r['author'] and r['issued'] for r in refs), c.name

# -- croissant --------------------------------------------------------------------------------------

def test_croissant_has_no_fault_and_is_read_offline(lab, monkeypatch, caplog):
    import mlcroissant as mlc
    def never(*a, **k): raise AssertionError('the network was asked')
    monkeypatch.setattr(socket.socket, 'connect', never)
    where, rows = lab
    data = mlc.Dataset(jsonld=where/'croissant.json')
    assert not data.metadata.ctx.issues.errors and not data.metadata.ctx.issues.warnings and not [r for r in caplog.records if r.levelname in ('WARNING', 'ERROR')]
    text = lambda v: v.decode() if isinstance(v, bytes) else v
    read = [{k.removeprefix('items/'): text(v) for k,v in r.items()} for r in data.records('items')]
    assert read==[{k: r[k] for k in COLUMNS} for r in rows]

def test_croissant_speaks_of_every_column_and_file(lab):
    where, _ = lab
    assert set(COLUMNS)<=set(FIELDS), 'a column of items.parquet is not described in lifelab.collect.croissant'
    d = json.loads((where/'croissant.json').read_text())
    for f in d['distribution']:
        if f['@type']!='cr:FileObject': continue
        data = (where/f['contentUrl']).read_bytes()
        assert f['sha256']==hashlib.sha256(data).hexdigest() and f['contentSize']==f'{len(data)} B'
    assert {'items.parquet', 'dropped.parquet', 'manifest.yaml', 'ATTRIBUTION.md', 'citations.json', 'raw'}=={f['@id'] for f in d['distribution']}
    assert 'https://creativecommons.org/licenses/by-sa/4.0/' in d['license'] and not any('nc-nd' in l for l in d['license'])

def test_the_command_of_croissant_validates(lab):
    done = subprocess.run([sys.executable, '-m', 'mlcroissant.scripts.validate', '--jsonld', str(lab[0]/'croissant.json')], capture_output=True, text=True)
    if 'No module named' in done.stderr: pytest.skip('this mlcroissant has no such command')
    assert done.returncode==0 and 'WARNING' not in done.stderr, done.stderr

# -- bill of materials -------------------------------------------------------------------------------

def test_the_bill_is_valid_spdx(lab):
    from spdx_tools.spdx.parser.parse_anything import parse_file
    from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document
    where, rows = lab
    document = parse_file(str(where/'bill.spdx.json'))
    assert [m.validation_message for m in validate_full_spdx_document(document)]==[]
    assert len(document.files)==len(rows) and {p.name for p in document.packages}=={'alpha', 'beta', NO, 'absent'}
    for f,r in zip(document.files, rows):
        sums = {c.algorithm.name: c.value for c in f.checksums}
        data = Store(where/'raw').path(r['item']).read_bytes()
        assert sums=={'SHA1':hashlib.sha1(data).hexdigest(), 'SHA256':r['item'], 'MD5':r['md5']} and f.attribution_texts==([r['attribution']] if r['attribution'] else [])
        said = {'unknown':'NOASSERTION', 'free, I think':'NOASSERTION'}.get(r['licence'], r['licence'])
        assert str(f.license_concluded) in (said, said.replace('LicenseRef-PublicDomain', 'LicenseRef-scancode-public-domain'))

def test_the_bill_holds_each_file_in_its_package(lab):
    where, rows = lab
    b = json.loads((where/'bill.spdx.json').read_text())
    ids = [x['SPDXID'] for x in b['files']+b['packages']]
    assert len(ids)==len(set(ids))
    inside = {}
    for r in b['relationships']:
        if r['relationshipType']=='CONTAINS': inside.setdefault(r['spdxElementId'], []).append(r['relatedSpdxElement'])
    sha1 = {f['SPDXID']: f['checksums'][0]['checksumValue'] for f in b['files']}
    for p in b['packages']:
        held = inside.get(p['SPDXID'], [])
        assert len(held)==sum(r['source']==p['name'] for r in rows) and p['filesAnalyzed']==bool(held)
        if held: assert p['packageVerificationCode']['packageVerificationCodeValue']==hashlib.sha1(''.join(sorted(sha1[h] for h in held)).encode()).hexdigest()
    refs = {x['licenseId']: x['extractedText'] for x in b['hasExtractedLicensingInfos']}
    assert set(refs)=={'LicenseRef-INSDC', 'LicenseRef-PublicDomain', 'LicenseRef-own.terms'} and all(len(t)>20 for t in refs.values())

def test_the_papers_are_the_same_when_written_again(lab):
    where, _ = lab
    before = {n: (where/n).read_bytes() for n in PAPERS}
    for write in (cite, attribution, bill, croissant, datacard): write(where)
    assert {n: (where/n).read_bytes() for n in PAPERS}==before and not list(where.glob('.*.tmp'))

PAPERS = ('citations.json', 'citations.bib', 'ATTRIBUTION.md', 'bill.spdx.json', 'DATASET.md', 'croissant.json')

def test_no_paper_tells_where_the_disk_is(tmp_path):
    where, disk = tmp_path/'lab'/'01_collect', 'file:///home/ana/frog calls/'
    made(where, 12)
    rows = [r if i else r | dict(attribution=disk, url=disk, evidence='as given by who asked for it', id=f'{disk}a.wav', title='a.wav', licence='CC-BY-4.0', train=True,
        citation=json.dumps(dict(title='A', type='song', URL=f'{disk}a.wav'))) for i,r in enumerate(rows_of(where))]
    pq.write_table(pa.Table.from_pylist(rows), where/'items.parquet')
    gone = [r | dict(detail=f'{disk}b.wav: no such file') for r in rows_of(where, (), 'dropped.parquet')]
    pq.write_table(pa.Table.from_pylist(gone), where/'dropped.parquet')
    entries = [e | dict(title=f'bucket:{disk} licence=CC-BY-4.0', url=disk, citation='', service='bucket', body=f'**Limits.** Only {disk}.') for e in sources_of(where)]
    (where/'manifest.yaml').write_text(yaml.safe_dump(entries))
    for write in (cite, attribution, bill, croissant, datacard): write(where)
    for n in PAPERS: assert '/home' not in (where/n).read_text() and 'frog calls' in (where/n).read_text(), n
    assert 'How the licence is known: as given by who asked for it' in (where/'ATTRIBUTION.md').read_text()

# -- pages for people ---------------------------------------------------------------------------------

def html(text):
    "A Markdown page as a browser gets it, HTML let through as GitHub and the hub do"
    from markdown_it import MarkdownIt
    return MarkdownIt('commonmark', {'html':True}).enable('table').render(text)

@pytest.mark.parametrize('name', ['DATASET.md', 'ATTRIBUTION.md'])
def test_nothing_in_a_title_becomes_markup(lab, name):
    from lxml import html as lx
    text = (lab[0]/name).read_text()
    page = html(text.split('---\n', 2)[2] if name=='DATASET.md' else text)
    tree = lx.fromstring(page)
    assert not tree.xpath('//script|//img|//b|//i|//em|//blockquote|//comment()') and '\x00' not in page and '\u202e' not in page
    links = [a.get('href') for a in tree.xpath('//a[@href]')]
    assert links and all(l.startswith('https://') or l in ('manifest.yaml', 'ATTRIBUTION.md', 'citations.bib', 'citations.json', 'croissant.json', 'bill.spdx.json') for l in links)
    assert all(len(row.xpath('td'))==len(row.xpath('ancestor::table//th')) for row in tree.xpath('//tbody/tr'))

def test_nobody_is_missing_from_the_thanks(lab):
    from lxml import html as lx
    where, rows = lab
    tree = lx.fromstring(html((where/'ATTRIBUTION.md').read_text()))
    plain = lambda s: ' '.join(''.join(c if c.isprintable() else ' ' for c in s).split())
    lines, licence, names = [], '', {e['name']: plain(e['title']) for e in sources_of(where)}
    source = ''
    for e in tree.iter('h3', 'h2', 'p', 'li'):
        t = plain(e.text_content())
        if e.tag in ('h2', 'h3'): source, licence = t, ''
        elif t.startswith('Licence: '): licence = e
        elif e.tag=='li': lines.append((source, licence, t, [a.get('href') for a in e.xpath('.//a')]))
    asked = [r for r in rows if r['train'] and 'a' in ruling(r['licence']).duties]
    assert len(asked)>20
    for r in asked:
        title, who = plain(r['title'] or r['path'].rsplit('/', 1)[-1]), plain(r['attribution'])
        mine = [l for l in lines if l[0]==names[r['source']] and title in l[2] and who in l[2]]
        assert mine, f"{r['source']}/{r['path']} is not thanked"
        shown = [l for l in mine if plain(l[1].text_content()).replace(plain(SHARE.replace('*', '')), '').strip(' .')]
        assert any(ruling(r['licence']).duties.count('s')==('Share alike' in l[1].text_content()) for l in shown)
        if r['url'].startswith('https://'): assert any(l[3] for l in mine)
    unused = [r for r in rows if not r['train'] and r['attribution']]
    assert not any(plain(r['attribution']) in l[2] for r in unused for l in lines)

def test_the_hub_reads_the_card(lab):
    from huggingface_hub import DatasetCard
    where, rows = lab
    card = DatasetCard.load(where/'DATASET.md')
    assert card.data.size_categories==['n<1K'] and set(card.data.language)=={'en', 'ja'} and card.data.configs[0]['data_files']=='items.parquet'
    assert {'cc-by-4.0', 'cc-by-sa-4.0', 'cc0-1.0', 'mit', 'other'}<=set(card.data.license) and all(l==l.lower() for l in card.data.license)

# -- a source of one's own ----------------------------------------------------------------------------------

def test_what_is_to_be_kept_of_an_own_source_stands_by_itself(tmp_path):
    import re
    from lifelab.collect.cards import read_card
    from lifelab.collect.croissant import prose
    where = Path(__file__).resolve().parent.parent/'nbs'/'01_collect'
    cells = [(c['cell_type'], ''.join(c['source'])) for c in json.loads((where/'98_add_a_source.ipynb').read_text())['cells']]
    at = lambda head: next(i for i,(kind,s) in enumerate(cells) if kind=='markdown' and s.startswith(f'## {head}'))
    made = {}
    exec('\n'.join(s for kind,s in cells[at('The whole of it'):at('Try it')] if kind=='code'), made)
    item = made['item_of'](dict(id='H1', name='Viola', place='Lund', licence='https://creativecommons.org/licenses/by/4.0/', by='B. Ek'))
    assert item.licence=='CC-BY-4.0' and made['HOSTS'] and made['query_of']('viola')==dict(genus='Viola')
    keep = cells[at('Keep it')][1]
    number = re.search(r'nbs/01_collect/(\d\d)_herbarium', keep)[1]
    assert not [n for n in where.glob(f'{number}_*.ipynb') if n.stem!=f'{number}_herbarium'] and int(number)>14
    name = re.search(r'data_cards/([\w-]+)\.md', keep)[1]
    (tmp_path/f'{name}.md').write_text(re.search(r'```markdown\n(.*?)```', keep, re.S)[1])
    card = read_card(tmp_path/f'{name}.md')
    assert card.query==dict(genus='Viola') and all(prose([dict(name=name, body=card.body)])[name].values())

# -- the policy -----------------------------------------------------------------------------------------

def test_licences_add_up(lab):
    where, rows = lab
    t = licences(where.parent)
    fetched = t[~t.why.str.endswith('not fetched')]
    assert fetched['items'].sum()==len(rows) and fetched.bytes.sum()==sum(r['bytes'] for r in rows)
    assert t[t.used=='yes']['items'].sum()==sum(r['train'] for r in rows)
    assert t[t.why.str.endswith('not fetched')][['licence', 'items', 'sources']].values.tolist()==[['CC-BY-NC-4.0', 3, 'alpha']]
    closed = t[(t.used=='no')&(t.licence=='CC-BY-4.0')]
    assert all('its source forbids' in w for w in closed.why)

def test_licences_follow_the_profile_of_the_lab(lab, tmp_path):
    where = tmp_path/'01_collect'
    made(where, 30)
    assert 'open' in licences(tmp_path).why[0]
    (where/'stage.json').write_text(json.dumps(dict(basis=dict(params=dict(profile='tinny')))))
    with pytest.raises(ValueError, match="did you mean 'tiny'"): licences(tmp_path)

def test_a_stricter_profile_holds_back_what_it_drops(tmp_path, monkeypatch):
    from lifelab.collect.collect import collect
    from lifelab.core.profile import PROFILES, with_rule
    mine, lab = tmp_path/'mine', tmp_path/'lab'
    mine.mkdir(), (mine/'cell.txt').write_text('The cell is the smallest unit that lives.')
    assert collect(lab, 'tiny', mine, 'CC-BY-SA-4.0').counts['out']==1
    monkeypatch.setitem(PROFILES, 'tiny', with_rule(PROFILES['tiny'], 'share alike', False, 'the model goes out under a permissive licence'))
    with pytest.raises(ValueError, match='licence forbids: CC-BY-SA-4.0: share alike'): collect(tmp_path/'strict', 'tiny', mine, 'CC-BY-SA-4.0')
    assert licences(tmp_path/'strict').used.tolist()==['no']
    assert [r['detail'].endswith('under a permissive licence') for r in rows_of(tmp_path/'strict'/'01_collect', (), 'dropped.parquet')]==[True]
    assert collect(tmp_path/'by', 'tiny', mine, 'CC-BY-4.0').counts['out']==1

def test_every_licence_of_the_policy_is_valid_spdx():
    from lifelab.collect.bill import stated
    assert [l for l in TERMS if stated(l)=='NOASSERTION']==[]

# -- size -------------------------------------------------------------------------------------------------

BIG = '''
import json, resource, sys
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq, yaml
from lifelab.collect.row import COLUMNS
from lifelab.collect.store import Store
from lifelab.collect import bill, cite, croissant, datacard, thanks
where, n = Path(sys.argv[1]), 30_000
sha = Store(where/'raw').put(b'tsip')
types = {'bytes':pa.int64(), 'train':pa.bool_(), 'simulated':pa.bool_()}
schema = pa.schema([(c, types.get(c, pa.string())) for c in COLUMNS])
said = json.dumps(dict(type='song', title='A long title '*20, author=[dict(family='Kim', given='A.')]))
with pq.ParquetWriter(where/'items.parquet', schema) as out:
    for a in range(0, n, 1000):
        rows = [dict(dict.fromkeys(COLUMNS, ''), item=sha, source=f's{i//3000:02}', path=f'{i:06}', bytes=4, licence='CC-BY-4.0', train=True, attribution=f'Kim {i} '*20,
            url=f'https://e.example/{i}', modality='audio', title=f'Song {i} '*20, simulated=False, citation=said) for i in range(a, a+1000)]
        out.write_table(pa.Table.from_pylist(rows, schema=schema))
(where/'manifest.yaml').write_text(yaml.safe_dump([dict(name=f's{i:02}', title='S', used=True, licence='CC-BY-4.0') for i in range(10)]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for f in (cite.cite, thanks.attribution, bill.bill, datacard.datacard, croissant.croissant): f(where)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before)//1024, len(json.loads((where/'citations.json').read_text())))
'''

def test_memory_does_not_grow_with_the_collection(tmp_path):
    done = subprocess.run([sys.executable, '-c', BIG, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode==0, done.stderr
    grown, refs = map(int, done.stdout.split())
    assert refs==30_010 and grown<120, f'{grown} MB more while 30,000 items were written about'
