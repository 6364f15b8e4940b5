"""A function is called once for each part, with the arguments given, on the threads that Numba has."""

import numba
import numpy as np
import pytest
from numba.np.ufunc.parallel import get_thread_id

from kernels_numba.cpu.parallel import in_parallel


@numba.njit(nogil=True)
def note(part, calls, threads, added, is_doubled):
    calls[part] += np.int64(added) * (2 if is_doubled else 1)
    threads[part] = get_thread_id()


@numba.njit(nogil=True)
def note_all(calls, threads, added, is_doubled):
    in_parallel(note, len(calls), (calls, threads, added, is_doubled))


@pytest.mark.parametrize("num_parts", [0, 1, 2, 3, 8, 100])
def test_each_part_is_called_once_on_as_many_threads_as_are_allowed(num_parts):
    before = numba.get_num_threads()
    try:
        for num_threads in {1, min(2, numba.config.NUMBA_NUM_THREADS)}:
            numba.set_num_threads(num_threads)
            calls, threads = np.zeros(num_parts, np.int64), np.full(num_parts, -1)
            note_all(calls, threads, np.float32(3), True)
            assert (calls == 6).all()
            assert set(threads) <= set(range(num_threads))
    finally:
        numba.set_num_threads(before)
