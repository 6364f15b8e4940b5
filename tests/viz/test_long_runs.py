"""A trace that is too long for the memory: pages show a stretch of it, and lead to the others."""

import shutil

import pytest

from tests.viz.test_pages import payloads, run_app
from viz import long_runs


@pytest.fixture
def long_file(trace_file, tmp_path, monkeypatch):
    """A run that is called long, of which thirty steps are shown at once."""
    monkeypatch.setattr(long_runs, "MOST_BYTES", 1000)
    monkeypatch.setattr(long_runs, "STRETCH_EVENTS", 0)
    monkeypatch.setattr(long_runs, "LEAST_STEPS", 30)
    return shutil.copy(trace_file, tmp_path / "long.jsonl")


def slider_of(app):
    return [slider for slider in app.slider if slider.label == "Show the steps from"]


def test_a_long_run_shows_a_stretch_and_the_slider_moves_it(long_file):
    app = run_app(long_file)
    assert not app.exception
    [data] = payloads(app)
    assert len(data["captions"]) == 30
    assert "the whole run" in " ".join(caption.value for caption in app.caption).lower()
    slider_of(app)[0].set_value(45).run()
    assert not app.exception
    [data] = payloads(app)
    assert len(data["captions"]) == 30
    assert "after 45 steps of the run" in data["captions"][0]
    assert "45" in app.query_params["from"]


def test_a_short_run_has_no_such_slider(trace_file):
    assert not slider_of(run_app(trace_file))
