// The text beside the page: rendered by the server as clean HTML, or as the model wrote it.

import * as api from "./api.js";

const $ = (id) => document.getElementById(id);
const PAUSE = 400; // ms between two renderings of a text that grows
const SURE = 0.9; // probability from which a word is not tinted

export class Texts {
  constructor(lit) {
    this.lit = lit;
    this.page = null;
    this.view = "rendered";
    this.tint = false;
    const tabs = { rendered: $("tab-rendered"), source: $("tab-source") };
    for (const [view, tab] of Object.entries(tabs)) {
      tab.onclick = () => this.choose(view);
      tab.onkeydown = (event) => {
        if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
        this.choose(view === "rendered" ? "source" : "rendered");
        tabs[this.view].focus();
      };
    }
    const point = (event) => {
      const section = event.target.closest?.("[data-boxes]");
      const numbers = section?.dataset.boxes ? section.dataset.boxes.split(" ").map(Number) : null;
      this.lit(numbers);
    };
    $("rendered").onmouseover = $("source").onmouseover = point;
    $("rendered").onmouseleave = $("source").onmouseleave = () => this.lit(null);
  }

  choose(view) {
    this.view = view;
    for (const name of ["rendered", "source"]) {
      $(name).hidden = name !== view;
      $(`tab-${name}`).setAttribute("aria-selected", name === view);
      $(`tab-${name}`).tabIndex = name === view ? 0 : -1;
    }
    if (this.page) this.show(this.page);
  }

  show(page) {
    const other = page !== this.page;
    this.page = page;
    if (other) {
      $("rendered").replaceChildren();
      $("source").replaceChildren();
      this.shown = null;
    }
    if (this.view === "source") this.showSource(page);
    else this.showRendered(page);
  }

  showSource(page) {
    const pane = $("source");
    const below = pane.scrollHeight - pane.scrollTop - pane.clientHeight < 40;
    const count = page.pieces.length;
    const whole = this.shown?.boxes !== page.boxes || this.shown?.tint !== this.tint || count < this.shown.count;
    const from = whole ? 0 : this.shown.count;
    if (whole) pane.replaceChildren();
    if (page.boxes.length && page.finish) pane.replaceChildren(...byBoxes(page));
    else pane.append(...page.pieces.slice(from).map((piece) => this.piece(piece)));
    this.shown = { boxes: page.boxes, tint: this.tint, count };
    if (below) pane.scrollTop = pane.scrollHeight;
  }

  piece({ text, probability }) {
    if (!this.tint || probability === null || probability >= SURE) return document.createTextNode(text);
    const span = document.createElement("mark");
    span.className = `u${Math.min(4, Math.floor((SURE - probability) / 0.2))}`;
    span.title = `${Math.round(probability * 100)} % sure`;
    span.textContent = text;
    return span;
  }

  // While a text grows it is rendered every now and then, never twice at once.
  async showRendered(page) {
    if (page.html !== null) return this.put(page, page.html);
    if (this.rendering || !page.text) return;
    this.rendering = true;
    const { text, boxes } = page;
    const over = page.finish !== null;
    try {
      const html = await api.render({ text: text.slice(0, 60_000), boxes: boxes.map(({ label, text: words }) => ({ label, text: words })) });
      if (over && page.text === text) page.html = html;
      if (this.page === page && this.view === "rendered") await this.put(page, html);
    } catch (error) {
      if (this.page === page) $("rendered").textContent = over ? text : "";
    }
    await new Promise((done) => setTimeout(done, over ? 0 : PAUSE));
    this.rendering = false;
    if (this.page && this.view === "rendered" && (this.page !== page || page.text !== text || !over)) this.show(this.page);
  }

  // html: cleaned by the server; see render.py there.
  async put(page, html) {
    if (this.shown?.html === html) return;
    this.shown = { html };
    const pane = $("rendered");
    const below = pane.scrollHeight - pane.scrollTop - pane.clientHeight < 40 && page.finish === null;
    pane.innerHTML = html;
    if (below) pane.scrollTop = pane.scrollHeight;
    const figures = pane.querySelectorAll("img[data-figure]");
    if (!figures.length || page.finish === null) return;
    page.figures ??= await page.cutFigures();
    for (const figure of figures) {
      const blob = page.figures[Number(figure.dataset.figure)];
      if (blob) figure.src = URL.createObjectURL(blob);
      figure.onload = () => URL.revokeObjectURL(figure.src);
    }
  }

  light(numbers, scroll) {
    for (const section of document.querySelectorAll("#text-pane [data-boxes]")) {
      const own = section.dataset.boxes.split(" ").filter(Boolean).map(Number);
      const lit = numbers?.some((number) => own.includes(number)) ?? false;
      section.classList.toggle("lit", lit);
      if (lit && scroll) section.scrollIntoView({ block: "nearest" });
    }
  }
}

// The source cut where its boxes' texts stand, so that pointing works there too.
function byBoxes({ text, boxes }) {
  const nodes = [];
  let at = 0;
  boxes.forEach(({ text: words, label }, number) => {
    const sought = words.trim() ? words : label;
    const found = text.indexOf(sought, at);
    if (found < 0 || !sought) return;
    nodes.push(document.createTextNode(text.slice(at, found)));
    const span = document.createElement("span");
    span.dataset.boxes = number;
    span.textContent = sought;
    nodes.push(span);
    at = found + sought.length;
  });
  nodes.push(document.createTextNode(text.slice(at)));
  return nodes;
}
