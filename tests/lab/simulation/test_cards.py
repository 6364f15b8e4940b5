"""Cards: ours are complete and true to what is published; those of others are refused by card and field."""

import json
import math
from dataclasses import MISSING, asdict, fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.executor.torch_executor import TorchExecutor
from minivllm.lab.bench.calibrate import Calibration
from minivllm.lab.simulation.cards import (
    CARDS_FILE,
    JUDGED,
    HardwareCard,
    ModelCard,
    hardware_card,
    model_card,
    num_kv_blocks,
)
from minivllm.lab.simulation.cost_model import CostModel
from minivllm.model.tiny import MODEL_PATH
from minivllm.trace.work import batch_shape

OURS = json.loads(CARDS_FILE.read_text())
READERS = {"hardware": (hardware_card, HardwareCard, "h100"), "model": (model_card, ModelCard, "llama-2-7b")}
KINDS = st.sampled_from(sorted(READERS))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("cards") / "card.json"


def example(kind):
    """A right card of this kind, as a JSON file has it."""
    reader, _, name = READERS[kind]
    return asdict(reader(name))


def read(path, kind, data):
    path.write_text(json.dumps(data))
    return READERS[kind][0](str(path))


# ── ours ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["hardware", "models"])
def test_every_shipped_card_is_complete_and_says_where_it_comes_from(kind):
    reader, card = (hardware_card, HardwareCard) if kind == "hardware" else (model_card, ModelCard)
    names = {field.name for field in fields(card) if field.default is MISSING}
    for name, data in OURS[kind].items():
        assert set(data) == names
        optional = {field.name: field.default for field in fields(card) if field.default is not MISSING}
        assert asdict(reader(name)) == asdict(reader(name.upper())) == data | optional
        assert len(data["title"]) > 5 and len(data.get("source", "not of a model")) > 10


def test_every_judged_number_is_a_field_and_every_efficiency_is_judged():
    names = {field.name for field in fields(HardwareCard)}
    assert set(JUDGED) <= names
    assert {name for name in names if name.endswith("_efficiency")} <= set(JUDGED)


@pytest.mark.parametrize("model", [*OURS["models"], "tiny"])
@pytest.mark.parametrize("hardware", OURS["hardware"])
def test_every_shipped_device_can_be_used_with_every_model_that_fits(hardware, model):
    device, card = hardware_card(hardware), model_card(model)
    sizes = [size for size in (1, 2, 4, 8, 16, 24, 48) if card.num_heads % size == 0]
    for size in sizes:
        try:
            num_blocks = num_kv_blocks(device, card, num_devices=size)
        except ValueError as error:
            assert card.title in str(error) and device.title in str(error) and "more devices" in str(error)
            assert card.weight_bytes > 0.89 * size * device.memory_bytes
            continue
        assert num_blocks >= 1
        cost = CostModel(device, card, tensor_parallel_size=size)
        for items in ([(0, 1)], [(card.max_position - 1, 1)] * 64, [(0, card.max_position)]):
            assert device.step_overhead_seconds < cost.step_seconds(batch_shape(items)) < 3600
        break
    else:
        assert card.weight_bytes > 0.89 * max(sizes) * device.memory_bytes


INNER_SIZES = {
    "llama-2-7b": 11008,
    "llama-2-13b": 13824,
    "llama-2-70b": 28672,
    "llama-3-8b": 14336,
    "llama-3-70b": 28672,
}
PUBLISHED_BILLIONS = {"7b": 6.74, "8b": 8.03, "13b": 13.0, "66b": 66, "70b": 70, "175b": 175}


@pytest.mark.parametrize("name", OURS["models"])
def test_published_parameter_counts_follow_from_the_sizes_of_the_layers(name):
    card = model_card(name)
    width, embedding = card.hidden_size, card.vocab_size * card.hidden_size
    if name.startswith("opt"):
        # Matrices of 12 h², their biases, two norms with biases; learned positions, two of them unused.
        layer = 12 * width**2 + 9 * width + 4 * width
        total = card.num_layers * layer + embedding + (card.max_position + 2) * width + 2 * width
    else:
        queries, keys = card.num_heads * card.head_dim, card.num_kv_heads * card.head_dim
        layer = 2 * width * queries + 2 * width * keys + 3 * width * INNER_SIZES[name] + 2 * width
        total = card.num_layers * layer + 2 * embedding + width
    assert card.num_parameters == pytest.approx(total, rel=0.01)
    assert card.num_parameters / 1e9 == pytest.approx(PUBLISHED_BILLIONS[name.split("-")[-1]], rel=0.02)
    assert card.num_heads * card.head_dim == card.hidden_size
    assert card.is_tied == name.startswith("opt")


@pytest.mark.parametrize(
    ("model", "hardware", "num_devices", "slots"),
    [
        ("opt-13b", "a100-40gb", 1, 15.7e3),
        ("opt-66b", "a100-40gb", 4, 9.7e3),
        ("opt-175b", "a100-80gb", 8, 60.1e3),
    ],
)
def test_as_many_slots_fit_as_in_the_vllm_paper(model, hardware, num_devices, slots):
    """Table 1: "Max. # KV cache slots"."""
    num_blocks = num_kv_blocks(hardware_card(hardware), model_card(model), num_devices=num_devices)
    assert num_blocks * 16 == pytest.approx(slots, rel=0.07)


@given(
    model=st.sampled_from(sorted(OURS["models"])),
    hardware=st.sampled_from(sorted(OURS["hardware"])),
    num_devices=st.integers(1, 16),
    block_size=st.integers(1, 256),
    utilization=st.floats(0.01, 1),
    second=st.floats(0, 1e10),
)
def test_blocks_fill_what_the_weights_leave(model, hardware, num_devices, block_size, utilization, second):
    device, card = hardware_card(hardware), model_card(model)
    room = device.memory_bytes * num_devices * utilization - card.num_parameters * 2 - second
    block_bytes = block_size * 4 * card.num_layers * card.num_kv_heads * card.head_dim
    options = dict(block_size=block_size, utilization=utilization, num_devices=num_devices)
    if room < block_bytes:
        with pytest.raises(ValueError, match="does not fit"):
            num_kv_blocks(device, card, second_weight_bytes=second, **options)
    else:
        blocks = num_kv_blocks(device, card, second_weight_bytes=second, **options)
        assert blocks * block_bytes <= room * (1 + 1e-9) and (blocks + 1) * block_bytes > room * (1 - 1e-9)


@given(
    model=st.sampled_from(sorted(OURS["models"])), num_blocks=st.integers(0, 3), rest=st.floats(0.01, 0.99)
)
def test_less_than_a_block_is_no_block(model, num_blocks, rest):
    card = model_card(model)
    block_bytes = 16 * card.kv_bytes_per_token
    room = card.weight_bytes + (num_blocks + rest) * block_bytes
    device = replace(hardware_card("h100"), memory_bytes=room)
    if num_blocks:
        assert num_kv_blocks(device, card, utilization=1.0) == num_blocks
    else:
        with pytest.raises(ValueError, match="does not fit"):
            num_kv_blocks(device, card, utilization=1.0)


# ── those of others ───────────────────────────────────────────────────────────────────────────────────────

POSITIVE = st.floats(1e-3, 1e20)
SHARES = st.floats(1e-3, 1)
SECONDS = st.floats(0, 10)


def hardware_cards():
    def values(name):
        if name in ("title", "source"):
            return st.text(max_size=20)
        return SHARES if name.endswith("_efficiency") else SECONDS if name.endswith("_seconds") else POSITIVE

    return st.builds(HardwareCard, **{field.name: values(field.name) for field in fields(HardwareCard)})


@st.composite
def model_cards(draw):
    size = st.integers(1, 10_000)
    kv_heads, is_tied = draw(size), draw(st.booleans())
    vocab_size, width = draw(size), draw(size)
    return ModelCard(
        title=draw(st.text(max_size=20)),
        num_layers=draw(size),
        hidden_size=width,
        num_heads=kv_heads * draw(st.integers(1, 16)),
        num_kv_heads=kv_heads,
        head_dim=draw(size),
        vocab_size=vocab_size,
        num_parameters=vocab_size * width * (1 if is_tied else 2) + draw(st.integers(1, 10**12)),
        is_tied=is_tied,
        max_position=draw(size),
        dtype=draw(st.sampled_from(["float64", "float32", "bfloat16", "float16", "int8", "fp8", "int4"])),
        layer_bytes=draw(st.integers(0, 10**12)),
        output_bytes=draw(st.integers(0, 10**12)),
    )


@given(card=hardware_cards(), model=model_cards())
def test_a_card_that_was_written_reads_back_equal(path, card, model):
    Calibration(card, model, 0, 0, {}).write(path)
    assert hardware_card(str(path)) == card
    assert read(path, "model", asdict(model)) == model


def test_a_card_that_cannot_be_written_is_one_sentence(tmp_path):
    card = Calibration(hardware_card("cpu"), model_card("tiny"), 0, 0, {})
    with pytest.raises(ValueError, match=r"out: cannot write to .*: Is a directory"):
        card.write(tmp_path)


OPTIONAL = {"layer_bytes", "output_bytes"}


def wrong_values(name, right):
    """What this field of a card must not hold."""
    anything = [None, [], {}, [1]]
    if isinstance(right, bool):
        return [*anything, 0, 1, "true", math.nan]
    if isinstance(right, str):
        return [*anything, 16, True] + (["float8", "", "FLOAT16"] if name == "dtype" else [])
    numbers = [*anything, True, "1", "", math.nan, math.inf, -math.inf, -1, -1e-9]
    if name in OPTIONAL:
        return [*numbers, 1.5, 1e30, 10**16]
    if isinstance(right, int) and not name.endswith("_bytes"):
        return [*numbers, 0, 1.5, 1e30, 10**16]
    return (
        numbers
        + ([] if name.endswith("_seconds") else [0])
        + ([1.01, 60] if name.endswith("_efficiency") else [10**400])
    )


@pytest.mark.parametrize("kind", sorted(READERS))
def test_a_wrong_value_is_refused_by_card_and_field(path, kind):
    for name, right in example(kind).items():
        for wrong in wrong_values(name, right):
            with pytest.raises(ValueError) as caught:
                read(path, kind, example(kind) | {name: wrong})
            assert str(caught.value).startswith(f"{path}: {name} must be "), (name, wrong)


@given(kind=KINDS, data=st.data())
def test_missing_and_unknown_fields_are_refused_by_name_with_those_that_there_are(path, kind, data):
    card = example(kind)
    missing = data.draw(st.sampled_from(sorted(card.keys() - OPTIONAL)))
    with pytest.raises(ValueError, match=f"the field '{missing}' is missing") as caught:
        read(path, kind, {name: value for name, value in card.items() if name != missing})
    assert str(caught.value).startswith(f"{path}: ") and all(name in str(caught.value) for name in card)
    unknown = data.draw(st.text(max_size=12).filter(lambda name: name not in card))
    with pytest.raises(ValueError) as caught:
        read(path, kind, card | {unknown: 1})
    assert f"{path}: there is no field {unknown!r}" in str(caught.value)
    assert all(name in str(caught.value) for name in card)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(kind=KINDS, data=st.data())
def test_any_mixture_of_values_is_a_card_or_refused_with_its_name(path, kind, data):
    fields_ = st.sampled_from(sorted(example(kind)))
    changes = data.draw(st.dictionaries(fields_, JSON, min_size=1, max_size=4))
    try:
        card = read(path, kind, example(kind) | changes)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ") and any(name in str(error) for name in changes)
    else:
        assert all(getattr(card, name) == value for name, value in changes.items())


@given(kind=KINDS, data=JSON.filter(lambda value: not isinstance(value, dict)))
def test_what_is_no_object_is_refused(path, kind, data):
    with pytest.raises(ValueError, match="a card must be an object with named fields") as caught:
        read(path, kind, data)
    assert str(caught.value).startswith(f"{path}: ")


@given(kind=KINDS, content=st.binary(max_size=30) | st.text(max_size=30).map(str.encode))
def test_any_bytes_are_refused_with_the_name_of_the_file(path, kind, content):
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        READERS[kind][0](str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", sorted(READERS))
def test_files_that_are_not_there_or_no_files_or_too_deep_are_refused(path, tmp_path, kind):
    reader = READERS[kind][0]
    with pytest.raises(ValueError, match=r"nowhere\.json' cannot be read: No such file or directory"):
        reader("nowhere.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ValueError, match=r"folder\.json' cannot be read: it is not a file"):
        reader(str(tmp_path / "folder.json"))
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is not JSON"):
        reader(str(path))


@pytest.mark.parametrize("kind", sorted(READERS))
def test_an_unknown_name_is_refused_with_those_that_there_are(kind):
    with pytest.raises(ValueError) as caught:
        READERS[kind][0]("abacus")
    known = OURS["hardware" if kind == "hardware" else "models"]
    assert all(name in str(caught.value) for name in known) and "'abacus'" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_heads": 5}, "num_kv_heads must divide the 32 heads"),
        ({"num_kv_heads": 64}, "num_kv_heads must divide the 32 heads"),
        ({"num_parameters": 262_144_000}, "num_parameters must be more than the 262,144,000 of embedding"),
        (
            {"is_tied": True, "num_parameters": 131_072_000},
            "num_parameters must be more than the 131,072,000",
        ),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(path, changes, message):
    with pytest.raises(ValueError, match=message):
        read(path, "model", example("model") | changes)


# ── folders ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_shipped_model_is_a_card_of_what_is_in_its_file():
    card = model_card("tiny")
    executor = TorchExecutor.from_folder(MODEL_PATH, num_blocks=2, device="cpu")
    assert card.num_parameters == sum(view.numel() for _, view in executor.decoder.views())
    assert card.weight_bytes == executor.decoder.num_bytes
    cells = executor.storage.cells
    assert card.kv_bytes_per_token * 2 * executor.block_size == cells.numel() * cells.element_size()
    assert card.shape() == executor.config.shape("the shipped model")
    assert asdict(card) | {"title": str(MODEL_PATH)} == asdict(model_card(str(MODEL_PATH)))


def test_a_hugging_face_folder_is_the_card_that_we_ship_for_its_model(tmp_path):
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 8192,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 128256,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert asdict(model_card(str(tmp_path))) == asdict(model_card("llama-3-8b")) | {"title": str(tmp_path)}


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json: no such file"):
        model_card(str(tmp_path))
