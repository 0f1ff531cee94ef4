"""Everything that is measured, in one command: `python bench` (profile tiny for the stages, the starter's sizes for training and serving; about five minutes)."""
import subprocess, sys
from pathlib import Path

here = Path(__file__).resolve().parent
for name in ('stages', 'train', 'serve'):
    print(f'\n=== {name}: {(here/name).with_suffix(".py").read_text().splitlines()[0].strip(chr(34))}', flush=True)
    if rc := subprocess.run([sys.executable, str(here/f'{name}.py')], cwd=here.parent).returncode: sys.exit(rc)
