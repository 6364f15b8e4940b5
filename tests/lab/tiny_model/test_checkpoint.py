"""The shipped model is small, loads everywhere, reads any text, and says true things about its subject."""

import json
from functools import cache

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from minivllm.lab.tiny_model.corpus import Corpus, build_corpus
from minivllm.lab.tiny_model.corpus.answers import CHAPTERS, Exchange
from minivllm.lab.tiny_model.corpus.documents import render_chat
from minivllm.lab.tiny_model.tokenizer import SPECIAL
from minivllm.model.tiny import MODEL_PATH

TOKENIZER = Tokenizer.from_file(str(MODEL_PATH / "tokenizer.json"))
CONFIG = json.loads((MODEL_PATH / "config.json").read_text(encoding="utf-8"))


def test_the_folder_is_small_and_complete() -> None:
    sizes = {path.name: path.stat().st_size for path in MODEL_PATH.iterdir()}
    assert set(sizes) == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(sizes.values()) < 8_000_000


def test_there_are_at_most_three_million_parameters_stored_as_float16() -> None:
    parameters = 0
    with safe_open(str(MODEL_PATH / "model.safetensors"), "pt") as weights:
        names = list(weights.keys())
        for name in names:
            tensor = weights.get_tensor(name)
            assert tensor.dtype == torch.float16
            assert torch.isfinite(tensor).all()
            parameters += tensor.numel()
    assert "lm_head.weight" not in names, "the tied matrix is stored once, as the embedding"
    assert parameters <= 3_000_000


def test_the_configuration_speaks_to_old_and_new_readers() -> None:
    assert CONFIG["num_key_value_heads"] < CONFIG["num_attention_heads"]
    assert CONFIG["tie_word_embeddings"] is True
    assert CONFIG["max_position_embeddings"] == 2048
    assert CONFIG["rope_theta"] == CONFIG["rope_parameters"]["rope_theta"] == 10_000
    assert CONFIG["torch_dtype"] == CONFIG["dtype"] == "float32"
    assert CONFIG["vocab_size"] == TOKENIZER.get_vocab_size() <= 4096


@settings(max_examples=300, deadline=None)
@given(st.text())
@example("  two  spaces, a tab\t and newlines\n\n ")
@example("🦙 龘 ▁ é \x00 <0x0A> ￿")
@example("KV 缓存 cache，块表。")
def test_any_text_survives_the_tokenizer(text: str) -> None:
    assume(not any(token in text for token in SPECIAL))
    ids = TOKENIZER.encode(text).ids
    assert ids[0] == CONFIG["bos_token_id"]
    assert TOKENIZER.token_to_id("<unk>") not in ids
    assert TOKENIZER.decode(ids) == text


def test_an_unknown_character_becomes_its_bytes() -> None:
    assert TOKENIZER.encode("🦙", add_special_tokens=False).tokens == ["<0xF0>", "<0x9F>", "<0xA6>", "<0x99>"]


def test_common_words_are_single_tokens_in_both_languages() -> None:
    for word in [" cache", " block", " memory", " token", "缓存", "词元", "物理块", "注意力"]:
        assert len(TOKENIZER.encode(word, add_special_tokens=False).ids) == 1, word


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_transformers_tokenizes_as_the_raw_file_does(text: str) -> None:
    tokenizer = transformers_tokenizer()
    ids = TOKENIZER.encode(text).ids
    assert tokenizer(text).input_ids == ids
    assert tokenizer.decode(ids) == TOKENIZER.decode(ids, skip_special_tokens=False)


def test_the_chat_template_writes_what_the_model_was_trained_on() -> None:
    turns = [Exchange("What is a slot?", "A place."), Exchange("什么是块表？", "一张表。")]
    messages = [{"role": "system", "content": "Be brief."}]
    for turn in turns:
        messages.append({"role": "user", "content": turn.question})
        messages.append({"role": "assistant", "content": turn.answer})
    written = transformers_tokenizer().apply_chat_template(messages, tokenize=False)
    assert written == "<s>" + render_chat(turns, "Be brief.") + "</s>\n"


def test_the_corpus_follows_from_its_seed(corpus: Corpus) -> None:
    assert build_corpus(seed=0) == corpus
    assert build_corpus(seed=1) != corpus


def test_no_held_out_document_is_trained_on(corpus: Corpus) -> None:
    trained = {document.text for document in corpus.train}
    assert corpus.held_out
    assert not [document for document in corpus.held_out if document.text in trained]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_topic_is_fully_written(language: str) -> None:
    for topic in (topic for chapter in CHAPTERS[language] for topic in chapter):
        assert topic.definition, topic.title
        assert topic.facts, topic.title
        assert all(answer for _, answer in topic.asked), topic.title


QUESTIONS = [
    ("What is a KV cache?", ["keys and values"]),
    ("What is PagedAttention?", ["blocks"]),
    ("What is a block table?", ["logical blocks", "physical blocks"]),
    ("What is continuous batching?", ["every step"]),
    ("什么是KV缓存？", ["键和值"]),
    ("什么是块表？", ["逻辑块", "物理块"]),
    ("什么是连续批处理？", ["每一步"]),
]


@pytest.mark.parametrize(("question", "expected"), QUESTIONS)
@pytest.mark.parametrize("form", ["plain", "chat"])
def test_its_greedy_answers_are_right(
    model: LlamaForCausalLM, question: str, expected: list[str], form: str
) -> None:
    answer = greedy_answer(model, question, form)
    assert all(words in answer for words in expected), answer


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return build_corpus(seed=0)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    model = AutoModelForCausalLM.from_pretrained(MODEL_PATH)
    assert model.dtype == torch.float32
    return model.eval()


@cache
def transformers_tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(MODEL_PATH)


def greedy_answer(model: LlamaForCausalLM, question: str, form: str) -> str:
    if form == "chat":
        prompt = f"<|user|>\n{question}\n<|assistant|>\n"
    elif question.isascii():
        prompt = f"Question: {question}\nAnswer:"
    else:
        prompt = f"问：{question}\n答："
    ids = torch.tensor([TOKENIZER.encode(prompt).ids])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=60, do_sample=False)
    return TOKENIZER.decode(output[0, ids.shape[1] :].tolist())
