// Whatever people typed, and whatever the service answers, becomes text by textContent: nothing here makes markup of it.

const $ = (id) => document.getElementById(id);
const STAGES = { tokenize: "tokenize", queue: "wait and plan", compute: "compute", other: "other" };
const LONG = 420; // characters of a passage that are shown at once

const BRIDGE = "The inspectors measured the third pier again and noted that nothing had moved since the autumn. ";
const SAMPLES = [
  {
    name: "Berlin",
    query: "How many people live in Berlin?",
    passages: [
      "Museum Island in the river Spree brings together five museums built between 1830 and 1930. It has been a World Heritage Site since 1999 and is among the most visited sights in Berlin.",
      "Hamburg, the second largest German city, counts around 1.9 million residents and is a federal state in its own right.",
      "To descale an espresso machine, dissolve citric acid in lukewarm water, run half of it through, wait for fifteen minutes and rinse twice.",
      "If the suburbs and the surrounding parts of Brandenburg are counted as well, the metropolitan region of the German capital is home to about six million people. Potsdam is the largest town in that belt, and many of its residents commute to Berlin.",
      "Berlin has about 3.7 to 3.9 million inhabitants, depending on whether the census or the population register is used, which makes it the largest city in Germany and the most populous in the European Union.",
      "Since 2001 Berlin has been divided into twelve boroughs, each with its own mayor and council. They range from dense inner districts such as Friedrichshain-Kreuzberg to Treptow-Köpenick, which is full of forests and lakes.",
      "On the eve of the Second World War about 4.3 million people were living in Berlin, more than at any time since. By the summer of 1945 bombing, evacuation and flight had reduced the number to about 2.8 million.",
      "With some 4,200 people per square kilometre, Berlin is less crowded than Paris or Barcelona. After losing residents to the suburbs in the late 1990s, the city has grown again for most of the years since about 2005, largely because of arrivals from abroad.",
      "Berlin in New Hampshire, a former paper-mill town on the Androscoggin River, had 9,425 inhabitants at the 2020 census. Locals stress the first syllable of the name.",
    ],
  },
  {
    name: "Bread",
    query: "why does my sourdough loaf come out flat",
    passages: [
      "A sourdough starter is a mixture of flour and water in which wild yeast and bacteria live.",
      "A loaf that spreads instead of rising was usually proofed too long: the gluten has grown weak and holds no more gas.",
      "Rye bread is denser than wheat bread because rye forms little gluten.",
      "Steam in the first minutes keeps the crust soft, so that the loaf can open up before it sets.",
      "If the starter is sluggish the dough hardly rises. Feed it until it doubles within six hours before you bake.",
      "A flat battery can be charged with a cable from another car.",
      "San Francisco has been known for its sourdough since the gold rush.",
    ],
  },
  {
    name: "Too long",
    query: "When was the bridge opened to traffic?",
    passages: [
      `${BRIDGE.repeat(34)}The bridge was opened to traffic on 4 May 1931.`,
      "The bridge has five spans of stone and two of steel.",
      "After nine years of work the bridge was opened to traffic on 4 May 1931.",
      "The ferry beside the old bridge stopped running long ago.",
    ],
  },
];

let models = [];
let key = "";
let asking = null; // the request under way
let shown = false; // whether a ranking is on the page

/** An element with properties and children; strings become text. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
const number = (value, digits) => value.toFixed(digits).replace("-", "−");
const ms = (value) => `${value >= 100 ? value.toFixed(0) : value >= 1 ? value.toFixed(1) : value.toFixed(2)} ms`;
const size = (bytes) => (bytes >= 1e6 ? `${(bytes / 1e6).toFixed(0)} MB` : `${Math.ceil(bytes / 1e3)} kB`);
const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

function readPassages() {
  const text = $("passages").value.replace(/\r\n?/g, "\n");
  const parts = /\n[^\S\n]*\n/.test(text.trim()) ? text.split(/\n(?:[^\S\n]*\n)+/) : text.split("\n");
  return parts.map((part) => part.trim()).filter((part) => part);
}

function chosen(id) {
  return $(id).querySelector("input:checked")?.value || "";
}

// --- asking the service

/** What went wrong, in words for the reader. */
class Trouble extends Error {}

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(key && { authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("The service does not answer. Is it still running?");
  }
  const answer = await response.json().catch(() => null);
  if (response.ok && answer) return answer;
  throw new Trouble(explain(response, answer?.error ?? `it answered with status ${response.status}`));
}

function explain(response, message) {
  const seconds = response.headers.get("retry-after");
  const later = seconds ? `Try again in ${count(Number(seconds), "second")}.` : "Try again later.";
  switch (response.status) {
    case 401:
      showKeyField();
      return key ? "The service does not know this API key." : "This service asks for an API key.";
    case 413: return `That is more than this service takes: ${sentence(message)}`;
    case 429: return `The service is busy. ${later}`;
    case 503: return `The service takes no requests now: ${sentence(message)} ${later}`;
    case 504: return `That took too long: ${sentence(message)}`;
    default: return sentence(message);
  }
}

function showKeyField() {
  $("key-field").hidden = false;
  $("key").focus();
}

function showProblem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

// --- models and variants

/** Whether the service told them. */
async function loadModels() {
  try {
    models = (await ask("playground/models")).models;
  } catch (error) {
    if (!(error instanceof Trouble)) throw error;
    showProblem(error.message);
    return false;
  }
  showProblem("");
  $("model").replaceChildren(...models.map((model) => new Option(model.name, model.name)));
  $("model-field").hidden = models.length < 2;
  showModel();
  return true;
}

function currentModel() {
  return models.find((model) => model.name === $("model").value) ?? models[0];
}

function showModel() {
  const model = currentModel();
  const share = model.query_max_length === null ? "" : `, up to ${model.query_max_length} of them the query’s`;
  const lengths = `reads ${model.max_length} tokens of a pair${share}`;
  $("about").textContent = `${model.name} ${lengths}`;
  const names = model.variants.map((variant) => variant.name);
  fillPicker("variant", names, names[0]);
  fillPicker("other", ["", ...names], "");
  showOthers();
}

function fillPicker(id, names, checked) {
  const picker = $(id);
  picker.hidden = names.filter((name) => name).length < 2;
  picker.replaceChildren(
    picker.querySelector("legend"),
    ...names.map((name) => {
      const variant = currentModel().variants.find((candidate) => candidate.name === name);
      const title = variant ? `${size(variant.size_bytes)}${variant.passed ? "" : "; it failed its parity gate"}` : "";
      const radio = make("input", { type: "radio", name: id, value: name, checked: name === checked });
      return make("label", { title }, radio, make("span", {}, name || "nothing"));
    }),
  );
}

/** A variant is not compared with itself. */
function showOthers() {
  const variant = chosen("variant");
  for (const radio of $("other").querySelectorAll("input")) {
    radio.disabled = radio.value === variant;
    if (radio.disabled && radio.checked) $("other").querySelector("input").checked = true;
  }
}

// --- ranking

async function rank() {
  if (!models.length && !(await loadModels())) return;
  const query = $("query").value;
  const passages = readPassages();
  for (const [field, filled, text] of [
    ["query", query.trim(), "There is no query. Type what you look for."],
    ["passages", passages.length, "There are no passages. Type or paste at least one."],
  ]) {
    $(field).setAttribute("aria-invalid", String(!filled));
    if (!filled) {
      showProblem(text);
      $(field).focus();
      return;
    }
  }
  asking?.abort();
  const mine = (asking = new AbortController());
  const model = currentModel();
  const variants = [chosen("variant"), chosen("other")].filter((name) => name);
  const fresh = model?.variants.filter((variant) => variants.includes(variant.name) && !variant.loaded) ?? [];
  $("answer").setAttribute("aria-busy", "true");
  $("status").textContent = fresh.length ? `Loading ${fresh.map((variant) => variant.name).join(" and ")}…` : "Ranking…";
  try {
    const answer = await ask("playground/rank", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ query, passages, variants, ...(model && { model: model.name }) }),
      signal: mine.signal,
    });
    for (const variant of fresh) variant.loaded = true;
    showProblem("");
    show(answer, query);
  } catch (error) {
    if (error.name === "AbortError") return; // a later request shows its answer
    $("status").textContent = shown ? "What stands here is the ranking before." : "";
    showProblem(error instanceof Trouble ? error.message : `The page failed: ${error.message}`);
  } finally {
    if (asking === mine) $("answer").setAttribute("aria-busy", "false");
  }
}

// --- showing a ranking

function show(answer, query) {
  const { runs } = answer;
  const scores = runs.flatMap((run) => run.results.map((result) => result.score));
  const scale = { low: Math.min(0, ...scores), high: Math.max(0, ...scores) };
  const slowest = Math.max(...runs.map((run) => run.total_ms));
  // places[k][i]: where run k has passage i, from 0
  const places = runs.map((run) => {
    const of = [];
    run.results.forEach((result, place) => { of[result.index] = place; });
    return of;
  });
  $("runs").replaceChildren(...runs.map((run, k) => showRun(run, { scale, slowest, other: 1 - k, runs, places })));
  $("status").textContent = summarize(answer, places);
  showQueryCut(query, answer.query_read);
  shown = true;
  // On a narrow screen the ranking is below the form; and whoever ranks again may have scrolled past its beginning.
  const { top, bottom } = $("status").getBoundingClientRect();
  if (top < 0 || bottom > innerHeight) $("answer").scrollIntoView();
  $("answer").dataset.shown = "";
}

function summarize({ runs, kendall_tau: tau }, places) {
  const passages = count(places[0].length, "passage");
  if (runs.length === 1) return `${passages} ranked by ${runs[0].variant} in ${ms(runs[0].total_ms)}.`;
  const moved = places[0].filter((place, i) => place !== places[1][i]).length;
  const first = runs[0].results[0].index === runs[1].results[0].index ? "the same first" : "another first";
  const order = tau === null ? "There is no order to compare." : `Kendall tau ${number(tau, 3)}, ${first} passage.`;
  return `${order} ${moved === 0 ? "Every place is the same." : `${moved} of ${passages} stand in another place.`}`;
}

function showQueryCut(query, [start, end]) {
  const points = [...query];
  const cut = start > 0 || end < points.length;
  $("notice").hidden = !cut;
  $("notice").replaceChildren(
    ...(cut ? ["The query is too long; the model does not read what is struck out: ", ...mark(points, start, end)] : []),
  );
}

function showRun(run, context) {
  const heading = make("h2", {}, run.variant, make("small", {}, run.provider), make("small", { className: "total" }, ms(run.total_ms)));
  const bar = make("div");
  bar.style.width = `${(100 * run.total_ms) / context.slowest}%`;
  const legend = make("ul", { className: "legend" });
  for (const [stage, label] of Object.entries(STAGES)) {
    const part = make("i", { className: stage });
    part.style.flex = `${run.stages_ms[stage]} 1 0`;
    bar.append(part);
    legend.append(make("li", {}, make("i", { className: stage }), `${label} ${ms(run.stages_ms[stage])}`));
  }
  const stages = make("div", { className: "stages", ariaHidden: "true" }, bar);
  const work = `${count(run.tokens, "token")} in ${count(run.batches, "batch", "batches")}, ${(100 * run.padding_waste).toFixed(0)} % padding`;
  const rows = run.results.map((result, place) => showRow(result, place, context));
  const list = make("ol", { className: "ranking", ariaLabel: `Ranking by ${run.variant}` }, ...rows);
  const section = make("section", { className: "run", ariaLabel: run.variant }, heading, stages, legend, make("p", { className: "work" }, work), list);
  section.dataset.variant = run.variant;
  return section;
}

function showRow(result, place, { scale, other, runs, places }) {
  const row = make("li", { className: "row" });
  row.dataset.index = result.index;
  const meta = make("p", { className: "meta" }, make("span", {}, count(result.tokens, "token")));
  if (runs.length > 1) {
    const there = places[other][result.index];
    if (there !== place) {
      row.classList.add("moved");
      meta.append(make("em", {}, `place ${there + 1} by ${runs[other].variant}`));
    }
    for (const [event, on] of [["mouseenter", true], ["mouseleave", false]]) row.addEventListener(event, () => markTwins(result.index, on));
  }
  if (result.truncated) meta.append(make("strong", {}, describeCut(result)));
  if (result.unknown_tokens) meta.append(make("strong", {}, `${count(result.unknown_tokens, "token")} unknown to the model`));
  row.append(
    make("div", { className: "place" }, make("span", { className: "rank" }, String(place + 1)), showMove(result.index, place)),
    make("div", {}, showScore(result.score, scale), showText(result), meta),
  );
  return row;
}

function describeCut({ query_truncated: query, read: [start, end], text }) {
  const length = [...text].length;
  if (start === 0 && end >= length) return "the query was cut";
  const part = `cut: ${(end - start).toLocaleString("en")} of ${length.toLocaleString("en")} characters read`;
  return query ? `${part}, and the query was cut` : part;
}

function showMove(index, place) {
  const by = index - place;
  const [sign, name, words] = by > 0 ? ["▲", "up", `up ${by}`] : by < 0 ? ["▼", "down", `down ${-by}`] : ["=", "", "in the same place"];
  const title = `${words}; it was passage ${index + 1}`;
  const shownSign = make("span", { ariaHidden: "true" }, by ? `${sign} ${Math.abs(by)}` : sign);
  return make("span", { className: `move ${name}`, title }, shownSign, make("span", { className: "off" }, title));
}

/** A bar from zero, to the right or to the left, on one scale for everything that is shown. */
function showScore(score, { low, high }) {
  const percent = (value) => (100 * (value - low)) / (high - low || 1);
  const bar = make("i", { className: score < 0 ? "below" : "" });
  bar.style.left = `${Math.min(percent(score), percent(0))}%`;
  bar.style.width = `${Math.abs(percent(score) - percent(0))}%`;
  const zero = make("b");
  zero.style.left = `${percent(0)}%`;
  const track = make("div", { className: "track", ariaHidden: "true" }, bar, ...(low < 0 ? [zero] : []));
  return make("div", { className: "score" }, track, make("span", { className: "value", title: String(score) }, make("span", { className: "off" }, "score "), number(score, 3)));
}

function showText({ text, read: [start, end] }) {
  const points = [...text];
  if (!points.length) return make("p", { className: "text empty" }, "an empty passage");
  const paragraph = make("p", { className: "text" });
  if (points.length <= LONG) {
    paragraph.append(...mark(points, start, end));
    return paragraph;
  }
  const all = () => mark(points, start, end);
  const part = () => excerpt(points, start, end);
  const button = make("button", { type: "button", className: "plain" }, "Show all");
  button.setAttribute("aria-expanded", "false");
  const content = make("span", {}, ...part());
  button.addEventListener("click", () => {
    const open = button.getAttribute("aria-expanded") !== "true";
    button.setAttribute("aria-expanded", String(open));
    button.textContent = open ? "Show less" : "Show all";
    content.replaceChildren(...(open ? all() : part()));
  });
  paragraph.append(content, " ", button);
  return paragraph;
}

/** A text's characters, with those outside start and end struck out. */
function mark(points, start, end, offset = 0) {
  const slice = (from, to) => points.slice(Math.max(0, from - offset), Math.max(0, to - offset)).join("");
  const unread = (text) => make("span", { className: "unread" }, make("span", { className: "off" }, "not read: "), text);
  const [before, within, after] = [slice(0, start), slice(start, end), slice(end, Infinity)];
  return [...(before ? [unread(before)] : []), within, ...(after ? [unread(after)] : [])];
}

/** The beginning of a long text, and the place where it was cut, if it was. */
function excerpt(points, start, end) {
  if (start === 0 && end >= points.length) return [`${points.slice(0, LONG).join("")}…`];
  const cut = start > 0 ? start : end;
  const [from, to] = [Math.max(150, cut - 100), Math.min(points.length, cut + 150)];
  const head = from > 150 ? [...mark(points.slice(0, 150), start, end), " …"] : mark(points.slice(0, 150), start, end);
  return [...head, ...mark(points.slice(from, to), start, end, from), ...(to < points.length ? ["…"] : [])];
}

function markTwins(index, on) {
  for (const row of $("runs").querySelectorAll(`[data-index="${index}"]`)) row.classList.toggle("twin", on);
}

// --- the form

function showCount() {
  $("count").textContent = count(readPassages().length, "passage");
}

function fill(sample) {
  $("query").value = sample.query;
  $("passages").value = sample.passages.join("\n\n");
  showCount();
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  rank();
});
$("form").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    rank();
  }
});
$("passages").addEventListener("input", showCount);
$("model").addEventListener("change", () => { showModel(); if (shown) rank(); });
$("variant").addEventListener("change", () => { showOthers(); if (shown) rank(); });
$("other").addEventListener("change", () => { if (shown) rank(); });
$("key").addEventListener("input", () => { key = $("key").value.trim(); });
$("use-key").addEventListener("click", loadModels);
$("key").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    loadModels();
  }
});
$("samples").append(
  ...SAMPLES.map((sample) => {
    const button = make("button", { type: "button" }, sample.name);
    button.addEventListener("click", () => { fill(sample); rank(); });
    return button;
  }),
);
fill(SAMPLES[0]);
loadModels().then(() => { document.body.dataset.ready = "true"; });
