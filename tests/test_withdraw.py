"""One item comes, changes, leaves or gets another licence: what the later stages do again, and that nothing of a withdrawn item is left."""
import hashlib, json, os, random, shutil, signal, subprocess, sys, time
from pathlib import Path

import numpy as np, pyarrow.parquet as pq, pytest
from PIL import Image

from conftest import ROOT, quiet
from lifelab.balance.balance import balance
from lifelab.clean.clean import clean
from lifelab.collect.collect import collect
from lifelab.core.redone import redone, units_of
from lifelab.serve.serve import build_trace, open_trace, trace_of
from lifelab.serve.trace import sources
from lifelab.tokenize.shards import Shards
from lifelab.tokenize.tokenize import tokenize
from lifelab.tokenize.tokenizer import decode, load_core

WORDS = ('moss fern lichen river stone owl beetle spore leaf root seed pollen tide reef coral whale song nest egg larva wing cell gene shell bark '
    'meadow pond frog heron otter reed mud silt dune gull crab kelp drift storm cliff').split()
FOLDERS = ('01_collect', '02_clean', '03_balance', '04_tokenize')

def note(i, more=''):
    "A page that holds one word which no other page holds"
    r = random.Random(i)
    return f"Field note {i}. {' '.join(r.choices(WORDS, k=60))} {mark(i)} {' '.join(r.choices(WORDS, k=60))}.{more}"

def mark(i): return 'q'+hashlib.sha256(f'mark {i}'.encode()).hexdigest()[:15]

def own_data(folder, n=60, pictures=14):
    "A folder of pages and pictures"
    folder.mkdir()
    for i in range(n): (folder/f'note{i:02}.txt').write_text(note(i))
    for i in range(pictures): Image.fromarray(np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder/f'pic{i:02}.png')
    return folder

def run(lab, data):
    "Stages 1 to 4"
    collect(lab, 'tiny', data, 'CC-BY-4.0')
    for stage in (clean, balance, tokenize): stage(lab, 'tiny')
    return units_of(lab)

@pytest.fixture
def small(monkeypatch):
    "Files and shards so small that a lab of sixty pages has many"
    for name,value in {'lifelab.clean.clean.BUCKET':8, 'lifelab.tokenize.tokenize.SHARD':1500, 'lifelab.tokenize.tokenize.ROWS':1}.items(): monkeypatch.setattr(name, value)

@pytest.fixture(scope='module')
def first(tmp_path_factory):
    "A folder and a lab made from it with small files; copied by each test"
    at = tmp_path_factory.mktemp('first')
    with pytest.MonkeyPatch.context() as m:
        for name,value in {'lifelab.clean.clean.BUCKET':8, 'lifelab.tokenize.tokenize.SHARD':1500, 'lifelab.tokenize.tokenize.ROWS':1}.items(): m.setattr(name, value)
        run(at/'lab', own_data(at/'data'))
    return at

@pytest.fixture
def at(first, tmp_path, small):
    "A copy that a test may change"
    for name in ('data', 'lab'): shutil.copytree(first/name, tmp_path/name)
    return tmp_path

def changed(before, after, stage):
    "Units of a stage that are new or were made from something else"
    return {k for k,u in after[stage].items() if before[stage].get(k, {}).get('made_from')!=u['made_from']}

def sha(path): return hashlib.sha256(Path(path).read_bytes()).hexdigest()

def ids_of(lab, title): return {r['id'] for f in (lab/'02_clean/records').glob('*.parquet') for r in pq.read_table(f, columns=['id', 'title']).to_pylist() if r['title']==title}

def holders(lab, ids):
    "The units of stages 2 and 4 that hold some records"
    files = [f for f in (lab/'02_clean/records').glob('*.parquet') if ids & set(pq.read_table(f)['id'].to_pylist())]
    index = pq.read_table(lab/'04_tokenize/index.parquet').to_pylist()
    return {f'records/{f.stem}' for f in files}, {f"{r['split']}-{r['shard']}" for r in index if r['record'] in ids}, {f.stem for f in files}

def stamps(lab):
    "Relative name → time of writing and bytes, of everything that stages 2 and 4 promise"
    out = {}
    for s in ('02_clean', '04_tokenize'):
        for f in json.loads((lab/s/'stage.json').read_text())['files']: out[f'{s}/{f}'] = ((lab/s/f).stat().st_mtime_ns, sha(lab/s/f))
    return out

def untouched(was, now, but):
    "Files that are not among `but` were not even written"
    return all(was[f]==now[f] for f in set(was) & set(now) if not any(b in f for b in but))

def everything(lab):
    "All that the folders of stages 1 to 4 and the trace hold, in words: tables read, tokens decoded, other files as they are; tokenizer.json aside"
    core = load_core(lab/'04_tokenize')
    for s in (*FOLDERS, '08_serve'):
        for f in (lab/s).rglob('*') if (lab/s).exists() else ():
            if not f.is_file() or f.name=='tokenizer.json': continue
            if f.suffix=='.parquet': yield f, str(pq.read_table(f).to_pylist())
            elif f.suffix=='.npy' and f.stem=='tokens': yield f, decode(np.load(f).tolist(), core)
            elif f.parent.name=='parts' and f.suffix=='.arrow':
                import pyarrow as pa
                yield f, ' '.join(decode(t, core) for t in pa.ipc.open_file(str(f)).read_all()['tokens'].to_pylist())
            else: yield f, f.read_bytes().decode('utf-8', 'replace')
    shards = Shards(lab/'04_tokenize')
    for split in shards.split:
        for i in shards.rows(split): yield f'{split} row {i}', decode(shards.tokens(int(i), split), core)

def where(lab, word): return sorted({str(f) for f,said in everything(lab) if word in said})

# ---- withdrawn ----

def test_a_withdrawn_page_leaves_its_units_and_no_other(at):
    lab, data, before = at/'lab', at/'data', units_of(at/'lab')
    ids, own = ids_of(lab, 'note07'), sha(data/'note07.txt')
    records, shards, stems = holders(lab, ids)
    was = stamps(lab)
    assert len(ids)==1 and len(records)==len(shards)==1 and len([k for k in before['clean'] if k.startswith('records/text')])>6
    assert len([k for k in before['tokenize'] if k.startswith('train-')])>4 and len(where(lab, mark(7)))>=4
    (data/'note07.txt').unlink()
    after = run(lab, data)
    assert changed(before, after, 'clean')=={f'own-data-{own[0]}', 'near/text'} | records
    slices = {k for k in changed(before, after, 'tokenize') if '/' in k}
    assert changed(before, after, 'tokenize')==shards | slices | {'tables'} and {k.split('/')[0] for k in slices}==stems and len(slices)==1
    count = {r['stage']: (r['redone'], r['units']) for r in redone(before, after)}
    assert count['clean'][0]==3 and count['tokenize'][0]==3 and count['tokenize'][1]>20, count
    touched = [f'own-data-{own[0]}', 'near-text', *stems, *shards, '04_tokenize/index.parquet', 'tokens.parquet', 'MIX.md', 'units.parquet']
    assert untouched(was, stamps(lab), touched)
    assert where(lab, mark(7))==[] and where(lab, mark(8)) and not (lab/'01_collect/raw'/own[:2]/own).exists()
    assert not any(i in said for i in ids for _,said in everything(lab))

def test_a_withdrawn_picture_leaves_no_file(at):
    lab, data, before = at/'lab', at/'data', units_of(at/'lab')
    ids, own, was = ids_of(lab, 'pic03'), sha(data/'pic03.png'), stamps(lab)
    media = [r['media'] for f in (lab/'02_clean/records').glob('image-*') for r in pq.read_table(f).to_pylist() if r['id'] in ids]
    records, shards, stems = holders(lab, ids)
    told = trace_of(lab/'02_clean', lab/'04_tokenize')
    (data/'pic03.png').unlink()
    after = run(lab, data)
    assert media and all((lab/f'02_clean/media/{m[:2]}/{m}').exists() is False for m in media)
    assert changed(before, after, 'clean')=={f'own-data-{own[0]}', 'near/image'} | records
    assert not {'codec/image', 'tokenizer'} & changed(before, after, 'tokenize') and shards<=changed(before, after, 'tokenize')
    assert all(was[f'04_tokenize/{f}']==stamps(lab)[f'04_tokenize/{f}'] for f in ('codecs/image.safetensors', 'tokenizer.json'))
    assert trace_of(lab/'02_clean', lab/'04_tokenize')==told, 'the index of the text was not made from the picture'

def test_a_lab_after_a_withdrawal_is_as_if_it_had_never_had_the_item(at):
    (at/'data'/'note11.txt').unlink()
    run(at/'lab', at/'data')
    collect(at/'new', 'tiny', at/'data', 'CC-BY-4.0'); clean(at/'new', 'tiny')
    files = lambda lab: json.loads((lab/'02_clean/stage.json').read_text())['files']
    assert files(at/'lab')==files(at/'new')
    names = lambda lab: sorted(p.relative_to(lab).as_posix() for s in FOLDERS[:2] for p in (lab/s).rglob('*') if p.is_file())
    assert names(at/'lab')==names(at/'new')

def test_no_answer_names_a_withdrawn_record(at):
    lab, data = at/'lab', at/'data'
    build = lambda: build_trace(lab/'02_clean', lab/'04_tokenize', lab/'08_serve/trace')
    build()
    text = note(next(i for i in range(60) if sources(open_trace(lab), note(i))))
    i = int(text.split('.')[0].split()[-1])
    named = lambda: {s['record'] for s in sources(open_trace(lab), text)}
    ids, told = ids_of(lab, f'note{i:02}'), trace_of(lab/'02_clean', lab/'04_tokenize')
    assert ids<=named()
    (data/f'note{i:02}.txt').unlink()
    run(lab, data)
    assert not ids & named(), 'the index of before must not name it either'
    assert trace_of(lab/'02_clean', lab/'04_tokenize')!=told
    build()
    assert not ids & named() and where(lab, mark(i))==[]

def test_a_cluster_that_loses_its_name_redoes_no_shard_of_the_others(at):
    "The smallest id names a cluster; when that record leaves, the others have another cluster, and the same tokens in the same split"
    lab, data = at/'lab', at/'data'
    for i in range(4): (data/f'twin{i}.txt').write_text(note(80)+f' Copy {i}.')
    before = run(lab, data)
    rows = {r['id']: r for f in (lab/'02_clean/records').glob('text-*') for r in pq.read_table(f).to_pylist() if r['title'].startswith('twin')}
    gone, *others = sorted(rows)
    assert {r['cluster'] for r in rows.values()}=={gone}
    mine, theirs = holders(lab, {gone}), holders(lab, set(others))
    split = {r['id']: r['split'] for r in pq.read_table(lab/'03_balance/splits.parquet').to_pylist()}
    (data/f"{rows[gone]['title']}.txt").unlink()
    after = run(lab, data)
    now = {r['id']: r['split'] for r in pq.read_table(lab/'03_balance/splits.parquet').to_pylist()}
    assert theirs[0] & set(after['clean'])<=changed(before, after, 'clean') and all(now[i]==split[i] for i in others) and gone not in now
    assert {k for k in changed(before, after, 'tokenize') if k.startswith('t') and '/' not in k}-{'tables'}<=mine[1]

# ---- changed, added, relicensed ----

def test_a_changed_page_touches_where_it_was_and_where_it_is(at):
    lab, data, before = at/'lab', at/'data', units_of(at/'lab')
    old, was = holders(lab, ids_of(lab, 'note08')), sha(data/'note08.txt')
    (data/'note08.txt').write_text(note(8, ' Seen again in spring by the old mill.').replace(mark(8), 'heron'))
    after = run(lab, data)
    new, now = holders(lab, ids_of(lab, 'note08')), sha(data/'note08.txt')
    more = changed(before, after, 'clean')-{f'own-data-{was[0]}', f'own-data-{now[0]}', 'near/text'}-old[0]-new[0]
    shards = {k for k in changed(before, after, 'tokenize') if '/' not in k}-{'tables'}-old[1]-new[1]
    assert len(more)<=1 and len(shards)<=1, 'a file that becomes too full is two files'
    assert new[1]<=changed(before, after, 'tokenize') and where(lab, mark(8))==[] and where(lab, 'old mill')

def test_a_new_page_touches_its_units(at):
    lab, data, before = at/'lab', at/'data', units_of(at/'lab')
    (data/'note60.txt').write_text(note(60))
    after = run(lab, data)
    records, shards, _ = holders(lab, ids_of(lab, 'note60'))
    assert len(changed(before, after, 'clean')-{f"own-data-{sha(data/'note60.txt')[0]}", 'near/text'}-records)<=1
    assert len({k for k in changed(before, after, 'tokenize') if '/' not in k}-{'tables'}-shards)<=1 and where(lab, mark(60))

@pytest.mark.parametrize('licence,trained', [('CC0-1.0', True), ('CC-BY-NC-ND-4.0', False)])
def test_another_licence_touches_where_the_page_is(at, licence, trained):
    lab, data, before = at/'lab', at/'data', units_of(at/'lab')
    ids, was = ids_of(lab, 'note09'), stamps(lab)
    records, shards, stems = holders(lab, ids)
    (data/'note09.txt.license').write_text(f'SPDX-License-Identifier: {licence}\n')
    after = run(lab, data)
    assert changed(before, after, 'clean')=={f"own-data-{sha(data/'note09.txt')[0]}"} | records, 'its text is the same: nothing is compared again'
    assert {k for k in changed(before, after, 'tokenize') if '/' not in k}=={'tables'} | shards
    index = [r for r in pq.read_table(lab/'04_tokenize/index.parquet').to_pylist() if r['record'] in ids]
    assert {r['licence'] for r in index}==({licence} if trained else set())
    shard = f'04_tokenize/shards/{min(shards)}.arrow'
    assert (was[shard][1]==stamps(lab)[shard][1])==trained, 'tokens know no licence'

# ---- learnt once ----

def test_much_more_text_is_learnt_from(at):
    lab, data, before = at/'lab', at/'data', units_of(at/'lab')
    for i in range(60, 70): (data/f'note{i}.txt').write_text(note(i))
    some = run(lab, data)
    assert 'tokenizer' not in changed(before, some, 'tokenize')
    for i in range(70, 110): (data/f'note{i}.txt').write_text(note(i))
    many = run(lab, data)
    assert 'tokenizer' in changed(some, many, 'tokenize') and 'codec/image' not in changed(some, many, 'tokenize')

def test_forced_it_learns_without_the_withdrawn_and_leaves_nothing(at):
    from lifelab.core.pipeline import forget
    lab, data = at/'lab', at/'data'
    own = sha(data/'note07.txt')
    (data/'note07.txt').unlink()
    forget(lab, ['collect', 'clean', 'balance', 'tokenize'])
    before = units_of(lab)
    after = run(lab, data)
    assert all(changed(before, after, s)==set(after[s]) for s in after)
    (at/'new/03_balance').mkdir(parents=True); shutil.copy(lab/'03_balance/splits.parquet', at/'new/03_balance')
    run(at/'new', data)
    assert (lab/'04_tokenize/tokenizer.json').read_bytes()==(at/'new/04_tokenize/tokenizer.json').read_bytes()
    assert where(lab, mark(7))==[] and not (lab/'01_collect/raw'/own[:2]/own).exists()

# ---- killed ----

STAGES = '''
import sys
from lifelab.balance.balance import balance; from lifelab.clean.clean import clean; from lifelab.collect.collect import collect; from lifelab.tokenize.tokenize import tokenize
if __name__=='__main__':
    collect(sys.argv[1], 'tiny', sys.argv[2], 'CC-BY-4.0')
    for stage in (clean, balance, tokenize): stage(sys.argv[1], 'tiny')
'''

def test_killed_in_a_refresh_it_ends_as_if_it_had_not_been(tmp_path):
    data, lab = own_data(tmp_path/'data', 30, 8), tmp_path/'lab'
    begin = lambda to: subprocess.Popen([sys.executable, '-c', STAGES, to, data], cwd=ROOT, env=quiet(PYTHONPATH=ROOT, TQDM_DISABLE=1), stderr=subprocess.DEVNULL)
    assert begin(lab).wait()==0
    (data/'note07.txt').unlink()
    calm = shutil.copytree(lab, tmp_path/'calm')
    assert begin(calm).wait()==0
    lines = lambda s: (lab/s/'units.jsonl').read_bytes().count(b'\n')
    for stage in ('02_clean', '03_balance', '04_tokenize'):
        n, p = lines(stage), begin(lab)
        while p.poll() is None and lines(stage)==n: time.sleep(.002)
        p.send_signal(signal.SIGKILL); p.wait()
    assert begin(lab).wait()==0
    promised = lambda at: {s: json.loads((at/s/'stage.json').read_text()) for s in FOLDERS}
    assert promised(lab)==promised(calm)
    assert all(sha(lab/s/f)==h for s,said in promised(calm).items() for f,h in said['files'].items() if not f.endswith('.png'))
    left = lambda at: sorted(p.relative_to(at).as_posix() for s in FOLDERS for p in (at/s).rglob('*') if p.is_file())
    assert left(lab)==left(calm) and where(lab, mark(7))==[]
