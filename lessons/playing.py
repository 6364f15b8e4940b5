"""Playing: stories with the learner's code, until a property breaks or all are told.

Stories are drawn by Hypothesis, from another seed each time; those that failed before come first. Shrinking
stops after a few seconds with the shortest story so far: an answer soon is worth more than the shortest ever.

**One large story** comes last: three hundred requests find what eight never do (a counter of eight bits, a
rounding that is wrong at sixteen). It is made from the seed, not drawn, and cut where it breaks. What is left
when parts are cut out, or what an older judge kept, may be no story at all (no prompts, no layers): it counts
only if the right solution plays it to its end. Where only an answer is wanted, and not the shortest story, it
comes after the first few small ones: what they do not find, it finds soonest.

All limits are in processor time: a busy machine must not change a verdict.

Read next: `judge.py`, the process in which this happens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from time import process_time
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import HypothesisException

from lessons.guard import Printed, TooLong, guarded, too_much_memory
from lessons.shrinking import SHRINK_SECONDS, shorter_stories
from lessons.story import CRASH, ENDLESS, Broken, Property, Story
from lessons.verdict import FAILED, PASSED, UNWRITTEN, Verdict, function_of, line_of, words_of

LARGE_STORY = 10
"""Times the limit of a small one."""
FEW_STORIES = 10
"""Small ones before the large one, where any story that breaks the property will do."""


class Enough(BaseException):
    """Stop playing: the answer is known. Hypothesis lets it through."""


def judge_property(
    prop: Property,
    file: str,
    *,
    earlier: Sequence[Any] = (),
    number_of_seed: int = 0,
    shrink: float = SHRINK_SECONDS,
    playing: Callable[[Any], None] = lambda case: None,
    is_playable: Callable[[Any, float], bool] = lambda case, seconds: True,
) -> Verdict:
    """Play stories until one breaks the property or all are told.

    Args:
        file: of the code that is judged; an error there is the learner's.
        earlier: cases that failed before, to be tried first.
        shrink: seconds in which a shorter story that breaks it is looked for; 0 if any will do.
        playing: told of each case before it is played.
        is_playable: whether the right solution plays a case to its end, within so many seconds.
    """
    player = _Player(prop, file, shrink, playing, is_playable)
    large = [prop.large(Random(number_of_seed))] if prop.large else []

    @seed(number_of_seed)
    @settings(
        max_examples=prop.examples,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        print_blob=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(prop.cases)
    def run(case: Any) -> None:
        if large and not shrink and player.count == FEW_STORIES:
            player.play_large(large.pop())
        player.play(case)

    try:
        for case in earlier:
            try:
                player.play(case, is_doubtful=True)
            except Broken:
                raise Enough from None
        run()
        for case in large:
            player.play_large(case)
    except (Enough, Broken):
        pass
    except HypothesisException:
        # A solution may fail one time and not another; but a property that plays nothing must not pass.
        if player.best is None:
            raise
    verdict = player.best or Verdict(prop.number, PASSED)
    verdict.stories = player.count
    verdict.unplayable = [case for case in earlier if case in player.unplayable]
    return verdict


class _Player:
    """Plays the stories of one property, and remembers the shortest that broke it."""

    def __init__(
        self,
        prop: Property,
        file: str,
        shrink: float,
        playing: Callable[[Any], None],
        is_playable: Callable[[Any, float], bool],
    ) -> None:
        self.count = 0
        self.best: Verdict | None = None
        self.unplayable: list[Any] = []
        self._prop = prop
        self._file = file
        self._shrink = shrink
        self._playing = playing
        self._is_playable = is_playable
        self._give_up = float("inf")

    def play(self, case: Any, seconds: float | None = None, is_doubtful: bool = False) -> None:
        """Play one story. `is_doubtful`: it may be none, and then it breaks nothing.

        Raises:
            Broken: the property is broken, and a shorter story may break it, too.
            Enough: the answer is known.
        """
        case = json.loads(json.dumps(case))
        self.count += 1
        began = process_time()
        self._playing(case)
        found = play_once(self._prop, case, self._file, seconds)
        is_story = True
        if found and found.status == FAILED and is_doubtful:
            is_story = self._is_playable(case, self._prop.seconds if seconds is None else seconds)
        if found is None or not is_story:
            self.unplayable += [] if is_story else [case]
            if process_time() > self._give_up:
                raise Enough
            return
        if found.status == UNWRITTEN:
            self.best = found
            raise Enough
        if self.best is None or found.size <= self.best.size:
            self.best = found
        self._give_up = min(self._give_up, began + self._shrink)
        if not self._shrink or process_time() > self._give_up:
            raise Enough
        raise Broken(found.expected, found.got)

    def play_large(self, case: Any) -> None:
        """Play a large story; if it breaks the property, look for a shorter one in it."""
        stories = shorter_stories(case)
        answer: bool | None = None
        while True:
            try:
                case = stories.send(answer)
            except StopIteration:
                return
            try:
                self.play(case, LARGE_STORY * self._prop.seconds, is_doubtful=answer is not None)
                answer = False
            except Broken:
                answer = True


def play_once(prop: Property, case: Any, file: str, seconds: float | None = None) -> Verdict | None:
    """Play one story; None if the property held."""
    story, printed = Story(), Printed()
    verdict = Verdict(prop.number, FAILED, case=case, story=story)
    limit = prop.seconds if seconds is None else seconds
    symptom = CRASH
    try:
        with guarded(limit, printed):
            prop.play(case, story)
        return None
    except Broken as broken:
        verdict.expected, verdict.got, symptom = broken.expected, broken.got, broken.symptom
        if broken.__cause__ is not None:
            verdict.where = line_of(broken.__cause__, file)
    except NotImplementedError as error:
        verdict.missing = function_of(error, file)
        if verdict.missing:
            verdict.status = UNWRITTEN
        verdict.expected, verdict.got = "an answer", "NotImplementedError"
    except TooLong as error:
        verdict.expected = "an answer"
        verdict.got = f"none within {limit:g} seconds: does a loop never end?"
        verdict.where, symptom = line_of(error, file), ENDLESS
    except MemoryError as error:
        verdict.expected, verdict.got = "an answer", too_much_memory(error)
        verdict.where, symptom = line_of(error, file), ENDLESS
    except SystemExit as error:
        verdict.expected, verdict.got = "an answer", f"a call of sys.exit({error.code!r})"
        verdict.where = line_of(error, file)
    except (Exception, KeyboardInterrupt) as error:
        verdict.where = line_of(error, file)
        blame = "" if verdict.where else ", when the check used what your code gave back"
        verdict.expected, verdict.got = "an answer", f"{type(error).__name__}: {words_of(error)}{blame}"
    verdict.symptoms = story.symptoms(symptom)
    story.stopped(f"expected {verdict.expected}, got {verdict.got}")
    verdict.printed = printed.getvalue()
    verdict.size = (len(story.steps), len(json.dumps(case)))
    return verdict
