"""Structural tags: text in which some parts must have a structure, such as calls of tools between tags.

    {"format": {"type": "triggered_tags", "triggers": ["<call"], "tags": [
        {"begin": "<call=add>", "content": {"type": "json_schema", "json_schema": {…}}, "end": "</call>"}]}}

    I add them. <call=add>{"a": 1, "b": 2}</call> That makes three.
    └ free ───┘└ begin ──┘└ by its schema ┘└ end ┘└ free again ───┘

A format is a tree. Its leaves are texts, schemas, patterns and grammars; any text at all is one, too. That
and text with triggered tags in it would never end by themselves: what ends them is the `end` of the tag
around them, or the end of the output; so in a sequence they come last.

An older form, `{"structures": [{"begin", "schema", "end"}], "triggers"}`, is read as triggered tags.

Source: the structural tags of XGrammar, which vLLM takes over. Read next: `tag_formats.py`, `free_text.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minivllm.decoding.structured.expressions import (
    EMPTY,
    Call,
    Expression,
    Repeat,
    StructureError,
    choice,
    concat,
    text,
)
from minivllm.decoding.structured.free_text import free_text_rules, until
from minivllm.decoding.structured.gbnf import parse_gbnf
from minivllm.decoding.structured.json_schema import schema_rules
from minivllm.decoding.structured.json_values import Layout, any_value_rules
from minivllm.decoding.structured.regex import parse_regex
from minivllm.decoding.structured.scopes import renamed
from minivllm.decoding.structured.tag_formats import (
    Format,
    check_fields,
    flag_of,
    format_of,
    of_older_form,
    refuse,
    text_of,
    texts_of,
)

MOST_STOP_CHARACTERS = 10_000
"""Of triggers, ends and excluded strings: each is a state of an automaton."""
MOST_TIMES = 100_000


def structural_tag_rules(tag: str) -> dict[str, Expression]:
    """The rules of a structural tag, as its JSON; they begin with `root`.

    Raises:
        StructureError: it is of no known form, and where.
    """
    return _Compiler().compile(json.loads(tag))


class _Compiler:
    def __init__(self) -> None:
        self._values = any_value_rules(Layout())
        self.rules = dict(self._values)
        self._num_stop_characters = 0

    def compile(self, tag: Format) -> dict[str, Expression]:
        if "format" in tag:
            check_fields(tag, ("type", "format"), "#")
            root = self._until(format_of(tag["format"], "#/format"), "#/format", ())
        else:
            check_fields(tag, ("type", "structures", "triggers"), "#")
            root = self._until(of_older_form(tag), "#", ())
        return self.rules | {"root": root}

    def _until(self, item: Format, path: str, ends: Sequence[str]) -> Expression:
        """A format, and after it one of the `ends`; the end of the text, if there are none."""
        match item["type"]:
            case "any_text":
                return self._free(path, item, dict.fromkeys(ends, EMPTY), may_end=not ends)
            case "triggered_tags":
                return self._triggered(item, path, ends)
            case "sequence":
                *elements, last = self._elements(item, path)
                return concat(*(self._whole(*element) for element in elements), self._until(*last, ends))
            case "or":
                return choice(self._until(*element, ends) for element in self._elements(item, path))
        return concat(self._whole(item, path), until(ends))

    def _whole(self, item: Format, path: str) -> Expression:
        """A format that ends by itself."""
        match kind := item["type"]:
            case "const_string":
                return text(text_of(item, "value", path))
            case "json_schema":
                schema = item.get("json_schema")
                if not isinstance(schema, Mapping | bool):
                    raise refuse(path, f"json_schema must be a JSON schema, got {schema!r:.60}")
                return self._include(lambda: schema_rules(schema), path, self._values)
            case "regex":
                pattern = text_of(item, "pattern", path)
                return self._include(lambda: {"root": parse_regex(pattern, name="pattern")}, path)
            case "grammar":
                grammar = text_of(item, "grammar", path)
                return self._include(lambda: parse_gbnf(grammar), path)
            case "sequence":
                return concat(*(self._whole(*element) for element in self._elements(item, path)))
            case "or":
                return choice(self._whole(*element) for element in self._elements(item, path))
            case "optional" | "plus" | "star" | "repeat":
                return self._repeated(item, path)
            case "tag":
                return self._tag(item, path)
            case "tags_with_separator":
                return self._separated(item, path)
        raise refuse(path, f"{kind} does not end by itself: let it come last, or in a tag with an end")

    def _repeated(self, item: Format, path: str) -> Expression:
        place = f"{path}/content"
        content = self._add(path, self._whole(format_of(item.get("content"), place), place))
        if item["type"] != "repeat":
            return Repeat(content, int(item["type"] == "plus"), 1 if item["type"] == "optional" else None)
        least: Any = item.get("min")
        most: Any = item.get("max")
        for value in (least, most):
            if type(value) is not int or not -1 <= value <= MOST_TIMES:
                raise refuse(
                    path, f"min and max must be whole numbers up to {MOST_TIMES:,}, got {value!r:.60}"
                )
        if least < 0 or -1 < most < least:
            raise refuse(path, f"min {least} must be at least 0, and max {most} not below it (or −1)")
        return Repeat(content, least, None if most == -1 else most)

    def _tag(self, item: Format, path: str) -> Expression:
        """Its beginning, what it holds, and its end."""
        return concat(text(text_of(item, "begin", path)), self._add(path, self._inside(item, path)))

    def _inside(self, item: Format, path: str) -> Expression:
        ends = [item["end"]] if isinstance(item.get("end"), str) else item.get("end")
        if not isinstance(ends, list) or not ends or not all(isinstance(end, str) for end in ends):
            raise refuse(path, f"end must be a text, or a list of texts, got {ends!r:.60}")
        place = f"{path}/{'schema' if path.startswith('#/structures/') else 'content'}"  # as it was written
        return self._until(format_of(item.get("content"), place), place, ends)

    def _separated(self, item: Format, path: str) -> Expression:
        tags = [self._add(place, self._tag(tag, place)) for place, tag in self._tags(item, path)]
        one = choice(tags)
        more = concat(text(text_of(item, "separator", path)), one)
        several = one if flag_of(item, "stop_after_first", path) else concat(one, Repeat(more, 0, None))
        return several if flag_of(item, "at_least_one", path) else Repeat(several, 0, 1)

    def _triggered(self, item: Format, path: str, ends: Sequence[str]) -> Expression:
        """Free text with tags in it. Which tag it is, is open until its trigger stands there."""
        triggers = texts_of(item, "triggers", path)
        if not triggers:
            raise refuse(path, "triggers must have at least one text")
        name = self._new_name(f"{path} text")
        after = until(ends) if flag_of(item, "stop_after_first", path) else Call(name)
        tags: dict[str, list[Expression]] = {trigger: [] for trigger in triggers}
        whole: list[Expression] = []
        for place, tag in self._tags(item, path):
            begin, inside = text_of(tag, "begin", place), self._add(place, self._inside(tag, place))
            found = [trigger for trigger in triggers if begin.startswith(trigger)]
            if len(found) != 1:
                raise refuse(place, f"begin {begin!r:.60} must begin with exactly one of the triggers")
            tags[found[0]].append(concat(text(begin[len(found[0]) :]), inside, after))
            whole.append(concat(text(begin), inside, after))
        stops = {trigger: choice(options) for trigger, options in tags.items()} | dict.fromkeys(ends, EMPTY)
        if len(stops) < len(triggers) + len(ends):
            raise refuse(path, "an end of the tag around it is one of the triggers")
        self._free(path, item, stops, may_end=not ends, name=name)
        return choice(whole) if flag_of(item, "at_least_one", path) else Call(name)

    def _free(
        self, path: str, item: Format, stops: Mapping[str, Expression], *, may_end: bool, name: str = ""
    ) -> Expression:
        """Any text, until one of the stops stands there."""
        never = [one for one in texts_of(item, "excludes", path) if one not in stops]
        strings = [*stops, *never]
        if "" in strings:
            raise refuse(path, "what ends a free text, or may not be in it, must not be empty")
        for one in strings:
            if other := next((other for other in strings if one in other and one != other), ""):
                raise refuse(path, f"{one!r:.60} is a part of {other!r:.60}, which could never be read")
        self._num_stop_characters += sum(map(len, strings))
        if self._num_stop_characters > MOST_STOP_CHARACTERS:
            raise refuse(
                path, f"triggers, ends and excludes have more than {MOST_STOP_CHARACTERS:,} characters"
            )
        name = name or self._new_name(f"{path} text")
        self.rules |= free_text_rules(name, stops, never=never, may_end=may_end)
        return Call(name)

    def _elements(self, item: Format, path: str) -> list[tuple[Format, str]]:
        elements = item.get("elements")
        if not isinstance(elements, list) or not elements:
            raise refuse(path, f"elements must be a list with at least one format, got {elements!r:.60}")
        places = [f"{path}/elements/{index}" for index in range(len(elements))]
        return [(format_of(element, place), place) for element, place in zip(elements, places, strict=True)]

    def _tags(self, item: Format, path: str) -> list[tuple[str, Format]]:
        tags = item.get("tags")
        if not isinstance(tags, list) or not tags:
            raise refuse(path, f"tags must be a list with at least one tag, got {tags!r:.60}")
        named = [{"type": "tag", **tag} if isinstance(tag, Mapping) else tag for tag in tags]
        field = "structures" if path == "#" else "tags"  # as the client has written it
        places = [f"{path}/{field}/{index}" for index in range(len(tags))]
        found = [(place, format_of(tag, place)) for place, tag in zip(places, named, strict=True)]
        for place, tag in found:
            if tag["type"] != "tag":
                raise refuse(place, f"it must be a tag, got {tag['type']!r:.60}")
        return found

    def _include(
        self, make: Callable[[], Mapping[str, Expression]], path: str, shared: Mapping[str, Expression] = {}
    ) -> Expression:
        """A grammar of its own within this one: its rules get other names, but for those that both have."""
        try:
            rules = make()
        except StructureError as error:
            raise refuse(path, str(error)) from None
        names = {name: self._new_name(f"{path}: {name}") for name in rules if name not in shared}

        def rename(rule: str) -> str:
            return rule if rule in shared else names.get(rule, f"{path}: {rule}")  # which is not there

        self.rules |= {names[name]: renamed(rules[name], rename) for name in names}
        return Call(names["root"])

    def _add(self, path: str, expression: Expression) -> Call:
        name = self._new_name(path)
        self.rules[name] = expression
        return Call(name)

    def _new_name(self, path: str) -> str:
        name = f"{path} ({len(self.rules)})"
        self.rules[name] = EMPTY  # the name is taken
        return name
