"use strict";
// One page for one graph: a form made of the input's JSON schema, the calls of the run as they happen, and the result.
// Whatever comes from a run is put in as text, never as markup.
const graph = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function resolved(schema) {
  let seen = schema;
  for (let depth = 0; seen && seen.$ref && depth < 20; depth++) {
    seen = seen.$ref.split("/").slice(1).reduce((place, part) => place[part], graph.schema);
  }
  return seen || {};
}

// A type that may be null is shown as what it is otherwise; left empty, it is null.
function withoutNull(given) {
  const schema = resolved(given);
  const others = (schema.anyOf || []).filter((one) => one.type !== "null");
  if (others.length !== 1 || others.length === schema.anyOf.length) return [schema, false];
  const { anyOf, ...rest } = schema;
  return [{ ...resolved(others[0]), ...rest }, true];
}

// Each field gives its value, or undefined to be left out.
function field(name, given, required) {
  const [schema, nullable] = withoutNull(given);
  const label = make("label");
  let input, read;
  if (schema.enum) {
    input = make("select");
    if (!required) input.append(new Option("", ""));
    schema.enum.forEach((option, index) => input.append(new Option(String(option), String(index))));
    read = () => (input.value === "" ? undefined : schema.enum[Number(input.value)]);
  } else if (schema.type === "boolean") {
    input = make("input");
    input.type = "checkbox";
    input.checked = schema.default === true;
    read = () => input.checked;
  } else if (schema.type === "integer" || schema.type === "number") {
    input = make("input");
    input.type = "number";
    input.step = schema.type === "integer" ? "1" : "any";
    if (typeof schema.default === "number") input.value = schema.default;
    read = () => (input.value !== "" ? Number(input.value) : nullable && required ? null : undefined);
  } else if (schema.type === "string") {
    input = make("textarea");
    input.rows = 3;
    if (typeof schema.default === "string") input.value = schema.default;
    read = () => (input.value !== "" ? input.value : nullable && required ? null : required ? "" : undefined);
  } else {
    input = make("textarea", "json");
    input.rows = 3;
    input.placeholder = "JSON";
    if (schema.default !== undefined && schema.default !== null) input.value = JSON.stringify(schema.default);
    read = () => {
      if (input.value.trim() === "") return nullable && required ? null : undefined;
      try {
        return JSON.parse(input.value);
      } catch (error) {
        throw new Error(`${name}: ${error.message}`);
      }
    };
  }
  input.name = name;
  const title = make("span", "name", name);
  if (schema.type === "boolean") {
    label.className = "tick";
    label.append(input, title);
  } else {
    label.append(title, input);
  }
  if (schema.description) label.append(make("span", "hint", schema.description));
  byId("fields").append(label);
  return [name, read];
}

const top_ = resolved(graph.schema);
const isObject = top_.type === "object" && top_.properties && Object.keys(top_.properties).length > 0;
const fields = isObject
  ? Object.entries(top_.properties).map(([name, schema]) => field(name, schema, (top_.required || []).includes(name)))
  : [field("input", graph.schema, true)];

function value() {
  const read = fields.map(([name, get]) => [name, get()]).filter(([, given]) => given !== undefined);
  return isObject ? Object.fromEntries(read) : read.length ? read[0][1] : null;
}

let run = null;
let source = null;
const rows = new Map();

function say(status, className) {
  byId("status").textContent = status;
  byId("status").className = className || "";
}

function busy(yes) {
  byId("start").disabled = yes;
  byId("stop").hidden = !yes;
}

async function send(path, body) {
  const answer = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  const data = await answer.json();
  if (answer.ok) return data;
  const errors = (data.errors || []).map((error) => `${error.pointer}: ${error.detail}`);
  throw new Error([data.detail || data.title, ...errors].join("\n"));
}

function row(event) {
  let found = rows.get(event.key);
  if (!found) {
    found = make("li", "running");
    found.style.paddingLeft = `${(event.key.match(/\./g) || []).length * 18}px`;
    found.append(make("span", "mark"), make("span", "key", event.key || graph.name), make("span", "note", "…"));
    rows.set(event.key, found);
    byId("calls").append(found);
  }
  return found;
}

const shown = {
  run_started: () => say("Running"),
  call_started: (event) => row(event),
  tool_called: (event) => { row(event).lastChild.textContent = `calls ${event.tool}`; },
  call_retried: (event) => { row(event).lastChild.textContent = `attempt ${event.attempt} failed, trying again`; },
  call_finished: (event) => {
    const place = row(event);
    place.className = event.status;
    const tokens = event.input_tokens + event.output_tokens;
    place.lastChild.textContent = `${event.duration.toFixed(2)} s${tokens ? `, ${tokens} tokens` : ""}`;
  },
  events_dropped: (event) => byId("calls").append(make("li", "note", `${event.count} events were missed`)),
  run_finished: () => {
    source.close();
    attempt(finish);
  },
};

async function finish() {
  const answer = await fetch(`runs/${encodeURIComponent(run)}`);
  const state = await answer.json();
  if (!answer.ok) throw new Error(state.detail || state.title);
  say(state.status, state.status);
  busy(false);
  const spent = state.usage;
  const tokens = spent.input_tokens + spent.output_tokens;
  const cost = spent.cost === null || Number(spent.cost) === 0 ? "" : `, $${spent.cost}`;
  byId("counts").textContent = `${state.duration.toFixed(2)} s, ${spent.requests} request${spent.requests === 1 ? "" : "s"}, ${tokens} tokens${cost}`;
  if (state.detail) byId("problem").textContent = state.detail;
  else if (state.failed_at !== null && state.status === "failed") byId("problem").textContent = `It failed at ${state.failed_at || graph.name}.`;
  if (state.status === "succeeded") {
    byId("result").textContent = typeof state.output === "string" ? state.output : JSON.stringify(state.output, null, 2);
    byId("result").hidden = byId("result-title").hidden = false;
  }
  byId("questions").replaceChildren(...state.pending.map(question));
}

function question(asked) {
  const box = make("div", "question");
  box.append(make("p", "", `${asked.key} asks: ${asked.tool}`), make("pre", "", JSON.stringify(asked.args, null, 2)));
  const answer = (text, given) => {
    const button = make("button", "", text);
    button.type = "button";
    button.onclick = () => attempt(async () => {
      await send(`runs/${encodeURIComponent(run)}/answers?wait=false`, { answers: { [asked.id]: given() } });
      follow();
    });
    box.append(button, " ");
  };
  if (asked.kind === "approval") {
    answer("Approve", () => true);
    answer("Deny", () => false);
  } else {
    const input = make("textarea", "json");
    box.append(input);
    input.placeholder = "A text, or JSON";
    answer("Answer", () => {
      try {
        return JSON.parse(input.value);
      } catch {
        return input.value;
      }
    });
  }
  return box;
}

function follow() {
  byId("questions").replaceChildren();
  busy(true);
  byId("run").scrollIntoView({ block: matchMedia("(max-width: 800px)").matches ? "start" : "nearest" });
  source = new EventSource(`runs/${encodeURIComponent(run)}/events`);
  source.onerror = () => {
    if (source.readyState !== EventSource.CLOSED) return; // it connects again by itself
    byId("problem").textContent = "The service does not send this run's events any more.";
    busy(false);
  };
  for (const [name, show] of Object.entries(shown)) {
    source.addEventListener(name, (message) => show(JSON.parse(message.data)));
  }
}

async function attempt(work) {
  byId("problem").textContent = "";
  try {
    await work();
  } catch (error) {
    byId("problem").textContent = error.message;
    busy(false);
  }
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(async () => {
    const input = value();
    busy(true);
    rows.clear();
    byId("calls").replaceChildren();
    byId("counts").textContent = "";
    byId("result").hidden = byId("result-title").hidden = true;
    say("Starting");
    try {
      run = (await send("runs?wait=false", input)).run_id;
    } catch (error) {
      say("Not started", "failed");
      throw error;
    }
    follow();
  });
});

byId("stop").addEventListener("click", () => attempt(() => send(`runs/${encodeURIComponent(run)}/cancel`, {})));
