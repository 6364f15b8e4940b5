"""Structured output in the engine: every output parses, and says the same in any company and any memory."""

import re
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm import LLM, StructuredOutputsParams
from minivllm.decoding.sampler import Sampler
from minivllm.decoding.structured import pushdown
from minivllm.engine.speculation import Speculation
from minivllm.sampling_params import SamplingParams
from minivllm.trace.events import RequestQueued, RequestRefused, TokensAllowed, TokensSampled
from minivllm.trace.reader import make_trace
from minivllm.trace.recorder import Recorder
from minivllm.trace.timeline import make_timeline
from tests.engine.ascii_tokenizer import AsciiTokenizer
from tests.engine.fakes import VOCAB_SIZE, FakeExecutor, make_engine
from tests.engine.guesses import Guesser
from tests.engine.test_interrupts import Interrupt
from tests.engine.test_sharing import EOS, follow, limits, play

torch = pytest.importorskip("torch")

PATTERNS = [r"[ab]+\d{2}", r"(yes|no|yesterday)", r"\{\"a\": -?[1-9]\d*\}", r"([a-f]{3},)*end", r"[^a-z]*"]


class Rows(FakeExecutor):
    """The fake executor, whose logits are a tensor."""

    def execute(self, plan):
        return torch.from_numpy(super().execute(plan))


def make(**settings):
    engine = make_engine(eos_token_ids=EOS, **settings)
    config = engine.config
    engine.executor = Rows(config.num_blocks, config.block_size, config.num_host_blocks)
    engine.sampler = Sampler(VOCAB_SIZE)
    engine.tokenizer = AsciiTokenizer()
    return engine


def run(prompt, params, **settings):
    """The outputs of one request, alone."""
    engine = make(num_blocks=200, **settings)
    engine.add_request("it", prompt, params)
    while engine.has_unfinished_requests():
        for output in engine.step():
            last = output
    return last.outputs


def structured(pattern, **more):
    return SamplingParams(structured_outputs=StructuredOutputsParams(regex=pattern), **more)


samplings = st.builds(
    lambda pattern, seed, count, **more: SamplingParams(
        structured_outputs=pattern and StructuredOutputsParams(regex=pattern),
        seed=seed,
        max_tokens=count,
        **more,
    ),
    st.sampled_from([None, *PATTERNS]),
    st.integers(0, 99),
    st.integers(1, 14),
    n=st.integers(1, 3),
    temperature=st.sampled_from([0, 1]),
    min_tokens=st.sampled_from([0, 1]),
    ignore_eos=st.booleans(),
    logprobs=st.sampled_from([None, 2]),
    presence_penalty=st.sampled_from([0, 1.5]),
    repetition_penalty=st.sampled_from([1, 1.3]),
    top_k=st.sampled_from([0, 5]),
    top_p=st.sampled_from([1, 0.8]),
    logit_bias=st.sampled_from([None, {6: 50.0, 30: -100.0}]),
    stop_token_ids=st.sampled_from([None, [7, 40]]),
    bad_words=st.none(),
)
searches = st.builds(
    lambda pattern, count, n, more: SamplingParams(
        use_beam_search=True,
        temperature=0,
        structured_outputs=StructuredOutputsParams(regex=pattern),
        max_tokens=count,
        n=n,
        best_of=n + more,
    ),
    st.sampled_from(PATTERNS),
    st.integers(1, 10),
    st.integers(1, 2),
    st.integers(0, 2),
)
prompts = st.lists(st.integers(0, 3), min_size=1, max_size=9)
requests = st.lists(st.tuples(prompts, samplings | searches), min_size=1, max_size=4)


@settings(max_examples=max(20, settings().max_examples // 2))
@given(work=requests, data=st.data())
def test_every_output_matches_in_any_company_and_any_memory(work, data):
    recorder = Recorder()
    engine = make(recorder=recorder, **data.draw(limits(work)))
    compare = follow(recorder, engine)
    done = play(engine, work, after_step=lambda: (engine.check_invariants(), compare()))
    for number, (prompt, params) in enumerate(work):
        alone = run(prompt, params)
        assert done[str(number)] == [list(output.token_ids) for output in alone]
        asked = params.structured_outputs
        for output in alone:
            if asked and output.finish_reason == "stop" and not isinstance(output.stop_reason, int):
                assert re.fullmatch(asked.regex, output.text, re.ASCII), output
            if asked and output.finish_reason != "stop":
                assert output.finish_reason == "length" and len(output.token_ids) == params.max_tokens


class Knowing(Guesser):
    """Guesses what is said without drafts, as often as `accuracy` says, and else anything."""

    def __init__(self, seed, accuracy, is_late, said):
        super().__init__(seed, accuracy, is_late)
        self.said = said

    def guesses(self, tokens, count):
        end = len(tokens) + count
        right = next((said for said in self.said if said[: len(tokens)] == [*tokens]), [])[len(tokens) : end]
        right += [0] * (count - len(right))
        others = [self.random.randrange(VOCAB_SIZE) for _ in right]
        return array(
            "i",
            [a if self.random.random() < self.accuracy else b for a, b in zip(right, others, strict=True)],
        )


@settings(max_examples=max(20, settings().max_examples // 3))
@given(
    work=st.lists(st.tuples(prompts, samplings), min_size=1, max_size=3),
    data=st.data(),
    seed=st.integers(0, 99),
    count=st.integers(1, 5),
    accuracy=st.sampled_from([0.0, 0.7, 1.0]),
    is_late=st.booleans(),
)
def test_drafts_change_no_token(work, data, seed, count, accuracy, is_late):
    alone = [[list(output.token_ids) for output in run(prompt, params)] for prompt, params in work]
    said = [
        [*prompt, *tokens] for (prompt, _), outputs in zip(work, alone, strict=True) for tokens in outputs
    ]
    speculation = Speculation(Knowing(seed, accuracy, is_late, said), count)
    engine = make(speculation=speculation, **data.draw(limits(work)))
    done = play(engine, work, after_step=engine.check_invariants)
    assert done == {str(number): outputs for number, outputs in enumerate(alone)}
    assert engine.cache.num_free_blocks == engine.config.num_blocks


@settings(max_examples=max(10, settings().max_examples // 3))
@given(
    prompt=prompts,
    params=samplings.filter(lambda params: params.structured_outputs) | searches,
    at=st.integers(1, 3000),
)
def test_an_interrupt_anywhere_changes_no_token(prompt, params, at):
    engine = make(num_blocks=100)
    engine.add_request("it", prompt, params)
    last = None
    for _ in range(40):
        with Interrupt(at):
            for output in engine.step():
                last = output
        at = 0
        if not engine.has_unfinished_requests():
            break
    else:
        raise AssertionError("it never ends")
    expected = [list(output.token_ids) for output in run(prompt, params)]
    assert last is not None and [list(output.token_ids) for output in last.outputs] == expected


@pytest.mark.parametrize(
    "more", [{}, {"ignore_eos": True}, {"min_tokens": 12}, {"temperature": 1, "seed": 5}]
)
def test_an_output_is_over_when_nothing_can_come(more):
    (output,) = run([1, 2], structured(r"\d{4}-\d{2}", **{"temperature": 0, "max_tokens": 30, **more}))
    assert re.fullmatch(r"\d{4}-\d{2}", output.text)
    assert (output.finish_reason, output.stop_reason) == ("stop", None)
    assert not set(output.token_ids) & set(EOS), "no ending is computed where nothing else can come"


def test_one_that_may_go_on_ends_by_an_ending_alone():
    for seed in range(8):
        (output,) = run([3, seed % 3], structured("[ab]*", seed=seed, max_tokens=12))
        *text, last = output.token_ids
        assert not set(text) & set(EOS)
        assert (last in EOS) == (output.finish_reason == "stop")
        (output,) = run([3, seed % 3], structured("[ab]*", seed=seed, max_tokens=12, ignore_eos=True))
        assert len(output.token_ids) == 12 and set(output.text) <= {"a", "b"}


def test_what_leaves_nothing_ends_its_own_request_with_a_sentence(monkeypatch):
    engine = make()
    engine.add_request("well", [1, 2], structured("[ab]{4}", temperature=0))
    engine.add_request("ill", [1, 2], structured("[ab]{4}", temperature=0, allowed_token_ids=[60]))
    monkeypatch.setattr(pushdown, "MOST_BRANCHES", 8)
    rules = "\n".join(f'r{index} ::= "{chr(97 + index)}"' for index in range(12))
    grammar = f'root ::= "a" ({" | ".join(f"r{index}" for index in range(12))})\n{rules}'
    wild = StructuredOutputsParams(grammar=grammar)
    engine.add_request("wild", [1, 2], SamplingParams(structured_outputs=wild, temperature=0))
    done = {}
    while engine.has_unfinished_requests():
        done |= {output.request_id: output.outputs[0] for output in engine.step() if output.finished}
    assert done["well"].finish_reason == "stop" and len(done["well"].text) == 4
    assert done["ill"].finish_reason == done["wild"].finish_reason == "error"
    assert "its own structured_outputs, allowed_token_ids" in done["ill"].stop_reason
    assert (
        "its structured output cannot go on: the text can be read in too many ways"
        in done["wild"].stop_reason
    )


def test_stop_strings_still_cut():
    (output,) = run([1], structured("(abba|baab)+", temperature=0, max_tokens=20, stop=["a"]))
    assert output.finish_reason == "stop" and output.stop_reason == "a" and "a" not in output.text


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        (dict(json={"not": {}}), r"structured_outputs \(json\): json, at #: the keyword 'not'"),
        (dict(regex="(?=a)"), r"structured_outputs \(regex\): regex has a lookahead"),
        (dict(choice=["é"]), "this model's tokens can spell"),
        (dict(grammar="start: x"), "must be GBNF"),
    ],
)
def test_what_cannot_be_followed_is_refused_and_the_trace_says_so(asked, problem):
    recorder = Recorder()
    engine = make(recorder=recorder)
    params = SamplingParams(structured_outputs=StructuredOutputsParams(**asked))
    with pytest.raises(ValueError, match=problem):
        engine.add_request("it", [1], params)
    assert isinstance(recorder.events[-1], RequestRefused) and not engine.has_unfinished_requests()


def test_without_a_tokenizer_it_is_refused():
    engine = make_engine()
    with pytest.raises(ValueError, match="structured_outputs needs a tokenizer"):
        engine.add_request("it", [1], structured("a"))


def test_the_trace_tells_what_each_token_was_chosen_from():
    recorder = Recorder()
    engine = make(recorder=recorder)
    params = structured("(yes|no)x*", n=2, seed=1, max_tokens=5)
    engine.add_request("it", [1, 2], params)
    engine.add_request("free", [1], SamplingParams(max_tokens=3, ignore_eos=True))
    while engine.has_unfinished_requests():
        engine.step()
    (queued, _) = (event for event in recorder.events if isinstance(event, RequestQueued))
    assert queued.structure == "regex (yes|no)x*"
    pairs = [
        (before, after)
        for before, after in zip(recorder.events, recorder.events[1:], strict=False)
        if isinstance(before, TokensAllowed)
    ]
    assert pairs and all(isinstance(after, TokensSampled) for _, after in pairs)
    for before, after in pairs:
        sampled = {seq: token for seq, token, _ in after.items}
        for item in before.items:
            told = {token: is_allowed for token, _, _, is_allowed in item.candidates}
            assert told[sampled[item.seq]], "the chosen token is among them, and allowed"
            assert sum(told.values()) <= item.num_allowed and 8 <= len(told) <= 9
    timeline = make_timeline(make_trace(recorder.events[0], recorder.events[1:]))
    assert sum(len(record.allowed) for record in timeline.records) == sum(
        len(before.items) for before, _ in pairs
    )
    first = pairs[0][0].items[0]
    assert first.num_allowed == 2, "y or n"


words = st.lists(st.text("cde", min_size=1, max_size=4), min_size=1, max_size=6, unique=True).filter(
    lambda texts: not any(one != other and other.startswith(one) for one in texts for other in texts)
)


@settings(max_examples=max(10, settings().max_examples // 3))
@given(prompt=prompts, texts=words, count=st.integers(1, 6))
def test_a_search_that_is_wide_enough_finds_the_likeliest_of_all_texts(prompt, texts, count):
    def likely(text):
        only = StructuredOutputsParams(choice=[text])
        (output,) = run(prompt, SamplingParams(structured_outputs=only, temperature=0, logprobs=0))
        return output.cumulative_logprob / len(output.token_ids)

    wanted = SamplingParams(
        structured_outputs=StructuredOutputsParams(choice=texts),
        use_beam_search=True,
        temperature=0,
        n=count,
        best_of=30,
    )
    found = run(prompt, wanted)
    best = sorted(map(likely, texts), reverse=True)[:count]
    assert [output.score for output in found] == pytest.approx(best, abs=1e-4)
    assert [likely(output.text) for output in found] == pytest.approx(best, abs=1e-4)
    assert all((output.finish_reason, output.stop_reason) == ("stop", None) for output in found)


def test_a_narrow_search_goes_on_behind_the_many_that_are_complete():
    """Short texts may be likelier than the beginning of a long one, which is followed all the same."""
    texts = StructuredOutputsParams(choice=[*"abcdfghijklmnopqrstuvwxyz", "efghij"])
    params = SamplingParams(
        structured_outputs=texts,
        use_beam_search=True,
        temperature=0,
        best_of=2,
        n=2,
        length_penalty=9,
        early_stopping="never",
    )
    for prompt in range(8):
        assert "efghij" in {output.text for output in run([prompt], params)}


TAGS = {
    "type": "triggered_tags",
    "triggers": ["("],
    "tags": [
        {"begin": "(a", "content": {"type": "regex", "pattern": "[ab]{1,3}"}, "end": ")"},
        {"begin": "(b", "content": {"type": "any_text", "excludes": ["z"]}, "end": ")"},
    ],
}
IN_TAGS = r"[^(]*(\((a[ab]{1,3}|b[^)z]*)\)[^(]*)*(\((a[ab]{0,3}|b[^)z]*)?)?"
"""Texts with such tags, the last of which may be cut off."""
tagged = st.builds(
    lambda seed, count, best_of, is_search: SamplingParams(
        structured_outputs=StructuredOutputsParams(structural_tag={"format": TAGS}),
        seed=None if is_search else seed,
        max_tokens=count,
        temperature=0 if is_search else 1,
        use_beam_search=is_search,
        best_of=best_of,
        logit_bias=None if is_search else {AsciiTokenizer().texts.index("("): 8.0},
    ),
    st.integers(0, 99), st.integers(1, 14), st.integers(1, 3), st.booleans(),
)  # fmt: skip


@settings(max_examples=max(10, settings().max_examples // 8))
@given(work=st.lists(st.tuples(prompts, tagged | samplings), min_size=1, max_size=4), data=st.data())
def test_text_with_tags_goes_with_everything_else(work, data):
    recorder = Recorder()
    engine = make(recorder=recorder, **data.draw(limits(work)))
    compare = follow(recorder, engine)
    done = play(engine, work, after_step=lambda: (engine.check_invariants(), compare()))
    for number, (prompt, params) in enumerate(work):
        alone = run(prompt, params)
        assert done[str(number)] == [list(output.token_ids) for output in alone]
        if params.structured_outputs and params.structured_outputs.structural_tag:
            assert all(re.fullmatch(IN_TAGS, output.text, re.DOTALL) for output in alone)


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"disable_any_whitespace": "no"}, "disable_any_whitespace must be"),
        ({}, "exactly one of json, regex, choice, grammar, json_object, structural_tag, got none"),
        (dict(regex="a", choice=["b"]), "got regex and choice"),
        (dict(json_object=False), "got none"),
        (dict(json="{"), "its text is no JSON"),
        (dict(json="3"), "that is an object"),
        (dict(json=[1]), "must be a JSON schema"),
        (dict(json={"a": {1, 2}}), "JSON cannot express it"),
        (dict(json={"minimum": float("nan")}), "json must be a JSON schema, but JSON cannot express it"),
        (dict(json='{"minimum": NaN}'), "its text is no JSON: NaN is no number of JSON"),
        (dict(json='{"minimum": %s}' % ("9" * 5000)), "its text is no JSON"),
        (dict(choice=[]), "at least one text"),
        (dict(choice="ab"), "choice must be a list"),
        (dict(choice=["a", 1]), r"choice\[1\]"),
        (dict(regex=1), "regex must be a string"),
        (dict(structural_tag="x"), "structural_tag must be JSON"),
        (dict(structural_tag={"format": float("inf")}), "structural_tag must be JSON, but JSON cannot"),
        (dict(structural_tag='{"format": Infinity}'), "Infinity is no number of JSON"),
        (dict(structural_tag={"type": "tag"}), "with a format, or with structures and triggers"),
        (dict(regex="a", whitespace_pattern=" "), "belongs to json"),
        (dict(regex="a" * (1 << 21)), "at most"),
    ],
)
def test_parameters_of_another_form_are_refused_by_name(asked, problem):
    with pytest.raises(ValueError, match=problem):
        StructuredOutputsParams(**asked)
    with pytest.raises(TypeError, match="has no argument 'guided'"):
        StructuredOutputsParams(guided=1)
    with pytest.raises(ValueError, match="must be a StructuredOutputsParams"):
        SamplingParams(structured_outputs={"regex": "a"})


def test_with_the_shipped_model_every_output_parses():
    import json

    from minivllm.model.tiny import MODEL_PATH

    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "size": {"type": "integer", "maximum": 99},
        },
        "required": ["name"],
    }
    asked = [dict(json=schema), dict(choice=["yes", "no"]), dict(regex=r"\d{3}")]
    with LLM(MODEL_PATH, enforce_eager=True, attention_backend="torch") as llm:
        params = [
            SamplingParams(max_tokens=64, seed=1, structured_outputs=StructuredOutputsParams(**one))
            for one in asked
        ]
        made, choice, digits = (
            output.outputs[0] for output in llm.generate(["Paging"] * 3, params, use_tqdm=False)
        )
    assert set(json.loads(made.text)) <= {"name", "size"} and "name" in json.loads(made.text)
    assert choice.text in ("yes", "no") and re.fullmatch(r"\d{3}", digits.text)
