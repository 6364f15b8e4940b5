r"""Regular expressions: from the usual syntax to an expression.

    literals  .  [a-z]  [^a-z]  \d \w \s \D \W \S  \n \t \x41 \u00e9   (…)  (?:…)  |  * + ? {2} {2,} {2,5}

It is Python's syntax and meaning with the flag `re.ASCII` (`\d` is 0 … 9), and the whole text must match.
Lazy repeats (`*?`) allow the same texts as greedy ones. Anchors stand where they mean nothing else, at the
ends. What no automaton can follow, or what depends on a text's neighbours, is refused by its name:
lookarounds, backreferences, word boundaries, flags.

Read next: `gbnf.py`, for grammars.
"""

from __future__ import annotations

from typing import NoReturn

from minivllm.decoding.structured.characters import LAST, Ranges, complement, normal
from minivllm.decoding.structured.cursor import Cursor
from minivllm.decoding.structured.expressions import (
    Characters,
    Expression,
    Repeat,
    StructureError,
    choice,
    concat,
)

DEEPEST = 100
"""Groups within groups: each is a call of Python's."""
MOST_TIMES = 100_000
DIGITS: Ranges = ((48, 57),)
WORDS: Ranges = ((48, 57), (65, 90), (95, 95), (97, 122))
SPACES: Ranges = ((9, 13), (32, 32))
CLASSES = {
    "d": DIGITS,
    "w": WORDS,
    "s": SPACES,
    "D": complement(DIGITS),
    "W": complement(WORDS),
    "S": complement(SPACES),
}
ANY = Characters(complement([(10, 10)]))
EVERYTHING = Repeat(Characters(normal([(0, LAST)])), 0, None)
CONTROL = {"n": 10, "t": 9, "r": 13, "f": 12, "v": 11, "a": 7}
HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
GROUPS = {
    "?=": "a lookahead, (?=…)",
    "?!": "a negative lookahead, (?!…)",
    "?<=": "a lookbehind, (?<=…)",
    "?<!": "a negative lookbehind, (?<!…)",
    "?P=": "a backreference, (?P=…)",
    "?>": "an atomic group, (?>…)",
    "?(": "a condition, (?(…)…)",
    "?#": "a comment, (?#…)",
}
ESCAPES = {
    "b": "a word boundary, \\b",
    "B": "a word boundary, \\B",
    "p": "a Unicode property, \\p",
    "P": "a Unicode property, \\P",
    "k": "a backreference, \\k",
    "G": "the anchor \\G",
}


def parse_regex(pattern: str, *, name: str = "regex", is_search: bool = False) -> Expression:
    """What a pattern matches.

    Args:
        name: of the argument, for messages.
        is_search: the pattern may match anywhere in the text, unless it is anchored (as in JSON schemas).

    Raises:
        StructureError: it is none, or has something that cannot be followed, with its name and its place.
    """
    return _Parser(pattern, name, is_search).parse()


class _Parser(Cursor):
    def __init__(self, pattern: str, name: str, is_search: bool) -> None:
        super().__init__(pattern)
        self._name = name
        self._is_search = is_search
        self._depth = 0
        self._is_closed = False  # an anchor $ was read: the text ends here
        self._has_anchor = False

    def parse(self) -> Expression:
        found = self._alternatives()
        if not self.is_at_end:
            self.refuse("has a ')' that closes nothing")
        return found

    def refuse(self, problem: str) -> NoReturn:
        shown = self.text if len(self.text) <= 60 else f"{self.text[:60]}…"
        raise StructureError(f"{self._name} {problem}, at character {self.place} of {shown!r}")

    def _alternatives(self, *, at_start: bool = True) -> Expression:
        """`at_start`: does the text begin here? Only there may `^` stand."""
        options: list[Expression] = []
        is_closed = False
        while not options or self.take("|"):
            options.append(self._branch(at_start))
            is_closed |= self._is_closed
        self._is_closed = is_closed
        return choice(options)

    def _branch(self, at_start: bool) -> Expression:
        """One alternative. A search that is not anchored goes on with anything at that end."""
        is_search = self._is_search and not self._depth
        from_start, parts = not is_search, list[Expression]()
        self._is_closed = False
        while self.peek("^") or self.peek("\\A"):
            if not at_start or (self._is_search and self._depth):
                self.refuse("has the anchor ^ elsewhere than at its beginning")
            self.place += 1 + self.peek("\\A")
            from_start = self._has_anchor = True
        while not self.is_at_end and not self.peek("|") and not self.peek(")"):
            is_end = self.peek("$") or self.peek("\\Z") or self.peek("\\z")
            if (is_end and self._is_search and self._depth) or (self._is_closed and not is_end):
                self.refuse("has the anchor $ elsewhere than at its end")
            if is_end:
                self.place += 1 + (not self.peek("$"))
                self._is_closed = self._has_anchor = True
            elif self.peek("^") or self.peek("\\A"):
                self.refuse("has the anchor ^ elsewhere than at its beginning")
            else:
                parts.append(self._repeated(at_start and not parts))
        before = () if from_start else (EVERYTHING,)
        after = () if self._is_closed or not is_search else (EVERYTHING,)
        return concat(*before, *parts, *after)

    def _repeated(self, at_start: bool) -> Expression:
        begin = self.place
        self._has_anchor = False
        part = self._atom(at_start)
        while not self.is_at_end:
            if self.take("*"):
                part = Repeat(part, 0, None)
            elif self.take("+"):
                part = Repeat(part, 1, None)
            elif self.take("?"):
                part = Repeat(part, 0, 1)
            elif (times := self._times()) is not None:
                part = Repeat(part, *times)
            else:
                break
            if self._has_anchor:
                self.refuse(f"repeats {self.text[begin : begin + 20]!r}, which has an anchor")
            self.take("?")  # lazy: the same texts
            if self.peek("+"):
                self.refuse("has a possessive repeat, which cannot be followed")
            if self.text[self.place : self.place + 1] in ("*", "?") or self._times(peek=True) is not None:
                self.refuse("repeats a repeat: put it in a group")
        return part

    def _times(self, *, peek: bool = False) -> tuple[int, int | None] | None:
        """`{2}`, `{2,}`, `{,5}` or `{2,5}`; anything else in braces is text, as in Python."""
        end = self.text.find("}", self.place, self.place + 20)
        if not self.peek("{") or end < 0:
            return None
        low, comma, high = self.text[self.place + 1 : end].partition(",")
        is_number = all(not part or (part.isascii() and part.isdigit()) for part in (low, high))
        if not is_number or not (low or high or comma) or (not comma and not low):
            return None
        if peek:
            return 0, None
        least, most = int(low or 0), (int(high) if high else None) if comma else int(low)
        self.place = end + 1
        if most is not None and most < least:
            self.refuse(f"repeats at least {least} and at most {most} times")
        if max(least, most or 0) > MOST_TIMES:
            self.refuse(f"repeats more than {MOST_TIMES:,} times")
        return least, most

    def _atom(self, at_start: bool) -> Expression:
        character = self.next("an item")
        if character == "(":
            return self._group(at_start)
        if character == "[":
            return self._class()
        if character == ".":
            return ANY
        if character in "*+?" or (character == "{" and self._is_repeat_at(self.place - 1)):
            self.refuse("repeats nothing")
        if character == "\\":
            return Characters(self._escape(in_class=False))
        return Characters(normal([(ord(character), ord(character))]))

    def _is_repeat_at(self, place: int) -> bool:
        here, self.place = self.place, place
        found = self._times(peek=True) is not None
        self.place = here
        return found

    def _group(self, at_start: bool) -> Expression:
        self._depth += 1
        if self._depth > DEEPEST:
            self.refuse(f"has groups more than {DEEPEST} deep")
        if self.peek("?"):
            self._group_kind()
        found = self._alternatives(at_start=at_start)
        if not self.take(")"):
            self.refuse("has a '(' that is not closed")
        self._depth -= 1
        return found

    def _group_kind(self) -> None:
        if self.take("?:"):
            return
        if self.take("?P<") or (self.peek("?<") and not self.peek("?<=") and not self.peek("?<!")):
            self.take("?<")
            while self.next("a group's name") != ">":
                pass
            return
        kind = next((words for sign, words in GROUPS.items() if self.peek(sign)), None)
        self.refuse(f"has {kind or 'flags, (?…)'}, which cannot be followed")

    def _class(self) -> Expression:
        is_negated = self.take("^")
        ranges: list[tuple[int, int]] = []
        is_first = True
        while is_first or not self.take("]"):
            is_first = False
            low = self._class_item()
            if self.peek("-") and self.text[self.place + 1 : self.place + 2] not in ("]", ""):
                self.place += 1
                high = self._class_item()
                if len(low) != 1 or len(high) != 1 or low[0][0] != low[0][1] or high[0][0] != high[0][1]:
                    self.refuse("has a range in [] whose ends are no single characters")
                if low[0][0] > high[0][0]:
                    self.refuse("has a range in [] that runs backwards")
                ranges.append((low[0][0], high[0][0]))
            else:
                ranges += low
        found = complement(ranges) if is_negated else normal(ranges)
        if not found:
            self.refuse("has a class [] without any character")
        return Characters(found)

    def _class_item(self) -> Ranges:
        character = self.next("a class []")
        if character == "\\":
            return self._escape(in_class=True)
        if character == "[" and self.text[self.place : self.place + 1] in (":", "."):
            self.refuse("has a POSIX class [:…:], which Python does not know")
        return ((ord(character), ord(character)),)

    def _escape(self, *, in_class: bool) -> Ranges:
        character = self.next("an escape")
        if character in CLASSES:
            return CLASSES[character]
        if character == "b" and in_class:
            return ((8, 8),)
        if character in CONTROL:
            return ((CONTROL[character],) * 2,)
        if character in HEX_DIGITS:
            return (self._code(HEX_DIGITS[character]),)
        if character == "0" and not self.text[self.place : self.place + 1].isdigit():
            return ((0, 0),)
        if character.isdigit():
            self.refuse(f"has a backreference, \\{character}, which cannot be followed")
        if character.isalpha():
            kind = ESCAPES.get(character, f"an escape \\{character}")
            self.refuse(f"has {kind}, which cannot be followed")
        return ((ord(character), ord(character)),)

    def _code(self, digits: int) -> tuple[int, int]:
        spelled = self.text[self.place : self.place + digits]
        try:
            code = int(spelled, 16) if len(spelled) == digits and spelled.isalnum() else -1
        except ValueError:
            code = -1
        if not 0 <= code <= LAST or 0xD800 <= code <= 0xDFFF:
            self.refuse("has an escape that is no character")
        self.place += digits
        return code, code
