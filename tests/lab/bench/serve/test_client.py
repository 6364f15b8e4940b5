"""What the client makes of the bytes of a stream, whole or broken."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.lab.bench.serve.backends import decode, make_body
from minivllm.lab.bench.serve.client import StreamReader, message_of, refusal
from minivllm.lab.bench.serve.record import Record


def event(data):
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


def stream_of(texts, usage=True, done=True):
    parts = [event({"choices": [{"index": 0, "text": text}]}) for text in texts]
    if usage:
        parts.append(event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": len(texts)}}))
    return b"".join(parts) + (b"data: [DONE]\n\n" if done else b"")


def read(pieces, wants_text=True):
    record = Record("r", 0.0, 4)
    reader = StreamReader(record, wants_text)
    for moment, piece in enumerate(pieces):
        reader.feed(piece, float(moment))
    reader.close()
    return record


@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=8),
    cuts=st.lists(st.integers(0, 2000), max_size=12),
    crlf=st.booleans(),
    usage=st.booleans(),
)
def test_however_the_network_cuts_a_stream_it_says_the_same(texts, cuts, crlf, usage):
    data = stream_of(texts, usage)
    if crlf:
        data = data.replace(b"\n", b"\r\n")
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    pieces = [data[a:b] for a, b in pairwise(places)]
    record = read(pieces)
    assert record.error == "" and record.text == "".join(texts)
    assert record.output_tokens == len(record.chunk_times) == len(texts)
    assert record.is_counted == usage and record.prompt_tokens == (3 if usage else 0)
    assert list(record.chunk_times) == sorted(record.chunk_times)


@given(cut=st.integers(0, 400))
def test_a_stream_that_ends_before_its_end_is_a_failure(cut):
    data = stream_of(["a", "b", "c"], usage=False, done=False)
    record = read([data[: min(cut, len(data))]])
    assert "the stream ended early" in record.error or "is not understood" in record.error
    assert not record.is_complete


def test_an_error_within_a_stream_is_told_in_the_servers_words():
    record = read([event({"choices": [{"text": "a"}]}), event({"error": {"message": "no more memory"}})])
    assert record.error == "the server gave up: no more memory"


def test_what_is_no_json_or_has_no_tokens_is_said():
    assert "is not understood" in read([b"data: {nonsense\n\n"]).error
    assert "no tokens" in read([b": a comment\n\ndata: [DONE]\n\n"]).error


def test_a_stream_without_an_end_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr("minivllm.lab.bench.serve.client.MOST_EVENT_BYTES", 100)
    assert read([b"data: " + b"x" * 200]).error == "a part of the stream has no end"


def test_a_chat_that_only_names_the_speaker_is_no_first_token():
    greeting = {"choices": [{"delta": {"role": "assistant", "content": ""}}]}
    record = read([event(greeting), event({"choices": [{"delta": {"content": "a"}}]}), b"data: [DONE]\n\n"])
    assert list(record.chunk_times) == [1.0]
    with_text = decode(json.dumps({"choices": [{"delta": {"role": "assistant", "content": "a"}}]}))
    assert with_text.choices[0].has_tokens()


@pytest.mark.parametrize(
    ("status", "kind", "said", "words"),
    [
        (502, "text/html", b"<html>bad gateway", "a page of HTML"),
        (200, "application/json", b"{}", "an answer in one piece"),
        (401, "application/json", b'{"error": "Unauthorized"}', "status 401: Unauthorized"),
        (404, "application/json", b'{"detail": "Not Found"}', "status 404: Not Found"),
        (400, "application/json", b'{"error": {"message": "too long"}}', "status 400: too long"),
        (500, "text/plain", b"\x1b[2Joh", "status 500"),
    ],
)
def test_an_answer_that_is_no_stream_becomes_a_sentence(status, kind, said, words):
    told = refusal(status, kind, said)
    assert words in told and "\x1b" not in told and "\n" not in told


@given(
    st.recursive(st.none() | st.text() | st.integers(), lambda x: st.dictionaries(st.text(), x) | st.lists(x))
)
def test_whatever_an_error_is_wrapped_in_there_is_a_sentence(answer):
    assert isinstance(message_of({"error": answer}), str)


def test_a_body_has_the_fields_of_its_backend():
    body = json.loads(make_body("openai", "m", [5, 6], 9))
    assert body["prompt"] == [5, 6] and body["max_tokens"] == 9 and body["ignore_eos"] is True
    chat = json.loads(make_body("openai-chat", "m", "hello", 9, ignore_eos=False, wants_ids=True))
    assert chat["messages"][0]["content"] == "hello" and "ignore_eos" not in chat
    assert chat["return_token_ids"] is True and chat["stream_options"] == {"include_usage": True}
