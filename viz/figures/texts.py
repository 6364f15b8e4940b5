"""The text of every token of every sequence, as far as the trace has told it up to a step.

A fork has its parent's tokens, so it has their texts. Read next: `block_table.py`.
"""

from __future__ import annotations

from minivllm.trace.replay import SequenceState
from minivllm.trace.timeline import StepRecord
from viz.language import _


class TokenTexts:
    """What each output token added to the text; prompts bring their own pieces."""

    def __init__(self) -> None:
        self._outputs: dict[int, list[str]] = {}

    def note(self, record: StepRecord) -> None:
        """Take over what a step added. Steps come in order."""
        if record.snapshot:
            for item in record.snapshot.sequences:
                self._outputs[item.seq] = list(item.output_pieces)
        for fork in record.forked:
            self._outputs[fork.child] = list(self._outputs.get(fork.parent, ()))
        for seq, _token, text in record.sampled:
            self._outputs.setdefault(seq, []).append(text)

    def words(self, sequence: SequenceState, start: int, end: int) -> str:
        """Tokens `start` … `end - 1` as text, or as ids where a model has no tokenizer.

        Parts of the prompt and of the output are told apart: `prompt “…” · “…”`.
        """
        split = min(max(sequence.num_prompt_tokens, start), end)
        parts = []
        if start < split:
            text = "".join(sequence.prompt_pieces[start:split])
            ids = " ".join(map(str, sequence.token_ids[start:split]))
            parts.append(
                _("prompt “{text}”").format(text=text) if text else _("prompt ids {ids}").format(ids=ids)
            )
        if split < end:
            first = split - sequence.num_prompt_tokens
            outputs = self._outputs.get(sequence.seq, [])
            text = "".join(outputs[first : end - sequence.num_prompt_tokens])
            parts.append(
                f"“{text}”" if text else _("output ids {ids}").format(ids=sequence.token_ids[split:end])
            )
        return " · ".join(parts)

    def plain(self, sequence: SequenceState, start: int, end: int) -> str:
        """The same without saying what is prompt and what is output."""
        split = min(max(sequence.num_prompt_tokens, start), end)
        pieces = sequence.prompt_pieces[start:split] or [f"{i} " for i in sequence.token_ids[start:split]]
        first = split - sequence.num_prompt_tokens
        outputs = self._outputs.get(sequence.seq, [])[first : first + end - split]
        if not any(outputs):
            outputs = [f"{token} " for token in sequence.token_ids[split:end]]
        return "".join(pieces) + "".join(outputs)
