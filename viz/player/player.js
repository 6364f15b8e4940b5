// The player: shows the steps of a trace as fast as keys and hands can ask for them.
//
// Python has folded the events into scenes before (viz/scene.py); they arrive here once, and stepping needs no
// server. The step is remembered per trace in the session storage, so that all pages stand at the same one. In
// the dashboard the link follows it, too (`data.linked`), so that it can be sent.
//
// One module with its parts before it (viz/player/__init__.py); used by Streamlit (viz/stage.py) and by the
// self-contained page (viz/backends/html.py). What can be clicked is the business of touch.js.
//
// Where two runs are played side by side, a step of the player is a moment of both (viz/figures/moments.py).
// `data.steps` has the first run's step at each of them: that is what is remembered and linked.

const LINK_EVERY_MS = 350;
const BESIDE_PX = 110; // of a presented picture: the bar above the player, and the zoom below

class Player {
  // `ask(name, value)` tells the page that the reader wants other pictures; where no server is, it is not there.
  constructor(root, data, ask) {
    this.root = root;
    this.ask = ask;
    this.id = data.id;
    this.data = data;
    this.step = -1;
    this.last = data.captions.length - 1;
    this.frame = 0;
    this.linkTimer = 0;
    this.say = speaker(data.words);
    sayAll(root, this.say);
    const find = (selector) => root.querySelector(selector);
    this.slider = find("input[type=range]");
    this.caption = find(".caption");
    this.count = find(".count");
    this.playButton = find(".play");
    this.speed = find(".speed select");
    root.classList.toggle("still", this.last === 0);
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) this.speed.value = "2";
    this.tip = find(".tip");
    this.slider.max = this.last;
    this.pictures = data.scenes.map((scene) => new Picture(scene));
    this.lay(find(".pictures"));
    explain(find(".legend"), data.legend, data.scenes);
    this.touch = new Touch(this, root, data);
    this.range = this.touch.range;
    this.makeJumps(find(".jumps"), data.jumps);
    this.listen(find);
    offerPictures(this, root);
    this.go(this.firstStep());
    this.touch.restore();
  }

  lay(host) {
    host.replaceChildren();
    for (const picture of this.pictures) {
      const frame = make("div", "frame");
      frame.style.setProperty("--height", picture.scene.height);
      frame.append(picture.svg);
      picture.frame = frame;
      if (picture.scene.stacked) host.lastElementChild.classList.add("stack");
      else {
        const figure = make("figure", `picture ${picture.scene.screen}`);
        figure.classList.toggle("broad", isBroad(picture.scene, this.data.scenes));
        figure.style.setProperty("--width", picture.scene.width);
        if (picture.scene.section) host.append(make("h2", "section", picture.scene.section));
        host.append(figure);
      }
      host.lastElementChild.append(frame, ...notesOf(picture.scene));
      const svg = picture.svg;
      if (picture.scene.axis) svg.classList.add("steps");
      if (picture.scene.points.length) svg.classList.add("points");
      let began = null; // where a drag with Shift began: it chooses a range
      const followPointer = (event) => {
        const place = picture.stepAt(event.clientX, event.clientY);
        const step = event.buttons & 1 ? place : null;
        if (event.type === "pointerdown") began = event.shiftKey ? step : null;
        if (step !== null && began !== null && step !== began) this.range.choose(began, step);
        else if (step !== null) this.move(step);
        const words = picture.pointAt(event.clientX, event.clientY)?.[3];
        showTip(this.tip, picture, event, place === null ? "" : words || this.data.captions[place]);
      };
      svg.addEventListener("pointerdown", followPointer);
      svg.addEventListener("pointermove", followPointer);
      svg.addEventListener("pointerleave", () => { this.tip.hidden = true; });
    }
  }

  makeJumps(host, jumps) {
    host.replaceChildren();
    for (const { label, step } of jumps) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = label;
      button.disabled = step === null;
      if (step === null) button.title = this.say("This does not happen in this run.");
      button.addEventListener("click", () => this.leap(step));
      host.append(button);
    }
    host.hidden = jumps.length === 0;
  }

  listen(find) {
    this.slider.oninput = () => this.move(Number(this.slider.value));
    this.playButton.onclick = () => this.toggle();
    find(".first").onclick = () => this.move(this.range.first);
    find(".back").onclick = () => this.move(this.step - 1);
    find(".forward").onclick = () => this.move(this.step + 1);
    find(".last").onclick = () => this.move(this.range.end);
    this.onKey = (event) => this.key(event);
    this.onResize = () => this.reserve();
  }

  // Streamlit may unmount and mount us again at any rerun; the player lives on.
  attach() {
    // The same listener is only ever added once.
    document.addEventListener("keydown", this.onKey);
    window.addEventListener("resize", this.onResize);
    if (this.data.linked) this.linkTimer ||= setInterval(() => this.writeLink(), LINK_EVERY_MS);
    this.reserve();
  }

  detach() {
    document.removeEventListener("keydown", this.onKey);
    window.removeEventListener("resize", this.onResize);
    clearInterval(this.linkTimer);
    this.linkTimer = 0;
  }

  // Room for all but the longest captions, so that the pictures do not dance while they play.
  reserve() {
    const byLength = [...this.data.captions].sort((one, other) => one.length - other.length);
    const probe = document.createElement("p");
    probe.className = "caption";
    probe.textContent = byLength[Math.floor(0.9 * (byLength.length - 1))];
    probe.style.minHeight = "0";
    this.caption.after(probe);
    const { height } = probe.getBoundingClientRect();
    this.caption.style.minHeight = `${Math.min(height, window.innerHeight / 6)}px`;
    probe.remove();
    this.fit();
  }

  // Presented, the picture takes all that controls and caption leave of the window.
  fit() {
    this.root.style.removeProperty("--player-height");
    if (!getComputedStyle(this.root).getPropertyValue("--player-height")) return;
    const taken = this.root.querySelector(".head").offsetHeight + BESIDE_PX;
    this.root.style.setProperty("--player-height", `${window.innerHeight - taken}px`);
  }

  // ── moving ──────────────────────────────────────────────────────────────────────────────────────────

  // Show a step: the only place where the page changes.
  go(step) {
    step = this.range.within(step);
    if (step === this.step) return;
    this.step = this.range.step = step;
    for (const picture of this.pictures) picture.seek(step);
    this.slider.value = step;
    this.slider.setAttribute("aria-valuetext", this.data.captions[step]);
    this.count.textContent = this.placeWords(step);
    this.caption.textContent = this.data.captions[step];
    this.tip.hidden = true;
    this.touch.moved();
    remember(this.data.trace, this.shared());
    if (this.data.steps) remember(this.data.id, step);
  }

  // What one of the player's steps is called.
  placeWords(step) {
    const first = this.data.first || 0;
    const place = { step: step + first, last: this.last + first };
    return this.data.steps
      ? this.say("moment {step} of {last}", place) : this.say("step {step} of {last}", place);
  }

  // The step that all pages share.
  shared() {
    return this.data.steps ? this.data.steps[this.step] : this.step;
  }

  // Ours for a shared one: where we were, if that agrees with it; else the moment at which that step ends.
  ours(shared) {
    const { steps, id } = this.data;
    if (!steps) return shared;
    const before = recall(id);
    if (steps[before] === shared && isRemembered(id)) return before;
    const next = steps.findIndex((step) => step > shared);
    return next < 0 ? this.last : Math.max(0, next - 1);
  }

  // To a step that something else names: if it lies outside the range, that is given up.
  leap(step) {
    if (step !== this.range.within(step)) this.range.choose(0, this.last);
    this.move(step);
  }

  // The range of steps has changed.
  ranged() {
    this.slider.min = this.range.first;
    this.slider.max = this.range.end;
    this.move(this.step);
    this.slider.value = this.step;
  }

  // A move by hand: it ends playing.
  move(step) {
    this.pause();
    this.go(step);
  }

  // Asking now and then is surer than writing at each move: Streamlit writes the link anew whenever it runs.
  writeLink() {
    const link = new URL(location.href);
    const wanted = { step: String(this.shared()), request: this.touch.requestId };
    const differs = Object.entries(wanted)
      .filter(([name, value]) => value !== undefined && link.searchParams.get(name) !== value);
    if (this.frame || !this.root.isConnected || !differs.length) return;
    for (const [name, value] of differs) link.searchParams.set(name, value);
    history.replaceState(history.state, "", link);
  }

  // The link's step counts where the reader comes in, later the place where the reader was; who has not moved
  // yet begins where something happens.
  firstStep() {
    const linked = window.minivllmEntered ? null : new URLSearchParams(location.search).get("step");
    window.minivllmEntered = true;
    if (linked) return this.ours(Number(linked));
    const before = recall(this.data.trace);
    return isRemembered(this.data.trace) && before > 0 ? this.ours(before) : this.data.start;
  }

  // ── playing ─────────────────────────────────────────────────────────────────────────────────────────

  toggle() {
    if (this.frame) this.move(this.step);
    else this.play();
  }

  play() {
    if (this.step >= this.range.end) this.go(this.range.first);
    this.playButton.textContent = this.say("Pause");
    this.caption.setAttribute("aria-live", "off"); // no screen reader can read sixty sentences a second
    let before = performance.now();
    let owed = 0;
    const tick = (time) => {
      if (!this.frame) return;
      // A tab that slept must not jump ahead by all it has missed.
      owed += (Math.min(250, time - before) / 1000) * Number(this.speed.value);
      before = time;
      if (owed >= 1) this.go(this.step + Math.floor(owed));
      owed %= 1;
      if (this.step >= this.range.end || !this.root.isConnected) this.move(this.step);
      else this.frame = requestAnimationFrame(tick);
    };
    this.frame = requestAnimationFrame(tick);
  }

  pause() {
    if (!this.frame) return;
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    this.playButton.textContent = this.say("Play");
    this.caption.setAttribute("aria-live", "polite");
  }

  // ── keys and pointer ────────────────────────────────────────────────────────────────────────────────

  key(event) {
    answerKey(this.root, event, "SELECT", {
      by: (stride) => this.move(this.step + stride),
      first: () => this.move(this.range.first),
      last: () => this.move(this.range.end),
      toggle: () => this.toggle(),
    });
  }
}

// A browser may forbid the storage; then every page simply starts at step 0.
function remember(trace, step) {
  try { sessionStorage.setItem(`minivllm:${trace}`, step); } catch { /* forbidden */ }
}

function recall(trace) {
  try { return Number(sessionStorage.getItem(`minivllm:${trace}`)); } catch { return 0; }
}

function isRemembered(trace) {
  try { return sessionStorage.getItem(`minivllm:${trace}`) !== null; } catch { return false; }
}

// From Streamlit the data are bytes: the player's id, a line break, JSON. Where the id is known, nothing needs
// to be parsed, however large the scenes are.
function idOf(data) {
  if (!(data instanceof Uint8Array)) return data.id;
  return new TextDecoder().decode(data.subarray(0, data.indexOf(10)));
}

function unpack(data) {
  if (!(data instanceof Uint8Array)) return data;
  return JSON.parse(new TextDecoder().decode(data.subarray(data.indexOf(10) + 1)));
}

export default function mount({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".player");
  if (root.player?.id !== idOf(data)) {
    const before = root.player;
    before?.pause();
    before?.detach();
    root.player = new Player(root, unpack(data), setTriggerValue);
    if (before?.data.trace === root.player.data.trace) root.player.touch.reopen(before.touch.subject);
  }
  root.player.ask = setTriggerValue;
  root.player.attach();
  return () => root.player.detach();
}
