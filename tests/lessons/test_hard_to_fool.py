"""Wrong solutions that reach for the judge instead of the solution: each gets a verdict, never "passed"."""

import json
import sys
from textwrap import indent

import pytest

from lessons import judge_process
from lessons.catalogue import find_lesson
from lessons.mutant import load_mutants
from lessons.runner import FAILED, NOT_IMPORTABLE, PASSED, check
from lessons.trial import Trial, make_trial

pytestmark = pytest.mark.usefixtures("few_stories")

LESSON = find_lesson("04")
RIGHT = LESSON.reference.read_text(encoding="utf-8")
MUTANTS = {one.name: one.source(RIGHT) for one in load_mutants(LESSON).wrong}
WRONG = MUTANTS["always_one_more"]
REFERENCE = str(LESSON.reference)

JUDGE = {
    "nothing is expected": "sys.modules['lessons.story'].Story.expect = lambda *words: None",
    "every property passes": """
verdict = sys.modules["lessons.verdict"].Verdict
sys.modules["__main__"].judge_property = lambda prop, *rest, **more: verdict(prop.number, "passed", 150)
""",
    "only harmless stories": """
import hypothesis.strategies as st
st.lists = lambda *rest, **more: st.just([])
""",
    "stories are not played": "sys.modules['lessons.playing'].play_once = lambda *rest: None",
}
WORDS = {
    "it says passed itself": """
import json, os
lines = [{"event": "loaded", "missing": [], "properties": [["P1", "a", "b"]]},
         {"event": "judged", "number": "P1", "status": "passed"}, {"event": "all passed"},
         {"event": "done", "secret": ""}]
for descriptor in range(3, 64):
    try:
        os.write(descriptor, b"".join(json.dumps(line).encode() + b"\\n" for line in lines))
    except OSError:
        pass
os._exit(0)
""",
    "it says passed before the judge does": """
import json, os
line = {"event": "judged", "number": "P1", "status": "passed"}
class Loud(type):
    def __call__(cls, *rest):
        for descriptor in range(3, 64):
            try:
                os.write(descriptor, json.dumps(line).encode() + b"\\n")
            except OSError:
                pass
        return super().__call__(*rest)
BlockPool = Loud("BlockPool", (BlockPool,), {})
""",
}
LOOKS = {
    "a frame": "frame = sys._getframe(1)",
    "the frame of an exception": """
try:
    1 / 0
except ZeroDivisionError as error:
    frame = error.__traceback__.tb_frame.f_back
""",
    "the frame of a generator": "frame = (one for one in [1]).gi_frame",
    "frames by inspect": "import inspect; frame = inspect.currentframe()",
    "frames by traceback": """
import traceback
try:
    1 / 0
except ZeroDivisionError as error:
    frames = list(traceback.walk_tb(error.__traceback__))
""",
    "frames from a text": "exec('import sys; frame = sys._getframe(1)')",
    "all objects": "import gc; objects = gc.get_objects()",
    "a debugger": "sys.settrace(lambda *rest: None)",
    "memory": "import ctypes; ctypes.CDLL(None)",
}
READS = {
    "as a text": f"TEXT = open({REFERENCE!r}).read()",
    "by bytes": f"TEXT = open({REFERENCE!r}.encode()).read()",
    "by a descriptor": f"import os; TEXT = os.read(os.open({REFERENCE!r}, 0), 10**6)",
    "by a link": "import pathlib; TEXT = pathlib.Path(__file__).with_name('link.py').read_text()",
    "by a hard link": "import pathlib; TEXT = pathlib.Path(__file__).with_name('hard.py').read_text()",
    "by a new link": f"import os; os.symlink({REFERENCE!r}, __file__ + '.link')",
    "by another process": f"import subprocess; TEXT = subprocess.check_output(['cat', {REFERENCE!r}])",
    "by a shell": f"import os; TEXT = os.popen('cat {REFERENCE}').read()",
    "from a text": f"exec({f'TEXT = open({REFERENCE!r}).read()'!r})",
    "by a thread": f"""
from concurrent.futures import ThreadPoolExecutor
TEXT = ThreadPoolExecutor(1).submit(open, {REFERENCE!r}).result().read()
""",
    "in the engine": "import importlib.util as u; TEXT = open(u.find_spec('minivllm').origin).read()",
}


def judged(tmp_path, source, shrink=False):
    path = tmp_path / "solution.py"
    path.write_text(source, encoding="utf-8")
    return check(LESSON, path, shrink=shrink, even_if_edited=True)


@pytest.mark.parametrize("what", JUDGE)
def test_a_judge_that_was_bent_is_noticed_by_what_it_says_of_another_solution(what, tmp_path):
    wrong = MUTANTS["counts_from_the_end"] if what == "nothing is expected" else WRONG
    result = judged(tmp_path, f"{wrong}\nimport sys\n{JUDGE[what]}\n")
    assert result.code == FAILED
    if what == "only harmless stories":
        assert result.failed.number == "P5", "a large story is drawn by nobody"
    else:
        assert result.tampering and not result.failed


@pytest.mark.parametrize("what", WORDS)
def test_words_that_are_not_the_judges_count_for_nothing(what, tmp_path):
    result = judged(tmp_path, f"{WRONG}\n{WORDS[what]}\n")
    assert result.code != PASSED and (result.tampering or result.problem)


@pytest.fixture(scope="module")
def came(tmp_path_factory):
    """What came of each attempt to look or to read: all are made by one solution, one after another."""
    folder = tmp_path_factory.mktemp("attempts")
    (folder / "link.py").symlink_to(LESSON.reference)
    skipped = {}
    try:
        (folder / "hard.py").hardlink_to(LESSON.reference)
    except OSError:
        skipped = {"by a hard link": (SKIPPED, "another disk: there are no hard links to it")}
    attempts = "".join(
        f"def attempt():\n{indent(code.strip(), '    ')}\nATTEMPTS[{what!r}] = attempt\n"
        for what, code in (LOOKS | READS).items()
    )
    result = judged(folder, f"import sys\nATTEMPTS = {{}}\n{attempts}{TRY_ALL}")
    assert result.code == NOT_IMPORTABLE and "all were made" in result.problem, result.problem
    return json.loads((folder / "came.json").read_text()) | skipped


SKIPPED = "skipped"
TRY_ALL = """
import json, pathlib
came = {}
for what, attempt in ATTEMPTS.items():
    try:
        came[what] = ["nothing", repr(attempt())]
    except BaseException as error:
        came[what] = [type(error).__name__, str(error)]
pathlib.Path(__file__).with_name("came.json").write_text(json.dumps(came))
raise SystemError("all were made")
"""


@pytest.mark.parametrize("what", LOOKS)
def test_the_way_up_to_the_judge_is_closed(what, came):
    error, words = came[what]
    assert error == "Refused" and "look into the judge" in words


@pytest.mark.parametrize("what", READS)
def test_the_solutions_cannot_be_read_by_any_name(what, came):
    error, words = came[what]
    if error == SKIPPED:
        pytest.skip(words)
    assert error == "Refused" and "must be your own" in words


@pytest.mark.parametrize(
    ("attempt", "words"),
    [(LOOKS["a frame"], "look into the judge"), (READS["as a text"] + "\nexec(TEXT)", "must be your own")],
)
def test_who_looks_or_reads_is_not_judged(attempt, words, tmp_path):
    result = judged(tmp_path, f"{WRONG}\nimport sys\n{attempt}\n")
    assert result.code == NOT_IMPORTABLE and words in result.problem


def test_what_is_shared_between_objects_is_told(tmp_path):
    shared = RIGHT.replace("class BlockPool:", "FREED = []\n\n\nclass BlockPool:").replace(
        "        self._held.difference_update(given)",
        "        FREED.extend(given)\n        if len(FREED) > 40:\n            return\n"
        "        self._held.difference_update(given)",
    )
    result = judged(tmp_path, shared, shrink=True)
    assert result.code == FAILED and result.failed.holds_alone
    result = judged(tmp_path, WRONG, shrink=True)
    assert result.code == FAILED and not result.failed.holds_alone


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded on Linux only")
def test_who_takes_all_memory_gets_a_verdict_and_the_machine_keeps_some(tmp_path):
    greedy = RIGHT.replace(
        "    def free_blocks(self, blocks: Iterable[int]) -> None:\n",
        "    def free_blocks(self, blocks: Iterable[int]) -> None:\n"
        "        taken = []\n        while True:\n            taken.append(bytes(2**24))\n",
    )
    assert greedy != RIGHT
    result = judged(tmp_path, greedy)
    assert result.code == FAILED and "MemoryError" in str(result.failed), result


def test_a_right_solution_passes_the_trial_whatever_python_of_its_own_it_uses(tmp_path):
    own = """
import collections, dataclasses, enum, functools, traceback, typing, warnings
Point = collections.namedtuple("Point", "x y")
Colour = enum.Enum("Colour", "RED BLUE")
@dataclasses.dataclass
class Block:
    number: int = 0
warnings.warn("mine")
try:
    1 / 0
except ZeroDivisionError:
    traceback.format_exc()
"""
    result = judged(tmp_path, f"{RIGHT}\n{own}")
    assert result.code == PASSED and not result.tampering


def test_a_trial_has_wrong_solutions_for_every_property_and_a_right_one():
    trial = make_trial(LESSON)
    numbers = [
        known["number"] for known, passes in zip(trial.sources, trial.answers, strict=True) if not passes
    ]
    assert len(set(numbers)) == len(numbers) >= 6 and trial.answers.count(True) == 1
    assert make_trial(LESSON).secret != trial.secret


def test_a_trial_believes_only_the_whole_answer():
    trial = Trial([{}, {}], [False, True])
    assert not trial.problem([False, True], trial.secret)
    assert "wrong passes" in trial.problem([True, True], trial.secret)
    assert "right fails" in trial.problem([False, False], trial.secret)
    assert "before it had said all" in trial.problem([False, True], "guessed")
    assert "before it had said all" in trial.problem([False], trial.secret)


def test_who_sleeps_is_given_up_and_who_works_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(judge_process, "SILENCE_SECONDS", 1.5)
    asleep = judged(tmp_path, f"{RIGHT}\nimport time\ntime.sleep(1e6)\n")
    assert asleep.code == NOT_IMPORTABLE and "does it sleep" in asleep.problem
    seconds, seen = judge_process.JudgeProcess._processor_seconds, []

    def as_if_alone(process):
        """Whoever works gets ahead, as on a machine that has nothing else to do; it is asked, too."""
        seen.append(seconds(process))
        return seen[-1] + len(seen) * judge_process.IDLE_SHARE * judge_process.SILENCE_SECONDS

    monkeypatch.setattr(judge_process.JudgeProcess, "_processor_seconds", as_if_alone)
    working = judged(tmp_path, f"{RIGHT}\nimport time\nwhile time.process_time() < 3: pass\n")
    assert working.code == PASSED, working.problem
    assert max(seen) > min(seen), "its work was seen"
