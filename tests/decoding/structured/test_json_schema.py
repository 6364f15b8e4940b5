"""Schemas: every output is JSON that a validator of JSON Schema accepts; what is not followed is named."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.decoding.structured.expressions import StructureError
from minivllm.decoding.structured.integers import integer
from minivllm.decoding.structured.json_keywords import KNOWN
from minivllm.decoding.structured.pushdown import Pushdown
from minivllm.decoding.structured.rules import make_rules
from minivllm.structured_outputs import StructuredOutputsParams
from tests.decoding.structured.walks import accepts, complete, pushdown_of, structure, walk

jsonschema = pytest.importorskip("jsonschema")

NAMES = ["a", "b", "ab", "né", 'q"']
scalars = st.one_of(
    st.sampled_from(
        [{"type": "boolean"}, {"type": "null"}, {"type": "number"}, True, {}, {"type": "object"}]
    ),
    st.builds(
        lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
        st.integers(-300, 300),
        st.integers(0, 2000),
    ),
    st.builds(
        lambda low, more, open_low: {
            "type": "number",
            ("exclusiveMinimum" if open_low else "minimum"): low,
            "exclusiveMaximum": low + more,
        },
        st.integers(-30, 30),
        st.integers(1, 40),
        st.booleans(),
    ),
    st.builds(
        lambda least, more: {"type": "string", "minLength": least, "maxLength": least + more},
        st.integers(0, 3),
        st.integers(0, 3),
    ),
    st.sampled_from(["^[a-z]+$", "b", r'^"\\\n$', r"^\d{2}|x$"]).map(
        lambda pattern: {"type": "string", "pattern": pattern}
    ),
    st.lists(st.sampled_from([1, "a", None, True, 2.5, {"a": [1]}, 'q"\n']), min_size=1).map(
        lambda values: {"enum": values}
    ),
    st.sampled_from(["x", 3, {"k": None}]).map(lambda value: {"const": value}),
    st.sampled_from(["date", "uuid", "ipv4"]).map(lambda name: {"type": "string", "format": name}),
)


@st.composite
def objects(draw, inner):
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=4))
    schema = {"type": "object", "properties": {name: draw(inner) for name in names}}
    schema["required"] = draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    if draw(st.booleans()):
        schema["additionalProperties"] = draw(st.one_of(st.booleans(), inner))
    return schema


@st.composite
def arrays(draw, inner):
    schema = {"type": "array", "minItems": draw(st.integers(0, 2))}
    if draw(st.booleans()):
        schema["items"] = draw(inner)
    if draw(st.booleans()):
        schema["prefixItems"] = draw(st.lists(inner, min_size=1, max_size=2))
    if draw(st.booleans()):
        schema["maxItems"] = schema["minItems"] + draw(st.integers(0, 2))
    return schema


schemas = st.recursive(
    scalars,
    lambda inner: st.one_of(
        objects(inner),
        arrays(inner),
        st.lists(inner, min_size=1, max_size=3).map(lambda branches: {"anyOf": branches}),
    ),
    max_leaves=6,
)


def check(schema, data):
    jsonschema.Draft202012Validator(schema).validate(json.loads(data))


@given(schemas, st.integers(0, 100))
def test_every_output_is_valid_and_every_cut_one_can_be_completed(schema, seed):
    try:
        made = structure(json=schema)
    except StructureError as error:
        assert "no text of any length" in str(error), error
        return
    data, is_whole = walk(made, seed)
    if is_whole:
        check(schema, data)
    for end in {0, len(data) // 2, len(data)}:
        check(schema, complete(made, data[:end]))


@given(st.integers(-1200, 1200), st.integers(-1200, 1200))
def test_integers_between_bounds_are_exactly_those(low, high):
    found = integer(low, high)
    if low > high:
        with pytest.raises(StructureError, match="no text"):
            make_rules({"root": found}, "root")
        return
    pushdown = Pushdown(make_rules({"root": found}, "root"))
    for number in {*range(low - 3, low + 4), *range(high - 3, high + 4), 0, 1, -1, 99, 100, 1000}:
        assert accepts(pushdown, str(number).encode()) == (low <= number <= high), number
    assert not accepts(pushdown, b"-0") and not accepts(pushdown, b"007")


@pytest.mark.parametrize(
    ("schema", "yes", "no"),
    [
        (
            {"type": "object", "properties": {"a": {}, "b": {}}},
            ['{"b": 1}', "{}", '{"a": 1, "b": 2}'],
            ['{"b": 1, "a": 2}', '{"a": 1,"b": 2}', '{"c": 1}', "{ }", '{"a": 1, }'],
        ),
        (
            {"type": "object", "properties": {"a": {}}, "additionalProperties": {"type": "null"}},
            ['{"a": 1, "b": null}', '{"b": null}', '{"aa": null, "": null}'],
            ['{"a": 1, "a": null}', '{"b": 1}'],
        ),
        ({"type": "object"}, ['{"x": [1, {}]}', "{}"], ["[]"]),
        ({"required": ["z"]}, ['{"z": 1}', '{"z": 1, "y": 2}'], ["{}"]),
        (
            {"type": "array", "prefixItems": [{"const": 1}, {"const": 2}]},
            ["[]", "[1]", "[1, 2]"],
            ["[2]", "[1, 2, 3]"],
        ),
        (
            {
                "type": "array",
                "prefixItems": [{"const": 1}],
                "items": {"const": 0},
                "minItems": 2,
                "maxItems": 3,
            },
            ["[1, 0]", "[1, 0, 0]"],
            ["[1]", "[1, 0, 0, 0]"],
        ),
        ({"type": ["string", "null"]}, ['"x"', "null"], ["1"]),
        ({"type": "string", "nullable": True}, ["null"], ["1"]),
        ({"enum": ["a", 1, None], "type": ["string", "null"]}, ['"a"', "null"], ["1"]),
        ({"type": "integer"}, ["0", "-7", "9" * 16], ["1.0", "01", "-0", "9" * 17]),
        ({"type": "number"}, ["-0.5", "1e9", "3", "-0"], [".5", "1.", "1e999"]),
        ({"type": "integer", "exclusiveMinimum": 0.5, "maximum": 3.5}, ["1", "3"], ["0", "4"]),
        ({"type": "string"}, ['"\\u00e9\\n"', '"é\\ud83d\\ude00"'], ['"\\ud83d"', '"\n"', "'a'"]),
        ({"type": "string", "maxLength": 2}, ['"\\u0041b"', '"\\ud83d\\ude00b"'], ['"abc"']),
        ({"pattern": "^a.c$"}, ['"abc"', '"a\\"c"'], ['"a\\nc"', '"xabc"']),
        (
            {"$ref": "#/$defs/t", "$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}},
            ["[[], [[]]]"],
            ["[1]"],
        ),
        (
            {
                "type": "object",
                "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
                "required": ["next"],
            },
            ['{"next": {"next": null}}'],
            ['{"next": {}}'],
        ),
        ({"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]}, ["3", "5"], ["2", "6"]),
        (
            {
                "allOf": [
                    {"properties": {"a": {"type": "integer"}}, "required": ["a"]},
                    {"properties": {"a": {"minimum": 5}}},
                ]
            },
            ['{"a": 5}'],
            ['{"a": 4}', "{}"],
        ),
        (
            {
                "type": "object",
                "properties": {"k": {}},
                "anyOf": [{"required": ["k"]}, {"properties": {"m": {}}, "required": ["m"]}],
            },
            ['{"k": 1}', '{"m": 1}'],
            ["{}"],
        ),
        ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, ['"a"', "1"], ["null"]),
        (
            {
                "oneOf": [
                    {"type": "object", "properties": {"t": {"const": "a"}}, "required": ["t"]},
                    {"type": "object", "properties": {"t": {"const": "b"}, "v": {}}, "required": ["t"]},
                ]
            },
            ['{"t": "b", "v": 1}', '{"t": "a"}'],
            ['{"t": "c"}'],
        ),
        ({"$ref": "#/definitions/a~1b", "definitions": {"a/b": {"const": 1}}, "title": "t"}, ["1"], ["2"]),
        ({"anyOf": [False, {"const": 1}]}, ["1"], ["2"]),
        ({"type": "object", "properties": {"gone": False, "a": {}}}, ['{"a": 1}'], ['{"gone": 1}']),
        ({"minLength": 1, "x-order": 3, "description": "d", "default": 1, "examples": []}, ['"a"'], ['""']),
        ({"type": "number", "minimum": 0, "maximum": 1}, ["0", "1", "0.25", "1.0"], ["-1", "1.5", "2"]),
    ],
)
def test_what_a_schema_allows(schema, yes, no):
    pushdown = pushdown_of(json=json.dumps(schema))
    for text in yes:
        assert accepts(pushdown, text.encode()), text
    for text in no:
        assert not accepts(pushdown, text.encode()), text


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"not": {}}, "at #: the keyword 'not' is not supported"),
        ({"properties": {"a": {"multipleOf": 3}}}, "at #/properties/a: the keyword 'multipleOf'"),
        ({"typ": "string"}, "the keyword 'typ'"),
        ({"type": "strin"}, "type must be one of"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems'"),
        ({"type": "array", "items": [{}]}, "prefixItems"),
        ({"type": "object", "patternProperties": {}}, "'patternProperties'"),
        ({"type": "object", "minProperties": 1}, "'minProperties'"),
        ({"type": "object", "properties": {"a": {}}, "maxProperties": 0}, "'maxProperties'"),
        ({"type": "string", "format": "color"}, "format must be one of date"),
        ({"type": "string", "pattern": "a", "minLength": 2}, "together are not supported"),
        ({"type": "string", "pattern": "(?=a)"}, "at #: pattern has a lookahead"),
        ({"type": "number", "minimum": 0.5}, "must be whole"),
        ({"enum": [1, 2], "minimum": 2}, "minimum beside enum"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "might fit both branch 0 and branch 1"),
        ({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, "might fit both"),
        ({"$ref": "#/nowhere"}, "which is not there"),
        ({"$ref": "http://example.com/s"}, "a place in this schema"),
        ({"$ref": "#"}, "left-recursive"),
        ({"allOf": [{"$ref": "#"}, {}], "type": "string"}, "without end"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "no text of any length"),
        ({"enum": []}, "no text of any length"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "no text"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "no text"),
        ({"allOf": [{"pattern": "a"}, {"pattern": "b"}]}, "pattern stands in two schemas"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "no text"),
        ({"type": "string", "maxLength": -1}, "maxLength must be an integer that is not negative"),
        ({"type": "string", "minLength": 10**6}, "too large"),
        ({"properties": {"a": 3}}, "#/properties/a: a schema must be an object"),
        ({"anyOf": []}, "anyOf must be a list that is not empty"),
        ({"required": "a"}, "required must be a list of names"),
        ({"allOf": [{"required": 5}, {"required": ["a"]}]}, "at #/allOf/0: required must be a list of names"),
        ({"oneOf": [{"required": [[1]]}, {"required": [[1]]}]}, "required must be a list of names"),
        ({"allOf": [{"minLength": "a"}, {"minLength": 1}]}, "at #/allOf/0: minLength must be an integer"),
        ({"allOf": [{"minimum": None}, {"minimum": 1}]}, "at #/allOf/0: minimum must be a number"),
        ({"allOf": [{"enum": 5}, {"enum": [5]}]}, "at #/allOf/0: enum must be a list"),
        ({"allOf": [{"properties": [1]}, {"properties": {}}]}, "properties must be an object"),
        (
            {
                "oneOf": [
                    {"properties": {"a": 5}, "required": ["a"]},
                    {"properties": {"a": 6}, "required": ["a"]},
                ]
            },
            "a schema must be an object",
        ),
        ({"oneOf": [{"type": []}, {"type": ["string"]}, {"type": []}], "maxLength": -1}, "maxLength must be"),
        ({"type": "string", "format": ["date"]}, "format must be a name"),
        (False, "no text"),
    ],
)
def test_what_is_not_followed_is_refused_by_its_name_and_place(schema, problem):
    with pytest.raises(StructureError, match=problem):
        structure(json=schema)


ODD = st.sampled_from([None, True, -1, 2.5, "a", [], ["a"], [[1]], {}, {"a": 5}, [{"type": []}], 10**30])
KEYWORDS = sorted(KNOWN - {"discriminator"})


@given(st.lists(st.dictionaries(st.sampled_from(KEYWORDS), ODD, max_size=3), min_size=1, max_size=3),
       st.sampled_from(["allOf", "anyOf", "oneOf", "prefixItems"]))  # fmt: skip
def test_keywords_of_any_form_are_followed_or_refused_by_their_place(schemas, keyword):
    with suppress(StructureError):
        structure(json={keyword: schemas})


def test_white_space_is_what_was_asked_for():
    schema = {"type": "object", "properties": {"a": {"type": "array"}}}
    made = structure(json=schema, whitespace_pattern="[ \n]?")
    assert accepts(made.pushdown, b'{ "a" :[ 1 ,2]\n}') and accepts(made.pushdown, b'{"a":[]}')
    with pytest.raises(StructureError, match="nothing but blanks"):
        structure(json=schema, whitespace_pattern="x")


def test_a_schema_nested_too_deep_is_refused():
    schema = {}
    for _ in range(400):
        schema = {"type": "array", "items": schema}
    made = structure(json=schema)  # nesting within the schema is a rule each
    assert accepts(made.pushdown, b"[[[]]]")
    with pytest.raises(ValueError, match=r"JSON cannot express it|nested too deep"):
        for _ in range(100_000):
            schema = {"items": schema}
        StructuredOutputsParams(json=schema)


def test_twenty_optional_properties_take_rules_and_not_subsets():
    names = [f"p{index}" for index in range(100)]
    pushdown = pushdown_of(json={"type": "object", "properties": {name: {"type": "null"} for name in names}})
    some = ", ".join(f'"{name}": null' for name in names[::3])
    assert accepts(pushdown, f"{{{some}}}".encode())
