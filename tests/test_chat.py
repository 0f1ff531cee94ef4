"""The chat page in a browser and both directions over HTTP: pictures and letters sent and answered, sources, judgements, and scripts that stay text."""
import asyncio, base64, json
from types import SimpleNamespace

import httpx, numpy as np, pytest

from test_serve import LIFE, make_lab, python, STAGE

EVIL = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'

class Parrot:
    "An engine that says what its question asks for, in pieces"
    chat, window, running, alive = None, 1024, 0, True
    def __init__(self, senses): self.senses, self.asked = senses, []
    def close(self): pass
    async def stream(self, ask):
        from lifelab.serve.turn import Piece
        from lifelab.tokenize.alphabet import codes_to_chars
        self.asked.append(ask)
        said = dict(image=codes_to_chars([0, 1, 2, 3]), dna='ACGTACGT').get(ask.want, LIFE+(EVIL if 'script' in ask.messages[-1]['content'] else ''))
        slow = 'slowly' in ask.messages[-1]['content']
        for i in range(0, len(said), 8):
            await asyncio.sleep(.5 if slow else .005)
            yield Piece(said[i:i+8], i+1, 9, 'stop' if i+8>=len(said) else '')

@pytest.fixture(scope='module')
def served(tmp_path_factory):
    "A server on a port of its own: the trace of two records, a model that quotes one, a codec of four greys"
    from lifelab.serve.gateway import app
    from lifelab.serve.senses import Senses
    from lifelab.serve.serve import open_trace, running
    from lifelab.tokenize.codec import ImageCodec
    lab = make_lab(tmp_path_factory.mktemp('lab')/'toy')
    p = python(STAGE, lab)
    assert p.communicate(timeout=180) and p.returncode==0
    engine = Parrot(Senses(ImageCodec(np.stack([np.full(192, v, 'uint8') for v in (0, 85, 170, 255)])), tile_px=16))
    api = app(lab, engine, open_trace(lab), rates='1000/minute')
    key = api.state.gate.keys.make('test')
    with running(api) as url: yield SimpleNamespace(url=url, key=key, lab=lab, engine=engine, gate=api.state.gate)

def png(level=255, side=40):
    from lifelab.clean.image import to_png
    return to_png(np.full((side, side, 3), level, 'uint8'))

def post(served, content, **kw):
    return httpx.post(f'{served.url}/v1/chat/completions', headers={'Authorization': f'Bearer {served.key}'}, timeout=60,
        json=dict(model='lifelab-toy', messages=[dict(role='user', content=content)], **kw))

def url_of(data, mime='image/png'): return f'data:{mime};base64,{base64.b64encode(data).decode()}'

# ---- over HTTP ----

def test_a_picture_is_read_and_counted_and_not_kept(served):
    r = post(served, [dict(type='image_url', image_url=dict(url=url_of(png()))), dict(type='text', text='What is it?')])
    assert r.status_code==200 and served.engine.asked[-1].messages==[dict(role='user', content='\ufffc\nWhat is it?', media=['<|image|>'+'\U000F1003'*4+'<|end|>'])]
    assert 'lifelab_files_total{kind="image_url",side="in"} 1.0' in httpx.get(f'{served.url}/metrics').text

def test_sequences_from_a_file(served):
    r = post(served, [dict(type='file', file=dict(filename='x.fasta', file_data=url_of(b'>lac\nacgt', 'text/plain')))])
    assert r.status_code==200 and served.engine.asked[-1].messages[0]['content']=='lac: <|dna|>ACGT<|end|>'

@pytest.mark.parametrize('part,says', [(dict(type='image_url', image_url=dict(url='https://example.org/a.png')), 'not fetched'),
    (dict(type='image_url', image_url=dict(url=url_of(b'MZ no picture'))), 'no picture'), (dict(type='input_audio', input_audio=dict(data='QUJD', format='wav')), 'without sounds'),
    (dict(type='file', file=dict(file_data=url_of(b'>x\nAC1GT', 'text/plain'))), 'illegal letters'), (dict(type='image_url', image_url=dict(url='file:///etc/passwd')), 'not fetched')])
def test_parts_that_cannot_be_read(served, part, says):
    e = post(served, [part]).json()['error']
    assert e['code']=='invalid_part' and says in e['message'] and e['param'].startswith('messages.0.content.0.')

def test_a_bomb_of_pixels(served):
    assert 'too large' in post(served, [dict(type='image_url', image_url=dict(url=url_of(png(0, 6000))))]).json()['error']['message']

def test_answers_as_picture_and_letters(served):
    whole = post(served, 'Show me', modalities=['image']).json()['choices'][0]['message']
    data = base64.b64decode(whole['images'][0]['image_url']['url'].partition(',')[2])
    from lifelab.serve.senses import open_picture
    assert open_picture(data)[::8,::8,0].tolist()==[[0, 85], [170, 255]] and whole['content']==''
    lines = [json.loads(l[6:]) for l in post(served, 'Show me', modalities=['image'], stream=True).text.split('\n\n') if l.startswith('data: {')]
    assert lines[-1]['choices'][0]['delta']['images']==whole['images']
    assert post(served, 'Write', modalities=['dna']).json()['choices'][0]['message']['content']=='ACGTACGT'
    assert post(served, 'Write', modalities=['dna', 'image']).json()['error']['param']=='modalities'

def test_the_page_lets_no_script_in(served):
    r = httpx.get(f'{served.url}/')
    csp = r.headers['content-security-policy']
    assert r.status_code==200 and "default-src 'none'" in csp and 'unsafe' not in csp and '<script>' not in r.text
    assert httpx.get(f'{served.url}/static/..%2f80_gateway.ipynb').status_code==404

# ---- in a browser ----

@pytest.fixture
def page(served, chromium):
    "The page, opened with its key; what it asked for and what went wrong"
    p = chromium.new_page()
    p.asked, p.wrong = [], []
    p.on('request', lambda r: p.asked.append(r.url))
    p.on('pageerror', lambda e: p.wrong.append(str(e)))
    p.goto(f'{served.url}/#{served.key}')
    p.wait_for_function('() => document.getElementById("model").textContent === "lifelab-toy"')
    yield p
    assert not p.wrong and all(u.startswith((served.url, 'data:', 'blob:')) for u in p.asked), (p.wrong, p.asked)
    p.close()

def say(page, words):
    page.fill('#question', words)
    page.keyboard.press('Enter')
    page.wait_for_selector('.judge >> nth=-1')

def test_an_answer_with_sources_and_a_judgement(served, page):
    assert '#' not in page.url
    say(page, 'What is a cell?')
    assert LIFE in page.inner_text('#talk') and page.locator('details').count()==1
    page.click('summary')
    link = page.locator('details a').first
    assert 'CC-BY-4.0' in page.inner_text('details') and link.get_attribute('href')=='https://example.org/Cell' and 'noopener' in link.get_attribute('rel')
    page.click('text=Poor')
    page.fill('.say textarea', 'too short')
    page.click('.say button')
    page.wait_for_selector('text=Thank you')
    from sqlalchemy import text
    with served.gate.buffer.db.connect() as c: rows = c.execute(text('select rating, comment, question from feedback')).all()
    assert (-1, 'too short', '') in [tuple(r) for r in rows]

def test_what_a_model_and_a_person_write_stays_text(page):
    say(page, 'script '+EVIL)
    assert page.inner_text('#talk').count('<script>')==2 and page.evaluate('window.hacked')is None and page.locator('#talk script, #talk img').count()==0

def test_a_picture_goes_and_a_picture_comes(served, page, tmp_path):
    (tmp_path/'cell.png').write_bytes(png())
    page.set_input_files('#file', tmp_path/'cell.png')
    page.wait_for_selector('.file img')
    page.select_option('#want', 'image')
    say(page, 'More like this')
    assert served.engine.asked[-1].messages[0]['media'] and page.evaluate('document.querySelector("img.made").naturalWidth')==16

def test_a_dropped_file(page):
    page.evaluate("""b64 => { const d = new DataTransfer(); d.items.add(new File([Uint8Array.from(atob(b64), c => c.charCodeAt(0))], 'drop.png', {type: 'image/png'}));
        document.dispatchEvent(new DragEvent('drop', {dataTransfer: d, bubbles: true, cancelable: true})); }""", base64.b64encode(png()).decode())
    page.wait_for_selector('.file img')
    page.click('text=Remove')
    assert page.locator('.file').count()==0

def test_the_keyboard_alone(page):
    page.keyboard.type('one')
    page.keyboard.press('Shift+Enter')
    page.keyboard.type('slowly')
    assert page.input_value('#question')=='one\nslowly'
    page.keyboard.press('Enter')
    page.wait_for_selector('#stop:not([hidden])')
    page.keyboard.press('Escape')
    page.wait_for_selector('text=Stopped.')
    assert page.evaluate('document.activeElement.id')=='question'

def test_a_phone(page):
    page.set_viewport_size(dict(width=390, height=844))
    say(page, 'What is a cell, in a very longwordthatdoesnotendlongwordthatdoesnotendlongwordthatdoesnotend?')
    assert page.evaluate('document.documentElement.scrollWidth<=innerWidth')

def test_a_wrong_key_is_asked_for_again(served, chromium):
    p = chromium.new_page()
    p.goto(f'{served.url}/#ll-00000000-wrong')
    p.wait_for_selector('#door:not([hidden])')
    p.fill('#key', served.key)
    p.keyboard.press('Enter')
    p.wait_for_function('() => document.getElementById("model").textContent === "lifelab-toy"')
    p.close()
