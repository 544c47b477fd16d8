// Puts the page together: what was dropped, what is looked at, what is shown of it.

import * as api from "./api.js";
import { Doc, STATES, base64, ended } from "./documents.js";
import { Drawer, showCode } from "./drawer.js";
import { Reader } from "./reader.js";
import { Texts } from "./texts.js";
import { Viewer } from "./viewer.js";

const $ = (id) => document.getElementById(id);
const DEMONSTRATION = "tiny-ocr";
let models = [];
let limits = { max_file_mb: 20, max_pages: 200 };
let tasksOf = null; // the model whose tasks are offered
let current = null; // the page that is looked at

const light = (numbers, scroll = false) => {
  viewer.light(numbers);
  texts.light(numbers, scroll);
};
const viewer = new Viewer(light);
const texts = new Texts(light);
const drawer = new Drawer(() => {
  texts.tint = $("tint").checked;
  start();
});
const settings = () => ({ model: $("model").value, task: $("task").value, words: $("words-label").hidden ? "" : $("words").value.trim(), fields: drawer.values, tint: $("tint").checked });
const reader = new Reader(settings, (page) => refresh(page));
reader.onKeyNeeded = () => drawer.open("key");

function say(text) {
  $("notice").textContent = text ?? "";
  $("notice").hidden = !text;
}

// What the server has: models, tasks, settings. A closed drawer, a new key and a chosen model ask anew: only the last
// one to ask shows its answer, whichever comes last.
let asking = 0;
async function start() {
  const mine = ++asking;
  try {
    const found = await api.models();
    const wanted = $("model").value || (await api.config("")).model;
    if (mine !== asking) return;
    models = found;
    $("model").replaceChildren(...models.map(({ id, exported }) => new Option(exported === false ? `${id} (not exported)` : id, id, false, id === wanted)));
    await chooseModel(mine);
  } catch (error) {
    if (mine !== asking) return;
    if (error.status === 401) {
      say(api.key() ? "This key is not one of the server's." : "This server needs a key.");
      drawer.open("key");
    } else say(error.message);
  }
}

async function chooseModel(mine = ++asking) {
  const model = models.find((one) => one.id === $("model").value);
  const known = await api.config(model.id);
  if (mine !== asking) return;
  limits = known;
  reader.atOnce = known.at_once;
  drawer.take(known.settings);
  // Settings that were closed, or a key, leave the task that was chosen.
  const task = tasksOf === model.id ? $("task").value : model.default_task;
  tasksOf = model.id;
  $("task").replaceChildren(...model.tasks.map((one) => new Option(one, one, false, one === task)));
  chooseTask();
  if (model.exported === false) say(`${model.id} is not exported on this server yet; its operator runs: ocr-onnx export ${model.id}`);
  else if (model.id.startsWith(DEMONSTRATION)) say("tiny-ocr is the built-in demonstration: clean print in Latin letters only. It misreads handwriting, dense pages and other scripts.");
  else say(null);
}

// A task about something asks what.
function chooseTask() {
  $("words-label").hidden = !limits.text_tasks.includes($("task").value);
}

function take(files) {
  const large = [...files].filter((file) => file.size > limits.max_file_mb * 2 ** 20);
  if (large.length) say(`${large.map((file) => file.name).join(", ")}: more than this server takes (${limits.max_file_mb} MB a file).`);
  for (const file of files) {
    if (large.includes(file)) continue;
    const document = new Doc(file, $("pages").value.trim());
    reader.add(document);
    if (document.drawn) continue;
    const [page] = document.pages;
    page.show(file).catch(() => {
      document.drawn = true; // a picture that this browser cannot show: the server draws it
      document.pages = [];
    }).finally(() => {
      refresh(page);
      reader.pump();
    });
  }
}

// Show anew what has changed, once a frame at the most.
let stale = new Set();
let asked = false;
function refresh(page) {
  if (page) stale.add(page);
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    current ??= reader.pages[0] ?? null;
    $("start").classList.toggle("small", reader.documents.length > 0);
    $("work").hidden = !reader.documents.length;
    list();
    if (current && (stale.has(current) || !texts.page)) show(current);
    if (current) where();
    stale = new Set();
  });
}

// The documents with a mark for each page. Elements are kept: a document of 300 pages changes all the time.
const entries = new Map();
function list() {
  for (const document of reader.documents) {
    let entry = entries.get(document);
    if (!entry) {
      entry = makeEntry(document);
      entries.set(document, entry);
      $("list").append(entry.element);
    }
    const done = document.pages.filter(ended).length;
    entry.count.textContent = document.error ?? (document.count === null && document.drawn ? "opening" : `${done} of ${document.pages.length}`);
    entry.stop.hidden = document.over;
    document.pages.forEach((page, index) => {
      let mark = entry.marks.children[index];
      if (!mark) {
        mark = makeMark(page);
        entry.marks.append(mark);
      }
      mark.className = `mark ${page.state}${page.warning ? " cut" : ""}`;
      mark.setAttribute("aria-current", page === current);
      mark.setAttribute("aria-label", `${document.name}, page ${page.number}: ${STATES[page.state]}`);
    });
  }
}

function makeEntry(document) {
  const element = Object.assign(window.document.createElement("section"), { className: "entry" });
  const name = Object.assign(window.document.createElement("h2"), { textContent: document.name, title: document.name });
  const count = Object.assign(window.document.createElement("span"), { className: "count" });
  const stop = Object.assign(window.document.createElement("button"), { textContent: "Cancel" });
  stop.setAttribute("aria-label", `Cancel ${document.name}`);
  stop.onclick = () => reader.cancel(document);
  const marks = Object.assign(window.document.createElement("div"), { className: "marks" });
  element.append(name, count, stop, marks);
  return { element, count, stop, marks };
}

function makeMark(page) {
  const mark = window.document.createElement("button");
  mark.textContent = page.number;
  mark.onclick = () => look(page);
  return mark;
}

function look(page) {
  if (!page) return;
  current = page;
  show(page);
  list();
  where();
}

function show(page) {
  viewer.show(page);
  texts.show(page);
  $("cancel").hidden = !page.stop;
  $("again").disabled = !ended(page);
  $("progress").textContent = progress(page);
}

function progress(page) {
  if (page.note) return page.note;
  if (page.state === "failed") return `Failed: ${page.error}`;
  const parts = [STATES[page.state]];
  if (page.tokens) parts.push(`${page.tokens} tokens`);
  if (page.rate) parts.push(`${page.rate.toFixed(0)} tokens/s`);
  if (page.confidence) parts.push(`${Math.round(100 * page.confidence.mean)} % sure`);
  if (page.seconds && ended(page)) parts.push(`${page.seconds.toFixed(1)} s`);
  const left = reader.left;
  if (!ended(page) && left) parts.push(`about ${duration(left)} left for all`);
  const cut = page.warning ? ` ${page.warning[0].toUpperCase()}${page.warning.slice(1)}.` : "";
  return `${parts.join(" · ")}.${cut}`;
}

const duration = (seconds) => (seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} min`);

function where() {
  const pages = current.document.pages;
  $("where").textContent = `${pages.indexOf(current) + 1} / ${pages.length}`;
}

const beside = (step) => look(reader.pages[reader.pages.indexOf(current) + step]);

async function save(format) {
  const { name, pages } = current.document;
  const read = pages.filter((page) => page.text);
  const stem = name.replace(/\.[^.]+$/, "") || "document";
  try {
    let blob;
    if (format === "md") blob = new Blob([read.map((page) => page.text).join("\n\n")], { type: "text/markdown" });
    else if (format === "json") blob = new Blob([JSON.stringify({ document: name, pages: pages.map(asJson) }, null, 1)], { type: "application/json" });
    else {
      blob = await api.download({ name: stem, format, pages: await Promise.all(read.map((page) => asSent(page, format))) });
    }
    const ending = format === "alto" ? "alto.xml" : format;
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: `${stem}.${ending}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  } catch (error) {
    say(error.message);
  }
}

// A page with what the server needs of it to write a format.
const asSent = async (page, format) => ({
  text: page.text, page: page.number, width: page.width, height: page.height, blocks: page.blocks,
  boxes: page.boxes.map(({ label, text, box }) => ({ label, text, box })),
  ...(["html", "docx", "zip"].includes(format) ? { figures: await Promise.all((await page.cutFigures()).map(base64)) } : {}),
  ...(format === "pdf" ? { picture: await base64(page.blob) } : {}),
});

const asJson = ({ number, state, width, height, text, boxes, finish, confidence, warning, error, timings }) =>
  ({ page: number, state, width, height, text, boxes, finish_detail: finish, confidence, warning, error, timings });

// Events of the page.
$("choose").onclick = () => $("files").click();
$("photo").onclick = () => $("camera").click();
for (const input of [$("files"), $("camera")]) {
  input.onchange = () => {
    take(input.files);
    input.value = "";
  };
}
addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
addEventListener("dragleave", (event) => event.relatedTarget ?? $("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  take(event.dataTransfer.files);
});
addEventListener("paste", (event) => event.clipboardData.files.length && take(event.clipboardData.files));
addEventListener("beforeunload", (event) => reader.pages.some((page) => page.stop) && event.preventDefault());
addEventListener("keydown", (event) => {
  if (event.target.closest("input, select, textarea, dialog, [role=tab]") || event.ctrlKey || event.metaKey || event.altKey || !current) return;
  const keys = { ArrowLeft: () => beside(-1), ArrowRight: () => beside(1), "+": () => $("in").click(), "-": () => $("out").click(), 0: () => $("fit").click(), r: () => $("rotate").click() };
  keys[event.key]?.();
});
$("model").onchange = () => chooseModel().catch((error) => say(error.message));
$("task").onchange = chooseTask;
$("previous").onclick = () => beside(-1);
$("next").onclick = () => beside(1);
$("rotate").onclick = async () => {
  const page = current; // another one may be looked at once this one is turned
  if (!page?.blob) return;
  await page.turn();
  reader.again(page);
};
$("again").onclick = () => reader.again(current);
$("cancel").onclick = () => current.stop?.abort();
$("copy").onclick = async () => {
  await navigator.clipboard.writeText(current.text);
  $("copy").textContent = "Copied";
  setTimeout(() => ($("copy").textContent = "Copy"), 1500);
};
$("download").onchange = () => {
  save($("download").value);
  $("download").value = "";
};
$("code").onclick = () => showCode(settings(), current);
start();
