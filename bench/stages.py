"""Seconds, peak memory and throughput of each stage, from a run made now in a folder of its own.

    python bench/stages.py [--profile tiny] [--lab FOLDER]

MB is what the stage reads: the files of the stages before it as their stage.json lists them, and the raw files for collect. An existing lab is measured
anew stage by stage. `xz -9` and sha256 of the same bytes stand beside as peers that everyone knows.
"""
import argparse, hashlib, json, lzma, os, tempfile, time
from pathlib import Path

from lifelab.core.lab import stage_folder
from lifelab.core.pipeline import constants, run

def read_bytes(lab, stage):
    "Bytes of the files that a stage reads"
    if not (reads := constants(stage).get('READS', ())): reads = (stage,)
    listed = {stage_folder(lab, r)/f for r in reads for f in json.loads((stage_folder(lab, r)/'stage.json').read_text())['files']}
    return sum(f.stat().st_size for f in listed if f.exists())

def peers(lab, most=4_000_000):
    "MB/s of sha256 and xz -9 on some of the raw bytes"
    data = b''.join(f.read_bytes() for f in sorted(stage_folder(lab, 'collect').glob('raw/*/*'))[:40])[:most]
    def rate(f):
        t = time.perf_counter(); f(data)
        return len(data)/1e6/(time.perf_counter()-t)
    return {'sha256':rate(hashlib.sha256), 'xz -9':rate(lambda d: lzma.compress(d, preset=9))}

def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--profile', default='tiny')
    ap.add_argument('--lab', help='a lab to measure; a fresh one when left out')
    a = ap.parse_args()
    lab = Path(a.lab or tempfile.mkdtemp()+'/lab')
    rows = run(lab, dict(profile=a.profile), force=bool(a.lab))
    print(f"\nprofile {a.profile}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n{'stage':>10} {'seconds':>8} {'peak MB':>8} {'MB read':>8} {'MB/s':>7}  tokens/s")
    for r in rows:
        mb, note = read_bytes(lab, r['stage'])/1e6, json.loads((stage_folder(lab, r['stage'])/'stage.json').read_text())['note'] or {}
        toks = f"{note['tokens']/r['seconds']:>8,.0f}" if r['stage']=='pretrain' and 'tokens' in note else ''
        print(f"{r['stage']:>10} {r['seconds']:>8.1f} {r['peak MB']:>8,} {mb:>8.1f} {mb/max(r['seconds'], .1):>7.2f}  {toks}")
    print('beside it, one core: '+', '.join(f'{k} {v:,.1f} MB/s' for k,v in peers(lab).items()))

if __name__=='__main__': main()
