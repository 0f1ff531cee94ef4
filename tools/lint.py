"""The rules of the house, checked: names, import order, budgets, documentation, notebooks in step with the package. `make lint` runs it.

`python tools/lint.py --only names,imports` runs some rules; `--list` names them. Exit status 1 when a rule is broken: each line says where, what was
found and what is expected.
"""
import argparse, ast, difflib, json, os, re, subprocess, sys, venv
from pathlib import Path

root = Path(__file__).resolve().parent.parent
EXPORT, DEFAULT = re.compile(r'^\s*#\s*\|\s*exports?\b', re.M), re.compile(r'^\s*#\s*\|\s*default_exp\s+(\S+)', re.M)
CHKSTYLE = ('fastaistyle==0.0.20', 'fastcore==2.2.39')
# Gated are the rules that keep a notebook a story (short cells, prose around every definition, no run of cells without prose, examples without comments)
# and those that find imports nobody uses; its rules of layout (semicolons, dict literals, brackets) are taste, and are left to the writer.
GATED = 'too-many-defs long-exported-cell long-example-cell undocumented-export comment-in-example exported-run example-run unused-import exported-import-nonexport'.split()
MOST = dict(cell=30, function=30, example=10, cells=100, exported=350, stage_cells=25, params=6, kb=150, line=160, depth=5)

class Notebook:
    "A notebook with what the rules ask of it"
    def __init__(self, path):
        self.path, self.name = path, path.relative_to(root).as_posix()
        self.cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        self.source = [''.join(c['source']) for c in self.cells]
        self.code = [(i, c, s) for i,(c,s) in enumerate(zip(self.cells, self.source)) if c['cell_type']=='code']
        self.module = next((m[1] for _,_,s in self.code if (m := DEFAULT.search(s))), None)
        self.exported = [(i, s) for i,_,s in self.code if EXPORT.search(s)]
        self.order = tuple(int(m[0]) if (m := re.match(r'\d+', q)) else 99 for q in path.relative_to(root/'nbs').with_suffix('').parts)
        self.stage = len(self.order)==1 and 0<self.order[0]<10
    def trees(self):
        "Syntax trees of the exported cells that have one; `names` reports the others"
        return [(i, t) for i,s in self.exported if (t := parsed(s))]
    def imports(self):
        out = set()
        for _,t in self.trees():
            for n in ast.walk(t):
                if isinstance(n, ast.Import): out |= {a.name for a in n.names}
                if isinstance(n, ast.ImportFrom) and n.module: out |= {n.module} | {f'{n.module}.{a.name}' for a in n.names}
        return {m for m in out if m.startswith('lifelab.')}

def parsed(source):
    "Syntax tree of a cell, without its magics; None when it is no Python"
    try: return ast.parse(re.sub(r'^\s*[%!].*$', '', source, flags=re.M))
    except SyntaxError: return None

def notebooks():
    "Every notebook, in order"
    return [Notebook(p) for p in sorted((root/'nbs').rglob('*.ipynb')) if '.ipynb_checkpoints' not in p.parts]

def lines_of(source):
    "Lines of code: no directives, no blank lines"
    return [l for l in source.splitlines() if l.strip() and not l.lstrip().startswith('#|')]

# -- rules: each yields (where, what was found, what is expected) ---------------------------------

def names(nbs):
    "nbs/02_clean/40_dedup.ipynb is lifelab/clean/dedup.py, and every module has its notebook"
    for nb in nbs:
        want = '.'.join(re.sub(r'^\d+_', '', q) for q in nb.path.relative_to(root/'nbs').with_suffix('').parts)
        if nb.module and nb.module!=want: yield nb.name, f'exports {nb.module}', f'its name says {want}'
        if nb.exported and not nb.module: yield nb.name, 'exports without default_exp', f'#| default_exp {want}'
        for i,s in nb.exported:
            if not parsed(s): yield f'{nb.name} cell {i}', 'an exported cell that is no Python', 'code that parses'
    have = {'lifelab/'+nb.module.replace('.', '/')+'.py' for nb in nbs if nb.module}
    for p in sorted((root/'lifelab').rglob('*.py')):
        rel = p.relative_to(root).as_posix()
        if p.name not in ('__init__.py', '_modidx.py') and rel not in have: yield rel, 'no notebook makes it', 'remove it, or name its notebook so'

def imports(nbs):
    "A module imports only from earlier notebooks; the longest chain is 5; there is no cycle"
    of = {f'lifelab.{nb.module}': nb for nb in nbs if nb.module}
    edges = {nb.name: [of[m] for m in sorted(nb.imports()) if m in of and of[m] is not nb] for nb in nbs}
    for nb in nbs:
        for late in edges[nb.name]:
            if late.order>nb.order: yield nb.name, f'imports {late.name}, which comes later', 'imports look only back'
    def depth(nb, seen=()): return 1+max((depth(q, (*seen, nb)) for q in edges[nb.name] if q not in seen), default=0)
    for nb in nbs:
        if edges[nb.name] and (d := depth(nb))>MOST['depth']: yield nb.name, f'a chain of {d} modules', f"at most {MOST['depth']}"

def budgets(nbs):
    "Cells, functions and notebooks stay short"
    for nb in nbs:
        total = sum(len(lines_of(s)) for _,s in nb.exported)
        if total>MOST['exported']: yield nb.name, f'{total} exported lines', f"at most {MOST['exported']}"
        if len(nb.cells)>MOST['cells']: yield nb.name, f'{len(nb.cells)} cells', f"at most {MOST['cells']}"
        if (kb := nb.path.stat().st_size/1000)>MOST['kb']: yield nb.name, f'{kb:.0f} KB', f"at most {MOST['kb']} KB"
        for i,s in nb.exported:
            if (n := len(lines_of(s)))>MOST['cell']: yield f'{nb.name} cell {i}', f'an exported cell of {n} lines', f"at most {MOST['cell']}"
        for i,_,s in nb.code:
            for j,l in enumerate(s.splitlines(), 1):
                if len(l)>MOST['line']: yield f'{nb.name} cell {i} line {j}', f'{len(l)} characters', f"at most {MOST['line']}"
        for i,t in nb.trees():
            for f in ast.walk(t):
                if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) and (n := f.end_lineno-f.lineno+1)>MOST['function']:
                    yield f'{nb.name} cell {i}', f'{f.name} has {n} lines', f"at most {MOST['function']}"

def clean(nbs):
    "Notebooks are committed without outputs"
    for nb in nbs:
        for i,c,_ in nb.code:
            if c.get('outputs'): yield f'{nb.name} cell {i}', 'an output', 'nbdev_clean, or Clear All Outputs, before a commit'

def titles(nbs):
    "A notebook begins with its title, and no cell is empty: the site is made from both"
    for nb in nbs:
        first = nb.source[0] if nb.cells and nb.cells[0]['cell_type']=='markdown' else ''
        if not re.search(r'^# \S', first, re.M): yield f'{nb.name} cell 0', 'no title', 'a text cell with a line "# name"'
        for i,s in enumerate(nb.source):
            if not s.strip(): yield f'{nb.name} cell {i}', 'an empty cell', 'none, or something in it'

def docs(nbs):
    "Public functions say what comes back, and each of their parameters what it is"
    for nb in nbs:
        for i,t in nb.trees():
            src = dict(nb.exported)[i].splitlines()
            inner = {g for f in ast.walk(t) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) for g in ast.walk(f) if g is not f}
            for f in ast.walk(t):
                if not isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) or f.name.startswith('_') or f in inner: continue
                if not ast.get_docstring(f): yield f'{nb.name} cell {i}', f'{f.name} has no docstring', 'one line that says what comes back'
                args = [a for a in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs) if a.arg not in ('self', 'cls')]
                bare = [a.arg for a in args if '#' not in src[a.lineno-1]]
                if f.name.startswith('cmd_') or f.args.args[:1] and f.args.args[0].arg=='self' and not f.decorator_list: continue
                if bare: yield f'{nb.name} cell {i}', f"{f.name}: nothing said of {', '.join(bare)}", 'a comment behind each parameter: meaning, shape, unit, range'

def _signature(module, name):
    "Parameter names and literal defaults of a function of a generated module"
    for n in ast.parse((root/module).read_text(encoding='utf-8')).body:
        if isinstance(n, ast.FunctionDef) and n.name==name:
            defaults = [None]*(len(n.args.args)-len(n.args.defaults))+[ast.literal_eval(d) for d in n.args.defaults]
            return {a.arg: d for a,d in zip(n.args.args, defaults)}

def stages(nbs):
    "A stage notebook is short, exports nothing, and its parameters are those of the stage function"
    for nb in (n for n in nbs if n.stage):
        if nb.exported: yield nb.name, 'exported cells', 'stage notebooks export nothing: papermill would run the export'
        if len(nb.code)>MOST['stage_cells']: yield nb.name, f'{len(nb.code)} code cells', f"at most {MOST['stage_cells']}"
        tagged = [s for _,c,s in nb.code if 'parameters' in c['metadata'].get('tags', ())]
        if len(tagged)!=1: yield nb.name, f'{len(tagged)} cells tagged parameters', 'exactly one'; continue
        asked = {n.target.id: ast.literal_eval(n.value) for n in ast.parse(tagged[0]).body if isinstance(n, ast.AnnAssign)}
        if bare := [n.targets[0].id for n in ast.parse(tagged[0]).body if isinstance(n, ast.Assign)]:
            yield nb.name, f'parameters without a type: {bare}', 'papermill --help-notebook shows it: `seed:int = 0`'
        if len(asked)>MOST['params']: yield nb.name, f'{len(asked)} parameters', f"at most {MOST['params']}"
        if bare := [l for l in tagged[0].splitlines() if '=' in l and '#' not in l]: yield nb.name, f'no comment behind {bare[0]!r}', 'papermill --help-notebook shows it'
        stage = nb.path.stem.split('_', 1)[1]
        given = _signature(f'lifelab/{stage}/{stage}.py', stage)
        if given is None: yield nb.name, f'lifelab/{stage}/{stage}.py has no function {stage}', 'the stage function bears the stage\'s name'
        elif list(given)!=list(asked): yield nb.name, f'parameters {list(asked)}', f'those of {stage}: {list(given)}'
        elif off := [k for k,d in given.items() if d is not None and d!=asked[k]]: yield nb.name, f'defaults of {off} differ from the function', 'equal defaults'
        if not any(re.search(rf'(?<![\w.]){stage}\(', c) for _,_,c in nb.code): yield nb.name, f'no call of {stage}(…)', 'the one call that does the stage'

def tool(name):
    "The console script beside this interpreter"
    return str(Path(sys.executable).parent/name)

def text(nbs):
    "Every notebook survives the way to text and back, which is how it is edited"
    if not nbs: return
    p = subprocess.run([tool('jupytext'), '--test', '--to', 'py:percent', *(nb.name for nb in nbs)], cwd=root, capture_output=True, text=True)
    if p.returncode: yield 'jupytext --test', (p.stdout+p.stderr).strip()[-600:], 'the same cells after the round trip'

def sync(nbs):
    "After export, clean and the README, nothing in git has changed"
    git = lambda: subprocess.run(['git', 'status', '--porcelain'], cwd=root, capture_output=True, text=True, check=True).stdout
    diff = lambda: subprocess.run(['git', 'diff'], cwd=root, capture_output=True, text=True, check=True).stdout
    before, was = git(), diff()
    for cmd in ([tool('nbdev_export')], [tool('nbdev_clean')], [sys.executable, str(root/'tools/readme.py')]):
        p = subprocess.run(cmd, cwd=root, capture_output=True, text=True)
        if p.returncode: yield Path(cmd[-1]).name, p.stderr.strip()[-400:], 'exit status 0'
    if git()!=before or diff()!=was:
        new = sorted(set(git().splitlines())-set(before.splitlines())) or ['a file that was changed already']
        yield 'git status', '; '.join(new), 'notebooks, lifelab/ and README.md in step: commit what changed just now'

def chkstyle(nbs):
    "The narrative rules of fastaistyle, in an environment of its own (it needs a newer fastcore than nbdev)"
    at = root/'.venv-lint'
    made, wanted = at/'.made', ' '.join(CHKSTYLE)
    if not made.exists() or made.read_text()!=wanted:
        venv.create(at, with_pip=True, clear=True)
        p = subprocess.run([at/'bin/python', '-m', 'pip', 'install', '-q', '--disable-pip-version-check', *CHKSTYLE], capture_output=True, text=True)
        if p.returncode: yield '.venv-lint', p.stderr.strip()[-400:], f'{wanted} from the package index'; return
        made.write_text(wanted)
    p = subprocess.run([at/'bin/chkstyle', '--show-rule', 'nbs'], cwd=root, env={**os.environ, 'XDG_CONFIG_HOME': str(at)}, capture_output=True, text=True)
    found = list(re.finditer(r'^# (\S+?):(cell\[[\w-]+\])[:\d]*: \[([a-z-]+)\] (.*?)(?: \(hint: (.*)\))?$', p.stdout, re.M))
    if p.returncode not in (0, 1) or p.returncode==1 and not found: yield 'chkstyle', (p.stdout+p.stderr).strip()[-400:], 'a list of violations, or none'
    for m in found:
        if m[3] in GATED: yield f'{m[1]} {m[2]}', f'{m[3]}: {m[4]}', m[5] or 'see the README of fastaistyle'

RULES = {f.__name__: f for f in (names, imports, budgets, clean, titles, docs, stages, text, chkstyle, sync)}

def main():
    "Run the rules; the number of breaches decides"
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--only', default=','.join(RULES))
    ap.add_argument('--list', action='store_true')
    a = ap.parse_args()
    if a.list: print('\n'.join(f'{k:9} {f.__doc__}' for k,f in RULES.items())); return 0
    nbs, bad, asked = notebooks(), 0, a.only.split(',')
    for k in asked:
        if k not in RULES: ap.error(f"no rule {k!r}; did you mean {(difflib.get_close_matches(k, RULES, 1, 0) or list(RULES))[0]!r}? --list names them")
    for k in asked:
        rows = list(RULES[k](nbs))
        bad += len(rows)
        print(f"{'ok    ' if not rows else 'FAILED'} {k}: {RULES[k].__doc__}")
        for where,found,want in rows: print(f'       {where}: {found}; expected: {want}')
    print(f'{len(nbs)} notebooks, {bad} breaches')
    return 1 if bad or not nbs else 0

if __name__ == '__main__': sys.exit(main())
