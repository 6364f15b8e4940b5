"""Search in Chinese without a dictionary: two neighbours are a word, in the index and in a query.

Chinese has no spaces. A search engine either knows words, which needs a dictionary, or takes all pairs of
neighbours: 写时复制 is 写时, 时复, 复制, and a search for 复制 finds it. Latin words are words.

Read next: `site.py`, which hands this to Sphinx.
"""

from __future__ import annotations

import re
from typing import Any

HANZI = r"\u4e00-\u9fff"
WORD = re.compile(f"[{HANZI}]+|[A-Za-z0-9_]+")

IN_BROWSER = """
var splitQuery = (query) =>
  (query.match(/[\\u4e00-\\u9fff]+|[A-Za-z0-9_]+/g) || []).flatMap((word) =>
    !/[\\u4e00-\\u9fff]/.test(word) || word.length < 3
      ? [word] : [...word].slice(1).map((character, index) => word[index] + character));
"""


def split(text: str) -> list[str]:
    """The words of a text, as its index has them."""
    found: list[str] = []
    for word in WORD.findall(text):
        if len(word) > 2 and re.match(f"[{HANZI}]", word):
            found += [word[index : index + 2] for index in range(len(word) - 1)]
        else:
            found.append(word)
    return found


def setup(app: Any) -> dict[str, Any]:
    """Sphinx calls this: here is how to search in Chinese."""
    from sphinx.search import SearchLanguage

    class SearchHanzi(SearchLanguage):
        lang = "zh"
        language_name = "Chinese"
        js_splitter_code = IN_BROWSER

        def split(self, input: str) -> list[str]:
            return split(input)

        def stem(self, word: str) -> str:
            return word.lower()

    app.add_search_language(SearchHanzi)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
