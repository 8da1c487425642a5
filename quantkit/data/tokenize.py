"""Texts to token ids, with the model's own tokenizer.

A folder with a `tokenizer.json` is read by `tokenizers` directly: 0.06 s with its import, where transformers'
`AutoTokenizer` takes 0.95 s and `PreTrainedTokenizerFast` 0.7 s, plus the import of torch wherever that is installed,
because transformers then imports it. The ids are the same (a test compares them). transformers does the work where
`tokenizer.json` alone cannot be trusted: it is missing, or `tokenizer_config.json` contradicts it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit.environment import variable
from quantkit.errors import InputError, ModelError
from quantkit.types import Array

if TYPE_CHECKING:
    import tokenizers

VOCABULARIES = ("vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
"""Files that transformers can make a tokenizer from when there is no tokenizer.json."""

_NORMALIZER_SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
"""Settings of tokenizer_config.json and what tokenizer.json calls them; transformers lets the former win."""


@dataclass(frozen=True, eq=False)
class TextTokenizer:
    """A tokenizer and what the model it belongs to can take.

    Attributes:
        backend: the `tokenizers.Tokenizer`; `encode` sets its truncation, so it serves one thread at a time.
        folder: where it was read.
        max_length: most tokens the model takes, special ones included.
        pad_id: id of the padding token.
        vocab_size: token ids of the model end before this; 0 when its config.json does not say.
        type_vocab_size: token types of the model; 0 when its config.json does not say.
    """

    backend: tokenizers.Tokenizer
    folder: Path
    max_length: int
    pad_id: int
    vocab_size: int
    type_vocab_size: int


@dataclass(frozen=True, eq=False)
class Encoded:
    """Texts as token ids, not padded.

    Attributes:
        input_ids: one int64 array a text, special tokens included.
        type_ids: token types, arrays of the same lengths.
        truncated: how many texts were longer than `max_length` and were cut.
        max_length: most tokens a text may have here: what was asked for, or the model's limit where that is lower.
        pad_id: id of the padding token.
    """

    input_ids: tuple[Array, ...]
    type_ids: tuple[Array, ...]
    truncated: int
    max_length: int
    pad_id: int

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> Array:
        """Tokens of each text, int64, shape (texts,)."""
        return np.array([len(ids) for ids in self.input_ids], dtype=np.int64)

    def take(self, rows: Sequence[int] | Array) -> Encoded:
        """The texts with these numbers, in this order; `truncated` still counts the whole it was taken from."""
        return replace(
            self,
            input_ids=tuple(self.input_ids[i] for i in rows),
            type_ids=tuple(self.type_ids[i] for i in rows),
        )


def load_tokenizer(model: str | Path) -> TextTokenizer:
    """The tokenizer in a model's folder; nothing is downloaded and no code of the folder is run.

    Args:
        model: a folder in Hugging Face layout, or a file in one (an .onnx beside its tokenizer).

    Raises:
        ModelError: there is no such folder, it holds no tokenizer, or a file of it cannot be read.
    """
    folder = Path(model)
    if folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        raise ModelError(f"There is no folder {folder} to read a tokenizer from.", "Check the path.")
    settings = _read_json(folder / "tokenizer_config.json")
    config = _read_json(folder / "config.json")
    backend = _read_tokenizer_json(folder, settings)
    if backend is None:
        backend = _read_through_transformers(folder)
    # A tokenizer.json may carry the padding and truncation it was trained with; batches are padded here.
    pad_id = _pad_id(backend, settings, config)
    backend.no_padding()
    backend.no_truncation()
    limits = [settings.get("model_max_length"), config.get("max_position_embeddings")]
    # "No limit" is written as 10^30 in tokenizer_config.json.
    known = [int(limit) for limit in limits if isinstance(limit, (int, float)) and 0 < limit < 2**31]
    return TextTokenizer(
        backend,
        folder,
        max_length=min(known, default=512),
        pad_id=pad_id,
        vocab_size=int(config.get("vocab_size", 0)),
        type_vocab_size=int(config.get("type_vocab_size", 0)),
    )


def encode(tokenizer: TextTokenizer, texts: Sequence[Sequence[str]], max_length: int | None = None) -> Encoded:
    """Tokenizes sentences or pairs; what is too long is cut (of a pair, the longer half first) and counted.

    Args:
        tokenizer: from `load_tokenizer`.
        texts: one row a text, of one or two sentences.
        max_length: most tokens, special ones included; None or more than the model takes means the model's limit.

    Raises:
        InputError: no texts, a row without one or two sentences, or a `max_length` with no room for a word.
        ModelError: the tokenizer gives ids that the model does not have.
    """
    if not texts:
        raise InputError("There are no texts to tokenize.")
    for number, row in enumerate(texts):
        if len(row) not in (1, 2):
            raise InputError(f"Row {number} has {len(row)} sentences; a model reads one or two.")
    limit = min(max_length or tokenizer.max_length, tokenizer.max_length)
    room = max(map(len, texts))
    least = tokenizer.backend.num_special_tokens_to_add(room == 2) + room
    if limit < least:
        raise InputError(f"max_length is {limit}; special tokens and one word a sentence need {least}.")
    inputs = [row[0] if len(row) == 1 else (row[0], row[1]) for row in texts]
    backend = tokenizer.backend
    with _failures(tokenizer.folder):
        encodings = backend.encode_batch(inputs)
    # Cut in a second pass: asked for at once, the library also builds the overflowing pieces of every text.
    too_long = [i for i, encoding in enumerate(encodings) if len(encoding) > limit]
    if too_long:
        backend.enable_truncation(limit)
        with _failures(tokenizer.folder):
            again = backend.encode_batch([inputs[i] for i in too_long])
        for i, encoding in zip(too_long, again, strict=True):
            encodings[i] = encoding
        backend.no_truncation()
    ids = tuple(np.array(encoding.ids, dtype=np.int64) for encoding in encodings)
    types = tuple(np.array(encoding.type_ids, dtype=np.int64) for encoding in encodings)
    _check_range(tokenizer, ids, tokenizer.vocab_size, "token id", "vocab_size")
    _check_range(tokenizer, types, tokenizer.type_vocab_size, "token type", "type_vocab_size")
    return Encoded(ids, types, len(too_long), limit, tokenizer.pad_id)


def _check_range(tokenizer: TextTokenizer, arrays: tuple[Array, ...], size: int, what: str, field: str) -> None:
    """ModelError where the model's table has no row for an id: the engine would read past it, or read zeros."""
    greatest = max(int(array.max(initial=0)) for array in arrays)
    if size and greatest >= size:
        raise ModelError(
            f"The tokenizer in {tokenizer.folder} gives {what} {greatest}, and config.json says {field} {size}.",
            "Use the tokenizer that the model was trained with.",
        )


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty when there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a JSON {type(value).__name__} where an object was expected.")
    return value


def _read_tokenizer_json(folder: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer | None:
    """The tokenizer of tokenizer.json; None when there is none or tokenizer_config.json contradicts it."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        if not any((folder / name).is_file() for name in VOCABULARIES):
            raise ModelError(
                f"{folder} holds no tokenizer: neither tokenizer.json nor {' nor '.join(VOCABULARIES)}.",
                "Copy tokenizer.json (for BERT vocab.txt will do) from the model's own folder, or save the tokenizer "
                "there with save_pretrained.",
            )
        return None
    import tokenizers

    with _failures(path):
        backend = tokenizers.Tokenizer.from_file(str(path))
    for name, own in _NORMALIZER_SETTINGS.items():
        stored = getattr(backend.normalizer, own, None)
        if name in settings and hasattr(backend.normalizer, own) and settings[name] != stored:
            return None
    return backend


def _read_through_transformers(folder: Path) -> tokenizers.Tokenizer:
    """What transformers makes of the folder."""
    with _quiet():
        from transformers import AutoTokenizer

        try:
            loaded = AutoTokenizer.from_pretrained(
                str(folder), use_fast=True, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # OSError, ValueError, KeyError ... by version and by what is wrong
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"The tokenizer in {folder} cannot be loaded: {reason}",
                "Save it with save_pretrained, so that the folder holds a tokenizer.json.",
            ) from error
    backend: tokenizers.Tokenizer | None = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            f"The tokenizer in {folder} has no fast version.", "Convert it, so that the folder holds a tokenizer.json."
        )
    return backend


def _pad_id(backend: tokenizers.Tokenizer, settings: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """Id of the padding token: by its name in the vocabulary, else what config.json says, else 0 (BERT's)."""
    token = settings.get("pad_token", "[PAD]")
    if isinstance(token, dict):  # an AddedToken
        token = token.get("content")
    found = backend.token_to_id(token) if isinstance(token, str) else None
    if found is None:
        stored = config.get("pad_token_id")
        found = stored if isinstance(stored, int) else 0
    return found


@contextmanager
def _failures(path: Path) -> Iterator[None]:
    """Turns what the library raises (plain Exception, or what is none for a panic of native code) into ModelError."""
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise ModelError(
            f"{path} cannot be used: {error}.", "Copy tokenizer.json from the model's own folder."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers from writing advice to the terminal (that torch is missing, for one) while it is imported."""
    with variable("TRANSFORMERS_VERBOSITY", "error"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
