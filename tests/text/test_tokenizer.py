"""Token ids against transformers' reading of the same file, and folders without one."""

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

from tests.text.small_tokenizer import SENTENCES, small_tokenizer
from vidcache_jax.text import PromptTokenizer, load_tokenizer


@pytest.fixture(scope="module")
def trained():
    return small_tokenizer()


@pytest.mark.parametrize("place", [".", "google/umt5-xxl", "tokenizer"])
def test_equals_transformers(trained, tmp_path, place):
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    trained.save(str(folder / "tokenizer.json"))
    tokenize = load_tokenizer(tmp_path, text_len=16)
    reference = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="<pad>", eos_token="</s>"
    )
    for text in (*SENTENCES, "fox", "", "ein schöner Tag"):
        expected = reference(text, padding="max_length", truncation=True, max_length=16)
        ids, mask = tokenize(text)
        np.testing.assert_array_equal(ids, expected["input_ids"])
        np.testing.assert_array_equal(mask, np.array(expected["attention_mask"]) > 0)
        assert ids.dtype == np.int32 and mask.dtype == bool


def test_length_and_end_of_text(trained):
    tokenize, end = PromptTokenizer(trained, text_len=8), trained.token_to_id("</s>")
    ids, mask = tokenize("fox")
    assert len(ids) == 8 and ids[mask][-1] == end and not ids[~mask].any()
    ids, mask = tokenize(" ".join(SENTENCES))
    assert len(ids) == 8 and mask.all() and ids[-1] == end


def test_cleans_the_prompt(trained):
    tokenize = PromptTokenizer(trained)
    for ours, clean in zip(tokenize("  a red\n\nfox "), tokenize("a red fox"), strict=True):
        np.testing.assert_array_equal(ours, clean)


def test_leaves_the_given_tokenizer_alone(trained):
    PromptTokenizer(trained, text_len=4)
    assert trained.padding is None and trained.truncation is None


def test_a_folder_without_tokenizer(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer.json in .* of google/umt5-xxl"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b"version https://git-lfs"])
def test_a_file_that_is_no_tokenizer(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match="tokenizer.json is no tokenizer: .*; copy it anew"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_padding(tmp_path):
    Tokenizer(Unigram()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="no token '<pad>'"):
        load_tokenizer(tmp_path)
