"""Test every library notebook, each in a process of its own; end with a line that counts them. A notebook that takes longer than 10 minutes fails."""
import os, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

root = Path(__file__).resolve().parent.parent

def library():
    "Notebooks that export a module, in order"
    return sorted(p for p in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts and '#| default_exp' in p.read_text(encoding='utf-8'))

def test(nb):
    "Run one notebook with nbdev_test; its name, whether it passed, what it printed"
    cmd = [Path(sys.executable).parent/'nbdev_test', '--path', nb, '--n_workers', '0', '--do_print']
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1', 'TOKENIZERS_PARALLELISM': 'false', 'MPLBACKEND': 'agg', 'TQDM_DISABLE': '1'}
    try: p = subprocess.run(list(map(str, cmd)), cwd=root, env=env, capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired: return nb, False, 'longer than 10 minutes'
    return nb, p.returncode==0 and 'Success' in p.stdout+p.stderr, p.stdout+p.stderr

def main():
    "Test all, two at a time"
    nbs = [p for p in library() if not sys.argv[1:] or any(a in str(p) for a in sys.argv[1:])]
    with ThreadPoolExecutor(2) as ex: rows = list(ex.map(test, nbs))
    for nb,ok,out in rows:
        print('ok    ' if ok else 'FAILED', nb.relative_to(root))
        if not ok: print(out)
    bad = sum(not ok for _,ok,_ in rows)
    print(f'{len(rows)-bad} passed, {bad} failed')
    return 1 if bad or not rows else 0

if __name__ == '__main__': sys.exit(main())
