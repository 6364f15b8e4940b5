"""The runner answers in sentences, whatever the judged code does. Run as a learner would: by command."""

import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lessons import commands, runner
from lessons.catalogue import ROOT, find_lesson, lessons
from lessons.comparing import parting
from lessons.desk_work import keep
from lessons.mutant import load_mutants
from lessons.playing import judge_property, play_once
from lessons.runner import Outcome, Result
from lessons.story import judged
from lessons.work import Desk
from minivllm.terminal import Console
from minivllm.trace.story_events import StoryStep, read_story
from tests import patience, profiles

pytestmark = pytest.mark.usefixtures("few_stories")

LESSON = find_lesson("04")
RIGHT = LESSON.reference.read_text(encoding="utf-8")
TAKE = "        blocks = [self._free.pop() for _ in range(count)]\n"


def minivllm(folder, *arguments, **environment):
    """`minivllm lesson …` in this process (a start of Python costs more than most of these commands).

    With variables of its own it is a process of its own. The judge always is one.
    """
    if environment:
        return as_process(folder, *arguments, **environment)
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["minivllm lesson", *arguments])
        patch.setattr(commands, "console", Console(width=200))
        patch.setenv("PYTHONPATH", str(ROOT.parent))
        patch.setenv("COLUMNS", "200")
        patch.setenv("MINIVLLM_DEBUG", "")  # which `--raw` sets for the rest of its process
        with pytest.raises(SystemExit) as end:
            commands.main()
    return checked(end.value.code or 0, said.getvalue(), arguments)


def as_process(folder, *arguments, module="lessons", **environment):
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT.parent), "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=patience.SECONDS,
        check=False,
    )
    return checked(done.returncode, done.stdout + done.stderr, arguments)


def checked(code, words, arguments):
    assert "Traceback" not in words or "--raw" in arguments, words
    return code, words


def check(folder, source, *arguments):
    (folder / "work").mkdir(exist_ok=True)
    path = folder / "work" / "04_paging.py"
    path.write_bytes(source) if isinstance(source, bytes) else path.write_text(source, encoding="utf-8")
    return minivllm(folder, "check", "4", *arguments)


def with_in_take(line):
    """The right solution, with a line before it takes blocks."""
    return RIGHT.replace(TAKE, f"        {line}\n{TAKE}")


def test_the_path_from_start_to_diff(tmp_path):
    code, words = minivllm(tmp_path, "list")
    assert code == 0 and "not started" in words
    code, words = minivllm(tmp_path, "start", "4")
    assert code == 0 and "work/04_paging.py" in words
    code, words = minivllm(tmp_path, "check", "4")
    assert code == 2 and "Not started" in words and "BlockPool.__init__" in words
    code, words = minivllm(tmp_path, "diff", "4")
    assert code == 2 and "once you have passed" in words
    wrong = load_mutants(LESSON).wrong[0]
    code, words = check(tmp_path, wrong.source(RIGHT))
    assert code == 1
    assert "judging: work/04_paging.py" in words
    assert f"✘ {wrong.caught_by}" in words and "smallest failing story" in words
    assert "waits for P1" in words and "minivllm lesson see 04" in words
    story = read_story(tmp_path / "work" / "04_paging.story.jsonl")
    assert story.header.property == wrong.caught_by and story.yours and story.reference
    first = minivllm(tmp_path, "hint", "4")[1]
    second = minivllm(tmp_path, "hint", "04_paging", "--lang", "zh")[1]
    assert "hint 1 of 3" in first and "hint 2 of 3" in second and "空闲块记在一张列表里" in second
    code, words = minivllm(tmp_path, "see", "4", "--text")
    assert code == 0 and "← here the two part" in words and "blocks 0 …" in words
    told = [line for line in words.splitlines() if line.strip().startswith(("yours", "reference"))]
    assert len(told) >= 2 and "✘ expected" in words and f"expected: {story.header.expected}" in words
    assert words.count("\n") < 60
    code, words = check(tmp_path, RIGHT)
    assert code == 0 and "7/7 properties" in words
    assert not (tmp_path / "work" / "04_paging.story.jsonl").exists()
    assert "passed" in minivllm(tmp_path, "list")[1]
    (tmp_path / "work" / "04_paging.py").write_text(RIGHT + "# mine\n")
    code, words = minivllm(tmp_path, "diff", "4")
    assert code == 0 and "-# mine" in words
    code, words = minivllm(tmp_path, "reset", "4")
    assert code == 0 and (tmp_path / "work" / "04_paging.old1.py").read_text().endswith("# mine\n")
    assert minivllm(tmp_path, "check", "4")[0] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["work"], "the judge leaves nothing there"


def test_the_readmes_path_in_fresh_processes(tmp_path):
    """The README's own commands, as a newcomer types them; at night, for every lesson."""
    commands = re.findall(r"^minivllm (lesson \w+)( \d+)?", README.read_text(encoding="utf-8"), re.M)
    assert [name for name, _ in commands] == ["lesson list", "lesson start", "lesson check"]
    for lesson in lessons() if profiles.is_night() else [find_lesson(commands[-1][1].strip())]:
        typed = [[*name.split(), *[lesson.number][: len(number)]] for name, number in commands]
        codes, told = zip(*[as_process(tmp_path, *words, module="minivllm") for words in typed], strict=True)
        assert codes == (0, 0, 2), told
        assert lesson.heading() in told[0] and "Not started" in told[2]
        path = Path(re.search(r"write : (\S+)", told[1])[1])
        (tmp_path / path).write_text(lesson.reference.read_text(encoding="utf-8"), encoding="utf-8")
        if profiles.is_day():  # the judge is one all the same
            code, words = minivllm(tmp_path, *typed[-1][1:])
        else:
            code, words = as_process(tmp_path, *typed[-1], module="minivllm")
        assert code == 0 and re.search(r"(\d+)/\1 properties", words), words


def test_start_never_overwrites(tmp_path):
    minivllm(tmp_path, "start", "4")
    mine = tmp_path / "work" / "04_paging.py"
    mine.write_text("# mine")
    code, words = minivllm(tmp_path, "start", "4")
    assert code == 0 and "as you left it" in words and mine.read_text() == "# mine"


NOT_IMPORTABLE = {
    "a syntax error": (RIGHT + "def (\n", "Python cannot read it"),
    "sys.exit": (RIGHT + "import sys\nsys.exit(4)\n", "sys.exit(4)"),
    "an error": (RIGHT + "1 / 0\n", "ZeroDivisionError"),
    "the reference": ("from minivllm.memory.block_pool import BlockPool\n", "must be your own"),
    "the reference, by a back door": (
        "import importlib\nBlockPool = importlib.import_module('minivllm.memory.block_pool').BlockPool\n",
        "must be your own",
    ),
    "the reference, as a text": (f"exec(open({str(LESSON.reference)!r}).read())\n", "must be your own"),
    "no text": (b"\xff\xfe\x00", "not a text"),
}


@pytest.mark.parametrize("what", NOT_IMPORTABLE)
def test_what_cannot_be_imported_is_a_sentence_and_exit_code_3(what, tmp_path):
    source, expected = NOT_IMPORTABLE[what]
    code, words = check(tmp_path, source)
    assert code == 3 and expected in words
    if what == "an error":
        assert "Traceback" in check(tmp_path, source, "--raw")[1]


TROUBLE = {
    "a loop": ("while True: pass", "does a loop never end?"),
    "an exception": ("raise KeyError(3)", "KeyError: 3"),
    "sys.exit": ("import sys; sys.exit(1)", "sys.exit(1)"),
    "the end of the process": ("import os; os._exit(7)", "exit code 7"),
    "input": ("input()", "EOFError"),
    "recursion": ("return self.get_new_blocks(count)", "RecursionError"),
    "None": ("return None", "to return a list of blocks"),
}


@pytest.mark.parametrize("what", TROUBLE)
def test_trouble_while_judged_is_a_sentence_and_exit_code_1(what, tmp_path):
    line, expected = TROUBLE[what]
    code, words = check(tmp_path, with_in_take(line))
    assert code == 1 and expected in words, words


def test_prints_are_shown_with_the_story(tmp_path):
    code, words = check(tmp_path, with_in_take("print('taking', count); raise ValueError('no')"))
    assert code == 1 and "printed meanwhile" in words and "| taking" in words
    code, words = check(tmp_path, with_in_take("print('noise')"))
    assert code == 0 and "noise" not in words


def test_a_missing_method_and_an_empty_file_are_told_by_name(tmp_path):
    code, words = check(tmp_path, RIGHT.replace("def slot", "def slut"))
    assert code == 1 and "`BlockTable` has no `slot`" in words
    code, words = check(tmp_path, "")
    assert code == 1 and "no class `BlockPool`" in words


def test_a_half_written_solution_says_what_is_left(tmp_path):
    half = RIGHT[: RIGHT.index("        if not 0 <= position")] + "        raise NotImplementedError\n"
    code, words = check(tmp_path, half)
    assert code == 1 and "5/7 properties" in words and "`BlockTable.slot` is still to be written" in words


def test_mistakes_in_the_command_are_sentences(tmp_path):
    assert minivllm(tmp_path, "check", "4") == (2, minivllm(tmp_path, "check", "4")[1])
    assert "lesson start 04" in minivllm(tmp_path, "check", "4")[1]
    assert "--lang must be one of en, zh" in minivllm(tmp_path, "list", "--lang", "fr")[1]
    code, words = minivllm(tmp_path, "check", "0")
    assert code == 2 and "01" in words and "03" in words
    assert "04 Paging" in minivllm(tmp_path, "start", "pagging")[1]
    assert "no property" in minivllm(tmp_path, "hint", "4")[1]
    assert minivllm(tmp_path, "see", "4")[0] == 2
    code, words = check(tmp_path, load_mutants(LESSON).wrong[0].source(RIGHT))
    story = tmp_path / "work" / "04_paging.story.jsonl"
    code, words = minivllm(tmp_path, "see", "5", "--trace", str(story))
    assert code == 2 and "story of lesson 04 Paging" in words
    story.write_text("nonsense")
    assert minivllm(tmp_path, "see", "4")[0] == 2


def test_a_wrong_command_line_is_one_sentence(tmp_path):
    assert minivllm(tmp_path, "check", "-1") == (
        2,
        "error: No such option: -1 (see minivllm lesson check --help)\n",
    )
    code, words = minivllm(tmp_path, "chekc")
    assert code == 2 and words.startswith("error: No such command 'chekc'") and "there are list" in words


def test_edited_checks_are_refused(tmp_path, monkeypatch):
    (tmp_path / "x.py").write_text(RIGHT)
    monkeypatch.setattr(runner, "edited_files", lambda lesson: ["lessons/04_paging/checks.py"])
    with pytest.raises(ValueError, match=r"checks\.py is not as it was released"):
        runner.check(LESSON, tmp_path / "x.py")
    assert runner.check(LESSON, tmp_path / "x.py", even_if_edited=True).code == 0


def test_without_hypothesis_the_one_command_is_named(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "04_paging.py").write_text(RIGHT)
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['hypothesis'] = None\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT.parent)])
    assert minivllm(tmp_path, "list", PYTHONPATH=path)[0] == 0
    assert minivllm(tmp_path, "start", "4", PYTHONPATH=path)[0] == 0
    code, words = minivllm(tmp_path, "check", "4", PYTHONPATH=path)
    assert code == 2 and 'pip install -e ".[test]"' in words


def test_a_story_that_failed_is_tried_first(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "SHARE", 0.2)
    check(tmp_path, load_mutants(LESSON).wrong[0].source(RIGHT))
    kept = json.loads((tmp_path / "work" / "progress.json").read_text())["04_paging"]["stories"]
    (cases,) = kept.values()
    assert len(cases) == 1
    code, words = check(tmp_path, RIGHT)
    assert code == 0 and re.search(r"\b31 stories", words), "that one, and a fifth of 150"


@given(
    st.dictionaries(
        st.sampled_from(["state", "passed", "of", "hints", "stories", "failing", "checks"]),
        st.sampled_from([None, 3, "passed", "3", [], ["a"], {}, {"a": 1}, {"a": [1]}]),
    )
)
def test_progress_that_was_edited_is_used_or_begins_anew(tmp_path_factory, known):
    desk = Desk(tmp_path_factory.mktemp("desk"))
    desk.solution(LESSON).write_text("")
    (desk.folder / "progress.json").write_text(json.dumps({LESSON.name: known}))
    assert isinstance(desk.state(LESSON), str) and isinstance(desk.stories(LESSON), dict)
    desk.keep_story(LESSON, "a", [1])
    assert desk.stories(LESSON)["a"][0] == [1]


README = ROOT.parent / "README.md"
OF_02 = find_lesson("02")
RIGHT_02 = OF_02.reference.read_text(encoding="utf-8")
OVERFLOWS = "\n\ndef kv_bytes(*sizes):\n    return int(np.prod((2, *sizes), dtype=np.int32))\n"
NO_STORY = {"numbers": [], "steps": []}


def check_02(folder, source):
    (folder / "work").mkdir(exist_ok=True)
    (folder / "work" / "02_kv_cache.py").write_text(source, encoding="utf-8")
    return minivllm(folder, "check", "2")


def test_a_large_story_that_breaks_is_never_cut_into_none(tmp_path):
    assert "def kv_bytes(" in RIGHT_02
    code, words = check_02(tmp_path, RIGHT_02 + OVERFLOWS)
    assert code == 1 and "✘ P3" in words and "got     : " in words and "at fault" not in words
    assert check_02(tmp_path, RIGHT_02)[0] == 0


def test_a_part_of_a_large_story_counts_only_if_the_right_solution_plays_it():
    def play(case, story):
        story.step(f"{len(case['requests'])} requests")
        story.expect(max(case["requests"]) < 7, "less than 7", "more")

    prop = judged("P1", "It holds.", st.just({"requests": [1]}), hints="abc", large=lambda dice: {
        "requests": list(range(16))
    })(play)  # fmt: skip
    right = replace(prop, play=lambda case, story: max(case["requests"]))

    def is_playable(case, seconds):
        return play_once(right, case, __file__, seconds) is None

    assert judge_property(prop, __file__).case == {"requests": []}, "a crash of the check, were it believed"
    verdict = judge_property(prop, __file__, is_playable=is_playable)
    assert (verdict.case, verdict.expected) == ({"requests": [7]}, "less than 7")


def test_a_story_that_the_right_solution_cannot_play_is_the_judges_fault(tmp_path):
    desk = Desk(tmp_path)
    outcome = Outcome("P3", "bytes_by_formula", "", "failed", case=NO_STORY, expected="5", got="4")
    result = Result(OF_02, desk.solution(OF_02), [outcome], code=1)
    keep(desk, result)
    assert outcome.got.startswith("4; but the right solution cannot play this story: the judge is at fault")
    assert "ValueError: not enough values" in read_story(desk.story(OF_02)).reference[-1].error
    assert not desk.stories(OF_02).get("bytes_by_formula")


def test_a_remembered_story_that_the_right_solution_cannot_play_is_dropped(tmp_path):
    desk = Desk(tmp_path / "work")
    desk.folder.mkdir()
    desk.keep_story(OF_02, "bytes_by_formula", NO_STORY)
    assert check_02(tmp_path, RIGHT_02)[0] == 0
    assert desk.stories(OF_02)["bytes_by_formula"] == []


def test_lanes_part_where_facts_differ_or_one_stops():
    same = [StoryStep("yours", str(n), {"free": "1"}) for n in range(3)]
    assert parting(same, same) == 2
    other = [*same[:1], StoryStep("reference", "1", {"free": "2"}), same[2]]
    assert parting(same, other) == 1
    stopped = [same[0], StoryStep("yours", "1", {"free": "1"}, error="expected …")]
    assert parting(stopped, same) == 1
    assert parting(same, same[:1]) == 1


def test_judging_another_file_is_no_progress_but_can_be_seen(tmp_path):
    minivllm(tmp_path, "start", "4")
    (tmp_path / "right.py").write_text(RIGHT)
    assert minivllm(tmp_path, "check", "4", "right.py")[0] == 0
    assert "passed" not in minivllm(tmp_path, "list")[1]
    assert minivllm(tmp_path, "diff", "4")[0] == 2
    (tmp_path / "wrong.py").write_text(load_mutants(LESSON).wrong[0].source(RIGHT))
    code, words = minivllm(tmp_path, "check", "4", "wrong.py")
    assert code == 1 and "judging: wrong.py" in words and "(1/3)" in words
    assert read_story(tmp_path / "work" / "04_paging.story.jsonl").header.file == "wrong.py"
