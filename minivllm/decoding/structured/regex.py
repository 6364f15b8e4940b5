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


class _Parser:
    def __init__(self, pattern: str, name: str, is_search: bool) -> None:
        self.pattern = pattern
        self.place = 0
        self._name = name
        self._is_search = is_search
        self._depth = 0
        self._is_closed = False  # an anchor $ was read: the text ends here
        self._has_anchor = False

    def parse(self) -> Expression:
        found = self._alternatives()
        if self.place < len(self.pattern):
            self._refuse("has a ')' that closes nothing")
        return found

    def _peek(self, ahead: str) -> bool:
        return self.pattern.startswith(ahead, self.place)

    def _take(self, ahead: str) -> bool:
        if self._peek(ahead):
            self.place += len(ahead)
            return True
        return False

    def _next(self, what: str) -> str:
        if self.place >= len(self.pattern):
            self._refuse(f"ends within {what}")
        self.place += 1
        return self.pattern[self.place - 1]

    def _refuse(self, problem: str) -> NoReturn:
        shown = self.pattern if len(self.pattern) <= 60 else f"{self.pattern[:60]}…"
        raise StructureError(f"{self._name} {problem}, at character {self.place} of {shown!r}")

    def _alternatives(self, *, at_start: bool = True) -> Expression:
        """`at_start`: does the text begin here? Only there may `^` stand."""
        options: list[Expression] = []
        is_closed = False
        while not options or self._take("|"):
            options.append(self._branch(at_start))
            is_closed |= self._is_closed
        self._is_closed = is_closed
        return choice(options)

    def _branch(self, at_start: bool) -> Expression:
        """One alternative. A search that is not anchored goes on with anything at that end."""
        is_search = self._is_search and not self._depth
        from_start, parts = not is_search, list[Expression]()
        self._is_closed = False
        while self._peek("^") or self._peek("\\A"):
            if not at_start or (self._is_search and self._depth):
                self._refuse("has the anchor ^ elsewhere than at its beginning")
            self.place += 1 + self._peek("\\A")
            from_start = self._has_anchor = True
        while self.place < len(self.pattern) and not self._peek("|") and not self._peek(")"):
            is_end = self._peek("$") or self._peek("\\Z") or self._peek("\\z")
            if (is_end and self._is_search and self._depth) or (self._is_closed and not is_end):
                self._refuse("has the anchor $ elsewhere than at its end")
            if is_end:
                self.place += 1 + (not self._peek("$"))
                self._is_closed = self._has_anchor = True
            elif self._peek("^") or self._peek("\\A"):
                self._refuse("has the anchor ^ elsewhere than at its beginning")
            else:
                parts.append(self._repeated(at_start and not parts))
        before = () if from_start else (EVERYTHING,)
        after = () if self._is_closed or not is_search else (EVERYTHING,)
        return concat(*before, *parts, *after)

    def _repeated(self, at_start: bool) -> Expression:
        begin = self.place
        self._has_anchor = False
        part = self._atom(at_start)
        while self.place < len(self.pattern):
            if self._take("*"):
                part = Repeat(part, 0, None)
            elif self._take("+"):
                part = Repeat(part, 1, None)
            elif self._take("?"):
                part = Repeat(part, 0, 1)
            elif (times := self._times()) is not None:
                part = Repeat(part, *times)
            else:
                break
            if self._has_anchor:
                self._refuse(f"repeats {self.pattern[begin : begin + 20]!r}, which has an anchor")
            self._take("?")  # lazy: the same texts
            if self._peek("+"):
                self._refuse("has a possessive repeat, which cannot be followed")
            if self.pattern[self.place : self.place + 1] in ("*", "?") or self._times(peek=True) is not None:
                self._refuse("repeats a repeat: put it in a group")
        return part

    def _times(self, *, peek: bool = False) -> tuple[int, int | None] | None:
        """`{2}`, `{2,}`, `{,5}` or `{2,5}`; anything else in braces is text, as in Python."""
        end = self.pattern.find("}", self.place, self.place + 20)
        if not self._peek("{") or end < 0:
            return None
        low, comma, high = self.pattern[self.place + 1 : end].partition(",")
        is_number = all(not part or (part.isascii() and part.isdigit()) for part in (low, high))
        if not is_number or not (low or high or comma) or (not comma and not low):
            return None
        if peek:
            return 0, None
        least, most = int(low or 0), (int(high) if high else None) if comma else int(low)
        self.place = end + 1
        if most is not None and most < least:
            self._refuse(f"repeats at least {least} and at most {most} times")
        if max(least, most or 0) > MOST_TIMES:
            self._refuse(f"repeats more than {MOST_TIMES:,} times")
        return least, most

    def _atom(self, at_start: bool) -> Expression:
        character = self._next("an item")
        if character == "(":
            return self._group(at_start)
        if character == "[":
            return self._class()
        if character == ".":
            return ANY
        if character in "*+?" or (character == "{" and self._is_repeat_at(self.place - 1)):
            self._refuse("repeats nothing")
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
            self._refuse(f"has groups more than {DEEPEST} deep")
        if self._peek("?"):
            self._group_kind()
        found = self._alternatives(at_start=at_start)
        if not self._take(")"):
            self._refuse("has a '(' that is not closed")
        self._depth -= 1
        return found

    def _group_kind(self) -> None:
        if self._take("?:"):
            return
        if self._take("?P<") or (self._peek("?<") and not self._peek("?<=") and not self._peek("?<!")):
            self._take("?<")
            while self._next("a group's name") != ">":
                pass
            return
        kind = next((words for sign, words in GROUPS.items() if self._peek(sign)), None)
        self._refuse(f"has {kind or 'flags, (?…)'}, which cannot be followed")

    def _class(self) -> Expression:
        is_negated = self._take("^")
        ranges: list[tuple[int, int]] = []
        is_first = True
        while is_first or not self._take("]"):
            is_first = False
            low = self._class_item()
            if self._peek("-") and self.pattern[self.place + 1 : self.place + 2] not in ("]", ""):
                self.place += 1
                high = self._class_item()
                if len(low) != 1 or len(high) != 1 or low[0][0] != low[0][1] or high[0][0] != high[0][1]:
                    self._refuse("has a range in [] whose ends are no single characters")
                if low[0][0] > high[0][0]:
                    self._refuse("has a range in [] that runs backwards")
                ranges.append((low[0][0], high[0][0]))
            else:
                ranges += low
        found = complement(ranges) if is_negated else normal(ranges)
        if not found:
            self._refuse("has a class [] without any character")
        return Characters(found)

    def _class_item(self) -> Ranges:
        character = self._next("a class []")
        if character == "\\":
            return self._escape(in_class=True)
        if character == "[" and self.pattern[self.place : self.place + 1] in (":", "."):
            self._refuse("has a POSIX class [:…:], which Python does not know")
        return ((ord(character), ord(character)),)

    def _escape(self, *, in_class: bool) -> Ranges:
        character = self._next("an escape")
        if character in CLASSES:
            return CLASSES[character]
        if character == "b" and in_class:
            return ((8, 8),)
        if character in CONTROL:
            return ((CONTROL[character],) * 2,)
        if character in HEX_DIGITS:
            return (self._code(HEX_DIGITS[character]),)
        if character == "0" and not self.pattern[self.place : self.place + 1].isdigit():
            return ((0, 0),)
        if character.isdigit():
            self._refuse(f"has a backreference, \\{character}, which cannot be followed")
        if character.isalpha():
            kind = ESCAPES.get(character, f"an escape \\{character}")
            self._refuse(f"has {kind}, which cannot be followed")
        return ((ord(character), ord(character)),)

    def _code(self, digits: int) -> tuple[int, int]:
        spelled = self.pattern[self.place : self.place + digits]
        try:
            code = int(spelled, 16) if len(spelled) == digits and spelled.isalnum() else -1
        except ValueError:
            code = -1
        if not 0 <= code <= LAST or 0xD800 <= code <= 0xDFFF:
            self._refuse("has an escape that is no character")
        self.place += digits
        return code, code
