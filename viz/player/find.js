// Search: requests by name, id or text; blocks by number; steps by number, or by the words of their captions.
// A step is one of the player's own, which is a moment where two runs are played: it is a `place`, no subject.
//
// Read next: panel.js.

const MOST_FOUND = 8;
const LEAST_IN_CAPTIONS = 2; // characters: two are a word in Chinese

// What matches, the best first: { words, subject } or { words, place }. `first` is what the first step is called,
// `placeWords` calls a step by its name.
function findSubjects(query, { cards, captions, first, say, placeWords }) {
  const wanted = query.trim().toLowerCase();
  if (!wanted) return [];
  const found = [];
  const [, kind, number] = /^(?:(block|step)\s*)?(\d+)$/.exec(wanted) ?? [];
  if (number !== undefined) {
    const place = Number(number) - first;
    if (kind !== "block" && place >= 0 && place < captions.length) found.push({ words: placeWords(place), place });
    if (kind !== "step" && cards.memories.block?.at.has(Number(number))) {
      found.push({ words: say("Block {number}", { number }), subject: `block ${number}` });
    }
    if (kind !== "step" && cards.memories.host?.at.has(Number(number))) {
      found.push({ words: say("Host block {number}", { number }), subject: `host ${number}` });
    }
  }
  cards.edges.forEach(({ text, history }, edge) => { // the drawn ones have a history
    if (wanted.length > 2 && history.length && text.toLowerCase().includes(wanted) && found.length < MOST_FOUND / 2) {
      const words = `${say("Edge {number}", { number: edge + 1 })} ${text.trim().slice(0, 60)}`;
      found.push({ words, subject: `edge ${edge}` });
    }
  });
  const rank = ({ tag, id }) => (tag.toLowerCase() === wanted || id.toLowerCase() === wanted ? 0 : 1);
  const requests = cards.requests.map((card, index) => ({ ...card, index })).filter((card) =>
    [card.tag, card.id, card.prompt, card.output].some((text) => text.toLowerCase().includes(wanted)));
  for (const card of requests.sort((one, other) => rank(one) - rank(other)).slice(0, MOST_FOUND)) {
    const name = card.id === card.tag ? card.tag : `${card.tag} (${card.id})`;
    const words = `${say("Request {name}", { name })} ${card.prompt.slice(0, 60)}`;
    found.push({ words, subject: `request ${card.index}` });
  }
  for (let place = 0; place < captions.length && found.length < MOST_FOUND; place += 1) {
    if (wanted.length >= LEAST_IN_CAPTIONS && captions[place].toLowerCase().includes(wanted)) {
      found.push({ words: captions[place].slice(0, 90), place });
    }
  }
  return found.slice(0, MOST_FOUND);
}

// The field and what it finds. `touch`: select(subject), leap(place), speak(words). `nothing` is said where nothing
// matches.
class Finder {
  constructor(host, search, touch, nothing) {
    this.nothing = nothing;
    this.input = host.querySelector("input");
    this.input.placeholder = this.input.getAttribute("aria-label");
    this.list = host.querySelector("ul");
    this.input.oninput = () => this.show(search(this.input.value), touch);
    this.input.onkeydown = (event) => {
      if (event.key === "Enter") this.list.querySelector("button")?.click();
      if (event.key === "Escape") this.clear();
    };
    this.clear();
  }

  show(found, touch) {
    this.list.replaceChildren();
    for (const { words, subject, place } of found) {
      const item = make("li");
      const button = make("button", "", words);
      button.type = "button";
      button.addEventListener("click", () => {
        this.clear();
        if (place === undefined) touch.select(subject);
        else touch.leap(place);
      });
      item.append(button);
      this.list.append(item);
    }
    const isAsked = this.input.value.trim() !== "";
    if (isAsked && !found.length) {
      this.list.append(make("li", "nothing", this.nothing));
      touch.speak(this.nothing);
    }
    this.list.hidden = !isAsked;
  }

  clear() {
    this.input.value = "";
    this.list.replaceChildren();
    this.list.hidden = true;
  }
}
