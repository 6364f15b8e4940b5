"""What prompts are made of: new tokens, or a beginning that many requests share.

    RandomPrompts       [ own tokens ]                          a prefix cache finds nothing
    SharedPrefixes      [ prefix 2 of k ][ own tokens ]         a prefix cache finds the prefix

A service with a few system prompts looks like the second: what users write differs, what stands before it
does not. Tokens are random, because for how long a request takes only their number counts, and for what a
prefix cache finds only whether they are equal.

Read next: `mix.py`.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import Protocol

from minivllm.lab.workloads.draws import FIRST_ORDINARY_TOKEN, LARGEST_VOCABULARY, ordinary_tokens, uniforms
from minivllm.validation import check_integer


class Prompts(Protocol):
    """Makes a prompt from its name and its length."""

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens that stand before a request's own."""
        ...

    def own_tokens(self, key: str, count: int) -> array[int]:
        """Tokens without a prefix: of the same key the same."""
        ...

    def prompt(self, key: str, num_own_tokens: int) -> array[int]:
        """The prefix, if there is one, and so many tokens of its own."""
        ...


@dataclass(frozen=True)
class RandomPrompts:
    """Every prompt is new from its first token on."""

    vocab_size: int

    def __post_init__(self) -> None:
        check_vocabulary(self.vocab_size)

    @property
    def num_prefix_tokens(self) -> int:
        return 0

    def own_tokens(self, key: str, count: int) -> array[int]:
        return ordinary_tokens(key, count, self.vocab_size)

    prompt = own_tokens


@dataclass(frozen=True)
class SharedPrefixes:
    """Every prompt begins with one of `num_prefixes` prefixes, each as likely as the others."""

    vocab_size: int
    num_prefix_tokens: int
    num_prefixes: int = 1
    seed: int = 0
    """Of the prefixes; what follows them goes by the request's key."""
    prefixes: tuple[array[int], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_vocabulary(self.vocab_size)
        check_integer("num_prefix_tokens", self.num_prefix_tokens, at_least=1)
        check_integer("num_prefixes", self.num_prefixes, at_least=1)
        check_integer("seed", self.seed)
        prefixes = tuple(
            self.own_tokens(f"{self.seed}:prefix {index}", self.num_prefix_tokens)
            for index in range(self.num_prefixes)
        )
        object.__setattr__(self, "prefixes", prefixes)

    def own_tokens(self, key: str, count: int) -> array[int]:
        return ordinary_tokens(key, count, self.vocab_size)

    def prompt(self, key: str, num_own_tokens: int) -> array[int]:
        (choice,) = uniforms(f"{key}:prefix", 1)
        return self.prefixes[int(choice * self.num_prefixes)] + self.own_tokens(key, num_own_tokens)


def check_vocabulary(vocab_size: int) -> None:
    """Raise `ValueError` unless there is at least one ordinary token, and all fit into 32 bits."""
    check_integer("vocab_size", vocab_size, at_least=FIRST_ORDINARY_TOKEN + 1, at_most=LARGEST_VOCABULARY)
