"""Models that people have on their disks: found, paired, named, listed and forgotten; and painted with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine import Engine, Request, untrusted
from engine.families.flux1.distill_names import T5_BASE, TIED_TABLE
from engine.families.flux1.distill_t5 import DistillT5
from engine.library import catalog, finding, hub, inventory, pairing, registry
from engine.library.inventory import Listing, Scanned
from engine.request import RequestError
from engine.weights import conversions
from tests import checkpoints
from tests.checkpoints import State, save
from tests.models import Kit, comfyui, copy_tokenizers, forge, hub_cache, invokeai, lora, small_kit
from tests.painting import painted
from tests.tiny import FP8_FORM

ROOT = Path(__file__).parent.parent
REQUEST = Request("a red circle above a blue square", steps=2, seed=3, width=64, height=64)


@pytest.fixture(scope="module")
def kit() -> Kit:
    return small_kit()


@pytest.fixture(scope="module")
def diffusers(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in diffusers' layout."""
    folder = tmp_path_factory.mktemp("diffusers") / "Some Model"
    kit.pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def disk(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with the folders of three programs; not to be changed."""
    root = tmp_path_factory.mktemp("disk")
    comfyui(root / "ComfyUI", kit)
    forge(root / "Förge", kit)
    invokeai(root / "invoke ai", kit)
    return root


@pytest.fixture
def alone(kit: Kit, tmp_path: Path) -> Path:
    """A transformer in a folder of its own, where nobody would look for its parts."""
    return save(kit.transformer, tmp_path / "some" / "place" / "of" / "Mein Modèle.safetensors")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def scanned(folder: Path) -> Scanned:
    *_, last = inventory.scan(folder)
    return last


def sentence(work: Callable[[], object]) -> str:
    """The one sentence with which it is refused."""
    with pytest.raises(RequestError) as error:
        work()
    text = str(error.value)
    assert "\n" not in text
    return text


def by_name() -> dict[str, Listing]:
    return {model.name: model for model in inventory.listed()}


def places(model: Listing) -> dict[str, str]:
    return {part.component: part.place for part in model.parts}


class TestScanning:
    def test_a_comfyui(self, disk):
        root = disk / "ComfyUI"
        found = scanned(root)
        assert [(model.name, model.layout, model.precision) for model in found.added] == [
            ("flux1-dev-all", "all in one", "fp32"),
            ("flux1-dev-fp8", "BFL", "fp8 e4m3, scaled"),
            ("flux1-dev", "BFL", "fp32"),
        ]
        assert all((model.here, model.kind, model.missing) == (True, "dev", ()) for model in found.added)
        assert (found.known, found.refused, found.files, found.unreadable) == ((), (), 6, 0)
        assert [part.component for part in found.loose] == [
            *("text_encoder", "text_encoder_2", "vae", "tokenizer", "tokenizer_2")
        ]
        fp8 = found.added[1]
        assert places(fp8) == {
            "transformer": str(root / "models" / "diffusion_models" / "flux1-dev-fp8.safetensors"),
            "vae": str(root / "models" / "vae" / "ae.safetensors"),
            "text_encoder": str(root / "models" / "clip" / "clip_l.safetensors"),
            "text_encoder_2": str(root / "models" / "text_encoders" / "t5xxl_fp16.safetensors"),
            "tokenizer": str(root / "comfy" / "sd1_tokenizer"),
            "tokenizer_2": str(root / "comfy" / "text_encoders" / "t5_tokenizer"),
        }
        assert {place for part, place in places(found.added[0]).items() if "tokenizer" not in part} == {
            found.added[0].place
        }, "what holds everything is complete by itself"

    def test_a_forge_whose_tokenizers_lie_in_a_model_folder_without_weights(self, disk):
        found = scanned(disk / "Förge")
        assert [(model.name, model.here) for model in found.added] == [("flux1-dev-bnb", True)]
        assert found.refused == ()
        assert "black-forest-labs" in places(found.added[0])["tokenizer_2"]

    def test_an_invokeai_whose_parts_are_folders_and_shards(self, disk):
        found = scanned(disk / "invoke ai")
        assert [(model.name, model.here) for model in found.added] == [("flux1-dev", True)]
        assert places(found.added[0])["text_encoder_2"].endswith("text_encoder_2")
        assert len(found.loose) == 5

    def test_a_hub_cache_names_its_models_after_their_repositories(self, diffusers, tmp_path):
        dev = hub_cache(tmp_path, "black-forest-labs/FLUX.1-dev", diffusers)
        hub_cache(tmp_path, "someone/My_Flux", diffusers, "a" * 40)
        newer = hub_cache(tmp_path, "someone/My_Flux", diffusers, "0" * 40)
        single = tmp_path / "models--someone--one-file" / "snapshots" / ("b" * 40) / "flux-krea.safetensors"
        single.parent.mkdir(parents=True)
        single.symlink_to(os.path.relpath(next((dev.parent.parent / "blobs").iterdir()), single.parent))
        found = scanned(tmp_path)
        assert {model.name: model.place for model in found.added} == {"flux.1-dev": str(dev), "my_flux": str(newer)}
        assert catalog.open_model("flux.1-dev").path == dev
        again = scanned(tmp_path)
        assert again.added == ()
        assert {model.name for model in again.known} == {"flux.1-dev", "my_flux"}

    def test_what_is_in_our_hub_cache_already_needs_no_name(self, diffusers, cache):
        dev = hub_cache(cache, "black-forest-labs/FLUX.1-dev", diffusers)
        # The small model has one file for each component, as the published one's index or a single file may be.
        found = scanned(cache)
        assert [model.name for model in found.known] == ["flux.1-dev"]
        assert found.added == ()
        assert registry.read().models == {}
        assert found.known[0].place == str(dev)

    def test_gguf(self, kit, tmp_path):
        pytest.importorskip("gguf")
        root = comfyui(tmp_path, kit)
        (root / "models" / "unet" / "flux1-dev.safetensors").unlink()
        checkpoints.save_gguf(kit.transformer, root / "models" / "unet" / "flux1-dev-Q8_0.gguf", "Q8_0")
        model = scanned(root).added[-1]
        assert (model.name, model.here, model.layout, model.precision) == ("flux1-dev-q8_0", True, "GGUF", "Q8_0")

    def test_our_own_demo_needs_no_name(self):
        found = scanned(catalog.DEMO_FOLDER)
        assert [model.name for model in found.known] == ["demo"]
        assert found.added == ()

    def test_what_is_not_complete_is_listed_with_what_it_lacks(self, kit, alone, tmp_path):
        save(kit.vae, alone.parent / "ae.safetensors")
        (model,) = scanned(tmp_path).added
        assert (model.name, model.here) == ("mein-modele", False)
        assert model.missing == ("CLIP-L", "T5-XXL", "CLIP's tokenizer", "T5's tokenizer")
        assert [part.component for part in model.parts if not part.place] == [
            *("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
        ]
        assert "needs CLIP-L (--clip), T5-XXL (--t5) and tokenizers" in sentence(lambda: catalog.open_model(model.name))
        other = tmp_path / "elsewhere"
        save(kit.clip, other / "clip_l.safetensors")
        save(kit.t5, other / "t5xxl.safetensors")
        copy_tokenizers(other)
        later = scanned(other)
        assert later.added == ()
        assert by_name()[model.name].here, "what was found later completes it"

    def test_every_folder_and_file_once_however_many_links_lead_there(self, disk, tmp_path):
        top = tmp_path / "top"
        shutil.copytree(disk / "ComfyUI", top / "ComfyUI")
        (top / "ComfyUI" / "models" / "loop").symlink_to(top)
        (top / "itself").symlink_to("itself")
        (top / "nowhere").symlink_to("missing")
        (top / "again").symlink_to(top / "ComfyUI")
        (top / "linked.safetensors").symlink_to(top / "ComfyUI" / "models" / "unet" / "flux1-dev.safetensors")
        found = scanned(top)
        assert len(found.added) == 3
        assert len(found.loose) == 5
        assert found.files == 6

    def test_a_deep_or_a_large_tree_ends(self, kit, alone, tmp_path, monkeypatch):
        deep = tmp_path / "some" / Path(*"abcdefghijklmnopqrstuvwxyz")
        save(kit.transformer, deep / "deep.safetensors")
        assert [model.name for model in scanned(tmp_path).added] == ["mein-modele"]
        monkeypatch.setattr(finding, "MAX_FOLDERS", 3)
        assert "there is more in" in scanned(tmp_path).refused[0]

    def test_folders_that_cannot_be_read_are_counted_and_passed_over(self, disk, monkeypatch):
        listed = os.scandir

        def guarded(path: Any = ".") -> Any:
            if Path(path).name == "vae":
                raise PermissionError(13, "Permission denied", str(path))
            return listed(path)

        monkeypatch.setattr(os, "scandir", guarded)
        found = scanned(disk / "ComfyUI")
        assert found.unreadable == 1
        assert len(found.added) == 3

    def test_files_that_cannot_be_read_are_named(self, alone, monkeypatch):
        opened = untrusted.open_file

        def guarded(path: Path) -> Any:
            if path == alone:
                raise PermissionError(13, "Permission denied", str(path))
            return opened(path)

        monkeypatch.setattr("engine.untrusted.headers.open_file", guarded)
        assert scanned(alone.parent).refused == (f"{str(alone)!r} cannot be read: Permission denied.",)

    def test_what_cannot_be_run_is_named_and_what_is_unknown_is_not(self, kit, diffusers, tmp_path):
        one, bias = torch.zeros(1), "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"
        states = {
            "fill": {"img_in.weight": torch.zeros(8, 384), "single_blocks.0.x": one},
            "sd_xl_base": {"conditioner.embedders.1.model.x": one},
            "qwen-image": {"transformer_blocks.0.attn.to_q.weight": one, "img_in.weight": torch.zeros(1)},
            "hunyuan": {"txt_in.individual_token_refiner.blocks.0.x": one, "single_blocks.0.x": torch.zeros(1)},
            "umt5_xxl": {f"{bias}.weight": torch.zeros(1), f"{bias.replace('0', '1', 1)}.weight": torch.zeros(1)},
            "t5_int8": {"encoder.block.0.layer.0.SelfAttention.q.SCB": one},
            "wan_vae": {"decoder.middle.0.residual.0.gamma": one},
            "other_vae": {"decoder.up.0.block.0.conv1.weight": one},
            "4x-upscaler": {"model.0.weight": one},
            "sd_vae": checkpoints.ldm_state(small_vae(latents=8)),
        }
        for name, state in states.items():
            save(state, tmp_path / f"{name}.safetensors")
        lora(tmp_path / "loras" / "style.safetensors")
        whole = save(kit.transformer, tmp_path / "cut.safetensors")
        os.truncate(whole, whole.stat().st_size // 2)
        save({name: kit.transformer[name] for name in list(kit.transformer)[:-1]}, tmp_path / "lacking.safetensors")
        (tmp_path / "really.safetensors").write_bytes(b"PK\x03\x04" + bytes(26) + b"archive/data.pkl")
        other = tmp_path / "FLUX.1-Kontext-dev"
        shutil.copytree(diffusers, other)
        (other / "model_index.json").write_text(json.dumps({"_class_name": "FluxKontextPipeline"}))

        found = scanned(tmp_path)
        assert (found.added, found.known, found.loose) == ((), (), ())
        said = {str(Path(text.split("'")[1]).relative_to(tmp_path)): text for text in found.refused}
        expected = {
            "fill.safetensors": "FLUX.1 Fill",
            "sd_xl_base.safetensors": "Stable Diffusion XL",
            "hunyuan.safetensors": "HunyuanVideo",
            "umt5_xxl.safetensors": "umT5",
            "t5_int8.safetensors": "LLM.int8",
            "loras/style.safetensors": "LoRA",
            "cut.safetensors": "broken (it ends too early)",
            "lacking.safetensors": "lacks the tensor",
            "really.safetensors": "pickled weights",
            "FLUX.1-Kontext-dev": "FLUX.1 Kontext, which edits pictures",
        }
        assert said.keys() == expected.keys()
        assert [name for name, words in expected.items() if words not in said[name]] == []

    def test_progress_is_told_and_stopping_keeps_nothing(self, disk, monkeypatch):
        monkeypatch.setattr(finding, "TICK_SECONDS", 0)
        steps = [*inventory.scan(disk / "ComfyUI")]
        assert [step.folders for step in steps] == sorted(step.folders for step in steps)
        assert len(steps) > 10
        assert not steps[0].loose
        registry.write(registry.Registry())

        asked = 0

        def check() -> None:
            nonlocal asked
            asked += 1
            if asked == 5:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            list(inventory.scan(disk / "ComfyUI", check))
        assert registry.read() == registry.Registry()

    @pytest.mark.parametrize("what", ["nothing", "a file.safetensors"])
    def test_only_folders_are_scanned(self, tmp_path, what):
        (tmp_path / "a file.safetensors").write_bytes(b"")
        assert "is no folder" in sentence(lambda: scanned(tmp_path / what))


def distilled_state() -> State:
    """A DistillT5 that fits the small model."""
    numbers = {"vocab_size": 128, "d_model": 32, "d_ff": 64, "num_layers": 1, "num_heads": 1, "d_kv": 32}
    config = {**T5_BASE, **numbers, "feed_forward_proj": "gated-gelu", "project_out_dim": 48}
    torch.manual_seed(0)
    return {name: tensor for name, tensor in DistillT5(config).state_dict().items() if name != TIED_TABLE}


def small_vae(latents: int) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=latents,
        norm_num_groups=8,
    )


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans")


@pytest.fixture(scope="module")
def picture(diffusers: Path, plans: Path) -> np.ndarray[Any, Any]:
    """Of the model in diffusers' layout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEXTTOIMAGETOOL_CACHE_DIR", str(plans))
        with Engine.open(diffusers, device="cpu") as engine:
            return painted(engine, REQUEST)


class TestPictures:
    """The same weights give the same picture, whatever they lie in."""

    @pytest.fixture(autouse=True)
    def measured(self, plans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """What a plan measures is measured once."""
        monkeypatch.setenv("TEXTTOIMAGETOOL_CACHE_DIR", str(plans))

    @pytest.mark.parametrize("where", ["beside it", "all in one", "invoke ai"])
    def test_equal_the_picture_of_diffusers_layout(self, kit, disk, picture, tmp_path, where):
        model: Path | str
        if where == "beside it":
            folder = tmp_path / "with spaces ünd mehr"
            model = save(kit.transformer, folder / "flux1-dev.safetensors")
            save(kit.vae, folder / "ae.safetensors")
            save(kit.clip, folder / "clip_l.safetensors")
            save(kit.t5, folder / "t5xxl.safetensors")
            copy_tokenizers(folder)
        elif where == "invoke ai":
            model = scanned(disk / where).added[0].name
        else:
            model = disk / "ComfyUI" / "models" / "checkpoints" / "flux1-dev-all.safetensors"
        with Engine.open(model, device="cpu") as engine:
            assert np.array_equal(painted(engine, REQUEST), picture)

    def test_with_distillt5_that_was_added(self, diffusers, picture, tmp_path):
        file = save(distilled_state(), tmp_path / "distilled" / "model.safetensors")
        assert not catalog.open_model(diffusers).distills
        assert "the transformer takes 4096" in sentence(lambda: inventory.add(file))
        inventory.add(diffusers)
        added = inventory.add(file.parent)
        assert (added.name, added.kind, added.here, added.place) == ("distillt5", "text encoder", True, str(file))
        assert inventory.add(file.parent) == added
        assert "leave --name out" in sentence(lambda: inventory.add(file, "mine"))
        with Engine.open(diffusers, device="cpu") as engine:
            distilled = painted(engine, replace(REQUEST, distill=True))
            assert not np.array_equal(distilled, picture)
            assert np.array_equal(painted(engine, REQUEST), picture)
        assert inventory.remove("distillt5") == (
            f"distillt5 is forgotten; its files are yours and stay at '{file}'.",
            0,
        )


class TestAdding:
    def test_parts_that_are_named(self, disk, alone):
        parts = disk / "ComfyUI" / "models"
        given = {
            "vae": parts / "vae" / "ae.safetensors",
            "text_encoder": parts / "clip",
            "text_encoder_2": disk / "invoke ai" / "models" / "any" / "t5_encoder" / "t5-v1_1-xxl",
            "tokenizers": disk / "ComfyUI",
        }
        added = inventory.add(alone, parts=given)
        assert (added.name, added.here, added.can_remove, added.pulled) == ("mein-modele", True, True, False)
        assert all(part.note == "as you said" for part in added.parts if part.component != "transformer")
        assert catalog.open_model("mein-modele").path == alone
        assert inventory.add(alone) == added, "again is no error, and forgets nothing"
        assert [name for name in by_name() if name.startswith("mein")] == ["mein-modele"]

    def test_without_its_parts_a_model_is_refused_with_what_it_lacks(self, alone):
        said = sentence(lambda: inventory.add(alone))
        for words in ("autoencoder (--vae)", "CLIP-L (--clip)", "T5-XXL (--t5)", "t2i models pull tokenizers"):
            assert words in said
        assert registry.read().models == {}

    def test_a_part_that_does_not_fit_is_named(self, disk, alone, tmp_path):
        wrong = save(checkpoints.ldm_state(small_vae(latents=8)), tmp_path / "other.safetensors")
        said = sentence(lambda: inventory.add(alone, parts={"vae": wrong}))
        assert f"autoencoder in {str(wrong)!r} gives 32 channels, the transformer takes 16" in said
        clip = disk / "ComfyUI" / "models" / "clip" / "clip_l.safetensors"
        assert "holds CLIP-L, not the T5-XXL" in sentence(lambda: inventory.add(alone, parts={"text_encoder_2": clip}))
        assert "is not there" in sentence(lambda: inventory.add(alone, parts={"vae": tmp_path / "none"}))
        assert "holds no tokenizer" in sentence(lambda: inventory.add(alone, parts={"tokenizers": tmp_path}))

    def test_names(self, disk, diffusers, tmp_path):
        file = disk / "ComfyUI" / "models" / "unet" / "flux1-dev.safetensors"
        assert inventory.add(file, "my.own-name_2").name == "my.own-name_2"
        assert inventory.add(file).name == "my.own-name_2"
        assert inventory.add(diffusers).name == "some-model"
        for bad in ("My Model", "", "-x", "a/b", "x" * 61, "ü", "a\x1b[2J"):
            assert "a name has letters" in sentence(partial(inventory.add, file, bad))
        for taken in ("demo", "distillt5", "tokenizers"):
            assert "take another" in sentence(partial(inventory.add, file, taken))
        assert "is of [dev]'s kind" in sentence(lambda: inventory.add(file, "flux.1-schnell"))
        said = sentence(lambda: inventory.add(file, "some-model"))
        assert f"is at {str(diffusers)!r} already" in said
        copies = [tmp_path / "a" / "some model", tmp_path / "b" / "Some-Model", tmp_path / "c" / "demo"]
        for copy in copies:
            shutil.copytree(diffusers, copy)
        assert [inventory.add(copy).name for copy in copies] == ["some-model-2", "some-model-3", "demo-2"]

    def test_weights_under_a_published_name_are_what_it_means(self, disk, diffusers, tmp_path):
        assert not catalog.open_model("flux.1-dev").has_weights
        folder = tmp_path / "FLUX.1-dev"
        shutil.copytree(diffusers, folder)
        assert inventory.add(folder).name == "flux.1-dev"
        assert catalog.open_model("flux.1-dev").path == folder
        listing = by_name()["flux.1-dev"]
        assert (listing.here, listing.can_pull, listing.can_remove) == (True, False, True)
        message, freed = inventory.remove("flux.1-dev", files=True)
        assert (freed, folder.is_dir()) == (0, True)
        assert "its files are yours and stay" in message
        assert not catalog.open_model("flux.1-dev").has_weights

    def test_a_folder_with_one_file_and_one_with_two(self, disk, alone, tmp_path):
        scanned(disk / "ComfyUI")
        assert inventory.add(alone.parent).place == str(alone)
        shutil.copy(alone, alone.parent / "second.safetensors")
        said = sentence(lambda: inventory.add(alone.parent))
        assert "holds 2 models ('Mein Modèle.safetensors', 'second.safetensors'); name one of the files" in said

    def test_a_folder_of_shards(self, kit, disk, tmp_path):
        scanned(disk / "ComfyUI")
        folder = tmp_path / "sharded" / "transformer"
        kit.pipeline.transformer.save_pretrained(folder, max_shard_size="3MB")
        added = inventory.add(folder)
        assert (added.name, added.here, added.place) == ("sharded", True, str(folder))
        assert added.layout == "diffusers"
        assert catalog.open_model("sharded").has_weights

    def test_loose_parts_complete_later_models(self, kit, disk, alone):
        scanned(disk / "Förge")  # so that there is a model which small parts may complete
        registry.write(registry.Registry(registry.read().models))
        parts = disk / "ComfyUI" / "models"
        for place in (parts / "vae", parts / "clip" / "clip_l.safetensors", parts / "text_encoders"):
            added = inventory.add(place)
            assert added.can_remove
            assert inventory.add(place) == added
        assert added.kind == "text encoder"
        tokenizers = disk / "Förge" / "backend" / "huggingface" / "black-forest-labs" / "FLUX.1-dev"
        for name in ("tokenizer", "tokenizer_2"):
            assert inventory.add(tokenizers / name).kind == "tokenizers"
        assert len(inventory.loose()) == 5
        assert inventory.add(alone).here
        assert "is forgotten" in inventory.remove(added.name)[0]
        assert len(inventory.loose()) == 4
        assert "needs no name" in sentence(lambda: inventory.add(parts / "vae", "ae"))

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda kit, at: at / "nothing", "is not there"),
            (lambda kit, at: lora(at / "style.safetensors"), "is a LoRA"),
            (lambda kit, at: save({"x": torch.zeros(1)}, at / "x.safetensors"), "holds nothing of FLUX.1"),
            (
                lambda kit, at: (at / "flux.ckpt").write_bytes(b"PK\x03\x04archive/data.pkl") and at / "flux.ckpt",
                "pickled",
            ),
            (lambda kit, at: (at / "notes.txt").write_text("long enough text") and at / "notes.txt", "is a text file"),
            (lambda kit, at: at, "holds no model itself; let t2i models scan look"),
            (lambda kit, at: save(checkpoints.ldm_state(small_vae(8)), at / "v.safetensors"), "gives 32 channels"),
            (lambda kit, at: Path("a" * 5000), "is not there"),
            (lambda kit, at: Path("a\0b"), "is not there"),
        ],
    )
    def test_what_cannot_be_added_is_one_sentence(self, kit, tmp_path, make, words):
        place = make(kit, tmp_path)
        assert words in sentence(lambda: inventory.add(place))
        assert registry.read() == registry.Registry()

    def test_folders_of_other_pipelines_are_named(self, diffusers, tmp_path):
        other = tmp_path / "other"
        shutil.copytree(diffusers, other)
        for pipeline, words in (
            ("FluxKontextPipeline", "FLUX.1 Kontext"),
            ("FluxFillPipeline", "FLUX.1 Fill"),
            ("FluxControlPipeline", "Canny or Depth"),
            ("StableDiffusionXLPipeline", "Stable Diffusion XL"),
            (["x"], "only FLUX.1 [schnell], FLUX.1 [dev] can be run"),
        ):
            (other / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
            assert words in sentence(lambda: inventory.add(other))

    def test_what_has_a_name_by_itself_needs_no_other(self, diffusers, cache):
        snapshot = hub_cache(cache, "black-forest-labs/FLUX.1-dev", diffusers)
        assert inventory.add(catalog.DEMO_FOLDER).name == "demo"
        assert inventory.add(snapshot).name == "flux.1-dev"
        assert registry.read() == registry.Registry()
        assert inventory.add(snapshot, "mine").name == "mine"
        assert inventory.add(snapshot).name == "mine"

    def test_both_tokenizers_by_the_folder_that_they_lie_in(self, tmp_path):
        copy_tokenizers(tmp_path / "both")
        added = inventory.add(tmp_path / "both")
        assert (added.kind, added.can_remove, len(added.parts)) == ("tokenizers", True, 2)
        assert [part.place for part in inventory.loose()] == [part.place for part in added.parts]
        assert inventory.show(added.parts[0].place).can_remove
        inventory.remove(added.parts[0].place)
        assert len(inventory.loose()) == 1
        inventory.remove(added.name)
        assert inventory.loose() == []

    def test_what_was_added_during_a_scan_stays(self, disk, diffusers):
        steps = inventory.scan(disk / "ComfyUI")
        next(steps)
        inventory.add(diffusers)
        list(steps)
        assert {"some-model", "flux1-dev", "flux1-dev-fp8", "flux1-dev-all"} == registry.read().models.keys()


class TestListing:
    def test_what_there_is_without_anything(self):
        listed = inventory.listed()
        assert [model.name for model in listed] == ["demo", "flux.1-schnell", "flux.1-dev", "distillt5", "tokenizers"]
        assert [model.here for model in listed] == [True, False, False, False, False]
        assert [model.can_pull for model in listed] == [False, True, True, True, True]
        assert [model.kind for model in listed] == ["demo", "schnell", "dev", "text encoder", "tokenizers"]
        assert all(model.licence and model.nbytes and not model.can_remove and not model.warning for model in listed)

    def test_a_disk_that_vanished_is_said_of_its_model_alone(self, disk, tmp_path):
        copy = tmp_path / "usb"
        shutil.copytree(disk / "ComfyUI", copy)
        names = [model.name for model in scanned(copy).added]
        shutil.rmtree(copy)
        listed = by_name()
        for name in names:
            assert not listed[name].here
            assert "where nothing is now; bring the disk back" in listed[name].warning
            assert listed[name].can_remove
            assert "bring the disk back" in sentence(partial(catalog.open_model, name))
        assert listed["demo"].here
        assert inventory.loose() == []
        assert "is forgotten" in inventory.remove(names[0])[0]
        assert names[0] not in by_name()

    def test_a_file_that_became_something_else_is_said(self, disk, tmp_path):
        copy = tmp_path / "usb"
        shutil.copytree(disk / "ComfyUI", copy)
        scanned(copy)
        file = copy / "models" / "unet" / "flux1-dev.safetensors"
        os.truncate(file, 1000)
        assert "is broken (it ends too early)" in by_name()["flux1-dev"].warning
        file.unlink()
        lora(file)
        assert "is a LoRA" in by_name()["flux1-dev"].warning

    @pytest.mark.parametrize("content", [b"{", b"[]", b'{"models": 3, "loose": []}', b"\xff", b"{}", b"[" * 100_000])
    def test_a_damaged_registry_stops_changes_but_not_the_list(self, own_folders, diffusers, content):
        file = own_folders / "state" / registry.FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        assert len(inventory.listed()) == 5
        for work in (lambda: inventory.add(diffusers), lambda: inventory.remove("x"), lambda: scanned(diffusers)):
            assert "the list of your models, is damaged" in sentence(work)
        assert file.read_bytes() == content
        assert catalog.open_model(diffusers).has_weights

    def test_show_tells_of_paths_too_and_of_names_the_nearest(self, disk, diffusers):
        assert inventory.show("demo").here
        assert inventory.show(str(diffusers)).here
        assert inventory.show(str(disk / "ComfyUI" / "models" / "vae")).kind == "autoencoder"
        assert registry.read() == registry.Registry(), "looking keeps nothing"
        assert "did you mean 'flux.1-dev'?" in sentence(lambda: inventory.show("flux1-dev"))
        assert "known names: demo, flux.1-schnell" in sentence(lambda: inventory.show("zzz"))

    def test_text_encoders_and_tokenizers_are_no_models(self):
        assert "--distill" in sentence(lambda: catalog.open_model("distillt5"))
        assert "no model by itself" in sentence(lambda: catalog.open_model("tokenizers"))

    def test_without_torch(self, disk, own_folders):
        code = (
            "import sys; from pathlib import Path; from engine.library import inventory\n"
            "*_, last = inventory.scan(Path(sys.argv[1])); name = last.added[0].name\n"
            "inventory.listed(), inventory.show(name), inventory.remove(name, files=True)\n"
            "print(len(last.added), *{'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules))"
        )
        ran = subprocess.run(
            [sys.executable, "-c", code, str(disk / "ComfyUI")], cwd=ROOT, capture_output=True, text=True
        )
        assert (ran.stdout, ran.stderr) == ("3\n", "")


class TestPairing:
    def test_the_configuration_beside_a_part_is_its_own_or_is_not_believed(self, kit, disk, alone):
        folder = alone.parent / "vae"
        save(kit.vae, folder / "ae.safetensors")
        config = {"_class_name": "AutoencoderKL", "latent_channels": 4, "block_out_channels": [8, 8, 16, 16]}

        def vae(**changes: Any) -> dict[str, Any]:
            (folder / "config.json").write_text(json.dumps(config | changes))
            return pairing.paired(alone, {}, registry.Registry()).found["vae"].config

        assert vae(scaling_factor=0.5)["scaling_factor"] == 0.5
        wrongs: list[dict[str, Any]] = [
            {"latent_channels": 16},
            {"latent_channels": "4"},
            {"block_out_channels": 3},
            {"_class_name": []},
        ]
        for wrong in wrongs:
            assert vae(scaling_factor=0.5, **wrong)["scaling_factor"] == pytest.approx(0.3611)
        (folder / "config.json").write_text("[")
        assert "vae" in [part.name for part in pairing.paired(alone, {}, registry.Registry()).missing]
        (folder / "config.json").write_text(json.dumps(config | {"sample_size": [1]}))
        given = {"vae": folder, "tokenizers": disk / "ComfyUI"}
        for part, place in (("text_encoder", "clip"), ("text_encoder_2", "text_encoders")):
            given[part] = disk / "ComfyUI" / "models" / place
        refused = sentence(lambda: inventory.add(alone, parts=given))
        assert f"sample_size in {str(folder / 'config.json')!r} is [1], allowed is from 1 to" in refused

    def test_of_several_that_fit_the_one_of_flux_is_taken(self, kit, alone):
        folder = alone.parent
        save(kit.vae, folder / "sd3_vae.safetensors")
        save(kit.vae, folder / "ae.safetensors")
        save(kit.clip, folder / "a_detail_clip.safetensors")
        save(kit.clip, folder / "clip_l.safetensors")
        small = {name: tensor.to(torch.bfloat16) for name, tensor in kit.t5.items()}
        save(small, folder / "a_t5xxl_bf16.safetensors")
        save(kit.t5, folder / "t5xxl_fp32.safetensors")
        bias = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
        save({**kit.t5, bias: torch.zeros(32, 3), "spare": torch.zeros(9999)}, folder / "umt5.safetensors")
        copy_tokenizers(folder)
        found = pairing.paired(alone, {}, registry.Registry()).found
        assert {part: each.files[0].name for part, each in found.items() if part != "transformer"} == {
            "vae": "ae.safetensors",
            "text_encoder": "clip_l.safetensors",
            "text_encoder_2": "t5xxl_fp32.safetensors",
        }

    def test_a_tokenizer_of_another_model_is_passed_over(self, kit, disk, alone):
        copy_tokenizers(alone.parent.parent)
        wrong = alone.parent / "tokenizer_2"
        shutil.copytree(catalog.DEMO_FOLDER / "tokenizer_2", wrong)
        values = json.loads((wrong / "tokenizer.json").read_text())
        values["model"]["vocab"]["far beyond"] = 10**6
        (wrong / "tokenizer.json").write_text(json.dumps(values))
        parts = disk / "ComfyUI" / "models"
        given = {
            "vae": parts / "vae" / "ae.safetensors",
            "text_encoder": parts / "clip" / "clip_l.safetensors",
            "text_encoder_2": parts / "text_encoders" / "t5xxl_fp16.safetensors",
        }
        assert places(inventory.add(alone, parts=given))["tokenizer_2"] == str(alone.parent.parent / "tokenizer_2")
        shutil.rmtree(alone.parent.parent / "tokenizer_2")
        assert "do not belong together" in sentence(lambda: inventory.add(alone, parts=given))

    def test_parts_from_a_published_model_in_the_hub_cache(self, diffusers, alone, cache):
        snapshot = hub_cache(cache, "black-forest-labs/FLUX.1-schnell", diffusers)
        added = inventory.add(alone)
        assert added.here
        assert {Path(place).is_relative_to(snapshot) for part, place in places(added).items()} == {True, False}
        assert places(added)["tokenizer_2"] == str(snapshot / "tokenizer_2")

    def test_tokenizers_and_distillt5_from_the_hub_cache(self, kit, cache, tmp_path):
        for part, repository in (
            ("tokenizer", "openai/clip-vit-large-patch14"),
            ("tokenizer_2", "google/flan-t5-base"),
        ):
            folder = tmp_path / "brought" / part
            shutil.copytree(catalog.DEMO_FOLDER / part, folder)
            for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
                (folder / name).write_text("{}")
            hub_cache(cache, repository, folder)
        distilled = tmp_path / "brought" / "distilled"
        save(distilled_state(), distilled / "model.safetensors")
        (distilled / "config.json").write_text("{}")
        hub_cache(cache, "LifuWang/DistillT5", distilled)
        listed = by_name()
        for name in ("tokenizers", "distillt5"):
            assert (listed[name].here, listed[name].can_pull, listed[name].can_remove) == (True, False, False)
        folder = tmp_path / "model"
        save(kit.all_in_one(), folder / "all.safetensors")
        model = catalog.open_model(folder)
        assert {place.is_relative_to(cache) for place in model.tokenizers.values()} == {True}
        assert model.distills


class TestRemoving:
    def convert(self, model: str) -> dict[str, int]:
        """Keep the FP8 forms of a model; their sizes by component."""
        from engine.weights.converted import converted_files

        opened, sizes = catalog.open_model(model), {}
        for component in ("transformer", "text_encoder_2"):
            before = {*conversions.weights_folder().glob("*.safetensors")}
            conversion = converted_files(component, opened.files[component], torch.float32, [], FP8_FORM)
            try:
                while True:
                    next(conversion)
            except StopIteration as end:
                end.value.close()
            new = {*conversions.weights_folder().glob("*.safetensors")} - before
            sizes[component] = sum(file.stat().st_size for file in new)
        return sizes

    def test_files_deletes_fp8_forms_and_nothing_of_the_persons(self, disk):
        scanned(disk / "ComfyUI")
        before = {path: path.stat().st_mtime_ns for path in disk.rglob("*")}
        sizes = self.convert("flux1-dev")
        assert all(sizes.values())
        message, freed = inventory.remove("flux1-dev", files=True)
        assert freed == sizes["transformer"], "T5's is the other model's, too"
        assert "its files are yours and stay" in message
        assert inventory.remove("flux1-dev-fp8", files=True)[1] == sizes["text_encoder_2"]
        assert [*conversions.weights_folder().glob("*.safetensors")] == []
        assert {path: path.stat().st_mtime_ns for path in disk.rglob("*")} == before

    def test_without_files_they_stay(self, diffusers):
        inventory.add(diffusers)
        sizes = self.convert("some-model")
        assert inventory.remove("some-model")[1] == 0
        kept = sum(file.stat().st_size for file in conversions.weights_folder().glob("*.safetensors"))
        assert kept == sum(sizes.values())

    def test_what_another_program_brought_stays(self, diffusers, cache):
        snapshot = hub_cache(cache, "black-forest-labs/FLUX.1-dev", diffusers)
        for files in (False, True):
            said = sentence(partial(inventory.remove, "flux.1-dev", files=files))
            assert "another program brought flux.1-dev" in said
            assert "hf cache rm model/black-forest-labs/FLUX.1-dev" in said
        assert catalog.open_model("flux.1-dev").path == snapshot

    def test_what_was_pulled_goes_with_its_files_only(self, diffusers, cache):
        snapshot = hub_cache(cache, "black-forest-labs/FLUX.1-dev", diffusers)
        inventory.pulling("flux.1-dev", cache)
        model = inventory.pulled("flux.1-dev", snapshot)
        assert (model.pulled, model.here, model.can_remove, model.can_pull) == (True, True, True, False)
        assert "--files" in sentence(lambda: inventory.remove("flux.1-dev"))
        message, freed = inventory.remove("flux.1-dev", files=True)
        assert (message, freed > 10**6) == ("flux.1-dev is deleted.", True)
        assert hub.found_in_cache("flux.1-dev") is None
        assert by_name()["flux.1-dev"] == replace(model, **unpulled(by_name()["flux.1-dev"]))

    def test_a_download_that_never_ended_is_listed_and_can_be_deleted(self, diffusers, cache):
        snapshot = hub_cache(cache, "black-forest-labs/FLUX.1-dev", diffusers)
        (snapshot / "vae" / "diffusion_pytorch_model.safetensors").unlink()
        inventory.pulling("flux.1-dev", cache)
        model = by_name()["flux.1-dev"]
        assert (model.pulled, model.here, model.can_pull, model.can_remove) == (True, False, True, True)
        assert not catalog.open_model("flux.1-dev").has_weights
        assert inventory.remove("flux.1-dev", files=True)[1] > 0
        assert not snapshot.exists()

    def test_a_pull_does_not_take_the_name_of_ones_own_weights(self, diffusers, cache):
        inventory.add(diffusers, "flux.1-dev")
        assert "as you said" in sentence(lambda: inventory.pulling("flux.1-dev", cache))

    def test_what_is_not_there_is_said(self):
        for name, words in (
            ("demo", "it stays"),
            ("flux.1-dev", "is not here"),
            ("tokenizers", "is not here"),
            ("nonsense", "there is no model"),
            ("flux.1-devv", "did you mean 'flux.1-dev'?"),
        ):
            assert words in sentence(partial(inventory.remove, name, files=True))


def unpulled(model: Listing) -> dict[str, Any]:
    """The fields that differ when weights are gone."""
    return {name: getattr(model, name) for name in Listing.__slots__ if name not in ("name", "kind", "licence")}


def test_models_are_opened_by_name_by_folder_and_by_file(disk: Path, diffusers: Path) -> None:
    scanned(disk / "ComfyUI")
    file = disk / "ComfyUI" / "models" / "unet" / "flux1-dev.safetensors"
    assert catalog.open_model("flux1-dev").files == catalog.open_model(file).files
    assert catalog.open_model(file.parent).files == catalog.open_model(str(file)).files
    assert catalog.open_model(diffusers).layout("transformer") == "diffusers"
