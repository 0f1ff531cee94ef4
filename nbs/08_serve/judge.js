// The judging page. Everything that comes from the server is put in as text, never as HTML: an answer may hold anything.
'use strict';
const $ = id => document.getElementById(id);
const tell = text => { $('message').textContent = text; };
const state = { rater:'', key:'', rubric:{}, items:[], done:{}, at:0, row:0, busy:false };
const store = { get: k => { try { return sessionStorage.getItem(k) || ''; } catch { return ''; } }, set: (k, v) => { try { sessionStorage.setItem(k, v); } catch { } } };

function node(tag, text, more = {}) {
  const n = document.createElement(tag);
  if (text) n.textContent = text;
  return Object.assign(n, more);
}

async function call(path, body) {
  const headers = state.key ? { Authorization: `Bearer ${state.key}` } : {};
  if (body) headers['Content-Type'] = 'application/json';
  const r = await fetch(`judge/api/${path}`, { method: body ? 'POST' : 'GET', headers, body: body && JSON.stringify(body), cache: 'no-store', credentials: 'omit' });
  const said = await r.json().catch(() => ({}));
  if (r.ok) return said;
  throw new Error(said.error?.message || said.detail || `The server answered ${r.status}.`);
}

function show(id) { for (const s of ['start', 'judge', 'end']) $(s).hidden = s !== id; $('progress').hidden = id === 'start'; }

function choices(name, label, options) { // a row of buttons: [value, text]
  const row = node('div', '', { className: 'row', role: 'radiogroup' });
  row.dataset.name = name;
  row.setAttribute('aria-label', label);
  if (name !== 'prefer') row.append(node('b', name.startsWith('left') ? 'A' : 'B'));
  for (const [value, text] of options) {
    const box = node('label'), input = node('input', '', { type: 'radio', name, value });
    input.addEventListener('change', () => { mark(rows().indexOf(row)); ready(); });
    box.append(input, node('span', text));
    row.append(box);
  }
  row.addEventListener('click', () => mark(rows().indexOf(row)));
  return row;
}

function build() {
  const form = $('grades');
  form.replaceChildren();
  const set = (title, ask, ...some) => {
    const f = node('fieldset'), legend = node('legend', title + ' '), sides = node('div', '', { className: some.length > 1 ? 'sides' : 'sides one' });
    if (ask) legend.append(node('small', ask));
    sides.append(...some);
    f.append(legend, sides);
    form.append(f);
  };
  const grade = [1, 2, 3, 4, 5].map(i => [i, String(i)]);
  for (const [d, ask] of Object.entries(state.rubric))
    set(d[0].toUpperCase() + d.slice(1), ask, choices(`left.${d}`, `${d} of answer A, 1 to 5`, grade), choices(`right.${d}`, `${d} of answer B, 1 to 5`, grade));
  const prefer = choices('prefer', 'which answer you prefer', [['left', 'A'], ['tie', 'no difference'], ['right', 'B']]);
  set('On the whole, which do you prefer?', '', prefer);
}

const rows = () => [...$('grades').querySelectorAll('.row')];
const value = row => row.querySelector('input:checked')?.value;
const complete = () => rows().every(value);
function ready() { $('save').disabled = state.busy || !complete(); }
function mark(i) {
  state.row = Math.max(0, Math.min(i, rows().length - 1));
  rows().forEach((r, k) => r.classList.toggle('now', k === state.row));
}
function choose(row, v) { const i = [...row.querySelectorAll('input')].find(x => x.value === String(v)); if (i) { i.checked = true; ready(); } return Boolean(i); }

function progress() {
  const n = state.items.filter(i => state.done[i.item]).length, all = state.items.length;
  $('count').textContent = `${n} of ${all} judged`;
  $('filled').style.width = `${all ? 100 * n / all : 0}%`;
  const bar = $('filled').parentElement;
  bar.setAttribute('aria-valuemax', all); bar.setAttribute('aria-valuenow', n);
}

function open(at) {
  state.at = at;
  progress();
  if (at >= state.items.length) { show('end'); return; }
  const it = state.items[at], old = state.done[it.item];
  $('prompt').textContent = it.prompt; $('left').textContent = it.left; $('right').textContent = it.right;
  build();
  if (old) for (const r of rows()) {
    const [side, d] = r.dataset.name.split('.');
    choose(r, d ? old[side][d] : old.prefer);
  }
  $('back').disabled = at === 0;
  show('judge'); mark(0); ready(); scrollTo(0, 0);
}

async function save() {
  if (state.busy || !complete()) return;
  const it = state.items[state.at], said = { rater: state.rater, item: it.item, by: 'person', left: {}, right: {} };
  for (const r of rows()) { const [side, d] = r.dataset.name.split('.'); if (d) said[side][d] = Number(value(r)); else said.prefer = value(r); }
  state.busy = true; ready();
  try { await call('rate', said); state.done[it.item] = said; tell(''); state.busy = false; open(state.at + 1); }
  catch (e) { tell(`Not saved: ${e.message} Your grades are still here; try again.`); }
  finally { state.busy = false; ready(); }
}

async function begin() {
  const got = await call(`sheet?rater=${encodeURIComponent(state.rater)}`);
  Object.assign(state, { rubric: got.rubric, items: got.items, done: got.done });
  store.set('rater', state.rater); store.set('key', state.key);
  if (!got.items.length) { tell('There is nothing to judge yet: run stage 7, evaluate, first.'); return; }
  const next = state.items.findIndex(i => !state.done[i.item]);
  tell(Object.keys(got.done).length && next >= 0 ? `Welcome back, ${state.rater}: you go on where you stopped.` : '');
  open(next < 0 ? state.items.length : next);
}

$('start').addEventListener('submit', e => {
  e.preventDefault();
  state.rater = $('rater').value.trim(); state.key = $('key').value.trim();
  begin().catch(x => tell(x.message));
});
$('save').addEventListener('click', save);
$('back').addEventListener('click', () => open(Math.max(0, state.at - 1)));
$('again').addEventListener('click', () => open(0));
$('grades').addEventListener('submit', e => e.preventDefault());
document.addEventListener('keydown', e => {
  if ($('judge').hidden || e.ctrlKey || e.metaKey || e.altKey) return;
  const row = rows()[state.row], all = [...row.querySelectorAll('input')], at = all.findIndex(i => i.checked);
  if (/^[1-5]$/.test(e.key) && row.dataset.name !== 'prefer') { choose(row, e.key); mark(state.row + 1); }
  else if (e.key === 'ArrowDown') mark(state.row + 1);
  else if (e.key === 'ArrowUp') mark(state.row - 1);
  else if (e.key === 'ArrowRight' || e.key === 'ArrowLeft') {
    const step = e.key === 'ArrowRight' ? 1 : -1, to = at < 0 ? (step > 0 ? 0 : all.length - 1) : at + step;
    if (all[to]) { all[to].checked = true; ready(); }
  }
  else if (e.key === 'Enter' && complete() && e.target.tagName !== 'BUTTON') save();
  else return;
  e.preventDefault();
  rows()[state.row].scrollIntoView({ block: 'nearest' });
});

state.rater = store.get('rater'); state.key = store.get('key');
show('start');
if (state.rater) { $('rater').value = state.rater; $('key').value = state.key; begin().catch(x => { show('start'); tell(x.message); }); }
