"""Stage 1 out in the world, as a user meets it: the command line against stand-ins of four services, refreshed, stopped, killed, with a planted key."""
import contextlib, json, os, random, signal, sqlite3, subprocess, time
from dataclasses import replace
from pathlib import Path

import pandas as pd, pytest
from conftest import quiet

from lifelab.collect.replay import Reply, faulty, ranged, replay
from lifelab.collect.replay_canto import record, replay_canto
from lifelab.collect.replay_ncbi import replay_ncbi
from lifelab.collect.replay_oai import replay_oai
from lifelab.collect.replay_pds import archive, replay_files, replay_pds

KEY = 'planted-key-7341'
ASKED = ('ncbi:U00096.3', 'xeno-canto:gen:Turdus', 'pds:perseverance:navcam', 'oai:https://archive.example/oai')

@contextlib.contextmanager
def world(canto=12, shelf=None, products=None, plan=()):
    "Stand-ins of four services and an archive of files; yields (addresses in place of addresses, the sounds' requests)"
    made, files = archive()
    apps = {'https://eutils.ncbi.nlm.nih.gov':replay_ncbi(), 'https://pds.mcp.nasa.gov':replay_pds(made if products is None else products),
        'https://xeno-canto.org':faulty(replay_canto(canto, key=KEY), list(plan)), 'https://archive.example':replay_oai('plain', shelf),
        'https://pds-imaging.jpl.nasa.gov':replay_files(files)}
    with contextlib.ExitStack() as stack:
        at = {k: stack.enter_context(replay(a)) for k,a in apps.items()}
        yield {k: str(v) for k,v in at.items()}, [r for v in at.values() for r in [v.seen]]

def said(lifelab, instead, lab, *words, **env):
    "Run `lifelab …` to its end"
    more = dict(LIFELAB_INSTEAD=json.dumps(instead), XENO_CANTO_KEY=KEY, LIFELAB_EMAIL='lab@example.org', **env)
    e = quiet(); e.update(more)
    return subprocess.run([*lifelab, *words, '--profile', 'tiny', '--lab', str(lab)], cwd=lab.parent, env=e, capture_output=True, text=True, timeout=300)

def items(lab): return pd.read_parquet(lab/'01_collect/items.parquet')
def dropped(lab): return pd.read_parquet(lab/'01_collect/dropped.parquet')

@pytest.fixture(scope='module')
def whole(lifelab, tmp_path_factory):
    "A collection of all four, uninterrupted"
    lab = tmp_path_factory.mktemp('world')/'lab'
    with world() as (instead, _): done = said(lifelab, instead, lab, 'collect', *ASKED, '--alone')
    assert done.returncode==0, done.stderr
    return lab, done

def test_four_services_make_one_collection(whole):
    lab, done = whole
    t = items(lab)
    assert set(t.source)=={'ncbi-u00096-3', 'xeno-canto-gen-turdus', 'pds-perseverance-navcam', 'oai-https-archive-example-oai'}
    used = t[t.train]
    assert set(used.modality)=={'dna', 'audio', 'image', 'text'} and (used.licence!='unknown').all() and (used.attribution.str.len()>0).all()
    assert (t.evidence.str.len()>0).all() and t.request.map(lambda r: set(json.loads(r))>={'method', 'url'}).all(), 'each can be asked for again'
    assert all((lab/'01_collect/raw'/s[:2]/s).stat().st_size==n for s,n in zip(t.item, t.bytes))
    d = dropped(lab)
    assert list(d[d.source=='xeno-canto-gen-turdus'].reason)==['licence forbids'], 'the one that forbids commercial use is told, and was not fetched'
    assert set(d.path)&set(t.path)==set(t[~t.train].path), 'metadata that came with the listing is kept, and is not for training'
    assert '4 sources' in done.stdout

def test_dry_run_fetches_and_writes_nothing(lifelab, tmp_path):
    with world() as (instead, seen):
        done = said(lifelab, instead, tmp_path/'lab', 'collect', *ASKED, '--alone', '--dry-run')
        asked = [r.path for s in seen for r in s]
    assert done.returncode==0 and 'Nothing was fetched' in done.stdout and 'LicenseRef' in done.stdout
    assert not (tmp_path/'lab').exists() and not any('download' in p or p.endswith('.png') or 'efetch' in p for p in asked)

def test_second_run_asks_nobody(lifelab, whole):
    lab, _ = whole
    before = (lab/'01_collect/stage.json').read_bytes()
    done = said(lifelab, {}, lab, 'collect', '--alone')
    assert done.returncode==0 and (lab/'01_collect/stage.json').read_bytes()==before

def test_refresh_finds_what_is_different_and_asks_for_nothing_else(lifelab, tmp_path):
    lab = tmp_path/'lab'
    first = [record(i) for i in range(12)]
    with world(first) as (instead, _): assert said(lifelab, instead, lab, 'collect', 'xeno-canto:gen:Turdus', '--alone').returncode==0
    had = items(lab)
    turdus = [r for r in first if r['gen']=='Turdus']
    gone, free = str(turdus[0]['id']), next(r for r in turdus if 'by-nc' in r['lic'])
    later = [dict(r, lic='//creativecommons.org/licenses/by/4.0/') if r is free else r for r in first if str(r['id'])!=gone]
    with world(later) as (instead, seen):
        done = said(lifelab, instead, lab, 'collect', '--alone', '--refresh', '--full')
        asked = [r.path for s in seen for r in s if 'download' in r.path]
    assert done.returncode==0, done.stderr
    assert 'withdrawn' in done.stdout and 'relicensed' in done.stdout and f'XC{gone}' in done.stdout
    assert asked==[f"/{free['id']}/download"], 'only what became free is fetched'
    now = items(lab)
    assert f'XC{gone}' not in set(now.id) and f"XC{free['id']}" in set(now.id)
    lost = had[had.id==f'XC{gone}'].item.iloc[0]
    assert not (lab/'01_collect/raw'/lost[:2]/lost).exists(), 'its content has left the lab'

def test_a_budget_ends_and_the_next_night_goes_on(lifelab, tmp_path):
    lab = tmp_path/'lab'
    with world() as (instead, _):
        done = said(lifelab, instead, lab, 'collect', 'xeno-canto:gen:Turdus', '--alone', '--max-bytes', '150kB')
        assert done.returncode==4 and 'go on' in done.stdout, done.stderr
        assert not (lab/'01_collect/stage.json').exists()
        assert said(lifelab, instead, lab, 'collect', '--alone').returncode==0
    assert len(items(lab))==3
    late = time.strftime('%H:%M', time.localtime(time.time()+7200)), time.strftime('%H:%M', time.localtime(time.time()+10800))
    with world() as (instead, seen):
        done = said(lifelab, instead, tmp_path/'other', 'collect', 'pds:perseverance:navcam', '--alone', '--window', '-'.join(late))
        assert done.returncode==4 and 'outside the window' in done.stdout and not any(r.path.endswith('.png') for s in seen for r in s)

def test_one_bad_source_does_not_stop_the_others(lifelab, tmp_path):
    with world() as (instead, _):
        instead['https://eutils.ncbi.nlm.nih.gov'] = 'http://127.0.0.1:9'
        done = said(lifelab, instead, tmp_path/'lab', 'collect', 'oai:https://archive.example/nowhere', 'pds:perseverance:navcam', '--alone')
    assert done.returncode==0 and 'could not be had' in done.stderr
    assert set(items(tmp_path/'lab').source)=={'pds-perseverance-navcam'} and list(dropped(tmp_path/'lab').reason)==['source not fetched']

def test_a_wrong_word_is_not_remembered(lifelab, tmp_path):
    lab = tmp_path/'lab'
    for word,says in (('nbci:U00096.3', "did you mean 'ncbi'"), ('nothere.csv', 'nothing that can be collected'), ('mine.md', 'there is no data card')):
        done = said(lifelab, {}, lab, 'collect', word, '--alone')
        assert done.returncode==2 and says in done.stderr and 'Traceback' not in done.stderr
    with world() as (instead, _): assert said(lifelab, instead, lab, 'collect', 'ncbi:U00096.3', '--alone').returncode==0
    assert json.loads((lab/'settings.json').read_text())['sources']=='ncbi:U00096.3'

def test_a_source_that_has_nothing_is_told_and_stops_nobody(lifelab, tmp_path):
    lab = tmp_path/'lab'
    with world() as (instead, _):
        done = said(lifelab, instead, lab, 'collect', 'xeno-canto:gen:Nothofagus', 'ncbi:U00096.3', '--alone')
        assert done.returncode==0 and 'nothing found' in done.stderr, done.stderr
        ran = said(lifelab, instead, lab, 'run', '--only', 'collect')
    assert ran.returncode==0, ran.stderr
    assert list(dropped(lab).reason)==['nothing found']

def test_a_planted_key_is_nowhere(lifelab, whole, tmp_path):
    "Not in the ledger, a manifest, an executed notebook, an error or what is printed"
    lab, done = whole
    e = quiet(); e.update(XENO_CANTO_KEY=KEY, LIFELAB_INSTEAD='{}')
    ran = subprocess.run([*lifelab, 'run', '--profile', 'tiny', '--lab', str(lab), '--only', 'collect'], cwd=lab.parent, env=e, capture_output=True, text=True, timeout=300)
    assert ran.returncode==0 and (lab/'notebooks/01_collect.ipynb').exists(), ran.stderr
    with world() as (instead, _): refused = said(lifelab, instead, tmp_path/'lab', 'collect', 'xeno-canto:gen:Turdus', '--alone', NCBI_API_KEY='x')
    with replay(lambda req: Reply(403, {}, f'key {KEY} is blocked: {req.raw}'.encode())) as at:
        blocked = said(lifelab, {'https://xeno-canto.org':str(at)}, tmp_path/'blocked', 'collect', 'xeno-canto:gen:Turdus', '--alone')
    assert blocked.returncode==2 and '403' in blocked.stderr
    for out in (done, ran, refused, blocked): assert KEY not in out.stdout+out.stderr
    files = [p for at in (lab, tmp_path) for p in at.rglob('*') if p.is_file()]
    assert len(files)>50 and not [p for p in files if KEY.encode() in p.read_bytes()]

def test_killed_at_twenty_moments(lifelab, whole, tmp_path):
    "kill -9 again and again: what was kept is never asked for again, and the end is that of an uninterrupted run"
    lab, seed = tmp_path/'lab', random.randrange(10**6)
    draw = random.Random(seed); print('seed', seed)
    with world() as (instead, seen):
        e = quiet(); e.update(LIFELAB_INSTEAD=json.dumps(instead), XENO_CANTO_KEY=KEY, LIFELAB_EMAIL='lab@example.org')
        command = [*lifelab, 'collect', *ASKED, '--alone', '--profile', 'tiny', '--lab', str(lab)]
        kept, kills = set(), 0
        for _ in range(20):
            for s in seen: s.clear()
            p = subprocess.Popen(command, cwd=tmp_path, env=e, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try: p.wait(draw.uniform(1.5, 5.5))
            except subprocess.TimeoutExpired: p.send_signal(signal.SIGKILL); kills += 1
            p.wait()
            asked = {r.path for s in seen for r in s}
            assert not {f"/{i.removeprefix('XC')}/download" for i in kept if i.startswith('XC')} & asked, f'fetched twice (seed {seed})'
            book = lab/'01_collect/ledger.sqlite'
            if book.exists():
                with contextlib.closing(sqlite3.connect(book)) as db: kept = {i for i, in db.execute("select id from things where state='kept'")}
        for s in seen: s.clear()
        done = subprocess.run(command, cwd=tmp_path, env=e, capture_output=True, text=True, timeout=300)
    assert done.returncode==0 and kills>=5, (done.stderr, kills)
    a, b = (x/'01_collect' for x in (whole[0], lab))
    for name in ('items.parquet', 'dropped.parquet', 'manifest.yaml'): assert (a/name).read_bytes()==(b/name).read_bytes(), f'{name} differs (seed {seed})'
    assert {p.name for p in (a/'raw').glob('??/*')}=={p.name for p in (b/'raw').glob('??/*')}
