// The panel beside the pictures: the card of what was clicked, as it is at the step that is shown.
//
// All text goes in by textContent. Steps, blocks and requests that a card names are buttons: they lead there.
//
// Read next: player.js.

const MOST_LISTED = 60;

function make(tag, className, words) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (words !== undefined) element.textContent = words;
  return element;
}

class Panel {
  // `touch`: select(subject), canTouch(subject), move(step), tipOf(subject), filledOf(subject).
  constructor(host, cards, say, touch) {
    Object.assign(this, { host, cards, say, touch });
    this.title = host.querySelector(".panel-title");
    this.body = host.querySelector(".panel-body");
    host.querySelector(".close").onclick = () => touch.select("");
    host.hidden = true;
  }

  show(subject, step) {
    const [kind, number] = subjectOf(subject);
    const isNew = subject !== this.subject;
    this.subject = subject;
    this.host.hidden = !subject;
    if (!subject) return;
    const scrolled = this.body.scrollTop;
    this.body.replaceChildren();
    if (kind in this.cards.memories) this.block(kind, number, step);
    else if (kind === "edge") this.edge(number, step);
    else this.request(number, step);
    this.body.scrollTop = isNew ? 0 : scrolled;
  }

  // A block of the pool ("block"), or of the swap space ("host").
  block(kind, block, step) {
    const { cards, say } = this;
    const memory = cards.memories[kind];
    this.title.textContent = this.blockName(kind, block);
    const readers = memory.readersOf(block, step);
    this.body.append(make("p", "", this.touch.tipOf(`${kind} ${block}`)));
    if (readers.length) {
      this.heading(say("Read by"));
      for (const [request, seq, logical] of readers.slice(0, MOST_LISTED)) {
        const line = make("p", "line");
        line.append(
          this.requestButton(request), say("sequence {seq}, logical block {logical}", { seq, logical }),
        );
        this.body.append(line);
      }
      const [, seq, logical] = readers[0];
      const text = cards.textOf(seq, logical, this.touch.filledOf(`${kind} ${block}`));
      if (text) this.quote(say("Its tokens"), text);
      this.neighbours(kind, seq, logical, step);
    }
    this.heading(say("Its history"));
    this.history(memory.historyOf(block), step);
  }

  // An edge of the prefix tree.
  edge(number, step) {
    const { cards, say } = this;
    const { text, before, after, history } = cards.edges[number];
    const { readers, blocks } = cards.edgeAt(number, step);
    this.title.textContent = this.edgeName(number);
    this.quote(say("Its tokens"), text);
    if (readers.length) {
      this.heading(say("Read by"));
      this.line(readers.slice(0, MOST_LISTED).map((request) => this.requestButton(request)));
    }
    if (blocks.length) {
      this.heading(say("Its blocks at this step"));
      this.line(blocks.slice(0, MOST_LISTED).map((block) =>
        (this.touch.canTouch(`block ${block}`) ? this.blockButton("block", block) : make("span", "number", block))));
    }
    const around = [[say("before it"), before], [say("after it"), after]].filter(([, edges]) => edges.length);
    if (around.length) this.heading(say("In the tree"));
    for (const [words, edges] of around) {
      const buttons = edges.map((edge) => this.button(this.edgeName(edge), `edge ${edge}`));
      this.line([make("span", "number", words), ...buttons]);
    }
    this.heading(say("Its history"));
    this.history(history, step);
  }

  line(elements) {
    const line = make("p", "line");
    line.append(...elements);
    this.body.append(line);
  }

  // The blocks before and after in the table of a sequence.
  neighbours(kind, seq, logical, step) {
    const line = make("p", "line");
    for (const [words, place] of [[this.say("before it"), logical - 1], [this.say("after it"), logical + 1]]) {
      const block = this.cards.memories[kind].blockAt(seq, place, step);
      if (block !== undefined) line.append(words, this.blockButton(kind, block));
    }
    if (!line.childNodes.length) return;
    this.heading(this.say("In the block table of sequence {seq}", { seq }));
    this.body.append(line);
  }

  request(number, step) {
    const { cards, say } = this;
    const card = cards.requests[number];
    this.title.textContent = say("Request {name}", { name: card.tag });
    if (card.id !== card.tag) this.body.append(make("p", "", `id ${card.id}`));
    this.body.append(make("p", "", card.facts));
    if (card.prompt) this.quote(say("Its prompt"), card.prompt);
    if (card.output) this.quote(say("Its output in the end"), card.output);
    for (const [kind, memory] of Object.entries(cards.memories)) {
      const blocks = memory.blocksOf(number, step);
      if (!blocks.length) continue;
      this.heading(kind === "host"
        ? say("Its blocks in the swap space") : say("Its blocks at this step, in logical order"));
      const buttons = blocks.slice(0, MOST_LISTED).map(([, block]) => this.blockButton(kind, block));
      const rest = blocks.length - MOST_LISTED;
      this.line(rest > 0 ? [...buttons, say("and {count} more", { count: rest })] : buttons);
    }
    this.heading(say("Its phases"));
    this.history(card.history, step);
  }

  heading(words) { this.body.append(make("p", "panel-heading", words)); }

  quote(words, text) {
    this.heading(words);
    this.body.append(make("p", "tokens", text));
  }

  // Steps with what happened; the latest one up to now is marked. Of very many, those around it.
  history(entries, step) {
    const now = entries.findLastIndex(([at]) => at <= step);
    const first = Math.max(0, Math.min(now - MOST_LISTED / 2, entries.length - MOST_LISTED));
    const list = make("ol", "history");
    if (first) list.append(make("li", "more", this.say("{count} earlier", { count: first })));
    entries.slice(first, first + MOST_LISTED).forEach(([at, words], index) => {
      const item = make("li");
      const button = make("button", "", this.say("step {step}", { step: at }));
      button.type = "button";
      button.addEventListener("click", () => this.touch.move(at));
      if (first + index === now) item.setAttribute("aria-current", "step");
      if (at > step) item.className = "future";
      item.append(button, words);
      list.append(item);
    });
    const rest = entries.length - first - MOST_LISTED;
    if (rest > 0) list.append(make("li", "more", this.say("{count} later", { count: rest })));
    if (!entries.length) list.append(make("li", "", this.say("Nothing happens to it in this run.")));
    this.body.append(list);
  }

  requestButton(number) {
    const { tag } = this.cards.requests[number] ?? { tag: "?" };
    return this.button(this.say("Request {name}", { name: tag }), `request ${number}`);
  }

  blockName(kind, block) {
    if (kind === "host") return this.say("Host block {number}", { number: block });
    return this.say("Block {number}", { number: block });
  }

  edgeName(edge) { return this.say("Edge {number}", { number: edge + 1 }); }

  blockButton(kind, block) {
    const button = this.button(`${block}`, `${kind} ${block}`);
    button.setAttribute("aria-label", this.blockName(kind, block));
    return button;
  }

  button(words, subject) {
    const button = make("button", "", words);
    button.type = "button";
    button.addEventListener("click", () => this.touch.select(subject));
    return button;
  }
}
