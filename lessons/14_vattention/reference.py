"""vAttention: contiguous addresses for every request, and pages of memory behind them only where tokens are.

An address costs nothing, so each request gets ranges of addresses that are long enough for the longest one:
for the keys of each layer, and for its values. Memory comes in pages, and a page table says which page is
behind which address. It is the machine's own table, so a program that reads an address need not know of it:

    addresses   0    16   32   48            a range of 4 pages of 16 bytes, a token has 6 bytes
                ▓▓▓▓ ▓▓░░ ···· ····          4 tokens are 24 bytes: two pages, the second one half empty
    page table  5    2    –    –             token 2 lies in bytes 12 … 17: in page 5 and in page 2

To grow is to map one more page at the end of each range. Nothing moves, and nothing is copied.

Source: Prabhu et al., "vAttention: Dynamic Memory Management for Serving LLMs without PagedAttention" (2024),
sections 5 and 6. In the engine: minivllm/memory/virtual_memory.py, minivllm/executor/virtual_storage.py.
"""

from __future__ import annotations

KEYS, VALUES = 0, 1


class Machine:
    """Addresses and pages, as a driver has them: on a GPU cuMemAddressReserve, cuMemMap and cuMemUnmap.

    This one has no memory, only the page table. What judges you is another one, with memory in it; the two
    have the methods in common, and these attributes:

    Attributes:
        num_pages: pages of memory, numbered from 0. Any of them can be behind any address.
        page_bytes: bytes of a page.
    """

    # given
    def __init__(self, num_pages: int, page_bytes: int) -> None:
        self.num_pages, self.page_bytes = num_pages, page_bytes
        self.page_table: dict[int, int] = {}
        self._next_address = page_bytes

    # given
    def reserve(self, num_bytes: int) -> int:
        """A new range of addresses, in whole pages, with no memory behind it; the first address of it.

        The address is a multiple of `page_bytes`. The ranges of two calls need not be side by side.
        """
        first = self._next_address
        self._next_address += -(-num_bytes // self.page_bytes) * self.page_bytes
        return first

    # given
    def map(self, address: int, page: int) -> None:
        """Put a page behind the addresses from `address`, a multiple of `page_bytes`, which have none yet.

        What is in the page stays in it: it may be what another request has left there.
        """
        if address % self.page_bytes or not self.page_bytes <= address < self._next_address:
            raise ValueError(f"no page begins at address {address}")
        if address in self.page_table or page not in range(self.num_pages):
            raise ValueError(f"page {page} cannot be put behind address {address}")
        self.page_table[address] = page

    # given
    def unmap(self, address: int) -> None:
        """Take the page away from behind the addresses from `address`."""
        del self.page_table[address]


def pages_needed(num_tokens: int, token_bytes: int, page_bytes: int) -> int:
    """Fewest pages that hold `num_tokens` tokens side by side, from the beginning of a page; 0 for none."""
    return -(-num_tokens * token_bytes // page_bytes)


class VirtualKV:
    """Keys and values of many requests: contiguous addresses, and pages on demand.

    Each request has a slot, and each slot has a range of addresses for the keys of each layer, and one for
    the values. No page has anything of two ranges in it. Slots and pages that are freed are used again, in
    any order.
    """

    def __init__(
        self, machine: Machine, num_layers: int, token_bytes: int, max_tokens: int, max_requests: int
    ) -> None:
        """Reserve all addresses that there will ever be, here and not later. No page is mapped.

        All pages of the machine are for this cache. All numbers are at least 1.

        Args:
            token_bytes: bytes of one token's keys in one layer; its values have as many.
            max_tokens: tokens of the longest request.
            max_requests: slots.
        """
        self._machine = machine
        self._num_layers, self._token_bytes, self._max_tokens = num_layers, token_bytes, max_tokens
        self._max_requests = max_requests
        self._range_bytes = pages_needed(max_tokens, token_bytes, machine.page_bytes) * machine.page_bytes
        self._first_address = machine.reserve(2 * num_layers * max_requests * self._range_bytes)
        self._free_pages = list(range(machine.num_pages))
        self._free_slots = list(range(max_requests))
        self._num_tokens: dict[int, int] = {}  # by slot
        self._mapped: dict[int, dict[int, int]] = {}  # slot → address → page

    @property
    def num_free_pages(self) -> int:
        """Pages that are behind no address."""
        return len(self._free_pages)

    @property
    def wasted_bytes(self) -> int:
        """Bytes of mapped pages in which no token lies: those behind the last token of each range."""
        mapped = (self._machine.num_pages - len(self._free_pages)) * self._machine.page_bytes
        return mapped - 2 * self._num_layers * self._token_bytes * sum(self._num_tokens.values())

    def address(self, slot: int, layer: int, part: int) -> int:
        """Where the keys (`part` is KEYS) or values (VALUES) of a request begin, in a layer.

        Token t has the `token_bytes` addresses from `address(…) + t * token_bytes` on, for every t below
        `max_tokens`. The address is a multiple of `page_bytes`. It stays the same as long as the request has
        its slot. Only the slots of admitted requests are asked for, and layers that exist.
        """
        row = (2 * layer + part) * self._max_requests + slot
        return self._first_address + row * self._range_bytes

    def admit(self) -> int | None:
        """Give a new request a slot, and no page yet; its number is 0 … max_requests - 1.

        Returns:
            The slot; None if other requests have all of them.
        """
        if not self._free_slots:
            return None
        slot = self._free_slots.pop()
        self._num_tokens[slot], self._mapped[slot] = 0, {}
        return slot

    def grow(self, slot: int, num_tokens: int) -> bool:
        """Let a request have memory behind the addresses of its first `num_tokens` tokens, in all layers.

        Only what is missing is mapped: a page that is behind an address stays there until the request is
        freed. So with fewer tokens than before, nothing changes.

        Returns:
            Whether it was done. False if fewer pages are free than are missing, and then nothing has changed.

        Raises:
            ValueError: no request has this slot, or `num_tokens` is not 0 … max_tokens; nothing has changed.
        """
        if slot not in self._mapped:
            raise ValueError(f"no request has slot {slot}")
        if not 0 <= num_tokens <= self._max_tokens:
            raise ValueError(f"num_tokens must be 0 … {self._max_tokens}, got {num_tokens}")
        size = self._machine.page_bytes
        first = pages_needed(self._num_tokens[slot], self._token_bytes, size)
        end = pages_needed(num_tokens, self._token_bytes, size)
        if 2 * self._num_layers * (end - first) > len(self._free_pages):
            return False
        for layer in range(self._num_layers):
            for part in (KEYS, VALUES):
                start = self.address(slot, layer, part)
                for address in range(start + first * size, start + end * size, size):
                    page = self._free_pages.pop()
                    self._machine.map(address, page)
                    self._mapped[slot][address] = page
        self._num_tokens[slot] = max(num_tokens, self._num_tokens[slot])
        return True

    def free(self, slot: int) -> None:
        """The request is done: its pages are behind no address any more, and they and its slot are free.

        Raises:
            ValueError: no request has this slot; nothing has changed.
        """
        if slot not in self._mapped:
            raise ValueError(f"no request has slot {slot}")
        for address, page in self._mapped.pop(slot).items():
            self._machine.unmap(address)
            self._free_pages.append(page)
        del self._num_tokens[slot]
        self._free_slots.append(slot)
