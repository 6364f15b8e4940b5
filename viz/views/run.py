"""Page "Run": prompts and settings of one's own, run on this machine, and then a trace like any other.

    ?run={"block_size":8,…}     what is not as at first

What is typed goes to another process, as data; what the engine says to it stands beside its field. When the
run has ended the page goes to Overview, or to Compare with the run before it.

Read next: `viz/run_settings.py`, `viz/run_process.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from viz import jobs, links, loading, run_process, state
from viz.folders import upload_folder
from viz.jobs import Job
from viz.language import N_, _
from viz.plain import plain
from viz.refusal_words import refused_in_words
from viz.run_process import Done, OwnRun
from viz.run_settings import (
    CHOICES,
    EXAMPLES,
    MOST_PROMPTS,
    RunSettings,
    as_python,
    as_text,
    field_of,
    from_link,
    from_text,
    num_left_out,
)
from viz.run_settings import to_link as link_of

TITLE = N_("Run")
URL = "run"
TEASER = N_("Prompts and settings of your own: run them here, then look at every step.")

INTRODUCTION = N_(
    "Type prompts, choose how the engine is to serve them, and press **Run**: the shipped model answers on "
    "this machine, and every step becomes a trace, which opens on all pages. Then change one thing, a policy "
    "or the size of the pool, and put the two beside each other."
)
LINK = "run"
KEPT = "run settings"
FORM = "run-form"
"""Number of the form: each time that all fields are filled anew, they are others."""
MINE = "run is mine"
LAST = "run before"
LOOK_SECONDS = 0.25
MOST_CHARACTERS = 100_000
MOST_TEXT = 160
POLICY_WORDS = {
    "fcfs": N_("fcfs: first come, first served"),
    "priority": N_("priority: the important first"),
    "shortest-remaining": N_("shortest-remaining: the least work first"),
    "shortest-remaining-oracle": N_("shortest-remaining-oracle: the same, knowing the lengths"),
    "tail": N_("tail: those nearly done sit out while others are admitted"),
    "waiting-served-ratio": N_("waiting-served-ratio: prompts wait until there are many of them"),
    "prefill-first": N_("prefill-first: prompts before decodes"),
    "decode-first": N_("decode-first: no request is admitted while others decode"),
    "chunked": N_("chunked: decodes first, prompts fill the rest"),
    "static": N_("static: whole batches, as of old"),
}
OPTION_WORDS = {
    "off": N_("off"),
    "hash": N_("hash: chained blocks"),
    "radix": N_("radix: a tree"),
    "recompute": N_("recompute: computed again"),
    "swap": N_("swap: copied to the host"),
    "ngram": N_("n-grams: what followed these words before"),
    "draft_model": N_("draft model: a smaller model guesses"),
    "torch": N_("torch: plain, starts at once"),
    "auto": N_("auto: the fastest, compiled on first use in half a minute"),
}
STATUS_WORDS = {
    "waiting": N_("waits"),
    "preempted": N_("preempted, waits"),
    "prefill": N_("prefill"),
    "decode": N_("decode"),
    "done": N_("done"),
}


def page(run: object = None) -> None:
    """The form, what is going on, and what was refused."""
    st.title(_(TITLE))
    st.markdown(_(INTRODUCTION))
    mine: Job | None = st.session_state.get(MINE)
    if mine is not None and not mine.is_running:
        jobs.settle(mine, LOOK_SECONDS)
        st.session_state.pop(MINE)
        if isinstance(mine.result, Done) and not mine.result.was_stopped:
            _go_on(mine.result)
        st.session_state["run problem"] = _by_its_name(mine.problem)
        st.session_state["run stopped"] = mine.result
    job = jobs.find(run_process.NAME)
    if job and job.is_running:
        _running(job)
    else:
        _form()


# ── the form ──────────────────────────────────────────────────────────────────────────────────────────


def _form() -> None:
    words = st.session_state.get("run problem", "")
    refused = {field_of(words): words} if words else {}
    _stopped()
    before = _kept()
    _examples()
    left, right = st.columns([5, 4], gap="large")
    with left:
        settings, workload = _prompts(before, refused)
        buttons = st.container()
    with right:
        settings = _memory(settings, refused)
        with st.expander(_("Sampling, speculation, kernels"), expanded=bool(refused.keys() & SAMPLING)):
            settings = _sampling(settings, refused)
    if settings != before:
        st.session_state["run problem"] = ""  # what was refused is not what is asked for now
        st.session_state[KEPT] = settings
    links.keep(LINK, link_of(settings))
    with buttons:
        _buttons(settings, workload)
        if refused and "prompts" not in refused:  # whose field is beside it
            st.markdown(_("✘ **Not run**: {words}").format(words=plain(refused_in_words(words))))
    with st.expander(_("The same as a program")):
        if from_link(link_of(settings)).prompts == settings.prompts:
            st.caption(_("The link of this page holds the settings, too: send it, or keep it."))
        else:
            st.caption(_("The link of this page holds the settings, but for the prompts: they are too long."))
        if workload:
            st.caption(_("Of the file's requests this program knows nothing: it shows the settings."))
        st.code(as_python(settings), language="python")


def _kept() -> RunSettings:
    if KEPT not in st.session_state:
        st.session_state[KEPT] = from_link(st.query_params.get(LINK, ""))
    kept: RunSettings = st.session_state[KEPT]
    return kept


def _take(settings: RunSettings) -> None:
    """Other settings, in all fields: they are other fields then."""
    st.session_state[KEPT] = settings
    st.session_state["run problem"] = ""
    st.session_state[FORM] = st.session_state.get(FORM, 0) + 1


def _key(name: str) -> str:
    """Of a field. What it holds at first is what is kept: a value that was put into the session instead would
    be lost where the browser draws the field only after the script has run again.
    """
    number = st.session_state.get(FORM, 0)
    return f"run-{name}" + (f"-{number}" if number else "")


def _examples() -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(_("Begin with:"), width="content")
        for name, example in EXAMPLES.items():
            st.button(_(example.title), key=f"example-{name}", on_click=_take, args=(example.settings,))


def _prompts(settings: RunSettings, refused: dict[str, str]) -> tuple[RunSettings, Path | None]:
    label = _("Prompts; an empty line begins the next one")
    before = as_text(settings.prompts)
    text = st.text_area(label, before, height=232, key=_key("prompts"), max_chars=MOST_CHARACTERS)
    _refusal("prompts", refused)
    if left_out := num_left_out(text or ""):
        words = _("The first {most} prompts are run, and {count} are left out. A file may have more.")
        st.warning(words.format(most=MOST_PROMPTS, count=left_out))
    with st.expander(_("Or requests from a file")):
        uploaded = st.file_uploader(
            _("A workload: a JSON object a line, with arrival_seconds, prompt, output_tokens"),
            type=["jsonl"],
            help=_("As for `minivllm bench`. So many tokens come out as a line says, and when it says."),
            key="run-workload",
        )
    workload = _keep_upload(uploaded.file_id, uploaded.name, uploaded.getvalue()) if uploaded else None
    if uploaded:
        st.caption(_("The requests are those of {name}.").format(name=plain(uploaded.name)))
    return replace(settings, prompts=from_text(text or "")), workload


def _keep_upload(file_id: str, name: str, content: bytes) -> Path:
    """An upload becomes a file, once."""
    kept: tuple[str, Path] | None = st.session_state.get("run upload")
    if kept is None or kept[0] != file_id:
        path = Path(tempfile.mkdtemp(dir=upload_folder())) / Path(name).name
        path.write_bytes(content)
        kept = st.session_state["run upload"] = (file_id, path)
    return kept[1]


def _by_its_name(words: str) -> str:
    """What is said of the upload, without the folder that we have put it into."""
    kept = st.session_state.get("run upload")
    return words.replace(f"{kept[1].parent}/", "") if kept else words


def _memory(settings: RunSettings, refused: dict[str, str]) -> RunSettings:
    """How requests are scheduled, and what memory they get."""
    choose, number = _fields(settings, refused)
    found: dict[str, Any] = {
        "scheduling_policy": choose("scheduling_policy", _("Scheduling policy"), POLICY_WORDS)
    }
    one, two = st.columns(2)
    with one:
        found["arrive_every"] = number("arrive_every", _("Steps between two prompts"))
        found["num_gpu_blocks_override"] = number("num_gpu_blocks_override", _("Blocks in the pool"))
        found["max_num_batched_tokens"] = number("max_num_batched_tokens", _("Token budget of a step"))
        found["prefix_cache"] = choose("prefix_cache", _("Prefix cache"), OPTION_WORDS)
    with two:
        found["max_tokens"] = number("max_tokens", _("Most tokens of an answer"))
        found["block_size"] = number("block_size", _("Tokens in a block"))
        found["max_num_seqs"] = number("max_num_seqs", _("Sequences in a batch"))
        found["preemption_mode"] = choose("preemption_mode", _("A preempted request's blocks"), OPTION_WORDS)
        if found["preemption_mode"] == "swap":
            found["swap_mib"] = number("swap_mib", _("Swap space, MiB"))
    return replace(settings, **found)


SAMPLING = {"temperature", "n", "use_beam_search", "seed", "speculation",
            "num_speculative_tokens", "attention_backend"}  # fmt: skip


def _sampling(settings: RunSettings, refused: dict[str, str]) -> RunSettings:
    choose, number = _fields(settings, refused)
    found: dict[str, Any] = {}
    one, two = st.columns(2)
    with one:
        found["n"] = number("n", _("Answers to each prompt"))
        found["use_beam_search"] = st.checkbox(
            _("Search with beams: the likeliest answers"),
            settings.use_beam_search,
            key=_key("use_beam_search"),
        )
        _refusal("use_beam_search", refused)
        found["attention_backend"] = choose("attention_backend", _("Kernels"), OPTION_WORDS)
    with two:
        found["temperature"] = number("temperature", _("Temperature; 0 takes the likeliest"))
        found["seed"] = number("seed", _("Seed"))
        found["speculation"] = choose("speculation", _("Guess ahead"), OPTION_WORDS)
        if found["speculation"] != "off":
            found["num_speculative_tokens"] = number("num_speculative_tokens", _("Tokens guessed at once"))
    return replace(settings, **found)


Choose = Callable[[str, str, dict[str, str]], str]
Number = Callable[[str, str], int | float]


def _fields(settings: RunSettings, refused: dict[str, str]) -> tuple[Choose, Number]:
    """Makers of fields that hold these settings; what was refused stands below its own."""

    def choose(name: str, label: str, words: dict[str, str]) -> str:
        options = CHOICES[name]
        value: str = st.selectbox(
            label,
            options,
            options.index(getattr(settings, name)),
            key=_key(name),
            format_func=lambda option: _(words[option]),
        )
        _refusal(name, refused)
        return value

    def number(name: str, label: str) -> int | float:
        is_whole = isinstance(getattr(RunSettings, name), int)
        step, form = (1, "%d") if is_whole else (0.1, "%g")
        before = getattr(settings, name)
        value: int | float = st.number_input(label, value=before, step=step, format=form, key=_key(name))
        _refusal(name, refused)
        return value

    return choose, number


def _refusal(name: str, refused: dict[str, str]) -> None:
    if name in refused:
        st.error(plain(refused_in_words(refused[name])))


# ── running ───────────────────────────────────────────────────────────────────────────────────────────


def _buttons(settings: RunSettings, workload: Path | None) -> None:
    before = _before()
    with st.container(horizontal=True):
        if st.button(_("Run"), key="run-run", type="primary"):
            _start(settings, workload, None)
        beside = st.button(
            _("Run, and compare with the run before"),
            key="run-beside",
            disabled=before is None,
            help=_("Change a policy or the pool first; the prompts should stay."),
        )
        if beside and before is not None:
            _start(settings, workload, before.path)
    if before is not None:
        with st.container(horizontal=True, vertical_alignment="center"):
            words = _("The run before: {name}").format(name=plain(before.path.name))
            st.caption(words, width="content")
            if st.button(_("Open"), key="run-open", type="tertiary"):
                links.go("overview", trace=before.path)
            if st.button(_("Its settings"), key="run-take", type="tertiary"):
                _take(before.settings)
                st.rerun()


def _before() -> Done | None:
    """This window's last run, or else the last of all, if its trace is still there.

    So a page that was loaded anew finds what it had begun.
    """
    job = jobs.find(run_process.NAME)
    before = st.session_state.get(LAST) or (job.result if job else None)
    return before if isinstance(before, Done) and before.path.is_file() else None


def _start(settings: RunSettings, workload: Path | None, beside: Path | None) -> None:
    """A second click, or another window, finds the run at work, and changes nothing."""
    try:
        path = state.new_run_path(settings.words())
    except ValueError as error:
        st.error(plain(error))
        return
    run = OwnRun(path, settings, len(settings.prompts))
    words = settings.job(str(path), str(workload) if workload else None)
    run.watched_by(_session())
    job = jobs.start(run_process.NAME, run_process.work(run, words), run)
    if job.told is run:
        st.session_state[MINE] = job
    else:
        path.unlink(missing_ok=True)
    st.session_state["run beside"] = beside
    st.session_state["run problem"] = ""
    st.session_state["run stopped"] = None
    st.rerun()


def _running(job: Job) -> None:
    with st.container(border=True):
        if st.session_state.get(MINE) is not job:
            words = _(
                "It was begun in another window, or before this page was loaded anew: one goes on at a time."
            )
            st.info(words)
        if st.button(_("Stop"), key="run-stop") and isinstance(job.told, OwnRun):
            job.told.stop()
        jobs.watch(job, _progress, LOOK_SECONDS)


def _session() -> str:
    """This window, by Streamlit's name for it."""
    context = get_script_run_ctx()
    return context.session_id if context else ""


def _progress(job: Job) -> None:
    """What there is to see so far: blocks, batch, and the texts as they grow."""
    run = job.told
    if not isinstance(run, OwnRun):
        return
    run.watched_by(_session())
    now = run.watched.now
    if now is None or now.step < 0:
        st.progress(0.0, _("The engine starts ({seconds} s) …").format(seconds=f"{job.seconds:.0f}"))
        return
    words = _(
        "Step {step}: {used} of {blocks} blocks in use, {running} running, {waiting} waiting, {done} done"
    )
    st.progress(
        min(1.0, now.used_blocks / now.num_blocks),
        words.format(
            step=now.step, used=now.used_blocks, blocks=now.num_blocks, running=now.num_running,
            waiting=now.num_waiting, done=now.num_done,
        ),
    )  # fmt: skip
    count = _("{tokens} of {most} tokens")
    lines = [
        f"**{plain(row.tag)}** · {_(STATUS_WORDS[row.status])} · "
        f"{count.format(tokens=row.num_tokens, most=row.most_tokens)} · "
        f"{plain(' '.join(row.text.split())[-MOST_TEXT:])}"
        for row in now.rows
    ]
    st.markdown("  \n".join(lines))


def _stopped() -> None:
    """What was stopped by hand is not opened by itself."""
    stopped = st.session_state.get("run stopped")
    if not isinstance(stopped, Done):
        return
    st.session_state[LAST] = stopped
    st.info(_("It was stopped. What it had recorded until then is a trace, too: open it below."))


def _go_on(done: Done) -> None:
    """To the pages that show what was recorded."""
    beside = st.session_state.pop("run beside", None)
    st.session_state[LAST] = done
    if beside is not None and beside.is_file():
        loading.choose_other(done.path)
        links.go("compare", trace=beside)
    links.go("overview", trace=done.path)
