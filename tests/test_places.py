"""Lists of addresses, buckets, web folders, disks and the hub, against odd lists, hostile pages, storms and an independent S3 (moto)."""
import asyncio, hashlib, json, os, tracemalloc
from pathlib import Path
from urllib.parse import quote

import pytest

from conftest import storage
from lifelab.clean.clean import drafts
from lifelab.collect import bucket as shelves, hub as hubs, links as lists
from lifelab.collect.bucket import bucket, fetch_file
from lifelab.collect.download import Got, download
from lifelab.collect.hub import HUB, STORES, hub
from lifelab.collect.item import Mark, as_line, from_line
from lifelab.collect.links import links
from lifelab.collect.pace import Host
from lifelab.collect.replay import Reply, faulty, ranged, replay
from lifelab.collect.replay_canto import chirps
from lifelab.collect.session import Session
from lifelab.collect.store import Store
from lifelab.collect.verdict import verdict
from lifelab.core.profile import profile

REEF = 'https://reef.s3.amazonaws.com'


class Quick(dict):
    "Every host is asked as fast as it answers"
    def setdefault(self, k, v=None):
        if k not in self: self[k] = Host(rate=10_000, at_once=8, to=v.to, tries=4)
        return self[k]


def asked(service, query, instead=None, mark=None, stop=None):
    "(items, marks) of a listing; it is broken off after `stop` marks"
    async def go():
        items, marks = [], []
        async with Session(instead) as ask:
            ask.hosts = Quick()
            async for x in service(query, ask, mark):
                (marks if isinstance(x, Mark) else items).append(x)
                if stop and len(marks)==stop: break
        return items, marks
    return asyncio.run(go())


def fetched(items, tmp_path, instead, to=()):
    async def go():
        async with Session(instead) as ask:
            ask.hosts = Quick({h: Host(rate=10_000, to=to, tries=3) for h in ('huggingface.co',)})
            return {g.key: g async for g in download([(i.id, i) for i in items], ask, tmp_path/'under_way', Store(tmp_path/'raw')) if isinstance(g, Got)}
    return asyncio.run(go())


def sha(data): return hashlib.sha256(data).hexdigest()


# Lists ------------------------------------------------------------------------------------------------------------------------------------

def test_a_table_as_a_museum_exports_it(tmp_path):
    (f := tmp_path/'export.tsv').write_bytes('\ufeffURL\tLicense\tTitle\tSHA256\tCaption\r\nhttps://a.org/1.png\tCC-BY-4.0\tUhu – Bubo bubo\t\tAn owl\r\n\r\nhttps://a.org/2.wav\t\t\t'.encode()+b'AB'*32+b'\t\r\n')
    items, marks = asked(links, lists.query_of(str(f)))
    assert [(i.title, i.licence, i.sha256, i.caption, i.modality) for i in items]==[('Uhu – Bubo bubo', 'CC-BY-4.0', '', 'An owl', 'image'), ('2.wav', 'unknown', 'ab'*32, '', 'audio')]
    assert items[0].evidence=='as given by export.tsv line 2' and not verdict(items[1])[0] and marks[-1]==Mark(total=2, full=True)


@pytest.mark.parametrize('name, data, says', [('a.csv', b'', 'no column url'), ('a.csv', b'url\nhttps://a.org/\xff.png', 'UTF-8'), ('a.csv', b'url,licence\nhttps://a.org/x.png,CC-BY-9.0', 'line 2.*did you mean'),
    ('a.csv', b'url,licence\nhttps://a.org/x.png,https://a.org/terms', 'address we do not know'), ('a.csv', b'url,md5\nhttps://a.org/x.png,12', 'line 2: md5'),
    ('a.csv', b'url,sha256\nhttps://a.org/x.png,'+b'a'*64+b'\nhttps://a.org/x.png,'+b'b'*64, 'line 3.*another checksum'), ('a.csv', b'url,titel\n', "did you mean 'title'"),
    ('a.csv', b'url,title\nhttps://a.org/x.png,a,b\n', 'line 2 has 3 columns instead of 2')])
def test_lists_that_cannot_be_right(tmp_path, name, data, says):
    (f := tmp_path/name).write_bytes(data)
    with pytest.raises(ValueError, match=says): asked(links, {'file':str(f)})


@pytest.mark.parametrize('url', ['ftp://a.org/x.png', 's3://a/x.png', 'file:///etc/passwd', '/etc/passwd', 'https://me:pw@a.org/x.png', 'javascript:alert(1)', 'https://'])
def test_addresses_that_are_none_are_told_and_the_rest_goes_on(url):
    items, _ = asked(links, {'urls':[url, 'https://a.org/y.png']})
    assert [bool(i.problem) for i in items]==[True, False] and items[0].url==''


def test_an_address_of_the_inner_network_is_not_fetched(tmp_path):
    items, _ = asked(links, {'urls':['http://169.254.169.254/latest/x.txt', 'http://127.0.0.1:1/x.txt']})
    assert all('not on the public internet' in g.problem for g in fetched(items, tmp_path, {}).values())


def test_a_long_list_goes_on_and_an_edited_one_begins_again(tmp_path):
    f = tmp_path/'urls.txt'
    urls = [f'https://a.org/{i%2400}.png' for i in range(2500)]
    f.write_text('\n'.join(urls))
    items, marks = asked(links, {'file':str(f)}, stop=1)
    rest, last = asked(links, {'file':str(f)}, mark=Mark(marks[0].resume))
    assert [i.id for i in items+rest]==urls[:2400] and last[-1].full, 'each address once, although a hundred come twice'
    f.write_text('\n'.join(['https://a.org/new.png', *urls]))
    assert len(asked(links, {'file':str(f)}, mark=Mark(marks[0].resume))[0])==2401


def test_a_list_is_one_or_the_other():
    for wrong, says in (({}, 'by its file or by its urls'), ({'file':'a', 'urls':[]}, 'by its file or by its urls'), ({'fil':'a'}, "did you mean 'file'")):
        with pytest.raises(ValueError, match=says): asked(links, wrong)


# Buckets: moto, an S3 that others wrote -----------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def moto():
    "An S3 on this machine with 1,204 objects; its address"
    with storage('reef') as (at, s3):
        from moto.core import DEFAULT_ACCOUNT_ID
        from moto.s3.models import s3_backends
        store = s3_backends[DEFAULT_ACCOUNT_ID]['aws']
        for i in range(1200): store.put_object('reef', f'many/{i:05d}.wav', b'RIFF%d' % i)
        for k, v in {'dives/a b+c &ü.wav':chirps(1), 'dives/notes.xyz':b'?', 'dives/empty.wav':b'', 'dives/':b''}.items():
            s3.put_object(Bucket='reef', Key=k, Body=v, ACL='public-read')
        yield at


def test_a_public_bucket_page_by_page(moto):
    items, marks = asked(bucket, {'url':'s3://reef/many/'}, {REEF:f'{moto}/reef'})
    assert [i.path for i in items]==[f'{i:05d}.wav' for i in range(1200)] and len(marks)==2 and marks[-1].full
    assert items[7].md5==hashlib.md5(b'RIFF7').hexdigest()==items[7].version and items[7].size==5 and items[7].url==f'{REEF}/many/00007.wav'


def test_a_bucket_goes_on_after_a_kill(moto):
    before, marks = asked(bucket, {'url':'s3://reef/many/'}, {REEF:f'{moto}/reef'}, stop=1)
    after, _ = asked(bucket, {'url':'s3://reef/many/'}, {REEF:f'{moto}/reef'}, mark=Mark(marks[-1].resume))
    assert [i.path for i in before+after]==[f'{i:05d}.wav' for i in range(1200)]


def test_odd_keys_are_listed_and_fetched(moto, tmp_path):
    items, _ = asked(bucket, {'url':'s3://reef/dives/', 'licence':'CC0-1.0'}, {REEF:f'{moto}/reef'})
    assert {i.path: i.problem.split(':')[0] for i in items}=={'a b+c &ü.wav':'', 'notes.xyz':'unknown format', 'empty.wav':'empty'}
    got = fetched(items, tmp_path, {REEF:f'{moto}/reef'})['s3://reef/dives/a b+c &ü.wav']
    assert got.sha256==sha(chirps(1)) and not got.problem and verdict(got.item)[0]


def test_a_pattern_and_a_prefix_that_ends_inside_a_name(moto):
    items, _ = asked(bucket, {'url':'s3://reef/many/0000', 'match':'*[37].wav'}, {REEF:f'{moto}/reef'})
    assert [i.path for i in items]==['00003.wav', '00007.wav']


def test_a_bucket_that_is_not_there(moto):
    with pytest.raises(ValueError, match='no bucket .nobody'): asked(bucket, {'url':'s3://nobody/x'}, {'https://nobody.s3.amazonaws.com':f'{moto}/nobody'})


def test_the_same_bucket_through_fsspec(moto, tmp_path):
    "With an endpoint of one's own, s3fs lists and copies; the keys of the environment stay there"
    query = {'url':'s3://reef/dives', 'endpoint':moto, 'login':'yes', 'licence':'CC0-1.0'}
    items, marks = asked(bucket, query)
    assert {i.path: i.problem.split(':')[0] for i in items}=={'a b+c &ü.wav':'', 'notes.xyz':'unknown format', 'empty.wav':'empty'} and marks[-1].full
    song = next(i for i in items if not i.problem)
    assert song.url=='' and song.md5==hashlib.md5(chirps(1)).hexdigest() and 'planted' not in repr(items)+repr(marks)
    (part := tmp_path/'part').write_bytes(chirps(1)[:1234])
    assert asyncio.run(fetch_file(from_line(as_line(song)), part))==sha(chirps(1)) and part.read_bytes()==chirps(1)
    part.write_bytes(b'wrong'+chirps(1)[5:100])
    with pytest.raises(ValueError, match='another MD5'): asyncio.run(fetch_file(song, part))
    assert not part.exists()


def test_many_through_fsspec_go_on(moto):
    query = {'url':'s3://reef/many', 'endpoint':moto}
    before, marks = asked(bucket, query, stop=1)
    after, _ = asked(bucket, query, mark=Mark(marks[0].resume))
    assert [i.path for i in before+after]==[f'{i:05d}.wav' for i in range(1200)]


# Buckets: what moto does not do -------------------------------------------------------------------------------------------------------------

def page(keys, more):
    rows = ''.join(f'<Contents><Key>{k}</Key><Size>9</Size><ETag>&quot;{"0"*32}&quot;</ETag></Contents>' for k in keys)
    return Reply(body=f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>{str(more).lower()}</IsTruncated>{rows}</ListBucketResult>'.encode())


def long_bucket(req, n=10_000):
    a = int(req.get('start-after', 'k-000000.wav')[2:8])
    return page([f'k-{i:06d}.wav' for i in range(a+1, min(a+1000, n)+1)], a+1000<n)


def test_a_long_bucket_is_never_in_memory_as_a_whole():
    async def go(at):
        n, last = 0, ''
        async with Session({REEF:at}) as ask:
            ask.hosts = Quick()
            async for x in bucket({'url':'s3://reef/'}, ask):
                if isinstance(x, Mark): continue
                assert x.path>last
                n, last = n+1, x.path
        return n
    with replay(long_bucket) as at:
        tracemalloc.start()
        assert asyncio.run(go(at))==10_000
        peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    assert peak<10_000_000, f'{peak:,} bytes at the most: a page of items and its XML, not ten'


@pytest.mark.parametrize('plan', [['429'], ['503', '503'], ['cut'], ['half gzip']])
def test_a_bucket_under_faults(plan):
    with replay(faulty(lambda req: long_bucket(req, 2500), plan)) as at: items, _ = asked(bucket, {'url':'s3://reef/'}, {REEF:at})
    assert [i.path for i in items]==[f'k-{i:06d}.wav' for i in range(1, 2501)]


def test_a_page_of_html_and_a_page_that_repeats_itself():
    with replay(faulty(lambda req: long_bucket(req, 9), ['html'])) as at, pytest.raises(ValueError, match='XML was expected'): asked(bucket, {'url':'s3://reef/'}, {REEF:at})
    with replay(lambda req: page(['a.wav'], True)) as at, pytest.raises(ValueError, match='same page again'): asked(bucket, {'url':'s3://reef/'}, {REEF:at})


@pytest.mark.parametrize('headers', [{}, {'Location':'https://reef.s3.eu-north-1.amazonaws.com/'}])
def test_a_bucket_in_another_region_is_asked_there(headers):
    with replay(lambda req: Reply(301, {'x-amz-bucket-region':'eu-north-1', **headers})) as old, replay(lambda req: long_bucket(req, 3)) as new:
        items, _ = asked(bucket, {'url':'s3://reef/'}, {REEF:old, 'https://reef.s3.eu-north-1.amazonaws.com':new})
    assert [i.url for i in items][0]=='https://reef.s3.eu-north-1.amazonaws.com/k-000001.wav' and len(items)==3


def test_a_bucket_that_is_not_public():
    with replay(lambda req: Reply(403, {}, b'<Error><Code>AccessDenied</Code></Error>')) as at:
        with pytest.raises(ValueError, match='login=yes'): asked(bucket, {'url':'s3://reef/'}, {REEF:at})


def test_google_lists_in_the_same_words():
    body = b'<ListBucketResult xmlns="http://doc.s3.amazonaws.com/2006-03-01"><IsTruncated>false</IsTruncated><Contents><Key>ref/a.fa</Key><Size>7</Size><ETag>"x"</ETag></Contents></ListBucketResult>'
    with replay(lambda req: Reply(body=body) if req.get('list-type')=='2' and req.get('prefix')=='ref/' else Reply(400)) as at:
        items, _ = asked(bucket, {'url':'gs://genomes/ref/'}, {'https://storage.googleapis.com':at})
    assert [(i.id, i.url, i.path, i.format) for i in items]==[('gs://genomes/ref/a.fa', 'https://storage.googleapis.com/genomes/ref/a.fa', 'a.fa', 'fasta')]


SHELF = {'a.png':b'P', 'a.png-2.wav':b'W', 'a.png.license':b'CC-BY-NC-4.0', 'b.png':b'P', 'c.png':b'P', 'c.png.license':b'SPDX-License-Identifier: MIT', 'd.png':b'P', 'd.png.license':b'x'}
SAID = {'a.png':'CC-BY-NC-4.0', 'a.png-2.wav':'CC0-1.0', 'b.png':'CC0-1.0', 'c.png':'MIT', 'd.png':'unknown'}


@pytest.mark.parametrize('n', [1, 2, 3, 4, 9])
def test_a_licence_beside_an_object_counts_wherever_the_page_ends(n):
    def app(req):
        if req.get('list-type')!='2': return Reply(body=SHELF[req.path[1:]]) if req.path[1:]!='d.png.license' else Reply(404)
        left = sorted(k for k in SHELF if k>req.get('start-after', ''))
        return page(left[:n], len(left)>n)
    with replay(app) as at:
        items, marks = asked(bucket, {'url':'s3://reef/', 'licence':'CC0-1.0'}, {REEF:at})
        assert {i.path: i.licence for i in items}==SAID and len(items)==len(SAID) and not any(i.problem for i in items)
        for k in range(1, len(marks)):
            before, some = asked(bucket, {'url':'s3://reef/', 'licence':'CC0-1.0'}, {REEF:at}, stop=k)
            after, _ = asked(bucket, {'url':'s3://reef/', 'licence':'CC0-1.0'}, {REEF:at}, mark=Mark(some[-1].resume))
            assert {i.path: i.licence for i in before+after}==SAID and len(before+after)==len(SAID), 'it goes on between a file and its licence'


def test_a_licence_beside_a_file_of_a_web_folder_and_of_another_storage():
    def app(req):
        if req.path=='/pub/': return Reply(200, {'Content-Type':'text/html'}, ''.join(f'<a href="{n}">x</a>' for n in SHELF).encode())
        return Reply(404) if req.path=='/pub/d.png.license' else Reply(body=SHELF[req.path[5:]])
    with replay(app) as at: items, _ = asked(bucket, {'url':'https://old.org/pub/', 'licence':'CC0-1.0'}, {'https://old.org':at})
    assert {i.path: i.licence for i in items}==SAID and not any(verdict(i)[0] for i in items if i.path in ('a.png', 'd.png'))
    import fsspec
    for n, data in SHELF.items(): fsspec.filesystem('memory').pipe(f'/beside/{n}', data)
    items, _ = asked(bucket, {'url':'memory://beside', 'licence':'CC0-1.0'})
    assert {i.path: i.licence for i in items}==SAID


# Web folders and disks ----------------------------------------------------------------------------------------------------------------------

TREE = {'/pub/': ['a.fa', 'x y.txt', 'sub/', 'shut/', '../', '/etc/passwd', '?C=M', 'https://evil.org/b.fa', 'sub/deep/c.fa', '%2e%2e/'], '/pub/sub/':['b.fa', '../', '/pub/']}


def web(req):
    if req.path not in TREE: return Reply(403)
    return Reply(200, {'Content-Type':'text/html'}, ''.join(f'<a href="{quote(h, safe="/:?=%.")}">{h}</a>' for h in TREE[req.path]).encode())


def test_a_web_folder_is_walked_downwards_only():
    with replay(web) as at:
        items, marks = asked(bucket, {'url':'https://old.org/pub'}, {'https://old.org':at})
        assert [(i.path, i.problem[:11]) for i in items if i.path]==[('a.fa', ''), ('x y.txt', ''), ('sub/b.fa', '')] and marks[-1].full
        assert [i.problem[:30] for i in items if not i.path]==['this folder does not open: old'] and {r.path for r in at.seen}=={'/pub/', '/pub/sub/', '/pub/shut/'}
        again, _ = asked(bucket, {'url':'https://old.org/pub'}, {'https://old.org':at}, mark=Mark(marks[0].resume))
    assert [i.path for i in again if i.path]==['sub/b.fa']


def test_a_web_folder_that_does_not_open():
    with replay(lambda req: Reply(404)) as at, pytest.raises(ValueError, match='shows no list of files'): asked(bucket, {'url':'https://old.org/pub/'}, {'https://old.org':at})


def test_a_disk(tmp_path):
    for n in ('b/2.txt', 'a/1.txt', 'c.txt', 'a.b/3.txt'): (p := tmp_path/'disk'/n).parent.mkdir(parents=True, exist_ok=True); p.write_text(n)
    (tmp_path/'secret.txt').write_text('no'); (tmp_path/'disk/link.txt').symlink_to(tmp_path/'secret.txt'); (tmp_path/'disk/a/loop').symlink_to(tmp_path/'disk')
    items, _ = asked(bucket, {'url':f'file://{tmp_path}/disk', 'licence':'CC-BY-4.0'})
    assert sorted(i.path for i in items)==['a.b/3.txt', 'a/1.txt', 'b/2.txt', 'c.txt'] and all(i.version and i.size==len(i.path) for i in items)
    part = tmp_path/'x'
    assert asyncio.run(fetch_file(items[0], part))==sha(items[0].path.encode())
    (tmp_path/'disk'/items[0].path).write_text('longer than it was listed')
    with pytest.raises(ValueError, match='list it again'): asyncio.run(fetch_file(items[0], part))
    with pytest.raises(ValueError, match='no folder'): asked(bucket, {'url':f'file://{tmp_path}/nowhere'})


def test_a_disk_speaks_for_itself(tmp_path):
    for n, data in SHELF.items(): (tmp_path/n).write_bytes(data)
    (tmp_path/'poem.txt').write_text('SPDX-FileCopyrightText: 2025 A. Lovelace\nSPDX-License-Identifier: CC-BY-ND-4.0\n')
    (tmp_path/'bad.fa.gz').write_bytes(b'no gzip'); (tmp_path/'b.png.license').symlink_to(tmp_path/'poem.txt'); os.mkfifo(tmp_path/'pipe.txt')
    items, _ = asked(bucket, {'url':f'file://{tmp_path}', 'licence':'CC0-1.0'})
    assert {i.path: i.licence for i in items if not i.problem}==SAID | {'b.png':'unknown', 'poem.txt':'CC-BY-ND-4.0'}
    assert {i.path for i in items if i.problem}=={'bad.fa.gz', 'pipe.txt'} and not any(verdict(i)[0] for i in items if i.path in ('a.png', 'b.png', 'd.png', 'poem.txt'))
    assert {i.attribution for i in items}=={'own data', '2025 A. Lovelace'} and not any(str(tmp_path) in i.about+i.url+i.title+i.attribution+i.evidence for i in items)
    given, *_ = asked(bucket, {'url':f'file://{tmp_path}', 'attribution':'the moss group'})[0]
    assert given.attribution=='the moss group'


def test_content_in_memory(tmp_path, monkeypatch):
    (tmp_path/'disk').mkdir()
    for n in ('1.txt', '22.txt', '3.txt'): (tmp_path/'disk'/n).write_text(n)
    items, _ = asked(bucket, {'url':f'file://{tmp_path}/disk'})
    (tmp_path/'disk/3.txt').unlink(); monkeypatch.setattr(shelves, 'IN_MEMORY', 5)
    async def go(): return [i async for i in shelves.fetch(items)]
    one, two, three = asyncio.run(go())
    assert (one.data, one.problem, two.data, three.data)==(b'1.txt', '', None, None) and '6 bytes are more' in two.problem and 'FileNotFound' in three.problem


def test_a_store_whose_library_is_missing(monkeypatch):
    import fsspec
    def none(*a, **k): raise ImportError('Please install adlfs')
    monkeypatch.setattr(fsspec.core, 'url_to_fs', none)
    with pytest.raises(ValueError, match='Please install adlfs.*lifelab.world'): asked(bucket, {'url':'az://reef/x', 'account':'sea'})


@pytest.mark.parametrize('query, says', [({'url':'s3://reef', 'licens':'x'}, "did you mean 'licence'"), ({'url':'reef/x'}, 'no shelf'), ({}, 'no shelf'),
    ({'url':'s3://reef', 'endpoint':'https://me:secret@x.org'}, 'user name'), ({'url':'s3://reef', 'region':'../x'}, 'no region')])
def test_shelves_that_cannot_be_right(query, says):
    with pytest.raises(ValueError, match=says) as e: asked(bucket, query)
    assert 'secret' not in str(e.value)


# The hub ----------------------------------------------------------------------------------------------------------------------------------

TABLE = b'species,eggs\nStrix aluco,4\nTroglodytes troglodytes,6\n'
COMMIT = {c: c*40 for c in 'ab'}


class Hub:
    "A hub with one data set of 25 files; its branch moves to the next commit when `moves` requests have come"
    def __init__(self, about=None, moves=None, store=''): self.about, self.moves, self.store, self.n = about or {}, moves, store, 0
    def entry(self, i):
        e = dict(type='file', path=f'data/{i:02d}.csv', oid=f'{i:040d}', size=len(TABLE))
        return e if i%2 else e | dict(size=130, lfs=dict(oid=sha(TABLE), size=len(TABLE), pointerSize=130), xetHash='0'*64)
    def __call__(self, req):
        self.n += 1
        parts = req.path.strip('/').split('/')
        if '/resolve/' in req.path: return Reply(302, {'Location':self.store+'/x'}) if self.store else ranged(req, TABLE)
        if parts[:4]!=['api', 'datasets', 'owl', 'nest']: return Reply(401, {'X-Error-Code':'RepoNotFound'}, b'{"error":"Invalid username or password."}')
        head = 'b' if self.moves is not None and self.n>self.moves else 'a'
        rev = {'main':COMMIT[head]}.get(parts[5], parts[5])
        if rev not in COMMIT.values(): return Reply(404, {'X-Error-Code':'RevisionNotFound'}, b'{"error":"Invalid rev id"}')
        if parts[4]=='revision': return Reply(body=json.dumps(dict(id='owl/nest', sha=rev, cardData={'license':'cc-by-4.0'}, gated=False, private=False) | self.about).encode())
        return self.tree(req, rev)
    def tree(self, req, rev):
        if req.get('recursive')!='true' or set(k for k,_ in req.query)-{'recursive', 'expand', 'cursor'}: return Reply(400)
        a = int(req.get('cursor', '0'))
        n = 25 if rev==COMMIT['a'] else 3
        more = {'Link':f'<{HUB}{req.path}?recursive=true&expand=false&cursor={a+10}>; rel="next"'} if a+10<n else {}
        return Reply(200, more, json.dumps([dict(type='directory', path='data', oid='d', size=0)]*(a==0)+[self.entry(i) for i in range(a, min(a+10, n))]).encode())


def nest(app, query='owl/nest', **more):
    with replay(app) as at: return asked(hub, hubs.query_of(query), {HUB:at}, **more)


FILES = [f'data/{i:02d}.csv' for i in range(25)]


def test_a_data_set_in_three_pages():
    items, marks = nest(Hub())
    assert [i.path for i in items]==FILES and len(marks)==3 and marks[-1]==Mark(since=COMMIT['a'], full=True)
    assert (items[0].sha256, items[0].size, items[1].sha256, items[1].size)==(sha(TABLE), len(TABLE), '', len(TABLE))
    assert items[0].url==f"{HUB}/datasets/owl/nest/resolve/{COMMIT['a']}/data/00.csv" and items[0].licence=='CC-BY-4.0' and verdict(items[0])[0]


@pytest.mark.parametrize('plan', [['429'], ['503', None, '503'], ['cut', None, 'half gzip']])
def test_the_hub_under_faults(plan):
    assert [i.path for i in nest(faulty(Hub(), plan))[0]]==FILES


def test_a_branch_that_moves_while_it_is_read():
    assert [i.path for i in nest(Hub(moves=1))[0]]==FILES, 'the commit that was found first is listed to its end'
    before, marks = nest(Hub(), stop=1)
    after, last = nest(Hub(moves=0), mark=Mark(marks[0].resume))
    assert [i.path for i in before+after]==FILES and last[-1].since==COMMIT['a'], 'also after a kill'


def test_refresh_of_a_data_set():
    assert nest(Hub(), mark=Mark(since=COMMIT['a']))==([], [Mark(since=COMMIT['a'])])
    items, marks = nest(Hub(moves=0), mark=Mark(since=COMMIT['a']))
    assert [i.path for i in items]==FILES[:3] and marks[-1]==Mark(since=COMMIT['b'], full=True)


@pytest.mark.parametrize('about, says', [({'gated':'auto'}, 'gated .auto.: agree'), ({'private':True}, 'private or switched off'), ({'disabled':True}, 'switched off')])
def test_data_sets_that_cannot_be_had(about, says):
    with pytest.raises(ValueError, match=says): nest(Hub(about))


@pytest.mark.parametrize('query, says', [('owl/nets', 'no public data set'), ('owl/nest@v9', "no revision 'v9'")])
def test_names_that_are_not_there(query, says):
    with pytest.raises(ValueError, match=says): nest(Hub(), query)


@pytest.mark.parametrize('link', ['https://evil.org/api?cursor=1', 'https://huggingface.co/api/datasets/other/set/tree/x?cursor=1'])
def test_a_next_page_elsewhere_is_not_followed(link):
    def app(req): return Reply(200, {'Link':f'<{link}>; rel="next"'}, b'[]') if '/tree/' in req.path else Hub()(req)
    with pytest.raises(ValueError, match='not the list we asked for'): nest(app)


@pytest.mark.parametrize('body', [b'{"error":"x"}', b'"x"', b'<html>502</html>'])
def test_a_tree_that_is_none(body):
    def app(req): return Reply(200, {}, body) if '/tree/' in req.path else Hub()(req)
    with pytest.raises(ValueError, match='gave no listing'): nest(app)


def test_a_file_comes_from_a_store_that_is_known_and_from_no_other(tmp_path):
    with replay(lambda req: ranged(req, TABLE)) as store:
        for host, fine in (('https://us.aws.cdn.hf.co', True), ('https://evil.org', False)):
            with replay(Hub(store=host)) as at:
                items, _ = asked(hub, hubs.query_of('owl/nest:data/0[01].csv'), {HUB:at})
                got = fetched(items, tmp_path/str(fine), {HUB:at, host:store}, to=STORES)
            assert len(got)==2 and all((g.sha256==sha(TABLE)) is fine and ('may not send us' in g.problem) is not fine for g in got.values())


def test_stage_two_reads_a_table_of_the_hub(tmp_path):
    (f := tmp_path/'x').write_bytes(TABLE)
    i = nest(Hub())[0][0]
    made = list(drafts(dict(item='0'*64, source='hub', path=i.path, format=i.format, title=i.title, licence=i.licence), f, profile('tiny')))
    assert {d['modality'] for d in made if 'reason' not in d}=={'table'}


def test_short_forms_of_all_examples():
    for m in (hubs, shelves):
        for text,_ in m.EXAMPLES: assert m.query_of(text)
