// The AI SDK with its provider for OpenAI-compatible servers.
import * as probe from "./probe.mjs";

const { generateText } = await probe.load("ai");
const { createOpenAICompatible } = await probe.load("@ai-sdk/openai-compatible");
const model = createOpenAICompatible({ name: "ours", baseURL: probe.api, apiKey: "none" })(probe.model);

async function ask(messages, system) {
  return (await generateText({ model, messages, ...(system ? { system } : {}), maxRetries: 0 })).text;
}

const user = (data, mediaType) => ({
  role: "user",
  content: [
    { type: "text", text: probe.prompt },
    { type: "file", data, mediaType, filename: "page" },
  ],
});
const picture = user(probe.picture, "image/png");

await probe.run({
  picture: () => ask([picture]),
  pdf: () => ask([user(probe.pdf, "application/pdf")]),
  system: () => ask([picture], probe.system),
  "second turn": async () => {
    const first = await ask([picture]);
    return ask([picture, { role: "assistant", content: first }, { role: "user", content: probe.again }]);
  },
});
