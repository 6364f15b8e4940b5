"""Options of the form NAME=VALUE: every odd value is refused by its name, itself and what is allowed."""

import math
import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minivllm.lab.bench.field.settings import parse_pythons
from minivllm.lab.microscope import own_kernel
from minivllm.lab.microscope.pairs import parse_pairs
from minivllm.lab.microscope.subjects import MAX_SIZE, SUBJECTS, make_subject

KEYS = [(name, key) for name, (_, usual) in SUBJECTS.items() for key in usual]
ODD = [
    "-5",
    "-1",
    "4097",
    "9" * 30,
    "1" * 5000,
    "1.5",
    "1e3",
    "0x10",
    "1_0",
    "²",
    "٣",
    "nan",
    "x",
    "None",
    "--",
]
odd = st.sampled_from(ODD) | st.text(st.characters(exclude_characters=",="), min_size=1).filter(
    lambda text: text.strip() and not re.fullmatch(r"\s*[+-]?[0-9]+\s*", text)
)


def refused(make):
    with pytest.raises(ValueError) as caught:
        make()
    words = str(caught.value)
    assert len(words) < 400 and "\n" not in words.replace("\\n", "")
    return words


@given(st.sampled_from(KEYS), odd)
@example(("paged-attention", "context"), "-5")
@example(("kv-write", "tokens"), "0")
@example(("kv-write", "tokens"), "\"'")
def test_an_odd_size_is_refused_by_name_value_and_range(which, value):
    kernel, key = which
    words = refused(lambda: make_subject(kernel, parse_pairs("shape", f"{key}={value}"), 0))
    most = 1 if key == "causal" else MAX_SIZE
    assert words.startswith(
        f"{key} must be an integer of at least {int(key != 'causal')} and at most {most}, got "
    )
    value = value.strip()
    said = {value[:20], repr(value)[1:-1][:20], ascii(value)[1:-1][:20]}
    assert any(form in words for form in said)


@given(odd)
def test_an_odd_name_is_refused_with_those_that_there_are(name):
    for text in (f"{name}=3", name, f"={name}", f"{name}="):
        words = refused(lambda text=text: make_subject("kv-write", parse_pairs("shape", text), 0))
        assert "shape must be NAME=VALUE" in words or "shape of kv-write must be one of 'tokens', " in words


def test_what_is_too_large_as_a_whole_is_refused_before_it_is_made():
    words = refused(
        lambda: make_subject("naive-attention", {"tokens": 4096, "heads": 4096, "head_dim": 4096}, 0)
    )
    assert "tokens=4096" in words and "at most 16,777,216" in words
    assert "tokens once" in refused(lambda: parse_pairs("shape", "tokens=1, tokens=2"))
    assert parse_pairs("shape", " tokens = +7 ,, heads=2 ,") == {"tokens": "+7", "heads": "2"}


VALUES = [
    *(
        "float32:",
        "float32:0",
        "float32:-3",
        "float32:2x",
        "float32:x2",
        "float32:99999x99999",
        "int32:3=nan",
    ),
    *(
        "int32:3=1e30",
        "uint8:3=-1",
        "bool:3=2",
        "float16:3=1e30",
        "int64:3=",
        "int32:3=x",
        "complex64:3",
        ":3",
    ),
]


def is_finite(text):
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


@given(st.sampled_from(VALUES) | odd.filter(lambda text: not is_finite(text)))
@example("1e999")
@example("inf")
def test_an_odd_argument_of_a_kernel_is_refused_by_its_name(value):
    def parse():
        pairs = parse_pairs("arguments", f"a={value}")
        return own_kernel._parse_value("a", pairs["a"], np.random.default_rng(0))

    assert re.match(r"(a|cells of a|type of a) must ", refused(parse))


@given(
    st.sampled_from(["grid", "block"]), odd | st.sampled_from(["0", "1,0", "1,2,3,4", "", ",", "1,,2", "1;2"])
)
def test_an_odd_launch_is_refused_by_its_option(option, text):
    if text != "4097":  # which is a number of threads that is refused with the block
        assert refused(lambda: own_kernel._sizes(option, text)).startswith(
            f"{option} must be one to three integers"
        )


@given(st.text())
def test_a_python_of_a_peer_is_taken_or_refused_by_its_form(text):
    name, equals, path = text.partition("=")
    if name and equals and path:
        assert parse_pythons([text]) == {name: path}
    else:
        assert "python must be NAME=PATH" in refused(lambda: parse_pythons([text]))
