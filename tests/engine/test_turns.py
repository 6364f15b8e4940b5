"""Turns: one call at a time, in the order in which they came, and no ended call ever blocks the queue."""

import ctypes
import sys
from contextlib import suppress
from threading import Thread, get_ident

import pytest

from minivllm.engine.turns import Turns
from tests import patience


class Shop:
    """Serves one call at a time, and notes the order."""

    def __init__(self):
        self.turns = Turns()
        self.served = []
        self.idents = {}

    def serve(self, name, during=lambda: None, leaves=True):
        self.idents[name] = get_ident()
        self.turns.wait_for(sys._getframe())
        during()
        self.served.append(name)
        if leaves:
            self.turns.pass_on()

    def send(self, name, **how):
        """A thread that waits in the queue for its turn by the time this returns."""
        length = len(self.turns._tickets)

        def run():
            with suppress(KeyboardInterrupt):
                self.serve(name, **how)

        thread = Thread(target=run, daemon=True)
        thread.start()
        while len(self.turns._tickets) == length:
            pass
        return thread


def end(threads):
    for thread in threads:
        patience.join(thread)


@pytest.mark.parametrize("leaves", [True, False], ids=["woken", "not woken"])
def test_calls_are_served_in_the_order_in_which_they_came(leaves):
    shop, threads = Shop(), []
    names = list("abcde" if leaves else "ab")
    shop.serve("first", during=lambda: threads.extend(map(shop.send, names)), leaves=leaves)
    end(threads)
    assert shop.served == ["first", *names] and not shop.turns._tickets


def test_a_thread_that_dies_while_it_waits_blocks_nobody():
    shop, threads = Shop(), []

    def during():
        threads.extend(map(shop.send, "abc"))
        interrupt = ctypes.py_object(KeyboardInterrupt)
        assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(shop.idents["b"]), interrupt) == 1
        patience.join(threads[1])

    shop.serve("first", during=during)
    end(threads)
    assert shop.served == ["first", "a", "c"] and not shop.turns._tickets


def test_a_call_within_a_call_is_refused_and_changes_nothing():
    shop, threads = Shop(), []

    def during():
        threads.append(shop.send("a"))
        with pytest.raises(RuntimeError, match="in the middle of a call of the same thread"):
            shop.serve("nested")

    shop.serve("first", during=during)
    end(threads)
    assert shop.served == ["first", "a"]


def test_a_call_whose_error_is_kept_has_ended_all_the_same():
    shop, kept = Shop(), []

    def fail():
        raise KeyboardInterrupt

    for name in ("first", "second"):
        try:
            shop.serve(name, during=fail)
        except KeyboardInterrupt as error:
            kept.append(error)  # with its traceback and all frames
    end([shop.send("a")])
    assert shop.served == ["a"] and len(kept) == 2
