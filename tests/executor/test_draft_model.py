"""A draft model that is the target itself: every draft is right, unless one of its keys or values is not.

In float64, so that a near tie can never be blamed. The model has two layers and random weights.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.config import SchedulerConfig
from minivllm.decoding.sampler import Sampler
from minivllm.engine.engine import Engine
from minivllm.engine.engine_args import EngineArgs
from minivllm.engine.speculation import Speculation
from minivllm.executor.attention.torch_backend import TorchAttention
from minivllm.executor.draft_model import DraftModel, check_draft_model
from minivllm.executor.kv_storage import KVStorage
from minivllm.executor.torch_executor import TorchExecutor
from minivllm.model.config import ModelConfig
from minivllm.model.decoder import Decoder
from minivllm.model.hub import ModelNotFoundError
from minivllm.model.tiny import DRAFT_MODEL_PATH, MODEL_PATH
from minivllm.sampling_params import SamplingParams
from minivllm.trace.engine_counts import EngineCounts
from minivllm.trace.events import BlocksSwappedIn
from minivllm.trace.recorder import Recorder
from tests.engine.test_sharing import limits as limits_of

CPU = torch.device("cpu")
CONFIG = ModelConfig.from_folder(DRAFT_MODEL_PATH)


def random_decoder(seed):
    torch.manual_seed(seed)
    decoder = Decoder(CONFIG, torch.float64, CPU, tied=True)
    for name, tensor in decoder.views():
        torch.nn.init.normal_(tensor, 1.0 if "norm" in name else 0.0, 0.3)
    return decoder


TARGET, OTHER = random_decoder(1), random_decoder(2)


def make_engine(
    draft=None,
    block_size=4,
    num_blocks=64,
    num_host_blocks=0,
    num_tokens=3,
    sinks=(),
    async_scheduling=False,
    **limits,
):
    kind = block_size, torch.float64, CPU

    def storage(count):
        return KVStorage(CONFIG, count, *kind) if count else None

    executor = TorchExecutor(TARGET, storage(num_blocks), host_storage=storage(num_host_blocks))
    speculation = None
    if draft:
        model = DraftModel(draft, storage(num_blocks), TorchAttention, storage(num_host_blocks))
        speculation = Speculation(model, num_tokens)
    return Engine(
        SchedulerConfig(num_blocks, block_size, num_host_blocks=num_host_blocks, **limits),
        executor,
        Sampler(CONFIG.vocab_size),
        vocab_size=CONFIG.vocab_size,
        speculation=speculation,
        sinks=sinks,
        async_scheduling=async_scheduling,
    )


def play(engine, work):
    for number, (prompt, params) in enumerate(work):
        engine.add_request(str(number), prompt, params)
    done = {}
    while engine.has_unfinished_requests():
        done |= {output.request_id: output for output in engine.step()}
        engine.check_invariants()
    return {name: [list(item.token_ids) for item in output.outputs] for name, output in done.items()}


def greedy(count, n=1, **more):
    return SamplingParams(temperature=0, max_tokens=count, n=n, **more)


prompts = st.lists(st.integers(3, 5), min_size=1, max_size=14)
params = st.builds(greedy, st.integers(4, 14), n=st.sampled_from([1, 1, 2, 3]))
requests = st.lists(st.tuples(prompts, params), min_size=2, max_size=5)


@settings(max_examples=settings.default.max_examples // 2)
@given(work=requests, data=st.data(), num_tokens=st.integers(1, 4))
def test_a_model_guesses_itself_right_whatever_becomes_of_its_blocks(work, data, num_tokens):
    limits = data.draw(limits_of(work))
    counts = EngineCounts()
    drafted = play(make_engine(TARGET, num_tokens=num_tokens, sinks=[counts], **limits), work)
    assert drafted == play(make_engine(**limits), work)
    told = counts.counters
    assert told["spec_decode_num_accepted_tokens"] == told["spec_decode_num_draft_tokens"]


@settings(max_examples=settings.default.max_examples // 3)
@given(work=requests, data=st.data())
def test_a_model_that_guesses_wrong_changes_nothing(work, data):
    limits = data.draw(limits_of(work))
    assert play(make_engine(OTHER, **limits), work) == play(make_engine(**limits), work)


def test_several_outputs_have_drafts_of_their_own_and_draw_the_same_again():
    work = [([3, 4, 5, 6, 7], SamplingParams(n=3, seed=5, temperature=1.5, top_k=20, max_tokens=12))]
    counts = EngineCounts()
    first, again = (play(make_engine(TARGET, sinks=[counts]), work) for _ in range(2))
    assert first == again and len({tuple(tokens) for tokens in first["0"]}) == 3
    assert counts.counters["spec_decode_num_drafts"] > 6
    told = counts.counters
    assert told["spec_decode_num_accepted_tokens"] == told["spec_decode_num_draft_tokens"], "q is p"


def test_penalties_bad_words_and_log_probabilities_see_accepted_drafts():
    params = greedy(14, repetition_penalty=1.4, frequency_penalty=0.3, logprobs=2, min_tokens=9)
    plain, drafted = make_engine(), make_engine(TARGET)
    outputs = []
    for engine in (plain, drafted):
        engine.add_request("a", [3, 4, 5], params)
        while engine.has_unfinished_requests():
            (output,) = engine.step()
        outputs.append(output.outputs[0])
    assert outputs[0].token_ids == outputs[1].token_ids and drafted.num_steps < plain.num_steps
    for one, other in zip(outputs[0].logprobs, outputs[1].logprobs, strict=True):
        assert one.keys() == other.keys()
        assert all(one[token].logprob == pytest.approx(other[token].logprob) for token in one)


def test_a_draft_model_with_another_vocabulary_or_too_short_is_refused():
    config = ModelConfig.from_folder(MODEL_PATH)
    assert check_draft_model(DRAFT_MODEL_PATH, config).vocab_size == config.vocab_size
    object.__setattr__(config, "vocab_size", 4000)
    with pytest.raises(
        ValueError, match=r"\['model'\] must have the target's vocabulary of 4,000 tokens.*4,096"
    ):
        check_draft_model(DRAFT_MODEL_PATH, config)
    config = ModelConfig.from_folder(MODEL_PATH)
    object.__setattr__(config, "max_model_len", 4096)
    with pytest.raises(ValueError, match=r"\['model'\] must read texts of max_model_len \(4,096\)"):
        check_draft_model(DRAFT_MODEL_PATH, config)


def test_a_draft_model_that_is_not_there_is_not_taken_for_the_model(tmp_path):
    config = ModelConfig.from_folder(MODEL_PATH)
    with pytest.raises(ModelNotFoundError, match=r"^speculative_config\['model'\]: there is no folder"):
        check_draft_model("/nope", config)
    with pytest.raises(ModelNotFoundError, match=r"^speculative_config\['model'\]: .*is not a model folder"):
        check_draft_model(tmp_path, config)


def test_addresses_without_blocks_are_refused():
    with pytest.raises(ValueError, match="allocator must not be 'virtual_memory' where speculative_config"):
        EngineArgs(
            MODEL_PATH,
            allocator="virtual_memory",
            speculative_config={"model": DRAFT_MODEL_PATH, "num_speculative_tokens": 2},
        )


def test_blocks_that_were_swapped_out_and_back_need_no_second_reading():
    work = [([token] * 9, greedy(14)) for token in (3, 4, 5)]
    limits = {"num_blocks": 14, "watermark": 0, "num_host_blocks": 20, "preemption_mode": "swap"}
    recorder, counts = Recorder(), EngineCounts()
    drafted = play(make_engine(TARGET, sinks=[recorder, counts], **limits), work)
    assert drafted == play(make_engine(**limits), work)
    assert any(isinstance(event, BlocksSwappedIn) for event in recorder.events)
    told = counts.counters
    assert told["spec_decode_num_accepted_tokens"] == told["spec_decode_num_draft_tokens"] > 0
