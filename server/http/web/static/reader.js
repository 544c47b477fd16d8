// Reads documents page after page, a few pages at once, through the same API that every client uses.

import * as api from "./api.js";
import { blobFromDataUrl, dataUrl, ended } from "./documents.js";

const TRIES = 6; // of a page whose connection breaks, or for which the server has no place
const LONGEST_WAIT = 60; // seconds between two tries

export class Reader {
  // settings(): {model, task, fields}; changed(page or null): something is to be shown anew
  constructor(settings, changed) {
    Object.assign(this, { settings, changed, documents: [], atOnce: 2 });
  }

  add(document) {
    this.documents.push(document);
    this.pump();
  }

  get pages() {
    return this.documents.flatMap((document) => document.pages);
  }

  // Start what can be started.
  pump() {
    for (const document of this.documents) {
      if (document.drawn && document.count === null && !document.error && !document.drawing) this.draw(document);
      for (const page of document.pages) {
        if (page.state !== "waiting" || (!document.drawn && !page.url)) continue;
        if (this.pages.filter((one) => one.stop).length >= this.atOnce) return;
        if (document.drawn && !page.whole) {
          if (!document.drawing) this.draw(document, page);
          break; // its pages come in order
        }
        this.read(page);
      }
      if (!document.over) return; // documents queue
    }
  }

  // Have the server draw the next few pages, from `page` on.
  async draw(document, page = null) {
    document.drawing = new AbortController();
    const again = page?.seen;
    const chosen = again ? String(page.number) : document.chosen;
    const skip = page && !again ? document.pages.indexOf(page) : 0;
    if (page) page.state = "drawing";
    this.changed(page);
    try {
      for await (const line of api.pages(document.file, chosen, skip, document.drawing.signal)) {
        if (line.count !== undefined) {
          if (document.count === null) document.begin(line);
          continue;
        }
        const drawn = document.pages.find((one) => one.number === line.page);
        if (!drawn || ended(drawn)) continue;
        if (line.error) Object.assign(drawn, { state: "failed", error: line.error });
        else {
          await drawn.show(await blobFromDataUrl(line.image));
          drawn.seen = true;
          drawn.state = "waiting";
        }
        this.changed(drawn);
      }
    } catch (error) {
      if (error.name !== "AbortError") this.failDrawing(document, page, error);
    }
    document.drawing = null;
    this.changed(null);
    this.pump();
  }

  failDrawing(document, page, error) {
    if (page) Object.assign(page, { state: "failed", error: error.message });
    else document.error = error.message;
    this.refused(error);
  }

  // A page that is read again meanwhile (turned, say) belongs to the later reading: this one then ends without a word.
  async read(page) {
    const stop = (page.stop = new AbortController());
    page.state = "queued";
    page.began = performance.now();
    this.changed(page);
    for (let attempt = 1; ; attempt++) {
      try {
        await this.stream(page, stop);
        break;
      } catch (error) {
        if (page.stop !== stop) return;
        if (error.name === "AbortError") {
          page.state = "cancelled";
          break;
        }
        const passing = error instanceof api.Lost || error.status === 503 || error.status === 429;
        if (!passing || attempt >= TRIES) {
          Object.assign(page, { state: "failed", error: error.message, note: null });
          this.refused(error);
          break;
        }
        const seconds = Math.min(error.retryAfter ?? 2 ** attempt, LONGEST_WAIT);
        const goesOn = await this.waited(page, error, seconds, stop);
        if (page.stop !== stop) return;
        if (!goesOn) {
          page.state = "cancelled";
          break;
        }
        Object.assign(page, { text: "", pieces: [], tokens: 0, state: "queued", note: null });
      }
    }
    if (page.stop !== stop) return;
    page.note = page.state === "failed" ? page.note : null;
    page.stop = null;
    await page.shrink();
    this.changed(page);
    this.pump();
  }

  // Count down to the next try; false when it was cancelled meanwhile.
  async waited(page, error, seconds, stop) {
    for (let left = Math.ceil(seconds); left > 0; left--) {
      if (stop.signal.aborted) return false;
      page.note = `${error.message} Next try in ${left} s.`;
      this.changed(page);
      await new Promise((done) => setTimeout(done, 1000));
    }
    return !stop.signal.aborted;
  }

  refused(error) {
    if (error.status === 401) this.onKeyNeeded?.();
  }

  async stream(page, stop) {
    const body = requestOf(this.settings(), await dataUrl(page.blob));
    for await (const chunk of api.chat(body, stop.signal)) {
      if (page.stop !== stop) return;
      const stage = chunk.ocr?.stage;
      if (stage) page.state = stage;
      const choice = chunk.choices?.[0];
      if (choice?.delta?.content) {
        page.state = "reading";
        page.first ||= performance.now();
        page.text += choice.delta.content;
        page.pieces.push({ text: choice.delta.content, probability: lowest(choice.logprobs) });
        page.tokens += choice.logprobs?.content?.length ?? 1;
        const seconds = (performance.now() - page.first) / 1000;
        page.rate = seconds > 0.5 ? page.tokens / seconds : 0;
      }
      if (choice?.finish_reason) finish(page, chunk.ocr ?? {});
      if (chunk.usage) page.tokens = chunk.usage.completion_tokens;
      this.changed(page);
    }
  }

  again(page) {
    page.stop?.abort();
    page.clear();
    this.changed(page);
    this.pump();
  }

  cancel(document) {
    document.drawing?.abort();
    for (const page of document.pages) {
      if (page.stop) page.stop.abort();
      else if (!ended(page)) page.state = "cancelled";
    }
    if (document.count === null && document.drawn) document.error = "cancelled";
    this.changed(null);
    this.pump();
  }

  // Seconds until all is read, by the pages that are; null while nothing is known.
  get left() {
    const done = this.pages.filter((page) => page.seconds);
    if (!done.length) return null;
    const mean = done.reduce((sum, page) => sum + page.seconds, 0) / done.length;
    const open = this.pages.filter((page) => !ended(page)).length;
    return (mean * open) / Math.min(this.atOnce, Math.max(1, open));
  }
}

function finish(page, told) {
  page.boxes = told.boxes ?? [];
  page.blocks = told.blocks ?? [];
  page.finish = told.finish_detail ?? null;
  page.warning = told.warning ?? null;
  page.confidence = told.confidence ?? null;
  page.rate = told.tokens_per_second ?? page.rate;
  page.timings = told.timings;
  page.seconds = (performance.now() - page.began) / 1000;
  page.state = page.text.trim() ? "done" : "blank";
}

const lowest = (logprobs) =>
  logprobs?.content?.length ? Math.exp(Math.min(...logprobs.content.map((one) => one.logprob))) : null;

// The request for one page, also shown as code.
export const requestOf = ({ model, task, words, fields, tint }, url) => ({
  model,
  ...(task ? { task } : {}),
  ...fields,
  messages: [{ role: "user", content: [{ type: "image_url", image_url: { url } }, ...(words ? [{ type: "text", text: words }] : [])] }],
  stream: true,
  stream_options: { include_usage: true },
  ...(tint ? { logprobs: true } : {}),
  ocr: { boxes: true, progress: true },
});
