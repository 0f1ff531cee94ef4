"""The run as a whole: installed elsewhere, repeated, killed, with a person's own data, on a base model of their own."""
import json, os, random, signal, subprocess, sys, time
from pathlib import Path

import pytest

from conftest import ROOT, quiet, sh

STAGES = ['collect', 'clean', 'balance', 'tokenize', 'pretrain', 'finetune', 'evaluate', 'serve']

def promised(lab):
    "What is promised to be equal: every stage.json, and through its hashes every file that it lists"
    out = {}
    for f in sorted(Path(lab).glob('0*/stage.json')):
        out[f.parent.name] = json.loads(f.read_text())
        for name,h in out[f.parent.name]['files'].items():
            import hashlib
            assert hashlib.sha256((f.parent/name).read_bytes()).hexdigest()==h, f'{f.parent.name}/{name} is not what stage.json says'
    return out

def test_an_installed_copy_runs_all_stages(tiny):
    work, said, _ = tiny
    assert [s for s in STAGES if s in said]==STAGES and 'Next:' in said
    assert (work/'lab/tiny/notebooks.html').stat().st_size>100_000
    assert len(promised(work/'lab/tiny'))==8

def test_a_second_run_skips_everything(tiny, installed):
    work = tiny[0]
    before = {f: f.stat().st_mtime_ns for f in (work/'lab/tiny').rglob('stage.json')}
    t = time.monotonic()
    done = sh(installed, 'run', '--profile', 'tiny', cwd=work)
    assert done.returncode==0 and done.stdout.count('done before')==8, done.stdout+done.stderr
    assert {f: f.stat().st_mtime_ns for f in before}==before
    print(f'skipped all in {time.monotonic()-t:.1f} s')

def test_status_of_a_finished_lab(tiny, installed):
    done = sh(installed, 'status', '--profile', 'tiny', cwd=tiny[0])
    assert done.returncode==0 and done.stdout.count(' done ')==8, done.stdout

def test_one_parameter_makes_the_right_stages_stale(tiny, installed):
    "A new temperature redoes balance and what reads it, not collect and clean"
    work = tiny[0]
    done = sh(sys.executable, '-c', f'''
from lifelab.core.pipeline import state
print([state({str(work/"lab/tiny")!r}, s, dict(profile="tiny", **(dict(temperature=.3) if s=="balance" else {{}}))) for s in ("collect", "clean", "balance")])''', cwd=work, PYTHONPATH=ROOT)
    assert done.stdout.strip()=="['done', 'done', 'stale']", done.stdout+done.stderr

def children(pid):
    "Every process below one, found through /proc"
    import psutil
    try: return psutil.Process(pid).children(recursive=True)
    except psutil.Error: return []

def killed_after(cmd, secs, cwd):
    "Start a run and kill -9 its leader after some seconds; its exit status, None when it was killed. No process of it may live on."
    import psutil
    p = subprocess.Popen(cmd, cwd=cwd, env=quiet(PYTHONPATH=ROOT), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        err = p.communicate(timeout=secs)[1]
        assert p.returncode==0, err[-3000:]
        return 0
    except subprocess.TimeoutExpired:
        kin = children(p.pid)
        p.send_signal(signal.SIGKILL); p.wait()
        _, alive = psutil.wait_procs(kin, timeout=10)
        assert not alive, f'{[" ".join(k.cmdline()) for k in alive]} outlived the run'
        p.stderr.close()

def test_killed_again_and_again_ends_with_the_same_bytes(tiny, lifelab, tmp_path):
    "kill -9 at eight moments drawn from a fixed seed, spread over the eight stages; the end equals the uninterrupted run of the installed copy"
    rng, cmd, kills = random.Random(7), [*lifelab, 'run', '--profile', 'tiny'], 0
    while kills<8 and killed_after(cmd, rng.uniform(.07, .2)*tiny[2], tmp_path)!=0: kills += 1
    if kills==8: assert killed_after(cmd, 900, tmp_path)==0, 'it did not end in 900 seconds'
    whole, pieces = promised(tiny[0]/'lab/tiny'), promised(tmp_path/'lab/tiny')
    print(f'{kills} kills')
    assert kills>=4 and len(whole)==8
    for s in whole: assert pieces[s]==whole[s], f'{s} differs after {kills} kills: {[k for k in whole[s] if pieces[s].get(k)!=whole[s][k]]}'

# -- a person's own data -------------------------------------------------------------------------

def own_folder(at):
    "Text, Markdown, FASTA and pictures as a person has them, with things that do not belong"
    import numpy as np
    from PIL import Image
    rng = np.random.default_rng(0)
    (at/'notes').mkdir(parents=True)
    words = 'moss fern spore frond rhizome leaf water light stone river valley slow green old growth cell wall'.split()
    for i in range(30):
        (at/f'notes/page{i}.txt').write_text(f'Page {i} of the fern diary. ' + ' '.join(rng.choice(words, 120)) + '.\n', encoding='utf-8')
    (at/'notes/about.md').write_text('# About\n\nA diary of ferns and mosses, kept by hand for one summer in a wet valley.\n')
    (at/'genes.fasta').write_text(''.join(f'>gene{i} invented\n{"".join(rng.choice(list("ACGT"), 600))}\n' for i in range(12)))
    (at/'proteins.faa').write_text(''.join(f'>prot{i} invented\nM{"".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 150))}\n' for i in range(8)))
    Image.fromarray(rng.integers(0, 255, (200, 260, 3), dtype=np.uint8)).save(at/'leaf.png')
    (at/'broken.png').write_bytes(b'\x89PNG not a picture')
    (at/'empty.txt').write_text('')
    (at/'program.exe').write_bytes(bytes(range(256)))
    return at

def test_own_data_alone(installed, tmp_path):
    own_folder(tmp_path/'ferns')
    done = sh(installed, 'run', '--profile', 'tiny', '--data', 'ferns', '--licence', 'CC-BY-4.0', cwd=tmp_path)
    assert done.returncode==0, done.stdout[-3000:]+done.stderr[-4000:]
    lab = tmp_path/'lab/tiny-ferns'
    import pyarrow.parquet as pq
    rows = [r for f in sorted((lab/'02_clean/records').glob('*.parquet')) for r in pq.read_table(f).to_pylist()]
    assert {r['modality'] for r in rows}>={'text', 'dna', 'protein', 'image'} and {r['licence'] for r in rows}=={'CC-BY-4.0'}
    dropped = [r for d in ('01_collect', '02_clean') for f in (lab/d/'dropped').glob('*.parquet') for r in pq.read_table(f).to_pylist()] if (lab/'02_clean/dropped').exists() else []
    assert any('broken.png' in str(r) for r in dropped), 'the broken picture is set aside with its reason'
    again = sh(installed, 'status', '--lab', lab, cwd=tmp_path)
    assert again.stdout.count(' done ')==8, again.stdout

def test_a_base_model_of_ones_own(installed, tiny, tmp_path):
    "A Hugging Face model from disk is fine-tuned instead of pre-training one"
    make = '''
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
t = ByteLevelBPETokenizer(); t.train_from_iterator(["What is life? Life is a process of chemistry."]*9, vocab_size=300, special_tokens=["<|endoftext|>"])
t.save("t.json"); tok = PreTrainedTokenizerFast(tokenizer_file="t.json", eos_token="<|endoftext|>"); tok.save_pretrained("base")
GPT2LMHeadModel(GPT2Config(vocab_size=len(tok), n_positions=256, n_embd=32, n_layer=2, n_head=2)).save_pretrained("base")'''
    assert sh(sys.executable, '-c', make, cwd=tmp_path).returncode==0
    import shutil
    shutil.copytree(tiny[0]/'lab/tiny', tmp_path/'lab/tiny')
    done = sh(installed, 'run', '--profile', 'tiny', '--base', 'base', cwd=tmp_path)
    assert done.returncode==0, done.stdout[-3000:]+done.stderr[-4000:]
    assert 'pretrain' not in done.stdout and done.stdout.count('done before')==4
    config = json.loads((tmp_path/'lab/tiny/06_finetune/model/config.json').read_text())
    assert config['model_type']=='gpt2'

# -- failing as a person would see it ------------------------------------------------------------

def test_a_failing_stage_names_notebook_cell_and_mend(lifelab, tmp_path):
    (tmp_path/'empty').mkdir()
    done = sh(*lifelab, 'run', '--profile', 'tiny', '--data', 'empty', '--licence', 'MIT', cwd=tmp_path, PYTHONPATH=ROOT)
    assert done.returncode==1 and '01_collect.ipynb, cell [' in done.stderr and 'run again' in done.stderr, done.stderr
    assert (tmp_path/'lab/tiny-empty/notebooks/01_collect.ipynb').exists()

@pytest.mark.parametrize('words, nearest', [(['run', '--from', 'cleen'], "'clean'"), (['run', '--profile', 'tinny'], "'tiny'"),
    (['run', '--profile', 'tiny', '-p', 'temprature=1'], "'temperature'"), (['serv'], "'serve'")])
def test_a_misspelt_word_is_refused_with_the_nearest(lifelab, tmp_path, words, nearest):
    done = sh(*lifelab, *words, cwd=tmp_path, PYTHONPATH=ROOT)
    assert done.returncode==2 and f'did you mean {nearest}' in done.stderr and not (tmp_path/'lab').exists()

def test_import_is_light(tmp_path):
    "import lifelab, and lifelab --help, load none of the heavy libraries"
    heavy = "('torch', 'transformers', 'librosa', 'fastcore', 'nbdev', 'pandas', 'pyarrow', 'papermill', 'numpy')"
    code = f"import sys, lifelab; print([m for m in {heavy} if m in sys.modules])"
    assert sh(sys.executable, '-c', code, cwd=tmp_path, PYTHONPATH=ROOT).stdout.strip()=='[]'
    code = f"import sys, lifelab.cli; print([m for m in {heavy} if m in sys.modules])"
    assert sh(sys.executable, '-c', code, cwd=tmp_path, PYTHONPATH=ROOT).stdout.strip()=='[]'
