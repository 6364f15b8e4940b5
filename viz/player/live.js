// The live player: shows the newest step of a running engine, or any step that the window still has.
//
// Python replays the events and draws a step when it is asked (viz/live/feed.py); here frames are fetched, and
// their patches applied to the same pictures as elsewhere (picture.js). Between two frames many steps may pass:
// paused, each of them can be looked at. The curve is drawn from five numbers a step.
//
// One module with words.js, picture.js and hands.js before it.

const LIVE_MS = 120;
const PAUSED_MS = 800;
const HIDDEN_MS = 3000;
const NARROW_PX = 600;
const BUCKETS = 500;
const MOST_NUMBERS = 20000;
const RATE_STEPS = 100;
const number = (value) => value.toLocaleString("en-US");

class Live {
  constructor(root, data) {
    this.root = root;
    this.feed = data.feed;
    this.language = data.language;
    this.say = speaker(data.words);
    sayAll(root, this.say);
    this.at = null; // the step that is looked at; null: the newest
    this.have = "";
    this.run = null;
    this.numbers = []; // [time, used, running, waiting, prefill, decode] of each step from `start` on
    this.start = 0;
    this.pictures = [];
    this.isAsking = false;
    const find = (selector) => root.querySelector(selector);
    for (const name of ["badge", "count", "words", "caption", "tip", "pictures", "legend"]) {
      this[name === "pictures" ? "host" : name] = find(`.${name}`);
    }
    this.playButton = find(".play");
    this.slider = find("input[type=range]");
    this.curve = find(".curve svg");
    this.before = find(".before");
    find(".save").href = `${this.feed}/trace.jsonl`;
    this.before.href = `${this.feed}/trace.jsonl?part=before`;
    this.makeCurve();
    this.listen(find);
  }

  // ── asking ──────────────────────────────────────────────────────────────────────────────────────────

  attach() {
    document.addEventListener("keydown", this.onKey);
    this.timer ||= setTimeout(() => this.ask(), 0);
  }

  detach() {
    document.removeEventListener("keydown", this.onKey);
    clearTimeout(this.timer);
    this.timer = 0;
  }

  soon() {
    if (this.isAsking) this.again = true;
    else {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.ask(), 0);
    }
  }

  async ask() {
    if (!this.root.isConnected) { this.timer = 0; return; }
    this.isAsking = true;
    this.again = false;
    const after = this.start + this.numbers.length - 1;
    try {
      const narrow = this.root.clientWidth < NARROW_PX ? 1 : 0;
      const asked = `at=${this.at ?? "now"}&have=${this.have}&after=${after}&narrow=${narrow}`
        + `&lang=${this.language}`;
      const answer = await fetch(`${this.feed}?${asked}`);
      if (answer.status === 404) this.tell("refused", this.say("This page watches no longer: press Connect to go on."));
      else this.show(await answer.json());
    } catch {
      const away = this.say("The dashboard does not answer: it was stopped, perhaps. What was drawn last stays here.");
      this.tell("lost", away);
    }
    this.isAsking = false;
    if (!this.timer) return; // it was detached meanwhile
    const pause = document.hidden ? HIDDEN_MS : this.at === null ? LIVE_MS : PAUSED_MS;
    this.timer = setTimeout(() => this.ask(), this.again ? 0 : pause);
  }

  // ── showing ─────────────────────────────────────────────────────────────────────────────────────────

  show(frame) {
    this.tell(frame.status, frame.words);
    this.before.hidden = !frame.hasBefore;
    if (frame.frame === undefined) return;
    if (frame.run !== this.run) { this.run = frame.run; this.at = null; this.numbers = []; }
    if (frame.scenes) {
      this.pictures = frame.scenes.map((scene) => new Picture(scene));
      this.lay();
    } else {
      frame.patches.forEach((patch, index) => {
        for (const [shape, changes] of patch) this.pictures[index].change(shape, changes);
      });
    }
    this.have = frame.frame;
    this.take(frame);
    this.frame = frame;
    this.root.dataset.step = frame.step;
    this.drawCurve();
    this.sayWhere(frame);
  }

  tell(status, words) {
    this.root.dataset.status = status;
    this.root.classList.toggle("paused", this.at !== null);
    const badge = this.badgeOf(status === "live" && this.at !== null ? "paused" : status);
    if (this.badge.textContent !== badge) this.badge.textContent = badge;
    if (this.words.textContent !== words) this.words.textContent = words;
    this.words.hidden = !words;
  }

  badgeOf(status) {
    const { say } = this;
    return {
      connecting: say("connecting"), live: say("live"), ended: say("server stopped"),
      lost: say("not connected"), refused: say("refused"), paused: say("paused"),
    }[status];
  }

  take(frame) {
    if (frame.scenes || frame.start !== this.start + this.numbers.length) {
      this.numbers = [];
      this.start = frame.start;
    }
    this.numbers.push(...frame.numbers);
    const drop = Math.max(0, frame.first - this.start, this.numbers.length - MOST_NUMBERS);
    this.numbers.splice(0, drop);
    this.start += drop;
  }

  sayWhere(frame) {
    const { say } = this;
    const isLive = this.at === null;
    const step = number(Math.max(0, frame.step));
    const seconds = Math.max(0, frame.now - frame.time).toFixed(1);
    const rate = this.rate();
    const speed = rate ? ` · ${say("{count} tokens a second", { count: number(Math.round(rate)) })}` : "";
    const kept = { step, first: number(this.start), last: number(frame.last), seconds };
    this.count.textContent = isLive
      ? say("step {step}", { step }) + speed : say("step {step} of {first} to {last}, {seconds} s before the last", kept);
    this.playButton.textContent = isLive ? say("Pause") : say("Resume");
    this.caption.setAttribute("aria-live", isLive ? "off" : "polite");
    this.caption.textContent = frame.caption;
    this.slider.min = this.start;
    this.slider.max = Math.max(this.start, frame.last);
    this.slider.value = isLive ? frame.last : frame.step;
    this.slider.setAttribute("aria-valuetext", isLive ? say("now, step {step}", { step }) : frame.caption);
  }

  // Output tokens a second over the latest steps.
  rate() {
    const last = this.numbers.slice(-RATE_STEPS);
    if (last.length < 2) return 0;
    const seconds = last.at(-1)[0] - last[0][0];
    return seconds > 0 ? last.slice(1).reduce((sum, one) => sum + one[5], 0) / seconds : 0;
  }

  lay() {
    this.host.replaceChildren();
    for (const picture of this.pictures) {
      const figure = document.createElement("figure");
      figure.className = "picture";
      figure.style.setProperty("--width", picture.scene.width);
      figure.append(picture.svg);
      this.host.append(figure);
      picture.svg.addEventListener("pointermove", (event) => showTip(this.tip, picture, event));
      picture.svg.addEventListener("pointerleave", () => { this.tip.hidden = true; });
    }
  }

  // ── the curve ───────────────────────────────────────────────────────────────────────────────────────

  makeCurve() {
    const path = (attributes) => {
      const element = document.createElementNS(SVG, "path");
      for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
      this.curve.append(element);
      return element;
    };
    this.used = path({ fill: "var(--filled)", opacity: 0.55 });
    this.running = path({ fill: "none", stroke: "var(--decode)", "stroke-width": 2 });
    this.waiting = path({
      fill: "none", stroke: "var(--preempted)", "stroke-width": 2, "stroke-dasharray": "5 3",
    });
    this.cursor = path({ fill: "none", stroke: "var(--cursor)", "stroke-width": 2 });
  }

  drawCurve() {
    const { numbers } = this;
    const most = (index) => numbers.reduce((top, one) => Math.max(top, one[index]), 0);
    const used = Math.max(1, most(1));
    const queue = Math.max(1, most(2), most(3));
    const points = this.buckets();
    const line = (index, top) => points
      .map(([x, values]) => `${x.toFixed(1)},${(70 - (values[index] / top) * 64).toFixed(1)}`).join("L");
    const end = points.length ? points.at(-1)[0].toFixed(1) : 0;
    this.used.setAttribute("d", points.length ? `M0,72L${line(1, used)}L${end},72Z` : "");
    this.running.setAttribute("d", points.length ? `M${line(2, queue)}` : "");
    this.waiting.setAttribute("d", points.length ? `M${line(3, queue)}` : "");
    const x = this.xOf(this.at ?? this.frame.last);
    this.cursor.setAttribute("d", `M${x},0L${x},72`);
    this.legend.replaceChildren();
    const { say } = this;
    const blocks = { most: number(most(1)), all: number(this.frame.blocks) };
    const words = [
      ["used", say("blocks in use (at most {most} of {all})", blocks)],
      ["running", say("requests in the batch (at most {most})", { most: number(most(2)) })],
      ["waiting", say("waiting (at most {most})", { most: number(most(3)) })],
    ];
    for (const [name, text] of words) {
      const span = document.createElement("span");
      span.className = name;
      span.textContent = text;
      this.legend.append(span);
    }
  }

  // At most BUCKETS points, each with the largest values of its steps.
  buckets() {
    const size = Math.ceil(this.numbers.length / BUCKETS) || 1;
    const points = [];
    for (let first = 0; first < this.numbers.length; first += size) {
      const part = this.numbers.slice(first, first + size);
      const top = part.reduce((all, one) => all.map((value, index) => Math.max(value, one[index])));
      points.push([this.xOf(this.start + Math.min(first + size, this.numbers.length) - 1), top]);
    }
    return points;
  }

  xOf(step) {
    return (1000 * (step - this.start)) / Math.max(1, this.numbers.length - 1);
  }

  // ── moving ──────────────────────────────────────────────────────────────────────────────────────────

  listen(find) {
    this.playButton.onclick = () => this.toggle();
    find(".back").onclick = () => this.by(-1);
    find(".forward").onclick = () => this.by(1);
    find(".last").onclick = () => this.resume();
    this.slider.oninput = () => this.go(Number(this.slider.value));
    this.onKey = (event) => this.key(event);
    const follow = (event) => {
      if (!(event.buttons & 1) || !this.numbers.length) return;
      const box = this.curve.getBoundingClientRect();
      const share = (event.clientX - box.left) / box.width;
      this.go(this.start + Math.round(share * (this.numbers.length - 1)));
    };
    this.curve.addEventListener("pointerdown", follow);
    this.curve.addEventListener("pointermove", follow);
  }

  go(step) {
    if (!this.frame) return;
    this.at = Math.max(this.start, Math.min(this.frame.last, step));
    this.tell(this.root.dataset.status, this.words.textContent);
    this.drawCurve();
    this.soon();
  }

  by(stride) {
    if (this.frame) this.go((this.at ?? this.frame.step) + stride);
  }

  toggle() {
    if (this.at === null) this.by(0);
    else this.resume();
  }

  resume() {
    this.at = null;
    this.tell(this.root.dataset.status, this.words.textContent);
    this.soon();
  }

  key(event) {
    answerKey(this.root, event, "A", {
      by: (stride) => this.by(stride),
      first: () => this.go(this.start),
      last: () => this.resume(),
      toggle: () => this.toggle(),
    });
  }
}

export default function mount({ data, parentElement }) {
  const root = parentElement.querySelector(".live");
  if (root.live?.feed !== data.feed || root.live.language !== data.language) {
    root.live?.detach();
    root.live = new Live(root, data);
  }
  root.live.attach();
  return () => root.live.detach();
}
