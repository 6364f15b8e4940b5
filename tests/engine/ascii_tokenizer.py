"""A tokenizer for the fake model: a token is a character of ASCII, or two; some end a text."""

from tests.engine.fakes import VOCAB_SIZE
from tests.engine.test_sharing import EOS

PAIRS = {1: "ab", 2: '{"', 4: "00", 5: "ba"}


LETTERS = 'abcdefghijklmnopqrstuvwxyz0123456789{}[]":,. -+ABCDEFGHIJKLMNOPQRSTUVWXYZ_!?()*/=<>|\\\n'


class AsciiTokenizer:
    """What the engine needs of a tokenizer, for 97 tokens."""

    def __init__(self):
        letters = iter(
            'abcdefghijklmnopqrstuvwxyz0123456789{}[]":,. -+ABCDEFGHIJKLMNOPQRSTUVWXYZ_!?()*/=<>|\\\n'
        )
        self.texts = [
            None if token in EOS else PAIRS.get(token) or next(letters, "~") for token in range(VOCAB_SIZE)
        ]

    def token_bytes(self):
        return [None if text is None else text.encode() for text in self.texts]

    def decode(self, token_ids, skip_special_tokens=True):
        return "".join(self.texts[token] or "" for token in token_ids)

    def token_text(self, token_id):
        return self.texts[token_id] or "<end>"
