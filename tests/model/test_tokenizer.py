"""Text in, tokens out, as `transformers` does it; and folders that are not as they should be."""

# ruff: noqa: E501 (tables of files)

import json
import os
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from minivllm.model.chat.template import ChatTemplateError
from minivllm.model.tokenizer import Tokenizer, TokenizerError
from tests.decoding.tokenizers_for_tests import byte_fallback, byte_level

texts = st.text(st.sampled_from("abc Once  cache\n\t键值缓存é😀<s>▁"), max_size=30) | st.text(max_size=20)

CHATML = (
    "{% for message in messages %}\n"
    "  {% if loop.first %}\n"
    "first: {% endif %}\n"
    "{{- '<|' + message['role'] + '|>\n' + message['content'] | trim + eos_token + '\n' }}\n"
    "  {% endfor %}\n"
    "{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
LLAMA_LIKE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% continue %}{% endif %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)
TALK = [{"role": "user", "content": " hi 键值 "}, {"role": "assistant", "content": "yes"}]


def make_folder(path, backend, settings=None, **files):
    """A tokenizer folder: `settings` become tokenizer_config.json."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    backend.save(str(path / "tokenizer.json"))
    if settings is not None:
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
        (path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    for name, content in files.items():
        (path / name.replace("__", ".")).write_text(content, encoding="utf-8")
    return path


FAMILIES = {
    "llama: bos by the post-processor": (byte_fallback, {"bos_token": "<s>", "eos_token": "</s>"}),
    "llama: bos by both": (byte_fallback, {"bos_token": "<s>", "add_bos_token": True}),
    "llama: settings that have no effect": (byte_fallback, {"bos_token": "<s>", "add_bos_token": False}),
    "llama: bos as a record": (
        byte_fallback,
        {
            "bos_token": {"content": "<s>", "__type": "AddedToken"},
            "eos_token": "</s>",
            "add_bos_token": True,
            "add_eos_token": True,
        },
    ),
    "qwen: no bos at all": (byte_level, {"eos_token": "<eos>", "bos_token": None, "add_bos_token": False}),
    "qwen: nothing said": (byte_level, {"eos_token": "<eos>"}),
}


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """Our tokenizer and that of `transformers`, from the same folder."""
    build, settings = FAMILIES[request.param]
    folder = make_folder(tmp_path_factory.mktemp("family") / "it", build(), settings)
    return Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)


@given(text=texts, special=st.booleans())
def test_text_becomes_the_tokens_that_transformers_makes_of_it(pair, text, special):
    ours, theirs = pair
    assert ours.encode(text, add_special_tokens=special) == theirs.encode(text, add_special_tokens=special)


@given(data=st.data(), skip=st.booleans())
def test_tokens_become_the_text_that_transformers_makes_of_them(pair, data, skip):
    ours, theirs = pair
    ids = data.draw(st.lists(st.integers(0, len(ours) - 1), max_size=30))
    expected = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
    assert ours.decode(ids, skip_special_tokens=skip) == expected


@pytest.mark.parametrize("template", [CHATML, LLAMA_LIKE], ids=["chatml", "llama"])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("place", ["setting", "named", "file", "files"])
def test_a_conversation_becomes_the_prompt_that_transformers_makes_of_it(
    tmp_path, template, add_generation_prompt, place
):
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    files = {}
    if place in ("file", "files"):
        files["chat_template__jinja"] = template
        settings["chat_template"] = "the file comes first"
    elif place == "named":
        both = {"rag": "not this", "default": template}
        settings["chat_template"] = [{"name": name, "template": text} for name, text in both.items()]
    else:
        settings["chat_template"] = template
    folder = make_folder(tmp_path / "it", byte_fallback(), settings, **files)
    if place == "files":
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools: {{ tools }}")
    ours, theirs = Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.chat_template == theirs.chat_template
    wanted = {"add_generation_prompt": add_generation_prompt}
    assert ours.apply_chat_template(TALK, tokenize=False, **wanted) == theirs.apply_chat_template(
        TALK, tokenize=False, **wanted
    )
    assert ours.apply_chat_template(TALK, **wanted) == theirs.apply_chat_template(TALK, **wanted).data
    assert ours.apply_chat_template([TALK, TALK[:1]], **wanted) == (
        theirs.apply_chat_template([TALK, TALK[:1]], **wanted).data
    )
    tokens = ours.apply_chat_template(TALK, return_dict=False, **wanted)
    assert tokens == theirs.apply_chat_template(TALK, return_dict=False, **wanted)
    assert tokens.count(ours.bos_token_id) == (template is LLAMA_LIKE), "never bos twice"
    tools = [{"name": "f"}]
    assert ours.get_chat_template(tools=tools) == theirs.get_chat_template(tools=tools)


def test_variables_reach_the_template(tmp_path):
    settings = {"chat_template": "{{ tone }} {{ tools | tojson }} {{ strftime_now('%Y') | length }}"}
    ours = Tokenizer.from_folder(make_folder(tmp_path / "it", byte_level(), settings))
    assert ours.apply_chat_template(TALK, tokenize=False, tone="é") == "é null 4"
    assert ours.apply_chat_template(TALK, [{"é": "<"}], tokenize=False, tone="") == ' [{"é": "<"}] 4'


def test_a_folder_without_settings_still_encodes(tmp_path):
    ours = Tokenizer.from_folder(make_folder(tmp_path / "it", byte_level()))
    assert ours.decode(ours.encode("plain 键值")) == "plain 键值"
    assert ours.chat_template is None
    with pytest.raises(ChatTemplateError, match="it has no chat template"):
        ours.apply_chat_template(TALK)


START = {
    "content": "<|im_start|>",
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "single_word": False,
    "special": True,
}
THINK = {**START, "content": "<think>", "special": False}
EDGES = {**START, "content": "<|cut|>", "lstrip": True, "rstrip": True}
RECORD = {"__type": "AddedToken", **START}
OLD_RECORD = {key: value for key, value in START.items() if key != "special"}

NAMES_OF_TOKENS = {
    "tokenizer.json alone": {},
    "only added_tokens_decoder": {"tokenizer_config": {"added_tokens_decoder": {"400": START, "401": THINK, "402": EDGES}}},
    "added and named": {
        "tokenizer_config": {"added_tokens_decoder": {"400": START}, "eos_token": "<|im_start|>", "pad_token": "<|pad|>"}
    },
    "added again, and otherwise": {"tokenizer_config": {"added_tokens_decoder": {"0": {**START, "content": "<eos>", "lstrip": True}}}},
    "special_tokens_map.json alone": {"special_tokens_map": {"eos_token": "<|im_end|>", "bos_token": OLD_RECORD}},
    "special_tokens_map.json besides": {
        "tokenizer_config": {"eos_token": "<eos>", "bos_token": None},
        "special_tokens_map": {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]},
    },
    "special_tokens_map.json that is not asked": {
        "tokenizer_config": {"eos_token": "<eos>", "added_tokens_decoder": {}},
        "special_tokens_map": {"eos_token": "<|im_end|>"},
    },
    "added_tokens.json": {"added_tokens": {"<|im_start|>": 400, "<think>": 401, "<eos>": 0}},
    "added_tokens.json and names": {
        "added_tokens": {"<|im_start|>": 400, "<|im_end|>": 401},
        "tokenizer_config": {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|cut|>", "<|im_start|>"]},
    },
    "records and null": {"tokenizer_config": {"eos_token": RECORD, "bos_token": None, "unk_token": "<eos>"}},
    "more special tokens": {"tokenizer_config": {"extra_special_tokens": ["<|cut|>", "<eos>", RECORD]}},
    "special tokens by names of their own": {"tokenizer_config": {"extra_special_tokens": {"image_token": "<|cut|>"}, "audio_token": "<think>"}},
    "settings that change nothing": {
        "tokenizer_config": {
            "eos_token": "<eos>", "clean_up_tokenization_spaces": True, "add_bos_token": True, "add_eos_token": True,
            "model_max_length": 77, "legacy": True, "use_default_system_prompt": False,
        }
    },
    "no limit": {"tokenizer_config": {"model_max_length": 1000000000000000019884624838656}},
}  # fmt: skip
with_special = st.lists(
    st.sampled_from(["<|im_start|>", "<|im_end|>", "<think>", " <|cut|>  ", "<eos>", "<|pad|>"]) | texts,
    max_size=6,
).map("".join)


@pytest.fixture(scope="module", params=NAMES_OF_TOKENS)
def named(request, tmp_path_factory):
    """Our tokenizer and that of `transformers`, from a folder that names its tokens in one of many ways."""
    contents = NAMES_OF_TOKENS[request.param]
    folder = make_folder(tmp_path_factory.mktemp("named") / "it", byte_level())
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return Tokenizer.from_folder(folder), PreTrainedTokenizerFast.from_pretrained(folder)


@given(text=with_special, special=st.booleans())
def test_special_tokens_are_one_token_in_both_directions_wherever_they_are_named(named, text, special):
    ours, theirs = named
    ids = ours.encode(text, add_special_tokens=special)
    assert ids == theirs.encode(text, add_special_tokens=special)
    assert ours(text) == theirs(text, return_token_type_ids=False).data
    for skip in (True, False):
        assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
        assert ours.convert_ids_to_tokens(ids, skip) == theirs.convert_ids_to_tokens(ids, skip)


def test_the_names_are_those_that_transformers_knows(named):
    ours, theirs = named
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        assert getattr(ours, name) == getattr(theirs, name)
        assert getattr(ours, f"{name}_id") == getattr(theirs, f"{name}_id")
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.all_special_tokens == theirs.all_special_tokens
    assert ours.all_special_ids == theirs.all_special_ids
    assert ours.get_vocab() == theirs.get_vocab()
    assert (len(ours), ours.vocab_size) == (len(theirs), theirs.vocab_size)
    assert ours.model_max_length == theirs.model_max_length
    tokens = ["<|im_start|>", "<eos>", "no such token"]
    assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
    assert ours.convert_tokens_to_ids("<eos>") == theirs.convert_tokens_to_ids("<eos>")
    assert ours.batch_decode([[1, 2], [3]]) == theirs.batch_decode([[1, 2], [3]])
    assert ours.decode(5) == theirs.decode(5)
    assert ours(["a", "the fox"]) == theirs(["a", "the fox"], return_token_type_ids=False).data


def test_padding_and_truncation_of_the_training_are_forgotten(tmp_path):
    backend = Tokenizer.from_folder(make_folder(tmp_path / "a", byte_level()))._backend
    backend.enable_truncation(3)
    backend.enable_padding(length=8)
    ours = Tokenizer.from_folder(make_folder(tmp_path / "b", backend))
    assert len(ours.encode("a long text of many tokens, longer than eight")) > 8
    assert len(ours.encode("a")) == 1


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("tokenizer.json", "{", "tokenizer.json is not a tokenizer that can be read"),
        ("tokenizer.json", '{"model": 5}', "tokenizer.json is not a tokenizer that can be read"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is not JSON"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json must hold a JSON object"),
        ("tokenizer_config.json", b"\xff\xfe\xff", "tokenizer_config.json is not JSON"),
        ("tokenizer_config.json", "[" * 10_000, "tokenizer_config.json is nested too deeply"),
        ("tokenizer_config.json", '{"bos_token": 5}', "bos_token in .*tokenizer_config.json must be a token"),
        ("tokenizer_config.json", '{"eos_token": {"id": 5}}', "eos_token in .* must be a token or a record"),
        (
            "tokenizer_config.json",
            '{"eos_token": {"content": 5}}',
            "eos_token in .* must be a token or a record",
        ),
        (
            "tokenizer_config.json",
            '{"additional_special_tokens": "x"}',
            "additional_special_tokens in .* must be a list",
        ),
        (
            "tokenizer_config.json",
            '{"extra_special_tokens": [5]}',
            "special_tokens in .* must be a token or a record",
        ),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": []}',
            "added_tokens_decoder in .* must be an object",
        ),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"x": {}}}',
            "added_tokens_decoder in .*'x' must be an id",
        ),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"1": 5}}',
            "added_tokens_decoder in .*'1' must be an id",
        ),
        ("tokenizer_config.json", '{"chat_template": 5}', "chat_template in .* must be a string"),
        (
            "tokenizer_config.json",
            '{"chat_template": [{"name": "x"}]}',
            "chat_template in .* must be a list of names",
        ),
        ("special_tokens_map.json", '{"eos_token": 5}', "eos_token in .*special_tokens_map.json must be"),
        ("special_tokens_map.json", "[]", "special_tokens_map.json must hold a JSON object"),
        (
            "added_tokens.json",
            '{"<x>": "y"}',
            "added_tokens.json: the id of '<x>' must be an integer, got 'y'",
        ),
        ("tokenizer_config.json", '{"pad_token": "\\ud800"}', "pad_token in .* is none .a lone surrogate"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja cannot be read as text"),
        (
            "chat_template.json",
            '{"chat_template": 5}',
            "chat_template in .*chat_template.json must be a string",
        ),
    ],
)
def test_a_broken_folder_is_refused_by_the_name_of_the_file(tmp_path, file, content, words):
    folder = make_folder(tmp_path / "it", byte_level(), {})
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TokenizerError, match=words):
        Tokenizer.from_folder(folder)


def test_a_template_that_is_a_pipe_or_gigantic_is_never_read(tmp_path):
    folder = make_folder(tmp_path / "it", byte_level(), {})
    with (folder / "chat_template.jinja").open("wb") as file:
        file.truncate(3 << 30)  # a hole, which takes no space
    with pytest.raises(TokenizerError, match=r"chat_template\.jinja has 3,221,225,472 bytes"):
        Tokenizer.from_folder(folder)
    with pytest.raises(ValueError, match=r"chat_template\.jinja has 3,221,225,472 bytes"):
        Tokenizer(byte_level()).chat_templates.load(folder / "chat_template.jinja")
    (folder / "additional_chat_templates").mkdir()
    os.mkfifo(folder / "additional_chat_templates" / "tool_use.jinja")
    with pytest.raises(TokenizerError, match=r"tool_use\.jinja: is not a file"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize("tokens", [5, None, b"a", [5], ["a", None], torch.tensor([1]), "\ud800", ["\ud800"]])
def test_what_is_no_name_of_a_token_is_refused_as_such(tokens):
    with pytest.raises(ValueError, match="tokens"):
        Tokenizer(byte_level()).convert_tokens_to_ids(tokens)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for x in %}", "the chat template of .* is broken"),
        (LLAMA_LIKE, "refuses these messages: roles must alternate"),
        ("{{ messages[0]['content'] + 1 }}", "refuses these messages"),
        ("{{ messages.append(1) }}", "refuses these messages"),  # the sandbox lets nothing be changed
        ("{{ ''.__class__.__mro__ }}", "refuses these messages"),
    ],
)
def test_a_template_that_fails_says_so_as_a_value_error(tmp_path, template, words):
    settings = {"chat_template": template, "bos_token": "<eos>", "eos_token": "<eos>"}
    ours = Tokenizer.from_folder(make_folder(tmp_path / "it", byte_level(), settings))
    with pytest.raises(ChatTemplateError, match=words):
        ours.apply_chat_template(TALK[1:])


@pytest.mark.parametrize("argument", ["return_tensors", "truncation", "tokenizer_kwargs"])
def test_what_transformers_could_do_besides_is_refused_by_name_and_not_taken_for_a_variable(argument):
    ours = Tokenizer(byte_level())
    with pytest.raises(ValueError, match=f"apply_chat_template does not have {argument} here"):
        ours.apply_chat_template(TALK, chat_template="x", **{argument: "pt"})
    assert ours.apply_chat_template(TALK, chat_template="x", tokenize=False, **{argument: None}) == "x"


@pytest.mark.parametrize("build", [byte_level, byte_fallback])
def test_a_token_shown_by_itself_keeps_its_leading_space(build):
    ours = Tokenizer(build())
    shown = [ours.token_text(token) for token in ours.encode("the fox", add_special_tokens=False)]
    assert "".join(shown).lstrip() == "the fox"
    assert any(text.startswith(" ") for text in shown)
    special = ours.encode("<eos>" if build is byte_level else "</s>")[-1]
    assert ours.token_text(special) in ("<eos>", "</s>")


def test_ids_of_any_library_are_ids_and_what_is_none_is_named():
    ours = Tokenizer(byte_level())
    for kind in (list, tuple, np.array, torch.tensor):
        assert ours.decode(kind([5, 6])) == ours.decode([5, 6])
        assert ours.convert_ids_to_tokens(kind([5, 6])) == ours.convert_ids_to_tokens([5, 6])
    assert ours.decode(np.int64(5)) == ours.decode(5) == ours.decode(torch.tensor(5))
    for wrong in ([-1], 2**40, "abc", None, [1.5], [None]):
        for method in (ours.decode, ours.convert_ids_to_tokens):
            with pytest.raises(ValueError, match=r"token_ids must be integers from 0 to 4294967295, got"):
                method(wrong)


EXPLODES = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
LACKS = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "no such token", "type_id": 0}}],
         "pair": [], "special_tokens": {}}  # fmt: skip


NO_WORDS = {"type": "BPE", "vocab": {}, "merges": [], "unk_token": "<unk>"}


@pytest.mark.parametrize(
    "changes",
    [{"pre_tokenizer": EXPLODES}, {"post_processor": LACKS}, {"model": NO_WORDS}],
    ids=["explodes", "lacks a token", "knows no word"],
)
def test_a_tokenizer_that_fails_on_a_text_says_whose_it_is(tmp_path, changes):
    """The library panics, which is no `Exception`, or raises a bare one: neither may end the process."""
    folder = make_folder(tmp_path / "it", byte_level(), {})
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    tokenizer = Tokenizer.from_folder(folder)
    with pytest.raises(TokenizerError, match=rf"tokenizer\.json of {folder} fails on this text"):
        tokenizer.encode("a" * 40 + "!")


def test_a_tokenizer_that_fails_when_it_is_loaded_is_named(tmp_path):
    folder = make_folder(tmp_path / "it", byte_level(), {})
    path = folder / "tokenizer.json"
    normalizer = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": normalizer}))
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is not a tokenizer that can be read"):
        Tokenizer.from_folder(folder)
