"""The site: a few pages are built, nothing leads nowhere, nothing is asked of another host; and the report of a run, as a browser sees it."""
import http.server, json, shutil, subprocess, sys, threading
from functools import partial
from pathlib import Path

import pytest

from conftest import ROOT, quiet

sys.path.insert(0, str(ROOT/'tools'))
from links import faults

CHROMIUM = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']
ONLY = ['30_licence', '20_measure', 'index', '02_clean.ipynb', 'data_cards', 'cards', 'mix.md', 'evaluation', 'try', 'report']

@pytest.fixture(scope='module')
def site(tiny, tmp_path_factory):
    "A few pages of each kind, built from the tiny run"
    out = tmp_path_factory.mktemp('site')/'_docs'
    done = subprocess.run([sys.executable, ROOT/'tools/site.py', '--only', *ONLY, '--out', out], cwd=ROOT, env=quiet(LAB=tiny[0]/'lab/tiny'), capture_output=True, text=True, timeout=600)
    assert done.returncode==0, (done.stdout+done.stderr)[-3000:]
    return out

def text(site, page): return (site/page).read_text(encoding='utf-8')

def test_pages_of_each_kind(site):
    assert 'id="def-ruling"' in text(site, '00_core/30_licence.html') and 'SPDX expression' in text(site, '00_core/30_licence.html')
    assert '<img src="data:image/png' in text(site, '02_clean.html') and 'class="dataframe"' in text(site, '02_clean.html')
    assert 'How that is known' in text(site, 'data_cards/exoplanets.html') and 'mix.png' in text(site, 'mix.html')
    assert 'Limits' in text(site, 'evaluation.html') and 'id="glossary"' in text(site, 'index.html')

def test_every_link_leads_somewhere_and_nothing_is_asked_of_another_host(site): assert faults(site, partly=True)==[]

def test_nothing_of_this_machine(site, tiny):
    for p in site.rglob('*.html'): assert str(tiny[0]) not in text(site, p) and str(ROOT) not in text(site, p), p

def test_the_search_finds_a_word_of_a_library_page(site):
    index = json.loads(text(site, 'search.json'))
    assert any('00_core/30_licence.html' in e['href'] and 'permissive' in e['text'] for e in index)

def test_faults_are_found(tmp_path):
    (tmp_path/'a.html').write_text('<a href="b.html">x</a><a href="#no">y</a><img src="https://else.where/p.png"><style>@import url(https://f.example/a.css);</style><img src="gone.png">')
    (tmp_path/'c.css').write_text('a{background:url(gone.svg)}')
    assert [f.partition(': ')[2] for f in faults(tmp_path)]==['b.html leads nowhere', '#no has no such anchor', 'asks another host for https://else.where/p.png',
        'asks another host for https://f.example/a.css', 'gone.png leads nowhere', 'gone.svg leads nowhere']
    assert 'b.html leads nowhere' not in ' '.join(faults(tmp_path, partly=True))

def test_the_report_stands_alone(tiny, tmp_path):
    page = (tiny[0]/'lab/tiny/report.html').read_text(encoding='utf-8')
    assert all(f'<h2>{h}' in page for h in ('What it is made of', 'The mix', 'How it learnt', 'What it answers', 'Limits', 'With thanks to')) and 'cannot be told' not in page
    shutil.copy(tiny[0]/'lab/tiny/report.html', tmp_path); (tmp_path/'notebooks.html').write_text('<p>long')
    assert faults(tmp_path)==[] and '<script' not in page and str(tiny[0]) not in page

def test_a_browser_asks_nothing_of_another_host(site, tiny):
    "Chromium sees each kind of page wide and narrow; every request is logged"
    if not shutil.which('chromium'): pytest.skip('no chromium here: the pages were checked as text')
    from playwright.sync_api import sync_playwright
    shutil.copy(tiny[0]/'lab/tiny/report.html', site/'run.html')
    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *a): pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), partial(Silent, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home, asked, wide = f'http://127.0.0.1:{server.server_port}/', [], []
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=shutil.which('chromium'), args=CHROMIUM)
        for width in (1280, 390):
            page = b.new_page(viewport=dict(width=width, height=900))
            page.on('request', lambda r: asked.append(r.url))
            for name in ('index.html', '02_clean.html', '00_core/30_licence.html', 'data_cards/exoplanets.html', 'mix.html', 'run.html'):
                page.goto(home+name)
                if page.evaluate('document.documentElement.scrollWidth>innerWidth+1'): wide.append((name, width))
            if width==1280:
                page.goto(home)
                page.locator('.smalldocs-search input').first.fill('licence')
                page.locator('.search-result').first.wait_for()
        b.close()
    server.shutdown()
    assert [u for u in asked if not u.startswith((home, 'data:'))]==[] and wide==[]
