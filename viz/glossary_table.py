"""The glossary in the browser: a search field, and the terms that match what is typed.

A field of Streamlit tells Python what was typed only after Enter. Terms are few and short, so all of them are
sent once, and the browser shows those that match after every key: no round trip.

Nothing is ever markup: the script writes with `textContent`, and makes `code` elements of what stands between
backticks.

Read next: `views/glossary.py`.
"""

from __future__ import annotations

import streamlit as st

from viz.glossary import Group

HTML = """
<div class="glossary">
  <label><span class="label"></span><input type="search" autocomplete="off" spellcheck="false"></label>
  <p class="count" role="status"></p>
  <div class="groups"></div>
</div>
"""

CSS = """
.glossary { container-type: inline-size; color: var(--st-text-color); font-family: var(--st-font);
  font-size: 1rem; line-height: 1.45; }
label { display: flex; flex-direction: column; gap: 0.3rem; max-width: 30rem; font-size: 0.875rem; }
input { font: inherit; font-size: 1rem; padding: 0.5rem 0.75rem; color: inherit; border-radius: 0.5rem;
  background: var(--st-secondary-background-color); border: 1px solid var(--st-border-color, transparent); }
input:focus-visible { outline: 2px solid var(--st-primary-color); outline-offset: 1px; }
.count { margin: 0.6rem 0 0; font-size: 0.875rem; opacity: 0.75; }
h2 { font-size: 1.25rem; font-weight: 600; margin: 1.6rem 0 0.3rem; }
table { width: 100%; border-collapse: collapse; table-layout: fixed; }
th, td { text-align: left; vertical-align: top; padding: 0.45rem 1rem 0.45rem 0; overflow-wrap: anywhere; }
th { font-weight: 400; font-size: 0.875rem; opacity: 0.75; }
tr { border-bottom: 1px solid color-mix(in srgb, currentColor 18%, transparent); }
th:nth-child(1) { width: 24%; }
th:nth-child(3) { width: 27%; }
td:nth-child(1) { font-weight: 600; }
td:nth-child(3) { font-size: 0.875rem; }
code { font-family: var(--st-code-font, monospace); font-size: 0.875em; padding: 0.1em 0.25em;
  border-radius: 0.25rem; background: var(--st-secondary-background-color); }
@container (max-width: 44rem) {
  thead { position: absolute; clip-path: inset(50%); }
  tr, td { display: block; }
  tr { padding: 0.5rem 0; }
  td { padding: 0.1rem 0; }
}
"""

JAVASCRIPT = """
function element(name, text = "") {
  const made = document.createElement(name);
  text.split("`").forEach((part, index) => { // every second part stands between backticks
    const inner = document.createElement(index % 2 ? "code" : "span");
    inner.textContent = part;
    if (part) made.append(inner);
  });
  return made;
}

function table(group) {
  const made = document.createElement("table");
  const head = document.createElement("tr");
  head.append(...group.headings.map((words) => element("th", words)));
  made.createTHead().append(head);
  const body = made.createTBody();
  for (const cells of group.terms) {
    const row = document.createElement("tr");
    row.append(...cells.map((words) => element("td", words)));
    body.append(row);
  }
  return made;
}

function matching(groups, query) {
  const parts = query.toLowerCase().split(/\\s+/).filter(Boolean);
  const fits = (title, cells) => {
    const text = [title, ...cells].join(" ").toLowerCase().replaceAll("`", "");
    return parts.every((part) => text.includes(part));
  };
  return groups.map((group) => ({ ...group, terms: group.terms.filter((cells) => fits(group.title, cells)) }))
    .filter((group) => group.terms.length);
}

export default function ({ data, parentElement }) {
  const root = parentElement.querySelector(".glossary");
  const find = (selector) => root.querySelector(selector);
  const input = find("input");
  find(".label").textContent = data.label;
  const total = data.groups.reduce((sum, group) => sum + group.terms.length, 0);
  const show = () => {
    const found = matching(data.groups, input.value);
    const shown = found.reduce((sum, group) => sum + group.terms.length, 0);
    find(".count").textContent = data.count.replace("{shown}", shown).replace("{all}", total);
    find(".groups").replaceChildren(...found.flatMap((group) => [element("h2", group.title), table(group)]));
  };
  if (root.query === undefined) input.value = data.query; // later the reader's own words count
  root.query = data.query;
  input.oninput = show;
  show();
}
"""

TABLE = st.components.v2.component("minivllm_glossary", html=HTML, css=CSS, js=JAVASCRIPT)


def show(groups: tuple[Group, ...], label: str, count: str, query: str = "") -> None:
    """Put field and terms on the page.

    Args:
        label: of the search field.
        count: how many terms are shown: a sentence with `{shown}` and `{all}`.
        query: what is searched for at first.
    """
    told = [group._asdict() for group in groups]
    TABLE(data={"groups": told, "label": label, "count": count, "query": query}, key="glossary")
