// A picture: one scene drawn as SVG. It knows how to show any step, and nothing about traces.
//
// The scene is a list of shapes (viz/scene.py), and what changes from step to step (changes.js).
//
// Read next: player.js, the controls.

const SVG = "http://www.w3.org/2000/svg";

const DEFAULTS = {
  rect: {
    x: 0, y: 0, width: 0, height: 0, fill: "none", stroke: "none", stroke_width: 1, dash: "", opacity: 1,
    radius: 0, label: "", label_size: 12, tip: "", detail: "",
    filled: -1, subject: "", of: "",
  },
  text: {
    x: 0, y: 0, text: "", fill: "ink", size: 13, anchor: "start", weight: "normal", tip: "",
    subject: "", of: "",
  },
  path: {
    d: "", fill: "none", stroke: "none", stroke_width: 1.5, dash: "", opacity: 1, tip: "", subject: "",
    of: "",
  },
};

// Attributes of shapes that SVG knows by another name.
const SVG_NAMES = {
  stroke_width: "stroke-width", dash: "stroke-dasharray", radius: "rx", size: "font-size",
  anchor: "text-anchor", weight: "font-weight",
};
const UNSEEN = new Set(["kind", "detail", "filled", "subject", "of"]);
const NEAR_PX = 12;
const POINT = 10; // units around a point of a chart
const LABEL_MOVERS = new Set(["x", "y", "width", "height", "fill", "label", "label_size"]);

const paint = (name) => (name === "none" ? "none" : `var(--${name})`);

class Picture {
  constructor(scene) {
    this.scene = scene;
    this.step = -1;
    this.svg = document.createElementNS(SVG, "svg");
    this.svg.setAttribute("viewBox", `0 0 ${scene.width} ${scene.height}`);
    this.svg.setAttribute("role", "img");
    this.svg.setAttribute("aria-label", scene.title);
    this.laid = scene.shapes.map((shape) => ({ ...DEFAULTS[shape.kind], ...shape }));
    this.now = this.laid.map((shape) => ({ ...shape }));
    this.elements = this.now.map((shape) => document.createElementNS(SVG, shape.kind));
    this.marks = [];
    this.request = -1;
    this.subject = "";
    this.canTouch = () => false;
    this.least = 0; // smaller letters are not drawn
    this.labels = new Map(); // shape number → its text element; most rectangles never have one
    this.labelLayer = document.createElementNS(SVG, "g");
    this.labelLayer.style.pointerEvents = "none";
    this.now.forEach((shape, index) => {
      this.elements[index].shapeNumber = index;
      this.draw(index, shape);
    });
    this.svg.append(...this.elements, this.labelLayer);
    this.changes = scene.changes && new Changes(scene.changes);
  }

  seek(step) {
    for (const [index, changes] of this.changes.seek(step, this.laid)) this.change(index, changes);
    this.step = step;
    this.svg.dataset.step = step;
    this.frame?.classList.toggle("idle", this.scene.idle?.[step] === "1");
  }

  change(index, changes) {
    Object.assign(this.now[index], changes);
    this.draw(index, changes);
  }

  draw(index, changes) {
    const element = this.elements[index];
    let moveLabel = false;
    for (const name in changes) {
      const value = changes[name];
      if (name === "fill" || name === "stroke") element.setAttribute(name, paint(value));
      else if (name === "text") element.textContent = value;
      else if (name.startsWith("label") || UNSEEN.has(name)) { /* not the element's */ }
      else element.setAttribute(SVG_NAMES[name] ?? name, value);
      if (LABEL_MOVERS.has(name)) moveLabel = true;
    }
    if ("tip" in changes || "subject" in changes || "of" in changes) this.mark(index);
    if (moveLabel && this.now[index].kind === "rect") this.drawLabel(index);
  }

  drawLabel(index) {
    const shape = this.now[index];
    let text = this.labels.get(index);
    if (!text) {
      if (!shape.label) return;
      text = document.createElementNS(SVG, "text");
      text.setAttribute("text-anchor", "middle");
      this.labels.set(index, text);
      this.labelLayer.append(text);
    }
    if (text.textContent !== shape.label) text.textContent = shape.label; // never as markup
    const look = {
      x: shape.x + shape.width / 2, y: shape.y + shape.height / 2 + shape.label_size * 0.36,
      "font-size": shape.label_size, fill: shape.fill === "none" ? "var(--ink)" : `var(--on-${shape.fill})`,
      display: shape.label_size < this.least ? "none" : "inline",
    };
    for (const name in look) {
      if (text.look?.[name] !== look[name]) text.setAttribute(name, look[name]);
    }
    text.look = look;
  }

  // ── what is selected, and what can be ───────────────────────────────────────────────────────────────

  select(request, subject) {
    this.request = request;
    this.subject = subject;
    this.now.forEach((shape, index) => { if (shape.subject || shape.of) this.mark(index); });
  }

  // Whether a shape can be touched, belongs to the selected request, or is itself selected.
  mark(index) {
    const { tip, subject, of } = this.now[index];
    const isTouchable = this.canTouch(subject);
    const isLit = this.request >= 0 &&
      (subject === `request ${this.request}` || of.split(" ").includes(`${this.request}`));
    const marks = [];
    if (!tip && !isTouchable) marks.push("silent");
    if (isTouchable) marks.push("touchable");
    if (isLit) marks.push("lit");
    if (subject && subject === this.subject && /^(block|host|edge) /.test(subject)) marks.push("chosen");
    // The browser computes anew whatever is written, even if it is the same.
    const words = marks.join(" ");
    if (words === this.marks[index]) return;
    this.marks[index] = words;
    this.elements[index].setAttribute("class", words);
  }

  // Letters smaller than so many units are not drawn.
  legible(least) {
    this.least = least;
    for (const [index, text] of this.labels) {
      text.look.display = this.now[index].label_size < least ? "none" : "inline";
      text.setAttribute("display", text.look.display);
    }
  }

  // The box of a shape; after the shapes come the points of a chart.
  boxOf(index) {
    const point = this.scene.points[index - this.now.length];
    if (point) return { x: point[0] - POINT / 2, y: point[1] - POINT / 2, width: POINT, height: POINT };
    const shape = this.now[index];
    return shape.kind === "rect" ? shape : this.elements[index].getBBox();
  }

  // What a pointer over this element reads; "" if nothing.
  tipOf(element) {
    const shape = this.now[element?.shapeNumber];
    if (!shape?.tip) return "";
    const filled = shape.filled >= 0 ? this.scene.filled_words.replace("{filled}", shape.filled) : "";
    return [shape.tip, shape.detail, filled].filter(Boolean).join(", ");
  }

  // The point [x, y, step, words] of a chart that a pointer is at: the nearest one, if it is near; where x means
  // steps, the last one up to the step there; else null.
  pointAt(clientX, clientY) {
    if (this.scene.axis) {
      const there = this.stepAt(clientX, clientY);
      return this.scene.points.findLast(([, , step]) => there !== null && step <= there) ?? null;
    }
    const box = this.svg.getBoundingClientRect();
    const seen = this.svg.viewBox.baseVal;
    const unit = seen.width / box.width;
    const x = seen.x + (clientX - box.left) * unit;
    const y = seen.y + (clientY - box.top) * unit;
    let found = null;
    let least = NEAR_PX * unit;
    for (const point of this.scene.points) {
      const distance = Math.hypot(point[0] - x, point[1] - y);
      if (distance < least) [least, found] = [distance, point];
    }
    return found;
  }

  // The step under a pointer, if x means steps in this picture, or a point of a chart is there; else null.
  stepAt(clientX, clientY) {
    if (!this.scene.axis) return this.pointAt(clientX, clientY)?.[2] ?? null;
    const box = this.svg.getBoundingClientRect();
    const [left, stepWidth, ends] = this.scene.axis;
    const seen = this.svg.viewBox.baseVal;
    const x = seen.x + ((clientX - box.left) / box.width) * seen.width;
    if (x < left) return null;
    if (!ends.length) return Math.floor((x - left) / stepWidth);
    const step = ends.findIndex((end) => end >= x);
    return step < 0 ? ends.length - 1 : step;
  }
}
