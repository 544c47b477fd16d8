// Settings of a request, with the server's defaults; the key; the same request as code.

import * as api from "./api.js";
import { requestOf } from "./reader.js";

const $ = (id) => document.getElementById(id);

export class Drawer {
  constructor(changed) {
    this.values = {};
    $("settings").onclick = () => this.open();
    $("key").onchange = () => {
      api.setKey($("key").value.trim());
      changed();
    };
    $("reset").onclick = () => {
      this.values = {};
      this.draw();
    };
    $("drawer").onclose = changed;
  }

  open(why) {
    if ($("drawer").open) return; // somebody is writing in it
    $("key").value = api.key();
    $("drawer").showModal();
    if (why === "key") $("key").focus();
  }

  take(settings) {
    if (JSON.stringify(settings) === JSON.stringify(this.settings)) return; // fields that somebody may be writing in
    this.settings = settings;
    this.values = Object.fromEntries(Object.entries(this.values).filter(([name]) => settings.some((one) => one.name === name)));
    this.draw();
  }

  draw() {
    $("fields").replaceChildren(...this.settings.map((setting) => this.field(setting)));
  }

  field({ name, kind, help, default: value, default_text: text, limit }) {
    const label = document.createElement("label");
    const input = document.createElement(kind === "boolean" ? "select" : "input");
    const given = this.values[name];
    if (kind === "boolean") {
      for (const [shown, choice] of [[`default (${value ? "on" : "off"})`, ""], ["on", "true"], ["off", "false"]]) {
        input.add(new Option(shown, choice, false, String(given ?? "") === choice));
      }
    } else {
      Object.assign(input, { type: "number", step: kind === "integer" ? 1 : "any", placeholder: value ?? text ?? "" });
      if (limit) input.max = limit;
      input.value = given ?? "";
    }
    input.onchange = () => {
      if (input.value === "" || !input.checkValidity()) delete this.values[name];
      else this.values[name] = kind === "boolean" ? input.value === "true" : Number(input.value);
    };
    const hint = document.createElement("small");
    hint.textContent = limit ? `${help}; at most ${limit}` : help;
    label.append(name.replaceAll("_", " "), input, hint);
    return label;
  }
}

// The request for what was just read, for people who want it in a script.
export function showCode(settings, { document: { name, drawn }, number }) {
  const { stream, stream_options, ...body } = requestOf(settings, null);
  const type = drawn ? "application/pdf" : "image/png";
  const content = (url) => drawn ? { type: "file", file: { filename: name, file_data: url } } : { type: "image_url", image_url: { url } };
  body.ocr = { boxes: true, ...(drawn ? { pages: String(number) } : {}) };
  const words = body.messages[0].content.slice(1);
  body.messages[0].content = [content(`data:${type};base64,FILE`), ...words];
  const [before, after] = JSON.stringify(body).split("FILE");
  const base = `${location.origin}/v1`;
  const bearer = api.key() ? ' -H "Authorization: Bearer $OCR_ONNX_API_KEY"' : "";
  $("curl").textContent =
    `{ printf %s ${shell(before)}; base64 -w0 ${shell(name)}; printf %s ${shell(after)}; } |\n` +
    `curl -s ${base}/chat/completions -H 'Content-Type: application/json'${bearer} -d @-`;
  const { model, messages, ...extra } = body;
  $("python").textContent =
    `import base64\n${api.key() ? "import os\n" : ""}\nfrom openai import OpenAI\n\n` +
    `client = OpenAI(base_url=${JSON.stringify(base)}, api_key=${api.key() ? 'os.environ["OCR_ONNX_API_KEY"]' : '"none"'})\n` +
    `url = "data:${type};base64," + base64.b64encode(open(${JSON.stringify(name)}, "rb").read()).decode()\n` +
    `answer = client.chat.completions.create(\n    model=${JSON.stringify(model)},\n` +
    `    messages=[{"role": "user", "content": ${python([content(null), ...words]).replace("None", "url")}}],\n` +
    `    extra_body=${python(extra)},\n)\nprint(answer.choices[0].message.content)`;
  $("code-dialog").showModal();
}

const shell = (word) => `'${word.replaceAll("'", "'\\''")}'`;

function python(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${python(one)}`).join(", ")}}`;
}
