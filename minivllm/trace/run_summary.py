"""The numbers of a run, and how they are printed: one line for each, and lines only for what happened.

Source of the names: vLLM's metrics and `benchmark_serving`. Read next: `summary.py`, which counts them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from minivllm.trace.percentiles import Percentiles, format_seconds, percentiles_in_words
from minivllm.trace.rank_times import TALKING, Doing, RankShare


@dataclass(frozen=True)
class RunSummary:
    """What a run did, how fast, and how well it used its memory."""

    num_steps: int
    duration_seconds: float
    """From the first arrival, or the beginning of the trace, to the end of the last step."""
    num_requests: int
    num_finished: int
    num_aborted: int
    num_failed: int
    """Their logits were no numbers."""
    num_refused: int
    num_preemptions: int
    prompt_tokens: int
    output_tokens: int
    """Of all sequences, pruned beams included."""
    computed_tokens: int
    """Prompt and output tokens that went through the model, again after each preemption."""
    recomputed_tokens: int
    """Tokens whose keys and values were given up by a preemption that did not swap them out."""
    num_blocks: int
    peak_used_blocks: int
    mean_used_blocks: float
    """Averaged over steps, as the other means."""
    mean_waste: float
    """Share of the slots of used blocks that hold no token, 0 … 1."""
    mean_budget_use: float
    """Share of `max_num_batched_tokens` that a step used, 0 … 1."""
    ttft: Percentiles
    tpot: Percentiles
    inter_token: Percentiles
    end_to_end: Percentiles
    queue_time: Percentiles
    step_seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of all steps together, by part: schedule, model, attention (within model), sample, update."""
    num_forks: int = 0
    num_copies: int = 0
    """Blocks that were copied because a sequence was about to write to a shared one."""
    peak_saved_blocks: int = 0
    mean_saved_blocks: float = 0.0
    """Blocks that would be needed on top if nothing were shared, averaged over steps with used blocks."""
    mean_saved_share: float = 0.0
    """`mean_saved_blocks` as a share of the blocks that would be needed, 0 … 1."""
    hit_tokens: int = 0
    """Tokens that the prefix cache had, so that they need not be computed."""
    hit_rate: float = 0.0
    """Their share of all tokens that had to be in the cache before the next could be chosen, 0 … 1."""
    num_evicted_blocks: int = 0
    num_swaps: int = 0
    """Preemptions whose blocks went to the swap space; the other preemptions computed their tokens anew."""
    num_blocks_swapped_out: int = 0
    num_blocks_swapped_in: int = 0
    peak_host_blocks: int = 0
    num_drafts: int = 0
    """Times that a sequence had drafts in a step."""
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    """Drafts that became tokens."""
    num_abandoned_steps: int = 0
    num_rebuilds: int = 0
    """Interrupts after which the engine rebuilt its state, and every request started again."""
    num_steps_before: int = 0
    """Steps of the run before the trace, which begins in the middle of it."""
    rank_shares: tuple[RankShare, ...] = ()
    """What each rank did with its time, where several computed."""

    @property
    def output_tokens_per_second(self) -> float | None:
        return self.output_tokens / self.duration_seconds if self.duration_seconds > 0 else None

    @property
    def computed_tokens_per_second(self) -> float | None:
        return self.computed_tokens / self.duration_seconds if self.duration_seconds > 0 else None

    def facts(self) -> list[tuple[str, str]]:
        """Name and value of everything worth printing, in reading order."""
        return [
            ("requests", self._requests_in_words()),
            ("steps", self._steps_in_words()),
            ("tokens", f"{self.prompt_tokens:,} in prompts, {self.output_tokens:,} generated"),
            ("throughput", self._throughput_in_words()),
            ("time to first token", percentiles_in_words(self.ttft)),
            ("time per output token", percentiles_in_words(self.tpot)),
            ("inter-token latency", percentiles_in_words(self.inter_token)),
            ("end-to-end latency", percentiles_in_words(self.end_to_end)),
            ("queue time", percentiles_in_words(self.queue_time)),
            ("preemptions", self._preemptions_in_words()),
            ("blocks in use", self._blocks_in_words()),
            *self._sharing(),
            ("wasted slots", f"{self.mean_waste:.1%} of the slots of used blocks, on average"),
            ("token budget used", f"{self.mean_budget_use:.1%} of max_num_batched_tokens, on average"),
            ("time goes to", self._step_time_in_words()),
        ]

    def _sharing(self) -> list[tuple[str, str]]:
        """What sharing, caching and swapping did: only what happened."""
        happened = [
            (
                self.peak_saved_blocks,
                "saved by sharing",
                f"{self.mean_saved_blocks:,.1f} blocks on average ({self.mean_saved_share:.1%} of what would "
                f"be needed otherwise), at most {self.peak_saved_blocks:,}",
            ),
            (
                self.num_forks,
                "forks",
                f"{self.num_forks:,}, after which {self.num_copies:,} blocks had to be copied",
            ),
            (
                self.hit_tokens,
                "prefix cache",
                f"{self.hit_tokens:,} tokens found and not computed ({self.hit_rate:.1%} of what had to be "
                f"in the cache before a token could be chosen)",
            ),
            (self.num_evicted_blocks, "evicted", f"{self.num_evicted_blocks:,} cached blocks"),
            (
                self.num_swaps,
                "swapped",
                f"{self.num_blocks_swapped_out:,} blocks out, {self.num_blocks_swapped_in:,} back in; "
                f"at most {self.peak_host_blocks:,} in the swap space",
            ),
            (
                self.num_drafts,
                "speculation",
                f"{self.num_accepted_tokens:,} of {self.num_draft_tokens:,} drafts accepted "
                f"({self.num_accepted_tokens / max(1, self.num_draft_tokens):.0%}); "
                f"{1 + self.num_accepted_tokens / max(1, self.num_drafts):.2f} tokens a step with drafts",
            ),
            (len(self.rank_shares), "ranks", self._ranks_in_words()),
            (
                self.num_abandoned_steps,
                "failed steps",
                f"{self.num_abandoned_steps:,}; their requests started again",
            ),
            (
                self.num_rebuilds,
                "interrupts",
                f"{self.num_rebuilds:,}; after each, every request waited with nothing computed",
            ),
        ]
        return [(name, words) for count, name, words in happened if count]

    def lines(self) -> list[str]:
        """The facts as a table of plain text."""
        facts = self.facts()
        width = max(len(name) for name, _ in facts)
        return [f"{name:<{width}}  {value}" for name, value in facts]

    def _requests_in_words(self) -> str:
        parts = [f"{self.num_finished} finished"]
        unfinished = self.num_requests - self.num_finished - self.num_aborted - self.num_failed
        ends = ((unfinished, "unfinished"), (self.num_aborted, "aborted"), (self.num_failed, "failed"))
        for count, word in ends:
            if count:
                parts.append(f"{count} {word}")
        refused = f"; {self.num_refused} refused at the door" if self.num_refused else ""
        return f"{self.num_requests} ({', '.join(parts)}){refused}"

    def _steps_in_words(self) -> str:
        before = f", after {self.num_steps_before:,} before the trace" if self.num_steps_before else ""
        return f"{self.num_steps} in {format_seconds(self.duration_seconds)}{before}"

    def _throughput_in_words(self) -> str:
        output, computed = self.output_tokens_per_second, self.computed_tokens_per_second
        if output is None or computed is None:
            return "–"
        return f"{output:,.1f} output tokens/s ({computed:,.1f} tokens/s computed, prompts included)"

    def _preemptions_in_words(self) -> str:
        if not self.num_preemptions:
            return "none"
        again = f"{self.recomputed_tokens:,} tokens to be computed again"
        if not self.num_swaps:
            return f"{self.num_preemptions} ({again})"
        others = self.num_preemptions - self.num_swaps
        return f"{self.num_preemptions} ({self.num_swaps} swapped out, {others} recomputed: {again})"

    def _blocks_in_words(self) -> str:
        share = self.peak_used_blocks / self.num_blocks
        peak = f"peak {self.peak_used_blocks:,} of {self.num_blocks:,} ({share:.0%})"
        return f"{peak}, mean {self.mean_used_blocks:,.1f}"

    def _ranks_in_words(self) -> str:
        """Each as a range: of the rank that does it least, and of the one that does it most."""

        def spread(*doing: Doing) -> str:
            found = [rank.share(*doing) for rank in self.rank_shares]
            return f"{min(found, default=0):.0%}–{max(found, default=0):.0%}"

        return (
            f"{len(self.rank_shares)}, which compute {spread(Doing.COMPUTE)} of the time, exchange data "
            f"{spread(*TALKING)}, wait for others {spread(Doing.WAIT)} and have no plan {spread(Doing.IDLE)}"
        )

    def _step_time_in_words(self) -> str:
        # Attention is a part of the model's time, so it stays out of the whole that the shares are of.
        whole = sum(seconds for part, seconds in self.step_seconds.items() if part != "attention")
        if whole <= 0:
            return "–"
        shares = [
            f"{part} {self.step_seconds[part] / whole:.0%}"
            for part in self.step_seconds
            if part != "attention"
        ]
        if attention := self.step_seconds.get("attention"):
            shares.append(f"(attention alone {attention / whole:.0%})")
        return ", ".join(shares[:-1]) + f" {shares[-1]}" if attention else ", ".join(shares)
