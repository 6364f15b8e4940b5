"""`torchrun` starts the ranks of one program, on two machines where that can be, with a link that drops.

The machines are network namespaces. Who may not make them, or has no `ip`, has both ranks on one.
"""

import os
import subprocess
import sys

import pytest

from minivllm import LLM, SamplingParams
from minivllm.model.tiny import MODEL_PATH
from minivllm.processes import python_variables
from tests import patience

PROMPT = "Once upon a time"
ADDRESSES = "10.213.77.1", "10.213.77.2"
TORCHRUN = sys.executable, "-m", "torch.distributed.run"
# Without `if __name__ == "__main__"`.
PROGRAM = f"""
import os, sys, time
from minivllm import LLM, SamplingParams
from minivllm.executor.executor import ExecutorDeadError
settings = dict(num_gpu_blocks_override=64, attention_backend="torch", distributed_timeout_seconds=10)
llm = LLM({str(MODEL_PATH)!r}, tensor_parallel_size=2, **settings)
params = SamplingParams(temperature=0, max_tokens=8)
print("tokens", list(llm.generate({PROMPT!r}, params, use_tqdm=False)[0].outputs[0].token_ids), flush=True)
if len(sys.argv) == 1:
    llm.close()
    sys.exit()
while not os.path.exists(sys.argv[1]):
    time.sleep(0.05)
try:
    llm.generate({PROMPT!r}, params, use_tqdm=False)
except ExecutorDeadError as error:
    sys.exit(f"it ended: {{error}}")
"""


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=patience.SECONDS)


@pytest.fixture(scope="module")
def machines():
    """The names of two, with a link; None, and why, if there can be none."""
    names = [f"minivllm-{os.getpid()}-{number}" for number in range(2)]
    made = []
    try:
        try:
            for name in names:
                ip("netns", "add", name)
                made.append(name)
            ip("link", "add", "link0", "netns", names[0], "type", "veth", "peer", "link0", "netns", names[1])
            for name, address in zip(names, ADDRESSES, strict=True):
                ip("-n", name, "address", "add", f"{address}/24", "dev", "link0")
                for device in ("lo", "link0"):
                    ip("-n", name, "link", "set", device, "up")
        except FileNotFoundError:
            yield None, "there is no `ip` (iproute2)"
        except subprocess.CalledProcessError as error:
            yield None, error.stderr.decode().strip()
        else:
            yield names, ""
    finally:
        for name in made:
            ip("netns", "delete", name)


@pytest.fixture(scope="module")
def expected():
    params = SamplingParams(temperature=0, max_tokens=8)
    llm = LLM(MODEL_PATH, num_gpu_blocks_override=64, attention_backend="torch")
    return f"tokens {list(llm.generate(PROMPT, params, use_tqdm=False)[0].outputs[0].token_ids)}\n"


@pytest.fixture
def program(tmp_path):
    (path := tmp_path / "program.py").write_text(PROGRAM)
    return path


def test_ranks_on_one_machine_give_the_tokens_of_one(machines, expected, program):
    if machines[0]:
        pytest.skip("the same on two machines is below")
    run = subprocess.run(
        [*TORCHRUN, "--standalone", "--nproc-per-node", "2", str(program)],
        env=python_variables(OMP_NUM_THREADS="1"), capture_output=True, text=True, timeout=patience.SECONDS,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout == expected, "rank 0 alone leaves the engine"


def test_ranks_on_two_machines_give_the_tokens_of_one_and_end_on_both_when_the_link_drops(
    machines, expected, program, tmp_path
):
    names, why_not = machines
    if not names:
        pytest.skip(f"no network namespaces: {why_not}")
    dropped, runs = tmp_path / "dropped", []
    for number, machine in enumerate(names):
        command = [
            *("ip", "netns", "exec", machine, *TORCHRUN, "--nnodes", "2", "--node-rank", str(number)),
            *("--nproc-per-node", "1", "--master-addr", ADDRESSES[0], "--master-port", "29513"),
            *(str(program), str(dropped)),
        ]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        variables = python_variables(OMP_NUM_THREADS="1")
        runs.append(patience.running(command, env=variables, start_new_session=True, **pipes))
    with runs[0] as first, runs[1] as second:
        with patience.speaking(first):
            line = first.stdout.readline()
        if line != expected:
            first.kill()
            pytest.fail(f"{line!r}: {first.stderr.read()[-2000:]}")
        ip("-n", names[1], "link", "set", "link0", "down")
        dropped.touch()
        words = [process.communicate(timeout=patience.SECONDS)[1] for process in (first, second)]
        assert first.returncode and second.returncode
    assert "it ended: rank 1 has given no sign of life for 10 seconds" in words[0]
    assert "rank 1: rank 0 has given no sign of life for 10 seconds" in words[1]
    for machine in names:
        left = subprocess.run(["ip", "netns", "pids", machine], capture_output=True, timeout=patience.SECONDS)
        assert not left.stdout
