"""Who owns what of the model: layers, heads, rows of the MLP and the vocabulary, and what memory that takes.

    Layers           0   1   2   3   4        Vocabulary   0                4,099
    rank 0      [E][███████████]              rank 0       [████████]
    rank 1      [E][███████████]              rank 1                 [███████▒]     ▒ padding
    rank 2                     [███████][H]   …

A row is a rank, in each of the rulers. What stands in two rows is there twice: a KV head that several parts
look at, the embedding where the last stage needs it, too. All ranges are those that the trace tells, and the
engine has told them out of the layout with which it loads and computes.

Source: `minivllm/model/parallel/layout.py`, Megatron-LM (arXiv 1909.08053, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from minivllm.trace.events import PartShape, RankShape
from minivllm.trace.timeline import Timeline
from viz.figures.common import WASTE, WIDE, hatch, listing, swatches, text_cells
from viz.figures.ranks import MOST_LANES, RankRun, more_ranks, rank_captions, rank_run
from viz.language import _
from viz.scene import Scene, rounded

ROW, BOX = 20.0, 15.0
WEIGHTS = "filled"
DIGIT = 7.2
MEBI = 2**20
MOST_NUMBERS = 128


class Owned(NamedTuple):
    """A stretch of a ruler, and what to say of it."""

    start: float
    end: float
    label: str
    tip: str
    padding: float = 0.0
    """So much more than the real end lies behind it."""


def rank_ownership(timeline: Timeline, width: float = WIDE, screen: str = "") -> Scene:
    """A ruler for everything that is shared out, a row for each rank.

    Raises:
        ValueError: the trace does not tell who owns what.
    """
    shapes = timeline.trace.header.ranks[:MOST_LANES]
    if not shapes:
        raise ValueError("rank_ownership: this run does not tell what its ranks own")
    run = rank_run(timeline) or RankRun({}, (), len(timeline.trace.header.ranks), {})
    scene = Scene(_("Who owns what"), width, 0.0, screen=screen)
    has_padding = any(_padding(shape, part) for shape in shapes for part in shape.parts)
    legend = [(WASTE, _("padding: rows of zeros"), 1.0)] if has_padding else []
    legend += [(WEIGHTS, _("weights"), 1.0), ("cached", _("KV cache"), 1.0)]
    top = swatches(scene, 18, legend, 4, hatched=True) + 20
    columns = 1 if width < 800 else 2
    span = (width - 4 - 28 * (columns - 1)) / columns
    height = 46 + ROW * len(shapes) + 14
    bands = [_layers, _heads, _kv_heads, _mlp_rows, _vocabulary, _memory]
    for index, draw in enumerate(bands):
        x = 4 + (index % columns) * (span + 28)
        draw(_Band(scene, shapes, x, top + (index // columns) * height, span))
    scene.height = top + -(-len(bands) // columns) * height
    notes = [_replicated(shapes), more_ranks(run._replace(ranks=tuple(shape.rank for shape in shapes)))]
    for words in filter(None, notes):
        scene.text(4, scene.height + 4, words, size=13, fill="muted")
        scene.height += 20
    for sentence in rank_captions(timeline, run):
        scene.begin_step(sentence)
    return scene


class _Band:
    """A ruler with its title, and a row for each rank below it."""

    def __init__(self, scene: Scene, shapes: tuple[RankShape, ...], x: float, y: float, width: float) -> None:
        self.scene, self.shapes = scene, shapes
        self.x, self.y = x, y
        self.left = x + 62
        self.width = width - 62

    def title(self, words: str) -> None:
        self.scene.text(self.x, self.y + 14, words, size=14, weight="bold")

    def ruler(self, marks: list[tuple[float, str]], total: float) -> None:
        """Words over these places; where two would touch, the second is left out."""
        end = -1e9
        for place, words in marks:
            half = DIGIT * text_cells(words) / 2
            x = self.left + self.width * place / total
            x = min(max(x, self.left + half), self.left + self.width - half)
            if x - half > end + 6:
                self.scene.text(rounded(x), self.y + 34, words, size=12, fill="muted", anchor="middle")
                end = x + half

    def row(self, shape: RankShape, owned: list[Owned], total: float) -> None:
        """What one rank owns."""
        scene, y = self.scene, self.y + 40 + ROW * self.shapes.index(shape)
        name = _("rank {rank}").format(rank=shape.rank)
        scene.text(self.x, y + 12, name, size=13)
        scene.rect(self.left, y, self.width, BOX, fill="free", stroke="rule", stroke_width=0.8)
        for one in owned:
            x = self.left + self.width * one.start / total
            width = max(1.0, self.width * (one.end - one.start) / total - 1)
            fits = DIGIT * text_cells(one.label) < width
            scene.rect(
                rounded(x), y, rounded(width), BOX, fill=WEIGHTS, radius=2, label_size=11.5,
                label=one.label if fits else "", tip=_("{name}: {what}").format(name=name, what=one.tip),
            )  # fmt: skip
            if one.padding:
                box = (rounded(x + width + 1), y, rounded(max(3.0, self.width * one.padding / total)), BOX)
                tip = _("{name}: {count:,} rows of padding").format(name=name, count=round(one.padding))
                scene.rect(*box, fill=WASTE, stroke="outline", stroke_width=0.8, tip=tip)
                hatch(scene, [box])


def _layers(band: _Band) -> None:
    """Layers lie between the embedding, which is before the first, and the head behind the last."""
    num_layers = _most(shape.layers[1] for shape in band.shapes)
    stages = len({shape.stage for shape in band.shapes})
    band.title(_("Layers: {layers}, in stages: {stages}").format(layers=num_layers, stages=stages))
    room = (num_layers + 2) * DIGIT * 9 / band.width  # the words at both ends matter more than numbers
    numbers = [(place + 1, number) for place, number in _each(num_layers)]
    numbers = [mark for mark in numbers if room < mark[0] < num_layers + 2 - room]
    band.ruler([(0.5, _("embedding")), *numbers, (num_layers + 1.5, "lm_head")], num_layers + 2)
    for shape in band.shapes:
        first, end = shape.layers
        owned = [
            Owned(
                first + 1,
                end + 1,
                _numbers(shape.layers),
                _("its parts of layers {numbers}").format(numbers=_numbers(shape.layers)),
            )
        ]
        if shape.has_embedding:
            owned.append(Owned(0, 1, "", _("its rows of the embedding")))
        if shape.has_head:
            owned.append(Owned(num_layers + 1, num_layers + 2, "", _("its rows of lm_head")))
        band.row(shape, owned, num_layers + 2)


def _heads(band: _Band) -> None:
    total = _most(part.heads[1] for shape in band.shapes for part in shape.parts)
    band.title(_("Query heads: {count}").format(count=total))
    band.ruler(_each(total), total)
    words = _("query heads {numbers} of part {part}: rows of q_proj, columns of o_proj")
    _part_by_part(band, lambda part: part.heads, words, total)


def _kv_heads(band: _Band) -> None:
    total = _most(part.kv_heads[1] for shape in band.shapes for part in shape.parts)
    band.title(_("KV heads: {count}").format(count=total))
    band.ruler(_each(total), total)
    for shape in band.shapes:
        words = _("KV heads {numbers}: rows of k_proj and v_proj, and their cache")
        kept = dict.fromkeys(part.kv_heads for part in shape.parts)
        band.row(
            shape,
            [Owned(*own, _numbers(own), words.format(numbers=_numbers(own))) for own in kept],
            total,
        )


def _mlp_rows(band: _Band) -> None:
    total = _most(part.intermediate[1] for shape in band.shapes for part in shape.parts)
    band.title(_("Rows of the MLP: {count:,}").format(count=total))
    band.ruler([(0, "0"), (total, f"{total:,}")], total)
    words = _("{numbers} of part {part}: rows of gate_proj and up_proj, columns of down_proj")
    _part_by_part(band, lambda part: part.intermediate, words, total)


def _part_by_part(
    band: _Band, owned_by: Callable[[PartShape], tuple[int, int]], words: str, total: float
) -> None:
    """Of each rank what each of its parts owns, which `words` tell."""
    for shape in band.shapes:
        owned = []
        for part in shape.parts:
            numbers = _numbers(owned_by(part))
            owned.append(Owned(*owned_by(part), numbers, words.format(numbers=numbers, part=part.number)))
        band.row(shape, owned, total)


def _vocabulary(band: _Band) -> None:
    """Each part has the same number of rows; the last ones are padded."""
    parts = [(shape, part) for shape in band.shapes for part in shape.parts]
    real = _most(part.vocabulary[1] for _shape, part in parts)
    total = _most(shape.padded_vocabulary * (part.number + 1) for shape, part in parts)
    band.title(
        _("Vocabulary: {real:,} rows, padded to {total:,}").format(real=real, total=total)
        if total > real
        else _("Vocabulary: {real:,} rows").format(real=real)
    )
    band.ruler([(0, "0"), (total, f"{total:,}")], total)
    for shape in band.shapes:
        holds = [_("the embedding")] * shape.has_embedding + ["lm_head"] * shape.has_head
        words = _("rows {numbers} of {holds}")
        band.row(
            shape,
            [
                Owned(
                    part.number * shape.padded_vocabulary,
                    part.number * shape.padded_vocabulary + part.vocabulary[1] - part.vocabulary[0],
                    _numbers(part.vocabulary),
                    words.format(numbers=_numbers(part.vocabulary), holds=listing(holds)),
                    _padding(shape, part),
                )
                for part in shape.parts
                if holds
            ],
            total,
        )


def _memory(band: _Band) -> None:
    """Bytes, as the ranks have counted them."""
    scene, most = band.scene, max(shape.weight_bytes + shape.cache_bytes for shape in band.shapes) or 1
    weights = sum(shape.weight_bytes for shape in band.shapes)
    cache = sum(shape.cache_bytes for shape in band.shapes)
    band.title(
        _("Memory of all: weights {weights}, KV cache {cache}").format(
            weights=_mib(weights), cache=_mib(cache)
        )
    )
    band.ruler([(0, "0"), (most, _mib(most))], most)
    for index, shape in enumerate(band.shapes):
        y = band.y + 40 + ROW * index
        name = _("rank {rank}").format(rank=shape.rank)
        scene.text(band.x, y + 12, name, size=13)
        scene.rect(band.left, y, band.width, BOX, fill="free", stroke="rule", stroke_width=0.8)
        x = band.left
        for fill, num_bytes, what in (
            (WEIGHTS, shape.weight_bytes, _("{name}: {size} of weights")),
            ("cached", shape.cache_bytes, _("{name}: {size} of KV cache")),
        ):
            width = rounded(band.width * num_bytes / most)
            label = _mib(num_bytes)
            scene.rect(
                x, y, width, BOX, fill=fill, stroke="outline", stroke_width=0.8, label_size=11.5,
                label=label if DIGIT * text_cells(label) < width else "",
                tip=what.format(name=name, size=f"{label} ({num_bytes:,})"),
            )  # fmt: skip
            x += width


def _padding(shape: RankShape, part: PartShape) -> int:
    if not (shape.has_embedding or shape.has_head):
        return 0
    return max(0, shape.padded_vocabulary - (part.vocabulary[1] - part.vocabulary[0]))


def _replicated(shapes: tuple[RankShape, ...]) -> str:
    """Which KV heads are on several ranks of a stage, and which weights all have."""
    told = []
    if twice := sorted(set(_twice(shapes))):
        heads = listing([_numbers(heads) for heads in twice], 6)
        words = _("KV heads that several ranks of a stage have, since their query heads share them: {heads}.")
        told.append(words.format(heads=heads))
    if any(shape.tensor for shape in shapes):
        told.append(_("Norms are on every rank of a stage."))
    if any(shape.has_embedding and shape.stage for shape in shapes):
        told.append(_("The last stage has the embedding, too: it is the same matrix as lm_head."))
    return " ".join(told)


def _twice(shapes: tuple[RankShape, ...]) -> Iterator[tuple[int, int]]:
    for stage in {shape.stage for shape in shapes}:
        seen: set[tuple[int, int]] = set()
        for shape in shapes:
            if shape.stage == stage:
                own = {part.kv_heads for part in shape.parts}
                yield from seen & own
                seen |= own


def _most(ends: Iterable[int]) -> int:
    return max(ends, default=0) or 1


def _each(total: int) -> list[tuple[float, str]]:
    """The number of each of so many, in its middle; of the first and the last, if there are many."""
    numbers = range(total) if total <= MOST_NUMBERS else (0, total - 1)
    return [(number + 0.5, str(number)) for number in numbers]


def _numbers(ends: tuple[int, int]) -> str:
    """3 … 5 as "3–5", a single one as itself, and nothing at all as a dash."""
    first, end = ends
    if end <= first:
        return "–"
    return f"{first:,}" if end == first + 1 else f"{first:,}–{end - 1:,}"


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / MEBI:,.1f} MiB" if num_bytes >= MEBI else f"{num_bytes / 1024:,.1f} KiB"
