"""A walkthrough's notebook has the text and the code of the script, cell by cell."""

import json

import pytest

from lessons.catalogue import lessons
from lessons.notebook import as_notebook

SCRIPT = """# %% [markdown]
# # A title
#
# Some words.

# %%
x = 1

print(x)

# %%
"""


def test_cells_are_those_of_the_script():
    notebook = json.loads(as_notebook(SCRIPT))
    text, code, empty = notebook["cells"]
    assert "".join(text["source"]) == "# A title\n\nSome words."
    assert "".join(code["source"]) == "x = 1\n\nprint(x)"
    assert empty["source"] == [] and empty["cell_type"] == "code"
    assert len({cell["id"] for cell in notebook["cells"]}) == 3


@pytest.mark.parametrize("lesson", lessons(), ids=lambda lesson: lesson.name)
def test_the_code_of_every_walkthrough_survives(lesson):
    script = lesson.walkthrough.read_text(encoding="utf-8")
    cells = json.loads(as_notebook(script))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    expected = [line for line in script.splitlines() if line.strip() and not line.startswith("#")]
    assert [line for line in code.splitlines() if line.strip() and not line.startswith("#")] == expected
    compile(code, lesson.name, "exec")
    assert cells[0]["cell_type"] == "markdown"
