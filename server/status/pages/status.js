'use strict';
// Draws /status.json and /jobs/TENANT/ID.json. Text only ever becomes text
// nodes and attributes; nothing is parsed as HTML.

const EVERY_MS = 2000;
const SLOWEST_MS = 30000;
const ANSWER_MS = 10000;
const SVG = 'http://www.w3.org/2000/svg';
const ENDED = ['SUCCEEDED', 'FAILED', 'CANCELLED'];
const $ = (id) => document.getElementById(id);

// ---- small things ---------------------------------------------------------

function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ''));
  return element;
}

function draw(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

const number = (value, digits = 5) =>
  typeof value === 'number' && isFinite(value) ? String(Number(value.toPrecision(digits))) : 'n/a';

function bytes(value) {
  if (!(value > 0)) return '0 B';
  const units = ['B', 'kB', 'MB', 'GB', 'TB', 'PB'];
  let unit = 0;
  while (value >= 1000 && unit + 1 < units.length) { value /= 1000; ++unit; }
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit]}`;
}

function seconds(value) {
  if (!(value >= 0)) return '';
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 100) return `${Math.round(value)} s`;
  const whole = Math.round(value);
  const two = (n) => String(n).padStart(2, '0');
  if (whole < 3600) return `${Math.floor(whole / 60)}m ${two(whole % 60)}s`;
  if (whole < 172800) return `${Math.floor(whole / 3600)}h ${two(Math.floor(whole / 60) % 60)}m`;
  return `${Math.floor(whole / 86400)} d`;
}

// Ages are told by the server's clock, not by this machine's.
const between = (from, to) => (from && to ? seconds(Math.max(0, (Date.parse(to) - Date.parse(from)) / 1000)) : '');

// A recipe's name begins with its method's, but for restore, whose recipes are another's.
const methodName = ({ method, recipe }) =>
  (!recipe ? method : recipe.startsWith(method) ? recipe : `${method} ${recipe}`);

// "tesseraq-plus 2-bit g64", "ptq161 +lora".
function methodText(job) {
  const words = [methodName(job)];
  const { bits, group_size: group } = job.grid || {};
  if (bits) words.push(`${bits}-bit`);
  if (group) words.push(group > 0 ? `g${group}` : 'per channel');
  if (job.preprocessing) words.push(`+${job.preprocessing}`);
  return words.join(' ');
}

const stateText = (word) => make('span', { class: `state ${word.replace(/[^A-Za-z]/g, '')}` }, word);

function table(columns, rows, empty) {
  if (rows.length === 0) return make('p', { class: 'empty' }, empty);
  const head = make('tr', {}, ...columns.map((c) => make('th', { class: c.css || '' }, c.label)));
  const body = rows.map((row) =>
    make('tr', {}, ...columns.map((c) => make('td', { class: c.css || '', 'data-label': c.label }, c.cell(row)))));
  return make('table', {}, make('thead', {}, head), make('tbody', {}, ...body));
}

function fields(pairs) {
  const list = make('dl', {});
  for (const [name, value] of pairs) {
    if (value !== '' && value !== undefined && value !== null) list.append(make('dt', {}, name), make('dd', {}, value));
  }
  return list;
}

function tiles(into, pairs) {
  redraw(into, ...pairs.filter(([value]) => value !== '').map(([value, label]) =>
    make('div', {}, make('b', {}, value), make('span', {}, label))));
}

// Makes `old` equal to `fresh` where they differ and nowhere else: what is selected, focused or
// being pressed stays.
function morph(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  const [mine, theirs] = [[...old.childNodes], [...fresh.childNodes]];
  if (old.nodeName !== fresh.nodeName || old.nodeType !== Node.ELEMENT_NODE || mine.length !== theirs.length) {
    old.replaceWith(fresh);
    return;
  }
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of [...fresh.attributes]) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  mine.forEach((child, i) => morph(child, theirs[i]));
}

function redraw(into, ...nodes) {
  const { id } = into;
  const focused = into.contains(document.activeElement) ? document.activeElement.getAttribute('href') : null;
  const fresh = into.cloneNode(false);
  fresh.append(...nodes);
  morph(into, fresh);
  if (focused === null || $(id).contains(document.activeElement)) return;
  [...$(id).querySelectorAll('a')].find((link) => link.getAttribute('href') === focused)?.focus({ preventScroll: true });
}

function show(id, text) {
  $(id).hidden = !text;
  if ($(id).textContent !== (text || '')) $(id).textContent = text || '';  // said once by screen readers
}

// ---- pictures -------------------------------------------------------------

const drawable = (value) => typeof value === 'number' && isFinite(value) && value > 0;

// The final losses of the blocks so far, logarithmic.
function spark(blocks) {
  const values = (blocks || []).map((b) => b.final).filter(drawable).map(Math.log10);
  if (values.length === 0) return '';
  const low = Math.min(...values);
  const span = Math.max(...values) - low || 1;
  const x = (i) => (values.length < 2 ? 60 : 4 + (112 * i) / (values.length - 1));
  const y = (v) => 24 - (20 * (v - low)) / span;
  const title = `final loss of ${values.length} blocks, newest ${number(10 ** values[values.length - 1], 3)}`;
  const svg = draw('svg', { class: 'spark', viewBox: '0 0 120 28', role: 'img', 'aria-label': title });
  svg.append(draw('title', {}, title));
  svg.append(draw('path', { d: values.map((v, i) => `${i ? 'L' : 'M'}${x(i).toFixed(1)} ${y(v).toFixed(1)}`).join('') }));
  svg.append(draw('circle', { cx: x(values.length - 1), cy: y(values[values.length - 1]), r: 2.5 }));
  return svg;
}

function ticksBetween(low, high) {
  const ticks = [];
  const digits = high - low < 2.5 ? [1, 2, 5] : [1];
  for (let decade = Math.floor(low); decade <= high; ++decade) {
    for (const digit of digits) {
      const log = decade + Math.log10(digit);
      if (log >= low && log <= high) ticks.push(log);
    }
  }
  return ticks;
}

function curve(svg, blocks, key, css, x, y) {
  let path = '';
  let drawing = false;
  const dots = [];
  for (const block of blocks) {
    if (!drawable(block[key])) { drawing = false; continue; }
    const at = [x(block.index).toFixed(1), y(Math.log10(block[key])).toFixed(1)];
    path += `${drawing ? 'L' : 'M'}${at[0]} ${at[1]}`;
    const dot = draw('circle', { class: css, cx: at[0], cy: at[1], r: 3 });
    dot.append(draw('title', {}, `block ${block.index}: ${number(block[key])}`));
    dots.push(dot);
    drawing = true;
  }
  svg.append(draw('path', { class: css, d: path }), ...dots);
}

function plot(blocks) {
  const logs = blocks.flatMap((b) => [b.rtn, b.final]).filter(drawable).map(Math.log10);
  if (logs.length === 0) return null;
  const margin = Math.max(0.05 * (Math.max(...logs) - Math.min(...logs)), 0.08);
  const low = Math.min(...logs) - margin;
  const high = Math.max(...logs) + margin;
  const last = Math.max(...blocks.map((b) => b.index), 1);
  const x = (i) => 60 + (560 * i) / last;
  const y = (log) => 250 - (210 * (log - low)) / (high - low);
  const svg = draw('svg', { class: 'plot', viewBox: '0 0 640 290', role: 'img', 'aria-label': 'losses of the blocks' });
  for (const tick of ticksBetween(low, high)) {
    svg.append(draw('line', { x1: 60, x2: 620, y1: y(tick), y2: y(tick) }));
    svg.append(draw('text', { x: 52, y: y(tick) + 4, 'text-anchor': 'end' }, number(10 ** tick, 2)));
  }
  const step = Math.ceil((last + 1) / 12);
  for (let i = 0; i <= last; i += step) svg.append(draw('text', { x: x(i), y: 268, 'text-anchor': 'middle' }, i));
  svg.append(draw('text', { x: 340, y: 286, 'text-anchor': 'middle' }, 'block'));
  curve(svg, blocks, 'rtn', 'nearest', x, y);
  curve(svg, blocks, 'final', 'final', x, y);
  [['nearest', 'round to nearest'], ['final', 'final']].forEach(([css, text], i) => {
    svg.append(draw('rect', { class: css, x: 60 + 220 * i, y: 5, width: 13, height: 13 }));
    svg.append(draw('text', { x: 80 + 220 * i, y: 17 }, text));
  });
  return svg;
}

function bar(progress) {
  const percent = `${Math.floor(100 * (progress.ratio || 0))} %`;
  const element = make('progress', { max: 1, value: progress.ratio || 0, 'aria-label': percent }, percent);
  return make('span', { class: 'bar' }, element, make('span', { class: 'soft' }, percent));
}

function stageText(progress) {
  const stage = (progress.stage || '').toLowerCase();
  return progress.blocks_total > 0 ? `${stage} ${progress.blocks_done}/${progress.blocks_total}` : stage;
}

const etaText = (progress) => (progress.eta_s === undefined ? '' : `about ${seconds(progress.eta_s)}`);

// ---- the list -------------------------------------------------------------

const jobLink = (job) => make('a', { href: `jobs/${encodeURIComponent(job.tenant)}/${encodeURIComponent(job.id)}` }, job.id);

function jobName(job) {
  const more = [job.tenant === 'default' ? '' : job.tenant, job.title].filter(Boolean).join(' · ');
  return make('span', {}, jobLink(job), more ? make('span', { class: 'soft' }, ` ${more}`) : '');
}

const JOB = { label: 'job', css: 'lead', cell: jobName };
const METHOD = { label: 'method', css: 'bare', cell: methodText };

function outcome(job) {
  if (job.quality) return `${number(job.quality.perplexity_dense, 4)} → ${number(job.quality.perplexity_quantized, 4)}`;
  return job.error ? job.error.reason || job.error.message : job.reason;
}

function listsOf(status) {
  const running = [JOB, METHOD,
    { label: 'stage', css: 'bare', cell: (job) => stageText(job.progress || {}) },
    { label: 'progress', css: 'tight bare', cell: (job) => bar(job.progress || {}) },
    { label: 'left', css: 'tight', cell: (job) => etaText(job.progress || {}) },
    { label: 'losses', css: 'tight bare', cell: (job) => spark(job.blocks) },
    { label: 'worker', cell: (job) => job.worker }];
  const waiting = [JOB, METHOD,
    { label: 'waits', css: 'tight', cell: (job) => between(job.create_time, status.time) },
    { label: 'priority', css: 'tight', cell: (job) => (job.priority ? String(job.priority) : '') },
    { label: 'why', cell: (job) => job.reason }];
  const ended = [JOB, METHOD,
    { label: 'state', css: 'tight bare', cell: (job) => stateText(job.state) },
    { label: 'perplexity, or why', css: 'bare', cell: outcome },
    { label: 'ran', css: 'tight', cell: (job) => between(job.start_time, job.end_time) },
    { label: 'ended', css: 'tight', cell: (job) => `${between(job.end_time, status.time)} ago` }];
  return { running, waiting, ended };
}

const WORKERS = [
  { label: 'worker', css: 'lead', cell: (w) => w.id },
  { label: 'state', css: 'tight bare', cell: (w) => stateText(w.live ? (w.draining ? 'draining' : 'live') : 'lost') },
  { label: 'slots', css: 'tight', cell: (w) => `${w.jobs.length} of ${w.slots}` },
  { label: 'machine', cell: (w) => [w.gpus.map((g) => g.model).join(', '), w.cores ? `${w.cores} cores` : '',
      w.host_memory_bytes ? bytes(w.host_memory_bytes) : ''].filter(Boolean).join(', ') },
  { label: 'runs', cell: (w) => (w.jobs.length ? make('span', {}, ...w.jobs.flatMap((job, i) => (i ? [', ', jobLink(job)] : [jobLink(job)]))) : '') },
  { label: 'takes no new jobs because', cell: (w) => w.refusal }];

function showStatus(status) {
  const { queue } = status;
  $('version').textContent = status.version;
  show('pause', queue.pause ? `The queue is paused since ${queue.pause.since}: ${queue.pause.reason}` : '');
  tiles($('tiles'), [
    [String(queue.depth), 'jobs ready to run'],
    [queue.delayed ? String(queue.delayed) : '', 'wait for their next attempt'],
    [queue.held ? String(queue.held) : '', 'wait for others of their tenant to end'],
    [queue.oldest ? between(queue.oldest, status.time) : '', 'the longest wait'],
    [`${queue.busy_slots} of ${queue.total_slots}`, 'slots busy'],
    [String(queue.jobs.SUCCEEDED), 'succeeded'],
    [String(queue.jobs.FAILED), 'failed'],
    [String(queue.jobs.CANCELLED), 'cancelled']]);
  const totals = {
    running: queue.jobs.RUNNING + queue.jobs.CANCELLING,
    waiting: queue.jobs.QUEUED,
    ended: queue.jobs.SUCCEEDED + queue.jobs.FAILED + queue.jobs.CANCELLED,
    workers: status.workers_known };
  const columns = { ...listsOf(status), workers: WORKERS };
  const empty = { running: 'Nothing runs.', waiting: 'Nothing waits.', ended: 'Nothing has ended yet.',
    workers: 'No worker is known.' };
  for (const [name, total] of Object.entries(totals)) {
    const rows = status[name];
    const order = name === 'ended' ? 'newest' : 'first';
    $(`${name}-count`).textContent = rows.length < total ? `${order} ${rows.length} of ${total}` : rows.length || '';
    redraw($(name), table(columns[name], rows, empty[name]));
  }
}

// ---- one job --------------------------------------------------------------

function stageTimes(job) {
  return (job.stages || []).filter((s) => s.start)
    .map((s) => `${s.stage.toLowerCase()} ${between(s.start, s.end || job.time)}`).join(', ');
}

function headOf(job) {
  const head = [stateText(job.state), ' ', methodText(job)];
  if (job.reason) head.push(make('span', { class: 'soft' }, ` ${job.reason}`));
  if (job.progress && !ENDED.includes(job.state) && job.state !== 'QUEUED') {
    head.push(make('p', { class: 'wide-bar' }, bar(job.progress)),
      make('p', {}, [stageText(job.progress), etaText(job.progress) && `${etaText(job.progress)} left`].filter(Boolean).join(', ')));
  }
  return head;
}

function figuresOf(job) {
  const pairs = [];
  if (job.quality) {
    const { perplexity_dense: dense, perplexity_quantized: quantized } = job.quality;
    pairs.push([`${number(dense, 4)} → ${number(quantized, 4)}`, 'perplexity, dense → quantized'],
      [`× ${number(quantized === null ? NaN : quantized / dense, 4)}`, 'of the dense perplexity'],
      [`${number(100 * job.quality.top1_agreement, 4)} %`, 'same most likely token'],
      [number(job.quality.kl_divergence, 3), 'KL divergence, nats a token']);
  }
  if (job.bits) pairs.push([number(job.bits.linears, 4), 'bits a weight, linears'], [number(job.bits.file, 4), 'bits a parameter, file']);
  if (job.run_s) pairs.push([seconds(job.run_s), 'time']);
  if (job.peak_rss_bytes) pairs.push([bytes(job.peak_rss_bytes), 'memory']);
  return pairs;
}

const OUTPUTS = [
  { label: 'format', css: 'lead', cell: (o) => o.format },
  { label: 'weights', css: 'tight', cell: (o) => bytes(o.bytes) },
  { label: 'bits a weight', css: 'tight', cell: (o) => number(o.bits_per_weight, 4) },
  { label: 'who loads it', css: 'long', cell: (o) => o.compatibility }];

const EVENTS = [
  { label: 'event', css: 'tight', cell: (e) => `${e.sequence}` },
  { label: 'time', css: 'tight soft bare', cell: (e) => e.time.replace('T', ' ').replace(/\.\d+Z$/, '') },
  { label: 'attempt', css: 'tight', cell: (e) => (e.attempt ? String(e.attempt) : '') },
  { label: 'what', css: 'tight bare', cell: (e) => e.kind.replace('_', ' ') },
  { label: 'text', css: 'long', cell: (e) => e.text }];

function showJob(job) {
  document.title = `${job.id} – quantry`;
  $('name').textContent = job.tenant === 'default' ? job.id : `${job.tenant} / ${job.id}`;
  redraw($('head'), ...headOf(job));
  show('error', job.error ? `${job.error.reason}: ${job.error.message}` : job.quality_gate_failed ? 'The quality gate failed.' : '');
  tiles($('tiles'), figuresOf(job));
  const picture = plot(job.blocks || []);
  $('losses-section').hidden = picture === null;
  if (picture) redraw($('plot'), picture);
  $('outputs-section').hidden = !job.outputs;
  if (job.outputs) redraw($('outputs'), table(OUTPUTS, job.outputs, 'None.'));
  redraw($('about'), fields([
    ['title', job.title], ['labels', Object.entries(job.labels || {}).map(([k, v]) => `${k}=${v}`).join(', ')],
    ['priority', job.priority ? String(job.priority) : ''], ['worker', job.worker], ['attempts', String(job.attempts)],
    ['submitted', job.create_time], ['waited', between(job.create_time, job.start_time || job.time)],
    ['started', job.start_time], ['ended', job.end_time], ['stages', stageTimes(job)],
    ['artifact', job.artifact_uri], ['uid', job.uid], ['spec', job.spec_digest]]));
  const events = job.events.slice().reverse();
  $('events-count').textContent = events.length < job.last_sequence ? `newest ${events.length} of ${job.last_sequence}` : events.length;
  redraw($('events'), table(EVENTS, events, 'None.'));
}

// ---- the loop -------------------------------------------------------------

// An ended job may be queued again.
const page = document.body.dataset.page === 'job'
  ? { url: `${location.pathname}.json`, show: showJob, every: (job) => (ENDED.includes(job.state) ? SLOWEST_MS : EVERY_MS) }
  : { url: 'status.json', show: showStatus, every: () => EVERY_MS };
let wait = EVERY_MS;
let updated = null;
let timer = null;

const noAnswer = (error) => error instanceof TypeError || error.name === 'TimeoutError';

async function refresh() {
  timer = null;
  try {
    const response = await fetch(page.url, { cache: 'no-store', signal: AbortSignal.timeout(ANSWER_MS) });
    const json = await response.json();
    if (!response.ok) throw new Error(json.error || response.statusText);
    page.show(json);
    show('problem', '');
    updated = new Date();
    wait = page.every(json);
    $('age').textContent = `as of ${updated.toLocaleTimeString()}`;
  } catch (error) {
    show('problem', noAnswer(error) ? 'The server does not answer.' : error.message);
    if (updated === null) $('age').textContent = '';
    wait = Math.min(2 * wait, SLOWEST_MS);
  }
  timer = setTimeout(() => (document.hidden ? (timer = null) : refresh()), wait);
}

document.addEventListener('visibilitychange', () => {
  if (!document.hidden && timer === null) refresh();
});
refresh();
