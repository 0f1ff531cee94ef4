"""Edit notebooks as text: `python tools/nb.py pull NB` writes work/NB.py; edit it; `python tools/nb.py push NB` brings it back, cleans, exports and tests.

`push --no-test` skips the test. Cell ids, tags and outputs of untouched cells survive. A notebook that does not exist yet is made from work/NB.py.
"""
import argparse, subprocess, sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
KERNEL = '{"kernelspec":{"display_name":"python3","language":"python","name":"python3"}}'

def run(*cmd):
    "Run a command from the project's root; end with its status if it fails"
    if (rc := subprocess.run([str(c) for c in cmd], cwd=root).returncode): sys.exit(rc)

def tool(name):
    "The console script that stands beside this interpreter"
    return Path(sys.executable).parent/name

def text_of(nb):
    "Where the text form of a notebook lives while it is edited (ignored by git)"
    return (root/'work'/nb.relative_to(root)).with_suffix('.py')

def pull(nb):
    "Notebook to text"
    out = text_of(nb)
    out.parent.mkdir(parents=True, exist_ok=True)
    run(tool('jupytext'), '--to', 'py:percent', '-o', out, nb)
    print(out.relative_to(root))

def push(nb, test=True):
    "Text to notebook, then clean, export and test it"
    src = text_of(nb)
    if not src.exists(): sys.exit(f"{src} is not there: `python tools/nb.py pull {nb}` first, or write it")
    nb.parent.mkdir(parents=True, exist_ok=True)
    run(tool('jupytext'), *(['--update'] if nb.exists() else ['--update-metadata', KERNEL]), '--to', 'ipynb', '-o', nb, src)
    run(tool('nbdev_clean'), '--fname', nb)
    run(tool('nbdev_export'))
    stage = nb.parent == root/'nbs' and nb.name[:2].isdigit() and nb.name[0] == '0'
    if test and not stage: run(tool('nbdev_test'), '--path', nb, '--do_print', '--n_workers', '1')

if __name__ == '__main__':
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument('what', choices=['pull', 'push'])
    ap.add_argument('notebook', type=Path)
    ap.add_argument('--no-test', action='store_true')
    a = ap.parse_args()
    nb = a.notebook.resolve()
    pull(nb) if a.what == 'pull' else push(nb, not a.no_test)
