"""What the reader of traces and the judge say in English, pages say in the reader's language."""

import ast
import gzip
import json
import re
from pathlib import Path

import msgspec
import pytest

import minivllm
from lessons import story
from lessons.catalogue import lessons
from minivllm.trace.events import AnyEvent
from minivllm.trace.lines import KINDS as KINDS_OF_TRACES
from minivllm.trace.reader import TraceError, read_trace
from minivllm.trace.story_events import StoryHeader, StoryStep, StoryTrace, read_story
from minivllm.validation import check_integer, check_number
from viz import judge_words
from viz.engine_words import in_words_of_the_reader
from viz.judge_words import as_judged, judged_in_words
from viz.language import _, speaking
from viz.refusal_words import refused_in_words
from viz.samples import packed_path

ROOT = Path(minivllm.__file__).parent.parent
CHINESE = re.compile("[一-鿿]")
NOT_ON_A_PAGE = {"bench_player.py"}
QUOTED = re.compile(r"(\w+|{}): {}|{}")
"""What another error says, or a server: quoted as it is."""


def sentences_of_errors():
    """Each sentence of a TraceError, with {} for what is filled in, and where it is raised."""
    for path in sorted([*ROOT.glob("minivllm/trace/*.py"), *ROOT.glob("viz/**/*.py")]):
        if path.name in NOT_ON_A_PAGE:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            raised = node.exc if isinstance(node, ast.Raise) else None
            if isinstance(raised, ast.Call) and getattr(raised.func, "id", "") == "TraceError":
                yield sentence(raised.args[0]), f"{path.name}:{node.lineno}"


def sentence(node):
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) else "{}"


def test_whatever_is_wrong_with_a_trace_is_said_in_chinese():
    found = dict(sentences_of_errors())
    assert len(found) > 20
    with speaking("zh"):
        left = [
            (where, words)
            for words, where in found.items()
            if not QUOTED.fullmatch(words)
            and not CHINESE.search(in_words_of_the_reader(words.replace("{}", "7")))
        ]
    assert not left
    with speaking("zh"):
        assert all(in_words_of_the_reader(kind) != kind for kind in KINDS_OF_TRACES.values())


def test_a_file_that_is_no_trace_is_refused_in_the_readers_language(tmp_path):
    path = tmp_path / "notes.jsonl"
    path.write_bytes(gzip.compress(b"{}"))
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert in_words_of_the_reader(str(caught.value)) == str(caught.value)
    with speaking("zh"):
        said = in_words_of_the_reader(str(caught.value))
    assert "不是一次运行的 minivllm 轨迹：它是 gzip 压缩文件" in said and "notes.jsonl" in said


def test_each_form_of_the_judge_is_known_as_itself():
    for form in judge_words.FORMS:
        names = re.findall(r"{(\w+)}", form)
        with speaking("zh"):
            wanted = _(form).format(**dict.fromkeys(names, "7"))
            assert as_judged(form.format(**dict.fromkeys(names, "7"))) == wanted, form


class Judge(ast.NodeVisitor):
    """What checks say of a story: `(line, text)`, with 7 for what is filled in.

    All texts of functions, and of lists beside them: sentences, and what is filled into them. Hints and the
    sentences of properties belong to the lesson (`lessons/language.py`), errors to the author of checks.
    """

    def __init__(self):
        self.found = []

    def visit_FunctionDef(self, node):
        for part in node.body:
            self.visit(part)

    visit_ClassDef = visit_FunctionDef

    def visit_Expr(self, node):
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.generic_visit(node)

    def visit_Raise(self, node):
        pass

    visit_Assert = visit_Compare = visit_Subscript = visit_Raise

    def visit_Assign(self, node):
        name = getattr(node.targets[0], "id", "")
        if not (name.isupper() and isinstance(node.value, ast.Constant)):  # a name for a case
            self.generic_visit(node)

    def visit_Call(self, node):
        if getattr(node.func, "id", "") == "counted" and isinstance(node.args[1], ast.Constant):
            noun = node.args[1].value
            self.found += [(node.lineno, story.counted(count, noun)) for count in (1, 7)]
            self.visit(node.args[0])
        else:
            self.generic_visit(node)

    def visit_Constant(self, node):
        if isinstance(node.value, str) and SENTENCE.search(node.value):
            self.found.append((node.lineno, whole(node.value.replace("{}", "7"))))

    def visit_JoinedStr(self, node):
        text = ""
        for part in node.values:
            if isinstance(part, ast.Constant):
                text += part.value
                continue
            self.visit(part.value)
            # Right behind a word stands more of the sentence, or nothing; behind "r" a number.
            is_more = re.search(r"[a-z)]$", text) and not re.search(r"\b[prs]$", text)
            text += "" if is_more else "7"
        if re.search("[a-z]{2}", text):
            self.found.append((node.lineno, whole(text)))


def whole(text):
    """A part that goes on after another, or before it, with that in its place."""
    text = f"7{text}" if re.match("[,;] | ", text) else text
    return f"{text}7" if text.endswith(" ") else text


SENTENCE = re.compile("[A-Za-z]{2,}[,:;]? [a-z]{2,}")
CODE = re.compile(r"`[^`]*`|\([a-z_]+(?:, [a-z_]+)*\)|7\.\w+\.jsonl")
NOT_SAID_ALONE = re.compile(
    r"7 FLOP|7 logits|7 slot|(load|reserve)\(.*\)|out\[7, 7\] = 7|7 \(head_dim \+ 1 for each query\)"
    r"|more rows|fewer rows|fork to less than none|append to a stranger"
)
"""The same in Chinese; code; parts of a word, of a form; names of cases."""


def judged_left(source, lesson):
    """What a check says that pages would not say in Chinese: `(line, text, what they would say)`."""
    judge = Judge()
    judge.visit(ast.parse(source))
    for line, text in judge.found:
        with speaking("zh"):
            said = as_judged(text, lesson)
        left = CODE.sub("", said)
        if SENTENCE.search(left) or (said == text and re.search("[a-z]{3}", left)):
            yield line, text, said


def test_whatever_the_judge_says_is_said_in_chinese():
    for lesson in lessons():
        hints = json.loads(lesson.sentences("zh").read_text(encoding="utf-8"))
        left = judged_left(lesson.checks.read_text(encoding="utf-8"), lesson.name)
        left = [one for one in left if one[1] not in hints and not NOT_SAID_ALONE.fullmatch(one[1])]
        assert not left, f"{lesson.name}: viz/judge_forms.py has no form of these"
    for name in ("playing", "judge_process", "kernels", "device_rules"):
        source = (ROOT / "lessons" / f"{name}.py").read_text(encoding="utf-8")
        assert not list(judged_left(source, "13")), name


def test_a_sentence_of_the_judge_without_chinese_is_noticed():
    source = 'def play(case, story):\n    """Words."""\n    story.step(f"{name} sings for {count} blocks")\n'
    assert [text for _, text, _ in judged_left(source, "04")] == ["7 sings for 7 blocks"]
    assert not list(judged_left('f(f"{who} waits"); f(f"{n} tokens" + ", as before the refusal")', "04"))


def test_no_form_reaches_from_one_sentence_into_the_next_nor_into_the_learners_words():
    with speaking("zh"):
        arrivals = as_judged("step 0: mia arrives (prompt: 1), ali arrives (prompt: 2)", "07")
        assert arrivals == "第 0 步：mia 到达（提示词：1），ali 到达（提示词：2）"
        told = as_judged(
            "expected cache A, position 0, to be 7, got OverflowError: 240 out of bounds for int8", "02"
        )
        assert told == "应为：缓存 A，位置 0，应为 7；得到：OverflowError: 240 out of bounds for int8"


def test_what_is_wrong_with_a_file_or_a_kernel_is_said_in_chinese():
    for words in (
        "there is no function `slot`",
        "importing it raised ValueError: 7",
        "importing it took more than 10 seconds: does a loop never end? (line 3, in f: while True: pass)",
        "the solution must be your own: it may not read the reference (line 3, in f: open(path))",
        "the judge ended before it had said all",
        "race in blocks 0 and 1 on out[3]: thread 1 reads it (line 7) and thread 2 writes it (line 9), with "
        "no barrier between them",
        "thread (3, 0, 0) of block (0, 0, 0) (warp 0, lane 3) reads tile[3], which no thread has written "
        "(line 4)",
    ):
        with speaking("zh"):
            said = as_judged(words)
        left = re.sub(r"`.*?`|while True: pass|open\(path\)", "", said)
        assert CHINESE.search(said) and not SENTENCE.search(left), said


def test_the_sample_of_a_failing_story_is_told_in_chinese(tmp_path):
    path = tmp_path / "story.jsonl"
    path.write_bytes(gzip.decompress(packed_path("story").read_bytes()))
    story = read_story(path)
    assert judged_in_words(story) == story
    with speaking("zh"):
        told = judged_in_words(story)
    for before, after in zip(story.yours + story.reference, told.yours + told.reference, strict=True):
        assert CHINESE.search(after.text) and list(after.facts.values()) == list(before.facts.values())
        assert bool(before.error) == bool(CHINESE.search(after.error))
        assert [len(row.cells) for row in after.board] == [len(row.cells) for row in before.board]


def test_what_fits_no_form_stays_as_it_is_and_no_fact_is_lost():
    odd = {"free": "1", "空闲": "2", "a fact of my own": "waits for nobody knows whom"}
    step = StoryStep("yours", "my code says: free everything, or nothing", odd)
    header = StoryHeader(1, "", "04_paging", "", "P1", "", "3 free blocks", "None", "", "", 0)
    with speaking("zh"):
        told = judged_in_words(StoryTrace(header, [step], []))
    assert told.yours[0] == step
    assert (told.header.expected, told.header.got) == ("3 个空闲块", "None")


# ── what the engine refuses, and what libraries say ──────────────────────────────────────────────────

REFUSING = (
    "validation", "config", "speculative_config", "engine/admission", "console/run_requests",
    "lab/workloads/jsonl", "lab/workloads/jsonl_line",
)  # fmt: skip
"""What the page "Run" hands settings and requests to."""
PUT_TOGETHER = ("7", "7: 7", "7 7")
TERMS = re.compile(r"(token|hub) id")
"""As Chinese engineers call them."""


def refusals(module):
    """Each sentence of a ValueError, with 7 for what is filled in, and its line."""
    for node in ast.walk(ast.parse((ROOT / "minivllm" / f"{module}.py").read_text(encoding="utf-8"))):
        raised = node.exc if isinstance(node, ast.Raise) else None
        if isinstance(raised, ast.Call) and getattr(raised.func, "id", "") == "ValueError" and raised.args:
            yield sentence_with_parts(raised.args[0]), node.lineno


def sentence_with_parts(node):
    if not isinstance(node, ast.JoinedStr):
        return sentence(node).replace("{}", "7")
    text = ""
    for part in node.values:
        if isinstance(part, ast.Constant):
            text += part.value
        elif getattr(part.value, "id", "") != "several":  # which may be nothing
            text += "7"
    return text


@pytest.mark.parametrize("module", REFUSING)
def test_what_the_engine_refuses_is_said_in_chinese(module):
    found = list(refusals(module))
    assert found
    with speaking("zh"):
        said = [(line, refused_in_words(words)) for words, line in found if words not in PUT_TOGETHER]
    left = [one for one in said if not CHINESE.search(one[1]) or SENTENCE.search(TERMS.sub("", one[1]))]
    assert left == []


def test_refusals_of_numbers_are_said_to_their_end():
    for call, words in (
        (lambda: check_integer("block_size", 0, at_least=1), "block_size 必须是不小于 1 的整数，得到的是 0"),
        (lambda: check_integer("seed", 7, at_least=0, at_most=3), "seed 必须是0 到 3 的整数，得到的是 7"),
        (
            lambda: check_number("temperature", -1, at_least=0),
            "temperature 必须是不小于 0 的有限的数，得到的是 -1",
        ),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert refused_in_words(str(caught.value)) == str(caught.value)
        with speaking("zh"):
            assert refused_in_words(str(caught.value)) == words


DAMAGED = (
    b"", b"[1]", b"{}", b"{1:2}", b'{"a":1,}', b'{"a" 1}', b'{"a":1 2}', b"[1 2]", b"[1,]", b"\xff",
    b'{"x":01}', b'{"x":"\\q"}', b'{"event":"StepStarted","step":"x"}', b'{"event":"StepStarted"}',
    b'{"event":"Nothing"}', b'{"event":"BatchPlanned","items":[[1,2]]}',
    b'{"event":"StepStarted","step":-1,"time":0}',
)  # fmt: skip


@pytest.mark.parametrize("line", DAMAGED)
def test_what_msgspec_says_of_a_damaged_line_is_said_in_chinese(line):
    try:
        msgspec.json.decode(line, type=AnyEvent)
    except msgspec.DecodeError as error:
        with speaking("zh"):
            said = in_words_of_the_reader(str(error))
        assert CHINESE.search(said) and not SENTENCE.search(CODE.sub("", said)), (str(error), said)


def test_a_damaged_trace_is_refused_in_chinese_to_the_last_word(tmp_path):
    path = tmp_path / "run.jsonl"
    whole = gzip.decompress(packed_path("paging").read_bytes()).splitlines(keepends=True)
    path.write_bytes(b"".join([*whole[:4], b'{"event":"StepStarted","step":"x"}\n', *whole[4:]]))
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    with speaking("zh"):
        said = in_words_of_the_reader(str(caught.value)).replace(str(path), "")
    assert "第 5 行不是" in said and not SENTENCE.search(CODE.sub("", said)), said
