"""Shared fixtures: the checkout, a copy of LifeLab installed in an environment of its own, and one finished tiny run made with that copy."""
import os, shutil, subprocess, sys, sysconfig, time, urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
RECORDED = Path(os.environ.get('LIFELAB_RECORDINGS') or '/nonexistent') # Answers of the real services, which the project does not hold
recorded = pytest.mark.skipif(not RECORDED.is_dir(), reason='LIFELAB_RECORDINGS names no folder of recordings; the replay servers stand in')

LONGEST = ('test_run', 'test_jupyterlab', 'test_finetune', 'test_harvest', 'test_pretrain', 'test_evaluate', 'test_papermill', 'test_tokenize', 'test_serve',
    'test_tools', 'test_withdraw')

def pytest_collection_modifyitems(items):
    "The files that take longest come first, so that no worker is left with one of them at the end"
    place = {n: k for k,n in enumerate(LONGEST)}
    items.sort(key=lambda i: place.get(i.path.stem, len(place)))

def quiet(**more):
    "Environment for subprocesses: one thread each, nothing online but pip, no runner inherited"
    env = {k: v for k,v in os.environ.items() if not k.startswith('LIFELAB_') and k not in ('PYTHONPATH', 'MAKEFLAGS', 'MAKELEVEL')}
    share = str(Path(sys.prefix)/'share/jupyter')
    return {**env, 'JUPYTER_PATH':share, 'OMP_NUM_THREADS':'1', 'HF_HUB_OFFLINE':'1', 'TOKENIZERS_PARALLELISM':'false', 'COLUMNS':'160', **{k: str(v) for k,v in more.items()}}

def sh(*cmd, cwd=None, timeout=900, **env):
    "Run a command to its end; its CompletedProcess with text output"
    return subprocess.run([str(c) for c in cmd], cwd=cwd, env=quiet(**env), capture_output=True, text=True, timeout=timeout)

@contextmanager
def storage(bucket):
    "An S3 of moto's on this machine, with an empty bucket: (its address, a client)"
    import boto3
    from moto.server import ThreadedMotoServer
    with pytest.MonkeyPatch.context() as m:
        for k,v in dict(AWS_ACCESS_KEY_ID='planted-id', AWS_SECRET_ACCESS_KEY='planted-secret', AWS_DEFAULT_REGION='us-east-1').items(): m.setenv(k, v)
        server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
        server.start()
        at = 'http://{}:{}'.format(*server.get_host_and_port())
        s3 = boto3.client('s3', endpoint_url=at)
        s3.create_bucket(Bucket=bucket)
        try: yield at, s3
        finally:
            urllib.request.urlopen(urllib.request.Request(f'{at}/moto-api/reset', method='POST'), timeout=10).close() # Its shelves outlive the server
            server.stop()

@pytest.fixture(scope='session')
def root(): return ROOT

@pytest.fixture(scope='session')
def lifelab():
    "The command of the checkout"
    return [sys.executable, '-c', 'import sys; from lifelab.cli import main; sys.exit(main())']

def once(tmp_path_factory, name, make):
    "A folder that the first worker to ask makes with `make(folder)`, and the others wait for; when making fails the next one tries anew"
    base = tmp_path_factory.getbasetemp()
    if os.environ.get('PYTEST_XDIST_WORKER'): base = base.parent
    at, done = base/name, base/f'{name}.done'
    with FileLock(base/f'{name}.lock'):
        if not done.exists():
            shutil.rmtree(at, ignore_errors=True); at.mkdir()
            make(at); done.touch()
    return at

@pytest.fixture(scope='session')
def installed(tmp_path_factory):
    "`pip install .` in a new environment, which borrows the heavy libraries of this one; the path of its `lifelab`"
    return once(tmp_path_factory, 'installed', _install)/'venv/bin/lifelab'

def _install(at):
    "Make the environment and install a copy of what git knows of this checkout"
    assert sh(sys.executable, '-m', 'venv', at/'venv').returncode==0
    python, site = at/'venv/bin/python', sysconfig.get_paths()['purelib']
    copy = at/'source'
    listed = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split('\n')
    for name in filter(None, listed):
        if (ROOT/name).is_file():
            (copy/name).parent.mkdir(parents=True, exist_ok=True)
            (copy/name).write_bytes((ROOT/name).read_bytes())
    here = sh(python, '-c', 'import sysconfig; print(sysconfig.get_paths()["purelib"])').stdout.strip()
    (Path(here)/'borrowed.pth').write_text(site+'\n')
    done = sh(python, '-m', 'pip', 'install', '-q', '--disable-pip-version-check', '--no-deps', '--no-build-isolation', copy, cwd=at)
    assert done.returncode==0, done.stderr
    where = sh(python, '-c', 'import lifelab; print(lifelab.__file__)', cwd=at).stdout.strip()
    assert where.startswith(str(at)), f'{where} is not the installed copy'

@pytest.fixture(scope='session')
def tiny(installed, tmp_path_factory):
    "A finished run of profile tiny, made by the installed copy in a folder of its own: (working folder, what it printed, seconds)"
    def run(work):
        t, done = time.monotonic(), sh(installed, 'run', '--profile', 'tiny', cwd=work)
        assert done.returncode==0, done.stdout[-3000:]+done.stderr[-3000:]
        (work/'said.txt').write_text(f'{time.monotonic()-t}\n{done.stdout}')
    work = once(tmp_path_factory, 'tiny', run)
    secs, said = (work/'said.txt').read_text().split('\n', 1)
    return work, said, float(secs)

@pytest.fixture(scope='module')
def chromium(tmp_path_factory):
    "A browser context of its own (desktop size), driven by playwright; the page fails a test that lets a script error pass"
    path = next((p for p in map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome')) if p), None)
    if not path: pytest.skip('no Chromium on PATH: `make browser` installs it on Debian and Ubuntu')
    from playwright.sync_api import sync_playwright
    flags = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync']
    with sync_playwright() as p:
        at = p.chromium.launch_persistent_context(str(tmp_path_factory.mktemp('browser')), executable_path=path, headless=True, args=flags,
            viewport={'width':1280, 'height':900})
        yield at
        at.close()
