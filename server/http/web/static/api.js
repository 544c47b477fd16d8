// What the page asks of the server: the /v1 API like any client, and the /web helpers.

const KEY = "ocr-onnx-key"; // in sessionStorage: gone with the tab

export const key = () => sessionStorage.getItem(KEY) ?? "";
export const setKey = (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY));

// An answer that is no success. retryAfter: seconds, where the server says so.
export class Refused extends Error {
  constructor(status, message, code, retryAfter) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
}

// The connection broke, before or in the middle of an answer.
export class Lost extends Error {}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key()) headers.Authorization = `Bearer ${key()}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Lost("The server cannot be reached.");
  }
  if (answer.ok) return answer;
  const text = await answer.text().catch(() => "");
  let told = {};
  try { told = JSON.parse(text).error ?? {}; } catch { /* a proxy's page: its status says enough */ }
  const wait = Number(answer.headers.get("Retry-After")) || null;
  throw new Refused(answer.status, told.message ?? `The server answered ${answer.status}.`, told.code, wait);
}

const json = (body) => ({ method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

export const models = async () => (await (await ask("/v1/models")).json()).data;
export const config = async (model) => (await ask(`/web/config?model=${encodeURIComponent(model)}`)).json();
export const render = async (page) => (await (await ask("/web/render", json(page))).json()).html;
export const download = async (wanted) => (await ask("/web/download", json(wanted))).blob();

async function* lines(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let over = false;
  try {
    for (;;) {
      const { value, done } = await reader.read();
      over = done;
      if (done) break;
      const parts = (rest + value).split("\n");
      rest = parts.pop();
      yield* parts;
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Lost("The connection broke.");
  } finally {
    if (!over) reader.cancel().catch(() => {}); // it may have broken meanwhile
  }
  if (rest) yield rest;
}

// A document's pages from number `skip` of the chosen ones on, a few at a time: {count, chosen}, then {page, image | error}.
export async function* pages(file, chosen, skip, signal) {
  const query = new URLSearchParams({ skip, ...(chosen ? { pages: chosen } : {}) });
  const headers = { "Content-Type": "application/octet-stream" };
  const answer = await ask(`/web/pages?${query}`, { method: "POST", headers, body: file, signal });
  for await (const line of lines(answer)) yield JSON.parse(line);
}

// The chunks of a streamed chat completion.
export async function* chat(body, signal) {
  const answer = await ask("/v1/chat/completions", { ...json(body), signal });
  let over = false;
  for await (const line of lines(answer)) {
    over ||= line === "data: [DONE]";
    if (over || !line.startsWith("data: ")) continue;
    const chunk = JSON.parse(line.slice(6));
    if (chunk.error) throw new Refused(500, chunk.error.message, chunk.error.code);
    yield chunk;
  }
  if (!over) throw new Lost("The connection broke before the answer's end.");
}
