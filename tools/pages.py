"""Pages that no notebook holds: data cards, the mix, the evaluation card, a page to try it, the report. Each function gives {staged path: content}."""
import json, re
from html import escape
from pathlib import Path
import yaml

raw = lambda html: f'\n```{{=html}}\n{html}\n```\n'

def front(title, about=''):
    "Front matter of a page"
    return f'---\n{json.dumps(dict(title=title, **(dict(description=about) if about else {})), ensure_ascii=False)}\n---\n\n'

def said(value):
    "A value of a card as HTML: addresses can be followed, lists and tables are shown as such"
    if isinstance(value, dict): return table([dict(where=k, says=v) for k,v in value.items()])
    if isinstance(value, list): return table(value) if value and isinstance(value[0], dict) else ', '.join(map(said, value))
    text = escape(str(value))
    return re.sub(r'(https?://[^\s"<>,;)]+[^\s"<>,;).])', r'<a href="\1">\1</a>', text)

def table(rows):
    "Rows of dicts as an HTML table; keys that no row has are left out, long fingerprints are cut"
    keys = list(dict.fromkeys(k for r in rows for k in r))
    cut = lambda k, v: f'<code title="{escape(v)}">{escape(v[:12])}…</code>' if k.endswith('sha256') else said(v)
    head = ''.join(f'<th>{escape(k.replace("_", " "))}</th>' for k in keys)
    body = ''.join('<tr>'+''.join(f'<td>{cut(k, r[k]) if r.get(k) not in (None, "") else ""}</td>' for k in keys)+'</tr>' for r in rows)
    return f'<div class="wide"><table class="table table-sm"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'

def inside(rows):
    "The files of a card: what all of them share is said once, the rest as a table, the name of a file without its folder"
    every = [k for k in rows[0] if len(rows)>1 and not isinstance(rows[0][k], dict) and all(r.get(k)==rows[0][k] for r in rows)]
    short = lambda k, v: '; '.join(map(str, v.values())) if k=='quotes' and isinstance(v, dict) else v.rpartition('/')[2] if k=='path' else v
    same = ''.join(f'<li>{escape(k.replace("_", " "))}: {said(rows[0][k])}</li>' for k in every)
    folders = sorted({r['path'].rpartition('/')[0] for r in rows if '/' in r.get('path', '')})
    where = f'<p>In {", ".join(f"<code>{escape(f)}</code>" for f in folders)}.</p>' if folders else ''
    return raw(where+(f'<p>All of them:</p><ul>{same}</ul>' if same else '')+table([{k: short(k, v) for k,v in r.items() if k not in every} for r in rows]))

FIELDS = dict(licence='Licence', licence_evidence='How that is known', quotes='Words found in the files', attribution='Thanks to', citation='To cite', url='Address',
    domain='Domain', modality='Modality', language='Language', region='Region', school='School', simulated='Simulated', train='Trained on', package='Carried by the package', version='Version',
    wheel='File', wheel_sha256='SHA-256')

def sheet(meta):
    "The front matter of a card as a table of two columns"
    known = [(FIELDS[k], meta[k], k) for k in FIELDS if meta.get(k) not in (None, '', [], {})]
    more = [(k.replace('_', ' ').capitalize(), v, k) for k,v in meta.items() if k not in {*FIELDS, 'name', 'title', 'members'} and not isinstance(v, (dict, list))]
    cell = lambda v, k: f'<strong>{escape(str(v))}</strong>' if k=='licence' else f'<code>{escape(str(v))}</code>' if k.endswith(('wheel', 'sha256')) else said(v)
    return '<table class="table sheet"><tbody>'+''.join(f'<tr><th>{escape(l)}</th><td>{cell(v, k)}</td></tr>' for l,v,k in known+more)+'</tbody></table>'

def split(text):
    "Front matter and body of a Markdown file"
    _, meta, body = text.split('---\n', 2)
    return yaml.safe_load(meta), body.strip()

def cards(root):
    "A page for each data card, and a list of them all"
    out, rows = {}, []
    for f in sorted((root/'data_cards').glob('[a-z]*.md')):
        meta, body = split(f.read_text(encoding='utf-8'))
        title = meta.get('title') or f.stem
        body = re.sub(r'^# .+\n+', '', body)
        members = '\n\n## What is in it\n'+inside(meta['members']) if meta.get('members') else ''
        out[f'data_cards/{f.name}'] = front(title, f"{meta.get('domain', '')} · {meta.get('modality', '')} · {meta.get('licence', '')}")+body+'\n\n## Licence and origin\n'+raw(sheet(meta))+members
        first = re.split(r'(?<=\.)\s', body, maxsplit=1)[0]
        rows.append(f"| [{title}](data_cards/{f.name}) | {meta.get('domain', '')} | {meta.get('modality', '')} | {meta.get('licence', '')} | {first.replace('|', '·')} |".replace('\n', ' '))
    head = 'Each source has a card: what is in it, what it leaves out, its licence and how that is known, and whom to thank. [The mix](mix.md) says how much of each is read.\n\n'
    out['cards.md'] = front('Data cards', f'{len(rows)} sources, each with its licence and origin')+head+'::: {.cards}\n| source | domain | modality | licence | in a sentence |\n|---|---|---|---|---|\n'+'\n'.join(rows)+'\n:::\n'
    return out

def the_mix(root, relink):
    "The living record of the balancing decisions"
    at = root/'data_cards/MIX.md'
    body = re.sub(r'^# .+\n+', '', at.read_text(encoding='utf-8'))
    return {'mix.md': front('The mix', 'How much of each kind the model reads, and why')+re.sub(r'\]\(mix\.png', '](mix.png', body), 'mix.png': (root/'data_cards/mix.png').read_bytes()}

def evaluation(lab):
    "The model card that evaluation wrote, with its figures"
    if not (lab/'07_evaluate/card.md').exists(): return {}
    meta, body = split((lab/'07_evaluate/card.md').read_text(encoding='utf-8'))
    title = re.match(r'# (.+)\n', body)
    figures = {f'figures/{f.name}': f.read_bytes() for f in sorted((lab/'07_evaluate/figures').glob('*.png'))}
    seen = [n for n in figures if f']({n})' not in body]
    shown = '\n\n## Figures\n\n'+'\n\n'.join(f'![{Path(n).stem.capitalize()}]({n})' for n in seen) if seen else ''
    return {'evaluation.md': front(f'Evaluation card: {title[1] if title else lab.name}', 'Scores with intervals, weak topics with the data they had, limits, attributions')+re.sub(r'^# .+\n+', '', body)+shown, **figures}

def try_it(lab):
    "What to type, and what the model of the run that is shown answered"
    at = lab/'08_serve/transcript.json'
    turns = json.loads(at.read_text(encoding='utf-8')) if at.exists() else []
    names = lambda t: '; '.join(dict.fromkeys(str(s.get('title') or s.get('source') or '') for s in t.get('sources', []) if isinstance(s, dict))) or 'none named'
    rows = [dict(question=t['question'], answer=' '.join(t['answer'].split()) or '(nothing but blank lines)', sources=names(t)) for t in turns]
    link = 'The run that these pages show has a [report](report.html).\n\n' if (lab/'report.html').exists() else ''
    head = ('```bash\ngit clone https://github.com/lifelab/lifelab && cd lifelab\nmake demo                                     # environment, data, eight stages, a report\n'
        'source .venv/bin/activate\nlifelab ask "Are digital organisms alive?"    # an answer with its sources\nlifelab serve                                 # an API and a page to talk to, on this machine\n```\n\n')
    asked = f'## What the model of `lab/{lab.name}` said\n\nAnswers as they came. A small model that has read for minutes writes little sense; the [evaluation card](evaluation.md) says how little.\n'+raw(table(rows)) if rows else ''
    return {'try.md': front('Try it', 'From nothing to a model that answers, in three commands')+head+link+asked}

def report(lab):
    "The report of the run, as it is; its link to the joined notebooks leads to the pages of the stages"
    at = lab/'report.html'
    return {'report.html': at.read_text(encoding='utf-8').replace('href="notebooks.html"', 'href="01_collect.html"')} if at.exists() else {}
