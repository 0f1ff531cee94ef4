"""The lint finds what it should: a violation of each rule is planted in a small project of its own."""
import importlib.util, json, subprocess, sys, zlib
from pathlib import Path

import pytest

from conftest import ROOT

def module(name):
    "A script of tools/ as a module"
    spec = importlib.util.spec_from_file_location(name, ROOT/f'tools/{name}.py')
    m = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(m)
    return m

def cell(source, kind='code', **meta):
    c = dict(cell_type=kind, id=f'i{zlib.crc32(source.encode())}', metadata=meta, source=[source])
    return c if kind!='code' else {**c, 'outputs': [], 'execution_count': None}

def write(at, *cells):
    at.parent.mkdir(parents=True, exist_ok=True)
    at.write_text(json.dumps(dict(cells=list(cells), metadata={}, nbformat=4, nbformat_minor=5)))

@pytest.fixture
def lint(tmp_path, monkeypatch):
    "The lint, looking at a sound small project"
    m = module('lint')
    monkeypatch.setattr(m, 'root', tmp_path)
    write(tmp_path/'nbs/01_near/10_one.ipynb', cell('#| default_exp near.one'), cell('why', 'markdown'), cell('#| export\ndef one(\n    n, # A number\n):\n    "One more"\n    return n+1'))
    write(tmp_path/'nbs/02_far/10_two.ipynb', cell('#| default_exp far.two'), cell('#| export\nfrom lifelab.near.one import one'))
    for p in ('near/one', 'far/two'): (tmp_path/f'lifelab/{p}.py').parent.mkdir(parents=True); (tmp_path/f'lifelab/{p}.py').write_text('')
    return m

def found(m, rule): return list(m.RULES[rule](m.notebooks()))

@pytest.mark.parametrize('rule', ['names', 'imports', 'budgets', 'clean', 'docs', 'stages'])
def test_a_sound_project_passes(lint, rule): assert found(lint, rule)==[]

def test_a_wrong_name_and_an_orphan(lint):
    write(lint.root/'nbs/01_near/20_three.ipynb', cell('#| default_exp near.four'))
    (lint.root/'lifelab/near/lost.py').write_text('')
    assert {r[0] for r in found(lint, 'names')}=={'nbs/01_near/20_three.ipynb', 'lifelab/near/lost.py'}

def test_a_notebook_without_a_title_and_an_empty_cell(lint):
    for p in ('01_near/10_one', '02_far/10_two'): (lint.root/f'nbs/{p}.ipynb').unlink()
    write(lint.root/'nbs/01_near/20_torn.ipynb', cell(''), cell('# torn', 'markdown'))
    assert [r[:2] for r in found(lint, 'titles')]==[('nbs/01_near/20_torn.ipynb cell 0', 'no title'), ('nbs/01_near/20_torn.ipynb cell 0', 'an empty cell')]
    write(lint.root/'nbs/01_near/20_torn.ipynb', cell('# torn\n\n> Whole.', 'markdown'), cell('x = 1'))
    assert found(lint, 'titles')==[]

def test_an_import_of_a_later_notebook(lint):
    write(lint.root/'nbs/01_near/10_one.ipynb', cell('#| default_exp near.one'), cell('#| export\nfrom lifelab.far.two import two'))
    assert 'comes later' in found(lint, 'imports')[0][1]

def test_a_long_chain_of_imports(lint):
    for i in range(6):
        write(lint.root/f'nbs/03_chain/{i+1}0_m{i}.ipynb', cell(f'#| default_exp chain.m{i}'), cell(f'#| export\nfrom lifelab.chain.m{i-1} import x' if i else '#| export\nx=1'))
    assert 'a chain of 6' in found(lint, 'imports')[0][1]

def test_budgets(lint):
    long = '#| export\ndef long():\n    "Long"\n'+'    x = 1\n'*31+'    y = '+'1'*170
    write(lint.root/'nbs/01_near/30_long.ipynb', cell('#| default_exp near.long'), cell(long))
    said = ' '.join(r[1] for r in found(lint, 'budgets'))
    assert 'an exported cell of 34 lines' in said and 'long has 34 lines' in said and '178 characters' in said

def test_a_cell_that_is_no_python_is_named_once(lint):
    write(lint.root/'nbs/01_near/30_torn.ipynb', cell('#| default_exp near.torn'), cell('#| export\ndef torn(:'))
    assert [r[:2] for rule in ('names', 'imports', 'budgets', 'docs') for r in found(lint, rule)]==[('nbs/01_near/30_torn.ipynb cell 1', 'an exported cell that is no Python')]

def test_a_cycle_is_a_late_import(lint):
    write(lint.root/'nbs/01_near/10_one.ipynb', cell('#| default_exp near.one'), cell('#| export\nfrom lifelab.far import two'))
    assert 'nbs/02_far/10_two.ipynb, which comes later' in found(lint, 'imports')[0][1]

def test_an_output_is_found(lint):
    c = {**cell('1'), 'outputs': [dict(output_type='stream', name='stdout', text='1')]}
    write(lint.root/'nbs/01_near/40_out.ipynb', c)
    assert [r[1] for r in found(lint, 'clean')]==['an output']

def test_missing_docs(lint):
    write(lint.root/'nbs/01_near/50_bare.ipynb', cell('#| default_exp near.bare'), cell('#| export\ndef bare(x): return x'))
    assert [r[1] for r in found(lint, 'docs')]==['bare has no docstring', 'bare: nothing said of x']

def test_a_stage_out_of_step(lint):
    write(lint.root/'nbs/01_near.ipynb', cell("lab:str = 'lab/tiny' # Folder\nheat:int = 2 # Kelvin", tags=['parameters']))
    (lint.root/'lifelab/near/near.py').write_text("def near(lab='lab/tiny', warmth=2): pass\n")
    assert 'those of near' in found(lint, 'stages')[0][2]
    write(lint.root/'nbs/01_near.ipynb', cell("lab:str = 'lab/tiny' # Folder\nwarmth = 2 # Kelvin", tags=['parameters']))
    assert found(lint, 'stages')[0][1]=="parameters without a type: ['warmth']"
    assert found(lint, 'stages')[-1][1]=='no call of near(…)'
    write(lint.root/'nbs/01_near.ipynb', cell("lab:str = 'lab/tiny' # Folder\nwarmth:int = 2 # Kelvin", tags=['parameters']), cell('report = near(lab, warmth)'))
    assert found(lint, 'stages')==[]

def test_a_notebook_that_does_not_survive_as_text(lint):
    assert found(lint, 'text')==[]
    (lint.root/'nbs/01_near/20_odd.ipynb').write_text('{"cells": [], "metadata": {}, "nbformat": 9}')
    assert [r[0] for r in found(lint, 'text')]==['jupytext --test']

def planted(lint, *cells):
    write(lint.root/'nbs/01_near/60_story.ipynb', cell('#| default_exp near.story'), *cells)
    return {r[1].partition(':')[0] for r in found(lint, 'chkstyle') if '60_story' in r[0]}

@pytest.fixture
def style(lint):
    "The style checker of the checkout, made once"
    list(module('lint').chkstyle([]))
    (lint.root/'.venv-lint').symlink_to(ROOT/'.venv-lint')
    return lint

def test_a_notebook_that_tells_no_story(style):
    bare = cell('#| export\ndef bare(): return 1')
    assert 'undocumented-export' in planted(style, cell('x = 1'), bare, cell('bare()'))
    assert 'exported-run' in planted(style, cell('why', 'markdown'), *[cell(f'#| export\nx{i} = {i}') for i in range(3)])
    assert 'long-example-cell' in planted(style, cell('\n'.join(f'x{i} = {i}' for i in range(11))))
    assert 'comment-in-example' in planted(style, cell('x = 1 # one'))
    assert planted(style, cell('why', 'markdown'), cell('#| export\ndef told(): return 1'), cell('told()'))==set()

def test_a_silent_style_checker_is_a_breach(style, monkeypatch):
    "No list of violations and an exit status of trouble must not pass for cleanness"
    monkeypatch.setattr(style.subprocess, 'run', lambda *a, **k: subprocess.CompletedProcess(a, 2, '', 'trouble'))
    assert [r[:2] for r in found(style, 'chkstyle')]==[('chkstyle', 'trouble')]

def test_what_is_out_of_step_is_named(lint, monkeypatch):
    "A generated module that was edited by hand comes back different from the export"
    git = lambda *a: subprocess.run(['git', '-c', 'user.name=t', '-c', 'user.email=t@t.t', *a], cwd=lint.root, check=True, capture_output=True)
    (lint.root/'made.py').write_text('x = 1\n')
    git('init', '-q'); git('add', '.'); git('commit', '-qm', 'all')
    (lint.root/'tools').mkdir(); (lint.root/'tools/readme.py').write_text('open("made.py", "w").write("x = 2\\n")')
    monkeypatch.setattr(lint, 'tool', lambda name: '/bin/true')
    said = found(lint, 'sync')
    assert len(said)==1 and 'M made.py' in said[0][1]
    assert found(lint, 'sync')==[]

@pytest.mark.parametrize('words, said', [(['--only', 'nmes'], "did you mean 'names'?"), (['--list'], 'imports')])
def test_the_lint_by_hand(words, said):
    done = subprocess.run([sys.executable, ROOT/'tools/lint.py', *words], capture_output=True, text=True)
    assert said in done.stdout+done.stderr

def test_the_readme_is_made_from_the_index():
    text = module('readme').readme(dict(cells=[cell('# T\n![p](images/p.png)', 'markdown'), cell('title: front matter', 'raw'), cell('#| hide\nsecret'), cell('#| eval: false\nx = 1')]))
    assert text.endswith('# T\n![p](nbs/images/p.png)\n\n```python\nx = 1\n```\n') and 'secret' not in text and 'front matter' not in text

def test_every_gated_rule_is_one_that_chkstyle_knows():
    "A renamed rule would gate nothing and nobody would see it"
    m = module('lint')
    list(m.chkstyle([]))
    site = next((m.root/'.venv-lint').glob('lib/python*/site-packages'))
    known = ''.join(p.read_text() for p in site.glob('chkstyle/*.py'))
    assert [r for r in m.GATED if f"'{r}'" not in known and f'"{r}"' not in known]==[]
