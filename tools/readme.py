"""README.md from nbs/index.ipynb: its prose and code, links made relative to the top of the project."""
import json, re, sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
NOTE = '<!-- Made from nbs/index.ipynb by tools/readme.py: edit there. -->\n\n'

def readme(nb):
    "Markdown of a notebook: prose as it is, code fenced, hidden cells and front matter left out"
    parts = []
    for c in nb['cells']:
        s = ''.join(c['source'])
        if c['cell_type']=='markdown': parts.append(s)
        elif c['cell_type']=='code' and '#| hide' not in s and s.strip(): parts.append(f'```python\n{re.sub(r"^#[|] .*$", "", s, flags=re.M).strip()}\n```')
    text = '\n\n'.join(parts)
    return NOTE+re.sub(r'\]\(images/', '](nbs/images/', text).strip()+'\n'

if __name__ == '__main__':
    text = readme(json.loads((root/'nbs/index.ipynb').read_text(encoding='utf-8')))
    if not (root/'README.md').exists() or (root/'README.md').read_text(encoding='utf-8')!=text:
        (root/'README.md').write_text(text, encoding='utf-8')
        print('README.md written', file=sys.stderr)
