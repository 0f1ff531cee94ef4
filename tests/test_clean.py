"Stage 2 against files that lie, break or attack, and against a kill in the middle"
import bz2, gzip, hashlib, io, json, os, signal, struct, subprocess, sys, time, zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from lifelab.clean.clean import clean
from lifelab.clean.dedup import dedup, shingles, sketches
from lifelab.clean.mend import PRIVATE, mend, pack
from lifelab.clean.records import records, records_by_id
from lifelab.core.lab import write_table

root = Path(__file__).resolve().parent.parent
GOOD = 'Moss is a small plant without roots that drinks through its leaves and waits out the dry days.'
ENTRY = b'<article article-type="research-article"><front><article-meta><title-group><article-title>T</article-title></title-group></article-meta></front><body><p>%s</p></body></article>'

def png(width=64, height=64, idat=None):
    "A PNG of noise, or one that only claims a size"
    from PIL import Image
    if idat is None:
        out = io.BytesIO(); Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), 'u1')).save(out, 'PNG')
        return out.getvalue()
    chunk = lambda name, body: struct.pack('>I', len(body))+name+body+struct.pack('>I', zlib.crc32(name+body))
    return b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))+chunk(b'IDAT', idat)+chunk(b'IEND', b'')

def lab_of(lab, files):
    "A stage-1 folder of literal files: name → (format, modality, bytes); licence and source may follow"
    rows = []
    for path,(fmt,modality,data,*more) in files.items():
        sha = hashlib.sha256(data).hexdigest(); f = lab/'01_collect'/'raw'/sha[:2]/sha
        f.parent.mkdir(parents=True, exist_ok=True); f.write_bytes(data)
        lic, source = [*more, *('CC0-1.0', 'mine')[len(more):]]
        rows.append(dict(item=sha, source=source, path=path, format=fmt, bytes=len(data), licence=lic, train=True, attribution='me', url='', domain='general', modality=modality, language='', region='', school='', title=''))
    write_table(lab/'01_collect'/'items.parquet', rows, sort=['path'])
    (lab/'01_collect'/'stage.json').write_text(json.dumps(dict(output=hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest())))
    return lab

def dropped(lab):
    "path → (reason, detail) of all that was dropped"
    import pandas as pd
    return {r.path: (r.reason, r.detail) for f in sorted((lab/'02_clean'/'dropped').glob('*')) for r in pd.read_parquet(f).itertuples()}

BAD = {
    'cut.json': ('wiki-json', 'text', b'{"Life": {"title"', 'corrupt'), 'list.json': ('wiki-json', 'text', b'[1]', 'malformed'), 'deep.json': ('wiki-json', 'text', b'['*100_000, 'corrupt'),
    'cut.xml': ('jats', 'text', ENTRY[:60], 'corrupt'), 'cut.obo': ('obo', 'text', b'hello', 'malformed'), 'not.owl': ('owl', 'text', b'<a/>', 'malformed'),
    'cut.xml.gz': ('oec-xml', 'text', gzip.compress(b'<systems><system/></systems>'*99)[:-9], 'corrupt'), 'sayings.json': ('proverbs', 'text', b'{}', 'malformed'),
    'empty.txt': ('text', 'text', b'', 'empty'), 'zeros.txt': ('text', 'text', bytes(100), 'empty'), 'binary.txt': ('text', 'text', png(), 'binary'),
    'private.txt': ('text', 'text', '\ue000\ue001'.encode(), 'private-use characters only'), 'digits.txt': ('text', 'text', b'1 2 3 4 5 6 7 8 9 10 11 12 13 14', 'few letters'),
    'short.md': ('markdown', 'text', b'# Hi\nYes.', 'too short'), 'numbers.csv': ('csv', 'table', b'1,2\n3,4\n', 'no header'), 'x.docx': ('docx', 'text', b'PK..', 'no reader'),
    'noheader.fasta': ('fasta', 'dna', b'ACGT\n', 'malformed'), 'letters.fasta': ('fasta', 'dna', b'>a\nACGT!!ACGT\n', 'illegal letters'), 'stop.faa': ('fasta', 'protein', b'>p\nMKV*LL\n', 'illegal letters'),
    'bare.fasta': ('fasta', 'dna', b'>a\n>b\n', 'no sequence'), 'n.fasta': ('fasta', 'dna', b'>a\n'+b'N'*200, 'mostly unknown letters'), 'cut.fa.gz': ('fasta', 'dna', gzip.compress(b'>a\n'+b'ACGT'*999)[:-20], 'corrupt'),
    'virus.fasta': ('fasta', 'dna', b'>NC_1 Example human virus 1, complete genome\n'+b'ACGTTGCA'*20, 'virus of eukaryotes'),
    'nothing.gbk': ('genbank', 'dna', b'no locus', 'malformed'), 'noseq.gbk': ('genbank', 'dna', b'LOCUS       X  10 bp DNA\nFEATURES             Location/Qualifiers\n//\n', 'no sequence'),
    'cut.gbk.bz2': ('genbank', 'dna', bz2.compress(b'LOCUS       X\n'*99)[:-5], 'corrupt'), 'reg.json.bz2': ('moclo-json', 'dna', bz2.compress(b'[{"id": "x"}]'), 'malformed'),
    'cut.png': ('png', 'image', png()[:200], 'corrupt'), 'bomb.png': ('png', 'image', png(100_000, 100_000, zlib.compress(b'')), 'too large'), 'lie.jpg': ('jpeg', 'image', b'GIF89a', 'corrupt'),
    'cut.tif': ('tiff', 'image', b'II*\0\x08\0\0\0', 'corrupt'), 'grey.png': ('png', 'image', png(64, 64, zlib.compress(bytes(64*(1+64*3)))), 'blank tile'),
}

@pytest.fixture(scope='module')
def bad_lab(tmp_path_factory):
    "One lab of every bad file and one good file of each modality"
    files = {k: v[:3] for k,v in BAD.items()}
    files |= {'good.txt': ('text', 'text', GOOD.encode()), 'good.fasta': ('fasta', 'dna', b'>bad\nACG1\n>good\n'+b'ACGTTGCAAC'*9), 'good.png': ('png', 'image', png())}
    lab = lab_of(tmp_path_factory.mktemp('bad'), files)
    clean(lab, 'tiny')
    return lab

@pytest.mark.parametrize('name', BAD)
def test_bad_file_is_named_with_its_reason(bad_lab, name):
    assert dropped(bad_lab)[name][0]==BAD[name][3]

def test_bad_files_never_stop_the_batch(bad_lab):
    assert {(r['modality'], r['title']) for r in records(bad_lab)} == {('text', 'good'), ('dna', 'good'), ('image', 'good')}
    assert next(records(bad_lab, modality='text'))['language']=='en'
    pic = next(records(bad_lab, modality='image'))
    assert hashlib.sha256((bad_lab/'02_clean'/'media'/pic['media'][:2]/pic['media']).read_bytes()).hexdigest()==pic['media']

def test_xml_attacks_get_nothing(tmp_path):
    secret = tmp_path/'secret.txt'; secret.write_text('the secret that must not be read')
    outside = f'<!DOCTYPE a [<!ENTITY x SYSTEM "file://{secret}">]>'.encode()+ENTRY%(GOOD.encode()+b' &x;')
    dtd = f'<!DOCTYPE a SYSTEM "file://{secret}">'.encode()+ENTRY%GOOD.replace('Moss', 'Fern').encode()
    laughs = b'<!DOCTYPE a [<!ENTITY a0 "ha">'+b''.join(b'<!ENTITY a%d "%s">'%(i, b'&a%d;'%(i-1)*10) for i in range(1, 12))+b']>'+ENTRY%(GOOD.replace('Moss', 'Algae').encode()+b' &a11;')
    attribute = laughs.replace(b'<body>', b'<body x="&a11;">')
    began = time.monotonic()
    lab = lab_of(tmp_path/'lab', {'o.xml': ('jats', 'text', outside), 'd.xml': ('jats', 'text', dtd), 'l.xml': ('jats', 'text', laughs), 'a.xml': ('jats', 'text', attribute)})
    clean(lab, 'tiny')
    texts = [r['text'] for r in records(lab)]
    assert len(texts)>=2 and not any('secret' in t or 'haha' in t or len(t)>200 for t in texts) and time.monotonic()-began<20

def test_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr('lifelab.clean.unpack.unpack.__defaults__', (1_000_000,))
    lab = lab_of(tmp_path, {'bomb.txt.gz': ('text', 'text', gzip.compress(b'a '*2_000_000)), 'ok.txt': ('text', 'text', GOOD.encode())})
    assert clean(lab, 'tiny').counts['out']==1 and dropped(lab)['bomb.txt.gz'][0]=='too large'

def test_retracted_paper_leaves_with_its_notice(tmp_path):
    paper = (ENTRY%GOOD.encode()).replace(b'<article-meta>', b'<article-meta><article-id pub-id-type="doi">10.1371/journal.x.1</article-id>')
    notice = b'<article article-type="retraction"><front><article-meta><related-article href="info:doi/10.1371/journal.x.1"/></article-meta></front></article>'
    lab = lab_of(tmp_path, {'p.xml': ('jats', 'text', paper), 'n.xml': ('jats', 'text', notice), 'ok.txt': ('text', 'text', GOOD.replace('Moss', 'Fern').encode())})
    assert clean(lab, 'tiny').counts['out']==1 and {k: v[0] for k,v in dropped(lab).items()}=={'p.xml': 'retracted', 'n.xml': 'retraction notice'}

def test_copies_merge_and_the_open_licence_governs(tmp_path):
    lab = lab_of(tmp_path, {'a.txt': ('text', 'text', GOOD.encode(), 'CC-BY-NC-4.0', 'closed'), 'b.txt': ('text', 'text', (GOOD+'\n').encode(), 'CC-BY-4.0', 'open'),
        'c.txt': ('text', 'text', GOOD.replace('days', 'weeks').encode(), 'unknown', 'nobody')})
    clean(lab, 'tiny')
    found = {r['source']: r for r in records(lab)}
    assert (found['open']['licence'], found['open']['train'], [p['source'] for p in found['open']['provenance']])==('CC-BY-4.0', True, ['closed', 'open'])
    assert not found['nobody']['train'] and found['nobody']['cluster']==found['open']['cluster']==min(r['id'] for r in found.values())
    assert [r['source'] for r in records_by_id(lab, [found['nobody']['id']])]==['nobody']

def test_cap_is_the_same_whatever_the_parts(tmp_path):
    "The profile keeps the 300 smallest ids of a source, in one file or in sixty"
    lines = [f'{GOOD} It was seen {i} times in the garden.' for i in range(400)]
    many = lab_of(tmp_path/'many', {f'{i}.txt': ('text', 'text', '\n'.join(lines[i*4:i*4+4]).encode()) for i in range(100)})
    quotes = lambda files: {k: ('quotes', *v[1:]) for k,v in files.items()}
    one = lab_of(tmp_path/'one', quotes({'all.dialog': ('', 'text', '\n'.join(lines).encode())}))
    few = lab_of(tmp_path/'few', quotes({f'{i}.dialog': ('', 'text', '\n'.join(lines[i*4:i*4+4]).encode()) for i in range(100)}))
    ids = []
    for lab in (one, few): assert clean(lab, 'tiny').counts['dropped']["over the profile's cap"]==100; ids.append([r['id'] for r in records(lab)])
    assert ids[0]==ids[1] and len(ids[0])==300 and clean(many, 'tiny').counts['out']==100

RUN = "import sys; from lifelab.clean.clean import clean; clean(sys.argv[1], 'tiny')"

def tree(folder):
    "Relative name → SHA-256 of what a stage promises"
    said = json.loads((folder/'stage.json').read_text())
    for f,h in said['files'].items(): assert hashlib.sha256((folder/f).read_bytes()).hexdigest()==h, f
    return dict(said['files'], stage=hashlib.sha256((folder/'stage.json').read_bytes()).hexdigest())

@pytest.mark.parametrize('when', [0, 3, 7])
def test_killed_and_called_again_ends_byte_equal(tmp_path, when):
    files = {f'{i}.txt': ('text', 'text', f'{GOOD} Number {i}. '.encode()*5, 'CC0-1.0', f's{i%9}') for i in range(45)}
    files |= {f'{i}.fasta': ('fasta', 'dna', b'>x\n'+bytes(np.random.default_rng(i).choice(list(b'ACGT'), 400_000))) for i in range(3)} | {'p.png': ('png', 'image', png(300, 300))}
    calm, hurt = lab_of(tmp_path/'calm', files), lab_of(tmp_path/'hurt', files)
    clean(calm, 'tiny')
    env = dict(os.environ, PYTHONPATH=str(root), OMP_NUM_THREADS='1')
    run, journal = subprocess.Popen([sys.executable, '-c', RUN, hurt], env=env, start_new_session=True, stderr=subprocess.DEVNULL), hurt/'02_clean'/'units.jsonl'
    while run.poll() is None and (not journal.exists() or journal.read_bytes().count(b'\n')<=when): time.sleep(.01)
    run.send_signal(signal.SIGKILL); run.wait()
    had = journal.read_text().splitlines()
    clean(hurt, 'tiny')
    assert tree(hurt/'02_clean')==tree(calm/'02_clean')
    assert set(had)<=set(journal.read_text().splitlines()), 'a finished unit was done again'

@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200) | st.text('<>/&;abip#x12 \n\t-!"éÃ©â€™\u00a0\u200b\ue000\u0301', max_size=60))
def test_mending_twice_is_mending_once(text):
    once, n = mend(text)
    assert mend(once)==(once, dict(private=0, changed=0)) and not PRIVATE.search(once) and n['private']>=min(1, len(PRIVATE.findall(text)))

@settings(max_examples=100, deadline=None)
@given(st.lists(st.text('abc. \n', max_size=40)), st.integers(5, 30))
def test_packing_loses_no_word(paras, most):
    got = pack(paras, most)
    assert all(0<len(p)<=most for p in got) and ''.join(''.join(got).split())==''.join(''.join(paras).split())

@settings(max_examples=50, deadline=None)
@given(st.text('ACGT', min_size=16, max_size=200))
def test_a_strand_and_its_complement_are_one_molecule(s):
    assert (shingles(s, 'dna')==shingles(s.translate(str.maketrans('ACGT', 'TGCA'))[::-1], 'dna')).all()

@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(['moss is green and small', 'moss is green and tiny', 'stars are hot and far', GOOD]), max_size=8), st.randoms())
def test_clusters_do_not_depend_on_order(texts, rnd):
    ids = [f'{i:02d}' for i in range(len(texts))]
    make = lambda order: dict(zip([ids[i] for i in order], dedup([ids[i] for i in order], sketches([shingles(texts[i], 'text') for i in order]), least=.9)))
    order = list(range(len(texts))); rnd.shuffle(order)
    assert make(range(len(texts)))==make(order)
