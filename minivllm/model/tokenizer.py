"""The tokenizer: text to token ids and back, and conversations to prompts.

The work is done by Hugging Face's `tokenizers` library, from the `tokenizer.json` of a model folder. What
is added here is what that file does not say: the chat template (a small Jinja program that turns a list of
messages into the one string that the model was trained on) and a few special tokens' names, both from
`tokenizer_config.json`.

Read next: `minivllm/decoding/detokenizer.py` for how text comes out token by token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import tokenizers
from jinja2.sandbox import ImmutableSandboxedEnvironment

from minivllm.validation import check_text


class TokenizerError(ValueError):
    """A tokenizer that cannot be loaded or used, and why, naming the file."""


class Tokenizer:
    """Encodes and decodes text with one model's vocabulary. Build it with `from_folder`."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        settings: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
        source: str = "this tokenizer",
    ) -> None:
        settings = settings or {}
        self._backend = backend
        self._chat_template = chat_template
        self._compiled: jinja2.Template | None = None
        self._source = source
        texts = {name: _token_text(value) for name, value in settings.items() if name.endswith("_token")}
        self._special = {name: text for name, text in texts.items() if text is not None}
        self.bos_token = self._special.get("bos_token")
        self.eos_token = self._special.get("eos_token")

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Load `tokenizer.json`, and `tokenizer_config.json` and `chat_template.jinja` if they are there.

        Raises:
            TokenizerError: a file is missing or cannot be understood; the message names it.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise TokenizerError(
                f"{folder} has no tokenizer.json; a tokenizer in an older format must be converted first "
                "(`transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)`)"
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exceptions
            raise TokenizerError(f"{path} is not a tokenizer that can be read: {error}") from error
        # A file may carry the padding and truncation of its training; a prompt wants neither.
        backend.no_padding()
        backend.no_truncation()
        settings = _read_json(folder / "tokenizer_config.json")
        return cls(backend, settings, _find_chat_template(folder, settings), str(folder))

    @property
    def vocab_size(self) -> int:
        return int(self._backend.get_vocab_size())

    @property
    def has_chat_template(self) -> bool:
        return self._chat_template is not None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The token ids of `text`; with special tokens, the model's own beginning is added.

        What that is, tokenizer.json alone says: `add_bos_token` in tokenizer_config.json has no effect, as in
        `transformers` 5.
        """
        text = check_text("text", text)
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; ids without a token, as padded vocabularies have them, are left out."""
        return str(self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def token_to_id(self, token: str) -> int | None:
        """The id of a token given by its exact name, or None."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def token_text(self, token_id: int) -> str:
        """The text of one token by itself, special ones and a leading space included, to show to people."""
        text = self.decode([token_id], skip_special_tokens=False)
        token = self._backend.id_to_token(token_id)
        # Decoders of "▁" tokenizers take the first space of a text for their own addition.
        return " " + text if token and token.startswith("▁") and len(text) < len(token) else text

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt of a conversation. It has its special tokens already: encode it without adding any.

        Raises:
            ValueError: the messages are not `{"role": str, "content": str}` each, the tokenizer has no chat
                template, or the template refuses them (an order of roles it does not know, say).
        """
        _check_messages(messages)
        if self._chat_template is None:
            raise TokenizerError(
                f"{self._source} has no chat template: use `generate` with a prompt of your own making"
            )
        if self._compiled is None:
            try:
                self._compiled = _environment().from_string(self._chat_template)
            except jinja2.TemplateError as error:
                raise TokenizerError(f"the chat template of {self._source} is broken: {error}") from error
        try:
            return self._compiled.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **{"tools": None, "documents": None, **self._special, **variables},
            )
        except Exception as error:  # a template is a program: whatever it does wrong, these messages are why
            raise TokenizerError(
                f"the chat template of {self._source} refuses these messages: {error}"
            ) from error


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %} … {% endgeneration %}` marks what to train on: here the marks are dropped."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own way)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja as `transformers` sets it up, sandboxed: a template is a program from a downloaded file."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationTag]
    )

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _check_messages(messages: object) -> None:
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise ValueError(f"messages must be a list of messages that is not empty, got {messages!r}")
    for index, message in enumerate(messages):
        wanted = f'messages[{index}] must be {{"role": …, "content": …}} with two strings'
        if not isinstance(message, Mapping):
            raise ValueError(f"{wanted}, got {message!r}")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise ValueError(f"{wanted}; its {key!r} is {message.get(key)!r}")


def _token_text(value: object) -> str | None:
    """A special token as tokenizer_config.json gives it: a string, a record with its content, or nothing."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _find_chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """From a file of its own, or from tokenizer_config.json: one template, or several by name."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return _read(file)
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, Mapping)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path} cannot be read as text: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise TokenizerError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} must hold a JSON object")
    return content
