"""Embeddings of prompts on disk, so that the text encoder is needed once per prompt."""

import dataclasses
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from vidcache_jax.text.cleaning import clean_prompt

Embeddings = Float[np.ndarray, "Tt text_dim"]


@dataclasses.dataclass(frozen=True)
class EmbeddingCache:
    """A folder of safetensors files, one a prompt, named by the SHA-256 of text and model.

    Entries appear whole or not at all, so processes may share the folder. A damaged entry (it is
    checked against a checksum) is computed again and replaced, with a warning: nothing in here
    cannot be made anew.

    Attributes:
      folder: made when first written to.
      model: names the text encoder's weights, their dtype and the tokenizer; embeddings of
        another model are other entries.
    """

    folder: Path
    model: str

    def get(self, prompt: str, compute: Callable[[str], Embeddings]) -> Embeddings:
        """The prompt's embeddings, from disk or else by ``compute(prompt)``, which is then stored.

        Raises:
          OSError: an entry cannot be read or written.
        """
        text = clean_prompt(prompt)
        path = self.path(prompt)
        if path.is_file():
            stored = self._read(path, text)
            if stored is not None:
                return stored
            warnings.warn(f"{path} is damaged and made anew", stacklevel=2)
        embeddings = np.asarray(compute(prompt))
        self._write(path, text, embeddings)
        return embeddings

    def path(self, prompt: str) -> Path:
        """Where the embeddings are or would be; the same for all that cleans to one text."""
        key = json.dumps([self.model, clean_prompt(prompt)])
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"

    def _read(self, path: Path, text: str) -> Embeddings | None:
        try:
            with safe_open(path, framework="numpy") as file:
                stored, expected = file.get_tensor("embeddings"), file.metadata()
        except SafetensorError:
            return None
        return stored if expected == self._describe(text, stored) else None

    def _write(self, path: Path, text: str, embeddings: Embeddings) -> None:
        content = save({"embeddings": embeddings}, metadata=self._describe(text, embeddings))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(dir=self.folder, suffix=".partial")
        except OSError as error:
            raise _cannot_write(path, error) from error
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(partial, path)
        except OSError as error:
            Path(partial).unlink(missing_ok=True)
            raise _cannot_write(path, error) from error

    def _describe(self, text: str, embeddings: Embeddings) -> dict[str, str]:
        checksum = hashlib.sha256(np.ascontiguousarray(embeddings).tobytes()).hexdigest()
        return {"model": self.model, "text": text, "sha256": checksum}


def _cannot_write(path: Path, error: OSError) -> OSError:
    return OSError(f"cannot store prompt embeddings in {path}: {error}; choose another folder")
