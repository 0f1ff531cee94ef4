"Tables and simulated runs against files that lie, break or attack; and a user's own CSV from folder to record"
import base64, io, json

import numpy as np
import pandas as pd
import pyarrow as pa, pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from lifelab.clean.clean import clean
from lifelab.clean.records import records
from lifelab.clean.simulation import simulation
from lifelab.clean.table import cell, name_and_unit, table
from lifelab.clean.unpack import Refused
from lifelab.clean.video import to_apng
from lifelab.collect.collect import collect
from lifelab.collect.simulate import document
from lifelab.core.profile import profile

CSV = dict(format='csv', path='t.csv', item='t', source='mine')

def read(data, **item): return list(table(data, {**CSV, **item}))
def whys(drafts): return [d.get('reason', '') for d in drafts]

def parquet(**columns):
    out = io.BytesIO(); pq.write_table(pa.table(columns), out)
    return out.getvalue()

@pytest.mark.parametrize('data, why', [(b'1,2\n3,4\n', 'no header'), (b'a,a\n1,2\n', 'no header'), (b'one\ntwo\n', 'no header'), (b'a,,b\n1,2,3\n', 'no header'),
    (b'\x00\x01,\x02\n'*9, 'binary'), (b'\x89PNG\r\n\x1a\n'+bytes(range(256))*9, 'binary'), (b'a,b\n"'+b'x'*200_000, None)])
def test_what_is_no_table_is_refused(data, why):
    if why is None: assert all(whys(read(data))) and read(data); return
    with pytest.raises(Refused) as e: read(data)
    assert e.value.reason==why

def test_ragged_rows_are_set_aside_and_the_others_stay():
    got = read(b'name,mass_g\nwren,9\nrobin\nowl,300,1\n\ntit,18\n,NA\n')
    assert whys(got)==['', 'ragged row', 'ragged row', '', 'empty row'] and got[3]['text'].endswith('The name is tit. The mass is 18 g.')
    assert '3 cells where the header names 2' in got[2]['detail'] and got[3]['part']==6

@pytest.mark.parametrize('code', ['utf-8', 'utf-8-sig', 'utf-16', 'cp1252'])
@pytest.mark.parametrize('mark', [',', ';', '\t', '|'])
def test_encoding_and_delimiter_are_found(code, mark):
    said = f'nom{mark}masse_g\n"mésange{mark} bleue"{mark}11\nmoineau{mark}30\n'.encode(code)
    got = read(said)
    assert [json.loads(d['row']) for d in got]==[{'nom':f'mésange{mark} bleue', 'masse_g':11}, {'nom':'moineau', 'masse_g':30}]

def test_a_formula_stays_text_and_a_cell_cannot_be_endless():
    got = read(b'name,note\nx,=HYPERLINK("http://a")\ny,'+b'z'*30_000+b'\n')
    assert json.loads(got[0]['row'])['note'].startswith('=HYPER') and whys(got)[1]=='ragged row'

@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.text(max_size=12), min_size=2, max_size=5), min_size=1, max_size=6))
def test_any_table_of_text_is_read_or_refused(cells):
    import csv
    out = io.StringIO(); csv.writer(out).writerows(cells)
    try: got = read(out.getvalue().encode('utf-8', 'replace'))
    except Refused: return
    for d in got: assert d.get('reason') or d.get('modality', 'text')=='text' or json.loads(d['row'])

@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_cells_and_names_never_fail(s):
    assert cell(s) is None or isinstance(cell(s), (int, float, str))
    assert len(name_and_unit(s))==2

def test_parquet():
    got = read(parquet(name=['owl', None], mass_g=[300., float('nan')], raw=[b'\0', b''], nest=[[1], [2]], seen=pd.to_datetime(['2020-01-02']*2)), format='parquet')
    assert json.loads(got[0]['row'])=={'name':'owl', 'mass_g':300., 'seen':'2020-01-02 00:00:00'} and json.loads(got[1]['row'])=={'seen':'2020-01-02 00:00:00'}
    for bad in (b'PAR1', parquet(a=[1])[:-9], b'x'*99, parquet(raw=[b'\0'])):
        with pytest.raises(Refused): read(bad, format='parquet')

SBML = b'<?xml version="1.0" encoding="UTF-8"?><sbml xmlns="http://www.sbml.org/sbml/level3/version1/core" level="3" version="1"><model id="m">%s</model></sbml>'

@pytest.mark.parametrize('data', [b'', b'<sbml/>', SBML[:80], b'<html><body/></html>', b'{"a": 1}', SBML.replace(b'<sbml', b'<!DOCTYPE s [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><sbml')%b'',
    b'<!DOCTYPE s SYSTEM "file:///etc/passwd"><sbml xmlns="http://www.sbml.org/sbml/level3/version1/core"/>'])
def test_what_is_no_sbml_is_refused(data):
    with pytest.raises(Refused): read(data, format='sbml')

def test_sbml_that_names_what_is_not_there_is_told_as_it_stands():
    odd = SBML%(b'<listOfReactions><reaction id="R_x" reversible="true" fast="false"><listOfReactants><speciesReference species="nowhere" stoichiometry="2" constant="true"/>'
        b'</listOfReactants></reaction></listOfReactions>')
    assert [d['text'] for d in read(odd, format='sbml')]==['The reaction x lets 2 nowhere in and out; it is reversible.']
    assert read(SBML%b'', format='sbml')==[]

def test_planets_without_figures():
    assert whys(read(b'<systems><system><name>s</name><planet><name>p</name><mass upperlimit="3"/></planet></system></systems>', format='oec-table'))==['empty row']
    assert read(b'<systems/>', format='oec-table')==[]
    with pytest.raises(Refused): read(b'<systems>', format='oec-table')

def changed(**fields): return json.dumps({**json.loads(document('life', 0)), **fields}).encode()

@pytest.mark.parametrize('data', [b'', b'[]', b'"x"', b'['*100_000, changed(log={'step':[0], 'x':[1, 2]}), changed(log={'step':1}), changed(frames='!'), changed(frames=base64.b64encode(b'PNG').decode()),
    changed(frame_steps=[0]), changed(frame_steps=[]), changed(params=1)])
def test_what_is_no_run_is_refused(data):
    with pytest.raises(Refused): list(simulation(data, dict(item='x'), profile('tiny'), to_apng))

def test_a_run_of_nothing_is_told_of():
    black = io.BytesIO()
    from PIL import Image
    Image.fromarray(np.zeros((64, 512, 3), 'u1')).save(black, 'PNG')
    got = list(simulation(changed(frames=base64.b64encode(black.getvalue()).decode()), dict(item='x'), profile('tiny'), to_apng))
    assert whys(got).count('blank tile')==4 and whys(got).count('blank clip')==1 and got[0]['text']

def test_ones_own_tables_from_folder_to_record(tmp_path):
    mine, lab = tmp_path/'mine', tmp_path/'lab'
    mine.mkdir()
    (mine/'birds.csv').write_text('name,wing_mm\nrobin,72.5\nwren,48\nowl,1,2\n')
    (mine/'plants.tsv').write_text('species\theight_cm\nmoss\t3\n')
    (mine/'sea.parquet').write_bytes(parquet(organism=['crab'], depth_m=[12]))
    (mine/'notes.csv').write_text('title,text\nMoss,Moss is a small plant without roots that drinks through its leaves.\n')
    collect(lab, 'tiny', mine, 'CC-BY-4.0')
    report = clean(lab, 'tiny')
    rows = {r['title']: r for r in records(lab, 'table')}
    assert sorted(rows)==['birds, robin', 'birds, wren', 'plants, moss', 'sea, crab'] and report.counts['dropped']=={'ragged row':1}
    assert rows['sea, crab']['text']=='In the table sea, crab: The organism is crab. The depth is 12 m.' and rows['sea, crab']['licence']=='CC-BY-4.0'
    assert len({r['cluster'] for r in rows.values()})==4 and all(r['train'] and not r['simulated'] for r in rows.values())
    assert [r['title'] for r in records(lab, 'text')]==['Moss']
