"""The tokenizer: text to token ids and back, and conversations to prompts.

The work is done by Hugging Face's `tokenizers` library, from the files of a model folder
(`tokenizer_files.py`). What is added here are the special tokens' names and the chat templates
(`chat/template.py`). Methods, defaults and results are those of a tokenizer of `transformers`, which is what
vLLM's `get_tokenizer` gives, so examples written for it run.

Read next: `minivllm/decoding/detokenizer.py` for how text comes out token by token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from minivllm.model.chat.template import ChatTemplates
from minivllm.model.token_bytes import read_token_bytes
from minivllm.model.tokenizer_files import TokenizerError, TokenizerFiles, is_of_library, read_folder
from minivllm.validation import check_list, check_text, shown

__all__ = ["Tokenizer", "TokenizerError"]

NO_LIMIT_TOKENS = int(1e30)
"""What `transformers` says where a folder names no longest text."""
LAST_ID = 2**32 - 1
"""That the library has room for."""
NOT_DONE_HERE = (
    "max_length",
    "padding",
    "return_assistant_tokens_mask",
    "return_tensors",
    "sanitize_control_tokens",
    "tokenizer_kwargs",
    "truncation",
)
"""Arguments of `transformers` that would otherwise be taken for variables of a chat template."""


class Tokenizer:
    """Encodes and decodes text with one model's vocabulary. Build it with `from_folder`.

    Attributes:
        bos_token, eos_token, pad_token, unk_token: special tokens by name, or None; with `_id`, their ids.
        chat_templates: the model's templates, to choose from and to render.
    """

    def __init__(self, files: TokenizerFiles | tokenizers.Tokenizer, source: str = "this tokenizer") -> None:
        if isinstance(files, tokenizers.Tokenizer):
            files = TokenizerFiles(files)
        self._backend = files.backend
        self._source = source
        self.special_tokens_map = dict(files.special_tokens)
        self.bos_token, self.bos_token_id = self._special("bos_token")
        self.eos_token, self.eos_token_id = self._special("eos_token")
        self.pad_token, self.pad_token_id = self._special("pad_token")
        self.unk_token, self.unk_token_id = self._special("unk_token")
        named = (*files.special_tokens.values(), *files.extra_special_tokens)
        self.all_special_tokens = list(dict.fromkeys(named))
        self.model_max_length = files.model_max_length or NO_LIMIT_TOKENS
        self.chat_templates = ChatTemplates(files.chat_templates, files.special_tokens, source)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Load `tokenizer.json`, and what other files say about names and templates, if they are there.

        Raises:
            TokenizerError: a file is missing or cannot be understood; the message names it.
        """
        return cls(read_folder(Path(folder)), str(folder))

    def __len__(self) -> int:
        """Tokens of the vocabulary, added ones included."""
        return int(self._backend.get_vocab_size())

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary, without added ones."""
        return int(self._backend.get_vocab_size(with_added_tokens=False))

    @property
    def all_special_ids(self) -> list[int]:
        return [self.convert_tokens_to_ids(token) for token in self.all_special_tokens]

    @property
    def chat_template(self) -> str | Mapping[str, str] | None:
        """The model's chat template, or several by name."""
        return self.chat_templates.templates

    def get_vocab(self) -> dict[str, int]:
        """Ids by token, added tokens included."""
        vocabulary: dict[str, int] = self._backend.get_vocab()
        return vocabulary

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The token ids of `text`; with special tokens, the model's own beginning is added.

        What that is, tokenizer.json alone says: `add_bos_token` in tokenizer_config.json has no effect, as in
        `transformers` 5.
        """
        text = check_text("text", text)
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except BaseException as error:
            if not is_of_library(error):
                raise
            raise TokenizerError(f"tokenizer.json of {self._source} fails on this text: {error}") from error
        return ids

    def __call__(self, text: str | Sequence[str], add_special_tokens: bool = True) -> dict[str, Any]:
        """The token ids of one text or of several as `{"input_ids": …, "attention_mask": …}`."""
        if isinstance(text, str):
            return _with_mask(self.encode(text, add_special_tokens))
        return _with_mask([self.encode(one, add_special_tokens) for one in text])

    def decode(self, token_ids: int | Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids; ids without a token, as padded vocabularies have them, are left out.

        `clean_up_tokenization_spaces` in tokenizer_config.json has no effect, as in `transformers` 5 for the
        tokenizers of the supported models, which are BPE.
        """
        try:
            ids = token_ids if type(token_ids) is list else _as_list(token_ids)
            return str(self._backend.decode(ids, skip_special_tokens=skip_special_tokens))
        except (TypeError, OverflowError):
            raise _not_ids(token_ids) from None

    def batch_decode(self, many: Sequence[Sequence[int]], skip_special_tokens: bool = False) -> list[str]:
        return [self.decode(token_ids, skip_special_tokens) for token_ids in many]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The ids of tokens given by their exact names; an unknown one has the unknown token's, or None."""
        if isinstance(tokens, str):
            token_id = self.token_to_id(check_text("tokens", tokens))
            return self.unk_token_id if token_id is None else token_id
        names = check_list("tokens", tokens, of="tokens by their names")
        return [self.convert_tokens_to_ids(check_text("tokens", name)) for name in names]

    def convert_ids_to_tokens(self, ids: int | Sequence[int], skip_special_tokens: bool = False) -> Any:
        """The exact names of tokens (`Ġthe`, `▁the`); None for ids without one."""
        try:
            if isinstance(ids, int) or getattr(ids, "ndim", 1) == 0:
                return self._backend.id_to_token(int(ids))  # type: ignore[arg-type]
            skipped = set(self.all_special_ids) if skip_special_tokens else set()
            return [self._backend.id_to_token(one) for one in _as_list(ids) if one not in skipped]
        except (TypeError, OverflowError):
            raise _not_ids(ids) from None

    def token_to_id(self, token: str) -> int | None:
        """The id of a token given by its exact name, or None."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def token_text(self, token_id: int) -> str:
        """The text of one token by itself, special ones and a leading space included, to show to people."""
        text = self.decode(token_id)
        token = self.convert_ids_to_tokens(token_id)
        # Decoders of "▁" tokenizers take the first space of a text for their own addition.
        return " " + text if token and token.startswith("▁") and len(text) < len(token) else text

    def token_bytes(self) -> list[bytes | None]:
        """The bytes that each token stands for, by id; None for special ones (`token_bytes.py`).

        Raises:
            ValueError: tokens of this tokenizer do not stand for bytes.
        """
        added = self._backend.get_added_tokens_decoder()
        special = {token_id for token_id, token in added.items() if token.special}
        special.update(token for token in self.all_special_ids if token is not None)
        return read_token_bytes(self._backend.to_str(), self.get_vocab(), special)

    def get_chat_template(
        self, chat_template: str | None = None, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str:
        """The text of the chat template that `apply_chat_template` would use."""
        return self.chat_templates.choose(chat_template, tools)

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        *,
        return_dict: bool = True,
        **variables: Any,
    ) -> Any:
        """The prompt of a conversation (or of several), as text or as token ids.

        The text has its special tokens already. `LLM.generate` would add its own, and the prompt would begin
        with two BOS: give it the ids, or use `LLM.chat`.

        Args:
            conversation, …, continue_final_message: as for `ChatTemplates.render_template`.
            tokenize: give token ids, not the text.
            return_dict: give them as `{"input_ids": …, "attention_mask": …}`.
            variables: what else the template may read, such as `enable_thinking`.

        Raises:
            ValueError: the messages or another argument are not of the right form, the model has no chat
                template, or the template refuses them (an order of roles it does not know, say).
        """
        for name in NOT_DONE_HERE:
            if variables.pop(name, None):
                raise ValueError(f"apply_chat_template does not have {name} here: use it on the token ids")
        is_batch = isinstance(conversation, Sequence) and any(isinstance(one, list) for one in conversation)
        many: Any = conversation if is_batch else [conversation]
        texts = [
            self.chat_templates.render_template(
                messages,
                tools=tools,
                documents=documents,
                chat_template=chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                variables=variables,
            )
            for messages in many
        ]
        made: Any = [self.encode(text, add_special_tokens=False) for text in texts] if tokenize else texts
        made = made if is_batch else made[0]
        return _with_mask(made) if tokenize and return_dict else made

    def _special(self, name: str) -> tuple[str | None, int | None]:
        token = self.special_tokens_map.get(name)
        return token, None if token is None else self.token_to_id(token)


def _as_list(value: Any) -> list[int]:
    """One token id or several, of Python's numbers, numpy's or a tensor's."""
    plain = value.tolist() if hasattr(value, "tolist") else value
    return [plain] if isinstance(plain, int) else list(plain)


def _not_ids(value: object) -> ValueError:
    """What is said of one that the library has no room for."""
    return ValueError(f"token_ids must be integers from 0 to {LAST_ID}, got {shown(value)}")


def _with_mask(input_ids: list[Any]) -> dict[str, Any]:
    """The token ids of one text, or of several, in the form of `transformers`; nothing is padded here."""
    is_batch = any(isinstance(ids, list) for ids in input_ids)
    mask = [[1] * len(ids) for ids in input_ids] if is_batch else [1] * len(input_ids)
    return {"input_ids": input_ids, "attention_mask": mask}
