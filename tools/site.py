"""The site: notebooks executed and told as pages, the data cards, the mix and the evaluation card of a run → _docs/.

`python tools/site.py` builds all; `--only 30_licence index` a few pages; `--no-run` shows library notebooks without their outputs.
LAB=lab/starter names the run whose stage notebooks are shown: lab/starter if it is there, else lab/tiny, which is made if need be.
A notebook is executed anew only when it, or the code that it imports, has changed (kept in work/told/).
"""
import argparse, hashlib, inspect, json, os, re, shutil, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from posixpath import normpath, relpath

root = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(root), str(root/'tools')]
from lifelab.core.lab import code_fingerprint
from links import faults
from pages import cards, evaluation, report, the_mix, try_it

stage, told = root/f'work/site-{os.getpid()}', root/'work/told'
REPO = 'https://github.com/lifelab/lifelab/blob/main/'
KATEX = '0.16.11'

# Which notebooks

def books():
    "All notebooks, in order"
    return sorted(p for p in (root/'nbs').rglob('*.ipynb') if not any(q.startswith('.') for q in p.relative_to(root).parts))

def page_of(nb): return nb.relative_to(root/'nbs').as_posix()

def is_library(nb): return '#| default_exp' in nb.read_text(encoding='utf-8')

def symbols():
    "Public function or class → page and anchor, from the cells that export them"
    at, twice = {}, set()
    for nb in filter(is_library, books()):
        for c in json.loads(nb.read_text(encoding='utf-8'))['cells']:
            s = ''.join(c['source'])
            if c['cell_type']=='code' and s.startswith('#| export'):
                for name in re.findall(r'^(?:def|class) ([A-Za-z]\w*)', s, re.M):
                    if name in at: twice.add(name)
                    at[name] = f"{page_of(nb)}#def-{name}"
    return {n: p for n,p in at.items() if n not in twice}

# One notebook, in a process of its own

def cook(nb, out, run):
    "Execute a library notebook and turn its exports into signatures, as nbdev's documentation does"
    from execnb.nbio import mk_cell, write_nb
    from execnb.shell import CaptureShell
    from nbdev.config import get_config
    from nbdev.frontmatter import FrontmatterProc
    from nbdev.process import NBProcessor, Processor
    from nbdev.processors import FilterDefaults, add_links, exec_show_docs
    skip, module = set(get_config().tst_flags.split()), module_of(nb.read_text(encoding='utf-8'))
    class Signatures(Processor):
        "`show_doc` of what the module holds, so that no cell runs twice"
        def begin(self): self.k = CaptureShell(); self.k.run_cell(f'import {module} as m\nglobals().update(vars(m))\nfrom nbdev.showdoc import show_doc')
        def __call__(self, cell): 'show_doc(' in cell.source and self.k.cell(cell)
    class Told(FilterDefaults):
        def base_procs(self): return [Signatures if p is exec_show_docs else p for p in super().base_procs() if p not in (FrontmatterProc, add_links)]
    os.chdir(nb.parent)
    book = NBProcessor(nb, rm_directives=False).nb # the filter reads the directives again
    for c in book.cells: c.source = re.sub(r'^#\| export *$', '#| exports', c.source, flags=re.M)
    if run:
        shell = CaptureShell(nb, mpl_format='png')
        idle = lambda c: c.cell_type!='code' or c.directives_.get('eval:', [''])[0].lower()=='false' or skip & c.directives_.keys()
        try: shell.run_all(book, exc_stop=True, preproc=idle)
        except Exception: sys.exit(shell.prettytb(fname=nb))
    imports = r'(#\|[^\n]*\n)*((from|import) [^\n]*\n?)+' # no reading matter
    for c in book.cells:
        if c.cell_type=='code' and re.fullmatch(imports, c.source.strip()+'\n'): c.source = '#| hide\n'+re.sub('^#.*\n', '', c.source, flags=re.M)
    book.cells.append(mk_cell('', 'markdown')) # nbdev looks at the cell after a last export
    Told()(book)
    book.metadata.pop('widgets', None)
    write_nb(book, out)

def module_of(text): return 'lifelab.'+re.search(r'#\| default_exp ([\w.]+)', text)[1]

def kept(nb, run):
    "The told form of a library notebook, made when there is none for this content"
    text = nb.read_text(encoding='utf-8')
    made_from = [text, code_fingerprint(module_of(text)), inspect.getsource(cook), run]
    kind = 'ran' if run else 'quick'
    out = told/f'{nb.stem}-{kind}-{hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]}.ipynb'
    if not out.exists():
        part = out.with_suffix(f'.{os.getpid()}')
        env = {**os.environ, 'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1', 'TQDM_DISABLE': '1', 'COLUMNS': '120'}
        done = subprocess.run([sys.executable, __file__, '--cook', nb, part, *([] if run else ['--no-run'])], cwd=root, env=env, capture_output=True, text=True)
        if done.returncode: return print(f'{nb.relative_to(root)} cannot be shown:\n{(done.stdout+done.stderr)[-3000:]}', file=sys.stderr)
        for old in told.glob(f'{nb.stem}-{kind}-*.ipynb'): old.unlink(missing_ok=True)
        part.rename(out)
        print(f'told {nb.relative_to(root)}', flush=True)
    return json.loads(out.read_text(encoding='utf-8'))

# Words and links

def relink(text, nb):
    "Links between files of the project become links between pages; other files are shown at the repository"
    def one(m):
        path, hash_, tail = m[2].partition('#')
        if not path or re.match(r'[a-z]+:', path): return m[0]
        here = nb.parent.relative_to(root).as_posix()
        p = next((q for q in (normpath(f'{here}/{path}'), normpath(path)) if (root/q).exists()), None)
        if p is None: return m[0]
        if p=='data_cards': p = 'cards.md'
        if not p.startswith(('nbs/', 'data_cards/', 'cards.md', 'CONTRIBUTING')): return f'{m[1]}({REPO}{p})'
        if p.startswith('data_cards/MIX'): p = 'mix.md'
        to = relpath(p.removeprefix('nbs/').lower() if p=='CONTRIBUTING.md' else p.removeprefix('nbs/'), here.removeprefix('nbs').lstrip('/') or '.')
        return f'{m[1]}({to}{hash_}{tail})'
    return re.sub(r'(\])\(([^()\s]+)\)', one, text)

def linked(text, names, page, known):
    "Names of functions in backticks become links, outside code blocks and links; a bare word only where the page imports or makes it, else it may be a column"
    here = Path(page).parent.as_posix()
    def one(m):
        to = names.get(m[2])
        if not to or not (m[2] in known or '_' in m[2] or m[1].endswith('()')): return m[0]
        return f'[`{m[1]}`]({relpath(to, here)})' if not to.startswith(page+'#') else f'[`{m[1]}`](#{to.partition("#")[2]})'
    parts = re.split(r'(```.*?```|\[[^\]]*\]\([^)]*\))', text, flags=re.S)
    return ''.join(p if i%2 else re.sub(r'(?<!`)`((\w+)(?:\(\))?)`(?!`)', one, p) for i,p in enumerate(parts))

def signature(text, names, page):
    "A signature of nbdev: an anchor of its own, and its absolute links made ours"
    here = Path(page).parent.as_posix()
    text = re.sub(r'^### (.+)$', lambda m: f"### `{m[1].strip()}` {{#def-{m[1].strip()}}}", text, count=1, flags=re.M)
    own = lambda m: f'[`{m[1]}`]({relpath(names[m[1]], here)})' if m[1] in names else f'`{m[1]}`'
    text = re.sub(r'\[`([^`]+)`\]\(https?://[^)]*\)', own, text)
    text = text.removeprefix('---\n\n')
    m = re.match(r'(\[source\]\([^)]*\))\{[^}]*\}\n\n', text)
    return text[m.end():]+f'\n\n[[source]{m[1][8:]}]{{.source}}\n' if m else text

def written(nb, src, names, hidden=()):
    "A notebook as the renderer wants it: front matter, links, no warnings of libraries, nothing of this machine"
    page, cells = page_of(src), []
    code = '\n'.join(''.join(c['source']) for c in json.loads(src.read_text(encoding='utf-8'))['cells'] if c['cell_type']=='code')
    known = {w for l in re.findall(r'^from lifelab.* import (.+)$', code, re.M) for w in re.findall(r'\w+', l)} | {n for n,p in names.items() if p.startswith(page+'#')}
    for c in nb['cells']:
        s, outs = ''.join(c['source']), c.get('outputs', [])
        if c['cell_type']=='markdown' and not s.startswith('<!-- WARNING'): cells.append({**c, 'source': linked(relink(s, src), names, page, known)})
        if c['cell_type']!='code' or 'injected-parameters' in c['metadata'].get('tags', ()): continue
        c['outputs'] = [o for o in outs if not (o['output_type']=='stream' and o['name']=='stderr') and not any('widget' in k for k in o.get('data', {}))] # no progress bars
        shown = 'show_doc(' in s
        for o in c['outputs'] if shown else ():
            md = ''.join(o.get('data', {}).get('text/markdown', ''))
            if md: o['data'] = {'text/markdown': signature(md, names, page)}
        if 'Exported source' in s:
            private = not any(n in names for n in re.findall(r'^(?:def|class) (\w+)', s, re.M))
            s = re.sub(r'^#\|.*\n', '', s, flags=re.M)
            s = s if private else f'#| code-fold: true\n#| code-summary: "Source"\n{s}'
        elif not shown: s = re.sub(r'^#\| (?!code-|echo|output|label|fig|tbl).*\n', '', s, flags=re.M)
        cells.append({**c, 'source': s})
    head = ''.join(cells[0]['source'])
    title = re.search(r'^# (.+)$', head, re.M)[1]
    about = re.search(r'^> (.+)$', head, re.M)
    cells[0] = {**cells[0], 'source': re.sub(r'^(# .+|> .+)\n*', '', head, flags=re.M)}
    front = dict(title=title, **(dict(description=about[1]) if about else {}))
    cells.insert(0, dict(cell_type='raw', id='front', metadata={}, source='---\n'+json.dumps(front, ensure_ascii=False)+'\n---'))
    text = json.dumps({**nb, 'cells': cells, 'metadata': {k: v for k,v in nb['metadata'].items() if k!='papermill'}}, ensure_ascii=False)
    for path,said in hidden: text = text.replace(path, said)
    return text

# The whole

def lab_of():
    "The run that is shown; a tiny one is made when there is none"
    labs = [Path(os.environ['LAB'])] if os.environ.get('LAB') else [root/'lab/starter', root/'lab/tiny']
    lab = next((l.resolve() for l in labs if (l/'07_evaluate/card.md').exists()), None)
    if lab: return lab
    subprocess.run([sys.executable, '-c', 'import sys; from lifelab.cli import main; sys.exit(main())', 'run', '--profile', 'tiny', '--lab', labs[-1]], cwd=root, check=True)
    return labs[-1].resolve()

def put(page, text):
    "Write a staged page"
    (stage/page).parent.mkdir(parents=True, exist_ok=True)
    (stage/page).write_text(text, encoding='utf-8')

def staged(lab, only, run):
    "Everything the renderer needs in work/site/; the names of pages that `--only` left out"
    shutil.rmtree(stage, ignore_errors=True); told.mkdir(parents=True, exist_ok=True); stage.mkdir(parents=True)
    names, wanted = symbols(), lambda p: not only or any(o in p for o in only)
    hidden = [(str(lab), f'lab/{lab.name}'), (str(root)+'/', ''), (str(Path.home())+'/', '~/')]
    own = {'cards': lambda: cards(root), 'mix.md': lambda: the_mix(root, relink), 'evaluation.md': lambda: evaluation(lab), 'try.md': lambda: try_it(lab), 'report.html': lambda: report(lab)}
    with ThreadPoolExecutor(os.cpu_count()) as ex: cooked = list(ex.map(lambda nb: kept(nb, run), [nb for nb in books() if is_library(nb) and wanted(page_of(nb))]))
    if not all(cooked): raise SystemExit(f'{cooked.count(None)} notebooks cannot be shown: mend them, or look with --no-run')
    for nb in books():
        page = page_of(nb)
        if not wanted(page): continue
        ran = lab/'notebooks'/nb.name
        cooked = kept(nb, run) if is_library(nb) else json.loads((ran if nb.parent==root/'nbs' and ran.exists() else nb).read_text(encoding='utf-8'))
        put(page, written(cooked, nb, names, hidden))
    for page,make in own.items():
        if wanted(page):
            for name,data in make().items(): put(name, data) if isinstance(data, str) else ((stage/name).parent.mkdir(parents=True, exist_ok=True), (stage/name).write_bytes(data))
    shutil.copytree(root/'nbs/images', stage/'images')
    shutil.copy(root/'tools/site.css', stage)
    put('contributing.md', relink((root/'CONTRIBUTING.md').read_text(encoding='utf-8'), root/'CONTRIBUTING.md'))
    shutil.copy(root/'_quarto.yml', stage)

def katex():
    "KaTeX from npm, kept beside the pages; None when npm cannot bring it"
    at = root/f'work/katex-{KATEX}'
    if not at.exists() and shutil.which('npm'): subprocess.run(['npm', 'install', '--silent', '--no-audit', '--no-fund', '--prefix', at, f'katex@{KATEX}'], capture_output=True)
    dist = at/'node_modules/katex/dist'
    return dist if (dist/'katex.min.js').exists() else None

def rendered():
    "Render with Quarto, or else smalldocs, and bring what it would ask of other hosts"
    cmd = ['quarto', 'render'] if shutil.which('quarto') else [Path(sys.executable).parent/'smalldocs', 'render', '--quiet']
    done = subprocess.run([*cmd, stage], capture_output=True, text=True)
    if done.returncode: raise SystemExit(f'{cmd[0]} failed:\n{done.stdout}{done.stderr}')
    pages, dist = list((stage/'_docs').rglob('*.html')), None
    for p in pages:
        text = p.read_text(encoding='utf-8')
        if 'cdn.jsdelivr.net/npm/katex' not in text: continue
        dist = dist or katex()
        up = '../'*(len(p.relative_to(stage/'_docs').parts)-1)
        if dist: text = re.sub(r'https://cdn\.jsdelivr\.net/npm/katex@[^/]+/dist/', f'{up}site_libs/katex/', text)
        else: text = re.sub(r'<(link|script)[^>]*cdn\.jsdelivr\.net/npm/katex[^>]*>(</script>)?', '', text)
        p.write_text(text, encoding='utf-8')
    for f in (stage/'_docs').rglob('*.css'): # Bootswatch's themes ask Google for fonts; the reader's own will do
        f.write_text(re.sub(r'@import\s+url\(["\']?https?://[^)]*\);?', '', f.read_text(encoding='utf-8')), encoding='utf-8')
    if dist: shutil.copytree(dist, stage/'_docs/site_libs/katex', ignore=shutil.ignore_patterns('*.ttf', '*.woff', '*.mjs', 'katex.js', 'katex.css'))

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--only', nargs='+', default=[], metavar='PART', help='pages whose path holds one of these')
    ap.add_argument('--no-run', action='store_true', help='do not execute library notebooks')
    ap.add_argument('--out', type=Path, default=root/'_docs')
    ap.add_argument('--cook', nargs=2, type=Path, help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.cook: return cook(*a.cook, not a.no_run)
    lab = lab_of()
    try:
        staged(lab, a.only, not a.no_run)
        rendered()
        found = faults(stage/'_docs', partly=bool(a.only))
        for f in found: print(f, file=sys.stderr)
        if found: return 1
        shutil.rmtree(a.out, ignore_errors=True)
        shutil.move(stage/'_docs', a.out)
    finally: shutil.rmtree(stage, ignore_errors=True)
    print(f"{len(list(a.out.rglob('*.html')))} pages in {a.out}; the run shown is {lab}")

if __name__ == '__main__': sys.exit(main())
