"""Round trips by property, one set of ids under three libraries, and a stage that is killed and goes on."""
import json, os, random, shutil, signal, subprocess, sys, time, wave
from pathlib import Path
import numpy as np, pyarrow as pa, pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from lifelab.core.lab import tree_hash, write_json, write_table
from lifelab.core.record import Record, arrow_schema
from lifelab.tokenize.alphabet import CONTROL, LETTERS, chars_to_codes, codes_to_chars, to_chars
from lifelab.tokenize.merges import assemble, learn_letters, learn_text, parts, size_of
from lifelab.tokenize.spans import Stream, defuse, mend, to_letters, to_private
from lifelab.tokenize.sound_codec import HOP, RATE, fit_sounds
from lifelab.tokenize.windows import cuts
from lifelab.tokenize.tokenizer import KINDS, decode, encode_record, encode_text, encode_trusted, load_core, load_tokenizer, save_tokenizer, token_table

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ['The cell divides; la cellule se divise, la célula se divide. ', 'Life is a process, not a thing: 生命 жизнь حياة. ', "it's 1859, isn't it?\n\n\tyes  "]*20
rng = random.Random(0)
DNA = [''.join(rng.choices('ACGT', k=3000)) for _ in range(4)]
PROTEIN = [''.join(rng.choices('MKLVAGE', k=400)) for _ in range(4)]
TEXT, GENE, CHAIN = learn_text(TEXTS, 150), learn_letters(DNA, 60), learn_letters(PROTEIN, 30)

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "A saved tokenizer of 1,088 tokens"
    out = tmp_path_factory.mktemp('tok')
    save_tokenizer(assemble(parts(TEXT, GENE, CHAIN, codes=128, sounds=96), 1088), out)
    return out

@pytest.fixture(scope='module')
def tok(folder): return load_core(folder)

@pytest.fixture(scope='module')
def six(): return assemble(parts(TEXT, [], CHAIN, codes=16, sixmer=True), 8192)

ODD = st.sampled_from(['👩🏽‍🔬', '🏴󠁧󠁢󠁳󠁣󠁴󠁿', 'שלום', 'مرحبا', '\u202eabc\u202c', 'e\u0301\u0323', 'ะ', '\ue000', '\U00100000', '\U000F0000', '\ud800', '\x00', '\r\n', '\u2028',
    '<|im_start|>', '<|endoftext|>', '<|', '|>', '<|dna|>ATG<|end|>', '<|r3|>', '<|<|pad|>', '<|r99|>'])
ANY = st.lists(st.one_of(ODD, st.text(st.characters(), max_size=8)), max_size=12).map(''.join)
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

@quick
@given(ANY)
def test_text_comes_back_and_is_never_control(tok, text):
    ids = encode_text(text, tok)
    assert tok.decode(ids, skip_special_tokens=False)==mend(text)
    control = tok.get_added_tokens_decoder()
    assert not any(i in control for i in ids)

@quick
@given(ANY, st.booleans())
def test_a_users_text_is_harmless(tok, text, spans):
    safe = defuse(text, spans)
    names = [tok.id_to_token(i) for i in tok.encode(to_private(safe)).ids if i in tok.get_added_tokens_decoder()]
    assert set(names)<=({'<|dna|>', '<|protein|>', '<|end|>'} if spans else set())
    assert defuse(safe, spans)==safe

@quick
@given(st.text('ACGTN', max_size=400), st.text(LETTERS['protein'], max_size=200))
def test_sequences_come_back(tok, six, dna, protein):
    text = f'see <|dna|>{dna}<|end|> and <|protein|>{protein}<|end|>'
    for t in (tok, six): assert decode(encode_trusted(text, t), t)==text
    assert to_letters(to_private(text, sixmer=True))==text

@quick
@given(ANY, st.lists(st.integers(1, 9), max_size=30), st.sampled_from(['private', 'letters']))
def test_a_stream_ends_as_the_whole(text, sizes, way):
    text = mend(text)+'<|dna|>ATG<|end|>'+text
    s, out, at = Stream(way), [], 0
    for n in sizes: out.append(s.feed(text[at:at+n])); at += n
    assert ''.join([*out, s.feed(text[at:]), s.close()])==(to_private if way=='private' else to_letters)(text)

def test_surrogates_are_mended_by_rule(tok):
    assert tok.decode(encode_text('a\ud83d\ude00b\udfff', tok))=='a\ufffd\ufffdb\ufffd'

def samples():
    "Ordinary texts, sequences and pictures"
    code = random.Random(1)
    yield from TEXTS[:3]
    yield 'עברית and 👩🏽‍🔬, naïve café; 12345 <html> {json: "x"}\n\n  indented'
    for n in (1, 5, 513, 20_000): yield to_private(f"gene <|dna|>{''.join(code.choices('ACGTN', k=n))}<|end|>")
    yield to_private(f"<|protein|>{''.join(code.choices(LETTERS['protein'], k=700))}<|end|> folds")
    yield '<|image|>'+codes_to_chars(code.choices(range(128), k=256))+'<|end|>'
    yield '<|audio|>'+codes_to_chars(code.choices(range(96), k=125), 'audio')+'<|end|> a lark'
    yield '<|video|>'+codes_to_chars(code.choices(range(128), k=64))+'<|end|>'
    yield '<|im_start|>user\nWhat is life?<|im_end|>\n<|im_start|>assistant\n'

def test_the_saved_folder_gives_the_same_ids(folder, tok):
    auto = load_tokenizer(folder)
    for text in samples(): assert auto(text, add_special_tokens=False).input_ids==tok.encode(text).ids

def test_alphabets_are_disjoint_and_tokens_pure(tok, six):
    seen = {k: set() for k in KINDS}
    for text in samples():
        for i in tok.encode(text).ids: seen[KINDS[token_table(tok)['kind'][i]]].add(i)
    assert all(seen.values()) and sum(map(len, seen.values()))==len(set.union(*seen.values()))
    for t,n in ((tok, 96), (six, 0)):
        table = token_table(t, {'image': 192, 'audio': 256}, entries=48)
        of = lambda kind: np.flatnonzero(table['kind']==KINDS.index(kind))
        glued = {i for i in range(len(table['kind'])) if table['kind'][i]==1 and table['bytes'][i]>1}
        assert len(of('audio'))==n and (table['bytes'][of('audio')]==256).all() and (table['bytes'][of('image')]==192).all()
        assert table['start'][of('audio')].sum()==n//2 and not glued & set(of('audio'))
    word = six.encode(to_chars('ACGTAC', 'dna', sixmer=True)).ids
    table = token_table(six)
    assert len(word)==1 and KINDS[table['kind'][word[0]]]=='dna' and table['bytes'][word[0]]==6

def test_every_code_that_has_room_is_a_sound():
    from lifelab.tokenize.tokenizer import _kind
    for c in (0, 4095, 4096, 16_383): assert _kind(codes_to_chars([c], 'audio').encode())==(5, 1)
    assert _kind('\U000F8000'.encode())[0]==1 and _kind('\U000F3000'.encode())[0]==1

def test_three_libraries_give_the_same_ids(folder, tok):
    import gigatoken
    auto, giga = load_tokenizer(folder), gigatoken.Tokenizer(str(folder/'tokenizer.json'))
    for text in samples():
        ids = tok.encode(text).ids
        assert auto(text, add_special_tokens=False).input_ids==ids and giga.encode(text).tolist()==ids
    assert len(auto)==tok.get_vocab_size()==1088

def alone(merges):
    "A tokenizer of one part's merges and nothing else"
    return assemble({'only': merges}, 4096)

def test_segmentation_is_that_of_each_separate_tokenizer(tok):
    all_parts = parts(TEXT, GENE, CHAIN, codes=128, sounds=96)
    text, dna, protein = alone(all_parts['text']), alone(all_parts['glue']+all_parts['dna']), alone(all_parts['glue']+all_parts['protein'])
    for x in TEXTS[:3]: assert tok.encode(x).tokens==text.encode(x).tokens
    for x in DNA: assert tok.encode(to_chars(x, 'dna')).tokens==dna.encode(to_chars(x, 'dna')).tokens
    for x in PROTEIN: assert tok.encode(to_chars(x, 'protein')).tokens==protein.encode(to_chars(x, 'protein')).tokens

def test_a_code_or_word_of_six_is_one_token(tok, six):
    assert len(tok.encode(codes_to_chars(range(128))).ids)==128
    assert len(six.encode(to_chars('ACGTAC'*50+'GT', 'dna', sixmer=True)).ids)==52

def test_no_merge_of_text_touches_private_bytes():
    merges = learn_text(['\U000F0000\U000F0001 '*50, '\U000E0067'*50], 100)
    assert not any('ó°' in a+b for a,b in merges)

def test_long_dna_takes_time_in_proportion(tok):
    def secs(n):
        x = to_chars(''.join(random.Random(2).choices('ACGT', k=n)), 'dna')
        t = time.process_time(); tok.encode(x); return time.process_time()-t
    secs(1000)
    assert secs(80_000)<40*max(secs(10_000), .002)

def test_bytes_of_tokens_add_up(tok):
    table = token_table(tok)
    for text in TEXTS[:3]+['é🧬שלום']: assert table['bytes'][encode_text(text, tok)].sum()==len(text.encode())
    assert table['bytes'][encode_record(dict(id='0', modality='dna', sequence=DNA[0], caption='', title=''), tok)].sum()==3000

def test_chat_template_marks_the_answer(folder):
    auto = load_tokenizer(folder)
    talk = [dict(role='user', content='What is life?'), dict(role='assistant', content='A process.')]
    out = auto.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
    answer = [i for i,m in zip(out['input_ids'], out['assistant_masks']) if m]
    assert auto.decode(answer)=='A process.<|im_end|>'

def warehouse(lab):
    "A lab of text, genes and pictures whose stages 2 and 3 are finished"
    from PIL import Image
    from lifelab.balance.balance import balance
    r, about = random.Random(3), dict(domain='biology', licence='CC-BY-4.0', train=True)
    words = 'cell gene wall life form grows divides protein a the of and'.split()
    media = []
    for i in range(30):
        m = f'{i:064x}'; p = lab/'02_clean/media'/m[:2]/m; p.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(p, 'PNG'); media.append(m)
    sounds, films = [f'a0{i:062x}' for i in range(30)], [f'f0{i:062x}' for i in range(12)]
    for d in ('a0', 'f0'): (lab/'02_clean/media'/d).mkdir(parents=True, exist_ok=True)
    for m,x in zip(sounds, tones(30)):
        with wave.open(str(lab/'02_clean/media/a0'/m), 'wb') as w: w.setnchannels(1); w.setsampwidth(2); w.setframerate(RATE); w.writeframes((x*32_767).astype('<i2').tobytes())
    for i,m in enumerate(films):
        frames = [Image.fromarray(f) for f in np.random.default_rng(100+i).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)]
        frames[0].save(lab/'02_clean/media/f0'/m, 'PNG', save_all=True, append_images=frames[1:])
    rows = dict(text=[Record(source='wiki', modality='text', language='en', title=f'T{i}', text=' '.join(r.choices(words, k=200)), **about) for i in range(300)],
        dna=[Record(source='k12', modality='dna', sequence=''.join(r.choices('ACGTN', k=20_000)), caption='segment', **about) for i in range(130)],
        image=[Record(source='pics', modality='image', media=m, caption='noise', bytes=1, **about) for m in media],
        audio=[Record(source='hums', modality='audio', media=m, caption='a tone', bytes=1, seconds=.5, **about) for m in sounds],
        video=[Record(source='cams', modality='video', media=m, caption='noise that moves', bytes=1, **about) for m in films],
        table=[Record(source='zoo', modality='table', language='en', text=f'Animal {i} weighs {i*i} g.', row='{}', **about) for i in range(30)])
    for m,rs in rows.items(): write_table(lab/f'02_clean/records/{m}-00.parquet', [x.model_dump() for x in rs], arrow_schema(), 'id')
    write_table(lab/'02_clean/near.parquet', [], pa.schema([(k, pa.string()) for k in ('modality', 'a', 'b')]))
    write_json(lab/'02_clean/stage.json', dict(output='toy'))
    balance(lab, 'tiny')
    return lab

def run(lab, wait=True):
    "The stage in a process of its own"
    code = f"from lifelab.tokenize.tokenize import tokenize\nif __name__=='__main__': tokenize({str(lab)!r}, 'tiny')"
    p = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}, stderr=subprocess.DEVNULL)
    if wait: assert p.wait()==0
    return p

def promised(lab):
    "What stage.json promises"
    return json.loads((lab/'04_tokenize/stage.json').read_text(encoding='utf-8'))['files']

def test_a_killed_stage_ends_the_same(tmp_path):
    one = warehouse(tmp_path/'one'); two = tmp_path/'two'
    shutil.copytree(one, two)
    run(one)
    journal, units = two/'04_tokenize/units.jsonl', json.loads((one/'04_tokenize/stage.json').read_text())['units']
    for done in (1, 3, units-2):
        p = run(two, wait=False)
        while p.poll() is None and not (journal.exists() and journal.read_bytes().count(b'\n')>=done): time.sleep(.02)
        p.send_signal(signal.SIGKILL); p.wait()
    run(two)
    assert any(f=='codecs/audio.safetensors' for f in promised(one))
    assert promised(one)==promised(two) and tree_hash(one/'04_tokenize/shards')==tree_hash(two/'04_tokenize/shards')

def tones(n):
    "Half-second tones of n pitches with a little noise"
    t, r = np.arange(RATE//2)/RATE, np.random.default_rng(5)
    return [(.4*np.sin(2*np.pi*(150+70*i)*t)*np.exp(-2*t)+r.normal(0, .01, len(t))).astype('float32') for i in range(n)]

@pytest.fixture(scope='module')
def voice(): return fit_sounds(tones(12), 16, 3)

@quick
@given(st.lists(st.tuples(*[st.integers(0, 15)]*3), min_size=1, max_size=20))
def test_codes_of_sound_come_back_through_the_tokenizer(tok, voice, steps):
    codes = [16*b+c for s in steps for b,c in enumerate(s)]
    text = decode(tok.encode('<|audio|>'+codes_to_chars(codes, 'audio')+'<|end|>').ids, tok)
    assert chars_to_codes(text, 'audio')==codes and voice.spectra(codes).shape==(len(steps), 64)

@quick
@given(st.lists(st.integers(-2**40, 2**40), max_size=12))
def test_hostile_codes_are_refused_or_are_a_sound(voice, codes):
    fine = codes and len(codes)%3==0 and all(16*(i%3)<=c<16*(i%3)+16 for i,c in enumerate(codes))
    if fine: assert np.isfinite(voice.spectra(codes)).all()
    else:
        with pytest.raises(ValueError): voice.decode(codes)

def test_a_sound_of_any_length_is_whole_steps(voice):
    for n in (1, HOP-1, HOP, HOP+1, 5*HOP):
        codes = voice.encode(tones(1)[0][:n])
        assert len(codes)==3*-(-n//HOP) and len(voice.decode(codes))==-(-n//HOP)*HOP and np.abs(voice.decode(codes)).max()<=1

def test_more_books_lose_less():
    from lifelab.tokenize.sound_codec import log_distance, log_mel
    far = [np.mean([log_distance(log_mel(s), c.spectra(c.encode(s))) for s in tones(12)]) for c in (fit_sounds(tones(12), 16, b) for b in (1, 2, 3))]
    assert far[0]>far[1]>far[2]

def test_no_row_ends_within_a_step_or_a_frame(tok):
    table = token_table(tok, entries=32, frame=16)
    sound = np.array(tok.encode('<|audio|>'+codes_to_chars([0, 32, 64]*9, 'audio')+'<|end|>').ids)
    film = np.array(tok.encode('<|video|>'+codes_to_chars(range(64))+'<|end|>').ids)
    assert np.flatnonzero(cuts(sound, table)).tolist()==[0, *range(4, 28, 3)]
    assert np.flatnonzero(cuts(film, table)).tolist()==[0, 17, 33, 49]
    assert not cuts(np.r_[CONTROL.index('<|image|>'), film[1:]], table)[1:].any()

def test_a_damaged_sound_or_film_is_left_out_and_named(tmp_path):
    from lifelab.tokenize.tokenize import tokenize
    lab = warehouse(tmp_path)
    media = lab/'02_clean/media'
    (media/'a0'/f'a0{1:062x}').write_bytes(b'RIFF....WAVE'); (media/'f0'/f'f0{2:062x}').write_bytes(b'\x89PNG')
    dropped = tokenize(lab, 'tiny').counts['dropped']
    assert {k: v for k,v in dropped.items() if 'audio' in k or 'video' in k}=={f'no tokens for this {m}: its file or letters cannot be read': 1 for m in ('audio', 'video')}

def test_size_is_the_profiles():
    from lifelab.core.profile import PROFILES, vocabulary
    for p in PROFILES.values():
        merges = {'glue': parts([], [], [], p.image_codes, sounds=p.audio_codes*p.audio_books)['glue']}
        used = 32+256+len({a+b for a,b in merges['glue']})+p.text_vocab-256+p.dna_merges+p.protein_merges
        assert used<=size_of(p)==vocabulary(p)<2**16
