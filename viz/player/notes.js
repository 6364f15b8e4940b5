// Notes: the words below a picture, and the legend beside all of them. Words may have `code` and **bold** in them,
// and nothing else: all of it goes in by textContent.
//
// Read next: player.js.

const MODEST = 640; // units across
const MARKED = /(\*\*.+?\*\*|`[^`]+`)/;

function rich(words) {
  return words.split(MARKED).filter(Boolean).map((part) => {
    if (part.startsWith("**") && part.length > 4) return make("strong", "", part.slice(2, -2));
    if (part.startsWith("`") && part.length > 2) return make("code", "", part.slice(1, -1));
    return document.createTextNode(part);
  });
}

// What stands below a picture: one element, or none.
function notesOf({ notes }) {
  if (!notes.length) return [];
  const host = make("figcaption", "notes");
  for (const [kind, words] of notes) {
    const line = make(kind === "code" ? "pre" : "p", "");
    if (kind === "code") line.append(make("code", "", words));
    else line.append(...rich(words));
    host.append(line);
  }
  return [host];
}

// Does a picture for wide screens take all columns? One of modest width leaves room for others, where there are any.
function isBroad(scene, scenes) {
  const others = scenes.filter(({ screen }) => screen !== "narrow").length > 1;
  return scene.screen === "wide" && !(scene.width <= MODEST && others);
}

// The legend: beside the pictures where there is room, else below them. Pictures of modest width leave some earlier.
function explain(host, legend, scenes) {
  host.closest(".stage").classList.toggle("modest", scenes.every(({ width }) => width <= MODEST));
  host.replaceChildren();
  for (const words of legend ?? []) {
    const line = make("p", "");
    line.append(...rich(words));
    host.append(line);
  }
  host.hidden = !legend?.length;
}
