// The cards: what Python has folded about requests and blocks, and how to look it up at a step.
//
// Nothing is computed here that an event would have to be known for: a block's history is a list, and what is
// true at a step is its last entry up to there (viz/figures/block_history.py).
//
// Read next: panel.js, which shows them.

class Cards {
  constructor({ requests, blocks }) {
    this.requests = requests ?? [];
    this.blocks = new Map();
    this.histories = blocks;
    if (!blocks) return;
    const [starts, steps, sentences, readers] = ["starts", "step", "sentence", "readers"]
      .map((name) => column(blocks[name]));
    blocks.blocks.forEach((block, index) => {
      const end = index + 1 < starts.length ? starts[index + 1] : steps.length;
      this.blocks.set(block, { first: starts[index], end });
    });
    Object.assign(this, { steps, sentences, readers });
    if (blocks.tokens) {
      this.tokens = {
        ...blocks.tokens, starts: column(blocks.tokens.starts), piece: column(blocks.tokens.piece),
        numberOf: new Map(blocks.tokens.sequences.map((seq, index) => [seq, index])),
      };
    }
  }

  // Can anything be said about this subject?
  has(subject) {
    const [kind, number] = subjectOf(subject);
    if (kind === "request") return number < this.requests.length;
    return kind === "step" || (kind === "block" && Boolean(this.histories));
  }

  // [step, words] of all that happened to a block.
  historyOf(block) {
    const { first = 0, end = 0 } = this.blocks.get(block) ?? {};
    const history = [];
    for (let at = first; at < end; at += 1) {
      history.push([this.steps[at], this.histories.sentences[this.sentences[at]]]);
    }
    return history;
  }

  // [request, sequence, logical block] of all that read a block after a step.
  readersOf(block, step) {
    const { first = 0, end = 0 } = this.blocks.get(block) ?? {};
    let low = first;
    let high = end;
    while (low < high) { // the first entry after the step
      const middle = (low + high) >> 1;
      if (this.steps[middle] <= step) low = middle + 1;
      else high = middle;
    }
    return low > first ? this.histories.lists[this.readers[low - 1]] : [];
  }

  // The block that holds a sequence's logical block after a step; undefined if none does.
  blockAt(seq, logical, step) {
    for (const block of this.blocks.keys()) {
      if (this.readersOf(block, step).some(([, reader, place]) => reader === seq && place === logical)) return block;
    }
    return undefined;
  }

  // [logical block, block, sequence] of all blocks that a request reads after a step.
  blocksOf(request, step) {
    const found = [];
    for (const block of this.blocks.keys()) {
      for (const [reader, seq, logical] of this.readersOf(block, step)) {
        if (reader === request) found.push([logical, block, seq]);
      }
    }
    return found.sort((one, other) => one[2] - other[2] || one[0] - other[0]);
  }

  // The text of the first `count` tokens of a sequence's logical block.
  textOf(seq, logical, count) {
    const number = this.tokens?.numberOf.get(seq);
    if (number === undefined) return "";
    const { starts, piece, pieces } = this.tokens;
    const end = number + 1 < starts.length ? starts[number + 1] : piece.length;
    const first = starts[number] + logical * this.histories.size;
    return Array.from(piece.subarray(first, Math.min(first + count, end)), (index) => pieces[index]).join("");
  }
}

// "block 17" → ["block", 17]
function subjectOf(subject) {
  const [kind = "", number = ""] = String(subject ?? "").split(" ");
  return [kind, Number(number)];
}
