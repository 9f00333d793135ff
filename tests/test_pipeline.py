"""A converted pipeline's folder to a model, or to one error with the remedy."""

import dataclasses
import json
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import vidcache_jax as vj
from checkpoints_convert.__main__ import main as convert
from tests import pipelines
from vidcache_jax.checkpoint import CheckpointError, read_info, restore_params
from vidcache_jax.checkpoint.info import INFO_NAME
from vidcache_jax.commands.generate import GenerateArgs, job_of
from vidcache_jax.models import umt5
from vidcache_jax.sampling.prompts import embed_all
from vidcache_jax.sharding import Layout, make_mesh
from vidcache_jax.testing import assert_close

PROMPT = "a red fox runs through the snow"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A converted pipeline; not to be changed."""
    path = tmp_path_factory.mktemp("pipeline")
    pipelines.diffusers_folder(path / pipelines.NAME)
    assert convert([str(path / pipelines.NAME), str(path / "converted")]) == 0
    return path / "converted"


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "converted")


def load(folder, **options) -> vj.VideoModel:
    return vj.load_model(folder, **{**pipelines.SIZE, **options})


def edit_info(folder, **fields):
    path = folder / INFO_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_the_model_and_its_settings(folder):
    model = load(str(folder), dtype=jnp.bfloat16)
    assert model.rollout == vj.RolloutConfig()  # Self-Forcing's
    assert (model.name, model.frames_per_second) == ("converted", 16.0)
    assert (model.latent_size, model.frame_size) == ((8, 12), (16, 24))
    assert model.params["patch_embedding"]["proj"]["kernel"].dtype == jnp.bfloat16
    assert model.codec.num_pixel_frames(3) == 5


def test_parameters_are_loaded_where_a_layout_wants_them(folder):
    """The same ones, of the divided kernels a quarter on each of four devices."""
    mesh = make_mesh(data=2, heads=4, devices=jax.devices())
    whole, divided = load(folder), load(folder, layout=Layout(mesh, shard_weights=True))
    jax.tree.map(np.testing.assert_array_equal, divided.params, whole.params)
    jax.tree.map(np.testing.assert_array_equal, divided.codec_params, whole.codec_params)
    kernel = divided.params["blocks"]["ffn_0"]["kernel"]
    assert {shard.data.size for shard in kernel.addressable_shards} == {kernel.size // 4}
    leaves = jax.tree.leaves((divided.params, divided.codec_params))
    assert all(leaf.sharding.mesh == mesh for leaf in leaves)


def test_prompts_are_embedded_as_transformers_does(folder):
    ids = pipelines.tokenizer().encode(PROMPT).ids
    wanted = pipelines.text_encoder()(torch.tensor([ids])).last_hidden_state[0]
    assert_close(load(folder).embed_text(PROMPT), wanted.numpy())


@pytest.fixture
def loaded(monkeypatch) -> list[str]:
    """Parts whose weights have been loaded, in this order."""
    names = []

    def counting(folder, *args, **kwargs):
        names.append(folder.name)
        return restore_params(folder, *args, **kwargs)

    monkeypatch.setattr("vidcache_jax.pipeline.restore_params", counting)
    return names


def test_the_text_encoder_is_loaded_for_new_prompts_only(folder, tmp_path, loaded):
    model = load(folder, embedding_cache=tmp_path / "embeddings")
    assert loaded == ["dit", "vae"]
    first = model.embed_text(PROMPT)
    again = load(folder, embedding_cache=tmp_path / "embeddings").embed_text(f" {PROMPT} ")
    assert loaded == ["dit", "vae", "text_encoder", "dit", "vae"]
    np.testing.assert_array_equal(first, again)
    model.embed_text("another")
    assert loaded[-1] == "text_encoder"


@pytest.mark.parametrize("on_disk", [True, False])
def test_for_many_prompts_the_text_encoder_is_loaded_once(folder, tmp_path, loaded, on_disk):
    cache = tmp_path / "embeddings" if on_disk else None
    model = load(folder, embedding_cache=cache)
    texts = embed_all(model, [PROMPT, "another", PROMPT])
    assert loaded == ["dit", "vae", "text_encoder"]
    # And is gone afterwards.
    config = umt5.UMT5Config(**read_info(folder / "text_encoder").config)
    assert (config.vocab_size, config.dim) not in {array.shape for array in jax.live_arrays()}
    for prompt in (PROMPT, "another"):
        np.testing.assert_array_equal(texts[prompt], model.embed_text(prompt))
    assert loaded.count("text_encoder") == (1 if on_disk else 3)
    assert embed_all(model, [PROMPT]).keys() == {PROMPT}
    assert loaded.count("text_encoder") == (1 if on_disk else 4)


def test_a_job_embeds_what_is_to_do_before_it_loads_the_dit(folder, tmp_path, loaded):
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\nanother\nfinished\n{PROMPT}")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "0002-finished.mp4").touch()
    args = GenerateArgs(
        checkpoint=folder, prompts=tmp_path / "prompts.txt", out=tmp_path / "videos", seconds=0.3,
        embedding_cache=tmp_path / "embeddings", height=16, width=24,
    )  # fmt: skip
    job = job_of(args, vj.SlidingWindow(7, 2), [])
    assert loaded == ["text_encoder", "dit", "vae"]
    assert len(list((tmp_path / "embeddings").iterdir())) == 2
    shutil.rmtree(tmp_path / "embeddings")
    assert embed_all(job.model, [PROMPT, "another"]).keys() == {PROMPT, "another"}
    assert len(loaded) == 3
    job.model.embed_text("finished")
    assert loaded[3:] == ["text_encoder"]


def test_what_cannot_run_is_refused_before_anything_is_loaded(folder, tmp_path, loaded):
    (tmp_path / "prompts.txt").write_text(PROMPT)
    args = GenerateArgs(
        checkpoint=folder, prompts=tmp_path / "prompts.txt", mesh="heads=8", height=16, width=24
    )
    with pytest.raises(ValueError, match="do not divide over heads = 8; meshes .* data=8; data=4"):
        job_of(args, vj.SlidingWindow(7, 2), [])
    with pytest.raises(ValueError, match="holds 3 latent frames"):
        job_of(dataclasses.replace(args, mesh=None), vj.FullCache(3), ["--capacity=3"])
    assert not loaded


def test_embeddings_of_another_text_encoder_are_others(folder, copy, tmp_path):
    cache = tmp_path / "embeddings"
    load(folder, embedding_cache=cache).embed_text(PROMPT)
    load(folder, embedding_cache=cache).embed_text(PROMPT)
    assert len(list(cache.iterdir())) == 1
    edit_info(copy / "tokenizer", sources=[{"name": "tokenizer.json", "sha256": "0"}])
    load(copy, embedding_cache=cache).embed_text(PROMPT)
    assert len(list(cache.iterdir())) == 2


UNKNOWN = dict(is_causal=None, frames_per_chunk=None, denoise_timesteps=None, timestep_shift=None)


@pytest.mark.parametrize(
    ("known", "given", "message"),
    [
        (dict(is_causal=False), {}, "is a bidirectional model, which cannot.*Self-Forcing"),
        ({}, {}, r"not known how .* wants to be sampled.*--frames-per-chunk, --denoise-timesteps"),
        (dict(frames_per_chunk=1), dict(timestep_shift=3.0), r"give --denoise-timesteps \("),
        ({}, dict(steps=4), "give"),
        (dict(frames_per_chunk=0, denoise_timesteps=[500.0], timestep_shift=1.0), {}, "at least 1"),
        (dict(frames_per_chunk=1, denoise_timesteps=[500.0], timestep_shift=1.0), dict(steps=4),
         "'steps'. are no fields of RolloutConfig"),
    ],
)  # fmt: skip
def test_how_to_sample_must_be_known(copy, known, given, message):
    edit_info(copy / "dit", **{**UNKNOWN, **known})
    with pytest.raises(ValueError, match=message):
        load(copy, rollout=given)


@pytest.mark.parametrize("is_causal", [None, False])
def test_what_is_given_counts(copy, is_causal):
    """Also against a config.json that says bidirectional: fine-tuned ones keep it."""
    edit_info(copy / "dit", **{**UNKNOWN, "is_causal": is_causal, "frames_per_chunk": 1})
    given: dict[str, Any] = dict(denoise_timesteps=(1000, 500), timestep_shift=3.0)
    assert load(copy, rollout=given).rollout == vj.RolloutConfig(frames_per_chunk=1, **given)
    known = dataclasses.replace(vj.RolloutConfig(), context_timestep=10.0)
    edit_info(copy / "dit", denoise_timesteps=[1000, 750, 500, 250], timestep_shift=5.0,
              frames_per_chunk=3)  # fmt: skip
    assert load(copy, rollout=dict(context_timestep=10.0)).rollout == known


@pytest.mark.parametrize("part", ["dit", "vae", "text_encoder", "tokenizer"])
def test_a_folder_without_a_part(copy, part):
    shutil.rmtree(copy / part)
    with pytest.raises(CheckpointError, match=f"has no {part}; convert a whole pipeline"):
        load(copy)


def test_folders_that_are_none(folder, tmp_path):
    with pytest.raises(CheckpointError, match="dit is a DiT alone; convert a whole pipeline"):
        load(folder / "dit")
    with pytest.raises(CheckpointError, match="is no converted pipeline; convert"):
        load(tmp_path)
    with pytest.raises(ValueError, match="no model 'nowhere'; there are tiny, and folders"):
        vj.load_model("nowhere")
    with pytest.raises(ValueError, match=r"tiny has no options \['height'\]"):
        vj.load_model("tiny", height=64)


def test_parts_that_are_damaged(copy):
    (copy / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="no tokenizer.json in .*; copy"):
        load(copy)
    config = json.loads((copy / "dit" / INFO_NAME).read_text())["config"]
    edit_info(copy / "dit", config=config | {"model_type": "i2v"})
    with pytest.raises(CheckpointError, match="'i2v' is not supported"):
        load(copy)
    shutil.rmtree(copy / "vae")
    shutil.copytree(copy / "text_encoder", copy / "vae")
    with pytest.raises(CheckpointError, match="vae holds a text_encoder"):
        load(copy)


def test_parts_of_other_pipelines(copy):
    config = json.loads((copy / "dit" / INFO_NAME).read_text())["config"]
    edit_info(copy / "dit", config=config | {"text_dim": 8})
    with pytest.raises(CheckpointError, match="differ, 12 and 8: they are of different"):
        load(copy)


@pytest.mark.parametrize(
    ("size", "message"),
    [(dict(height=18), "height 18 must be a multiple of 4 pixels, such as 16"),
     (dict(width=0), "width 0 must be a multiple of 4 pixels, such as 4")],
)  # fmt: skip
def test_sizes_that_do_not_split(folder, size, message):
    with pytest.raises(ValueError, match=message):
        load(folder, **size)
