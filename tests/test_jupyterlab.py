"""JupyterLab as a person meets it: every stage notebook runs from top to bottom in a browser on profile tiny, and an interrupted cell can be run again.

The same notebooks run without a browser in test_run.py (papermill), so a machine without Chromium still tests what they do."""
import json, secrets, shutil, socket, subprocess, sys, time, urllib.request

import pytest

from conftest import ROOT, quiet, sh

STAGES = sorted(p.name for p in (ROOT/'nbs').glob('0[1-8]_*.ipynb'))

def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]

@pytest.fixture(scope='module')
def jupyter(tmp_path_factory):
    "A JupyterLab server on copies of the stage notebooks, its kernels in the folder above as with `make lab`: (address, token, folder)"
    work, token, port = tmp_path_factory.mktemp('jupyter'), secrets.token_hex(16), free_port()
    (work/'nbs').mkdir()
    settings = work/'settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings'
    settings.parent.mkdir(parents=True)
    settings.write_text('{"windowingMode": "none"}') # else what is out of sight is not in the page
    for name in STAGES: shutil.copy(ROOT/'nbs'/name, work/'nbs'/name)
    env = quiet(PYTHONPATH=ROOT, JUPYTER_CONFIG_DIR=work/'config', JUPYTER_RUNTIME_DIR=work/'runtime', JUPYTER_DATA_DIR=work/'data', IPYTHONDIR=work/'ipython',
        JUPYTERLAB_SETTINGS_DIR=work/'settings', JUPYTERLAB_WORKSPACES_DIR=work/'workspaces', HOME=work, JUPYTER_PLATFORM_DIRS='0', OMP_WAIT_POLICY='PASSIVE')
    cmd = [sys.executable, '-m', 'jupyter', 'lab', str(work/'nbs'), '--no-browser', '--allow-root', '--ServerApp.ip=127.0.0.1', f'--ServerApp.port={port}',
        f'--IdentityProvider.token={token}', f'--MappingKernelManager.root_dir={work}', '--LabApp.expose_app_in_browser=True',
        '--LabApp.news_url=', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate', '--ServerApp.port_retries=0']
    log = open(work/'log', 'w')
    server, url = subprocess.Popen(cmd, cwd=work, env=env, stdout=log, stderr=subprocess.STDOUT), f'http://127.0.0.1:{port}'
    try:
        for _ in range(240):
            try: urllib.request.urlopen(f'{url}/api?token={token}', timeout=2); break
            except OSError: time.sleep(.25)
            assert server.poll() is None, (work/'log').read_text()[-2000:]
        else: pytest.fail(f"JupyterLab did not start: {(work/'log').read_text()[-2000:]}")
        yield url, token, work
    finally:
        server.terminate()
        try: server.wait(20)
        except subprocess.TimeoutExpired: server.kill(); server.wait()

def opened(page, jupyter, name):
    "Open a notebook in a fresh workspace and wait for its kernel"
    url, token, _ = jupyter
    page.goto(f"{url}/lab/workspaces/w{secrets.token_hex(4)}/tree/{name}?token={token}")
    page.wait_for_selector('.jp-Notebook .jp-CodeCell', timeout=60_000)
    page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", timeout=60_000)

IDLE = "() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle'"

def run_all(page, secs=400):
    "Run every cell and wait until the last has ended"
    page.evaluate(f"() => Promise.race([window.jupyterapp.commands.execute('notebook:run-all-cells'), new Promise(r => setTimeout(r, {secs*1000}))])")
    page.wait_for_function(IDLE, timeout=30_000)
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")

def code_cells(path): return [c for c in json.loads(path.read_text())['cells'] if c['cell_type']=='code']

def errors(path): return [''.join(o.get('traceback', [o.get('evalue', '')]))[-600:] for c in code_cells(path) for o in c['outputs'] if o['output_type']=='error']

def rendered(page):
    "Scroll through the notebook, so that everything is drawn; what a reader would see broken"
    page.evaluate("""async () => { for (const c of document.querySelectorAll('.jp-Notebook .jp-Cell')) { c.scrollIntoView(); await new Promise(r => setTimeout(r, 40)); } }""")
    page.wait_for_timeout(500)
    return page.evaluate("""() => ({
        images: [...document.querySelectorAll('.jp-OutputArea img')].filter(i => i.complete && !i.naturalWidth).length,
        drawn: [...document.querySelectorAll('.jp-OutputArea img')].filter(i => i.naturalWidth > 50).length,
        players: [...document.querySelectorAll('.jp-OutputArea audio')].map(a => a.duration || (a.error ? a.error.message : 0)),
        widgets: [...document.querySelectorAll('.jp-OutputArea')].filter(a => /Error displaying widget|model not found/.test(a.textContent)).length})""")

def test_every_stage_notebook_runs_from_top_to_bottom(jupyter, chromium):
    work, seen = jupyter[2], {}
    for name in STAGES:
        page = chromium.new_page()
        opened(page, jupyter, name)
        run_all(page)
        seen[name] = rendered(page)
        cells = code_cells(work/'nbs'/name)
        assert not errors(work/'nbs'/name), (name, errors(work/'nbs'/name))
        assert all(c['execution_count'] for c in cells if ''.join(c['source']).strip()), f'{name}: a cell did not run'
        page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
        page.close()
    assert (work/'lab/tiny/08_serve/stage.json').exists(), 'the lab lies beside nbs, as with `lifelab run`'
    assert not any(s['images'] or s['widgets'] for s in seen.values()), seen
    assert sum(s['drawn']>0 for s in seen.values())>=6, seen
    players = [d for s in seen.values() for d in s['players']]
    assert len(players)>=3 and all(isinstance(d, (int, float)) and .2<d<60 for d in players), seen

def test_an_interrupted_cell_can_be_run_again(jupyter, chromium, lifelab):
    page, work = chromium.new_page(), jupyter[2]
    made = sh(*lifelab, 'run', '--profile', 'tiny', '--to', 'tokenize', '--lab', work/'lab/tiny', cwd=work, PYTHONPATH=ROOT)
    assert made.returncode==0, made.stdout+made.stderr
    nb = work/'nbs/05_pretrain.ipynb'
    for f in ('stage.json', 'units.jsonl'): (work/'lab/tiny/05_pretrain'/f).unlink(missing_ok=True)
    shutil.rmtree(work/'lab/tiny/05_pretrain/checkpoints', ignore_errors=True)
    opened(page, jupyter, nb.name)
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
    page.wait_for_function("() => /[1-9][0-9]*\\/60|[1-9][0-9]?%/.test([...document.querySelectorAll('.jp-OutputArea')].map(a => a.textContent).join(' '))", timeout=120_000)
    assert page.locator('.jupyter-widgets, .jp-OutputArea-output').count(), 'no bar is shown'
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:interrupt-kernel')")
    page.wait_for_function("() => [...document.querySelectorAll('.jp-OutputArea')].some(a => a.textContent.includes('KeyboardInterrupt'))", timeout=60_000)
    assert not (work/'lab/tiny/05_pretrain/stage.json').exists(), 'the cell had ended before it was interrupted'
    page.wait_for_function(IDLE, timeout=60_000)
    page.wait_for_timeout(2000) # what was queued behind the interrupted cell is called off first
    run_all(page)
    assert not errors(nb), errors(nb)
    assert (work/'lab/tiny/05_pretrain/stage.json').exists()
    page.close()
