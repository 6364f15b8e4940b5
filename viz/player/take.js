// Take it with you: the pictures of the step that is shown, as an SVG or a PNG file. Drawn here, because only
// the browser knows the step; what needs every step (a page that plays, a film) is made by viz/take_away.py.
//
// A file has no stylesheet of ours around it, so each colour is written out as the browser has computed it.
//
// Read next: player.js.

const MARGIN = 12;
const GAP = 14;
const PNG_SCALE = 2;
const MOST_PIXELS = 8192; // along a side: what every browser's canvas can hold

// One SVG document with these pictures, one below the other, as they look now.
function standalone(pictures, title, caption) {
  const look = getComputedStyle(pictures[0].svg);
  const page = document.createElementNS(SVG, "svg");
  let width = 0;
  let y = MARGIN;
  for (const picture of pictures) {
    const copy = painted(picture);
    const { width: wide, height: high } = picture.svg.viewBox.baseVal;
    for (const [name, value] of Object.entries({ x: MARGIN, y, width: wide, height: high })) {
      copy.setAttribute(name, value);
    }
    page.append(copy);
    width = Math.max(width, wide);
    y += high + GAP;
  }
  const size = [width + 2 * MARGIN, y - GAP + MARGIN];
  page.prepend(
    worded("title", title), worded("desc", caption),
    shaped("rect", { width: "100%", height: "100%", fill: background(pictures[0].svg) }),
  );
  page.setAttribute("viewBox", `0 0 ${size[0]} ${size[1]}`);
  page.setAttribute("width", size[0]);
  page.setAttribute("height", size[1]);
  page.setAttribute("font-family", look.fontFamily);
  return { text: new XMLSerializer().serializeToString(page), size };
}

function worded(name, words) {
  const element = document.createElementNS(SVG, name);
  element.textContent = words;
  return element;
}

function shaped(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

// A copy whose colours are plain, and that has nothing which is not shown. What a pointer reads is in it as titles.
function painted(picture) {
  const { svg, scene } = picture;
  const copy = svg.cloneNode(true);
  const copies = [...copy.querySelectorAll("*")];
  const colours = new Map(); // var(--name) → what it is here
  const hidden = [];
  [...svg.querySelectorAll("*")].forEach((element, index) => {
    const look = getComputedStyle(element);
    if (look.display === "none" || look.visibility === "hidden") hidden.push(copies[index]);
    for (const name of ["fill", "stroke"]) {
      const value = element.getAttribute(name);
      if (!value?.startsWith("var(")) continue;
      if (!colours.has(value)) colours.set(value, look[name]);
      copies[index].setAttribute(name, colours.get(value));
    }
    if (element.tagName === "text") copies[index].setAttribute("xml:space", "preserve");
    const tip = picture.tipOf(element);
    if (tip) copies[index].append(worded("title", tip));
    else copies[index].setAttribute("pointer-events", "none");
  });
  for (const [cx, cy, , words] of scene.points) {
    const point = shaped("circle", { cx, cy, r: POINT / 2, fill: "#000", "fill-opacity": 0 });
    if (words) copy.append(point);
    point.append(worded("title", words));
  }
  for (const element of hidden) element.remove();
  const text = svg.querySelector("text");
  if (text) copy.setAttribute("font-family", getComputedStyle(text).fontFamily); // code has its own
  copy.removeAttribute("style");
  return copy;
}

// The first colour behind an element that is not transparent.
function background(element) {
  for (let at = element; at; at = at.parentElement ?? at.getRootNode().host) {
    const colour = getComputedStyle(at).backgroundColor;
    if (!/^(transparent|rgba\(.*, 0\))$/.test(colour)) return colour;
  }
  return "white";
}

// The same as a PNG.
async function rastered({ text, size }) {
  const scale = Math.min(PNG_SCALE, MOST_PIXELS / Math.max(...size));
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = size.map((length) => Math.round(length * scale));
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => { canvas.toBlob(done, "image/png"); });
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

// The button in the bar, and what it opens.
function offerPictures(player, root) {
  const find = (selector) => root.querySelector(selector);
  const [opener, menu, which] = [find(".take-open"), find(".take-menu"), find(".take-which")];
  const seen = () => player.pictures.filter(({ svg }) =>
    svg.getBoundingClientRect().width > 0 && getComputedStyle(svg).visibility === "visible");
  const open = (isOpen) => {
    menu.hidden = !isOpen;
    opener.setAttribute("aria-expanded", isOpen);
    const names = [player.say("all pictures"), ...seen().map((picture) => picture.scene.title)];
    which.replaceChildren(...names.map((name) => new Option(name)));
    which.hidden = names.length < 3;
  };
  opener.onclick = () => open(menu.hidden);
  find(".take").onkeydown = (event) => {
    if (event.key !== "Escape") return;
    open(false);
    opener.focus();
  };
  const chosen = () => (which.selectedIndex > 0 ? [seen()[which.selectedIndex - 1]] : seen());
  const take = async (ending) => {
    const drawn = standalone(chosen(), chosen()[0].scene.title, player.caption.textContent);
    const blob = ending === "svg" ? new Blob([drawn.text], { type: "image/svg+xml" }) : await rastered(drawn);
    save(blob, `minivllm-step-${player.step + (player.data.first || 0)}.${ending}`);
  };
  find(".take-svg").onclick = () => take("svg");
  find(".take-png").onclick = () => take("png");
  open(false);
}
