"""Faults of a built site: links, anchors and pictures that lead nowhere, and anything a page would ask of another host. `python tools/links.py _docs`"""
import re, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ASKS = {('script', 'src'), ('img', 'src'), ('link', 'href'), ('iframe', 'src'), ('audio', 'src'), ('video', 'src'), ('source', 'src'), ('object', 'data'),
    ('embed', 'src'), ('video', 'poster'), ('image', 'href'), ('use', 'href')}

class Page(HTMLParser):
    "What a page names: its anchors, its links, and what it loads"
    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.asks, self.inside, self.code = set(), [], [], '', []
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        d = dict(attrs)
        self.inside = tag if tag in ('script', 'style') else ''
        self.ids |= {d[k] for k in ('id', 'name') if d.get(k)}
        if tag=='a' and d.get('href'): self.links.append(d['href'])
        for k,v in d.items():
            if v and (tag, k) in ASKS and not (tag=='link' and d.get('rel') in ('canonical', 'author', 'license', 'next', 'prev')): self.asks.append(v)
            if v and k=='srcset': self.asks += [s.split()[0] for s in v.split(',') if s.strip()]
            if v and k=='style': self.asks += css(v)
    def handle_endtag(self, tag): self.inside = ''
    def handle_data(self, data):
        if self.inside=='style': self.asks += css(data)
        if self.inside=='script': self.asks += foreign(data)

def css(text): return [u for u in re.findall(r'url\(\s*["\']?([^"\')]+)', text)+re.findall(r'@import\s+["\']([^"\']+)', text) if not u.startswith('data:')]

def foreign(text):
    "What a script imports, fetches or puts in place from another host"
    return re.findall(r'(?:import|from|fetch\(|importScripts\(|\.src\s*=|new Worker\()\s*\(?["\'`](https?://[^"\'`]+)', text)

def faults(site, partly=False):
    "A line for each fault, in order; with `partly`, links to pages that were not built are let be"
    site = Path(site).resolve()
    pages = {p: Page(p.read_text(encoding='utf-8')) for p in sorted(site.rglob('*.html'))}
    out = []
    for p,page in pages.items():
        where = p.relative_to(site)
        for kind,url in [('link', u) for u in page.links]+[('asset', u) for u in page.asks]:
            u = urlsplit(url)
            if u.scheme in ('http', 'https') or u.netloc:
                if kind=='asset': out.append(f'{where}: asks another host for {url}')
                continue
            if u.scheme: continue
            to = (p.parent/unquote(u.path)).resolve() if u.path else p
            if to.is_dir(): to /= 'index.html'
            if site not in to.parents: out.append(f'{where}: {url} leads out of the site')
            elif not to.exists():
                if not (partly and kind=='link' and to.suffix=='.html'): out.append(f'{where}: {url} leads nowhere')
            elif u.fragment and kind=='link' and to in pages and unquote(u.fragment) not in pages[to].ids: out.append(f'{where}: {url} has no such anchor')
    for f in sorted(site.rglob('*.css')):
        for u in css(f.read_text(encoding='utf-8')):
            if re.match(r'(https?:)?//', u): out.append(f'{f.relative_to(site)}: asks another host for {u}')
            elif not u.startswith('#') and not (f.parent/unquote(urlsplit(u).path)).exists(): out.append(f'{f.relative_to(site)}: {u} leads nowhere')
    for f in sorted(p for p in site.rglob('*.js') if 'site_libs' not in p.parts or p.name=='smalldocs.js'):
        out += [f'{f.relative_to(site)}: asks another host for {u}' for u in foreign(f.read_text(encoding='utf-8'))]
    return list(dict.fromkeys(out))

if __name__ == '__main__':
    found = faults(sys.argv[1])
    print('\n'.join(found) or 'no faults')
    sys.exit(bool(found))
