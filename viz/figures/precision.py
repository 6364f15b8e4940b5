"""A matrix before and after rounding, its errors, its channels, and one group's grid: grid after grid.

    weights        before │ after │ error, cell by cell, with the borders of groups
    channels       up: mean|x| of each input channel; down: what its rounding adds to the error
    one group      where the grid's steps lie, and how many weights fall on each
    errors         bits × group size, the grid of this moment framed

A moment of the player is one grid: the slider goes over bits and group sizes, finest first. Colours say how
far from nothing: orange above, blue below, brown for errors.

Read next: `minivllm/trace/precision_events.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.trace.precision_events import GridTried, MatrixOnGrids, MatrixSampled
from viz import subjects
from viz.engine_words import as_named
from viz.figures.common import NARROW, swatches
from viz.language import _
from viz.palette import ramp
from viz.scene import Scene, bars_path, lines_path, rounded

LEFT = 6.0
MOST_BARS = 640
MOST_TICKS = 64
SALIENT = 0.01
"""Share of the channels that are called salient: those with the largest inputs."""


def precision_scenes(found: MatrixOnGrids) -> list[Scene]:
    """All pictures of the page, for a matrix with at least one grid."""
    told = [caption(found.matrix, grid) for grid in found.grids]
    return [
        weights_scene(found, told),
        channels_scene(found, told),
        group_scene(found, told),
        errors_scene(found, told),
    ]


def caption(matrix: MatrixSampled, grid: GridTried) -> str:
    """What this grid does to the matrix."""
    group = _group_of_salient(matrix, grid)
    low, high = _ends(grid, group)
    steps = _("{count} steps from {low} to {high} in the group shown").format(
        count=2**grid.bits, low=number(low), high=number(high)
    )
    return _(
        "{bits} bits, {groups}: {steps}. Weights are off by {weight_error:.2%}, products by "
        "{output_error:.2%}; with scales and zeros a weight takes {stored:.2f} bits."
    ).format(
        bits=grid.bits,
        groups=group_words(grid),
        steps=steps,
        weight_error=grid.weight_error,
        output_error=grid.output_error,
        stored=bits_of(matrix, grid),
    )


def group_words(grid: GridTried) -> str:
    return _("groups of {size}").format(size=grid.group_size) if grid.group_size else _("one group a row")


def number(value: float) -> str:
    """Three digits, with a real minus sign."""
    return f"{value:.3g}".replace("-", "−")


def bits_of(matrix: MatrixSampled, grid: GridTried) -> float:
    """A weight's own bits, and its share of a scale of 16 bits and a zero."""
    return grid.bits + (16 + grid.bits) / (grid.group_size or matrix.num_inputs)


def after(matrix: MatrixSampled, grid: GridTried) -> list[list[float]]:
    """What the corner's codes stand for."""
    size = grid.group_size or matrix.num_inputs
    first = matrix.first_input // size
    groups = [(matrix.first_input + column) // size - first for column in range(len(matrix.weights[0]))]
    return [
        [(code - zeros[group]) * scales[group] for code, group in zip(codes, groups, strict=True)]
        for codes, scales, zeros in zip(grid.codes, grid.scales, grid.zeros, strict=True)
    ]


# ── the corner ────────────────────────────────────────────────────────────────────────────────────────────


def weights_scene(found: MatrixOnGrids, told: Sequence[str]) -> Scene:
    """Three heat maps, one below the other, on the same columns."""
    matrix = found.matrix
    rows, columns = len(matrix.weights), len(matrix.weights[0])
    wide = (NARROW - 2 * LEFT) / columns
    high = min(9.0, 150 / rows)
    block = rows * high + 34
    heading = _("{name}: outputs {output}–{last_output}, inputs {input}–{last_input}")
    scene = Scene(
        _("Weights of {name}, before and after").format(name=as_named(matrix.name)), NARROW, 58 + 3 * block
    )
    last_row, last_column = matrix.first_output + rows - 1, matrix.first_input + columns - 1
    scene.text(
        LEFT, 16, heading.format(name=as_named(matrix.name), output=matrix.first_output, last_output=last_row,
                                input=matrix.first_input, last_input=last_column), size=15, weight="bold",
    )  # fmt: skip
    most = max(abs(value) for row in matrix.weights for value in row) or 1.0
    worst = max((abs(e) for grid in found.grids for row in _errors(matrix, grid) for e in row), default=0.0)
    worst = worst or 1.0
    swatches(
        scene, 36,
        [("below6", f"−{number(most)}", 1.0), ("panel", "0", 1.0), ("above6", number(most), 1.0),
         ("heat6", _("error {value}").format(value=number(worst)), 1.0)], LEFT,
    )  # fmt: skip
    maps, tops = [], []
    for index, title in enumerate(
        (_("before"), _("after: what the codes stand for"), _("error: how far it moved"))
    ):
        top = 62 + index * block + 12
        tops.append(top)
        scene.text(LEFT, top - 5, title, size=13, fill="muted")
        maps.append(_heat_map(scene, rows, columns, top, wide, high))
    for row, weights in enumerate(matrix.weights):  # what never changes
        for column, weight in enumerate(weights):
            before = scene.shapes[maps[0][row][column]]
            before.update(fill=_signed(weight, most), tip=_tip(matrix, row, column))
    borders = scene.path("", stroke="ink", stroke_width=1.1)
    for grid, words in zip(found.grids, told, strict=True):
        scene.begin_step(words)
        for row, (values, errors) in enumerate(zip(after(matrix, grid), _errors(matrix, grid), strict=True)):
            for column, (value, error) in enumerate(zip(values, errors, strict=True)):
                scene.set(maps[1][row][column], fill=_signed(value, most))
                scene.set(maps[2][row][column], fill=ramp("heat", (abs(error) / worst) ** 0.5))
        places = _borders(matrix, grid)
        lines = [
            lines_path([(x := rounded(LEFT + c * wide), top - 2), (x, rounded(top + rows * high + 2))])
            for top in tops[1:]
            for c in places
        ]
        scene.set(borders, d="".join(lines))
    return scene


def _heat_map(scene: Scene, rows: int, columns: int, top: float, wide: float, high: float) -> list[list[int]]:
    """Cells without a colour yet."""
    return [
        [
            scene.rect(
                rounded(LEFT + column * wide), rounded(top + row * high), rounded(wide), rounded(high),
                fill="panel",
            )
            for column in range(columns)
        ]
        for row in range(rows)
    ]  # fmt: skip


def _errors(matrix: MatrixSampled, grid: GridTried) -> list[list[float]]:
    return [
        [ours - true for ours, true in zip(values, weights, strict=True)]
        for values, weights in zip(after(matrix, grid), matrix.weights, strict=True)
    ]


def _signed(value: float, most: float) -> str:
    return ramp("above" if value > 0 else "below", min(1.0, abs(value) / most))


def _tip(matrix: MatrixSampled, row: int, column: int) -> str:
    place = _("output {output}, input {input}").format(
        output=matrix.first_output + row, input=matrix.first_input + column
    )
    return _("{name}: {what}").format(name=place, what=number(matrix.weights[row][column]))


def _borders(matrix: MatrixSampled, grid: GridTried) -> list[int]:
    """Columns of the corner at which a group begins."""
    size = grid.group_size or matrix.num_inputs
    return [c for c in range(1, len(matrix.weights[0])) if (matrix.first_input + c) % size == 0]


# ── the channels ──────────────────────────────────────────────────────────────────────────────────────────


def salient_channels(matrix: MatrixSampled) -> list[int]:
    """The input channels with the largest inputs, at least one."""
    count = max(1, round(SALIENT * matrix.num_inputs))
    return sorted(range(matrix.num_inputs), key=lambda channel: -matrix.mean_inputs[channel])[:count]


def channels_scene(found: MatrixOnGrids, told: Sequence[str]) -> Scene:
    """Bars up: inputs; bars down: which channels the error of this grid comes from."""
    matrix = found.matrix
    middle, height = 114.0, 68.0
    scene = Scene(_("Input channels of {name}").format(name=as_named(matrix.name)), NARROW, 212)
    scene.text(LEFT, 16, _("Input channels: which ones matter"), size=15, weight="bold")
    salient = salient_channels(matrix)
    entries = [
        ("decode", _("mean |x|"), 1.0),
        ("line3", _("the largest {share:.0%}").format(share=SALIENT), 1.0),
        ("heat5", _("share of this grid's error"), 1.0),
    ]
    swatches(scene, 34, entries, LEFT)
    bins = _bins(matrix.num_inputs)
    width = (NARROW - 2 * LEFT) / len(bins)
    most = max(matrix.mean_inputs) or 1.0
    marked = {index for index, one in enumerate(bins) if any(channel in one for channel in salient)}
    bars: dict[bool, list[tuple[float, float, float, float]]] = {False: [], True: []}
    for index, one in enumerate(bins):
        tall = rounded(max(matrix.mean_inputs[channel] for channel in one) / most * height)
        bars[index in marked].append(
            (rounded(LEFT + index * width), rounded(middle - tall), rounded(width), tall)
        )
    scene.path(bars_path(bars[False]), fill="decode")
    scene.path(bars_path(bars[True]), fill="line3")
    losses = [_losses(matrix, grid) for grid in found.grids]
    below = scene.path("", fill="heat5")
    scene.path(lines_path([(LEFT, middle), (NARROW - LEFT, middle)]), stroke="outline", stroke_width=1.0)
    for index, one in enumerate(bins):
        box = (rounded(LEFT + index * width), middle - height, rounded(width), 2 * height)
        scene.rect(*box, fill="page", opacity=0.0, tip=_bin_words(matrix, one))
    share = scene.text(LEFT, 204, "", size=13, fill="muted")
    for grid_losses, words in zip(losses, told, strict=True):
        scene.begin_step(words)
        worst = max(grid_losses) or 1.0  # each moment has its own scale: who loses most, not how much
        hanging = [
            (rounded(LEFT + index * width), middle, rounded(width),
             rounded(max(grid_losses[channel] for channel in one) / worst * height))
            for index, one in enumerate(bins)
        ]  # fmt: skip
        scene.set(below, d=bars_path(hanging))
        total = sum(loss * loss for loss in grid_losses) or 1.0
        part = sum(grid_losses[channel] ** 2 for channel in salient) / total
        scene.set(
            share,
            text=_("{salient} of {inputs} channels bring {part:.0%} of the squared error").format(
                salient=len(salient), inputs=matrix.num_inputs, part=part
            ),
        )
    return scene


def _bin_words(matrix: MatrixSampled, one: range) -> str:
    """What a pointer reads at a bar."""
    most = max(matrix.mean_inputs[channel] for channel in one)
    if len(one) == 1:
        return _("input channel {first}: mean |x| {most}").format(first=one[0], most=number(most))
    told = _("input channels {first} to {last}: mean |x| at most {most}")
    return told.format(first=one[0], last=one[-1], most=number(most))


def _losses(matrix: MatrixSampled, grid: GridTried) -> list[float]:
    """Of each channel: the size of its weights' errors times the size of its inputs."""
    return [error * size for error, size in zip(grid.channel_errors, matrix.mean_inputs, strict=True)]


def _bins(count: int) -> list[range]:
    """Channels that share a bar: one each, if there is room."""
    each = -(-count // MOST_BARS)
    return [range(start, min(start + each, count)) for start in range(0, count, each)]


# ── one group ─────────────────────────────────────────────────────────────────────────────────────────────


def group_scene(found: MatrixOnGrids, told: Sequence[str]) -> Scene:
    """The grid of the group that the most salient channel is in, in one row; x is the weight."""
    matrix = found.matrix
    channel = salient_channels(matrix)[0]
    row = matrix.first_output + matrix.row
    scene = Scene(_("One group of {name} on its grid").format(name=as_named(matrix.name)), NARROW, 214)
    title = _("One group: row {row}, around input {channel}").format(row=row, channel=channel)
    scene.text(LEFT, 16, title, size=15, weight="bold")
    words_of_group = scene.text(LEFT, 36, "", size=13, fill="muted")
    ends = [_ends(grid, _group_of_salient(matrix, grid)) for grid in found.grids]
    low = min(min(matrix.row_weights), *(low for low, _ in ends))
    high = max(max(matrix.row_weights), *(high for _, high in ends))
    span = (high - low) or 1.0

    def x(value: float) -> float:
        return rounded(LEFT + 8 + (value - low) / span * (NARROW - 2 * LEFT - 16))

    rug = scene.path("", stroke="muted", stroke_width=1.0)
    ticks = scene.path("", stroke="decode", stroke_width=1.2)
    bars = scene.path("", fill="above5")
    mark = scene.path("", stroke="cursor", stroke_width=2.0)
    scene.text(LEFT, 62, _("weights"), size=13, fill="muted")
    red = _("red: input {channel}").format(channel=channel)
    scene.text(NARROW - LEFT, 62, red, size=13, fill="cursor", anchor="end")
    scene.text(LEFT, 110, _("steps of the grid"), size=13, fill="muted")
    scene.text(LEFT, 150, _("weights on each step"), size=13, fill="muted")
    scene.path(lines_path([(LEFT, 204), (NARROW - LEFT, 204)]), stroke="outline", stroke_width=1.0)
    for grid, words in zip(found.grids, told, strict=True):
        scene.begin_step(words)
        size = grid.group_size or matrix.num_inputs
        group = channel // size
        members = range(group * size, min((group + 1) * size, matrix.num_inputs))
        scale, zero = grid.row_scales[group], grid.row_zeros[group]
        scene.set(
            words_of_group,
            text=_("scale {scale}, zero at code {zero}, {members} weights").format(
                scale=number(scale), zero=zero, members=len(members)
            ),
        )
        scene.set(rug, d="".join(_stick(x(matrix.row_weights[m]), 70, 90) for m in members))
        shown = range(0, 2**grid.bits, max(1, 2**grid.bits // MOST_TICKS))
        scene.set(ticks, d="".join(_stick(x((code - zero) * scale), 116, 132) for code in shown))
        counts: dict[int, int] = {}
        for member in members:
            counts[grid.row_codes[member]] = counts.get(grid.row_codes[member], 0) + 1
        most = max(counts.values())
        width = max(1.2, min(10.0, 0.7 * abs(scale) / span * (NARROW - 2 * LEFT - 16)))
        heights = {code: rounded(46 * count / most) for code, count in counts.items()}
        scene.set(
            bars,
            d=bars_path(
                [(rounded(x((code - zero) * scale) - width / 2), 204 - tall, rounded(width), tall)
                 for code, tall in sorted(heights.items())]
            ),
        )  # fmt: skip
        moved = (grid.row_codes[channel] - zero) * scale
        scene.set(mark, d=lines_path([(x(matrix.row_weights[channel]), 68), (x(moved), 132)]))
    return scene


def _stick(x: float, top: float, bottom: float) -> str:
    return f"M{x:g},{top:g}L{x:g},{bottom:g}"


def _group_of_salient(matrix: MatrixSampled, grid: GridTried) -> int:
    return salient_channels(matrix)[0] // (grid.group_size or matrix.num_inputs)


def _ends(grid: GridTried, group: int) -> tuple[float, float]:
    """The lowest and the highest step of a group of the row that is there whole."""
    scale, zero = grid.row_scales[group], grid.row_zeros[group]
    return -zero * scale, (2**grid.bits - 1 - zero) * scale


# ── all grids ─────────────────────────────────────────────────────────────────────────────────────────────


def errors_scene(found: MatrixOnGrids, told: Sequence[str]) -> Scene:
    """Each grid's error of products, bits down, groups across."""
    matrix = found.matrix
    bits = sorted({grid.bits for grid in found.grids}, reverse=True)
    sizes = sorted({grid.group_size for grid in found.grids}, key=lambda size: size or matrix.num_inputs)
    left, top, high = 74.0, 62.0, 34.0
    wide = (NARROW - left - LEFT) / len(sizes)
    scene = Scene(
        _("Errors of {name} on every grid").format(name=as_named(matrix.name)),
        NARROW,
        top + high * len(bits) + 10,
    )
    scene.text(LEFT, 16, _("Every grid: error of products · bits a weight"), size=15, weight="bold")
    for column, size in enumerate(sizes):
        words = (
            _("groups of {size}").format(size=size)
            if size
            else _("a row ({inputs})").format(inputs=matrix.num_inputs)
        )
        scene.text(rounded(left + (column + 0.5) * wide), 50, words, size=13, fill="muted", anchor="middle")
    for line, count in enumerate(bits):
        scene.text(
            left - 8,
            top + line * high + 21,
            _("{count} bits").format(count=count),
            size=13,
            fill="muted",
            anchor="end",
        )
    worst = max(grid.output_error for grid in found.grids) or 1.0
    cells = []
    for step, (grid, words) in enumerate(zip(found.grids, told, strict=True)):
        column, line = sizes.index(grid.group_size), bits.index(grid.bits)
        share = (grid.output_error / worst) ** 0.5  # so that the small ones differ, too
        cells.append(
            scene.rect(
                rounded(left + column * wide + 2), top + line * high + 2, rounded(wide - 4), high - 4,
                fill=ramp("heat", share), radius=3, label_size=13, stroke_width=2.5,
                label=f"{grid.output_error:.2%} · {bits_of(matrix, grid):.2f}",
                tip=words, subject=subjects.step(step),
            )
        )  # fmt: skip
    for step, words in enumerate(told):
        scene.begin_step(words)
        for index, cell in enumerate(cells):
            scene.set(cell, stroke="cursor" if index == step else "none")
    return scene
