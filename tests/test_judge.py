"""The judging page: two people rate end to end, what they say becomes alpha and win rates, an answer that holds a script stays text, a rater comes back.

The browser drives the page where there is one; the same calls are made over HTTP everywhere."""
import threading, time

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from lifelab.core.lab import stage_folder, write_table
from lifelab.evaluate.judging import summary
from lifelab.evaluate.ratings import RUBRIC, sheet
from lifelab.serve.judge import POLICY, Jury, judge_routes, judged, open_jury
from lifelab.serve.keys import Keys, database

BAD = '<script>document.title="caught"</script><img src=x onerror="document.title=\'caught\'"> & "quotes"'
PAIRS = [dict(prompt=f'Question {i}: is a <b>moss</b> alive?', answers=dict(model=BAD if i==0 else f'Answer {i}, in a few words.', reference=f'Reply {i}. '*12)) for i in range(4)]

def a_lab(home):
    "A lab with sheet and key, and a jury over its database"
    blind, key, _ = sheet(PAIRS)
    at = stage_folder(home/'lab', 'evaluate')/'judging'
    write_table(at/'sheet.parquet', blind)
    write_table(at/'key.parquet', key)
    db = database(home/'service.sqlite')
    return home/'lab', db, open_jury(home/'lab', db)

def said(i, n): return {d: 1+(i+n+k)%5 for k,d in enumerate(RUBRIC)}

def test_over_http(tmp_path):
    lab, db, jury = a_lab(tmp_path)
    api = FastAPI()
    judge_routes(api, jury)
    client = TestClient(api)
    for rater,n in (('ann', 0), ('bob', 1)):
        items = client.get(f'/judge/api/sheet?rater={rater}').json()['items']
        for i,it in enumerate(items[:3] if n else items):
            row = dict(rater=rater, item=it['item'], by='person', left=said(i, n), right=said(i, 0), prefer='left' if i%2 else 'tie')
            assert client.post('/judge/api/rate', json=row).json()=={'kept': True}
    assert len(client.get('/judge/api/sheet?rater=bob').json()['done'])==3, 'bob goes on where he stopped'
    found = summary(judged(lab, db))
    by = {(r['metric'], r['dimension']): r for r in found['person']}
    assert {r['raters'] for r in found['person']}=={2} and found['model']==found['synthetic']==[]
    assert by['alpha', 'preference']['value']==1 and by['alpha', 'balance']['n']==3 and not by['alpha', 'balance']['judged']
    page = client.get('/judge')
    assert page.headers['content-security-policy']==POLICY and 'http' not in page.text.replace('<!doctype html>', '') and 'innerHTML' not in client.get('/judge/judge.js').text

def test_a_model_is_never_a_person(tmp_path):
    lab, db, jury = a_lab(tmp_path)
    grades = dict.fromkeys(RUBRIC, 3)
    for by,rater in (('model', 'gpt'), ('synthetic', 'made-up'), ('person', 'ann')):
        jury.keep(dict(rater=rater, item=jury.items[0]['item'], by=by, left=grades, right=grades, prefer='left'))
    with pytest.raises(PermissionError): jury.keep(dict(rater='gpt', item=jury.items[1]['item'], by='person', left=grades, right=grades, prefer='left'))
    found = summary(judged(lab, db))
    assert all({r['by'] for r in rows}=={by} and {r['raters'] for r in rows}=={1} for by,rows in found.items())

def test_the_gateway_asks_for_a_key(tmp_path):
    from lifelab.serve.gateway import app
    from types import SimpleNamespace
    lab, db, _ = a_lab(tmp_path)
    api = app(lab, SimpleNamespace(alive=True, running=0, close=lambda: None), db=db)
    key, other = api.state.gate.keys.make('ann'), api.state.gate.keys.make('bob')
    with TestClient(api) as client:
        head = lambda k: {'Authorization': f'Bearer {k}'}
        row = dict(rater='ann', item=open_jury(lab, db).items[0]['item'], by='person', left=said(0, 0), right=said(0, 1), prefer='tie')
        assert client.get('/judge').status_code==200 and client.get('/judge/api/sheet?rater=ann').status_code==401
        assert client.post('/judge/api/rate', json=row).status_code==401 and client.post('/judge/api/rate', json=row, headers=head(key)).status_code==200
        taken = client.get('/judge/api/sheet?rater=ann', headers=head(other))
        assert taken.status_code==409 and 'is taken' in taken.json()['error']['message']

@pytest.fixture
def served(tmp_path):
    "The page on a port of its own"
    from lifelab.serve.serve import running
    lab, db, jury = a_lab(tmp_path)
    api = FastAPI()
    judge_routes(api, jury)
    with running(api) as url: yield url, lab, db, jury

def begin(page, url, rater):
    page.goto(f'{url}/judge')
    page.wait_for_selector('#start:not([hidden])')
    page.fill('#rater', rater)
    page.check('#person')
    page.click('#start button')
    page.wait_for_selector('#judge:not([hidden])')

def grade(page, i, n):
    "One item by the keyboard: eight digits, then a preference, then Enter"
    for d in RUBRIC:
        for m in (n, 0): page.keyboard.press(str(said(i, m)[d]))
    page.keyboard.press('ArrowRight')
    if i%2==0: page.keyboard.press('ArrowRight')
    page.keyboard.press('Enter')

def test_two_people_in_a_browser(served, chromium):
    url, lab, db, jury = served
    wrong, asked = [], []
    for rater,n,size in (('ann', 0, (1280, 900)), ('bob', 1, (375, 812))):
        page = chromium.new_page()
        page.set_viewport_size(dict(width=size[0], height=size[1]))
        page.on('pageerror', lambda e: wrong.append(str(e)))
        page.on('request', lambda r: asked.append(r.url))
        begin(page, url, rater)
        for i,it in enumerate(jury.items):
            page.wait_for_function('t => document.getElementById("prompt").textContent === t', arg=it['prompt'])
            assert [page.inner_text(f'#{s}').strip() for s in ('left', 'right')]==[it[s] for s in ('left', 'right')], 'an answer is shown as the text it is'
            assert page.evaluate('document.documentElement.scrollWidth<=innerWidth'), f'{size[0]} px: the page is wider than its window'
            if i==2: # away and back: what was judged is kept
                page.reload()
                page.wait_for_function('() => document.getElementById("count").textContent.startsWith("2 of")')
            grade(page, i, n)
        page.wait_for_selector('#end:not([hidden])')
        assert page.title().startswith('Judge answers') and page.inner_text('#count')=='4 of 4 judged'
        page.click('#again')
        page.wait_for_selector('#judge:not([hidden])')
        assert page.locator('#grades input:checked').count()==9, 'earlier grades are shown again'
        page.close()
        chromium.clear_cookies()
    assert not wrong and {u.startswith(url) for u in asked}=={True}, (wrong, asked)
    rows = jury.said()
    want = {(r, it['item']): said(i, n) for r,n in (('ann', 0), ('bob', 1)) for i,it in enumerate(jury.items)}
    assert len(rows)==8 and all(r['by']=='person' and r['left']==want[r['rater'], r['item']] for r in rows)
    by = {(r['metric'], r['dimension']): r['value'] for r in summary(judged(lab, db))['person']}
    assert by['alpha', 'preference']==1 and by['alpha', 'balance']<1
