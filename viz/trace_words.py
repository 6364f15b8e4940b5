"""Why a trace cannot be shown, and what is wrong with one: the forms of the reader's sentences.

As those of the summary (`engine_words.py`), they are said in English by `minivllm/trace/`, for terminals and
logs, too. What a form has in braces is taken over: a path, a number, or a part that is a form itself. What a
library says of damaged JSON (msgspec, Python) is in `DAMAGE`.

Read next: `minivllm/trace/lines.py`, which says most of them.
"""

from __future__ import annotations

from viz.language import N_

ERRORS = (
    N_("{path} cannot be read: {reason}"),
    N_("{path} is not a file: give the path of a trace, such as minivllm-out/trace.jsonl"),
    N_("{path} is empty: a trace has at least a header line"),
    N_(
        "{path} is a recorded stream of events; `sed -n 's/^data: //p' FILE > trace.jsonl` makes a trace "
        "of it"
    ),
    N_("{path} has a damaged header: {reason}"),
    N_("{path} is {kind}, not {wanted}"),
    N_("{path} is not {kind}: {reason}"),
    N_(
        "{path} is {kind} of version {version}; this program reads {known}. Open it with the minivllm that "
        "wrote it, or make it again."
    ),
    N_("{path}, line {number}, is not {what}: {reason}"),
    N_("{path}, line {number}, is longer than any line of a trace: it has more than {most} bytes"),
    N_("{path}, line {number}, cannot be: {problem}"),
    N_(
        "{place}, contradicts what came before ({problem}): the file was changed after it was recorded, or "
        "the recorder has a fault"
    ),
    N_("{event} is an event that this program cannot apply"),
    N_("{path}: the line before byte {offset} is not an event"),
    N_("{path} is damaged: the parts of {what} do not fit together"),
    N_("{path} holds no curves: {reason}"),
    N_("{path}: there must be an x, and from 1 to {most} curves"),
    N_("{path}: every curve must have a value for each x"),
    N_("{path}: all numbers must be positive, for their logarithms are drawn"),
    N_("{path} is a trace of a kernel; here one of the engine is needed"),
    N_("{path} is a story of a lesson; here a trace of the engine is needed"),
    N_("{path} is a comparison of precisions; here a trace of the engine is needed"),
    N_("{path} is not a trace of a kernel: `minivllm microscope … --trace …` makes one"),
    N_("{path} has no steps yet: a header, and nothing that happened after it"),
    N_("{path} holds no request that was accepted, so there is nothing to draw"),
    N_("{path} holds no kernel that accessed memory, so there is nothing to draw"),
    N_("{path} holds no precision and no matrix, so there is nothing to draw"),
    N_(
        "{path} lies in no folder that this dashboard was started for: upload it, or start `minivllm "
        "dashboard {again}`, or add `--folder` with its folder"
    ),
    N_("its events are of version {version}, this dashboard reads {known}: use the same minivllm for both"),
    N_("a line is longer than any line of a trace"),
)
WARNINGS = (
    N_("The trace has no end mark: the run was cut off, or is still going on."),
    N_("The last line ({number}) was cut off and is left out."),
    N_("The last line was cut off and is left out."),
)
CURVES = (
    N_("How much of the first token is left"),
    N_("tokens between the first one and the output"),
    N_("influence"),
    N_("attention: one step, whatever the distance"),
    N_("recurrent cell, W · {factor}"),
)
"""What the curves of the lessons are called."""
PARTS = (
    N_("a minivllm trace of a run"),
    N_("a trace of a kernel"),
    N_("a story of a lesson"),
    N_("a comparison of precisions"),
    N_("an event"),
    N_("an event of a kernel"),
    N_("an event of a story"),
    N_("an event of a comparison of precisions"),
    N_("it is compressed by gzip: unpack it first"),
    N_("it is UTF-16, and a trace is UTF-8"),
    N_("its first line is not a header"),
    N_("versions 1 to {newest}"),
    N_("No such file or directory"),
    N_("Permission denied"),
)
"""What stands in braces above, and the system's most frequent reasons."""
NAMED = (
    N_("{device}, measured"),
    N_("{device}, 1 thread"),
    N_("{device}, {count} threads"),
    N_("one core of this machine"),
    N_("the built-in held-out documents"),
    N_("layer {count}: {what}"),
)
"""What traces call devices, texts and matrices."""
DAMAGE = (
    N_("{what} - at `{place}`"),
    N_("Input data was truncated"),
    N_("JSON is malformed: {what} (byte {count})"),
    N_("Expected `{wanted}`, got `{found}`"),
    N_("Expected `array` of length {length}, got {count}"),
    N_("Expected `array` of at least length {length}, got {count}"),
    N_("Expected `array` of at most length {length}"),
    N_("Expected `array` of length {length}"),
    N_("Expected `{kind}` of length {length}"),
    N_("Expected `{kind}` {bound}"),
    N_("Expected `{kind}`"),
    N_("Object missing required field `{name}`"),
    N_("Object contains unknown field `{name}`"),
    N_("Invalid value {value}"),
    N_("Invalid enum value {value}"),
    N_("Invalid UTF-8 encoded string"),
    N_("Number out of range"),
    N_("expected {sign}"),
    N_("expected {sign} or {other}"),
    N_("invalid character"),
    N_("invalid character in unicode escape"),
    N_("invalid escape character in string"),
    N_("invalid escaped character"),
    N_("invalid number"),
    N_("invalid utf-16 surrogate pair"),
    N_("object keys must be strings"),
    N_("trailing characters"),
    N_("trailing comma in array"),
    N_("trailing comma in object"),
    N_("unexpected end of escaped utf-16 surrogate pair"),
    N_("unexpected end of hex escape"),
    N_("'utf-8' codec can't decode byte {byte} in position {count}: {why}"),
    N_("'utf-8' codec can't decode bytes in position {count}: {why}"),
    N_("invalid start byte"),
    N_("invalid continuation byte"),
    N_("unexpected end of data"),
    N_("maximum recursion depth exceeded"),
    N_("maximum recursion depth exceeded {where}"),
)
"""What msgspec says of JSON that is none, or not of this type; and Python of text that is none."""
