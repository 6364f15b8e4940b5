"""Text of any language under a locale that knows only ASCII."""

import io
import sys

from hypothesis import given
from hypothesis import strategies as st

from minivllm.console.locale_text import typed_text
from minivllm.streams import print_all_languages


@given(text=st.text(st.characters(exclude_categories=("Cs",))))
def test_what_was_typed_in_utf8_is_understood_whatever_the_locale(text):
    assert typed_text(text) == text
    assert typed_text(text.encode().decode("ascii", "surrogateescape")) == text


def test_what_is_no_text_stays_as_it_is_and_is_refused_later():
    assert typed_text("a\udcff") == "a\udcff"


def test_all_languages_can_be_printed(monkeypatch):
    for encoding, first in (("ascii", "从"), ("latin-1", "\\u4ece"), ("utf-8", "从")):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        print_all_languages()
        print("从\ud800", flush=True)
        assert stream.buffer.getvalue().decode(stream.encoding) == first + "\\ud800\n"
