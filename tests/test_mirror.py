"""The mirror against kills, damage on either side, stores that garble, and an S3 that others wrote (moto)."""
import hashlib, json, os, signal, subprocess, sys, time
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from conftest import storage
from lifelab.collect import mirror as module
from lifelab.collect.mirror import SUMS, mirror, place, restore, to_mirror, verify
from lifelab.collect.store import Store


def sha(data): return hashlib.sha256(data).hexdigest()


def content(i): return (b'%d' % i)*(1+i*977 % 40_000)


def name(i): return f'raw/{sha(content(i))[:2]}/{sha(content(i))}'


def collection(at, n):
    for i in range(n): Store(at/'raw').put(content(i))
    (at/'tables').mkdir()
    for t in ('items.parquet', 'tables/marks.json'): (at/t).write_bytes(t.encode()*99)
    return at


@pytest.fixture
def home(tmp_path):
    "A collection of forty files and two tables"
    return collection(tmp_path/'home', 40)


@pytest.fixture
def few(tmp_path):
    "Eight files and two tables"
    return collection(tmp_path/'few', 8)


def files(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob('*') if p.is_file() and p.name!=SUMS and '.mirror' not in p.parts}


def test_a_disk_gets_everything_once(home, tmp_path):
    told = []
    first = mirror(home, tmp_path/'second', lambda *x: told.append(x))
    assert first==dict(copied=42, there=0, bad=0, damaged=0, bytes=sum(map(len, files(home).values()))) and files(tmp_path/'second')==files(home)
    assert [n for n,*_ in told][-2:]==['items.parquet', 'tables/marks.json'] and {w for _,w,_ in told}=={'copied'}, 'tables go last'
    assert mirror(home, tmp_path/'second')==dict(copied=0, there=42, bad=0, damaged=0, bytes=0)
    listed = subprocess.run(['sha256sum', '--check', '--quiet', SUMS], cwd=tmp_path/'second', capture_output=True, text=True)
    assert listed.returncode==0, listed.stdout


def test_what_is_under_way_or_private_stays(home, tmp_path):
    for n in ('a.part', 'x/.lock', '.part/b', '.hidden/c', 'ledger.db-wal', '.env'): (home/n).parent.mkdir(exist_ok=True); (home/n).write_text('no')
    (home/'link').symlink_to('/etc/passwd'); (home/'raw/loop').symlink_to(home)
    assert mirror(home, tmp_path/'second')['copied']==42 and set(files(tmp_path/'second'))=={*map(name, range(40)), 'items.parquet', 'tables/marks.json'}


def test_a_copy_that_nobody_checked_is_checked_first(home, tmp_path):
    "As after a kill between a copy and the line that says so: right ones stay, wrong ones of the right size are replaced"
    mirror(home, tmp_path/'second')
    (tmp_path/'second'/name(3)).write_bytes(b'x'*len(content(3)))
    for f in (home/'.mirror').iterdir(): f.unlink()
    assert mirror(home, tmp_path/'second')==dict(copied=1, there=41, bad=0, damaged=0, bytes=len(content(3))) and files(tmp_path/'second')==files(home)


def test_a_torn_line_of_the_notes_is_no_harm(home, tmp_path):
    mirror(home, tmp_path/'second')
    notes, = (home/'.mirror').iterdir()
    lines = notes.read_text().splitlines(keepends=True)
    notes.write_text(''.join(lines[:20])+lines[20][:30])
    assert mirror(home, tmp_path/'second')['there']==42
    assert len([json.loads(l) for l in notes.read_text().splitlines() if l.endswith(']')])==42
    assert mirror(home, tmp_path/'second')['there']==42


def test_a_file_that_is_damaged_at_home_is_not_passed_on(home, tmp_path):
    (home/name(5)).write_bytes(b'x'*len(content(5)))
    told = []
    counts = mirror(home, tmp_path/'second', lambda *x: told.append(x))
    assert counts['damaged']==1 and counts['copied']==41 and name(5) not in files(tmp_path/'second')
    assert [x for x in told if x[1]=='damaged']==[(name(5), 'damaged', 'its bytes no longer hash to its name: not copied')]
    assert verify(tmp_path/'second')==dict(sound=41, missing=[], bad=[])


def test_a_table_that_changed_goes_again_also_with_the_same_size(home, tmp_path):
    mirror(home, tmp_path/'second')
    (home/'items.parquet').write_bytes((home/'items.parquet').read_bytes()[::-1])
    assert mirror(home, tmp_path/'second')['copied']==1 and files(tmp_path/'second')==files(home)


class Bad(LocalFileSystem):
    "A disk that garbles the first copy of some files, or every copy of others"
    protocol = ('bad', 'file')
    once, always = set(), set()
    def put_file(self, lpath, rpath, **k):
        super().put_file(lpath, rpath, **k)
        if Path(lpath).name in Bad.once|Bad.always: Path(rpath).write_bytes(b'?'+Path(rpath).read_bytes()[1:]); Bad.once.discard(Path(lpath).name)


def test_a_disk_that_garbles(home, tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'place', lambda to, options=None: (Bad(), str(tmp_path/'second')))
    Bad.once, Bad.always = {sha(content(1)), sha(content(2))}, {sha(content(3))}
    told = []
    counts = mirror(home, tmp_path/'second', lambda *x: told.append(x))
    assert counts['bad']==1 and counts['copied']==41 and [x for x in told if x[1]=='bad']==[(name(3), 'bad', 'its bytes differ: removed')]
    assert files(tmp_path/'second')=={k: v for k,v in files(home).items() if k!=name(3)}, 'neither the wrong copy nor a part of it is left'
    Bad.always = set()
    assert mirror(home, tmp_path/'second')==dict(copied=1, there=41, bad=0, damaged=0, bytes=len(content(3)))


def test_a_full_disk_is_said(home, tmp_path, monkeypatch):
    def full(self, *a, **k): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(LocalFileSystem, 'put_file', full)
    with pytest.raises(ValueError, match='does not take raw/.*No space left'): mirror(home, tmp_path/'second')


def test_places_that_cannot_be(home, tmp_path):
    for to, says in ((home, 'lies inside'), (home/'raw/x', 'lies inside'), ('nowhere://x', 'cannot be opened')):
        with pytest.raises(ValueError, match=says): mirror(home, to)
    with pytest.raises(ValueError, match='no mirror'): verify(tmp_path)


RUN = 'import sys; from lifelab.collect.mirror import mirror; print(mirror(sys.argv[1], sys.argv[2], at_once=2))'


def test_kill_at_any_moment(home, tmp_path):
    "The next run copies only what was missing, and no half copy ever bears a final name"
    env, copied = {**os.environ, 'PYTHONPATH':str(Path(__file__).resolve().parent.parent)}, 0
    for wanted in (1, 9, 17, 30):
        p = subprocess.Popen([sys.executable, '-c', RUN, home, tmp_path/'second'], env=env, stdout=subprocess.DEVNULL)
        while p.poll() is None and len(list((tmp_path/'second').rglob('*')))<wanted: time.sleep(.001)
        p.send_signal(signal.SIGKILL); p.wait()
        here = {n: d for n,d in files(tmp_path/'second').items() if not n.endswith('.part')}
        assert all(files(home)[n]==d for n,d in here.items()) and len(here)>=copied
        copied = len(here)
    last = mirror(home, tmp_path/'second')
    assert last['copied']+last['there']==42 and last['there']>=copied and verify(tmp_path/'second')['sound']==42
    assert files(tmp_path/'second')==files(home), 'no part is left either'


def test_back_home(home, tmp_path):
    before = files(home)
    mirror(home, tmp_path/'second')
    (home/name(1)).unlink(); (home/name(2)).write_bytes(b'damaged'); (tmp_path/'second'/name(3)).write_bytes(b'worse'); (home/name(3)).unlink()
    told = []
    assert restore(tmp_path/'second', home, lambda *x: told.append(x))==dict(copied=2, there=39, bad=1)
    assert files(home)=={k: v for k,v in before.items() if k!=name(3)} and (name(3), 'bad', 'its bytes differ') in told


@pytest.mark.parametrize('line', ['0'*64+'  ../evil', '0'*64+'  /etc/evil', '0'*64+'  a/../../evil', 'short  a', '0'*64+' a', '0'*64+'  a\\..\\evil'])
def test_a_list_of_checksums_from_outside(tmp_path, line):
    (tmp_path/'second').mkdir(); (tmp_path/'second'/SUMS).write_text(line+'\n'); (tmp_path/'evil').write_text('boo')
    for job in (lambda: verify(tmp_path/'second', drop=True), lambda: restore(tmp_path/'second', tmp_path/'home')):
        with pytest.raises(ValueError, match='a checksum and a name inside the folder'): job()
    assert (tmp_path/'evil').exists() and not (tmp_path/'home').exists()


# Object storage ---------------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def moto():
    "An S3 with an empty bucket; (its client, the options that lead there)"
    with storage('attic') as (at, s3):
        yield s3, {'client_kwargs':{'endpoint_url':at}, 'skip_instance_cache':True}


def stored(s3): return {o['Key']: s3.get_object(Bucket='attic', Key=o['Key'])['Body'].read() for o in s3.list_objects_v2(Bucket='attic').get('Contents', ())}


def test_object_storage(few, tmp_path, moto):
    s3, options = moto
    assert mirror(few, 's3://attic/2026', options=options)==dict(copied=10, there=0, bad=0, damaged=0, bytes=sum(map(len, files(few).values())))
    assert {k.removeprefix('2026/'): v for k,v in stored(s3).items() if not k.endswith(SUMS)}==files(few)
    assert mirror(few, 's3://attic/2026', options=options)['there']==10
    s3.put_object(Bucket='attic', Key=f'2026/{name(4)}', Body=b'x'*len(content(4))); s3.delete_object(Bucket='attic', Key=f'2026/{name(6)}')
    found = verify('s3://attic/2026', options=options, drop=True)
    assert (found['sound'], found['bad'], found['missing'])==(8, [name(4)], [name(6)]) and f'2026/{name(4)}' not in stored(s3)
    assert mirror(few, 's3://attic/2026', options=options)['copied']==2
    assert restore('s3://attic/2026', tmp_path/'again', options=options)==dict(copied=10, there=0, bad=0) and files(tmp_path/'again')==files(few)


def test_the_md5_of_the_store_settles_it_and_parts_are_read_back(few, moto, monkeypatch):
    "A tag that is an MD5 spares reading; a file that went in several parts has none, and is read"
    s3, options = moto
    read, real = [], module._sums
    monkeypatch.setattr(module, '_sums', lambda f: (read.append(getattr(f, 'path', '')), real(f))[1])
    mirror(few, 's3://attic/a', options=options)
    assert not [p for p in read if 'attic' in str(p)]
    fs, root = place('s3://attic/b', options)
    big = os.urandom(6*2**20)
    with fs.open(f'{root}/big', 'wb', block_size=5*2**20) as f: f.write(big)
    assert '-' in fs.info(f'{root}/big')['ETag']
    assert module.wrong_copy(fs, f'{root}/big', sha(big), len(big), hashlib.md5(big).hexdigest())=='' and [p for p in read if 'attic/b/big' in str(p)]
    assert module.wrong_copy(fs, f'{root}/big', '0'*64, len(big), hashlib.md5(big).hexdigest())=='its bytes differ'


def test_a_bucket_that_is_not_there_is_not_made(few, moto):
    s3, options = moto
    with pytest.raises(ValueError, match='nobody/x cannot be written .*bucket does not exist') as e: mirror(few, 's3://nobody/x', options=options)
    assert [b['Name'] for b in s3.list_buckets()['Buckets']]==['attic'] and 'planted' not in str(e.value)


def test_no_login(few, moto, monkeypatch):
    for k in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'): monkeypatch.delenv(k)
    monkeypatch.setenv('AWS_EC2_METADATA_DISABLED', 'true'); monkeypatch.setenv('AWS_SHARED_CREDENTIALS_FILE', '/nowhere'); monkeypatch.setenv('AWS_CONFIG_FILE', '/nowhere')
    with pytest.raises(ValueError, match='attic/x.*NoCredentialsError'): mirror(few, 's3://attic/x', options=moto[1])


def test_every_folder_is_visited_in_order(home):
    ats = [at for at,_ in to_mirror(home)]
    assert ats==sorted(a for a in ats if a.startswith('raw'))+['.', 'tables']
