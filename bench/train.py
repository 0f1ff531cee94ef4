"""Training throughput beside a peer: our loop and transformers' Trainer, same model, same batches, same precision, in one run.

    python bench/train.py                     profile starter, all cores: about two minutes
    python bench/train.py --profile tiny

Rounds of the two alternate, so that what else the machine does falls on both; the ratio is that of the medians. The Trainer moves weights by its default AdamW, ours by Muon and AdamW (as shipped)
and, for the loop alone, by AdamW too.
"""
import argparse, io, os, tempfile, time
from contextlib import redirect_stdout
from dataclasses import replace
from statistics import median

os.environ |= {'HF_HUB_OFFLINE':'1', 'TOKENIZERS_PARALLELISM':'false', 'TQDM_DISABLE':'1'}
import numpy as np
import torch

from lifelab.core.profile import profile, vocabulary
from lifelab.pretrain.model import model
from lifelab.pretrain.train import Run, precision

class Rows:
    "Rows of made-up tokens, frequent ones first as in any language"
    def __init__(self, p, n=256):
        rng = np.random.default_rng(0)
        self.tokens = np.minimum(rng.zipf(1.3, (n, p.window+1)), vocabulary(p)-1)
        self.groups = {'text/made/en/up': np.arange(n)}
    def take(self, places): return self.tokens[places], np.tile(np.arange(self.tokens.shape[1])>0, (len(places), 1))

def ours(p, rows, steps, adamw=False):
    "A function that takes `steps` steps and returns seconds"
    run = Run(model(p, vocabulary(p)), rows, {'text/made/en/up':1.}, replace(p, steps=10_000), tempfile.mkdtemp())
    if adamw: run.optims = {'adamw': torch.optim.AdamW(run.model.parameters(), lr=1e-3, fused=True)}
    def go():
        t = time.perf_counter()
        for _ in range(steps): run.advance()
        return time.perf_counter()-t
    return go

def trainer(p, rows, steps):
    "The same with transformers' Trainer; a step is one pass of its own loop over the same rows"
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.utils import logging
    logging.set_verbosity_error()
    cpu = not torch.cuda.is_available()
    data = [dict(input_ids=r[:-1], labels=r[:-1]) for r in torch.as_tensor(rows.tokens)]*100
    class Clock(TrainerCallback):
        def on_step_begin(self, args, state, control, **kw):
            if state.global_step==0: self.began = time.perf_counter()
        def on_step_end(self, args, state, control, **kw): self.secs = time.perf_counter()-self.began
    def go():
        clock = Clock()
        args = TrainingArguments(tempfile.mkdtemp(), max_steps=steps, per_device_train_batch_size=p.batch_rows, use_cpu=cpu, bf16=precision(p.hidden)=='bf16', report_to=[], save_strategy='no',
            logging_strategy='no', disable_tqdm=True, optim='adamw_torch_fused', max_grad_norm=1., dataloader_num_workers=0)
        with redirect_stdout(io.StringIO()): Trainer(model(p, vocabulary(p)), args, train_dataset=data, callbacks=[clock]).train()
        return clock.secs
    return go

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--profile', default='starter')
    ap.add_argument('--steps', type=int, default=6, help='steps of a round')
    ap.add_argument('--rounds', type=int, default=3, help='rounds of each')
    a = ap.parse_args()
    p = profile(a.profile)
    rows = Rows(p)
    peers = {'LifeLab, Muon and AdamW (as shipped)': ours(p, rows, a.steps), 'LifeLab, AdamW': ours(p, rows, a.steps, adamw=True), 'transformers Trainer, AdamW': trainer(p, rows, a.steps)}
    for go in peers.values(): go()
    secs = {n: [] for n in peers}
    for _ in range(a.rounds):
        for n,go in peers.items(): secs[n].append(go())
    each = a.steps*p.batch_rows*p.window
    base = median(secs['transformers Trainer, AdamW'])
    print(f'profile {p.name}: {p.batch_rows} rows of {p.window} tokens a step, {torch.get_num_threads()} threads, precision {precision(p.hidden)}, load {os.getloadavg()[0]:.1f}')
    for n,s in secs.items(): print(f'{n:40} {each/median(s):9,.0f} tokens/s   {base/median(s):5.2f} × the Trainer   (rounds: {", ".join(f"{each/x:,.0f}" for x in s)})')

if __name__=='__main__': main()
