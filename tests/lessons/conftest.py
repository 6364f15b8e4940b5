"""Fixtures of the tests of lessons."""

import pytest
from hypothesis import settings

from lessons import runner


@pytest.fixture
def few_stories(monkeypatch):
    """A check that is not about the lesson tells few small stories of each property; at night, all."""
    if settings.get_current_profile_name() != "nightly":
        monkeypatch.setattr(runner, "SHARE", 0.1)
