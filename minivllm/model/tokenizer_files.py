"""What a model's folder says about its tokenizer, in up to six files.

    tokenizer.json              the vocabulary and how text is cut; here it is a must
    tokenizer_config.json       special tokens by name, tokens that were added, the chat templates
    special_tokens_map.json     the names, in folders from older programs
    added_tokens.json           the added tokens, likewise
    chat_template.jinja         the template; additional_chat_templates/NAME.jinja, the others
    chat_template.json          the template, in folders of multimodal models

A token that only one of the later files knows is added to the vocabulary, so that `<|im_start|>` is one token
in both directions. `added_tokens_decoder` in tokenizer_config.json replaces the two older files.

Source: `PreTrainedTokenizerBase.from_pretrained` of `transformers` 5, with the same result (a property test).
Read next: `tokenizer.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from minivllm.model.hub import pointer_hint
from minivllm.model.json_file import read_json_object, read_text
from minivllm.validation import check_text

SPECIAL_TOKEN_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
MAX_TOKENIZER_BYTES = 512 << 20
"""Far above any (some 40 MB); the library would read all of it before it says that it is none."""


class TokenizerError(ValueError):
    """A tokenizer that cannot be loaded or used, and why, naming the file."""


@dataclass
class TokenizerFiles:
    """A tokenizer's folder, read."""

    backend: tokenizers.Tokenizer
    special_tokens: dict[str, str] = field(default_factory=dict)
    """The special tokens by their names, `bos_token` and the like."""
    extra_special_tokens: list[str] = field(default_factory=list)
    """Special tokens without such a name."""
    chat_templates: str | dict[str, str] | None = None
    model_max_length: int | None = None


def read_folder(folder: Path) -> TokenizerFiles:
    """Read what there is.

    Raises:
        TokenizerError: a file is missing or cannot be understood; the message names it.
    """
    backend = _read_backend(folder)
    where, older = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    settings = _read_json(where)
    added: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in settings:
        added = _added_by_id(settings["added_tokens_decoder"], f"added_tokens_decoder in {where}")
    else:
        if "additional_special_tokens" in settings:  # of its two names, the newer one
            settings.setdefault("extra_special_tokens", settings.pop("additional_special_tokens"))
        settings.update(_checked(_read_json(older), older))
    named, extra = dict(_named_tokens(settings, where)), list(_extra_tokens(settings, where))
    if "added_tokens_decoder" not in settings:
        special = {token.content for token in (*named.values(), *extra)}
        added = _added_by_text(folder / "added_tokens.json", special, backend.get_added_tokens_decoder())
    _add_tokens(backend, added, named, extra)
    return TokenizerFiles(
        backend,
        {name: token.content for name, token in named.items()},
        [token.content for token in extra],
        _read_chat_templates(folder, settings),
        _whole_number(settings.get("model_max_length")),
    )


def _read_backend(folder: Path) -> tokenizers.Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise TokenizerError(
            f"{folder} has no tokenizer.json; a tokenizer in an older format must be converted first "
            "(`transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)`)"
        )
    if (size := path.stat().st_size) > MAX_TOKENIZER_BYTES:
        raise TokenizerError(f"{path} has {size:,} bytes; a tokenizer has at most {MAX_TOKENIZER_BYTES:,}")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except BaseException as error:
        if not is_of_library(error):
            raise
        hint = pointer_hint(path)
        raise TokenizerError(f"{path} is not a tokenizer that can be read: {error}{hint}") from error
    # A file may carry the padding and truncation of its training; a prompt wants neither.
    backend.no_padding()
    backend.no_truncation()
    return backend


def is_of_library(error: BaseException) -> bool:
    """The library is written in Rust: its errors are bare Exceptions, and its panics (a pattern that
    explodes, say) are none at all."""
    return type(error) is Exception or type(error).__name__ == "PanicException"


def _add_tokens(
    backend: tokenizers.Tokenizer,
    added: Mapping[int, AddedToken],
    named: Mapping[str, AddedToken],
    extra: list[AddedToken],
) -> None:
    """Teach the vocabulary what tokenizer.json does not know, in the order of the ids."""
    known = backend.get_added_tokens_decoder()
    exactly = {repr(token) for token in known.values()}
    new = [token for _, token in sorted(added.items()) if repr(token) not in exactly]
    texts = {token.content for token in (*known.values(), *new)}
    names = {token.content for token in named.values()}
    for token in (*named.values(), *extra):
        if token.content not in texts:
            texts.add(token.content)
            new.append(token)
    for token in new:
        token.special = token.special or token.content in names
    backend.add_tokens(new)


def _added_by_id(value: object, where: str) -> dict[int, AddedToken]:
    """`added_tokens_decoder`: a record for each id."""
    if not isinstance(value, Mapping):
        raise TokenizerError(f"{where} must be an object, got {value!r:.100}")
    added = {}
    for token_id, token in value.items():
        if not isinstance(token, Mapping) or not str(token_id).isdecimal():
            raise TokenizerError(f"{where}: {token_id!r:.20} must be an id with a record, got {token!r:.100}")
        added[int(token_id)] = _token({"__type": "AddedToken", **token}, f"{where}: {token_id}")
    return added


def _added_by_text(path: Path, special: set[str], known: Mapping[int, Any]) -> dict[int, AddedToken]:
    """added_tokens.json: an id for each text. About ids that tokenizer.json has, it says nothing new."""
    added = {}
    for text, token_id in _read_json(path).items():
        if isinstance(token_id, bool) or not isinstance(token_id, int):
            raise TokenizerError(f"{path}: the id of {text!r:.50} must be an integer, got {token_id!r:.50}")
        if token_id not in known:
            is_special = text in special
            added[token_id] = AddedToken(text, normalized=not is_special, special=is_special)
    return added


def _checked(settings: Mapping[str, Any], where: Path) -> Mapping[str, Any]:
    """The same, if its tokens are right: once files are joined, nobody knows where a wrong one stood."""
    for _ in (*_named_tokens(settings, where), *_extra_tokens(settings, where)):
        pass
    return settings


def _named_tokens(settings: Mapping[str, Any], where: Path) -> Iterator[tuple[str, AddedToken]]:
    """The special tokens that have a name: the usual seven, and those of one model (`image_token`)."""
    for name in dict.fromkeys((*SPECIAL_TOKEN_NAMES, *settings)):
        value = settings.get(name)
        if value is None or not name.endswith("_token"):
            continue
        if isinstance(value, str | Mapping):
            yield name, _token(value, f"{name} in {where}")
        elif name in SPECIAL_TOKEN_NAMES:
            raise TokenizerError(f"{name} in {where} must be a token or null, got {value!r:.100}")
    extra = settings.get("extra_special_tokens")
    if isinstance(extra, Mapping):
        for name, value in extra.items():
            yield name, _token(value, f"extra_special_tokens: {name} in {where}")


def _extra_tokens(settings: Mapping[str, Any], where: Path) -> Iterator[AddedToken]:
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    if isinstance(extra, Mapping):
        return  # they have names
    if not isinstance(extra, list):
        raise TokenizerError(f"additional_special_tokens in {where} must be a list, got {extra!r:.100}")
    for value in extra:
        yield _token(value, f"additional_special_tokens in {where}")


def _token(value: Any, where: str) -> AddedToken:
    """A token as a string, or as a record with its `content` and how it is found in a text."""
    record = {"content": value} if isinstance(value, str) else value
    if not isinstance(record, Mapping) or not isinstance(record.get("content"), str):
        raise TokenizerError(f"{where} must be a token or a record of one, got {value!r:.100}")
    try:
        check_text(where, record["content"])
    except ValueError as error:  # JSON can write half of a surrogate pair
        raise TokenizerError(str(error)) from None
    is_complete = "__type" in record  # other records do not say `special`, and mean it
    record = {"special": not is_complete, **{key: item for key, item in record.items() if key != "__type"}}
    try:
        return AddedToken(**record)
    except TypeError as error:
        raise TokenizerError(f"{where} is not a record of a token: {error}") from error


def _read_chat_templates(folder: Path, settings: Mapping[str, Any]) -> str | dict[str, str] | None:
    """One template, or several by name. Those in files of their own come first."""
    files = {
        path.stem: _read(path) for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))
    }
    if (folder / "chat_template.jinja").is_file():
        files["default"] = _read(folder / "chat_template.jinja")
    if files:
        return files["default"] if list(files) == ["default"] else files
    place = folder / "tokenizer_config.json"
    template = settings.get("chat_template")
    if template is None:
        place = folder / "chat_template.json"
        template = _read_json(place).get("chat_template")
    if isinstance(template, list):
        try:
            template = {item["name"]: item["template"] for item in template}
        except (TypeError, KeyError):
            raise TokenizerError(f"chat_template in {place} must be a list of names with templates") from None
    texts = list(template.values()) if isinstance(template, dict) else [template or ""]
    if not all(isinstance(text, str) for text in texts):
        raise TokenizerError(
            f"chat_template in {place} must be a string, or strings by name, got {template!r:.100}"
        )
    return template


def _whole_number(value: object) -> int | None:
    """`model_max_length`, which is 1e30 where no limit is meant."""
    return int(value) if isinstance(value, int | float) and 0 < value < 2**31 else None


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except ValueError as error:
        raise TokenizerError(str(error)) from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return read_json_object(path)
    except ValueError as error:
        raise TokenizerError(str(error)) from error
