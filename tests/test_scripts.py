"""The page of short scripts: each cell is a program that stands alone and does what its prose says, in a folder with a tiny lab."""
import json, re, shutil, sys

import pytest

from conftest import ROOT, sh

def scripts():
    "Heading → source of the cell below it"
    out, title = {}, ''
    for c in json.loads((ROOT/'nbs/95_scripts.ipynb').read_text())['cells']:
        source = ''.join(c['source'])
        if c['cell_type']=='markdown' and (m := re.search(r'^## (.+)$', source, re.M)): title = m[1]
        if c['cell_type']=='code': assert title not in out, f'{title}: one cell each'; out[title] = source
    return out

SAYS = {'A genome into records':r'first, bases 1–20,000 of 45,000 · 20000 bases · ACGT', 'What may be trained on':r'CC-BY-NC-4.0 +keep aside +forbids commercial use',
    'Near-duplicates in a folder':r'^a\.txt is nearly c\.txt$', 'Records of one kind, for another program':r'[1-9]\d* records, such as .+ · .+ · .+',
    'A tokenizer of your own':r"\['The', 'Ġcell'.* \d\d tokens for 180 bases", 'A picture as codes, and back':r'^64 codes, [1-9]\d\.\d dB$',
    'A sound as codes, and back':r'second \d+\.0 to .* · \d{2,3} codes, \d+\.\d dB away', 'Life, simulated':r'\.#\.[\s\S]+Game of Life',
    'The batch of a step':r"^(['\"].+\n){4}", 'An answer and what it rests on':r"' · .+ · CC-BY-SA-[34]\.0 · .*Wikipedia"}

def test_there_are_ten():
    assert len(scripts())==10 and set(scripts())==set(SAYS)

@pytest.fixture(scope='module')
def folder(tiny, tmp_path_factory):
    "A copy of the finished tiny run, with a genome and some notes of one's own"
    work = tmp_path_factory.mktemp('scripts')
    shutil.copytree(tiny[0]/'lab', work/'lab')
    (work/'genome.fna').write_text('>first\n'+'ACGTTGCAAT'*4500+'\n>second\n'+'GATTACA'*20+'\n')
    (work/'notes').mkdir(exist_ok=True)
    moss = ' '.join(f'Moss number {i} grows on the north side of stone {i*7%13} and drinks the fog of morning {i}.' for i in range(20))
    for name,text in dict(a=moss, b=moss[::-1], c=moss.replace('fog', 'mist', 1)).items(): (work/f'notes/{name}.txt').write_text(text)
    return work

@pytest.mark.parametrize('title', SAYS)
def test_a_script_does_what_its_prose_says(title, folder):
    (folder/'script.py').write_text(scripts()[title])
    done = sh(sys.executable, 'script.py', cwd=folder, PYTHONPATH=ROOT)
    assert done.returncode==0, done.stderr[-1500:]
    assert re.search(SAYS[title], done.stdout, re.M), done.stdout
