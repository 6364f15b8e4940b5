// The words of the player, in the reader's language: Python sends them (`data.words`), their keys are English.
//
// Read next: player.js, which says them.

// `say("step {step} of {last}", { step, last })`: the text in the reader's language, with its values.
function speaker(words = {}) {
  return (text, values = {}) =>
    (words[text] ?? text).replace(/{(\w+)}/g, (all, name) => values[name] ?? all);
}

// The words that stand in the HTML: its elements have the English ones as an attribute.
function sayAll(root, say) {
  for (const element of root.querySelectorAll("[data-say]")) element.textContent = say(element.dataset.say);
  for (const element of [root, ...root.querySelectorAll("[data-label]")]) {
    element.setAttribute("aria-label", say(element.dataset.label));
  }
}
