// The view: which part of a picture is seen. Zoom with the buttons, with + − 0 on a picture in focus, or with
// Ctrl and the wheel; pan by dragging (where x means steps, with the wheel), once one has zoomed in.
//
// Letters too small to be read are not drawn; they come back as one zooms in.
//
// Read next: player.js, which gives each picture a view.

const MOST_ZOOM = 40;
const ZOOM_STEP = 1.5;
const LEGIBLE_PX = 6.5;

class View {
  constructor(picture) {
    this.picture = picture;
    const { width, height } = picture.scene;
    this.whole = { x: 0, y: 0, width, height };
    this.box = this.whole;
    new ResizeObserver(() => this.relabel()).observe(picture.svg);
  }

  get zoom() { return this.whole.width / this.box.width; }

  // Zoom by a factor; the point at these shares of what is seen stays where it is.
  by(factor, shareX = 0.5, shareY = 0.5) {
    const zoom = Math.max(1, Math.min(MOST_ZOOM, this.zoom * factor));
    const width = this.whole.width / zoom;
    const height = this.whole.height / zoom;
    this.show(
      this.box.x + (this.box.width - width) * shareX, this.box.y + (this.box.height - height) * shareY, width, height,
    );
  }

  pan(shareX, shareY) {
    const { x, y, width, height } = this.box;
    this.show(x + shareX * width, y + shareY * height, width, height);
  }

  reset() { this.show(0, 0, this.whole.width, this.whole.height); }

  // Move so that a box of the scene is seen.
  reveal({ x, y, width, height }) {
    if (this.zoom === 1) return;
    const inside = (place, size, from, room) => Math.min(place, Math.max(from, place + size - room));
    this.show(
      inside(x, width, this.box.x, this.box.width), inside(y, height, this.box.y, this.box.height),
      this.box.width, this.box.height,
    );
  }

  show(x, y, width, height) {
    const within = (place, size, room) => Math.max(0, Math.min(place, room - size));
    this.box = {
      x: within(x, width, this.whole.width), y: within(y, height, this.whole.height), width, height,
    };
    this.picture.svg.setAttribute("viewBox", Object.values(this.box).join(" "));
    this.picture.svg.classList.toggle("zoomed", this.zoom > 1);
    this.relabel();
  }

  relabel() {
    const pixels = this.picture.svg.clientWidth;
    if (pixels) this.picture.legible(LEGIBLE_PX / (pixels / this.box.width));
  }
}

// Buttons, the wheel, and dragging. Returns the element with the buttons.
function zoomControls(view, say) {
  const { svg, scene } = view.picture;
  const host = document.createElement("div");
  host.className = "zoom";
  const button = (words, label, press) => {
    const element = document.createElement("button");
    element.type = "button";
    element.textContent = words;
    element.setAttribute("aria-label", `${words} ${label}`);
    element.title = label;
    element.addEventListener("click", press);
    host.append(element);
  };
  button("−", say("zoom out"), () => view.by(1 / ZOOM_STEP));
  button("+", say("zoom in"), () => view.by(ZOOM_STEP));
  button("1:1", say("the whole picture"), () => view.reset());
  svg.addEventListener("wheel", (event) => {
    const bounds = svg.getBoundingClientRect();
    if (event.ctrlKey) {
      const share = [(event.clientX - bounds.left) / bounds.width, (event.clientY - bounds.top) / bounds.height];
      view.by(Math.exp(-event.deltaY / 200), ...share);
    } else if (view.zoom > 1 && scene.axis) {
      view.pan(event.deltaX / bounds.width, event.deltaY / bounds.height);
    } else return;
    event.preventDefault();
  }, { passive: false });
  svg.addEventListener("pointermove", (event) => {
    if (!(event.buttons & 1) || view.zoom === 1 || scene.axis) return;
    const bounds = svg.getBoundingClientRect();
    view.pan(-event.movementX / bounds.width, -event.movementY / bounds.height);
    svg.dragged = true;
  });
  return host;
}
