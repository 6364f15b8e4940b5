"""Two machines, each with an address of its own, and a link between them that drops.

The machines are network namespaces; who may not make them, or has no `ip`, does without this test.
"""

import os
import shutil
import subprocess
import sys

import pytest

from minivllm import LLM, SamplingParams
from minivllm.model.tiny import MODEL_PATH
from minivllm.processes import python_variables
from tests import patience

PROMPT = "Once upon a time"
ADDRESSES = "10.213.77.1", "10.213.77.2"
PROGRAM = f"""
import os, sys, time
from minivllm import LLM, SamplingParams
from minivllm.executor.executor import ExecutorDeadError
settings = dict(num_gpu_blocks_override=64, attention_backend="torch", distributed_timeout_seconds=10)
llm = LLM({str(MODEL_PATH)!r}, tensor_parallel_size=2, **settings)
params = SamplingParams(temperature=0, max_tokens=8)
print("tokens", list(llm.generate({PROMPT!r}, params, use_tqdm=False)[0].outputs[0].token_ids), flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.05)
try:
    llm.generate({PROMPT!r}, params, use_tqdm=False)
except ExecutorDeadError as error:
    sys.exit(f"it ended: {{error}}")
"""


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=60)


@pytest.fixture
def machines():
    if shutil.which("ip") is None:
        pytest.skip("no machines without `ip` (iproute2)")
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
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no machines without the right to make them: {error.stderr.decode().strip()}")
        yield names
    finally:
        for name in made:
            ip("netns", "delete", name)


def test_ranks_on_two_machines_give_the_tokens_of_one_and_end_on_both_when_the_link_drops(machines, tmp_path):
    program, dropped = tmp_path / "program.py", tmp_path / "dropped"
    program.write_text(PROGRAM)
    outputs = LLM(MODEL_PATH, num_gpu_blocks_override=64, attention_backend="torch").generate(
        PROMPT, SamplingParams(temperature=0, max_tokens=8), use_tqdm=False
    )
    runs = []
    for number, machine in enumerate(machines):
        command = [
            *("ip", "netns", "exec", machine, sys.executable, "-m", "torch.distributed.run"),
            *("--nnodes", "2", "--node-rank", str(number), "--nproc-per-node", "1"),
            *("--master-addr", ADDRESSES[0], "--master-port", "29513", str(program), str(dropped)),
        ]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        variables = python_variables(OMP_NUM_THREADS="1")
        runs.append(patience.running(command, env=variables, start_new_session=True, **pipes))
    with runs[0] as first, runs[1] as second:
        with patience.speaking(first):
            line = first.stdout.readline()
        if line != f"tokens {list(outputs[0].outputs[0].token_ids)}\n":
            first.kill()
            pytest.fail(f"{line!r}: {first.stderr.read()[-2000:]}")
        ip("-n", machines[1], "link", "set", "link0", "down")
        dropped.touch()
        words = [process.communicate(timeout=patience.SECONDS)[1] for process in (first, second)]
        assert first.returncode and second.returncode
    assert "it ended: rank 1 has given no sign of life for 10 seconds" in words[0]
    assert "rank 1: rank 0 has given no sign of life for 10 seconds" in words[1]
    for machine in machines:
        left = subprocess.run(["ip", "netns", "pids", machine], capture_output=True, timeout=60)
        assert not left.stdout
