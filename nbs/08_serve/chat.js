// The chat page. It speaks to /v1 of its own server and to nobody else; whatever it shows is set as text, never as HTML.
'use strict';
const $ = id => document.getElementById(id);
const EXAMPLES = ['What is life?', 'Are viruses alive?', 'How does a cell divide?', 'Could life exist without DNA?'];
const MOST = 6e6; // Bytes of a file, as on the server
let key = '', model = '', talk = [], files = [], running = null;

function make(tag, words, props = {}) {
  const e = document.createElement(tag);
  if (words) e.textContent = words;
  return Object.assign(e, props);
}

// ---- the key stays in this tab; a key after # in the address is taken and removed from it ----

function keep(k) {
  key = k.trim();
  try { sessionStorage.setItem('lifelab-key', key); } catch { /* a browser without storage asks again */ }
}
function door(open, why) {
  $('door').hidden = !open;
  $('keys').setAttribute('aria-expanded', String(open));
  if (why) say(why);
  if (open) $('key').focus();
}
async function enter() {
  if (!key) return door(true);
  try {
    const r = await api('/v1/models');
    model = r.data[0].id;
    $('model').textContent = model;
    door(false);
    $('question').focus();
  } catch (e) {
    if (e.status === 401) { keep(''); door(true); }
    fail($('talk').appendChild(make('li')), e);
  }
}

// ---- the server ----

const head = () => ({'Authorization': `Bearer ${key}`, 'Content-Type': 'application/json'});
async function checked(r) {
  if (r.ok) return r;
  let told = {};
  try { told = (await r.json()).error || {}; } catch { /* not ours: the status must do */ }
  throw Object.assign(new Error(told.message || `The server answered ${r.status}.`), {status: r.status, code: told.code});
}
async function api(path, body) {
  const r = await fetch(path, body ? {method: 'POST', headers: head(), body: JSON.stringify(body)} : {headers: head()});
  return (await checked(r)).json();
}
async function* events(r) { // The JSON of each server-sent event
  const read = r.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let held = ''; ;) {
    const {value, done} = await read.read();
    if (done) return;
    const lines = (held + value).split('\n\n');
    held = lines.pop();
    for (const l of lines) if (l.startsWith('data: ') && l !== 'data: [DONE]') yield JSON.parse(l.slice(6));
  }
}

// ---- what is shown ----

const say = words => { $('status').textContent = words; };
function fail(li, e) {
  const words = e instanceof TypeError ? 'The server cannot be reached. Is it still running?' : e.message;
  li.append(make('p', words, {className: 'wrong'}));
  say(words);
}
function link(url) { // Only to the web, in a tab that cannot reach back
  let u;
  try { u = new URL(url); } catch { return null; }
  return ['http:', 'https:'].includes(u.protocol) ? make('a', u.host, {href: u.href, target: '_blank', rel: 'noopener noreferrer'}) : null;
}
function sources(list) {
  const d = make('details');
  d.append(make('summary', `${list.length} ${list.length === 1 ? 'passage stands' : 'passages stand'} word for word in the training text`));
  const ul = d.appendChild(make('ul'));
  for (const s of list) {
    const li = ul.appendChild(make('li'));
    li.append(make('q', s.span), make('br'), [s.title || s.record, s.source, s.licence, s.attribution].filter(Boolean).join(' · '));
    const a = s.url && link(s.url);
    if (a) li.append(' · ', a);
  }
  return d;
}
function media(li, m) {
  for (const i of m.images || []) if (i.image_url.url.startsWith('data:image/png;base64,')) {
    li.append(make('img', '', {src: i.image_url.url, alt: 'Picture made by the model', className: 'made'}));
  }
  if (m.audio) li.append(make('audio', '', {src: `data:audio/wav;base64,${m.audio.data}`, controls: true, ariaLabel: 'Sound made by the model'}));
}
function judge(li, id) {
  const bar = li.appendChild(make('div', '', {className: 'judge'}));
  const up = make('button', 'Good', {type: 'button', className: 'quiet', ariaPressed: 'false'}), down = make('button', 'Poor', {type: 'button', className: 'quiet', ariaPressed: 'false'});
  up.title = 'This answer is good'; down.title = 'This answer is poor';
  bar.append(up, down);
  const rate = (rating, button) => async () => {
    if (bar.querySelector('form')) bar.querySelector('form').remove();
    for (const b of [up, down]) b.ariaPressed = String(b === button);
    bar.append(comment(id, rating, bar));
    bar.querySelector('textarea').focus();
  };
  up.onclick = rate(1, up); down.onclick = rate(-1, down);
}
function comment(id, rating, bar) {
  const f = make('form', '', {className: 'say'}), name = `c-${id}`;
  const words = make('textarea', '', {id: name, rows: 2, maxLength: 2000}), yes = make('input', '', {type: 'checkbox'});
  const agree = make('label'), row = make('div', '', {className: 'row'}), note = make('span', '', {className: 'small'});
  agree.append(yes, ' Question and answer may be kept for training, under CC0');
  row.append(make('button', 'Send'), note);
  f.append(make('label', 'What should be different? (a comment is kept)', {htmlFor: name}), words, agree, row);
  f.onsubmit = async e => {
    e.preventDefault();
    try {
      await api('/v1/feedback', {id, rating, comment: words.value, consent: yes.checked});
      f.replaceWith(make('span', 'Thank you: kept.', {className: 'small'}));
      say('Your judgement is kept.');
      for (const b of bar.querySelectorAll('button')) b.disabled = true;
    } catch (err) { fail(f, err); }
  };
  return f;
}

// ---- files: a picture, a sound or sequences ----

function kind(f) {
  if (/^image\//.test(f.type)) return 'image';
  if (/^audio\//.test(f.type) || /\.(wav|mp3|ogg|flac)$/i.test(f.name)) return 'audio';
  return /\.(fa|fasta|faa|fna|ffn|txt)$/i.test(f.name) ? 'file' : '';
}
function take(f) {
  const k = kind(f);
  if (!k) return told(`${f.name} is no picture, sound or FASTA file.`);
  if (f.size > MOST) return told(`${f.name} has ${(f.size / 1e6).toFixed(1)} MB; at most ${MOST / 1e6} MB can be sent.`);
  const r = new FileReader();
  r.onload = () => { files.push({kind: k, name: f.name, type: f.type, data: r.result.slice(r.result.indexOf(',') + 1)}); showFiles(); say(`${f.name} is added.`); };
  r.onerror = () => told(`${f.name} cannot be read.`);
  r.readAsDataURL(f);
}
function told(words) {
  $('files').append(make('p', words, {className: 'wrong'}));
}
function preview(f) {
  const url = `data:${f.type || 'application/octet-stream'};base64,${f.data}`;
  if (f.kind === 'image') return make('img', '', {src: url, alt: f.name});
  return f.kind === 'audio' ? make('audio', '', {src: url, controls: true, ariaLabel: f.name}) : make('span', f.name);
}
function showFiles() {
  $('files').replaceChildren(...files.map(f => {
    const d = make('div', '', {className: 'file'}), gone = make('button', 'Remove', {type: 'button', className: 'quiet', ariaLabel: `Remove ${f.name}`});
    gone.onclick = () => { files = files.filter(g => g !== f); showFiles(); $('question').focus(); };
    d.append(preview(f), ...(f.kind === 'image' ? [make('span', f.name)] : []), gone);
    return d;
  }));
}
function part(f) { // As OpenAI's clients send it
  if (f.kind === 'image') return {type: 'image_url', image_url: {url: `data:${f.type};base64,${f.data}`}};
  if (f.kind === 'audio') return {type: 'input_audio', input_audio: {data: f.data, format: f.name.split('.').pop().toLowerCase()}};
  return {type: 'file', file: {filename: f.name, file_data: `data:text/plain;base64,${f.data}`}};
}

// ---- a question and its answer ----

async function answer(messages, want, li, p) {
  const r = await checked(await fetch('/v1/chat/completions', {method: 'POST', headers: head(), signal: running.signal,
    body: JSON.stringify({model, messages, stream: true, modalities: [want], frequency_penalty: .5})}));
  let id = '', last = {}, finish = '';
  for await (const e of events(r)) {
    if (e.error) throw new Error(e.error.message);
    const c = e.choices[0];
    if (!c) continue;
    id = e.id;
    if (c.delta.content) { p.textContent += c.delta.content; down(); }
    if (c.finish_reason) [last, finish] = [c.delta, c.finish_reason];
  }
  media(li, last);
  if (!p.textContent.trim() && !last.images && !last.audio) li.append(make('p', 'The model had nothing to say.', {className: 'note'}));
  if (finish === 'length') li.append(make('p', 'The answer was cut at its longest.', {className: 'note'}));
  for (const rule of last.policy || []) if (rule.act !== 'refuse') li.append(make('p', rule.why, {className: 'note'}));
  if (last.sources && last.sources.length) li.append(sources(last.sources));
  else if (finish !== 'content_filter' && want === 'text') li.append(make('p', 'No longer passage of this answer stands word for word in the training text.', {className: 'note'}));
  if (id) judge(li, id);
  say('The answer is there.');
}
function down() { window.scrollTo(0, document.body.scrollHeight); }

async function ask(words) {
  if (running || !(words.trim() || files.length)) return;
  if (!key) return door(true, 'A key is needed first.');
  const want = $('want').value, sent = files, content = sent.length ? [...sent.map(part), {type: 'text', text: words}] : words;
  files = []; showFiles(); $('question').value = ''; grow(); $('empty').hidden = true;
  const mine = $('talk').appendChild(make('li', '', {className: 'asked'}));
  mine.append(...sent.map(preview), make('p', words, {className: 'text'}));
  const li = $('talk').appendChild(make('li', '', {className: want === 'dna' || want === 'protein' ? 'letters' : ''}));
  const p = li.appendChild(make('p', '', {className: 'text waits'}));
  down(); busy(true);
  try {
    try { await answer([...talk, {role: 'user', content}], want, li, p); }
    catch (e) { // A small model reads little at once: without the earlier turns it may fit
      if (e.code !== 'context_length_exceeded' || !talk.length) throw e;
      talk = [];
      await answer([{role: 'user', content}], want, li, p);
      li.append(make('p', 'The earlier turns were left out: the model reads too little at once to hold them.', {className: 'note'}));
    }
    talk.push({role: 'user', content: words}, {role: 'assistant', content: p.textContent});
  } catch (e) {
    if (e.name === 'AbortError') li.append(make('p', 'Stopped.', {className: 'note'}));
    else { fail(li, e); if (e.status === 401) { keep(''); door(true); } if (!$('question').value) { $('question').value = words; files = sent; showFiles(); grow(); } }
  }
  p.classList.remove('waits');
  busy(false); down();
}
function busy(on) {
  running = on ? new AbortController() : null;
  $('stop').hidden = !on; $('send').hidden = on;
  $('talk').setAttribute('aria-busy', String(on));
  if (on) say('The model is writing.');
  else $('question').focus();
}
function grow() { const q = $('question'); q.rows = Math.min(8, Math.max(1, q.value.split('\n').length)); }
function fresh() {
  if (running) running.abort();
  talk = []; files = []; showFiles(); $('talk').replaceChildren(); $('empty').hidden = false; say('A new conversation.'); $('question').focus();
}

// ---- hands and keys ----

$('ask').onsubmit = e => { e.preventDefault(); ask($('question').value); };
$('question').oninput = grow;
$('question').onkeydown = e => { if (e.key === 'Enter' && !e.shiftKey && !e.isComposing) { e.preventDefault(); ask($('question').value); } };
document.addEventListener('keydown', e => { if (e.key === 'Escape' && running) running.abort(); });
$('stop').onclick = () => running && running.abort();
$('fresh').onclick = fresh;
$('keys').onclick = () => door($('door').hidden);
$('door').onsubmit = e => { e.preventDefault(); keep($('key').value); $('key').value = ''; enter(); };
$('add').onclick = () => $('file').click();
$('file').tabIndex = -1;
$('file').onchange = () => { [...$('file').files].forEach(take); $('file').value = ''; };
$('question').onpaste = e => { const f = [...e.clipboardData.files]; if (f.length) { e.preventDefault(); f.forEach(take); } };
document.addEventListener('dragover', e => { e.preventDefault(); $('ask').classList.add('over'); });
document.addEventListener('dragleave', () => $('ask').classList.remove('over'));
document.addEventListener('drop', e => { e.preventDefault(); $('ask').classList.remove('over'); [...e.dataTransfer.files].forEach(take); });
for (const q of EXAMPLES) {
  const b = make('button', q, {type: 'button'});
  b.onclick = () => ask(q);
  $('examples').appendChild(make('li')).append(b);
}
if (/^#ll-/.test(location.hash)) { keep(location.hash.slice(1)); history.replaceState(null, '', location.pathname); }
else try { key = sessionStorage.getItem('lifelab-key') || ''; } catch { /* no storage */ }
enter();
