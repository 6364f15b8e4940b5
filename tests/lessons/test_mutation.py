"""Every small change of a text is made, and what catches it is told, whatever it does to the judge."""

from lessons.catalogue import find_lesson
from lessons.mutant import load_mutants
from lessons.mutation import changes
from lessons.mutation_judge import IMPORT, LOST, caught_by

LESSON = find_lesson("04")
RIGHT = LESSON.reference.read_text(encoding="utf-8")
TEXT = '''
def clamp(number: int, least: int = 0) -> int:
    """Not changed."""
    if number < least:
        number = least
    return max(number + 1, least)
'''


def test_changes_are_small_and_each_is_told():
    assert {change.words for change in changes(TEXT)} == {
        "def clamp(number: int, least: int=0) -> int:  →  def clamp(number: int, least: int=1) -> int:",
        "if number < least:  →  if not number < least:",
        "if number < least:  →  if number <= least:",
        "if number < least:  →  if number >= least:",
        "number = least  →  (removed)",
        "return max(number + 1, least)  →  return max(number - 1, least)",
        "return max(number + 1, least)  →  return max(number + 2, least)",
    }


def test_what_catches_a_mutant_is_told_and_the_next_one_is_judged_all_the_same():
    take = "        blocks = [self._free.pop() for _ in range(count)]\n"
    ends = RIGHT.replace(take, f"        import os; os._exit(7)\n{take}")
    some = load_mutants(LESSON).wrong
    wrong = next(mutant for mutant in some if mutant.caught_by == "P7")
    found = caught_by(LESSON, [wrong.source(RIGHT), "1 / 0", ends, RIGHT, wrong.source(RIGHT)])
    assert found == ["P7", IMPORT, LOST, "", "P7"]
