"""What a trace says of a run, counted a second way: from the timeline, by request, when all is over."""

from collections import Counter, defaultdict
from itertools import pairwise
from types import SimpleNamespace

from minivllm.trace.events import BlocksSwappedIn, RequestScheduled, StepFinished, StepStarted
from minivllm.trace.replay import ReplayState, replay_step
from minivllm.trace.tallies import BUCKETS
from minivllm.trace.timeline import make_timeline
from minivllm.trace.work import shape_of_items, work_of


class Told:
    """`counters`, `labelled` and `values` (lists, by the names of `BUCKETS`), as `EngineCounts` has them."""

    def __init__(self, trace):
        self.trace, self.timeline = trace, make_timeline(trace)
        self.counters = Counter()
        self.labelled = defaultdict(Counter)
        self.values = {name: [] for name in BUCKETS}
        self._requests = {}
        for sequence in self.timeline.sequences.values():
            key = sequence.request, sequence.queued_time
            own = self._requests.setdefault(key, SimpleNamespace(seqs=[], reasons=[], steps=[], times=[]))
            own.seqs.append(sequence)
        self._of = {
            seq: self._requests[s.request, s.queued_time] for seq, s in self.timeline.sequences.items()
        }
        self._steps()
        self._asked_of_the_prefix_cache()
        for request in self._requests.values():
            self._request(request)

    def _steps(self):
        header = self.trace.header
        finished = {event.step for event in self.trace.events if isinstance(event, StepFinished)}
        for record in self.timeline.records:
            is_finished = record.step in finished
            self.counters["num_preemptions"] += len(record.preempted)
            self.counters["generation_tokens"] += len(record.sampled)
            for item in record.drafts:
                self.counters["spec_decode_num_drafts"] += 1
                self.counters["spec_decode_num_draft_tokens"] += len(item.token_ids)
                self.counters["spec_decode_num_accepted_tokens"] += item.num_accepted
                self.labelled["spec_decode_num_accepted_tokens_per_pos"].update(
                    {str(place): int(place < item.num_accepted) for place in range(len(item.token_ids))}
                )
            self.counters["steps_failed"] += len(record.abandoned)
            self.counters["requests_refused"] += len(record.refused)
            hits = [event for event in record.shared if event.source == "cache"]
            self.counters["prefix_cache_hits"] += sum(len(e.blocks) for e in hits) * header.block_size
            for sequence in record.finished:
                if sequence.finish_reason != "pruned":
                    self._of[sequence.seq].reasons.append((sequence.finish_reason, sequence.finished_time))
            if not is_finished:
                continue
            self.values["iteration_tokens_total"].append(sum(item.num_tokens for item in record.batch))
            for item in record.batch:
                self._of[item.seq].steps.append((record.start, item.start))
            for request in {id(self._of[seq]): self._of[seq] for seq, _, _ in record.sampled}.values():
                request.times.append(record.end)
            if header.model:
                shape = shape_of_items(record.batch, None, record.num_padding_tokens)
                work = work_of(header.model, shape)
                self.counters["estimated_flops_per_gpu"] += work.flops
                self.counters["estimated_read_bytes_per_gpu"] += work.weight_bytes + work.kv_read_bytes
                self.counters["estimated_write_bytes_per_gpu"] += work.kv_written_bytes

    def _asked_of_the_prefix_cache(self):
        if not self.trace.header.prefix_cache:
            return
        came_back = set()

        def note(event, state):
            if isinstance(event, StepStarted):
                came_back.clear()
            elif isinstance(event, BlocksSwappedIn):
                came_back.add(state.sequences[event.seq].request)
            elif isinstance(event, RequestScheduled) and event.request not in came_back:
                seqs = state.members[event.request]
                self.counters["prefix_cache_queries"] += max(len(state.sequences[s].token_ids) for s in seqs)

        state = ReplayState(self.trace.header)
        for step in range(self.trace.num_steps):
            replay_step(self.trace, step, state, note)

    def _request(self, request):
        first, steps, times = request.seqs[0], sorted(request.steps), request.times
        cached = min(steps[0][1], first.num_prompt_tokens) if steps else 0
        if times:
            self.values["time_to_first_token_seconds"].append(times[0] - first.queued_time)
            gaps = [later - sooner for sooner, later in pairwise(times)]
            self.values["inter_token_latency_seconds"] += gaps
            self.counters["prompt_tokens"] += first.num_prompt_tokens
            self.counters["prompt_tokens_cached"] += cached
            for source, count in (("local_cache_hit", cached), ("local_compute", first.num_prompt_tokens)):
                self.labelled["prompt_tokens_by_source"][source] += count
            self.labelled["prompt_tokens_by_source"]["local_compute"] -= cached
            self.labelled["prompt_tokens_cached_by_source"]["device"] += cached
        if any(sequence.finish_reason is None for sequence in request.seqs):
            return
        reason, end = request.reasons[-1]
        self.labelled["request_success"][reason] += 1
        self._sizes(request, first)
        if reason == "abort":
            return
        self.values["e2e_request_latency_seconds"].append(end - first.queued_time)
        if not times:
            return
        scheduled, last = steps[0][0], times[-1]
        self.values["request_queue_time_seconds"].append(scheduled - first.queued_time)
        self.values["request_prefill_time_seconds"].append(times[0] - scheduled)
        self.values["request_decode_time_seconds"].append(last - times[0])
        self.values["request_inference_time_seconds"].append(last - scheduled)
        self.values["request_prefill_kv_computed_tokens"].append(first.num_prompt_tokens - cached)
        if len(times) > 1:
            mean = (last - times[0]) / (len(times) - 1)
            self.values["request_time_per_output_token_seconds"].append(mean)

    def _sizes(self, request, first):
        seqs = {sequence.seq for sequence in request.seqs}
        sampled = [seq for record in self.timeline.records for seq, _, _ in record.sampled if seq in seqs]
        preempted = [
            event
            for record in self.timeline.records
            for event in record.preempted
            if event.request == first.request
        ]
        self.values["request_prompt_tokens"].append(first.num_prompt_tokens)
        self.values["request_generation_tokens"].append(len(sampled))
        longest = max(sequence.num_output_tokens for sequence in request.seqs)
        self.values["request_max_num_generation_tokens"].append(longest)
        self.values["request_params_max_tokens"].append(first.max_tokens)
        self.values["request_num_preemptions"].append(len(preempted))
        queued = next(e for e in self.trace.events if getattr(e, "seq", None) == first.seq)
        self.values["request_params_n"].append(queued.num_outputs)
