// Keys and the pointer, for every player: which keys are meant for it, and the words beside the pointer.
//
// Read next: player.js and live.js, which move.

const TIP_DISTANCE = 14;

// Elements elsewhere on the page that have a use for arrow keys, and those that Space presses.
const WANTS_ARROWS = "input, select, textarea, [contenteditable], [role=tab], [role=option], [role=combobox]";
const WANTS_SPACE = `a, button, summary, ${WANTS_ARROWS}`;

// Move as the key says: `moves` are by(stride), first(), last() and toggle(). Keys work anywhere on the page,
// unless something else has a use for them; `ownTag` names what does within the player.
function answerKey(root, event, ownTag, moves) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  const target = event.composedPath()[0];
  const ours = root.contains(target);
  if (!ours && target.closest?.(event.key === " " ? WANTS_SPACE : WANTS_ARROWS)) return;
  if (ours && (target.tagName === ownTag || target.type === "search")) return;
  const stride = event.shiftKey ? 10 : 1;
  if (event.key === "ArrowRight") moves.by(stride);
  else if (event.key === "ArrowLeft") moves.by(-stride);
  else if (event.key === "Home") moves.first();
  else if (event.key === "End") moves.last();
  else if (event.key === " " && target.tagName !== "BUTTON") moves.toggle();
  else return;
  event.preventDefault();
}

// Show what the element under the pointer says, beside it and within the window; if it says nothing, `otherwise`.
function showTip(tip, picture, event, otherwise = "") {
  const words = picture.tipOf(event.target) || otherwise;
  tip.hidden = !words;
  if (!words) return;
  tip.textContent = words;
  const left = Math.min(event.clientX + TIP_DISTANCE, window.innerWidth - tip.offsetWidth - 8);
  const below = event.clientY + TIP_DISTANCE + tip.offsetHeight < window.innerHeight;
  const top = below ? event.clientY + TIP_DISTANCE : event.clientY - TIP_DISTANCE - tip.offsetHeight;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${top}px`;
}
