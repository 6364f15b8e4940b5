// A picture: one scene drawn as SVG. It knows how to show any step, and nothing about traces.
//
// The scene is a list of shapes and a sparse patch per step (viz/scene.py). Going forward applies patches;
// any other jump starts from a keyframe, a copy of all states every KEYFRAME steps. Keyframes share the state
// of shapes that did not change between them, so 2,048 blocks over thousands of steps stay small.
//
// Read next: player.js, the controls.

const SVG = "http://www.w3.org/2000/svg";
const KEYFRAME = 64;

const DEFAULTS = {
  rect: {
    x: 0, y: 0, width: 0, height: 0, fill: "none", stroke: "none", stroke_width: 1, dash: "", opacity: 1,
    radius: 0, label: "", label_size: 12, tip: "", detail: "",
  },
  text: { x: 0, y: 0, text: "", fill: "ink", size: 13, anchor: "start", weight: "normal", tip: "" },
  path: { d: "", fill: "none", stroke: "none", stroke_width: 1.5, dash: "", opacity: 1, tip: "" },
};

// Attributes of shapes that SVG knows by another name.
const SVG_NAMES = {
  stroke_width: "stroke-width", dash: "stroke-dasharray", radius: "rx", size: "font-size",
  anchor: "text-anchor", weight: "font-weight",
};
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
    this.now = scene.shapes.map((shape) => ({ ...DEFAULTS[shape.kind], ...shape }));
    this.elements = this.now.map((shape) => document.createElementNS(SVG, shape.kind));
    this.labels = new Map(); // shape number → its text element; most rectangles never have one
    this.labelLayer = document.createElementNS(SVG, "g");
    this.labelLayer.style.pointerEvents = "none";
    this.now.forEach((shape, index) => {
      this.elements[index].shapeNumber = index;
      this.draw(index, shape);
    });
    this.svg.append(...this.elements, this.labelLayer);
    this.keyframes = this.makeKeyframes();
  }

  // keyframes[k] holds the state before step k·KEYFRAME of every shape that ever changes.
  makeKeyframes() {
    let state = new Map();
    for (const patch of this.scene.patches) {
      for (const [index] of patch) if (!state.has(index)) state.set(index, { ...this.now[index] });
    }
    const keyframes = [];
    let owned = new Set(); // states that no keyframe refers to yet, so they may be changed in place
    this.scene.patches.forEach((patch, step) => {
      if (step % KEYFRAME === 0) {
        keyframes.push(state);
        state = new Map(state);
        owned = new Set();
      }
      for (const [index, changes] of patch) {
        if (owned.has(index)) {
          Object.assign(state.get(index), changes);
        } else {
          state.set(index, { ...state.get(index), ...changes });
          owned.add(index);
        }
      }
    });
    return keyframes;
  }

  seek(step) {
    const ahead = step - this.step;
    if (ahead > 0 && ahead <= KEYFRAME) {
      for (const [index, changes] of this.merged(this.step + 1, step)) this.change(index, changes);
    } else if (ahead !== 0) {
      this.jump(step);
    }
    this.step = step;
    this.svg.dataset.step = step;
  }

  jump(step) {
    const number = Math.floor(step / KEYFRAME);
    const patches = this.merged(number * KEYFRAME, step);
    for (const [index, base] of this.keyframes[number]) {
      const wanted = patches.has(index) ? { ...base, ...patches.get(index) } : base;
      const now = this.now[index];
      const changes = {};
      let differs = false;
      for (const name in wanted) {
        if (wanted[name] !== now[name]) {
          changes[name] = wanted[name];
          differs = true;
        }
      }
      if (differs) this.change(index, changes);
    }
  }

  // All patches of steps first … last as one, so that no shape is painted twice.
  merged(first, last) {
    const all = new Map();
    for (let step = first; step <= last; step += 1) {
      for (const [index, changes] of this.scene.patches[step]) {
        all.set(index, all.has(index) ? { ...all.get(index), ...changes } : changes);
      }
    }
    return all;
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
      else if (name === "tip") element.style.pointerEvents = value ? "" : "none";
      else if (name === "kind" || name.startsWith("label") || name === "detail") { /* not the element's */ }
      else element.setAttribute(SVG_NAMES[name] ?? name, value);
      if (LABEL_MOVERS.has(name)) moveLabel = true;
    }
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
    text.textContent = shape.label; // never as markup: a prompt may hold any text
    text.setAttribute("x", shape.x + shape.width / 2);
    text.setAttribute("y", shape.y + shape.height / 2 + shape.label_size * 0.36);
    text.setAttribute("font-size", shape.label_size);
    text.setAttribute("fill", shape.fill === "none" ? "var(--ink)" : `var(--on-${shape.fill})`);
  }

  // What a pointer over this element reads; "" if nothing.
  tipOf(element) {
    const shape = this.now[element?.shapeNumber];
    if (!shape?.tip) return "";
    return shape.detail ? `${shape.tip}, ${shape.detail}` : shape.tip;
  }

  // The step under a pointer, if x means steps in this picture; else null.
  stepAt(clientX) {
    if (!this.scene.axis) return null;
    const box = this.svg.getBoundingClientRect();
    const [left, stepWidth, ends] = this.scene.axis;
    const x = ((clientX - box.left) / box.width) * this.scene.width;
    if (x < left) return null;
    if (!ends.length) return Math.floor((x - left) / stepWidth);
    const step = ends.findIndex((end) => end >= x);
    return step < 0 ? ends.length - 1 : step;
  }
}
