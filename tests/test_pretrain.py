"""Stage 5 where a notebook cell cannot show it: kills at any moment, two processes, torn checkpoints, the sampler's properties."""
import hashlib, json, os, random, signal, subprocess, sys, time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings, strategies as st

from lifelab.pretrain.sampler import drawn, permuted, places, quotas, row_shares

ROOT = Path(__file__).resolve().parent.parent
ENV = {**os.environ, 'OMP_NUM_THREADS':'1', 'HF_HUB_OFFLINE':'1', 'TOKENIZERS_PARALLELISM':'false', 'PYTHONPATH':str(ROOT), 'LIFELAB_RUNNER':'', 'TQDM_DISABLE':'1'}
WINDOW = 64

# ---- a small lab: what stages 3 and 4 leave, made from a few sentences and random bases

def sentences(rng, n):
    "Sentences with a little grammar, so that there is something to learn"
    who, do, what = ('a cell', 'the virus', 'life', 'an organism', 'the planet'), ('makes', 'needs', 'copies', 'holds', 'knows'), ('energy', 'water', 'itself', 'a membrane', 'time')
    return [' '.join(f'{rng.choice(who)} {rng.choice(do)} {rng.choice(what)}.' for _ in range(6)) for _ in range(n)]

def documents(rng):
    "(group, split, record, text) of a little lab"
    out = []
    for split,n in (('train', 160), ('validation', 24)):
        out += [('text/biology/en/notes', split, t) for t in sentences(rng, n)]
        out += [('dna/biology/-/bases', split, '<|dna|>'+''.join(rng.choice('ACGT') for _ in range(200))+'<|end|>') for _ in range(n//4)]
    return [(g, s, f'{i:024d}', t) for i,(g,s,t) in enumerate(out)]

def build(lab):
    "Write 03_balance and 04_tokenize of a little lab"
    from lifelab.tokenize.merges import assemble, learn_letters, learn_text, parts
    from lifelab.tokenize.spans import to_private
    from lifelab.tokenize.tokenizer import save_tokenizer
    rng, tokens, balance = random.Random(0), lab/'04_tokenize', lab/'03_balance'
    docs = documents(rng)
    text = [t for g,_,_,t in docs if g.startswith('text')]
    tok = assemble(parts(learn_text(text, 64), learn_letters([t[7:-7] for g,_,_,t in docs if g.startswith('dna')], 16), [], 16), 640)
    (tokens/'shards').mkdir(parents=True); balance.mkdir()
    save_tokenizer(tok, tokens)
    index = []
    for split in ('train', 'validation'):
        rows = []
        for group in sorted({g for g,*_ in docs}):
            flat = [(0, '')]+[(i, r) for g,s,r,t in docs if (g, s)==(group, split) for i in [*tok.encode(to_private(t), add_special_tokens=False).ids, 0]]
            for a in range(0, len(flat)-1, WINDOW):
                piece = flat[a:a+WINDOW+1]
                ids, pad = [i for i,_ in piece], WINDOW+1-len(piece)
                rows.append((ids+[1]*pad, [False]+[True]*(len(ids)-1)+[False]*pad, group))
                index += [dict(split=split, shard=0, row=len(rows)-1, record=r, licence='CC0-1.0', source=group.split('/')[-1], group=group) for r in sorted({r for _,r in piece[1:]})]
        cells = [pa.array([r[j] for r in rows], type=pa.list_(t, WINDOW+1)) for j,t in enumerate((pa.uint16(), pa.bool_()))]
        table = pa.table(dict(tokens=cells[0], counts=cells[1], group=pa.array([r[2] for r in rows]).dictionary_encode(), row=pa.array(range(len(rows)))))
        with pa.OSFile(str(tokens/'shards'/f'{split}-0000.arrow'), 'wb') as f, pa.ipc.new_file(f, table.schema) as w: w.write_table(table)
    import pyarrow.parquet as pq
    pq.write_table(pa.Table.from_pylist(index), tokens/'index.parquet')
    pq.write_table(pa.Table.from_pylist([dict(id=r, cluster=r, split=s) for _,s,r,_ in docs]), balance/'splits.parquet')
    groups = [dict(group='text/biology/en/notes', weight=.8), dict(group='dna/biology/-/bases', weight=.2)]
    (balance/'mix.yaml').write_text(yaml.safe_dump(dict(seed=0, groups=groups)))
    for d in (tokens, balance): (d/'stage.json').write_text('{"output": "fixed"}')
    return lab

COMMAND = """
import sys, dataclasses
from lifelab.core import profile
profile.PROFILES['tiny'] = dataclasses.replace(profile.tiny, window=64, layers=2, hidden=32, heads=4, kv_heads=2, batch_rows=8, steps=24, save_every=6)
from lifelab.pretrain.pretrain import pretrain
pretrain(sys.argv[1], 'tiny', 0)
"""

def start(lab, processes=1, **more):
    "Start the stage in a process group of its own"
    (script := lab/'stage5.py').write_text(COMMAND)
    run = [sys.executable, script, lab] if processes==1 else [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(processes), script, lab]
    return subprocess.Popen(list(map(str, run)), env={**ENV, **more}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)

def finish(lab, **kw):
    "Run the stage to its end"
    p = start(lab, **kw)
    out, _ = p.communicate(timeout=300)
    assert p.returncode==0, out[-3000:]
    return promised(lab)

def kill_when(lab, ready, **kw):
    "kill -9 the stage, and all it started, as soon as `ready()`; whether it was still running"
    p, end = start(lab, **kw), time.monotonic()+200
    while not ready() and p.poll() is None and time.monotonic()<end: time.sleep(.005)
    alive = p.poll() is None
    os.killpg(p.pid, signal.SIGKILL)
    p.wait()
    return alive

def promised(lab):
    "Hashes of what is promised byte for byte: the listed files and stage.json"
    at = lab/'05_pretrain'
    names = [*json.loads((at/'stage.json').read_text())['files'], 'stage.json']
    return {n: hashlib.sha256((at/n).read_bytes()).hexdigest() for n in names}

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A lab that was trained without a kill, and what it promised"
    lab = build(tmp_path_factory.mktemp('whole')/'lab')
    return lab, finish(lab)

# ---- the stage

def test_it_leaves_what_the_next_stages_read(whole):
    lab, files = whole
    at = lab/'05_pretrain'
    assert {'model/config.json', 'model/model.safetensors', 'model/tokenizer.json', 'model/chat_template.jinja', 'curve.parquet', 'validation.parquet', 'baselines.parquet'}<=set(files)
    assert not [p for p in at.rglob('*') if p.suffix in ('.bin', '.pt', '.pth', '.pkl', '.ckpt')]
    import pandas as pd
    curve, val, base = (pd.read_parquet(at/f'{n}.parquet') for n in ('curve', 'validation', 'baselines'))
    assert list(curve.columns)==['step', 'tokens', 'loss', 'grad_norm', 'lr'] and curve.step.tolist()==list(range(1, 25)) and curve.loss.iloc[-1]<curve.loss.iloc[0]-1
    text = val[(val.modality=='text') & (val.source=='*') & (val.language=='*') & (val.part=='part')].bits_per_byte.tolist()
    assert len(text)==4 and text[-1]<text[0]
    assert set(base.name)=={'order-0', 'order-2', 'order-5', 'xz -9'}
    assert base[(base.name=='order-0') & (base.source=='*')].bits_per_byte.item()==pytest.approx(2, abs=.05)

def test_the_model_loads_in_transformers_alone(whole, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    from transformers import AutoModelForCausalLM, AutoTokenizer
    at = whole[0]/'05_pretrain/model'
    tok, model = AutoTokenizer.from_pretrained(at), AutoModelForCausalLM.from_pretrained(at)
    assert type(tok).__name__ in ('PreTrainedTokenizerFast', 'TokenizersBackend') and model.config.model_type=='qwen3' and model.config.eos_token_id==tok.eos_token_id
    out = model.generate(**tok('a cell', return_tensors='pt'), max_new_tokens=5, do_sample=False)
    assert out.shape[1]>len(tok('a cell').input_ids) and tok.chat_template

def test_a_finished_stage_does_nothing(whole):
    lab, files = whole
    times = {n: (lab/'05_pretrain'/n).stat().st_mtime_ns for n in files}
    assert finish(lab)==files and times=={n: (lab/'05_pretrain'/n).stat().st_mtime_ns for n in files}

MOMENTS = {
    'before the first step': lambda at: at.joinpath('baselines.parquet').exists(),
    'while a checkpoint is written': lambda at: any(at.glob('checkpoints/.step-*')),
    'between two checkpoints': lambda at: any(at.glob('checkpoints/step-0000006')) and any(at.glob('logs/*')),
    'at the end': lambda at: at.joinpath('curve.parquet').exists()}

@pytest.mark.parametrize('moment', MOMENTS)
def test_killed_and_run_again_it_ends_with_the_same_bytes(whole, tmp_path, moment):
    lab = build(tmp_path/'lab')
    assert kill_when(lab, lambda: MOMENTS[moment](lab/'05_pretrain')), 'it ended before it could be killed'
    assert not (lab/'05_pretrain/stage.json').exists()
    assert finish(lab)==whole[1]

def test_killed_again_and_again(whole, tmp_path):
    lab, rng = build(tmp_path/'lab'), random.Random(1)
    at = lab/'05_pretrain/checkpoints'
    for n in (6, 12, 18): kill_when(lab, lambda: any(int(p.name[5:])>=n for p in at.glob('step-*')) and rng.random()<.05)
    assert finish(lab)==whole[1]

def test_a_torn_checkpoint_is_passed_over(whole, tmp_path):
    lab = build(tmp_path/'lab')
    at = lab/'05_pretrain/checkpoints'
    kill_when(lab, lambda: (at/'step-0000012').exists())
    newest = max(at.glob('step-*'))
    with open(newest/'model.safetensors', 'r+b') as f: f.seek(-8, 2); f.write(b'\xff'*8)
    assert finish(lab)==whole[1]

def test_two_processes_take_the_batches_of_one_and_resume_bit_for_bit(whole, tmp_path):
    one = finish(build(tmp_path/'a'/'lab'), processes=2)
    lab = build(tmp_path/'b'/'lab')
    assert kill_when(lab, lambda: any((lab/'05_pretrain/checkpoints').glob('step-0000012')), processes=2)
    two = finish(lab, processes=2)
    assert one==two
    import pandas as pd
    first, many = (pd.read_parquet(l/'05_pretrain/curve.parquet') for l in (whole[0], lab))
    assert first.loss.head(3).tolist()==pytest.approx(many.loss.head(3).tolist(), rel=1e-3)

# ---- the sampler

SHARES = st.lists(st.floats(.01, 1), min_size=1, max_size=8).map(lambda ws: {f'g{i}': w/sum(ws) for i,w in enumerate(ws)})

@given(st.integers(1, 400), st.text(max_size=8))
def test_a_shuffle_has_each_thing_once(n, key): assert sorted(permuted(i, n, key) for i in range(n))==list(range(n))

@given(SHARES, st.integers(1, 32), st.integers(0, 2**31))
def test_a_batch_is_always_full_and_shares_converge(shares, rows, seed):
    q = quotas(np.arange(2000), seed, shares, rows)
    assert (q>=0).all() and (q.sum(1)==rows).all()
    assert q.sum(0)/q.sum()==pytest.approx(list(shares.values()), abs=.01)
    assert drawn(1234, seed, shares, rows).tolist()==q[:1234].sum(0).tolist()

@settings(max_examples=25, deadline=None)
@given(SHARES, st.integers(1, 16), st.integers(0, 99), st.integers(3, 40))
def test_no_row_comes_twice_in_an_epoch_of_its_group(shares, rows, seed, size):
    groups = {g: np.arange(i*1000, i*1000+size) for i,g in enumerate(shares)}
    seen = np.concatenate([places(k, seed, groups, shares, rows) for k in range(60)])
    for g,mine in groups.items():
        order = [p for k in range(60) for p in sorted(places(k, seed, groups, shares, rows)) if p in set(mine)]
        times = Counter(order)
        assert not times or max(times.values())-min(times.get(int(p), 0) for p in mine)<=1
    assert len(seen)==60*rows

@given(st.integers(0, 10_000), st.integers(0, 2**31))
def test_a_batch_depends_on_nothing_but_its_arguments(step, seed):
    groups, shares = {'a': np.arange(50), 'b': np.arange(50, 170)}, {'a': .3, 'b': .7}
    first = places(step, seed, groups, shares, 8).tolist()
    places(step+1, seed, groups, shares, 8); np.random.seed(0)
    assert places(step, seed, dict(reversed(groups.items())), shares, 8).tolist()==first
    assert sorted(p for r in range(2) for p in first[r::2])==sorted(first)

@given(st.dictionaries(st.sampled_from('abcdef'), st.floats(.01, 1), min_size=1), st.integers(1, 500))
def test_row_shares_sum_to_one(mix, tokens): assert sum(row_shares(mix, {g: tokens+i for i,g in enumerate(mix)}).values())==pytest.approx(1)
