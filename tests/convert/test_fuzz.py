"""Damaged files: the readers give tensors or a CheckpointError, never anything else.

More than 10,000 inputs, each a small valid file with a few random changes; the same ones each
time. What opens must read, too, or say so.
"""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from checkpoints_convert import CheckpointError
from checkpoints_convert.open_source import open_source
from tests.convert.checkpoints import save_pt

ARRAYS = {
    "blocks.0.norm3.weight": np.arange(6, dtype=np.float32),
    "head.modulation": np.ones((1, 2, 3), np.float16),
    "blocks.0.ffn.0.weight": np.zeros((2, 2), np.float64),
}
HOSTILE = [0, 1, 7, 8, 127, 128, 255]
WORDS = [b"null", b"-1", b"1e400", b"99999999999999999999", b"[[[[", b'""', b"\xff\xfe", b"{}",
         b"F8_E4M3", b"BF16", b"NaN", b"true", b"\x00" * 8, b"\xff" * 8]  # fmt: skip


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """One to four changes: bytes replaced, removed, repeated or inserted, the end cut off."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(len(data) + 1)) if len(data) else 0
        match rng.integers(7):
            case 0:
                data[at : at + 1] = bytes([int(rng.integers(256))])
            case 1:
                data[at : at + 1] = bytes([HOSTILE[rng.integers(len(HOSTILE))]])
            case 2:
                del data[at : at + int(rng.integers(1, 20))]
            case 3:
                data[at:at] = data[at : at + int(rng.integers(1, 40))]
            case 4:
                data[at:at] = WORDS[rng.integers(len(WORDS))]
            case 5:
                word = WORDS[rng.integers(len(WORDS))]
                data[at : at + len(word)] = word
            case 6 if rng.integers(4) == 0:
                del data[at:]
    return bytes(data)


def outcome(path: Path) -> str:
    """ "read" or "refused"; any other exception is the test's failure."""
    try:
        for tensor in open_source(path).tensors.values():
            assert tensor.read().shape == tensor.shape
    except CheckpointError as error:
        assert path.name in str(error), error
        return "refused"
    return "read"


def fuzz(path: Path, content: bytes, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path.write_bytes(content)
    assert outcome(path) == "read"
    outcomes = {"read": 0, "refused": 0}
    for _ in range(count):
        path.write_bytes(mutate(content, rng))
        outcomes[outcome(path)] += 1
    # Both happen, or the changes are too gentle or too crude.
    assert min(outcomes.values()) > count // 100, outcomes


def test_safetensors_bytes(tmp_path):
    fuzz(tmp_path / "a.safetensors", save(ARRAYS), 5000, seed=0)


def test_safetensors_headers(tmp_path):
    """The header alone is damaged, and its length is right: what lies behind the first check."""
    content, path = save(ARRAYS), tmp_path / "a.safetensors"
    size = int.from_bytes(content[:8], "little")
    rng = np.random.default_rng(1)
    outcomes = set()
    for _ in range(3500):
        header = mutate(content[8 : 8 + size], rng)
        path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
        outcomes.add(outcome(path))
    assert outcomes == {"read", "refused"}


def test_an_index(tmp_path):
    shard = tmp_path / "part.safetensors"
    shard.write_bytes(save(ARRAYS))
    index = json.dumps({"weight_map": dict.fromkeys(ARRAYS, shard.name)}).encode()
    path, rng = tmp_path / "a.safetensors.index.json", np.random.default_rng(2)
    path.write_bytes(index)
    assert len(open_source(path).tensors) == 3
    for _ in range(1000):
        path.write_bytes(mutate(index, rng))
        try:
            open_source(path)
        except CheckpointError as error:
            assert tmp_path.name in str(error)


@pytest.mark.parametrize("part", ["anywhere", "pickle"])
def test_torch_files(tmp_path, part):
    """Damaged anywhere; and the pickle alone, in an archive whose checksums are right."""
    content = {"generator": {name: torch.tensor(x) for name, x in ARRAYS.items()}}
    path = save_pt(tmp_path / "a.pt", content)
    if part == "anywhere":
        fuzz(path, path.read_bytes(), 1000, seed=3)
        return
    rng, entries = np.random.default_rng(4), read_zip(path)
    (pickle,) = (name for name in entries if name.endswith("data.pkl"))
    outcomes = set()
    for _ in range(1000):
        write_zip(path, entries | {pickle: mutate(entries[pickle], rng)})
        outcomes.add(outcome(path))
    assert outcomes == {"read", "refused"}


def read_zip(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_zip(path: Path, entries: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
