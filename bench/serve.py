"""Tokens per second and time to the first token of our engine, beside transformers' generate with a thread for each client.

    python bench/serve.py [MODEL_FOLDER] [--tokens 96] [--rounds 3]

Without a folder a random model of the starter profile's size is used. Both sides run in this process, in turn, on the same prompts, greedily and
without an end, and the figures are medians over the rounds.
"""
import argparse, asyncio, os, statistics, tempfile, threading, time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM, TextIteratorStreamer

from lifelab.core.profile import starter, vocabulary
from lifelab.serve.engine import Local, encode
from lifelab.serve.turn import Ask
from lifelab.tokenize.tokenizer import save_tokenizer

def toy(folder):
    "A random model of the starter profile's size, with a byte tokenizer"
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from lifelab.tokenize.alphabet import CONTROL
    core = Tokenizer(models.BPE({t: i for i,t in enumerate([*CONTROL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.add_special_tokens(list(CONTROL))
    save_tokenizer(core, folder)
    p = starter
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=vocabulary(p), hidden_size=p.hidden, num_hidden_layers=p.layers, num_attention_heads=p.heads, num_key_value_heads=p.kv_heads,
        head_dim=p.hidden//p.heads, intermediate_size=3*p.hidden, max_position_embeddings=p.window, tie_word_embeddings=True, eos_token_id=0))
    with torch.no_grad(): model.model.embed_tokens.weight[:32], model.model.embed_tokens.weight[288:] = 0, 0 # Only bytes are written, so that every token is text
    model.save_pretrained(folder)
    return folder

def questions(n): return [[dict(role='user', content=f'What do {i+2} cells of a moss say to each other?')] for i in range(n)]

def ours(mind, n, tokens):
    "Seconds, tokens, times to the first token"
    async def one(q):
        t, first, last = time.perf_counter(), 0, 0
        async for p in mind.stream(Ask(q, tokens)): first, last = first or time.perf_counter()-t, p.tokens
        return first, last
    async def all_of(): return await asyncio.gather(*map(one, questions(n)))
    t = time.perf_counter()
    got = asyncio.run(all_of())
    return time.perf_counter()-t, sum(n for _,n in got), [f for f,_ in got]

def plain(model, tok, prompts, tokens):
    "The same with generate and a thread for each client"
    firsts, counts = [], []
    def one(ids):
        t, streamer = time.perf_counter(), TextIteratorStreamer(tok, skip_prompt=True, timeout=120)
        x = torch.tensor([ids])
        job = threading.Thread(target=lambda: counts.append(model.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=tokens, do_sample=False, streamer=streamer, eos_token_id=None, pad_token_id=0).shape[1]-len(ids)))
        job.start()
        first = 0
        for _ in streamer: first = first or time.perf_counter()-t
        firsts.append(first); job.join()
    t = time.perf_counter()
    jobs = [threading.Thread(target=one, args=(ids,)) for ids in prompts]
    for j in jobs: j.start()
    for j in jobs: j.join()
    return time.perf_counter()-t, sum(counts), firsts

def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument('model', nargs='?'); ap.add_argument('--tokens', type=int, default=96); ap.add_argument('--rounds', type=int, default=3)
    a = ap.parse_args()
    folder = Path(a.model) if a.model else toy(Path(tempfile.mkdtemp()))
    mind = Local(folder)
    mind.ends = {-1}
    model, tok = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)
    print(f'{model.num_parameters()/1e6:.1f}M parameters, {torch.get_num_threads()} thread(s), {os.cpu_count()} cores, {a.tokens} tokens an answer, median of {a.rounds}')
    print(f"{'clients':>8} {'engine':>28} {'tokens/s':>9} {'first token, ms':>16}")
    for n in (1, 8):
        prompts, rate = [encode(mind.chat, q)[0] for q in questions(n)], {}
        sides = {'ours (continuous batch)': lambda: ours(mind, n, a.tokens), 'generate, a thread a client': lambda: plain(model, tok, prompts, a.tokens)}
        runs = {name: [] for name in sides}
        for f in sides.values(): f()
        for _ in range(a.rounds):
            for name,f in sides.items(): runs[name].append(f())
        for name,rs in runs.items():
            rate[name] = statistics.median(k/s for s,k,_ in rs)
            print(f'{n:>8} {name:>28} {rate[name]:>9.0f} {1000*statistics.median(x for *_,fs in rs for x in fs):>16.0f}')
        x, y = rate.values()
        print(f"{n:>8} {'ratio':>28} {x/y:>9.2f}")
    mind.close()

if __name__=='__main__': main()
