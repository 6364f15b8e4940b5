"""The garbage collector rests while pictures are made, and never longer."""

import gc
from threading import Barrier, Thread

import pytest

from minivllm.uncollected import without_collections
from tests import patience


def test_it_rests_inside_and_goes_on_behind_even_behind_an_error():
    assert gc.isenabled()
    with pytest.raises(KeyError), without_collections():
        with without_collections():
            assert not gc.isenabled()
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with without_collections():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_last_thread_that_leaves_lets_it_go_on():
    both_inside, first_left = Barrier(2), Barrier(2)
    seen = []

    def stay_longer():
        with without_collections():
            both_inside.wait(patience.SECONDS)
            first_left.wait(patience.SECONDS)
            seen.append(gc.isenabled())

    thread = Thread(target=stay_longer)
    thread.start()
    with without_collections():
        both_inside.wait(patience.SECONDS)
    first_left.wait(patience.SECONDS)
    patience.join(thread)
    assert seen == [False] and gc.isenabled()
