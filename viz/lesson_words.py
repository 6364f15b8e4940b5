"""What the pages "Lessons" and "Glossary" say, by short names: their texts are long, and their code is not.

Sentences and hints of the judge are not here: they belong to each lesson (`lessons/language.py`). Nor
is what it says of a story (`judge_words.py`).

Read next: `views/lessons.py`.
"""

from __future__ import annotations

import re

from viz.language import N_, _
from viz.plain import code

WORDS = {
    "title": N_("Lessons"),
    "introduction": N_(
        "Each lesson is one idea of a server for language models, and takes about an hour: **read** what "
        "problem it solves, **step** through a real run, then **write** it yourself. Properties judge what "
        "you write: sentences that must hold in every story, not examples that you could guess."
    ),
    "progress": N_("{passed} of {all} lessons passed"),
    "where to begin": N_("Where to begin:"),
    "a beginner": N_("a beginner"),
    "an engineer": N_("an engineer"),
    "a writer of kernels": N_("a writer of kernels"),
    "map": N_("The map of the course"),
    "map in words": N_(
        "A line leads down from a lesson to those that use what was built in it. "
        "✔ passed, ◐ begun, ○ not started."
    ),
    "needs": N_("needs {numbers}"),
    "open": N_("Open"),
    "go on": N_("Go on"),
    "all lessons": N_("All lessons"),
    "place": N_("Lesson {number} of {all}"),
    "part": N_("Part of the lesson"),
    "read": N_("Read"),
    "step": N_("Step"),
    "write": N_("Write"),
    "next part": N_("Next: {part}"),
    "next lesson": N_("Next lesson: {lesson}"),
    "previous lesson": N_("Previous lesson: {lesson}"),
    "last lesson": N_("This is the last lesson so far."),
    "no lessons": N_("There are no lessons in this installation."),
    # glossary
    "glossary": N_("Glossary"),
    "find a term": N_("Find a term"),
    "terms shown": N_("{shown} of {all} terms"),
    "no glossary": N_(
        "This installation comes without the glossary: the file `{file}` at the root of the repository."
    ),
    # states
    "not started": N_("not started"),
    "started": N_("started"),
    "passed": N_("passed"),
    "properties hold": N_("{state} properties hold"),
    # step
    "no walkthrough": N_("This lesson has no run to step through yet."),
    "about step": N_(
        "A real run, recorded: `{file}`. Before each of its answers it asks a question. "
        "Answer it first, then look."
    ),
    "run it": N_("Run it"),
    "run it again": N_("Run it again"),
    "not run": N_("It has not been run yet; it may take a minute or two."),
    "running": N_("Running … {seconds:.0f} s"),
    "printed": N_("What it prints"),
    "questions": N_("Its source, with the questions"),
    "which run": N_("Which of its runs"),
    "open page": N_("Open this run on the page “{page}”"),
    "unknown page": N_("The run is in `{file}`; no page draws it here."),
    # write
    "about start": N_(
        "The exercise is a Python file with signatures and docstrings, and without the bodies. **Start** "
        "puts it at `{file}`; nothing that you wrote is ever overwritten."
    ),
    "start": N_("Start"),
    "your file": N_("Your file is `{file}`. Write in it with your own editor, save, and check."),
    "check": N_("Check my work"),
    "judging": N_("Judging … {seconds:.0f} s"),
    "stories": N_("{count} stories"),
    "playing": N_("playing, {count} stories so far"),
    "unwritten": N_("`{name}` is still to be written"),
    "waits": N_("waits for {number}"),
    "lacks": N_("{words}, which the exercise asks for"),
    "unjudged": N_("Your file could not be judged: {words}"),
    "all that Python says": N_("All that Python says"),
    "nothing written": N_("Nothing is written yet: `{file}` is as it was put there."),
    "all hold": N_("All {all} properties hold. The lesson is passed."),
    "some hold": N_("{passed} of {all} properties hold."),
    "last time": N_("Last time, {passed} of {all} properties held{failing}."),
    "last failing": N_(", and {number} failed"),
    "changed since": N_("Your file has changed since it was judged: check again."),
    "smallest": N_("The smallest story in which **{number}** fails"),
    "number": N_("step"),
    "operation": N_("What is done"),
    "changed": N_("What changed"),
    "more steps": N_("… {count} more steps …"),
    "expected": N_("Expected"),
    "got": N_("Got"),
    "where": N_("Where"),
    "tampered": N_("This counts for nothing, the judge was tampered with: {words}."),
    "but": N_("But"),
    "holds alone": N_("it fails only after other stories: is something shared between your objects?"),
    "in story": N_("In this story"),
    "your code printed": N_("What your code printed meanwhile"),
    "see it": N_("See it, step by step"),
    "see it by hand": N_("To see it, step by step:"),
    "hints": N_("Hints for {number}"),
    "next hint": N_("Next hint ({number} of {count})"),
    "last hint": N_("That was the last hint."),
    "your code": N_("Your file, as it is now"),
    "last task": N_("The last task: write the property that catches {name}"),
    "about last task": N_(
        "One solution is wrong. In `{file}`, write a property that every right solution passes and this "
        "one fails. It is judged together with your solution, once that passes."
    ),
    "untouched": N_("It is still to be written."),
    "caught": N_("It catches the wrong solution. {words}"),
    "missed": N_("It does not catch it: {words}"),
    "too strict": N_("It is too strict: {words}"),
    "broken": N_("It could not be judged: {words}"),
    "diff": N_("Your solution beside the reference"),
    "same": N_("Your solution is the reference, letter by letter."),
}


def say(name: str, /, **values: object) -> str:
    """One of the sentences above, as the reader speaks. What stands between backticks is shown as it is."""
    sentence = _(WORDS[name])
    for key in re.findall(r"`{(\w+)}`", sentence):
        sentence = sentence.replace(f"`{{{key}}}`", f"{{{key}}}")
        values[key] = code(values[key])
    return sentence.format(**values)
