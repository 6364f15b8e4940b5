// The cards: what Python has folded about requests, blocks and edges, and how to look it up at a step.
//
// Nothing is computed here that an event would have to be known for: the history of a block, or of an edge of the
// prefix tree, is a list, and what is true at a step is its last entry up to there (viz/figures/block_history.py,
// viz/figures/prefix_cards.py).
//
// Read next: panel.js, which shows them.

// How many of the entries first … end − 1 are not after a step: `stepOf` tells the step of one.
function entriesUntil(first, end, step, stepOf) {
  let low = first;
  let high = end;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (stepOf(middle) <= step) low = middle + 1;
    else high = middle;
  }
  return low - first;
}

// The blocks of one memory: the pool, or the swap space.
class BlockCards {
  constructor(data) {
    this.data = data;
    this.at = new Map();
    const [starts, steps, sentences, readers] = ["starts", "step", "sentence", "readers"]
      .map((name) => column(data[name]));
    data.blocks.forEach((block, index) => {
      const end = index + 1 < starts.length ? starts[index + 1] : steps.length;
      this.at.set(block, { first: starts[index], end });
    });
    Object.assign(this, { steps, sentences, readers });
  }

  // [step, words] of all that happened to a block.
  historyOf(block) {
    const { first = 0, end = 0 } = this.at.get(block) ?? {};
    const history = [];
    for (let at = first; at < end; at += 1) {
      history.push([this.steps[at], this.data.sentences[this.sentences[at]]]);
    }
    return history;
  }

  // [request, sequence, logical block] of all that read a block after a step.
  readersOf(block, step) {
    const { first = 0, end = 0 } = this.at.get(block) ?? {};
    const count = entriesUntil(first, end, step, (at) => this.steps[at]);
    return count ? this.data.lists[this.readers[first + count - 1]] : [];
  }

  // The block that holds a sequence's logical block after a step; undefined if none does.
  blockAt(seq, logical, step) {
    for (const block of this.at.keys()) {
      if (this.readersOf(block, step).some(([, reader, place]) => reader === seq && place === logical)) return block;
    }
    return undefined;
  }

  // [logical block, block, sequence] of all blocks that a request reads after a step.
  blocksOf(request, step) {
    const found = [];
    for (const block of this.at.keys()) {
      for (const [reader, seq, logical] of this.readersOf(block, step)) {
        if (reader === request) found.push([logical, block, seq]);
      }
    }
    return found.sort((one, other) => one[2] - other[2] || one[0] - other[0]);
  }
}

class Cards {
  constructor({ requests, blocks }) {
    this.requests = requests ?? [];
    this.edges = blocks?.edges ?? [];
    this.memories = {};
    if (blocks?.blocks) this.memories.block = new BlockCards(blocks);
    if (blocks?.host) this.memories.host = new BlockCards(blocks.host);
    if (blocks?.tokens) {
      this.tokens = {
        ...blocks.tokens, size: blocks.size,
        starts: column(blocks.tokens.starts), piece: column(blocks.tokens.piece),
        numberOf: new Map(blocks.tokens.sequences.map((seq, index) => [seq, index])),
      };
    }
  }

  // Can anything be said about this subject?
  has(subject) {
    const [kind, number] = subjectOf(subject);
    if (kind === "request") return number < this.requests.length;
    if (kind === "edge") return number < this.edges.length;
    return kind === "step" || kind in this.memories;
  }

  // An edge after a step: its readers (numbers of requests) and its blocks.
  edgeAt(edge, step) {
    const { history } = this.edges[edge];
    const count = entriesUntil(0, history.length, step, (at) => history[at][0]);
    const [, , readers, blocks] = count ? history[count - 1] : [0, "", [], []];
    return { readers, blocks };
  }

  // The text of the first `count` tokens of a sequence's logical block.
  textOf(seq, logical, count) {
    const number = this.tokens?.numberOf.get(seq);
    if (number === undefined) return "";
    const { starts, piece, pieces, size } = this.tokens;
    const end = number + 1 < starts.length ? starts[number + 1] : piece.length;
    const first = starts[number] + logical * size;
    return Array.from(piece.subarray(first, Math.min(first + count, end)), (index) => pieces[index]).join("");
  }
}

// "block 17" → ["block", 17]
function subjectOf(subject) {
  const [kind = "", number = ""] = String(subject ?? "").split(" ");
  return [kind, Number(number)];
}
