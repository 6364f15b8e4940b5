"""Structural tags allow what a regular expression made of the same format matches, and nothing else."""

import json
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minivllm.decoding.structured.expressions import StructureError
from minivllm.decoding.structured.progress import Progress
from tests.decoding.structured.walks import compiler, structure, walk

PIECES = ["<a>", "<b>", "<", "a", "b", ">", "</a>", "</b>", "1", "true", ",", "</", "é"]
LEAVES = st.sampled_from(
    [
        {"type": "const_string", "value": "b>"},
        {"type": "regex", "pattern": "[ab]{1,2}|c"},
        {"type": "json_schema", "json_schema": {"enum": [1, True]}},
        {"type": "grammar", "grammar": 'root ::= "a" root | value\nvalue ::= "b"'},
    ]
)
ANY_TEXT = st.sampled_from([{"type": "any_text"}, {"type": "any_text", "excludes": ["b"]}])
FLAGS = st.fixed_dictionaries({"at_least_one": st.booleans(), "stop_after_first": st.booleans()})
ENDS = st.sampled_from(["</a>", "</b>", ["</a>", "b,"], ","])


def tags(content):
    begins = st.sampled_from(["<a>", "<b>", "<ab>", "<b"])
    return st.fixed_dictionaries(
        {"type": st.just("tag"), "begin": begins, "content": content, "end": ENDS}
    )  # fmt: skip


def several(content):
    return st.lists(tags(content), min_size=1, max_size=2)


def larger(inner):
    endless = inner | ANY_TEXT
    triggered = st.builds(
        lambda tags, triggers, flags: {"type": "triggered_tags", "tags": tags, "triggers": triggers, **flags},
        several(endless), st.sampled_from([["<"], ["<a", "<b"], ["<"]]), FLAGS,
    )  # fmt: skip
    separated = st.builds(
        lambda tags, flags: {"type": "tags_with_separator", "tags": tags, "separator": ",", **flags},
        several(endless), FLAGS,
    )  # fmt: skip
    listed = st.builds(
        lambda kind, elements: {"type": kind, "elements": elements},
        st.sampled_from(["sequence", "or"]), st.lists(inner, min_size=1, max_size=2),
    )  # fmt: skip
    twice = {"min": 1, "max": 2}
    repeated = st.builds(
        lambda kind, content: {"type": kind, "content": content} | (twice if kind == "repeat" else {}),
        st.sampled_from(["optional", "plus", "star", "repeat"]), inner,
    )  # fmt: skip
    return tags(endless) | triggered | separated | listed | repeated


FORMATS = st.recursive(LEAVES, larger, max_leaves=4)


def pattern(item, ends=()):
    """A regular expression of Python's for a format, with one of the ends behind it."""
    end = f"(?:{'|'.join(map(re.escape, ends))})" if ends else ""
    match item["type"]:
        case "const_string":
            return re.escape(item["value"]) + end
        case "regex":
            return f"(?:{item['pattern']}){end}"
        case "json_schema":
            return f"(?:1|true){end}"
        case "grammar":
            return f"a*b{end}"
        case "any_text":
            return free([*ends, *item.get("excludes", ())]) + end
        case "sequence":
            *first, last = item["elements"]
            return "".join(map(pattern, first)) + pattern(last, ends)
        case "or":
            return f"(?:{'|'.join(pattern(element, ends) for element in item['elements'])})"
        case "optional" | "plus" | "star" | "repeat" as kind:
            times = {"optional": "?", "plus": "+", "star": "*", "repeat": "{1,2}"}[kind]
            return f"(?:{pattern(item['content'])}){times}{end}"
        case "tag":
            own = [item["end"]] if isinstance(item["end"], str) else item["end"]
            return re.escape(item["begin"]) + pattern(item["content"], own) + end
        case "tags_with_separator":
            one = f"(?:{'|'.join(map(pattern, item['tags']))})"
            more = one if item["stop_after_first"] else f"{one}(?:,{one})*"
            return (more if item["at_least_one"] else f"(?:{more})?") + end
    one, text = f"(?:{'|'.join(map(pattern, item['tags']))})", free([*item["triggers"], *ends])
    if item["stop_after_first"]:
        return one + end if item["at_least_one"] else f"(?:{text}{one}{end}|{text}{end})"
    return (one if item["at_least_one"] else "") + f"(?:{text}{one})*{text}{end}"


def free(stops):
    return f"(?:(?!{'|'.join(map(re.escape, stops))})[\\s\\S])*" if stops else r"[\s\S]*"


def made(item, using=None):
    """The structure of a format; formats that are refused for what they are made of are another test's."""
    try:
        return structure(using, structural_tag={"type": "structural_tag", "format": item})
    except StructureError as error:
        assert "structural_tag, at #" in str(error) or "allows no text but the empty one" in str(error)
        assume(False)


@given(FORMATS, st.integers(0, 1000))
def test_what_is_written_matches(item, seed):
    data, is_complete = walk(made(item), seed, hurry=10)
    if is_complete:
        assert re.fullmatch(pattern(item), data.decode(errors="replace"))


@given(FORMATS, st.lists(st.lists(st.sampled_from(PIECES), max_size=7).map("".join), min_size=1, max_size=20))
def test_what_matches_can_be_written(item, texts):
    pushdown = made(item).pushdown
    for text in texts:
        reached = pushdown.read(pushdown.start, text.encode())
        assert bool(reached and reached.has_empty) == bool(re.fullmatch(pattern(item), text)), text


@given(FORMATS, st.integers(0, 1000))
@settings(max_examples=20)
def test_masks_are_what_the_automaton_says(item, seed):
    structure = made(item)
    progress, known = Progress(structure), structure.masks.vocabulary.token_bytes
    data, _ = walk(structure, seed, most=6)
    for token in data:
        state, mask = progress._state, progress.mask()
        for other, spelled in enumerate(known):
            if spelled:
                assert mask.struck_out[other] == (structure.pushdown.read(state, spelled) is None)
        progress.append(known.index(bytes([token])))


def test_tools_are_called_within_text():
    add = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    older = {
        "type": "structural_tag",
        "structures": [{"begin": "<f=add>", "schema": add, "end": "</f>"}],
        "triggers": ["<f="],
    }
    newer = {
        "type": "triggered_tags",
        "triggers": ["<f="],
        "tags": [{"begin": "<f=add>", "content": {"type": "json_schema", "json_schema": add}, "end": "</f>"}],
    }
    for tag in (older, json.dumps(older), {"format": newer}):
        pushdown = structure(structural_tag=tag).pushdown

        def reads(text, pushdown=pushdown):
            reached = pushdown.read(pushdown.start, text.encode())
            return reached is not None, bool(reached and reached.has_empty)

        assert reads('I add <f <f=add>{"a": 1}</f> and 一 more') == (True, True)
        assert reads('<f=add>{"a": 1}') == (True, False)
        assert reads("<f=sub>")[0] is reads('<f=add>{"b"')[0] is reads("x <f=add>no")[0] is False


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"schema": {"not": {}}}, "at #/structures/0/schema: json, at #: the keyword 'not'"),
        ({"schema": 3}, "at #/structures/0: schema must be a JSON schema, got 3"),
        ({"schema": "{"}, "at #/structures/0: schema is no JSON"),
        ({"end": []}, "at #/structures/0: end must be a text"),
        ({"begin": 1}, "at #/structures/0: begin must be a text"),
        ({"content": {}}, "at #/structures/0: it has no field 'content'; it has begin, schema, end"),
    ],
)
def test_what_is_wrong_with_the_older_form_is_told_by_the_clients_own_fields(change, problem):
    one = {"begin": "<f=add>", "schema": {"type": "integer"}, "end": "</f>"} | change
    with pytest.raises(StructureError, match=re.escape(problem)) as told:
        structure(structural_tag={"structures": [one], "triggers": ["<f="]})
    assert "/content" not in str(told.value)


def test_thought_comes_first_and_ends():
    think = {"type": "tag", "begin": "<think>", "content": {"type": "any_text"}, "end": "</think>"}
    answer = {"type": "or", "elements": [{"type": "const_string", "value": word} for word in ("yes", "no")]}
    pushdown = structure(
        structural_tag={"format": {"type": "sequence", "elements": [think, answer]}}
    ).pushdown
    reached = pushdown.read(pushdown.start, b"<think>a </thi <b> \xc3\xa9</think>yes")
    assert reached.is_exhausted and reached.has_empty
    assert pushdown.read(pushdown.start, b"<think></think>maybe") is None


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ({"type": "dispatch"}, "at #/format: type must be one of const_string"),
        ("x", "at #/format: a format must be an object"),
        ({"type": "any_text", "max_tokens": 3}, "any_text has no field 'max_tokens'"),
        ({"type": "json_schema", "json_schema": {}, "style": "qwen_xml"}, "no field 'style'"),
        ({"type": "json_schema", "json_schema": {"not": {}}}, "#/format: json, at #: the keyword 'not'"),
        ({"type": "grammar", "grammar": "root ::= nowhere"}, "calls a rule '#/format: nowhere"),
        ({"type": "regex", "pattern": "("}, "at #/format: "),
        ({"type": "const_string", "value": 1}, "value must be a text"),
        ({"type": "or", "elements": []}, "at least one format"),
        ({"type": "repeat", "content": {"type": "const_string", "value": "a"}, "min": 2, "max": 1}, "max 1"),
        (
            {"type": "sequence", "elements": [{"type": "any_text"}, {"type": "any_text"}]},
            "at #/format/elements/0: any_text does not end by itself",
        ),
        ({"type": "tag", "begin": "a", "content": {"type": "any_text"}, "end": ""}, "must not be empty"),
        ({"type": "tag", "begin": "a", "content": {"type": "any_text"}}, "end must be a text"),
        (
            {
                "type": "triggered_tags",
                "triggers": ["<", "x"],
                "tags": [{"begin": "y", "content": {"type": "any_text"}, "end": "e"}],
            },
            "begin 'y' must begin with exactly one",
        ),
        (
            {
                "type": "triggered_tags",
                "triggers": ["b", "<b"],
                "tags": [{"begin": "b", "content": {"type": "any_text"}, "end": "e"}],
            },
            "'b' is a part of '<b'",
        ),
        ({"type": "any_text", "excludes": ["x" * 10_001]}, "more than 10,000 characters"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_its_place(item, problem):
    with pytest.raises(StructureError, match=re.escape(problem)):
        structure(structural_tag={"format": item})


def test_unknown_fields_at_the_top_are_refused():
    with pytest.raises(StructureError, match="no field 'tags'"):
        structure(compiler(), structural_tag={"format": {"type": "any_text"}, "tags": []})
