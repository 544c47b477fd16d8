// What the probes for Node share; see probe.py.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

export const api = `${process.env.CLIENT_URL}/v1`;
export const model = process.env.CLIENT_MODEL;
export const prompt = "Please transcribe this image.";
export const system = "You are a helpful assistant.";
export const again = "Please read it once more.";
export const picture = readFileSync(process.env.CLIENT_PICTURE);
export const pdf = readFileSync(process.env.CLIENT_PDF);

export function dataUrl(bytes, mime) {
  return `data:${mime};base64,${bytes.toString("base64")}`;
}

// The packages lie in the client's own folder, not above this file.
export function load(name) {
  const require = createRequire(`${process.env.CLIENT_MODULES}/`);
  return import(pathToFileURL(require.resolve(name)));
}

export async function run(cases) {
  for (const [name, read] of Object.entries(cases)) {
    const entry = { case: name };
    try {
      if (typeof read === "string") entry.skipped = read;
      else entry.text = await read();
    } catch (error) {
      console.error(error);
      entry.error = `${error.name}: ${error.message}`.slice(0, 300);
    }
    console.log(JSON.stringify(entry));
  }
}
