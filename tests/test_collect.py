"""Stage 1 against what a notebook cell cannot show: hostile archives, kills, a missing network, strange folders."""
import hashlib, json, os, signal, struct, subprocess, sys, time, zipfile
from pathlib import Path

import pandas as pd
import pytest
import yaml

from lifelab.collect import world
from lifelab.collect import collect as stage
from lifelab.collect.archive import Hostile, Limits, archive, matching, read
from lifelab.collect.cards import cards, read_card
from lifelab.collect.folder import folder
from lifelab.collect.store import Store
from lifelab.core.profile import PROFILES

ROOT = Path(__file__).resolve().parent.parent
RUN = "import sys; from lifelab.collect import world; from lifelab.collect.cards import cards; from lifelab.collect.collect import collect; world.cards = lambda names: cards(None, sys.argv[2]); collect(sys.argv[1], 'tiny')"


def sha(data): return hashlib.sha256(data).hexdigest()


def wheel(index, name, files, version='1.0'):
    "Publish a wheel with some files in a folder that pip can read"
    index.mkdir(exist_ok=True)
    path = index/f'{name}-{version}-py3-none-any.whl'
    info = {'METADATA': f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nLicense: MIT\n', 'WHEEL': 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n', 'RECORD': ''}
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        for n, s in info.items(): z.writestr(f'{name}-{version}.dist-info/{n}', s)
        for n, s in files.items(): z.writestr(f'{name}/{n}', s)
    return path


def card(folder, path, name, members, **over):
    "Write a data card for a wheel"
    folder.mkdir(exist_ok=True)
    given = dict(name=name, title=name.title(), package=path.name.split('-')[0], version='1.0', wheel=path.name, wheel_sha256=sha(path.read_bytes()), licence='MIT',
        licence_evidence='METADATA', attribution='A. Author', url='https://example.org', domain='biology', modality='text', members=members) | over
    (folder/f'{name}.md').write_text(f'---\n{yaml.safe_dump(given)}---\nProse.\n')


@pytest.fixture
def shop(tmp_path, monkeypatch):
    "Ten packages in a local index, a card for each; collect reads these cards and pip this index"
    index, folder = tmp_path/'index', tmp_path/'cards'
    for i in range(10):
        data = f'Life number {i}. '.encode()*50
        card(folder, wheel(index, f'lifelabx{i}', {'a.txt': data}), f'source-{i}', [dict(path=f'lifelabx{i}/a.txt', format='text', sha256=sha(data))])
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    monkeypatch.setenv('PIP_FIND_LINKS', str(index))
    monkeypatch.setattr(world, 'cards', lambda names: cards(None, folder))
    return tmp_path


def promised(lab):
    "What must be equal from run to run: stage.json and the files that it lists"
    at = lab/'01_collect'
    return {f: (at/f).read_bytes() for f in ['stage.json', *json.loads((at/'stage.json').read_text())['files']]}


# Archives ---------------------------------------------------------------------------------------------------------------------------------

def packed(path, **entries):
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        for name, data in entries.items(): z.writestr(name, data)
    return path


def opened(path, **limits):
    with archive(path, Limits(**limits)) as z: return {n: read(z, n) for n in matching(z, '*')}


@pytest.mark.parametrize('name', ['../evil', 'a/../../evil', '/etc/cron.d/evil', '\\\\host\\share', 'C:\\evil', 'C:/evil', '..\\evil', 'a\\b', '//host/evil', '.'*2])
def test_names_that_leave_the_archive(tmp_path, name):
    with pytest.raises(Hostile, match='was refused'): opened(packed(tmp_path/'x.zip', **{'good.txt': 'x', name: 'boo'}))
    assert not list(tmp_path.parent.rglob('evil'))


@pytest.mark.parametrize('mode, says', [(0o120777, 'symbolic link'), (0o010644, 'neither file nor folder'), (0o020644, 'neither file nor folder')])
def test_links_and_devices(tmp_path, mode, says):
    i = zipfile.ZipInfo('passwords')
    i.external_attr = mode<<16
    with zipfile.ZipFile(tmp_path/'x.zip', 'w') as z: z.writestr(i, '/etc/passwd')
    with pytest.raises(Hostile, match=says): opened(tmp_path/'x.zip')


def test_bombs(tmp_path):
    with pytest.raises(Hostile, match='a bomb'): opened(packed(tmp_path/'x.zip', zeros=bytes(5_000_000)))
    with pytest.raises(Hostile, match='in all'): opened(packed(tmp_path/'y.zip', **{f'f{i}': os.urandom(300) for i in range(9)}), all_bytes=2000)
    with pytest.raises(Hostile, match='members'): opened(packed(tmp_path/'z.zip', **{f'f{i}': 'x' for i in range(99)}), members=50)


def test_overlapping_members(tmp_path):
    "Many entries of the directory point at the same packed bytes"
    b = packed(tmp_path/'x.zip', **{'aaaa': os.urandom(5000)}).read_bytes()
    at = b.index(b'PK\x01\x02')
    end = b.index(b'PK\x05\x06')
    entries = b''.join(b[at:end].replace(b'aaaa', b'%04d' % i) for i in range(50))
    tail = bytearray(b[end:])
    struct.pack_into('<HHII', tail, 8, 50, 50, len(entries), at)
    (tmp_path/'x.zip').write_bytes(b[:at]+entries+tail)
    with pytest.raises(Hostile, match='overlap'): opened(tmp_path/'x.zip')


def test_a_size_that_lies(tmp_path):
    "The directory says 10 bytes, the packed stream holds 3000"
    b = bytearray(packed(tmp_path/'x.zip', a=os.urandom(3000)).read_bytes())
    at = b.index(b'PK\x01\x02')
    struct.pack_into('<I', b, at+24, 10)
    (tmp_path/'x.zip').write_bytes(b)
    with pytest.raises(Hostile): opened(tmp_path/'x.zip')


def test_damage_encryption_and_doubles(tmp_path):
    good = packed(tmp_path/'x.zip', a='hello life '*20).read_bytes()
    torn = bytearray(good); torn[40] ^= 0xff
    (tmp_path/'x.zip').write_bytes(torn)
    with pytest.raises(Hostile, match='damaged|bytes'): opened(tmp_path/'x.zip')
    locked = bytearray(good); locked[good.index(b'PK\x01\x02')+8] |= 1
    (tmp_path/'x.zip').write_bytes(locked)
    with pytest.raises(Hostile, match='encrypted'): opened(tmp_path/'x.zip')
    with pytest.warns(UserWarning), zipfile.ZipFile(tmp_path/'x.zip', 'w') as z: z.writestr('a', '1'); z.writestr('a', '2')
    with pytest.raises(Hostile, match='same name'): opened(tmp_path/'x.zip')
    for cut in (0, 10, len(good)//2, len(good)-3):
        (tmp_path/'x.zip').write_bytes(good[:cut])
        with pytest.raises(Hostile, match='no readable zip'): opened(tmp_path/'x.zip')


# Cards ------------------------------------------------------------------------------------------------------------------------------------

def test_every_profile_has_its_cards():
    for p in PROFILES.values():
        for c in cards(p.sources):
            assert '**Over- and under-represented.**' in c.body and '**Limits.**' in c.body, c.name
            assert c.licence_evidence and c.attribution and c.citation and c.url.startswith('http') and (c.quotes or c.maker), c.name


def test_no_person_and_no_eukaryotic_virus_is_asked_for():
    paths = ' '.join(m.path for c in cards() for m in c.members).lower()
    assert not any(w in paths for w in ('astronaut', 'lena', 'lfw', 'luispedro', 'virus'))


def test_a_card_that_is_nearly_right(tmp_path):
    p = wheel(tmp_path/'i', 'lifelabx', {'a.txt': 'x'})
    card(tmp_path, p, 'x', [dict(path='lifelabx/a.txt', format='text', sha256=sha(b'x'), sha265='')])
    with pytest.raises(ValueError, match="data card .*x.md: no field 'sha265': did you mean 'sha256'"): read_card(tmp_path/'x.md')
    card(tmp_path, p, 'x', [dict(path='lifelabx/a.txt', format='text')])
    with pytest.raises(ValueError, match='has no sha256'): read_card(tmp_path/'x.md')
    card(tmp_path, p, 'x', [])
    with pytest.raises(ValueError, match='members is empty'): read_card(tmp_path/'x.md')


# The stage --------------------------------------------------------------------------------------------------------------------------------

def test_second_run_downloads_nothing(shop, monkeypatch):
    lab = shop/'lab'
    r = stage.collect(lab, 'tiny')
    assert (r.counts['in'], r.counts['out'], r.units) == (10, 10, 11)
    was, when = promised(lab), (lab/'01_collect'/'run.json').read_bytes()
    monkeypatch.setenv('PIP_FIND_LINKS', str(shop/'nowhere'))
    stage.collect(lab, 'tiny')
    assert promised(lab) == was and (lab/'01_collect'/'run.json').read_bytes() == when
    for f in ('stage.json', 'units.jsonl', 'items.parquet', 'parts/source-3.json'): (lab/'01_collect'/f).unlink()
    stage.collect(lab, 'tiny')
    assert promised(lab) == was, 'all units anew, from the raw store alone'


def test_a_damaged_wheel_in_the_store_is_fetched_again(shop):
    lab = shop/'lab'
    stage.collect(lab, 'tiny')
    was = promised(lab)
    c = cards(None, shop/'cards')[0]
    Store(lab/'01_collect'/'raw').path(c.wheel_sha256).write_bytes(b'damaged')
    (lab/'01_collect'/'units.jsonl').unlink(); (lab/'01_collect'/'stage.json').unlink()
    stage.collect(lab, 'tiny')
    assert promised(lab) == was


def test_one_source_cannot_be_had(shop, monkeypatch):
    lab, index = shop/'lab', shop/'index'
    hidden = (index/'lifelabx4-1.0-py3-none-any.whl').rename(shop/'hidden.whl')
    r = stage.collect(lab, 'tiny')
    assert r.counts == {'in': 10, 'out': 9, 'dropped': {'source not fetched': 1}}
    told = {e['name']: e for e in yaml.safe_load((lab/'01_collect'/'manifest.yaml').read_text())}
    assert not told['source-4']['used'] and 'No matching distribution' in told['source-4']['why'] and told['source-5']['used']
    assert pd.read_parquet(lab/'01_collect'/'dropped.parquet').reason.tolist() == ['source not fetched']
    hidden.rename(index/'lifelabx4-1.0-py3-none-any.whl')
    assert stage.collect(lab, 'tiny').counts == {'in': 10, 'out': 10, 'dropped': {}}


def test_offline(shop, monkeypatch):
    monkeypatch.setenv('PIP_FIND_LINKS', str(shop/'nowhere'))
    with pytest.raises(ValueError, match='nothing was collected.*Check the network'): stage.collect(shop/'lab', 'tiny')
    assert not (shop/'lab'/'01_collect'/'stage.json').exists()


def test_no_index_answers(shop, monkeypatch):
    "A real index address where nobody listens"
    for k, v in dict(PIP_NO_INDEX='0', PIP_FIND_LINKS='', PIP_INDEX_URL='http://127.0.0.1:9/simple', PIP_EXTRA_INDEX_URL='', PIP_RETRIES='0').items(): monkeypatch.setenv(k, v)
    monkeypatch.setattr(world, 'cards', lambda names: cards(['source-1', 'source-2'], shop/'cards'))
    t = time.monotonic()
    with pytest.raises(ValueError, match='could not be reached|No matching distribution'): stage.collect(shop/'lab', 'tiny')
    assert time.monotonic()-t < 60


def test_wrong_hash_missing_member_and_missing_evidence(shop):
    folder, index = shop/'cards', shop/'index'
    for f in sorted(folder.glob('*.md'))[4:]: f.unlink()
    a = [dict(path='lifelabx0/a.txt', format='text', sha256='0'*64)]
    card(folder, index/'lifelabx0-1.0-py3-none-any.whl', 'source-0', a)
    card(folder, index/'lifelabx1-1.0-py3-none-any.whl', 'source-1', [dict(path='lifelabx1/b.txt', format='text', sha256='0'*64)])
    card(folder, index/'lifelabx2-1.0-py3-none-any.whl', 'source-2', [dict(path='lifelabx2/*', format='text')], quotes={'lifelabx2-1.0.dist-info/METADATA': 'License: CC0'})
    card(folder, index/'lifelabx3-1.0-py3-none-any.whl', 'source-3', [dict(path='lifelabx3/*', format='text')], wheel_sha256='1'*64)
    card(folder, wheel(index, 'lifelabx9', {'a.txt': 'x'}), 'source-9', [dict(path='lifelabx9/*', format='text')])
    stage.collect(shop/'lab', 'tiny')
    d = pd.read_parquet(shop/'lab'/'01_collect'/'dropped.parquet').set_index('source').detail
    assert 'a.txt changed' in d['source-0'] and 'holds no lifelabx1/b.txt' in d['source-1']
    assert 'on which the licence rests' in d['source-2'] and 'tampered' in d['source-3'] and 'source-9' not in d


def test_licences_that_do_not_let_it(shop):
    folder, index = shop/'cards', shop/'index'
    for n, l in (('source-0', 'unknown'), ('source-1', 'CC-BY-NC-ND-4.0'), ('source-2', 'GPL-3.0-only')):
        i = n[-1]
        card(folder, index/f'lifelabx{i}-1.0-py3-none-any.whl', n, [dict(path=f'lifelabx{i}/a.txt', format='text', sha256=sha(f'Life number {i}. '.encode()*50))], licence=l)
    r = stage.collect(shop/'lab', 'tiny')
    at = shop/'lab'/'01_collect'
    items = pd.read_parquet(at/'items.parquet').set_index('source')
    assert r.counts['dropped'] == {'licence forbids': 2, 'no licence': 1} and items.train.sum() == 7 and not items.train['source-1']
    assert 'forbids' in {e['name']: e for e in yaml.safe_load((at/'manifest.yaml').read_text())}['source-1']['why']
    assert r.licences == {'MIT': 7}


def test_two_sources_share_a_wheel(tmp_path, monkeypatch):
    index, folder = tmp_path/'index', tmp_path/'cards'
    p = wheel(index, 'lifelabx', {'en.txt': 'life', 'fr.txt': 'vie'})
    for l, w in (('en', 'life'), ('fr', 'vie')): card(folder, p, f'words-{l}', [dict(path=f'lifelabx/{l}.txt', format='text', sha256=sha(w.encode()))], language=l)
    monkeypatch.setenv('PIP_NO_INDEX', '1'); monkeypatch.setenv('PIP_FIND_LINKS', str(index))
    monkeypatch.setattr(world, 'cards', lambda names: cards(names if isinstance(names, list) else None, folder))
    stage.collect(tmp_path/'lab', 'tiny')
    assert pd.read_parquet(tmp_path/'lab'/'01_collect'/'items.parquet').language.tolist() == ['en', 'fr']
    monkeypatch.setattr(world, 'cards', lambda names: cards(['words-en'], folder))
    stage.collect(tmp_path/'lab', 'tiny')
    left = [f for f in (tmp_path/'lab'/'01_collect'/'raw').rglob('*') if f.is_file()]
    assert sorted(f.name for f in left) == sorted([sha(b'life'), sha(p.read_bytes())]), 'a source that is no longer asked for takes its files along, not those of others'


# Kills ------------------------------------------------------------------------------------------------------------------------------------

def run_here(lab, folder):
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONHASHSEED': 'random'}
    return subprocess.Popen([sys.executable, '-c', RUN, str(lab), str(folder)], env=env, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize('until', ['download', 'unit'])
def test_kill_and_resume(shop, until):
    "kill -9 while pip works, and after the first unit: the next run goes on and ends byte-equal"
    whole, lab = shop/'whole', shop/'lab'
    assert run_here(whole, shop/'cards').wait(120) == 0
    p, at = run_here(lab, shop/'cards'), lab/'01_collect'
    ready = (lambda: (at/'.fetch').exists()) if until == 'download' else (lambda: (at/'units.jsonl').exists() and (at/'units.jsonl').stat().st_size)
    end = time.monotonic()+60
    while p.poll() is None and not ready() and time.monotonic() < end: time.sleep(.002)
    p.send_signal(signal.SIGKILL); p.wait()
    assert not (at/'stage.json').exists() or p.returncode == 0
    done = len((at/'units.jsonl').read_bytes().splitlines()) if (at/'units.jsonl').exists() else 0
    kept = {f: f.stat().st_mtime_ns for f in (at/'raw').rglob('*') if f.is_file() and '.tmp' not in f.name}
    assert run_here(lab, shop/'cards').wait(120) == 0
    assert promised(lab) == promised(whole)
    assert all(f.stat().st_mtime_ns == t for f, t in kept.items()), 'what was in the store was written again'
    if until == 'unit': assert done >= 1


# A user's folder --------------------------------------------------------------------------------------------------------------------------

def test_a_strange_folder(tmp_path):
    mine, store = tmp_path/'mine', Store(tmp_path/'raw')
    (mine/'deep'/'deeper').mkdir(parents=True)
    (mine/'good.txt').write_text('Life.')
    (mine/'deep'/'deeper'/'gène.fna').write_text('>x\nATG')
    os.mkfifo(mine/'pipe.txt')
    with open(mine/'giant.txt', 'wb') as f: f.truncate(300_000_000)
    (mine/'loop').symlink_to(mine)
    (mine/'gone.txt').symlink_to(tmp_path/'nothing')
    (mine/'same.txt').symlink_to(mine/'good.txt')
    (tmp_path/'secret.txt').write_text('secret')
    (mine/'out.txt').symlink_to(tmp_path/'secret.txt')
    (mine/'beside.txt').write_text('x')
    (mine/'beside.txt.license').symlink_to(tmp_path/'secret.txt')
    with open(os.fsencode(mine)+b'/caf\xe9.txt', 'w') as f: f.write('Latin')
    got = folder(mine, 'CC0-1.0', store)
    assert [r['path'] for r in got['rows']] == ['beside.txt', 'caf\ufffd.txt', 'deep/deeper/gène.fna', 'good.txt']
    assert {d['path']: d['reason'] for d in got['dropped']} == {'pipe.txt': 'no file', 'giant.txt': 'too big', 'loop': 'link', 'gone.txt': 'link out of the folder',
        'same.txt': 'link', 'out.txt': 'link out of the folder'}
    assert not any(b'secret' in f.read_bytes() for f in (tmp_path/'raw').rglob('*') if f.is_file())


def test_own_data_alone_and_mixed(shop):
    mine = shop/'mine'
    mine.mkdir()
    (mine/'a.md').write_text('# My notes on life')
    (mine/'b.faa').write_text('>p\nMKT')
    (mine/'closed.txt').write_text('SPDX-License-Identifier: CC-BY-ND-4.0\nNot for you')
    (mine/'paper.xml').write_text('<article><front><article-title>T</article-title><license><p>http://creativecommons.org/licenses/by/4.0/</p></license></front></article>')
    r = stage.collect(shop/'lab', 'tiny', mine, 'CC0-1.0')
    items = pd.read_parquet(shop/'lab'/'01_collect'/'items.parquet').set_index('path')
    assert set(items.source) == {'own-data'} and items.licence.to_dict() == {'a.md': 'CC0-1.0', 'b.faa': 'CC0-1.0', 'closed.txt': 'CC-BY-ND-4.0', 'paper.xml': 'CC-BY-4.0'}
    assert r.counts == {'in': 4, 'out': 3, 'dropped': {'licence forbids': 1}}
    r = stage.collect(shop/'lab', 'tiny', mine, '', mixed=True)
    assert r.counts['out'] == 11 and r.counts['dropped'] == {'licence forbids': 1, 'no licence': 2}


def test_where_a_folder_lies_does_not_matter(tmp_path):
    for n in ('one', 'two'):
        (tmp_path/n).mkdir()
        (tmp_path/n/'a.txt').write_text('Life.')
        stage.collect(tmp_path/f'lab-{n}', 'tiny', tmp_path/n, 'CC0-1.0')
    assert promised(tmp_path/'lab-one') == promised(tmp_path/'lab-two')
    (tmp_path/'one'/'b.txt').write_text('More life.')
    assert stage.collect(tmp_path/'lab-one', 'tiny', tmp_path/'one', 'CC0-1.0').counts['out'] == 2, 'a file more is noticed'
    (tmp_path/'empty').mkdir()
    with pytest.raises(ValueError, match='no files were found'): stage.collect(tmp_path/'lab-empty', 'tiny', tmp_path/'empty', 'CC0-1.0')
    with pytest.raises(ValueError, match='did you mean CC0-1.0'): stage.collect(tmp_path/'lab-x', 'tiny', tmp_path/'one', 'CC0')
