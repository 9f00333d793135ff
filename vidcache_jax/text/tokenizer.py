"""Token ids of a prompt, by the tokenizer that lies with a checkpoint."""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import Tokenizer

from vidcache_jax.text.cleaning import clean_prompt

FOLDERS = (".", "google/umt5-xxl", "tokenizer")
"""Where a checkpoint folder may hold ``tokenizer.json``: itself, Wan's place, diffusers' place."""

_PAD = "<pad>"


@dataclasses.dataclass(frozen=True, eq=False)
class PromptTokenizer:
    """Prompts to ids of a fixed length, as Wan's text encoder wants them.

    Attributes:
      tokenizer: its own settings of padding and truncation are not used.
      text_len: tokens of a result, the one that ends the text included. Longer texts are cut, as
        in Wan.

    Raises:
      ValueError: the tokenizer has no token ``<pad>``.
    """

    tokenizer: Tokenizer
    text_len: int = 512

    def __post_init__(self):
        pad_id = self.tokenizer.token_to_id(_PAD)
        if pad_id is None:
            raise ValueError(f"the tokenizer has no token {_PAD!r}; use that of google/umt5-xxl")
        own = Tokenizer.from_str(self.tokenizer.to_str())
        own.enable_truncation(self.text_len)
        own.enable_padding(length=self.text_len, pad_id=pad_id, pad_token=_PAD)
        object.__setattr__(self, "tokenizer", own)

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.get_vocab_size()

    def __call__(self, prompt: str) -> tuple[Int[np.ndarray, " Tt"], Bool[np.ndarray, " Tt"]]:
        """(ids, mask) of the cleaned prompt; the mask is False where the text has ended."""
        encoding = self.tokenizer.encode(clean_prompt(prompt))
        return np.asarray(encoding.ids, np.int32), np.asarray(encoding.attention_mask, bool)


def load_tokenizer(path: str | Path, text_len: int = 512) -> PromptTokenizer:
    """The tokenizer of a checkpoint folder, see `tokenizer_file`.

    Raises:
      FileNotFoundError: there is no ``tokenizer.json``.
      ValueError: the file cannot be read, or has no token for padding.
    """
    file = tokenizer_file(path)
    try:
        tokenizer = Tokenizer.from_str(file.read_text(encoding="utf-8"))
    # The library raises bare Exceptions.
    except Exception as error:
        raise ValueError(f"{file} is no tokenizer: {error}; copy it anew") from error
    return PromptTokenizer(tokenizer, text_len)


def tokenizer_file(path: str | Path) -> Path:
    """The ``tokenizer.json`` of a folder, looked for in each of `FOLDERS`, or the file itself.

    Raises:
      FileNotFoundError: there is none.
    """
    path = Path(path)
    for file in (path, *(path / place / "tokenizer.json" for place in FOLDERS)):
        if file.is_file():
            return file
    raise FileNotFoundError(
        f"no tokenizer.json in {path} or its subfolders {', '.join(FOLDERS[1:])}; "
        "copy the one of google/umt5-xxl there"
    )
