// Keys within a picture: once it is in focus (Tab), arrows go from one shape that can be asked about to the
// next one in that direction, Enter selects it, + − 0 zoom, and Escape leaves. A ring shows where one is, and a
// hidden line says what is there. In a chart, arrows go from point to point, and Enter to the step of one.
//
// Read next: player.js.

const DIRECTIONS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
const ASIDE = 3; // a shape that lies aside is as far as one so many times as far ahead

class Focus {
  // `touch`: select(subject), canTouch(subject), leap(step), captionOf(step), speak(words), leave().
  constructor(picture, view, say, touch) {
    Object.assign(this, { picture, view, touch, at: null });
    const { svg, scene } = picture;
    svg.setAttribute("tabindex", "0");
    svg.setAttribute("role", "application");
    const help = say("Arrow keys go from one to the next, Enter selects, plus and minus zoom, Escape leaves.");
    svg.setAttribute("aria-label", `${scene.title}. ${help}`);
    this.ring = document.createElementNS(SVG, "rect");
    this.ring.setAttribute("class", "ring");
    picture.labelLayer.append(this.ring);
    this.hide();
    // A click must not take the arrow keys away from the steps.
    svg.addEventListener("mousedown", (event) => event.preventDefault());
    svg.addEventListener("keydown", (event) => this.key(event));
    svg.addEventListener("focus", () => this.go(this.at ?? this.first()));
    svg.addEventListener("blur", () => this.hide());
  }

  hide() { this.ring.setAttribute("width", 0); }

  // All shapes that can be asked about, with their boxes.
  places() {
    const found = [];
    this.picture.now.forEach((shape, index) => {
      if (this.touch.canTouch(shape.subject)) found.push({ index, ...this.picture.boxOf(index) });
    });
    return found.filter(({ width }) => width > 0);
  }

  // Points of a chart are counted on from its shapes.
  pointAt(index) { return this.picture.scene.points[index - this.picture.now.length]; }

  first() {
    return this.picture.scene.points.length ? this.picture.now.length : this.places()[0]?.index;
  }

  go(index) {
    if (index === undefined) return;
    this.at = index;
    const box = this.picture.boxOf(index);
    this.view.reveal(box);
    const around = { x: box.x - 2, y: box.y - 2, width: box.width + 4, height: box.height + 4 };
    for (const name in around) this.ring.setAttribute(name, around[name]);
    this.touch.speak(this.wordsOf(index));
  }

  wordsOf(index) {
    const point = this.pointAt(index);
    if (point) return point[3] || this.touch.captionOf(point[2]);
    return this.picture.tipOf(this.picture.elements[index]) || this.picture.now[index].text || "";
  }

  // Enter: to the step of a point, or the card of a shape.
  ask() {
    const point = this.pointAt(this.at);
    if (point) this.touch.leap(point[2]);
    else this.touch.select(this.picture.now[this.at].subject);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const direction = DIRECTIONS[event.key];
    if (direction) this.go(this.next(...direction));
    else if (event.key === "Enter" && this.at !== null) this.ask();
    else if (event.key === "+") this.view.by(ZOOM_STEP, ...this.shares());
    else if (event.key === "-") this.view.by(1 / ZOOM_STEP, ...this.shares());
    else if (event.key === "0") this.view.reset();
    else if (event.key === "Escape") this.touch.leave();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  // Where the ring is within what is seen.
  shares() {
    if (this.at === null) return [0.5, 0.5];
    const { x, y, width, height } = this.picture.boxOf(this.at);
    const { box } = this.view;
    return [(x + width / 2 - box.x) / box.width, (y + height / 2 - box.y) / box.height];
  }

  next(dx, dy) {
    const count = this.picture.scene.points.length;
    if (count) {
      const at = (this.at ?? this.first()) - this.picture.now.length + dx + dy;
      return this.picture.now.length + Math.max(0, Math.min(count - 1, at));
    }
    const places = this.places();
    const here = places.find(({ index }) => index === this.at) ?? places[0];
    if (!here) return undefined;
    const middle = (place) => [place.x + place.width / 2, place.y + place.height / 2];
    const [x, y] = middle(here);
    let best;
    let least = Infinity;
    for (const place of places) {
      const [otherX, otherY] = middle(place);
      const ahead = (otherX - x) * dx + (otherY - y) * dy;
      const aside = Math.abs((otherX - x) * dy) + Math.abs((otherY - y) * dx);
      if (ahead > 0.5 && ahead + ASIDE * aside < least) {
        least = ahead + ASIDE * aside;
        best = place.index;
      }
    }
    return best ?? this.at;
  }
}
