r"""Grammars in GBNF, the form of llama.cpp: from its text to rules by name.

    root   ::= "The answer is " number "."
    number ::= "-"? digit+ ("." digit+)?        # a comment
    digit  ::= [0-9]

Texts in quotes, classes of characters in brackets, `.` for any character, groups, alternatives, and the
repeats `* + ? {2} {2,} {2,5}`. Rules may call each other and themselves; the output is what `root` derives. A
rule goes on until the next one begins, so its alternatives may stand on lines of their own.

A grammar in another form (Lark's `start: …`, EBNF's `=`) is refused with a sentence.

Source: `grammars/README.md` of llama.cpp. Read next: `rules.py`.
"""

from __future__ import annotations

import re
from typing import NoReturn

from minivllm.decoding.structured.characters import LAST, complement, normal
from minivllm.decoding.structured.cursor import Cursor
from minivllm.decoding.structured.expressions import (
    EMPTY,
    Call,
    Characters,
    Expression,
    Repeat,
    StructureError,
    choice,
    concat,
    text,
)

DEEPEST = 100
"""Groups within groups: each is a call of Python's."""
MOST_TIMES = 100_000
SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
BEGIN = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*)(?:[ \t\r\n]|#[^\n]*)*::=")
TIMES = re.compile(r"\{[ \t]*(\d{1,9})[ \t]*(,[ \t]*(\d{1,9})?)?[ \t]*\}")
OTHER_FORM = re.compile(r"^[ \t]*[?!]?[A-Za-z_][\w.-]*[ \t]*(?::(?!:)|=)", re.MULTILINE)
CONTROL = {"n": "\n", "r": "\r", "t": "\t"}
HEX_DIGITS = {"x": 2, "u": 4, "U": 8}


def parse_gbnf(grammar: str) -> dict[str, Expression]:
    """The rules of a grammar; `root` is among them.

    Raises:
        StructureError: it is none, and where it ceases to be one.
    """
    return _Parser(grammar).parse()


class _Parser(Cursor):
    ends = "it ends"

    def __init__(self, grammar: str) -> None:
        super().__init__(grammar)
        self._depth = 0

    def parse(self) -> dict[str, Expression]:
        rules: dict[str, Expression] = {}
        self._skip()
        while not self.is_at_end:
            begin = BEGIN.match(self.text, self.place)
            if begin is None:
                if not rules and OTHER_FORM.search(self.text):
                    raise StructureError(
                        "grammar must be GBNF, the form of llama.cpp (root ::= …); other forms, such as "
                        "Lark's (start: …), are not read"
                    )
                self.refuse("a rule, name ::= …, was expected")
            name = begin[1]
            if name in rules:
                self.refuse(f"the rule {name!r} comes twice")
            self.place = begin.end()
            rules[name] = self._alternatives()
        if "root" not in rules:
            raise StructureError(
                f"grammar must have a rule 'root', where it begins; it has {', '.join(rules) or 'no rule'}"
            )
        return rules

    def _skip(self) -> None:
        found = SPACE.match(self.text, self.place)
        assert found is not None, "it matches the empty text"
        self.place = found.end()

    def refuse(self, problem: str) -> NoReturn:
        line = self.text.count("\n", 0, self.place) + 1
        column = self.place - self.text.rfind("\n", 0, self.place)
        raise StructureError(f"grammar, line {line}, character {column}: {problem}")

    def _alternatives(self) -> Expression:
        options = [self._sequence()]
        while self.take("|"):
            options.append(self._sequence())
        return choice(options)

    def _sequence(self) -> Expression:
        parts: list[Expression] = []
        self._skip()
        while (
            not self.is_at_end
            and self.text[self.place] not in "|)"
            and not BEGIN.match(self.text, self.place)
        ):
            parts.append(self._repeated())
            self._skip()
        if self.peek(")") and not self._depth:
            self.refuse("a ')' closes nothing")
        return concat(*parts)

    def _repeated(self) -> Expression:
        part = self._item()
        while True:
            if self.take("*"):
                part = Repeat(part, 0, None)
            elif self.take("+"):
                part = Repeat(part, 1, None)
            elif self.take("?"):
                part = Repeat(part, 0, 1)
            elif times := TIMES.match(self.text, self.place):
                least = int(times[1])
                most = least if times[2] is None else None if times[3] is None else int(times[3])
                if max(least, most or 0) > MOST_TIMES or (most is not None and most < least):
                    self.refuse(f"{times[0]} must say at most {MOST_TIMES:,} times, the fewest first")
                self.place = times.end()
                part = Repeat(part, least, most)
            else:
                return part

    def _item(self) -> Expression:
        if name := NAME.match(self.text, self.place):
            self.place = name.end()
            return Call(name[0])
        character = self.next("a rule")
        if character == '"':
            return self._quoted()
        if character == "[":
            return self._class()
        if character == ".":
            return Characters(normal([(0, LAST)]))
        if character == "(":
            self._depth += 1
            if self._depth > DEEPEST:
                self.refuse(f"groups are more than {DEEPEST} deep")
            found = self._alternatives()
            if not self.take(")"):
                self.refuse("a '(' is not closed")
            self._depth -= 1
            return found
        self.place -= 1
        self.refuse(f"{character!r} is no item: quoted text, [class], (group), . or a rule's name")

    def _quoted(self) -> Expression:
        found: list[str] = []
        while (character := self.next("quotes")) != '"':
            found.append(self._escape() if character == "\\" else character)
        return text("".join(found)) if found else EMPTY

    def _class(self) -> Expression:
        is_negated = self.take("^")
        ranges: list[tuple[int, int]] = []
        while not self.take("]"):
            low = high = self._class_item()
            if self.take("-"):
                if self.take("]"):
                    ranges += [(ord(low),) * 2, (ord("-"),) * 2]
                    break
                high = self._class_item()
            if high < low:
                self.refuse("a range in [] runs backwards")
            ranges.append((ord(low), ord(high)))
        found = complement(ranges) if is_negated else normal(ranges)
        if not found:
            self.refuse("a class [] holds no character")
        return Characters(found)

    def _class_item(self) -> str:
        character = self.next("a class []")
        return self._escape() if character == "\\" else character

    def _escape(self) -> str:
        character = self.next("an escape")
        if character in HEX_DIGITS:
            digits = HEX_DIGITS[character]
            spelled = self.text[self.place : self.place + digits]
            if not re.fullmatch(f"[0-9A-Fa-f]{{{digits}}}", spelled):
                self.refuse(f"\\{character} needs {digits} hexadecimal digits")
            code = int(spelled, 16)
            if code > LAST or 0xD800 <= code <= 0xDFFF:
                self.refuse(f"\\{character}{spelled} is no character")
            self.place += digits
            return chr(code)
        if character in CONTROL:
            return CONTROL[character]
        if character.isalnum():
            self.refuse(f"\\{character} is no escape")
        return character
