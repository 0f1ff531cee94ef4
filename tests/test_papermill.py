"""papermill as a person uses it: what the parameters are, what is refused before anything is read, and several runs at once."""
import json, re, sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import ROOT, sh

STAGES = sorted((ROOT/'nbs').glob('0[1-8]_*.ipynb'))

def papermill(*args, cwd, **env): return sh(sys.executable, '-m', 'papermill', '--no-progress-bar', *args, cwd=cwd, PYTHONPATH=ROOT, OMP_WAIT_POLICY='PASSIVE', **env)

@pytest.mark.parametrize('nb', STAGES, ids=lambda p: p.stem)
def test_help_tells_each_parameter_with_its_type(nb, tmp_path):
    said = papermill('--help-notebook', nb, cwd=tmp_path).stdout
    cell = next(c for c in json.loads(nb.read_text())['cells'] if 'parameters' in c['metadata'].get('tags', []))
    for line in ''.join(cell['source']).splitlines():
        name, kind, default, told = re.fullmatch(r'(\w+):(\w+) = (.+?) # (.+)', line).groups()
        assert re.search(rf'{name}: {kind} \(default {re.escape(default)}\)\s+{re.escape(told)}', said), (line, said)

@pytest.mark.parametrize('stage,name,value,message', [
    ('02_clean', 'profil', 'tiny', "no parameter 'profil': did you mean 'profile'"),
    ('05_pretrain', 'seed', 'abc', "seed='abc' is str, expected int"),
    ('03_balance', 'profile', 'tinny', "no profile 'tinny': did you mean 'tiny'"),
    ('04_tokenize', 'lab', 'empty', 'tokenize reads clean, which has not been run in empty')])
def test_what_cannot_be_right_is_refused_before_anything_is_read(stage, name, value, message, tmp_path):
    done = papermill(ROOT/f'nbs/{stage}.ipynb', 'out.ipynb', '-p', name, value, cwd=tmp_path)
    assert done.returncode and message in done.stderr.replace('\x1b', ''), done.stderr[-1500:]
    assert [p.name for p in tmp_path.iterdir()]==['out.ipynb'], 'nothing but the executed copy is written'

def test_several_runs_at_once_do_not_meet(tmp_path):
    def go(lab):
        for stage in STAGES[:3]:
            done = papermill(stage, f'{lab}-{stage.name}', '-p', 'lab', lab, cwd=tmp_path)
            if done.returncode: return done.stderr[-2000:]
    with ThreadPoolExecutor(2) as ex: errors = list(ex.map(go, ('one', 'two')))
    assert errors==[None, None]
    one, two = ([json.loads((tmp_path/lab/s.stem/'stage.json').read_text()) for s in STAGES[:3]] for lab in ('one', 'two'))
    assert one==two and one[1]['counts']['out']>500, 'equal bytes, whatever ran beside'
