"""Servers beside ours: started, asked, measured and ended; one that does not start is a line."""

import os
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from minivllm.lab.bench.field import llama_cpp_peer
from minivllm.lab.bench.field.roster import Peer
from minivllm.lab.bench.serve import beside
from minivllm.lab.bench.serve.beside import OURS, BesideSettings, compare_servers
from minivllm.lab.bench.serve.own_server import OwnServer
from minivllm.lab.bench.serve.peer_servers import (
    FIRST_CHARACTERS,
    PEER_SERVERS,
    PeerServer,
    Place,
    as_characters,
    character,
)
from tests import event_loops, patience
from tests.lab.bench.serve.fake_server import fake_server
from tests.lab.bench.serve.test_command import bench

SCRIPT = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def answer(self, kind, data):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.answer("application/json", b'{"data": [{"id": "measured"}]}')

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert isinstance(asked["prompt"], str) and asked["extra"] == 7
        text = asked["prompt"][:1] * (asked["max_tokens"] - 1)  # it ends a token too soon
        parts = [json.dumps({"choices": [{"text": letter}]}) for letter in text] + ["[DONE]"]
        self.answer("text/event-stream", "".join(f"data: {part}\\n\\n" for part in parts).encode())

    def log_message(self, *words):
        pass

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def servers(monkeypatch, tmp_path):
    """A server of another project, one that ends at once, and ours, which counts its tokens."""
    script = tmp_path / "server.py"
    script.write_text(SCRIPT)
    peer = Peer("json", script, "nothing")
    fake = PeerServer(
        peer, lambda place: [str(script), str(place.port)], "nothing", takes_text=True, more={"extra": 7},
        how="made up",
    )  # fmt: skip
    broken = replace(fake, arguments=lambda place: ["-c", "raise SystemExit('no such model')"])
    monkeypatch.setattr(beside, "PEER_SERVERS", {"fake": fake, "broken": broken, "absent": fake})
    monkeypatch.setattr(
        beside, "find_pythons", lambda given, wanted: {
            name: None if name == "absent" else Path(sys.executable) for name in wanted
        },
    )  # fmt: skip
    with fake_server() as ours:

        @contextmanager
        def own(folder, threads, flags):
            yield OwnServer(ours.url, os.getpid())

        monkeypatch.setattr(beside, "own_server", own)
        yield ours


def test_a_table_has_each_server_and_says_who_is_missing(servers):
    settings = BesideSettings(
        "nano",
        1,
        repeat=2,
        requests=3,
        streams=(1, 3),
        peers=("fake", "broken", "absent"),
        timeout=patience.SECONDS,
    )
    found = event_loops.call(compare_servers, settings)
    assert [(row.server, row.streams) for row in found.rows] == [
        (OURS, 1),
        ("fake", 1),
        (OURS, 3),
        ("fake", 3),
    ]
    for row in found.rows:
        assert row.tokens_per_second > 0 and row.mib > 0 and row.tpot_ms >= 0
        assert row.whole == 1 if row.server == OURS else 0.9 < row.whole < 1
    assert "no such model" in found.skipped["broken"] and "--python absent=" in found.skipped["absent"]
    (section,) = found.sections()
    assert "made up" in section.note and "broken is left out" in section.note and len(section.rows) == 4
    asked = [len(one["prompt"]) for one in servers.asked]
    assert all(isinstance(one["prompt"], list) for one in servers.asked) and len(asked) == (1 + 3) * (1 + 2)
    assert not patience.children("server.py"), "they are ended"


def test_each_token_is_a_character_of_its_own():
    most = sum(count for _, count in FIRST_CHARACTERS)
    text = as_characters(range(most))
    assert len(text) == len(set(text)) == most and most >= 32_000
    assert text.isprintable() and text.encode().decode() == text
    with pytest.raises(ValueError, match="vocab_size must be at most"):
        character(most)


class Written:
    """What a writer of GGUF was told."""

    def __init__(self):
        self.told = {}

    def __getattr__(self, name):
        return lambda value: self.told.__setitem__(name, value)


def test_the_vocabulary_that_is_written_is_the_one_that_is_spoken():
    writer = Written()
    llama_cpp_peer.add_vocabulary(writer, 25_000, [list(part) for part in FIRST_CHARACTERS])
    assert "".join(writer.told["add_token_list"]) == as_characters(range(25_000))
    assert len(writer.told["add_token_scores"]) == len(writer.told["add_token_types"]) == 25_000
    assert writer.told["add_add_bos_token"] is writer.told["add_add_space_prefix"] is False
    plain = Written()
    llama_cpp_peer.add_vocabulary(plain, 100, None)
    assert plain.told == {"add_vocab_size": 100, "add_tokenizer_model": "no_vocab"}
    with pytest.raises(RuntimeError, match="more than there are characters"):
        llama_cpp_peer.add_vocabulary(Written(), 40_000, [list(part) for part in FIRST_CHARACTERS])


def test_every_server_is_told_where_to_listen_and_how_many_threads(tmp_path):
    place = Place(tmp_path, tmp_path / "made", 4321, 3, "float32", 64)
    for server in PEER_SERVERS.values():
        words = [*server.arguments(place), *server.variables(place).values()]
        assert "4321" in words and words[0] == "-m" and "127.0.0.1" in words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--peer", "nobody"), "peer must be one of 'llama-cpp', 'vllm'"),
        (("--peer", "vllm", "--request-rate", "2"), "--request-rate has no meaning with --peer"),
        (("--python", "llama-cpp"), "python must be NAME=PATH"),
        (("--python", "llama-cpp=/no/python"), "there is no file /no/python"),
        (("--peer", "vllm", "--streams", "0"), "streams must be"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(capsys, arguments, words):
    code, _, err = bench(capsys, *arguments)
    assert code == 2 and words in err
