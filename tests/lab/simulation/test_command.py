"""`minivllm simulate` as it is typed: what it prints and writes, and that a mistake is one sentence."""

import json
import subprocess
import sys
from dataclasses import asdict

import pytest

from minivllm.console import cli
from minivllm.console.commands import COMMANDS, LazyCommand
from minivllm.lab.simulation.cards import hardware_card, model_card
from minivllm.lab.simulation.setting import Setting
from minivllm.trace.reader import read_trace
from minivllm.trace.timeline import make_timeline
from tests import patience

SMALL = ("--hardware", "cpu", "--model", "tiny", "--workload", "fixed:20,5", "--requests", 6)


@pytest.fixture
def simulate(monkeypatch, capsys, tmp_path):
    """Run the command in a folder of its own; returns its exit code, what it printed, and its errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["minivllm", "simulate", *map(str, arguments)])
        monkeypatch.delenv("MINIVLLM_DEBUG", raising=False)
        monkeypatch.chdir(tmp_path)
        code = 0
        try:
            cli.main()
        except SystemExit as leaving:
            code = leaving.code or 0
        printed = capsys.readouterr()
        return code, " ".join(printed.out.split()), " ".join(printed.err.split())

    return run


def test_the_flags_have_the_defaults_of_a_setting():
    flags = {flag.name: flag.default for flag in LazyCommand("simulate", COMMANDS["simulate"]).load().params}
    for name, field in Setting.__dataclass_fields__.items():
        assert flags[name] == field.default


def test_it_prints_the_setting_and_what_came_of_it(simulate):
    code, printed, errors = simulate(*SMALL, "--max-num-seqs", 2)
    assert (code, errors) == (0, "")
    for words in (
        *("hardware cpu", "model tiny", "max num seqs 2", "requests 6 of 6 served", "preemptions 0"),
        *("throughput", "time to first token p50", "between tokens p50", "end to end p50", "KV cache"),
        *(
            "normalized latency mean",
            "batch 2.0 requests on average",
            "scheduled tokens for each real second",
        ),
    ):
        assert words in printed
    assert "block size" not in printed, "what is as usual is not said"


def test_everything_is_in_the_json_file(simulate, tmp_path):
    code, printed, _ = simulate(*SMALL, "--json", "out.json", "--block-size", 8, "--replicas", 2)
    data = json.loads((tmp_path / "out.json").read_text())
    assert code == 0 and "Everything is in out.json" in printed
    assert data["setting"]["block_size"] == 8 and data["setting"]["model"] == "tiny"
    counts, latencies = data["counts"], data["latencies_seconds"]
    assert (counts["num_arrived"], counts["num_finished"], counts["num_refused"]) == (6, 6, 0)
    assert (counts["prompt_tokens"], counts["output_tokens"], counts["computed_tokens"]) == (120, 30, 144)
    assert {name: value["count"] for name, value in latencies.items()} == {
        **dict.fromkeys(("ttft", "end_to_end", "normalized", "queue_time"), 6),
        "inter_token": 24,
    }
    for latency in latencies.values():
        assert 0 <= latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["largest"]
        assert latency["mean"] <= latency["largest"]
    seconds = counts["last_finish"] - counts["first_arrival"]
    assert data["derived"]["requests_per_second"] == pytest.approx(6 / seconds)
    assert data["derived"]["output_tokens_per_second"] == pytest.approx(30 / seconds)


OPTIONS = {
    "hardware": "cpu",
    "model": "tiny",
    "replicas": 2,
    "router": "least-loaded",
    "tensor_parallel_size": 3,
    "pipeline_parallel_size": 2,
    "scheduling_policy": "priority",
    "max_num_seqs": 3,
    "max_num_batched_tokens": 64,
    "max_model_len": 100,
    "block_size": 8,
    "gpu_memory_utilization": 0.5,
    "num_gpu_blocks_override": 40,
    "allocator": "paged",
    "prefix_cache": "radix",
    "swap_space": 0.5,
    "preemption_mode": "swap",
    "decode_weight_dtype": "int8",
}


def test_every_option_reaches_the_cost_model_or_the_scheduler(simulate, tmp_path):
    words = [word for name, value in OPTIONS.items() for word in ("--" + name.replace("_", "-"), value)]
    code, printed, _ = simulate(*SMALL, *words, "--json", "out.json")
    assert code == 0 and "tensor parallel size 3" in printed and "block size 8" in printed
    written = json.loads((tmp_path / "out.json").read_text())["setting"]
    assert {name: written[name] for name in OPTIONS} == OPTIONS
    setting = Setting(**OPTIONS)
    assert asdict(setting) == written
    config, cost = setting.scheduler_config(), setting.cost_model()
    assert (cost.hardware, cost.model) == (hardware_card("cpu"), model_card("tiny"))
    for where in (config, cost):
        for name in OPTIONS.keys() & vars(where).keys() - {"hardware", "model"}:
            assert getattr(where, name) == OPTIONS[name], name
    assert cost.num_devices == 6 and config.num_blocks == 40
    assert config.num_host_blocks == 2**29 // (8 * cost.model.kv_bytes_per_token)


def test_the_same_words_give_the_same_numbers_and_another_seed_gives_others(simulate, tmp_path):
    results = []
    for seed in (3, 3, 4):
        workload = ("--workload", "alpaca", "--rate", 50, "--seed", seed)
        assert simulate(*SMALL, *workload, "--json", "out.json")[0] == 0
        data = json.loads((tmp_path / "out.json").read_text())
        assert data.pop("real_seconds") > 0
        results.append(data)
    assert results[0] == results[1] != results[2]


def test_the_trace_is_the_run_that_the_numbers_are_of(simulate, tmp_path):
    code, printed, _ = simulate(
        *SMALL, "--trace", "run.jsonl", "--json", "out.json", "--num-gpu-blocks-override", 4
    )
    assert code == 0 and "minivllm dashboard run.jsonl" in printed
    trace = read_trace(tmp_path / "run.jsonl")
    assert trace.warnings == [] and trace.header.clock == "virtual" and trace.header.num_blocks == 4
    assert trace.header.model == model_card("tiny").shape()
    assert trace.header.hardware == hardware_card("cpu").shape()
    timeline, counts = make_timeline(trace), json.loads((tmp_path / "out.json").read_text())["counts"]
    assert timeline.num_steps == counts["num_steps"]
    assert sum(len(record.sampled) for record in timeline.records) == counts["output_tokens"] == 30
    assert timeline.records[-1].end == pytest.approx(counts["last_finish"], abs=1e-5)


def test_a_trace_ends_after_as_many_steps_as_were_asked_for(simulate, tmp_path):
    assert simulate(*SMALL, "--trace", "run.jsonl", "--trace-steps", 3)[0] == 0
    assert read_trace(tmp_path / "run.jsonl").num_steps == 3


def test_cards_and_requests_of_ones_own_are_used_and_who_cannot_fit_is_counted(simulate, tmp_path):
    slow = asdict(hardware_card("cpu")) | {"step_overhead_seconds": 2.0}
    (tmp_path / "slow.json").write_text(json.dumps(slow))
    (tmp_path / "short.json").write_text(json.dumps(asdict(model_card("tiny")) | {"max_position": 100}))
    lines = [{"arrival_seconds": 0, "prompt_tokens": count, "output_tokens": 5} for count in (8, 60, 12)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    code, printed, errors = simulate(
        *("--hardware", "slow.json", "--model", "short.json", "--workload", "mine.jsonl"),
        *("--num-gpu-blocks-override", 2, "--json", "out.json"),
    )
    assert (code, errors) == (0, "")
    assert "hardware slow.json" in printed and "model short.json" in printed
    assert "2 of 3 served, 1 refused: they could never fit" in printed
    latencies = json.loads((tmp_path / "out.json").read_text())["latencies_seconds"]
    assert 2 < latencies["inter_token"]["p50"] < 2.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--hardware", "abacus"), "hardware must be one of a100-40gb, a100-80gb, h100, h200, l4, cpu, or a"),
        (("--hardware", "none.json"), "hardware card 'none.json' cannot be read: No such file"),
        (("--hardware", "broken.json"), "hardware card 'broken.json' is not JSON"),
        (
            ("--hardware", "negative.json"),
            "negative.json: peak_flops must be a finite number above 0, got -1",
        ),
        (("--model", "llama-1"), "model must be one of opt-13b, opt-66b"),
        (("--model", "m" * 300), "model must be one of opt-13b, opt-66b"),
        (("--model", "empty"), "config.json: no such file; a model folder needs a config.json"),
        (("--model", "opt-175b"), "OPT-175B does not fit: 349.2 GB of weights"),
        (("--workload", "poetry"), "workload 'poetry': there are sharegpt, alpaca"),
        (("--requests", 0), "num_requests must be an integer of at least 1, got 0"),
        (("--rate", "nan"), "rate must be a finite number above 0, got nan"),
        (("--users", 0), "num_users must be an integer of at least 1, got 0"),
        (("--replicas", 0), "replicas must be an integer of at least 1, got 0"),
        (("--router", "magic"), "router must be one of 'round-robin'"),
        (("--tensor-parallel-size", 7), "tensor_parallel_size must divide the 6 heads"),
        (("--pipeline-parallel-size", 6), "pipeline_parallel_size must be at most the 5 layers"),
        (("--scheduling-policy", "lottery"), "scheduling_policy must be one of 'fcfs'"),
        (("--max-num-seqs", 0), "max_num_seqs must be an integer of at least 1, got 0"),
        (("--max-model-len", 4096), "max_model_len must be an integer of at least 1 and at most 2048"),
        (("--block-size", 0), "block_size must be an integer of at least 1, got 0"),
        (("--gpu-memory-utilization", 1.5), "gpu_memory_utilization must be a finite number above 0 and"),
        (("--allocator", "heap"), "allocator must be one of 'paged'"),
        (("--prefix-cache", "lru"), "prefix_cache must be one of 'hash', 'radix', got 'lru'"),
        (("--swap-space", -1), "swap_space must be a finite number of at least 0"),
        (("--swap-space", "1e300"), "swap_space must be a finite number of at least 0 and at most 1"),
        (("--preemption-mode", "swap"), "preemption_mode is 'swap', but there is no swap space"),
        (("--decode-weight-dtype", "float32"), "decode_weight_dtype must be one of 'bfloat16', 'float16',"),
        (("--trace-steps", 0), "trace_steps must be an integer of at least 1, got 0"),
        (("--trace", "empty"), "trace: cannot write to empty: Is a directory"),
        (
            ("--json", "no/such/out.json"),
            "json must be a file in a folder that exists, got 'no/such/out.json'",
        ),
        (("--json", "empty"), "json must be a file in a folder that exists, got 'empty'"),
        (("--num-gpu-blocks-override", 1), "no request of the workload 'fixed:20,5' can ever be served: the"),
        (("--requests", "many"), "Invalid value for '--requests'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(simulate, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.json").write_text("{")
    negative = asdict(hardware_card("cpu")) | {"peak_flops": -1}
    (tmp_path / "negative.json").write_text(json.dumps(negative))
    code, _, errors = simulate(*SMALL, *arguments)
    assert code == 2
    assert message in errors and "Traceback" not in errors


def test_a_result_that_cannot_be_written_is_one_sentence_and_exit_code_1(simulate):
    code, _, errors = simulate(*SMALL, "--json", "n" * 300)
    assert code == 1 and "json: cannot write to" in errors and "Traceback" not in errors


def test_in_a_process_of_its_own_it_is_the_same(tmp_path):
    command = [sys.executable, "-m", "minivllm.console.cli", "simulate", *map(str, SMALL)]
    options = dict(capture_output=True, text=True, timeout=patience.SECONDS, cwd=tmp_path, check=False)
    good = subprocess.run(command, **options)
    assert good.returncode == 0 and "6 of 6 served" in good.stdout
    bad = subprocess.run([*command, "--rate", "-1"], **options)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "error: rate must be a finite number above 0, got -1.0\n"
