"""The field: every peer in a process of its own, and nothing that one of them does stops the others."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from typer.testing import CliRunner

from minivllm.lab.bench.commands import app
from minivllm.lab.bench.field import FieldSettings, run
from minivllm.lab.bench.field.child import Child, PeerError
from minivllm.lab.bench.field.compare import compare
from minivllm.lab.bench.field.job import fingerprint, write_model
from minivllm.lab.bench.field.measures import MEASURES, fit, make_measures
from minivllm.lab.bench.field.participants import start_peers
from minivllm.lab.bench.field.result import make_side
from minivllm.lab.bench.field.roster import PEERS, Peer, environment, find_pythons
from minivllm.lab.bench.field.serve import in_batches
from minivllm.lab.bench.field.settings import parse_pythons
from minivllm.lab.bench.report import as_json, print_result
from minivllm.lab.subjects.shapes import write_checkpoint
from minivllm.lab.subjects.subject import Subject, open_subject
from minivllm.lab.subjects.workload import play
from tests import patience, profiles

NANO = FieldSettings(
    model="nano",
    threads=1,
    repeat=2,
    requests=3,
    seed=7189,
    measures=("batch", "decode"),
    timeout=patience.SECONDS,
)

# A peer that answers zeros, so that none gives the same tokens by chance; `{load}` and `{generate}` are
# what a test wants it to do.
FAKE = """
import json, os, sys, time

def load(job):
    calls = []
    {load}
    def generate(prompts, lengths):
        calls.append(1)
        rows = [[0] * length for length in lengths]
        {generate}
        return rows
    return {{"version": "1.0", "how": "by hand"}}, generate
"""


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    with open_subject(NANO) as loaded:
        yield loaded


def make_peer(folder: Path, name: str, *, load: str = "pass", generate: str = "pass", **options) -> Peer:
    script = folder / f"{name}.py"
    script.write_text(FAKE.format(load=load, generate=generate))
    return Peer("json", script, f"pip install {name}", **options)


def compare_with(subject: Subject, roster: dict[str, Peer], settings: FieldSettings = NANO):
    pythons = dict.fromkeys(roster, Path(sys.executable))
    return compare(subject, settings, pythons, roster, pause_seconds=0)


def test_a_broken_peer_is_a_row_and_the_others_go_on(tmp_path: Path, subject: Subject):
    ours = [list(o.outputs[0].token_ids) for o in play(subject.engine(), subject.workload(NANO)).outputs]
    (tmp_path / "ours.json").write_text(json.dumps(ours))
    copy = f"rows = json.load(open({str(tmp_path / 'ours.json')!r})) if len(rows) == 3 else rows"
    roster = {
        "missing": make_peer(tmp_path, "missing", load="import no_such_library"),
        "crash": make_peer(tmp_path, "crash", generate="len(calls) == 2 and os._exit(3)"),
        "words": make_peer(tmp_path, "words", generate="len(rows) == 1 and 1 / 0"),
        "short": make_peer(tmp_path, "short", generate="rows[1].pop()"),
        "talks": make_peer(tmp_path, "talks", generate="os.write(1, b'{'); print('not an answer')"),
        "twin": make_peer(tmp_path, "twin", generate=copy),
    }
    result = compare_with(subject, roster)
    batch, decode = result.measures
    assert batch.sides[0].name == decode.sides[0].name == "minivllm"
    assert {side.name for side in batch.sides[1:]} == {"words", "talks", "twin"}
    assert {side.name for side in decode.sides[1:]} == {"talks", "twin"}
    same = {side.name: side.same_outputs for side in batch.sides}
    assert same == {"minivllm": None, "words": 0, "talks": 0, "twin": 3}

    why = {peer.name: peer.skipped for peer in result.peers}
    assert list(why) == list(roster)
    assert why["missing"] == "No module named 'no_such_library'"
    assert why["crash"] == "it stopped with exit status 3"
    assert why["words"] == "it stopped with exit status 1: ZeroDivisionError: division by zero"
    wanted = subject.workload(NANO)[1].num_output_tokens
    assert why["short"] == f"request 1 came back with {wanted - 1} tokens, {wanted} were asked for"
    assert not why["talks"] and not why["twin"]

    *tables, peers = result.sections()
    assert [row[0] for row in peers.rows] == list(roster)
    assert peers.rows[0][1:] == ["skipped: No module named 'no_such_library'", "pip install missing"]
    assert peers.rows[-1][1] == "1.0, by hand"
    assert [row[0] for row in tables[1].rows] == [side.name for side in decode.sides]
    json.dumps(as_json(result))


def test_a_peer_without_a_python_or_the_type_or_the_device_is_skipped(tmp_path: Path, subject: Subject):
    roster = {
        "nowhere": Peer("no_such_library", tmp_path / "x.py", "pip install nowhere"),
        "narrow": make_peer(tmp_path, "narrow", dtypes=("bfloat16",)),
        "elsewhere": make_peer(tmp_path, "elsewhere", devices=("cuda",)),
    }
    pythons = find_pythons({"narrow": sys.executable}, tuple(roster), roster)
    python = Path(sys.executable)
    assert pythons == {"nowhere": None, "narrow": python, "elsewhere": python}
    settings = FieldSettings(model="nano", threads=1, repeat=1, requests=1, measures=("decode",))
    result = compare(subject, settings, pythons, roster, pause_seconds=0)
    nowhere, narrow, elsewhere = result.peers
    assert nowhere.skipped == "no_such_library is not installed here; give --python nowhere=… where it is"
    assert nowhere.install == "pip install nowhere"
    assert narrow.skipped == "it computes in bfloat16, not in float32"
    assert elsewhere.skipped.startswith("it computes on cuda, and the model is on cpu")
    assert len(result.measures[0].sides) == 1


def test_peers_that_cannot_round_weights_are_skipped_and_the_others_are_told_how(tmp_path: Path):
    told = "assert job['weights'] == 'int8' and job['converted'].endswith('-int8')"
    rounds = make_peer(tmp_path, "rounds", load=told, weights=("int8",))
    with open(rounds.script, "a") as file:
        file.write("def convert(job, folder):\n    pass\n")
    roster = {"rounds": rounds, "plain": make_peer(tmp_path, "plain")}
    settings = replace(NANO, measures=("decode",), repeat=1, weights="int8")
    with open_subject(settings, quantization=settings.weights) as small:
        result = compare_with(small, roster, settings)
    why = {peer.name: peer.skipped for peer in result.peers}
    assert why == {"rounds": "", "plain": "its script does not round weights to int8"}
    assert result.header.subject["dtype"] == "int8 weights"
    with pytest.raises(ValueError, match=r"weights must be one of int8, int4; got 'int2'"):
        replace(NANO, weights="int2")


def test_what_is_kept_is_converted_once(tmp_path: Path, subject: Subject):
    peer = make_peer(tmp_path, "own_format", load="assert open(job['converted'] + '/model').read() == 'x'")
    with open(peer.script, "a") as file:
        file.write("def convert(job, folder):\n    open(folder + '/model', 'a').write('x')\n")
    settings = FieldSettings(threads=1, cache=str(tmp_path / "cache"))
    measures = make_measures(("decode",), [], 2048, 1, 2048)
    for _ in range(2):
        pythons = {"own_format": Path(sys.executable)}
        with start_peers(subject, settings, pythons, {"own_format": peer}, measures) as participants:
            assert participants.running == ["own_format"], participants.peers


def test_the_table_has_rates_and_ratios_of_rounds():
    side = make_side("peer", 100, [2.0, 4.0, 10.0], [0.0, 0.5, 0.1], ours=[1.0, 1.0, 10.0], same_outputs=2)
    assert side.tokens_per_second == 25.0
    assert side.all_tokens_per_second == (50.0, 25.0, 10.0)
    assert side.all_ratios == (2.0, 4.0, 1.0) and side.ratio == 2.0
    assert side.other_cores == 0.1
    assert make_side("minivllm", 100, [2.0], [0.0]).ratio is None


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("hello", "it answered hello where a JSON object was expected"),
        ("[1]", "where a JSON object was expected"),
        ("{}", "its answer to batch has no time"),
        ('{"seconds": "1", "cpu_seconds": 1.0}', "has no time"),
        ('{"seconds": NaN, "cpu_seconds": 1.0}', "took nan seconds"),
        ('{"seconds": 0.0, "cpu_seconds": 1.0}', "took 0.0 seconds"),
        ('{"seconds": 1.0, "cpu_seconds": 1.0}', "has no token ids"),
        (
            '{"seconds": 1.0, "cpu_seconds": 1.0, "token_ids": [[1, 2]]}',
            "it answered 1 requests, 2 were asked",
        ),
        ('{"error": "too large"}', "too large"),
        ("x" * 1000, "x" * 200 + "…"),
    ],
)
def test_an_answer_that_is_none_is_a_sentence(line: str, sentence: str):
    code = f"print('{{\"ready\": {{}}}}', flush=True); input(); print({line!r}, flush=True); input()"
    child = Child([sys.executable, "-c", code], {}, timeout=patience.SECONDS)
    try:
        assert child.start() == {}
        with pytest.raises(PeerError) as caught:
            child.go("batch", [2, 1])
        assert sentence in str(caught.value)
    finally:
        child.close()


def test_a_peer_that_hangs_is_given_up_and_ended_with_its_children():
    code = (
        "import json, subprocess, sys, time; nap = [sys.executable, '-c', 'import time; time.sleep(600)']; "
        "print(json.dumps({'ready': {'pid': subprocess.Popen(nap).pid}}), flush=True); time.sleep(600)"
    )
    child = Child([sys.executable, "-c", code], {}, timeout=patience.SECONDS)
    grandchild = psutil.Process(child.start()["pid"])
    child._timeout = 0.05
    with pytest.raises(PeerError, match=r"no answer to warm-up of batch within 0\.05 seconds"):
        child.warm_up("batch")
    child.close()
    assert grandchild.wait(timeout=patience.SECONDS) is None  # no process's child any more, and gone


def test_a_program_that_cannot_be_started_or_is_no_peer_is_a_sentence(tmp_path: Path):
    with pytest.raises(PeerError, match="it cannot be started: No such file or directory"):
        Child([tmp_path / "python"], {}, timeout=patience.SECONDS)
    child = Child([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], {}, timeout=patience.SECONDS)
    with pytest.raises(PeerError, match="it was killed by signal 9"):
        child.start()
    child.close()


def test_mistakes_are_refused_before_anything_is_loaded(tmp_path: Path):
    (tmp_path / "plain").touch()
    for arguments, sentence in [
        (["--python", "vllm"], "python must be NAME=PATH, as in vllm=/envs/vllm/bin/python; got 'vllm'"),
        (["--python", "vllm=a", "--python", "vllm=b"], "python: vllm is given twice"),
        (["--python", "tgi=/bin/true"], "a peer must be one of openvino, vllm"),
        (["--peer", "tgi"], "a peer must be one of openvino, vllm"),
        (["--python", "vllm=/no/such/python"], "python: vllm: there is no file /no/such/python"),
        (["--python", f"vllm={tmp_path / 'plain'}"], "plain cannot be executed"),
        (["--measure", "speed"], "measure must be one of batch, decode, prefill; got 'speed'"),
        (["--timeout", "0"], "timeout must be an integer of at least 1, got 0"),
    ]:
        done = CliRunner().invoke(app, ["field", *arguments])
        assert isinstance(done.exception, ValueError), (arguments, done.output)
        assert sentence in str(done.exception)
    assert parse_pythons(["a=b=c"]) == {"a": "b=c"}


def test_a_peer_sees_its_own_environment_and_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", "ours")
    (tmp_path / "lib").mkdir()
    python = tmp_path / "bin" / "python"
    peer = Peer("x", tmp_path, "", preload="lib/libfast.so")
    assert "LD_PRELOAD" not in environment(python, peer, 3)
    (tmp_path / "lib" / "libfast.so").touch()
    variables = environment(python, peer, 3)
    assert variables["LD_PRELOAD"] == str(tmp_path / "lib" / "libfast.so")
    assert variables["PATH"].startswith(f"{python.parent}:")
    assert variables["OMP_NUM_THREADS"] == "3" and variables["CUDA_VISIBLE_DEVICES"] == ""
    assert "PYTHONPATH" not in variables
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert environment(python, peer, 3, "cuda")["CUDA_VISIBLE_DEVICES"] == "0"


def test_every_peer_has_a_script_that_needs_nothing_of_ours():
    for peer in PEERS.values():
        source = peer.script.read_text(encoding="utf-8")
        assert "def load(job" in source and "minivllm" not in source
        compile(source, str(peer.script), "exec")


def test_measures_fit_the_model(subject: Subject):
    measures = make_measures(MEASURES, subject.workload(NANO), 2048, 1, 2048)
    shapes = {each.name: (len(each.requests), each.num_tokens) for each in measures}
    assert shapes["decode"] == (1, 128) and shapes["prefill"] == (1, 1024)
    assert shapes["batch"] == (3, sum(request.num_output_tokens for request in subject.workload(NANO)))
    assert fit(1024, 1, 256) == (255, 1) and fit(64, 128, 96) == (32, 64)


def test_the_model_is_written_in_the_measured_type_with_a_tokenizer(tmp_path: Path):
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    names = set()
    for dtype in ("float32", "bfloat16"):
        shape, config = SimpleNamespace(dtype=dtype), SimpleNamespace(vocab_size=2048)
        executor = SimpleNamespace(model_shape=shape, config=config)
        subject = SimpleNamespace(folder=write_checkpoint("nano", tmp_path / "nano"), executor=executor)
        folder = write_model(subject, tmp_path / dtype)
        tensors = load_file(folder / "model.safetensors")
        assert {str(tensor.dtype) for tensor in tensors.values()} == {f"torch.{dtype}"}
        assert json.loads((folder / "config.json").read_text())["dtype"] == dtype
        assert Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() == 2048
        names.add(fingerprint(folder))
    assert len(names) == 2


def test_static_batches_are_cut_to_each_request():
    sizes = []

    def generate(prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        sizes.append(len(prompts))
        return [prompt * max(lengths) for prompt in prompts]

    assert in_batches(generate, [[1], [2], [3]], [1, 3, 2], 2) == [[1], [2, 2, 2], [3, 3]]
    assert sizes == [2, 1]


@pytest.mark.parametrize(
    ("model", "dtype"),
    profiles.by_day([(None, "float32")], [(None, "float32"), ("nano", "float64")]),
)
def test_transformers_gives_the_same_tokens_and_the_ratio_is_of_the_rounds(model, dtype):
    pytest.importorskip("transformers")
    settings = FieldSettings(
        model=model,
        dtype=dtype,
        threads=1,
        repeat=1,
        requests=3,
        peers=("transformers",),
        measures=("batch",),
    )
    result = run(settings)
    assert [(peer.name, peer.skipped) for peer in result.peers] == [("transformers", "")]
    (batch,) = result.measures
    ours, peer = batch.sides
    assert peer.name == "transformers" and peer.same_outputs == 3
    assert peer.ratio == pytest.approx(peer.all_seconds[0] / ours.all_seconds[0])
    with open_subject(settings) as subject:
        assert batch.num_tokens == sum(one.num_output_tokens for one in subject.workload(settings))
    assert peer.padding > 1
    assert result.sections()[0].note == (
        f"static batches (transformers) compute {peer.padding:.2f} tokens for each one asked for"
    )
    print_result(result)
