"""What the project shows of its own run: `python tools/showcase.py lab/starter` writes data_cards/MIX.md, data_cards/mix.png and nbs/images/run.png from a finished lab."""
import shutil, sys
from pathlib import Path

import matplotlib; matplotlib.use('agg')
import matplotlib.pyplot as plt
import pandas as pd

root = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(root))
from lifelab.core.figure import colour, save

SHOWN = [('text', 'en', 'ovos-wiki-en', 'English\nsummaries', 'xz -9'), ('table', '*', '*', 'table rows', 'xz -9'), ('dna', '*', '*', 'DNA', 'order-0'),
    ('protein', '*', '*', 'protein', 'order-0'), ('image', '*', '*', 'image codes', 'order-0'), ('video', '*', '*', 'video codes', 'order-0'), ('audio', '*', '*', 'sound codes', 'order-0')]

def of(table, m, l, s): return table[(table.modality==m)&(table.language==l)&(table.source==s)]

def main(lab):
    out = lab/'05_pretrain'
    v, b = (pd.read_parquet(out/f'{n}.parquet') for n in ('validation', 'baselines'))
    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout='constrained', width_ratios=(1, 1.2))
    names, last = [], v[v.part=='whole']
    for i,(m,l,s,name,base) in enumerate(SHOWN):
        t, end = of(v[v.part=='part'], m, '*', '*').sort_values('step'), of(last, m, l, s)
        if not len(end): continue
        a, per = end.iloc[0].bits_per_unit, end.iloc[0].units/end.iloc[0].bytes
        known = of(b[b.name==base], m, l, s)
        left.plot(t.step, t.bits_per_unit, color=colour(m), marker='o', ms=3, label=m)
        y = -len(names)
        bars = [('model', a, colour(m))]+([(base, known.iloc[0].bits_per_byte/per, colour('baseline'))] if len(known) else [])
        for k,(who,x,c) in enumerate(bars): right.barh(y+.19-.38*k, x, .34, color=c); right.text(x+.06, y+.19-.38*k, f'{who} {x:.3f}', va='center', fontsize=7.5)
        names.append(f'{name} ({end.iloc[0].clusters})')
    right.set_yticks([-i for i in range(len(names))], names, fontsize=8); right.set_xlim(0, right.get_xlim()[1]*1.18)
    right.set_xlabel('bits per byte, letter or code, lower is better (held-out clusters)')
    left.set(xlabel='step', ylabel='bits per byte, letter or code, held out'); left.legend(frameon=False, fontsize=8, ncols=4, loc='lower center', bbox_to_anchor=(.5, 1))
    for ax in (left, right): ax.spines[['top', 'right']].set_visible(False)
    save(left, root/'nbs/images/run.png')
    shutil.copy(lab/'04_tokenize/MIX.md', root/'data_cards/MIX.md')
    shutil.copy(lab/'03_balance/mix.png', root/'data_cards/mix.png')

if __name__=='__main__': main(Path(sys.argv[1] if len(sys.argv)>1 else root/'lab/starter'))
