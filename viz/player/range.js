// A range of steps: the slider, the keys and playing stay within it. Chosen with Shift and a drag over a picture
// whose x means steps, or from the step that is shown with "from here" and "to here".
//
// Read next: player.js.

class StepRange {
  constructor(host, last, changed) {
    Object.assign(this, { host, last, first: 0, end: last, changed });
    host.querySelector(".from").onclick = () => this.choose(this.step, Math.max(this.step, this.end));
    host.querySelector(".to").onclick = () => this.choose(Math.min(this.first, this.step), this.step);
    this.whole = host.querySelector(".whole");
    this.whole.onclick = () => this.choose(0, last);
    this.step = 0;
    this.whole.hidden = true;
  }

  get isWhole() { return this.first === 0 && this.end === this.last; }

  choose(one, other) {
    const within = (step) => Math.max(0, Math.min(this.last, step));
    this.first = within(Math.min(one, other));
    this.end = within(Math.max(one, other));
    this.whole.hidden = this.isWhole;
    this.changed();
  }

  within(step) { return Math.max(this.first, Math.min(this.end, Math.trunc(step) || 0)); }
}
