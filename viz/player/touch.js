// Touch: what the reader selects in any picture is selected in all of them, and on all pages.
//
// A shape may have a subject (viz/subjects.py): a click on it, or Enter where keys have led, selects that. Of a
// selected request all that is its own is outlined; its number is kept for the other pages, its id stands in the
// link. A step is no selection: the player goes there.
//
// Read next: view.js, focus.js, panel.js, find.js, range.js, its parts; player.js, which has one of it.

class Touch {
  constructor(player, root, data) {
    Object.assign(this, { player, data, subject: "", request: -1 });
    this.say = player.say;
    this.cards = new Cards(data);
    if (!this.cards.requests.length) { // a story, or a kernel: there are steps alone
      root.querySelector(".find input").setAttribute("aria-label", this.say("Find a step, or words"));
    }
    this.spoken = root.querySelector(".spoken");
    const act = {
      select: (subject) => this.select(subject),
      canTouch: (subject) => this.canTouch(subject),
      move: (step) => player.leap(player.ours(step)),
      leap: (place) => player.leap(place),
      captionOf: (place) => data.captions[place],
      tipOf: (subject) => this.firstOf(subject, (picture, index) => picture.tipOf(picture.elements[index])) ?? "",
      filledOf: (subject) => this.firstOf(subject, (picture, index) => picture.now[index].filled) ?? 0,
      speak: (words) => { this.spoken.textContent = words; },
      leave: () => root.focus(),
    };
    this.act = act;
    this.panel = new Panel(root.querySelector(".panel"), this.cards, this.say, act);
    const known = {
      cards: this.cards, captions: data.captions, first: data.first || 0, say: this.say,
      placeWords: (place) => player.placeWords(place),
    };
    const search = (query) => findSubjects(query, known);
    this.finder = new Finder(root.querySelector(".find"), search, act, this.say("Nothing matches."));
    this.range = new StepRange(root.querySelector(".range"), player.last, () => player.ranged());
    this.views = player.pictures.map((picture) => this.prepare(picture));
  }

  // A view for every picture; keys and clicks for those that can be asked something.
  prepare(picture) {
    const view = new View(picture);
    picture.canTouch = (subject) => this.canTouch(subject);
    picture.now.forEach((shape, index) => picture.mark(index));
    picture.svg.after(zoomControls(view, this.say));
    const touchable = (changes) => changes.values.some((value) => this.canTouch(value));
    const isTouchable = picture.scene.shapes.some((shape) => this.canTouch(shape.subject));
    const isChart = picture.scene.points.length > 0;
    if (isTouchable || isChart || touchable(picture.scene.changes)) new Focus(picture, view, this.say, this.act);
    picture.svg.addEventListener("click", (event) => {
      const subject = picture.now[event.target.shapeNumber]?.subject;
      if (!picture.svg.dragged && this.canTouch(subject)) this.select(subject);
    });
    picture.svg.addEventListener("pointerdown", () => { picture.svg.dragged = false; });
    return view;
  }

  canTouch(subject) {
    return Boolean(subject) && /^(block|host|edge|request|step) \d+$/.test(subject) && this.cards.has(subject);
  }

  // What the first shape about a subject has to say.
  firstOf(subject, ask) {
    for (const picture of this.player.pictures) {
      const index = picture.now.findIndex((shape) => shape.subject === subject);
      if (index >= 0) return ask(picture, index);
    }
    return undefined;
  }

  // ── selecting ───────────────────────────────────────────────────────────────────────────────────────

  select(subject) {
    const [kind, number] = subjectOf(subject);
    if (kind === "step") { this.act.move(number); return; }
    this.subject = subject;
    if (kind === "request") this.choose(number);
    this.paint();
  }

  // A request is selected, here and on the pages to come.
  choose(number) {
    this.request = number;
    const card = this.cards.requests[number];
    if (!card) return;
    rememberText(`${this.data.trace}:request`, card.id);
    if (this.data.selected >= 0 && number !== this.data.selected) this.player.ask?.("request", card.id);
  }

  // Where the page was drawn for another request than before, the reader has chosen that; else what was selected
  // on another page, or what the link says. Where neither has chosen, it is one that lives at this step.
  restore() {
    const drawn = this.cards.requests[this.data.selected]?.id;
    const linked = this.data.linked ? new URLSearchParams(location.search).get("request") : null;
    const kept = recallText(`${this.data.trace}:request`) ?? linked;
    const last = recallText(`${this.data.trace}:drawn`);
    const followed = recallText(`${this.data.trace}:followed`);
    const isChosen = drawn !== undefined && drawn !== (last ?? drawn) && drawn !== followed;
    let id = isChosen ? drawn : kept ?? drawn;
    if (drawn !== undefined && !isChosen && (kept === null || kept === followed)) {
      id = this.living(drawn);
      rememberText(`${this.data.trace}:followed`, id);
    }
    if (drawn !== undefined) rememberText(`${this.data.trace}:drawn`, drawn);
    const number = this.cards.requests.findIndex((card) => card.id === id);
    if (number >= 0) this.choose(number);
    this.paint();
  }

  // This request, if it lives at the step that is shown; else the first that does, if one does.
  living(id) {
    const step = this.player.shared();
    const lives = ({ first, last }) => first <= step && step <= last;
    const cards = this.cards.requests;
    return (cards.find((card) => card.id === id && lives(card)) ?? cards.find(lives))?.id ?? id;
  }

  // The same pictures were drawn anew: the card stays open.
  reopen(subject) {
    if (!this.canTouch(subject)) return;
    this.subject = subject;
    this.paint();
  }

  get requestId() { return this.request >= 0 ? this.cards.requests[this.request]?.id : undefined; }

  paint() {
    for (const picture of this.player.pictures) picture.select(this.request, this.subject);
    this.panel.show(this.subject, this.player.shared());
  }

  // The player has moved.
  moved() {
    if (this.subject) this.panel.show(this.subject, this.player.shared());
  }
}

function rememberText(name, text) {
  try { sessionStorage.setItem(`minivllm:${name}`, text); } catch { /* forbidden */ }
}

function recallText(name) {
  try { return sessionStorage.getItem(`minivllm:${name}`); } catch { return null; }
}
