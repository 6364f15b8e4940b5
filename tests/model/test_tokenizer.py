"""Text in, tokens out, as `transformers` does it; and folders that are not as they should be."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

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
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1), max_size=30))
    expected = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
    assert ours.decode(ids, skip_special_tokens=skip) == expected


@pytest.mark.parametrize("template", [CHATML, LLAMA_LIKE], ids=["chatml", "llama"])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("place", ["setting", "named", "file"])
def test_a_conversation_becomes_the_prompt_that_transformers_makes_of_it(
    tmp_path, template, add_generation_prompt, place
):
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    files = {}
    if place == "file":
        files["chat_template__jinja"] = template
        settings["chat_template"] = "the file comes first"
    elif place == "named":
        both = {"rag": "not this", "default": template}
        settings["chat_template"] = [{"name": name, "template": text} for name, text in both.items()]
    else:
        settings["chat_template"] = template
    folder = make_folder(tmp_path / "it", byte_fallback(), settings, **files)
    ours, theirs = Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)
    prompt = ours.apply_chat_template(TALK, add_generation_prompt=add_generation_prompt)
    wanted = {"add_generation_prompt": add_generation_prompt, "tokenize": False}
    assert prompt == theirs.apply_chat_template(TALK, **wanted)
    tokens = ours.encode(prompt, add_special_tokens=False)
    assert tokens == theirs.apply_chat_template(TALK, **{**wanted, "tokenize": True}, return_dict=False)
    assert tokens.count(ours.token_to_id("<s>")) == (template is LLAMA_LIKE), "never bos twice"


def test_variables_reach_the_template(tmp_path):
    settings = {"chat_template": "{{ tone }} {{ tools | tojson }} {{ strftime_now('%Y') | length }}"}
    ours = Tokenizer.from_folder(make_folder(tmp_path / "it", byte_level(), settings))
    assert ours.apply_chat_template(TALK, tone="é") == "é null 4"
    assert ours.apply_chat_template(TALK, tone="", tools=["é<"]) == ' ["é<"] 4'


def test_a_folder_without_settings_still_encodes(tmp_path):
    ours = Tokenizer.from_folder(make_folder(tmp_path / "it", byte_level()))
    assert ours.decode(ours.encode("plain 键值")) == "plain 键值"
    assert not ours.has_chat_template
    with pytest.raises(TokenizerError, match="it has no chat template"):
        ours.apply_chat_template(TALK)


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
    with pytest.raises(TokenizerError, match=words):
        ours.apply_chat_template(TALK[1:])


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "messages must be a list of messages that is not empty"),
        ("hi", "messages must be a list"),
        ({"role": "user", "content": "x"}, "messages must be a list"),
        ([TALK[0], "hi"], r"messages\[1\] must be"),
        ([{"role": "user"}], r"messages\[0\] must be .* its 'content' is None"),
        ([{"role": 3, "content": "x"}], r"messages\[0\] must be .* its 'role' is 3"),
        ([{"role": "user", "content": ["x"]}], r"messages\[0\] must be .* its 'content'"),
    ],
)
def test_messages_of_another_form_are_refused_by_their_number(tmp_path, messages, words):
    settings = {"chat_template": CHATML, "eos_token": "<eos>"}
    ours = Tokenizer.from_folder(make_folder(tmp_path / "it", byte_level(), settings))
    with pytest.raises(ValueError, match=words):
        ours.apply_chat_template(messages)


@pytest.mark.parametrize("build", [byte_level, byte_fallback])
def test_a_token_shown_by_itself_keeps_its_leading_space(build):
    ours = Tokenizer(build())
    shown = [ours.token_text(token) for token in ours.encode("the fox", add_special_tokens=False)]
    assert "".join(shown).lstrip() == "the fox"
    assert any(text.startswith(" ") for text in shown)
    special = ours.encode("<eos>" if build is byte_level else "</s>")[-1]
    assert ours.token_text(special) in ("<eos>", "</s>")


EXPLODES = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
LACKS = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "no such token", "type_id": 0}}],
         "pair": [], "special_tokens": {}}  # fmt: skip


@pytest.mark.parametrize(
    "changes", [{"pre_tokenizer": EXPLODES}, {"post_processor": LACKS}], ids=["explodes", "lacks a token"]
)
def test_a_tokenizer_that_fails_on_a_text_says_whose_it_is(tmp_path, changes):
    """The library panics, which is no `Exception`: without care it would end the process."""
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
