"""A small random pipeline, written as the released ones are, by diffusers and transformers."""

import functools
import json
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from tokenizers import Tokenizer
from transformers import UMT5Config, UMT5EncoderModel

from tests.models.test_umt5 import wan_name as wan_umt5_name
from tests.models.wan_vae.cases import randomize
from tests.models.wan_vae.cases import wan_name as wan_vae_name
from tests.text.small_tokenizer import small_tokenizer

SIZE = dict(height=16, width=24)
"""Pixels; the VAE halves them, the DiT again."""
NAME = "SFWan-small-Diffusers"
"""Of a folder, so that it is known to be Self-Forcing's: nothing else says so."""


@functools.cache
def tokenizer() -> Tokenizer:
    return small_tokenizer()


@functools.cache
def transformer() -> WanTransformer3DModel:
    model = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16, text_dim=12,
        freq_dim=8, ffn_dim=16, num_layers=2,
    )  # fmt: skip
    randomize(model, 1)
    return model.eval().requires_grad_(False)


@functools.cache
def vae() -> AutoencoderKLWan:
    """Two levels of Wan's four: one step, in space and time."""
    model = AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[True]
    )
    randomize(model, 2)
    return model.eval().requires_grad_(False)


@functools.cache
def text_encoder() -> UMT5EncoderModel:
    config = UMT5Config(vocab_size=128, d_model=12, d_kv=8, d_ff=16, num_heads=2, num_layers=2)
    model = UMT5EncoderModel(config)
    randomize(model, 3)
    return model.eval().requires_grad_(False)


def diffusers_folder(folder: Path) -> Path:
    """As `DiffusionPipeline.save_pretrained` lays it out."""
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    for name, model in (("transformer", transformer()), ("vae", vae())):
        model.save_pretrained(folder / name)
    text_encoder().save_pretrained(folder / "text_encoder")
    (folder / "tokenizer").mkdir()
    tokenizer().save(str(folder / "tokenizer" / "tokenizer.json"))
    return folder


def wan_companions(folder: Path) -> Path:
    """What lies beside the DiT in Wan's own folders, under Wan's names; four levels of the VAE."""
    folder.mkdir(exist_ok=True)
    released = AutoencoderKLWan(base_dim=4)
    randomize(released, 2)
    state = {wan_vae_name(name, 2): x for name, x in released.state_dict().items()}
    torch.save(state, folder / "Wan2.1_VAE.pth")
    state = {wan_umt5_name(name): x for name, x in text_encoder().named_parameters()}
    torch.save(
        {name: x.detach().bfloat16() for name, x in state.items()},
        folder / "models_t5_umt5-xxl-enc-bf16.pth",
    )
    place = folder / "google" / "umt5-xxl"
    place.mkdir(parents=True)
    tokenizer().save(str(place / "tokenizer.json"))
    return folder
