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
  // `touch`: select(subject), move(step), tipOf(subject), filledOf(block).
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
    if (kind === "block") this.block(number, step);
    else this.request(number, step);
    this.body.scrollTop = isNew ? 0 : scrolled;
  }

  block(block, step) {
    const { cards, say } = this;
    this.title.textContent = say("Block {number}", { number: block });
    const readers = cards.readersOf(block, step);
    this.body.append(make("p", "", this.touch.tipOf(`block ${block}`)));
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
      const text = cards.textOf(seq, logical, this.touch.filledOf(block));
      if (text) {
        this.heading(say("Its tokens"));
        this.body.append(make("p", "tokens", text));
      }
      this.neighbours(seq, logical, step);
    }
    this.heading(say("Its history"));
    this.history(cards.historyOf(block), step);
  }

  // The blocks before and after in the table of a sequence.
  neighbours(seq, logical, step) {
    const line = make("p", "line");
    for (const [words, place] of [[this.say("before it"), logical - 1], [this.say("after it"), logical + 1]]) {
      const block = this.cards.blockAt(seq, place, step);
      if (block !== undefined) line.append(words, this.blockButton(block));
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
    const blocks = cards.blocksOf(number, step);
    if (blocks.length) {
      this.heading(say("Its blocks at this step, in logical order"));
      const line = make("p", "line");
      for (const [, block] of blocks.slice(0, MOST_LISTED)) line.append(this.blockButton(block));
      if (blocks.length > MOST_LISTED) line.append(say("and {count} more", { count: blocks.length - MOST_LISTED }));
      this.body.append(line);
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

  blockButton(block) { return this.button(`${block}`, `block ${block}`); }

  button(words, subject) {
    const button = make("button", "", words);
    button.type = "button";
    if (subject.startsWith("block")) {
      button.setAttribute("aria-label", this.say("Block {number}", { number: words }));
    }
    button.addEventListener("click", () => this.touch.select(subject));
    return button;
  }
}
