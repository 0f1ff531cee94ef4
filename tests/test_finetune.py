"""Stage 6 as a whole: a kill in the middle, a base model of one's own, a base that is none, the questions against a lab and against the seal."""
import json, os, signal, subprocess, sys, time
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
CHATML = """{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role']=='assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}\
{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

def bpe(folder, special, chat=None, size=700):
    "A byte-level BPE learnt from the questions, saved as a Hugging Face tokenizer"
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    from lifelab.finetune.questions import questions
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.train_from_iterator([t for q in questions() for t in (*q.said, q.answer)],
        trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tok = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=special[0], pad_token=special[1] if len(special)>1 else None)
    tok.chat_template = chat
    tok.save_pretrained(folder)
    return tok

def a_lab(home):
    "A lab as far as stage 6 reads it: three records, their splits, a small random model"
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from lifelab.core.lab import write_json, write_table
    from lifelab.core.record import Record, arrow_schema
    lab = home/'lab'
    texts = {'Fern':'A fern is a plant that reproduces by spores and has neither seeds nor flowers.', 'Moss':'A moss is a small soft plant that grows in dense green clumps in damp places.',
        'Virus':'A virus is a submicroscopic infectious agent that replicates only inside the living cells of an organism.'}
    rows = [Record(source='ovos-wiki-en', title=t, text=x, language='en', domain='biology', modality='text', licence='CC-BY-SA-4.0', train=True).model_dump() for t,x in texts.items()]
    write_table(lab/'02_clean/records/text-00.parquet', rows, arrow_schema(), sort='id')
    write_table(lab/'03_balance/splits.parquet', [dict(id=r['id'], cluster=r['id'], modality='text', group='text/biology/en/ovos-wiki-en', split='train') for r in rows])
    tok = bpe(lab/'05_pretrain/model', ['<|endoftext|>', '<|pad|>', '<|im_start|>', '<|im_end|>'], CHATML)
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tok), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        max_position_embeddings=192, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=1)).save_pretrained(lab/'05_pretrain/model')
    for s in ('02_clean', '03_balance', '04_tokenize', '05_pretrain'): write_json(lab/s/'stage.json', dict(output=s, made_from=s, files={}))
    return lab

def start(lab, *more):
    "Stage 6 in a process of its own"
    code = f"from lifelab.finetune.finetune import finetune; finetune({str(lab)!r}, 'tiny', {', '.join(map(repr, more))})"
    env = {**os.environ, 'OMP_NUM_THREADS':'1', 'HF_HUB_OFFLINE':'1', 'PYTHONPATH':str(ROOT), 'TOKENIZERS_PARALLELISM':'false'}
    return subprocess.Popen([sys.executable, '-c', code], env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

def finished(lab, *more):
    p = start(lab, *more)
    out, _ = p.communicate(timeout=300)
    assert p.returncode==0, out[-3000:]
    return json.loads((lab/'06_finetune/stage.json').read_text())

@pytest.fixture(scope='module')
def whole_run(tmp_path_factory):
    lab = a_lab(tmp_path_factory.mktemp('whole'))
    return lab, finished(lab)

def test_unseen_answers_get_easier(whole_run):
    note = whole_run[1]['note']
    assert note['epoch-2']['unseen_bits_per_byte']<note['epoch-0']['unseen_bits_per_byte'] and note['epoch-1']['tokens']>0

@pytest.mark.parametrize('after', ['epoch-1', 'dpo-1'])
def test_killed_and_resumed_is_byte_equal(whole_run, tmp_path, after):
    lab = a_lab(tmp_path)
    p = start(lab)
    journal, until = lab/'06_finetune/units.jsonl', time.time()+200
    while not (journal.exists() and f'"{after}"' in journal.read_text()):
        assert p.poll() is None and time.time()<until, p.stdout.read()[-3000:]
        time.sleep(.05)
    time.sleep(.3)
    p.send_signal(signal.SIGKILL)
    p.wait()
    assert not (lab/'06_finetune/stage.json').exists(), 'it was killed before its end'
    again, before = finished(lab), whole_run[1]
    assert again['files']==before['files'] and again['output']==before['output']

def test_both_models_stay_and_one_is_served(whole_run):
    from lifelab.finetune.answer import load, open_tuned
    folder, said = whole_run[0]/'06_finetune', whole_run[1]['note']['model']['preferences']
    weights = {w: open_tuned(folder, w)[0].state_dict() for w in ('supervised', 'dpo')}
    served = load(folder/'model')[0].state_dict()
    assert any((weights['dpo'][k]!=weights['supervised'][k]).any() for k in served), 'the preferences changed nothing'
    assert all((served[k]==weights[said['served']][k]).all() for k in served) and said['why']
    assert said['effect']['held out']['n']+said['effect']['train']['n']==whole_run[1]['counts']['out']-len(whole_rows(folder)) and said['effect']['train']['margin'][0]>0

def whole_rows(folder):
    import pyarrow.parquet as pq
    return pq.read_table(folder/'rows.parquet')

def test_nothing_is_pickled(whole_run):
    names = {p.name for p in (whole_run[0]/'06_finetune').rglob('*') if p.is_file()}
    assert not [n for n in names if n.endswith(('.bin', '.pt', '.pth', '.pkl'))] and 'optimizer.safetensors' in names
    assert str(whole_run[0]) not in ''.join(p.read_text() for p in (whole_run[0]/'06_finetune').rglob('*.json') if p.name not in ('run.json', 'progress.json'))

def test_the_tokens_of_the_chat_are_trained(whole_run):
    import torch
    from lifelab.finetune.answer import load
    (old, tok), (new, _) = load(whole_run[0]/'05_pretrain/model'), load(whole_run[0]/'06_finetune/model')
    moved = (old.get_input_embeddings().weight!=new.get_input_embeddings().weight).any(1).nonzero().flatten().tolist()
    assert moved==sorted(tok.convert_tokens_to_ids(['<|im_start|>', '<|im_end|>'])) and torch.equal(new.lm_head.weight, new.get_input_embeddings().weight)

def test_a_base_of_ones_own(tmp_path):
    "A Llama with a tokenizer that has neither end token in use, padding token nor chat template"
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from lifelab.finetune.answer import answer, load
    lab, base = a_lab(tmp_path), tmp_path/'base'
    tok = bpe(base, ['</s>'])
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tok), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=160, bos_token_id=0, eos_token_id=0)).save_pretrained(base)
    done = finished(lab, str(base))
    assert 'pretrain' not in done['basis']['inputs'] and str(base) not in json.dumps(done)
    model, tok = load(lab/'06_finetune/model')
    assert model.config.model_type=='llama' and len(tok)==model.config.vocab_size and tok.pad_token and '### Answer' in tok.chat_template
    assert model.generation_config.eos_token_id==[tok.eos_token_id] and isinstance(answer(model, tok, ['What is life?'], 8), str)

def test_a_base_that_is_no_model(tmp_path):
    from lifelab.finetune.finetune import finetune
    (tmp_path/'notes').mkdir()
    for base, says in (('no/where', 'is no folder'), (str(tmp_path/'notes'), 'lacks config.json')):
        with pytest.raises(ValueError, match=says): finetune(tmp_path/'lab', 'tiny', base)
    assert not (tmp_path/'lab').exists(), 'refused before anything is written'

@pytest.mark.skipif(not (ROOT/'lab/starter/02_clean/stage.json').exists(), reason='needs lab/starter with its records')
def test_sources_are_in_the_warehouse():
    from lifelab.clean.records import records
    from lifelab.finetune.questions import questions
    from lifelab.finetune.sources import sources
    found, lost = sources(questions(), records(ROOT/'lab/starter', modality='text'))
    assert not lost, lost

@pytest.mark.skipif(not os.environ.get('LIFELAB_SEALED'), reason='LIFELAB_SEALED names no file of sealed questions')
def test_no_question_repeats_a_sealed_one():
    from lifelab.finetune.questions import near_twins, questions
    assert not near_twins(questions(), questions(os.environ['LIFELAB_SEALED']), above=.4)
