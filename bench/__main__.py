"""Everything that is measured, in one command: `python bench` (profile tiny for the stages, the starter's sizes for training and serving; about ten minutes).

`python bench download serve` runs some of it; each file runs alone as well, and says which options it takes.
"""
import subprocess, sys
from pathlib import Path

here = Path(__file__).resolve().parent
ALL = ('stages', 'train', 'serve', 'download')
if unknown := set(sys.argv[1:])-set(ALL): sys.exit(f"no benchmark {sorted(unknown)[0]!r}: they are {', '.join(ALL)}")
for name in sys.argv[1:] or ALL:
    print(f'\n=== {name}: {(here/name).with_suffix(".py").read_text().splitlines()[0].strip(chr(34))}', flush=True)
    if rc := subprocess.run([sys.executable, str(here/f'{name}.py')], cwd=here.parent).returncode: sys.exit(rc)
