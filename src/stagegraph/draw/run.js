"use strict";
// Everything from the run is put on the page as text, never as markup.
const { run, calls, edges = [], feedback = [] } = JSON.parse(document.getElementById("data").textContent);
run.labels ??= {};
const byKey = new Map(calls.map((call) => [call.key, call]));
const children = new Map();
for (const call of calls) {
  call.parent ??= null;
  if (!children.has(call.parent)) children.set(call.parent, []);
  children.get(call.parent).push(call);
}
const scores = new Map();
for (const score of feedback) {
  const key = score.key ?? null;
  scores.set(key, [...(scores.get(key) || []), score]);
}
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined && text !== null) element.textContent = text;
  return element;
}
function draw(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}
function seconds(value) {
  if (value < 0.001) return `${Math.round(value * 1e6)} µs`;
  if (value < 1) return `${(value * 1000).toFixed(value < 0.01 ? 1 : 0)} ms`;
  if (value < 90) return `${value.toFixed(2)} s`;
  const whole = Math.round(value);
  if (whole < 7200) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}
// A field that has its usual value is left out of the data.
const failure = (row) => (row.error_type == null ? null : `${row.error_type}: ${row.error}`);
const requests = (call) => call.usage?.requests || 0;
const tokens = (call) => (call.usage?.input_tokens || 0) + (call.usage?.output_tokens || 0);
const dollars = (cost) => (cost == null ? "unknown" : `$${Number(cost).toFixed(4)}`);
const pretty = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2));

// --- the clock: while nobody ran the run, its time axis is broken ---
const start = Math.min(run.started, ...(calls.length ? [calls[0].started] : []));
const latest = calls.reduce((last, call) => Math.max(last, call.started + (call.duration || 0)), start + 1e-6);
const resumed = run.labels.resumed || [];
const ended = run.labels.ended || [];
const periods = [start, ...resumed].map((from, place) => {
  const until = place < resumed.length ? Math.min(ended[place] ?? from, resumed[place]) : Math.max(latest, from + 1e-6);
  return { from, until: Math.max(until, from) };
});
const GAP = Math.min(3, 30 / periods.length); // the width of a break, in percent
const active = periods.reduce((sum, one) => sum + one.until - one.from, 0) || 1e-6;
const scale = (100 - GAP * (periods.length - 1)) / active;
const breaks = [];
{
  let x = 0;
  periods.forEach((one, place) => {
    one.x = x;
    x += (one.until - one.from) * scale;
    if (place + 1 < periods.length) breaks.push({ x, seconds: periods[place + 1].from - one.until });
    x += GAP;
  });
}
function position(time) {
  let at = periods[0];
  for (const one of periods) if (one.from <= time) at = one;
  return at.x + Math.min(Math.max(time - at.from, 0), at.until - at.from) * scale;
}
{
  const axis = $("axis");
  axis.append(make("span", "", "call"));
  const ticks = make("span", "ticks");
  for (let i = 0; i <= 4; i++) ticks.append(make("span", "", seconds((active * i) / 4)));
  axis.append(ticks);
  for (const gap of breaks) {
    const mark = make("span", "gap");
    mark.title = `nothing ran for ${seconds(gap.seconds)}`;
    mark.style.setProperty("--x", gap.x / 100);
    mark.style.setProperty("--w", GAP / 100);
    $("gaps").append(mark);
  }
}

// --- the head ---
{
  const facts = $("facts");
  facts.append(make("h1", "", run.graph), make("span", `badge ${run.status}`, run.status));
  const add = (name, value) => {
    if (value === null || value === undefined || value === "") return;
    const fact = make("span", "fact", `${name} `);
    fact.append(make("b", "", value));
    facts.append(fact);
  };
  add("run", run.run_id);
  add("started", new Date(run.started * 1000).toISOString().replace("T", " ").slice(0, 19) + " UTC");
  const waited = breaks.reduce((sum, gap) => sum + gap.seconds, 0);
  add("took", seconds(run.duration || 0) + (waited ? `, ${seconds(waited)} of it between ${breaks.length + 1} parts` : ""));
  add("calls", calls.length);
  add("requests", run.requests || 0);
  add("tokens", `${run.input_tokens || 0} in, ${run.output_tokens || 0} out`);
  add("cost", dollars(run.cost));
  add("prompts", run.prompts_digest);
  add("session", run.labels.session_id);
  add("user", run.labels.user_id);
  add("tags", (run.labels.tags || []).join(", "));
  for (const score of scores.get(null) || []) add(`feedback ${score.name}`, [String(score.value), score.comment].filter(Boolean).join(": "));
  if (run.error_type) facts.append(make("div", "error", failure(run)));
}

// --- the tree and the waterfall: only the rows that are in view are on the page ---
const HEIGHT = 24; // as in the style
const order = []; // all calls as the tree has them; `after` is the place behind the calls inside
const places = new Map();
{
  const waiting = [...(children.get(null) || [])].reverse().map((call) => ({ call, depth: 0 }));
  const open = [];
  const close = (depth) => { while (open.length && open.at(-1).depth >= depth) open.pop().after = order.length; };
  while (waiting.length) {
    const { call, depth } = waiting.pop();
    close(depth);
    const place = { call, depth, after: 0 };
    places.set(call.key, place);
    order.push(place);
    open.push(place);
    for (const child of [...(children.get(call.key) || [])].reverse()) waiting.push({ call: child, depth: depth + 1 });
  }
  close(0);
}
const folded = new Set();
let hits = new Set();
let wanted = null;
let visible = [];
let picked = null;
function rowOf({ call, depth }, at) {
  const row = make("div", call.key === picked ? "row picked" : "row");
  row.id = `row-${at}`;
  row.style.top = `${at * HEIGHT}px`;
  row.setAttribute("role", "treeitem");
  row.setAttribute("aria-level", depth + 1);
  row.setAttribute("aria-selected", String(call.key === picked));
  row.dataset.key = call.key;
  if (hits.has(call.key)) row.classList.add("hit");
  const name = make("span", "name");
  name.style.paddingLeft = `${Math.min(depth, 40) * 14}px`;
  const inside = children.has(call.key);
  const fold = make("button", "fold", !inside ? "" : folded.has(call.key) ? "▸" : "▾");
  fold.tabIndex = -1;
  fold.setAttribute("aria-label", inside ? "Collapse or expand" : "");
  if (inside) row.setAttribute("aria-expanded", String(!folded.has(call.key)));
  name.append(fold, make("span", `mark ${call.status}`), make("span", "key", call.key || run.graph));
  const notes = [seconds(call.duration || 0)];
  if (tokens(call)) notes.push(`${tokens(call)} tokens`);
  if (call.attempts > 1) notes.push(`${call.attempts} attempts`);
  if (call.replayed) notes.push("replayed");
  if (scores.has(call.key) && call.key !== "") notes.push("★");
  if (call.status !== "succeeded") notes.push(call.status);
  name.append(make("span", "note", notes.join(" · ")));
  const track = draw("svg", { class: "track", width: "100%", height: "18" });
  const left = position(call.started);
  const width = Math.max(0.25, position(call.started + (call.duration || 0)) - left);
  const style = call.status === "failed" ? "failed" : call.kind;
  track.append(draw("rect", { class: `bar ${style}`, x: `${left}%`, y: "5", width: `${width}%`, height: "9", rx: "2" }));
  row.append(name, track);
  return row;
}
let painted = [0, 0];
function inView() {
  const first = Math.max(0, Math.floor(($("left").scrollTop - $("rows").offsetTop) / HEIGHT));
  return [first, Math.min(visible.length, first + Math.ceil($("left").clientHeight / HEIGHT) + 1)];
}
function paint() {
  const [from, until] = inView();
  const [first, last] = (painted = [Math.max(0, from - 20), Math.min(visible.length, until + 20)]);
  $("rows").replaceChildren(...visible.slice(first, last).map((place, at) => rowOf(place, first + at)));
  const at = visible.findIndex((place) => place.call.key === picked);
  if (at >= first && at < last) $("rows").setAttribute("aria-activedescendant", `row-${at}`);
  else $("rows").removeAttribute("aria-activedescendant");
}
function refresh() {
  visible = [];
  for (let at = 0; at < order.length; ) {
    const place = order[at];
    if (!wanted || wanted.has(place.call.key)) visible.push(place);
    at = !wanted && folded.has(place.call.key) ? place.after : at + 1;
  }
  $("rows").replaceChildren(); // rows further down would keep the old place of the view
  $("rows").style.height = $("gaps").style.height = `${visible.length * HEIGHT}px`;
  paint();
}
function toggle(key) {
  if (!children.has(key)) return;
  if (folded.has(key)) folded.delete(key);
  else folded.add(key);
  refresh();
}
function moved() {
  const [from, until] = inView();
  if (from < painted[0] || until > painted[1]) paint();
}
$("left").addEventListener("scroll", moved);
addEventListener("resize", moved);
$("rows").addEventListener("click", (event) => {
  const row = event.target.closest(".row");
  if (!row) return;
  if (event.target.classList.contains("fold")) toggle(row.dataset.key);
  else pick(row.dataset.key);
});
$("rows").addEventListener("keydown", (event) => {
  const at = visible.findIndex((place) => place.call.key === picked);
  const page = Math.max(1, Math.floor($("left").clientHeight / HEIGHT) - 2);
  const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -visible.length, End: visible.length };
  if (steps[event.key] && visible.length) pick(visible[Math.min(Math.max(at + steps[event.key], 0), visible.length - 1)].call.key);
  else if (event.key === "ArrowLeft" && !folded.has(picked)) toggle(picked);
  else if (event.key === "ArrowRight" && folded.has(picked)) toggle(picked);
  else return;
  event.preventDefault();
});
$("fold").addEventListener("click", () => {
  const groups = calls.filter((call) => call.parent !== null && children.has(call.key));
  const collapse = groups.some((call) => !folded.has(call.key));
  folded.clear();
  if (collapse) for (const call of groups) folded.add(call.key);
  $("fold").textContent = collapse ? "Expand all" : "Collapse all";
  refresh();
});

// --- the details of one call ---
function section(title, value, into) {
  if (value === null || value === undefined) return;
  into.append(make("h3", "", title), make("pre", "", pretty(value)));
}
function pick(key) {
  const call = byKey.get(key);
  if (!call) return;
  picked = key;
  for (let at = byKey.get(call.parent); at; at = byKey.get(at.parent)) folded.delete(at.key);
  refresh();
  const at = visible.findIndex((place) => place.call.key === key);
  const [top, space] = [$("rows").offsetTop + at * HEIGHT, $("left").clientHeight - $("axis").offsetHeight - HEIGHT];
  const above = $("left").scrollTop + $("axis").offsetHeight;
  if (at >= 0 && top < above) $("left").scrollTop = top - $("axis").offsetHeight;
  else if (at >= 0 && top > above + space) $("left").scrollTop = top - $("axis").offsetHeight - space;
  paint();
  history.replaceState(null, "", `#call=${encodeURIComponent(key)}`);
  const detail = $("detail");
  detail.replaceChildren(make("h2", "", call.key || run.graph));
  const facts = make("dl");
  const add = (name, value) => {
    if (value === null || value === undefined || value === "" || value === 0) return;
    facts.append(make("dt", "", name), make("dd", "", value));
  };
  add("status", call.status + (call.replayed ? " (replayed)" : ""));
  add("kind", call.kind);
  add("path", call.path);
  add("took", `${seconds(call.duration || 0)}, from ${seconds(call.started - start)}`);
  add("attempts", call.attempts > 1 ? call.attempts : null);
  add("requests", requests(call));
  add("tokens", tokens(call));
  if (requests(call)) add("cost", dollars(call.cost));
  add("came from", edges.filter((edge) => edge[1] === key).map((edge) => edge[0]).join(", "));
  add("went to", edges.filter((edge) => edge[0] === key).map((edge) => edge[1]).join(", "));
  detail.append(facts);
  section("Error", failure(call), detail);
  for (const score of scores.get(call.key || null) || []) section(`Feedback: ${score.name}`, [score.value, score.comment].filter((part) => part != null).map(String).join("\n"), detail);
  section("Waits for", call.pending, detail);
  section("Input", call.input, detail);
  section("Output", call.output, detail);
  if (call.prompt) section("Prompt", call.prompt.instructions !== undefined && Object.keys(call.prompt).length === 1 ? call.prompt.instructions : call.prompt, detail);
  if (call.messages?.length) {
    detail.append(make("h3", "", "Messages"));
    for (const message of call.messages) {
      if (message.instructions) detail.append(make("div", "who", "instructions"), make("pre", "", message.instructions));
      for (const part of message.parts) {
        const who = [part.part_kind, part.tool_name].filter(Boolean).join(" ");
        const what = part.content !== undefined ? part.content : part.args;
        detail.append(make("div", "who", who), make("pre", "message", pretty(what === undefined ? part : what)));
      }
    }
  }
}

// --- search ---
const haystacks = new Map();
function haystack(call) {
  if (!haystacks.has(call.key)) haystacks.set(call.key, JSON.stringify([call.key, call.status, failure(call), call.input, call.output, call.prompt, call.messages]).toLowerCase());
  return haystacks.get(call.key);
}
function search() {
  const text = $("search").value.trim().toLowerCase();
  wanted = null;
  hits = new Set();
  if (text) {
    const quoted = JSON.stringify(text).slice(1, -1);
    wanted = new Set();
    for (const call of calls) {
      if (!haystack(call).includes(quoted)) continue;
      hits.add(call.key);
      for (let at = call; at && !wanted.has(at.key); at = byKey.get(at.parent)) wanted.add(at.key);
    }
  }
  $("found").textContent = text ? `${hits.size} of ${calls.length}` : "";
  $("left").scrollTop = 0;
  refresh();
}
$("search").addEventListener("input", search);

// --- the data flow: calls in columns by how far they are from the input; very many calls are counted by path ---
function flowNodes() {
  const leaves = calls.filter((call) => call.kind !== "graph");
  const grouped = leaves.length > 60;
  const name = (key) => (grouped ? byKey.get(key)?.path : key);
  const nodes = new Map();
  for (const call of leaves) {
    const id = name(call.key);
    const node = nodes.get(id) || { id, key: call.key, count: 0, failed: false, kind: call.kind, duration: 0, into: new Set(), level: 0 };
    node.count += 1;
    node.failed = node.failed || call.status === "failed";
    node.duration += call.duration || 0;
    nodes.set(id, node);
  }
  for (const [from, to] of edges) {
    const [a, b] = [name(from), name(to)];
    if (a !== b && nodes.has(a) && nodes.has(b)) nodes.get(a).into.add(b);
  }
  // A loop of the flow (draft, critique, draft) would push levels for ever: every node moves at most once per node.
  for (let round = 0; round < nodes.size; round++) {
    let moved = false;
    for (const node of nodes.values()) for (const to of node.into) {
      const next = nodes.get(to);
      if (next.level <= node.level && node.level + 1 < nodes.size) { next.level = node.level + 1; moved = true; }
    }
    if (!moved) break;
  }
  return [...nodes.values()];
}
let drawn = false;
function drawFlow() {
  if (drawn) return;
  drawn = true;
  const nodes = flowNodes();
  const columns = [];
  for (const node of nodes) (columns[Math.min(node.level, 40)] ||= []).push(node);
  const levels = columns.filter(Boolean);
  const [wide, high, gapX, gapY] = [210, 40, 60, 12];
  const tallest = Math.max(1, ...levels.map((level) => level.length));
  const svg = draw("svg", { width: levels.length * (wide + gapX) + 20, height: tallest * (high + gapY) + 20, role: "img", "aria-label": "Data flow between calls" });
  const marker = draw("marker", { id: "tip", viewBox: "0 0 8 8", refX: "8", refY: "4", markerWidth: "7", markerHeight: "7", orient: "auto" });
  marker.append(draw("path", { d: "M0,0 L8,4 L0,8 z" }));
  const defs = draw("defs", {});
  defs.append(marker);
  svg.append(defs);
  const places = new Map();
  levels.forEach((level, x) => level.forEach((node, y) => places.set(node.id, { x: 10 + x * (wide + gapX), y: 10 + y * (high + gapY) })));
  for (const node of nodes) for (const to of node.into) {
    const [a, b] = [places.get(node.id), places.get(to)];
    const [x1, y1, x2, y2] = [a.x + wide, a.y + high / 2, b.x, b.y + high / 2];
    svg.append(draw("path", { d: `M${x1},${y1} C${x1 + gapX / 2},${y1} ${x2 - gapX / 2},${y2} ${x2},${y2}`, "marker-end": "url(#tip)" }));
  }
  for (const node of nodes) {
    const { x, y } = places.get(node.id);
    const link = draw("g", { class: "link", tabindex: "0", role: "button" });
    link.append(draw("rect", { class: `box ${node.failed ? "failed" : node.kind}`, x, y, width: wide, height: high, rx: node.kind === "stage" ? 10 : 3 }));
    const label = node.id.length > 28 ? node.id.slice(0, 27) + "…" : node.id;
    link.append(draw("text", { x: x + 8, y: y + 17 }, label));
    link.append(draw("text", { class: "small", x: x + 8, y: y + 32 }, (node.count > 1 ? `${node.count} calls · ` : "") + seconds(node.duration)));
    link.append(draw("title", {}, node.id));
    link.addEventListener("click", () => pick(node.key));
    link.addEventListener("keydown", (event) => { if (event.key === "Enter") pick(node.key); });
    svg.append(link);
  }
  $("flow").append(nodes.length ? svg : make("p", "", "No calls."));
}
$("show-flow").addEventListener("click", () => {
  const shown = $("flow").hidden;
  if (shown) drawFlow();
  $("flow").hidden = !shown;
  $("rows").hidden = $("gaps").hidden = $("axis").hidden = shown;
  $("axis").style.display = shown ? "none" : "";
  $("show-flow").setAttribute("aria-pressed", String(shown));
});
$("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "light" : "dark";
});

// --- a link to one call: #call=<key> ---
function follow() {
  const match = location.hash.match(/^#call=(.*)$/);
  if (!match) return false;
  let key;
  try { key = decodeURIComponent(match[1]); } catch { return false; }
  if (!byKey.has(key)) return false;
  pick(key);
  return true;
}
addEventListener("hashchange", follow);
if (!follow() && calls.length) pick(calls[0].key);
