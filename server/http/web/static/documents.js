// Documents and their pages, from the file that was dropped to the text that was read.

const SHOWN = new Set(["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"]);
const PREVIEW = 1400; // pixels of the longer side that are kept of a document's page once it has been read

// States of a page, in their order; the last four are ends.
export const STATES = {
  waiting: "waiting", drawing: "drawing", queued: "queued", seeing: "seeing the page", reading: "reading",
  done: "done", blank: "blank: no text found", failed: "failed", cancelled: "cancelled",
};
export const ended = (page) => ["done", "blank", "failed", "cancelled"].includes(page.state);

export class Page {
  constructor(document, number) {
    Object.assign(this, { document, number, url: null, width: 0, height: 0, whole: false, turned: 0 });
    this.clear();
  }

  clear() {
    Object.assign(this, { state: "waiting", text: "", pieces: [], boxes: [], blocks: [], html: null, error: null, finish: null,
      warning: null, confidence: null, tokens: 0, began: 0, first: 0, rate: 0, figures: null, note: null });
    this.stop = null; // an AbortController while it is being read
  }

  async show(blob) {
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = URL.createObjectURL(blob);
    this.blob = blob;
    const bitmap = await createImageBitmap(blob, { imageOrientation: "from-image" });
    Object.assign(this, { width: bitmap.width, height: bitmap.height, whole: true });
    bitmap.close();
  }

  async canvas(turned = 0) {
    const bitmap = await createImageBitmap(this.blob, { imageOrientation: "from-image" });
    const canvas = document.createElement("canvas");
    const aside = turned % 180 !== 0;
    [canvas.width, canvas.height] = aside ? [bitmap.height, bitmap.width] : [bitmap.width, bitmap.height];
    const context = canvas.getContext("2d");
    context.translate(canvas.width / 2, canvas.height / 2);
    context.rotate((turned * Math.PI) / 180);
    context.drawImage(bitmap, -bitmap.width / 2, -bitmap.height / 2);
    bitmap.close();
    return canvas;
  }

  // Turn by 90 degrees, one turn after the other, whether or not the one before could be made.
  turn() {
    const turning = async () => {
      const canvas = await this.canvas(90);
      this.turned = (this.turned + 90) % 360;
      await this.show(await blobOf(canvas, "image/png"));
    };
    this.turning = (this.turning ?? Promise.resolve()).then(turning, turning);
    return this.turning;
  }

  // Once a drawn page has been read, a smaller picture of it is enough to look at.
  async shrink() {
    if (!this.document.drawn || this.turned || Math.max(this.width, this.height) <= PREVIEW) return;
    const { width, height, blob } = this;
    const scale = PREVIEW / Math.max(width, height);
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [Math.round(width * scale), Math.round(height * scale)];
    canvas.getContext("2d").drawImage(await createImageBitmap(blob), 0, 0, canvas.width, canvas.height);
    const smaller = await blobOf(canvas, "image/jpeg");
    if (this.blob !== blob) return; // it was turned meanwhile
    await this.show(smaller);
    Object.assign(this, { width, height, whole: false }); // boxes are in pixels of the page as it was read
  }

  // The figures that the text names, as blobs in its order.
  async cutFigures() {
    const named = this.boxes.filter(({ box }) => this.text.includes(`<!-- image [${box.join(", ")}] -->`));
    const places = named.length ? named : this.boxes.filter((box) => box.label.trim() === "image");
    if (!places.length) return [];
    const bitmap = await createImageBitmap(this.blob, { imageOrientation: "from-image" });
    const scale = bitmap.width / this.width;
    return Promise.all(places.map(({ box: [x0, y0, x1, y1] }) => {
      const canvas = document.createElement("canvas");
      const [width, height] = [Math.max(1, (x1 - x0) * scale), Math.max(1, (y1 - y0) * scale)];
      [canvas.width, canvas.height] = [width, height];
      canvas.getContext("2d").drawImage(bitmap, x0 * scale, y0 * scale, width, height, 0, 0, width, height);
      return blobOf(canvas, "image/png");
    }));
  }
}

export class Doc {
  constructor(file, chosen) {
    Object.assign(this, { file, name: file.name || "pasted picture", chosen, pages: [], count: null, error: null });
    this.drawn = !SHOWN.has(file.type); // a PDF, or a picture that browsers do not show: the server draws it
    if (!this.drawn) this.pages.push(new Page(this, 1));
  }

  // What the server says of a document once it has opened it.
  begin({ count, chosen }) {
    this.count = count;
    this.pages = chosen.map((number) => new Page(this, number));
  }

  get over() {
    return this.error !== null || (this.pages.length > 0 && this.pages.every(ended));
  }
}

export const blobOf = (canvas, type) => new Promise((done) => canvas.toBlob(done, type, 0.85));

export const dataUrl = (blob) =>
  new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(blob);
  });

export const base64 = async (blob) => (await dataUrl(blob)).split(",")[1] ?? "";

export async function blobFromDataUrl(url) {
  const [head, data] = url.split(",");
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: head.slice(5).split(";")[0] });
}
