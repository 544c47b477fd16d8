// The page image with the boxes over it: zoom, and which box belongs to which piece of the text.

const $ = (id) => document.getElementById(id);
const COLOURS = 6; // of labels, see page.css
const STEP = 1.25;

export class Viewer {
  // lit(numbers or null): boxes that are pointed at
  constructor(lit) {
    this.lit = lit;
    this.zoom = 1;
    this.page = null;
    $("in").onclick = () => this.scale(this.zoom * STEP);
    $("out").onclick = () => this.scale(this.zoom / STEP);
    $("fit").onclick = () => this.scale(1);
    $("boxes").onchange = () => ($("places").hidden = !$("boxes").checked);
    $("stage").addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      this.scale(this.zoom * (event.deltaY < 0 ? STEP : 1 / STEP));
    }, { passive: false });
  }

  scale(zoom) {
    this.zoom = Math.min(8, Math.max(0.25, zoom));
    $("sheet").style.width = `${this.zoom * 100}%`;
  }

  show(page) {
    const picture = $("picture");
    if (!page?.url) {
      picture.hidden = true;
      $("places").replaceChildren();
      this.drawn = null;
      return;
    }
    picture.hidden = false;
    if (picture.src !== page.url) picture.src = page.url;
    picture.alt = `${page.document.name}, page ${page.number}`;
    if (this.drawn !== page.boxes) this.draw(page);
  }

  draw(page) {
    this.drawn = page.boxes;
    const places = page.boxes.map(({ label, text, box: [x0, y0, x1, y1] }, number) => {
      const place = document.createElement("button");
      place.className = `place c${colour(label)}`;
      place.dataset.box = number;
      place.title = label;
      place.setAttribute("aria-label", `${label}: ${text.trim().slice(0, 80) || "no text"}`);
      const percent = (value, whole) => `${(100 * value) / whole}%`;
      Object.assign(place.style, {
        left: percent(x0, page.width), top: percent(y0, page.height),
        width: percent(x1 - x0, page.width), height: percent(y1 - y0, page.height),
      });
      place.onmouseenter = place.onfocus = () => this.lit([number], true);
      place.onmouseleave = place.onblur = () => this.lit(null);
      return place;
    });
    $("places").replaceChildren(...places);
  }

  light(numbers) {
    for (const place of $("places").children) {
      place.classList.toggle("lit", numbers?.includes(Number(place.dataset.box)) ?? false);
    }
  }
}

function colour(label) {
  let sum = 0;
  for (const letter of label) sum = (sum * 21 + letter.codePointAt(0)) % 9973;
  return sum % COLOURS;
}
