"""Stage 3 under what a notebook cell cannot show: invented data of every shape, refreshes, withdrawals, kills."""
import hashlib, json, shutil, signal, subprocess, sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings, strategies as st

from conftest import ROOT, quiet
from lifelab.balance.balance import balance
from lifelab.balance.count import facts, with_groups
from lifelab.balance.mix import MOST_OF_A_SOURCE, fill, groups, mix, most_shares, parts, weigh
from lifelab.balance.split import UNTIL, joined, split
from lifelab.core.lab import fingerprint, write_json, write_table
from lifelab.core.record import Record, arrow_schema

# -- data ------------------------------------------------------------------------------------------

def record(i, modality='text', source='wiki', cluster='', licence='CC0-1.0', size=40, **more):
    "One invented record"
    about = dict(source=source, modality=modality, cluster=cluster, licence=licence, train=licence!='unknown', domain='biology', **more)
    body = f'{source} {i} '
    if modality=='text': return Record(text=body+'x'*size, **about)
    if modality=='image': return Record(media=hashlib.sha256(body.encode()).hexdigest(), pixels=64*64, bytes=size, **about)
    return Record(sequence=hashlib.sha256(body.encode()).hexdigest().upper()*(1+size//64), **about)

def warehouse(lab, records):
    "The clean stage of a lab, as if it had just finished; an earlier one is replaced"
    lab = Path(lab)
    for old in (lab/'02_clean/records').glob('*.parquet'): old.unlink()
    for m in sorted({r.modality for r in records}):
        write_table(lab/f'02_clean/records/{m}-00.parquet', [r.model_dump() for r in records if r.modality==m], arrow_schema(), 'id')
    write_table(lab/'02_clean/near.parquet', [], pa.schema([(k, pa.string()) for k in ('modality', 'a', 'b')]))
    write_json(lab/'02_clean/stage.json', dict(output=fingerprint(sorted(r.model_dump_json() for r in records))))
    return lab

def splits_of(lab): return pd.read_parquet(Path(lab)/'03_balance/splits.parquet')

def promised(lab):
    "stage.json and every file that it promises"
    folder = Path(lab)/'03_balance'
    said = json.loads((folder/'stage.json').read_text())
    return said, {f: (folder/f).read_bytes() for f in said['files']}

def near_copies(n, each=3, **more):
    "n clusters of planted near-duplicates"
    return [record(f'{i} copy {k}', cluster=f'c{i:04}', **more) for i in range(n) for k in range(each)]

# -- splits ----------------------------------------------------------------------------------------

def test_planted_near_copies_never_leak(tmp_path):
    balance(warehouse(tmp_path, near_copies(300)), 'tiny')
    s = splits_of(tmp_path)
    assert joined(s)==[] and s.groupby('cluster').split.nunique().max()==1
    assert {'train', 'validation', 'test'}==set(s.split)

def test_a_refresh_and_a_withdrawal_move_nobody(tmp_path):
    rows = near_copies(200)
    balance(warehouse(tmp_path, rows), 'tiny')
    old = splits_of(tmp_path).set_index('id').split
    kept = [r.model_copy(update=dict(cluster='z'+r.cluster)) for r in rows[50:]]
    balance(warehouse(tmp_path, kept+near_copies(50, source='news')), 'tiny', seed=9)
    new = splits_of(tmp_path).set_index('id').split
    assert len(new)==len(kept)+150 and not set(r.id for r in rows[:50]) & set(new.index)
    assert all(new[r.id]==old[r.id] for r in kept)

def test_a_new_copy_of_a_validation_record_goes_with_it(tmp_path):
    rows = near_copies(100)
    balance(warehouse(tmp_path, rows), 'tiny')
    s = splits_of(tmp_path)
    c = s.cluster[s.split=='validation'].iloc[0]
    late = record('late', cluster=c)
    balance(warehouse(tmp_path, [*rows, late]), 'tiny')
    assert splits_of(tmp_path).set_index('id').split[late.id]=='validation'

def bridged(rows, s):
    "The same records with a training and a validation cluster joined by a new one"
    ends = [s.cluster[s.split==x].iloc[0] for x in ('train', 'validation')]
    return [r.model_copy(update=dict(cluster='joint')) if r.cluster in ends else r for r in rows]+[record('bridge', cluster='joint')]

def test_a_bridge_between_training_and_validation_is_dropped(tmp_path):
    rows = near_copies(100)
    balance(warehouse(tmp_path, rows), 'tiny')
    before = splits_of(tmp_path)
    after = bridged(rows, before)
    balance(warehouse(tmp_path, after), 'tiny')
    s = splits_of(tmp_path).set_index('id').split
    assert s[after[-1].id]=='dropped' and all(s[i]==k for i,k in zip(before.id, before.split))
    assert promised(tmp_path)[0]['counts']['dropped']=={'joins two splits':1}
    assert 'joins' not in (tmp_path/'03_balance/mix.yaml').read_text() and '1 records were dropped' in (tmp_path/'03_balance/MIX.md').read_text()

def test_a_licence_that_closes_holds_a_training_record(tmp_path):
    rows = near_copies(60)
    balance(warehouse(tmp_path, rows), 'tiny')
    shut = rows[0].model_copy(update=dict(licence='unknown', train=False))
    balance(warehouse(tmp_path, [shut, *rows[1:]]), 'tiny')
    assert splits_of(tmp_path).set_index('id').split[shut.id]=='held'

@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_history_of_refreshes_is_sticky_and_settled(data):
    "Clusters join, records come and go: what was placed stays, nothing new sits in two splits, and splitting again changes nothing"
    known, joint = {}, set()
    for step in range(3):
        n = data.draw(st.integers(1, 30))
        ids = data.draw(st.lists(st.integers(0, 40), min_size=n, max_size=n, unique=True))
        of = data.draw(st.lists(st.integers(0, 15), min_size=n, max_size=n))
        t = pd.DataFrame(dict(id=[f'{i:03}' for i in ids], cluster=[f'k{c}' for c in of], modality=['text' if c<8 else 'dna' for c in of]))
        t = with_groups(t.assign(domain='biology', language='', region='', school='', licence='MIT', source='s', train=True, bytes=1, pixels=0))
        s = split(t, known, seed=step)
        now = dict(zip(s.id, s.split))
        assert all(now[i]==known[i] for i in now if i in known)
        for c,g in s.groupby('cluster'):
            fresh = g[~g.id.isin(list(known))]
            earlier = set(g.split[g.id.isin(list(known))])
            assert fresh.split.nunique()<=1 and (not earlier or set(fresh.split)<=(earlier if len(earlier)==1 else {'dropped'}))
        assert split(t, {i: k for i,k in now.items() if k in UNTIL}, seed=step).equals(s)
        known |= {i: k for i,k in now.items() if k in UNTIL}

@pytest.mark.parametrize('n, want', [(1, {'train'}), (2, {'train', 'validation'}), (9, {'train', 'validation'}), (10, {'train', 'validation', 'test'})])
def test_small_modalities_can_be_learnt_then_measured(n, want):
    for seed in range(40):
        t = pd.DataFrame(dict(id=[f'{i}' for i in range(n)], cluster='', modality='image', domain='biology', language='', region='', school='', licence='MIT', source='s', train=True, bytes=1, pixels=9))
        assert want<=set(split(with_groups(t), seed=seed).split)

# -- odd data --------------------------------------------------------------------------------------

def test_one_record(tmp_path):
    balance(warehouse(tmp_path, [record(0)]), 'tiny')
    m = yaml.safe_load((tmp_path/'03_balance/mix.yaml').read_text())
    assert [g['weight'] for g in m['groups']]==[1.] and list(splits_of(tmp_path).split)==['train']

def test_text_alone_and_images_alone(tmp_path):
    for m in ('text', 'image'):
        balance(warehouse(tmp_path/m, [record(i, m, source='mine') for i in range(30)]), 'starter')
        assert [g['group'] for g in yaml.safe_load((tmp_path/m/'03_balance/mix.yaml').read_text())['groups']]==[f'{m}/biology/-/mine']

def test_all_held_stops_with_the_mend(tmp_path):
    with pytest.raises(ValueError, match='no record may be trained on.*--licence'):
        balance(warehouse(tmp_path, [record(i, licence='unknown') for i in range(3)]), 'tiny')

def test_an_empty_warehouse_stops_with_the_mend(tmp_path):
    with pytest.raises(ValueError, match='no records in .*see what clean dropped'): balance(warehouse(tmp_path, []), 'tiny')

def test_a_torn_table_of_splits_is_not_silently_split_anew(tmp_path):
    rows = near_copies(20)
    balance(warehouse(tmp_path, rows), 'tiny')
    (tmp_path/'03_balance/splits.parquet').write_bytes(b'PAR1 torn')
    with pytest.raises(ValueError, match='delete it to split anew'): balance(warehouse(tmp_path, rows[1:]), 'tiny')

@pytest.mark.parametrize('temperature', [-.1, 1.1, float('nan')])
def test_a_temperature_outside_its_range(tmp_path, temperature):
    with pytest.raises(ValueError, match='between 0'): balance(warehouse(tmp_path, near_copies(5)), 'tiny', temperature)

# -- weights ---------------------------------------------------------------------------------------

sizes = st.dictionaries(st.tuples(st.sampled_from(['text', 'dna', 'protein', 'image', 'audio']), st.sampled_from('abcd'), st.sampled_from(['en', 'fr', ''])),
    st.integers(1, 10**8), min_size=1, max_size=14)

def table(sizes):
    "Facts of one record a group"
    rows = [dict(id=f'{i:02}', cluster='', modality=m, source=s, language=l, bytes=b, pixels=b//4 if m=='image' else 0) for i,((m,s,l),b) in enumerate(sorted(sizes.items()))]
    return with_groups(pd.DataFrame(rows).assign(domain='general', region='', school='', licence='MIT', train=True))

@given(sizes, st.integers(1_000, 10**9), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_weights_add_up_and_respect_floors_and_caps(sizes, budget, temperature):
    g = groups(table(sizes))
    w = weigh(g, budget, temperature)
    most = most_shares(dict(zip(g.group, g.tokens)), budget)
    assert abs(sum(w.values())-1)<1e-9 and all(0<w[k]<=most[k]*(1+1e-9) for k in w)
    g = g.assign(weight=g.group.map(w), most=g.group.map(most))
    m = g.groupby('modality')[['weight', 'most']].sum()
    for name,part in parts(m.index).items():
        assert m.weight[name]>=min(part, m.most[name])*(1-1e-9), 'a floor holds unless the modality would be read too often'
    for name,t in g.groupby('modality'):
        s, total = t.groupby('source')[['weight', 'most']].sum(), t.weight.sum()
        for top in s.index[s.weight>MOST_OF_A_SOURCE*total*(1+1e-9)]:
            rest = s.drop(top)
            assert (rest.weight>=rest.most*(1-1e-6)).all(), 'a source exceeds its cap only when the others are full'

@given(sizes, st.integers(1_000, 10**9))
@settings(max_examples=60, deadline=None)
def test_the_mix_is_rounded_to_one_and_always_says_why(sizes, budget):
    x = mix(table(sizes), budget)
    assert round(x.weight.sum(), 9)==1 and (x.weight>0).all() and x.why.str.len().min()>20
    again = mix(table(sizes), budget)
    assert again.equals(x)

@given(st.dictionaries(st.text(min_size=1, max_size=3), st.tuples(st.floats(.01, 1e6), st.floats(.01, 10)), min_size=1, max_size=8))
def test_fill_keeps_proportions_below_the_caps(asked):
    want, most = ({k: v[i] for k,v in asked.items()} for i in (0, 1))
    total = min(1., .999*sum(most.values()))
    out = fill(want, most, total)
    free = [out[k]/want[k] for k in out if out[k]<most[k]*(1-1e-9)]
    assert abs(sum(out.values())-total)<1e-9 and all(out[k]<=most[k]*(1+1e-9) for k in out)
    assert not free or max(free)<=min(free)*(1+1e-6)

# -- kills and repeats -----------------------------------------------------------------------------

def test_two_fresh_labs_are_equal_to_the_byte(tmp_path):
    rows = near_copies(40)+[record(i, 'dna', 'k12', size=900) for i in range(25)]
    for name in 'ab': balance(warehouse(tmp_path/name, rows), 'tiny')
    assert promised(tmp_path/'a')==promised(tmp_path/'b')

def test_a_new_temperature_leaves_the_splits_alone(tmp_path):
    balance(warehouse(tmp_path, near_copies(40)+near_copies(40, source='b', size=900)), 'tiny')
    before = (tmp_path/'03_balance/splits.parquet').read_bytes()
    balance(tmp_path, 'tiny', .2)
    m = yaml.safe_load((tmp_path/'03_balance/mix.yaml').read_text())
    assert (tmp_path/'03_balance/splits.parquet').read_bytes()==before and m['temperature']==.2

KILLED = '''
import os, signal, sys
from lifelab.balance.balance import balance
left, replace, fsync = [int(sys.argv[2])], os.replace, os.fsync
def counted(f):
    def g(*a):
        out = f(*a); left[0] -= 1
        if left[0]==0: os.kill(os.getpid(), signal.SIGKILL)
        return out
    return g
os.replace, os.fsync = counted(replace), counted(fsync)
balance(sys.argv[1], 'tiny')
'''

def test_killed_at_every_write_of_a_refresh_ends_with_the_same_bytes(tmp_path):
    "kill -9 after each write and each rename, on a lab with earlier splits and a bridge; then once more, to the end"
    rows = near_copies(60)+[record(i, 'dna', 'k12', size=900) for i in range(25)]
    first = warehouse(tmp_path/'first', rows)
    balance(first, 'tiny')
    warehouse(first, bridged(rows, splits_of(first)))
    whole = shutil.copytree(first, tmp_path/'whole')
    balance(whole, 'tiny')
    kills = 0
    for k in range(2, 60, 4):
        lab = shutil.copytree(first, tmp_path/f'kill{k}')
        done = subprocess.run([sys.executable, '-c', KILLED, lab, str(k)], cwd=tmp_path, env=quiet(PYTHONPATH=ROOT, MPLBACKEND='agg'), capture_output=True, text=True)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        balance(lab, 'tiny')
        assert promised(lab)==promised(whole), f'differs after a kill at write {k}'
        if done.returncode==0: break
        kills += 1
    assert kills>=4
