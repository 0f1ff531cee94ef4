"""Evaluate as a whole, on a lab made by hand: numbers that can be checked on paper, the seal, the card, kills, a model from elsewhere."""
import hashlib, json, math, os, signal, subprocess, sys, time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from conftest import ROOT, quiet
from lifelab.core.lab import write_json, write_table
from lifelab.core.record import Record, arrow_schema
from lifelab.evaluate import evaluate as stage
from lifelab.evaluate.evaluate import evaluate
from lifelab.evaluate.probes import probes, seal
from lifelab.tokenize.shards import write_shard

WINDOW, CONTROLS = 64, ['<|endoftext|>', '<|pad|>', '<|im_start|>', '<|im_end|>']
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role']=='assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

def tokenizer(folder, controls=CONTROLS):
    "Bytes and control tokens, nothing learnt"
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    raw = Tokenizer(models.BPE({c: i for i,c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens(controls)
    tok = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=controls[0], pad_token=controls[-1] if len(controls)==1 else controls[1], chat_template=TEMPLATE)
    tok.save_pretrained(folder)
    return tok

def model(folder, tok, even=False):
    "A random decoder; with `even` every token is equally likely, always"
    from transformers import Qwen3Config, Qwen3ForCausalLM
    torch.manual_seed(0)
    m = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tok), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        max_position_embeddings=512, tie_word_embeddings=True, eos_token_id=tok.eos_token_id, bos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id))
    if even:
        with torch.no_grad(): m.model.embed_tokens.weight.zero_()
    m.save_pretrained(folder)

def warehouse():
    "Thirty short texts, six of DNA, one paper under another licence, one that may not be used"
    about = dict(domain='biology', licence='CC-BY-SA-4.0', train=True, attribution='The editors', url='https://wiki.example')
    texts = [Record(id=f't{i:02}', cluster=f't{i//2*2:02}', source='ovos-wiki-en', modality='text', language='en', title=f'Page {i}', text=f'Moss {i} grows on stone.', **about) for i in range(30)]
    texts.append(Record(id='t90', cluster='t90', source='ovos-wiki-en', modality='text', language='en', title='Tardigrade', text='Tardigrades are eight-legged segmented micro-animals.', **about))
    texts.append(Record(id='t91', cluster='t91', source='ovos-wiki-en', modality='text', language='en', title='Genetic drift', text='Nothing of the kind.', **about))
    texts.append(Record(id='t92', cluster='t92', source='plos', modality='text', language='en', title='Paper', text='A paper on ferns.', domain='philosophy', licence='CC-BY-4.0', train=True, attribution='A. Fern'))
    dna = [Record(id=f'd{i}', cluster=f'd{i}', source='k12', modality='dna', sequence='ACGT'*(3+i), domain='biology', licence='CC0-1.0', train=True) for i in range(6)]
    blog = [Record(id='x1', cluster='x1', source='blog', modality='text', language='en', text='Nobody said who owns this.')]
    return texts+dna+blog

def split_of(r): return 'held' if not r.train else 'train' if r.id in ('t90', 't91', 't92') or r.id.startswith('d') and r.id>'d2' else 'test' if int(r.id[1:])<24 else 'train'

def lab_at(lab, even=False):
    "A lab as the six stages before leave it, made by hand"
    rows, splits = warehouse(), []
    group = lambda r: f"{r.modality}/{r.domain}/{r.language or '-'}/{r.source}"
    for m in ('text', 'dna'): write_table(lab/f'02_clean/records/{m}-00.parquet', [r.model_dump() for r in rows if r.modality==m], arrow_schema(), 'id')
    write_table(lab/'03_balance/splits.parquet', [dict(id=r.id, cluster=r.cluster, modality=r.modality, group=group(r), split=split_of(r)) for r in rows], sort='id')
    groups = sorted({group(r) for r in rows if r.train})
    (lab/'03_balance/mix.yaml').write_text(yaml.safe_dump(dict(groups=[dict(group=g, weight=1/len(groups)) for g in groups])))
    tok = tokenizer(lab/'04_tokenize')
    end, index, tokens = tok.eos_token_id, [], []
    for split in ('train', 'test'):
        packed = []
        for i,r in enumerate(x for x in rows if split_of(x)==split):
            ids = tok(r.text or r.sequence)['input_ids'][:WINDOW]
            line, counts = [end, *ids]+[end]*(WINDOW-len(ids)), [False]+[True]*len(ids)+[False]*(WINDOW-len(ids))
            packed.append((type('Row', (), dict(tokens=np.array(line), counts=np.array(counts))), group(r)))
            index.append(dict(split=split, shard=f'{split}-0000', row=i, begin=1, end=1+len(ids), record=r.id, licence=r.licence, source=r.source, group=group(r), bytes=len(ids)))
            tokens.append(dict(group=group(r), split=split, records=1, tokens=len(ids), bytes=len(ids)))
        write_shard(lab/f'04_tokenize/shards/{split}-0000.arrow', [p[0] for p in packed], [p[1] for p in packed], len(tok))
    write_table(lab/'04_tokenize/index.parquet', index, sort=['split', 'row'])
    t = pd.DataFrame(tokens).groupby(['group', 'split'], as_index=False).sum()
    write_table(lab/'04_tokenize/tokens.parquet', t.assign(bytes_per_token=t.bytes/t.tokens), sort=['group', 'split'])
    tokenizer(lab/'06_finetune/model')
    model(lab/'06_finetune/model', tok, even)
    for s in ('02_clean', '03_balance', '04_tokenize', '06_finetune'): write_json(lab/s/'stage.json', dict(output=f'{s} {even}', basis=dict(params={})))
    return lab

@pytest.fixture(scope='module')
def even(tmp_path_factory):
    "A lab whose model finds all tokens equally likely, evaluated"
    os.environ.pop('LIFELAB_SEALED', None)
    lab = lab_at(tmp_path_factory.mktemp('even'), even=True)
    return lab, evaluate(lab, 'tiny')

def scores(lab): return pq.read_table(lab/'07_evaluate/scores.parquet').to_pandas().set_index(['metric', 'by', 'value'])

def test_a_model_without_opinions_scores_what_paper_says(even):
    "log2(V) bits a token; a byte is a token here. Chance at choice, by ties."
    s, bits = scores(even[0]).score, math.log2(256+len(CONTROLS))
    assert s['bits_per_byte', 'modality', 'text']==pytest.approx(bits, abs=1e-4) and s['bits_per_byte', 'modality', 'dna']==pytest.approx(bits, abs=1e-4)
    assert s['perplexity', 'source', 'k12']==pytest.approx(256+len(CONTROLS), rel=1e-4)
    assert s['choice', 'all', '*']==pytest.approx(.25) and s['choice_plain', 'all', '*']==s['choice_blind', 'all', '*'] and s['choice_chance', 'all', '*']==.25
    assert s['bleu', 'all', '*']<5

def test_few_clusters_are_reported_and_not_judged(even):
    "24 test texts lie in 12 clusters of two; 3 of DNA are 3; 54 questions are enough"
    t = scores(even[0])
    assert t.n['bits_per_byte', 'modality', 'text']<=12 and t.n['bits_per_byte', 'modality', 'dna']==3
    assert not t.judged['bits_per_byte', 'modality', 'text'] and t.judged['choice', 'all', '*']
    assert ((t.low<=t.score+1e-6)&(t.score<=t.high+1e-6)).all()

def test_a_probe_that_contradicts_its_record_is_set_aside(even):
    report = even[1]
    assert report.counts['dropped']=={'its record says something else':1}
    t = pq.read_table(even[0]/'07_evaluate/parts/choice.parquet').to_pandas().set_index('id')
    assert 'drift-cause' not in t.index and t.record['tardigrade-legs']=='found' and t.record['titan-surface']=='absent'

def test_the_card_has_the_licences_of_the_training_data_and_no_others(even):
    from huggingface_hub import ModelCard
    lab, report = even
    text = (lab/'07_evaluate/card.md').read_text()
    trained = {r.licence for r in warehouse() if split_of(r)=='train'}
    rows = pq.read_table(lab/'07_evaluate/attributions.parquet').to_pylist()
    assert {r['licence'] for r in rows}==trained=={'CC-BY-SA-4.0', 'CC-BY-4.0', 'CC0-1.0'} and set(report.licences)==trained
    assert sum(r['records'] for r in rows)==sum(split_of(r)=='train' for r in warehouse())
    assert 'A. Fern' in text and 'unknown' not in text.split('## Data and licences')[1] and 'blog' not in text
    data = ModelCard(text).data
    assert data.license=='other' and data.language==['en'] and {'text', 'dna'}<=set(data.tags)

def test_no_sealed_file_is_one_line(even):
    assert 'The sealed questions were not at hand' in (even[0]/'07_evaluate/card.md').read_text()
    assert 'sealed_bits_per_byte' not in scores(even[0]).index.get_level_values(0)

def test_again_is_nothing_to_do(even):
    before = {f: f.stat().st_mtime_ns for f in (even[0]/'07_evaluate').rglob('*.parquet')}
    evaluate(even[0], 'tiny')
    assert {f: f.stat().st_mtime_ns for f in before}==before

def quiz_at(folder, monkeypatch, **more):
    "A sealed set of our own, and its seal"
    f, canary = folder/'quiz.jsonl', 'canary-0000'
    items = [dict(id='s1', topic='life', kind='recall', prompt='Is a flame alive?', answer='Most say that it is not.', canary=canary),
        dict(id='s2', topic='life', kind='dialogue', turns=['Is a mule alive?', 'Yes.', 'Why?'], answer='Its cells divide and it feeds.', canary=canary)]
    f.write_text(''.join(json.dumps(q)+'\n' for q in items))
    known = dict(sha256=hashlib.sha256(f.read_bytes()).hexdigest(), canary=canary, **more)
    monkeypatch.setattr(stage, 'seal', lambda: known)
    monkeypatch.setattr(stage, 'sealed_set', lambda path: __import__('lifelab.evaluate.probes', fromlist=['sealed']).sealed(path, known))
    return f

def test_the_sealed_questions_are_scored_and_stay_sealed(tmp_path, monkeypatch):
    "An answer of n bytes needs n times log2(V) bits under the even model; neither question nor answer is written down"
    lab = lab_at(tmp_path/'lab', even=True)
    f = quiz_at(tmp_path, monkeypatch)
    evaluate(lab, 'tiny', sealed=str(f))
    assert scores(lab).score['sealed_bits_per_byte', 'all', '*']==pytest.approx(math.log2(256+len(CONTROLS)), abs=1e-4)
    written = b''.join(p.read_bytes() for p in (lab/'07_evaluate').rglob('*') if p.is_file())
    assert b'flame' not in written and b'Most say' not in written and '2 sealed questions were asked' in (lab/'07_evaluate/card.md').read_text()

def test_another_sealed_file_is_refused_at_once(even, tmp_path):
    (tmp_path/'other.jsonl').write_text('{}\n')
    with pytest.raises(ValueError, match='this is another file'): evaluate(even[0], 'tiny', sealed=str(tmp_path/'other.jsonl'))
    with pytest.raises(ValueError, match='is no file'): evaluate(even[0], 'tiny', sealed=str(tmp_path/'nowhere.jsonl'))
    assert (even[0]/'07_evaluate/stage.json').exists(), 'what was measured before stays'

def test_a_canary_in_the_records_is_told(tmp_path, monkeypatch):
    lab = lab_at(tmp_path/'lab', even=True)
    monkeypatch.setattr(stage, 'seal', lambda: dict(seal(), canary='Moss 3 grows'))
    report = evaluate(lab, 'tiny')
    assert report.note['leaks']==['t03'] and 'found in 1 records. The sealed score means nothing.' in (lab/'07_evaluate/card.md').read_text()

def test_a_sealed_question_pasted_into_a_page_is_named(tmp_path, monkeypatch):
    "Word for word in a record of the training split, reworded in one of the test split; other pages are left alone"
    lab, f = lab_at(tmp_path/'lab', even=True), quiz_at(tmp_path, monkeypatch)
    ask = 'Why would a careful keeper of bees say that a swarm is one animal and not twenty thousand of them?'
    known = json.loads(f.read_text().splitlines()[0])|dict(prompt=ask)
    monkeypatch.setattr(stage, 'sealed_set', lambda path: [known])
    path = lab/'02_clean/records/text-00.parquet'
    rows = {r['id']: r for r in pq.read_table(path).to_pylist()}
    rows['t90']['text'] += f' Overheard in the garden: {ask} Nobody knew.'
    rows['t05']['caption'] = 'Why would a careful keeper of bees say that a hive is one animal and not twenty of them?'
    write_table(path, list(rows.values()), arrow_schema(), 'id')
    report, card = evaluate(lab, 'tiny', sealed=str(f)), (lab/'07_evaluate/card.md').read_text()
    assert report.note['leaks']==['t05', 't90'] and ['t90', 's1', '13 words in a row'] in report.note['signs'] and ['t05', 's1', 'reworded'] in report.note['signs']
    assert 'found in 0 records' in card and 'stands in 2 records' in card and 't90 (s1, 13 words in a row)' in card and 'score means nothing' in card
    row = pd.read_parquet(lab/'07_evaluate/sealed_leak.parquet').set_index('modality').loc['text']
    assert row[['train ↔ sealed', 'validation ↔ sealed', 'test ↔ sealed']].tolist()==[1, 0, 1] and row.pairs==2

def test_an_empty_test_split_is_said(tmp_path):
    lab = lab_at(tmp_path/'lab')
    t = pq.read_table(lab/'03_balance/splits.parquet').to_pandas().assign(split='train')
    write_table(lab/'03_balance/splits.parquet', t, sort='id')
    with pytest.raises(ValueError, match='test split of .* is empty'): evaluate(lab, 'tiny')

def test_a_model_from_elsewhere_is_measured_on_text_alone(tmp_path):
    "Its own tokenizer, whose bytes stand in another order, so ids differ; GPT-2, no ChatML"
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
    lab = lab_at(tmp_path/'lab')
    raw = Tokenizer(models.BPE({c: i for i,c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True))}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens(['<|endoftext|>'])
    plain = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token if m['role']=='assistant' else '\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    for f in (lab/'06_finetune/model').iterdir(): f.unlink()
    tok = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token='<|endoftext|>', pad_token='<|endoftext|>', chat_template=plain)
    tok.save_pretrained(lab/'06_finetune/model')
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tok), n_positions=256, n_embd=16, n_layer=1, n_head=2)).save_pretrained(lab/'06_finetune/model')
    with pytest.raises(ValueError, match='another vocabulary than the shards'): evaluate(lab, 'tiny')
    write_json(lab/'06_finetune/stage.json', dict(output='brought', basis=dict(params=dict(base='0123'))))
    evaluate(lab, 'tiny')
    s, text = scores(lab), (lab/'07_evaluate/card.md').read_text()
    assert ('bits_per_byte', 'modality', 'text') in s.index and ('bits_per_byte', 'modality', 'dna') not in s.index
    assert 'that somebody brought' in text and 'Only text was measured' in text and 'gpt2' in text

def test_killed_at_any_unit_it_goes_on_and_ends_with_the_same_bytes(tmp_path):
    "kill -9 as soon as a new unit is in the journal, again and again; the end equals an undisturbed run, and no unit is made twice"
    lab, calm = lab_at(tmp_path/'lab'), lab_at(tmp_path/'calm')
    evaluate(calm, 'tiny')
    cmd = [sys.executable, '-c', f"from lifelab.evaluate.evaluate import evaluate; evaluate({str(lab)!r}, 'tiny')"]
    journal, made, kills = lab/'07_evaluate/units.jsonl', [], 0
    for _ in range(20):
        p = subprocess.Popen(cmd, cwd=ROOT, env=quiet(PYTHONPATH=ROOT), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while p.poll() is None and kills<3:
            lines = journal.read_bytes().count(b'\n') if journal.exists() else 0
            if lines>len(made) and not (lab/'07_evaluate/stage.json').exists(): p.send_signal(signal.SIGKILL); kills += 1; break
            time.sleep(.005)
        if p.wait()==0: break
        made = journal.read_bytes().splitlines()
    assert kills==3 and p.returncode==0
    assert [json.loads(l)['key'] for l in made][:3]==['likelihood/dna', 'likelihood/text', 'choice'] and len(set(made))==len(made)
    assert (lab/'07_evaluate/stage.json').read_bytes()==(calm/'07_evaluate/stage.json').read_bytes()
    for name,h in json.loads((lab/'07_evaluate/stage.json').read_text())['files'].items():
        assert hashlib.sha256((lab/'07_evaluate'/name).read_bytes()).hexdigest()==h, name

def test_every_probe_is_decided_by_the_record_that_it_names(tiny):
    "Against the warehouse of a real tiny run: whatever it holds of the probes' records agrees with them"
    t = pq.read_table(tiny[0]/'lab/tiny/07_evaluate/parts/choice.parquet').to_pandas()
    assert set(t.record)<={'found', 'absent'} and len(t)==len(probes()['choice'])

def test_no_probe_is_a_question_that_stage_6_teaches():
    "A probe whose words were trained on measures memory"
    import re
    from lifelab.evaluate.probes import probes
    from lifelab.finetune.questions import questions
    words = lambda t: frozenset(re.findall(r'[^\W_]+', t.lower()))
    taught = {words(t): q.id for q in questions() for t in q.said[::2]}
    asked = [(q['id'], q.get('question') or q['prompt']) for kind in ('choice', 'answer') for q in probes()[kind]]
    same = [(i, other) for i,t in asked for w,other in taught.items() if len(words(t)&w)>.85*len(words(t)|w)]
    assert len(asked)>=70 and not same, same
