// Changes: the columns in which a scene says what becomes what, step by step (viz/changes.py).
//
// The state of a picture is one number for each slot (an attribute of a shape): which of the values it has,
// or AS_LAID if it has not changed yet. Every so many steps such a state is kept, so that any step is near one:
// every KEYFRAME steps, or fewer if they would fill the memory.
//
// Read next: picture.js, which paints what differs.

const KEYFRAME = 64;
const MOST_KEPT = 1 << 23; // numbers in all keyframes together
const AS_LAID = -1;

const WIDTHS = { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array };

// [bytes of a number, all of them as base64] → numbers
function column([width, base64]) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let index = 0; index < text.length; index += 1) bytes[index] = text.charCodeAt(index);
  return new WIDTHS[width](bytes.buffer);
}

class Changes {
  constructor(data) {
    this.slots = data.slots;
    this.values = data.values;
    this.starts = column(data.starts);
    this.slot = column(data.slot);
    this.value = column(data.value);
    this.now = new Int32Array(this.slots.length).fill(AS_LAID);
    this.step = -1;
    this.every = KEYFRAME;
    while ((this.starts.length / this.every) * this.slots.length > MOST_KEPT) this.every *= 2;
    this.keyframes = this.makeKeyframes();
  }

  end(step) {
    return step + 1 < this.starts.length ? this.starts[step + 1] : this.slot.length;
  }

  // Lay the changes of steps first … last over a state.
  lay(state, first, last) {
    for (let index = this.starts[first]; index < this.end(last); index += 1) {
      state[this.slot[index]] = this.value[index];
    }
  }

  // keyframes[k] is the state before step k·every.
  makeKeyframes() {
    const state = this.now.slice();
    const keyframes = [];
    for (let first = 0; first < this.starts.length; first += this.every) {
      keyframes.push(state.slice());
      this.lay(state, first, Math.min(first + this.every, this.starts.length) - 1);
    }
    return keyframes;
  }

  // The state after a step: a copy that the caller may keep.
  at(step) {
    const isAhead = step >= this.step && step <= this.step + this.every;
    const number = Math.floor(step / this.every);
    const state = (isAhead ? this.now : this.keyframes[number]).slice();
    const first = isAhead ? this.step + 1 : number * this.every;
    if (first <= step) this.lay(state, first, step);
    return state;
  }

  // Go to a step: shape number → the attributes that differ from where we were. `laid` are the shapes as they
  // were laid out.
  seek(step, laid) {
    const state = this.at(step);
    const differ = new Map();
    for (let slot = 0; slot < state.length; slot += 1) {
      if (state[slot] === this.now[slot]) continue;
      const [shape, name] = this.slots[slot];
      if (!differ.has(shape)) differ.set(shape, {});
      differ.get(shape)[name] = state[slot] === AS_LAID ? laid[shape][name] : this.values[state[slot]];
    }
    this.now = state;
    this.step = step;
    return differ;
  }
}
