// OpenAI's client for Node, chat completions, streamed.
import * as probe from "./probe.mjs";

const { default: OpenAI } = await probe.load("openai");
const client = new OpenAI({ baseURL: probe.api, apiKey: "none" });

async function ask(...messages) {
  const stream = await client.chat.completions.create({ model: probe.model, messages, stream: true });
  let text = "";
  for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
  return text;
}

const user = (part) => ({ role: "user", content: [{ type: "text", text: probe.prompt }, part] });
const picture = { type: "image_url", image_url: { url: probe.dataUrl(probe.picture, "image/png") } };
const pdf = {
  type: "file",
  file: { filename: "page.pdf", file_data: probe.dataUrl(probe.pdf, "application/pdf") },
};

await probe.run({
  picture: () => ask(user(picture)),
  pdf: () => ask(user(pdf)),
  system: () => ask({ role: "system", content: probe.system }, user(picture)),
  "second turn": async () => {
    const first = await ask(user(picture));
    return ask(user(picture), { role: "assistant", content: first }, { role: "user", content: probe.again });
  },
});
