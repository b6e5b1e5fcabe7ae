"""What a run folder holds is loaded together, and only what belongs together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from hvq import HierarchicalVQ
from hvq.errors import CheckpointError, ConfigurationError, HVQError, StorageError
from hvq.model_card import ModelCard
from hvq.priors import PixelCNNPrior, SamplingOptions, sample_hierarchy
from hvq.storage import Hierarchy, RunFolder, load_hierarchy
from tests.autoencoders.small import small_model
from tests.hubs import block_hub, make_hub
from tests.runs import CLASSES, TrainedRun, changed, differing, files_below, tensors_below


def _edit_prior(run: TrainedRun, level: str, **changes: Any) -> None:
    path = run.run.prior(level) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_whole_run(trained_run: TrainedRun) -> None:
    hierarchy = load_hierarchy(trained_run.run)
    assert hierarchy.autoencoder.level_names == tuple(hierarchy.priors) == ("top", "bottom")
    assert hierarchy.grids == {"top": (2, 2), "bottom": (4, 4)}
    assert (hierarchy.image_size, hierarchy.channels, hierarchy.classes) == ((16, 16), 1, CLASSES)
    assert not any(model.training for model in (hierarchy.autoencoder, *hierarchy.priors.values()))
    assert hierarchy.to("cpu") is hierarchy


def test_priors_may_be_missing(copied_run: TrainedRun) -> None:
    shutil.rmtree(copied_run.run.prior("top"))
    assert list(load_hierarchy(copied_run.run).priors) == ["bottom"]
    shutil.rmtree(copied_run.run.path / "priors")
    assert load_hierarchy(copied_run.run).priors == {}


def test_a_prior_is_sampled_as_it_was_saved(copied_run: TrainedRun) -> None:
    _edit_prior(copied_run, "bottom", sampling={"temperature": 0.5, "top_k": 3, "top_p": 0.75})
    assert load_hierarchy(copied_run.run).options == {
        "top": SamplingOptions(),
        "bottom": SamplingOptions(temperature=0.5, top_k=3, top_p=0.75),
    }


def test_a_prior_of_another_autoencoder_is_refused(copied_run: TrainedRun) -> None:
    file = copied_run.run.autoencoder / "model.safetensors"
    tensors = load_file(file)
    tensors["levels.bottom.quantizer.head_codebooks.0.vectors"][0, 0] += 1
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"priors/top was trained on codes of another autoencoder; extract codes"):
        load_hierarchy(copied_run.run)


def test_another_image_decoder_makes_no_other_codes(copied_run: TrainedRun) -> None:
    file = copied_run.run.autoencoder / "model.safetensors"
    tensors = load_file(file)
    tensors["decoder.0.bias"] += 1
    save_file(tensors, file)
    assert len(load_hierarchy(copied_run.run).priors) == 2


def test_a_prior_in_the_place_of_another_is_refused(copied_run: TrainedRun) -> None:
    run = copied_run.run
    shutil.rmtree(run.prior("top"))
    shutil.copytree(run.prior("bottom"), run.prior("top"))
    with pytest.raises(CheckpointError, match=r"must be of level top on a grid of 2x2.*is of level bottom on 4x4"):
        load_hierarchy(run)


def test_a_prior_of_another_size_is_refused(copied_run: TrainedRun) -> None:
    _edit_prior(copied_run, "bottom", grid=[4, 5])
    with pytest.raises(CheckpointError, match=r"on a grid of 4x4, .*of level bottom on 4x5: extract codes"):
        load_hierarchy(copied_run.run)


def test_a_run_without_an_autoencoder(copied_run: TrainedRun) -> None:
    shutil.rmtree(copied_run.run.autoencoder)
    with pytest.raises(CheckpointError, match=r"no autoencoder in .*: train it first, or check the path"):
        load_hierarchy(copied_run.run)


def test_priors_take_another_precision_and_the_autoencoder_does_not(trained_run: TrainedRun) -> None:
    hierarchy = load_hierarchy(trained_run.run).to("cpu", prior_precision="bfloat16")
    assert {p.dtype for prior in hierarchy.priors.values() for p in prior.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in hierarchy.autoencoder.parameters()} == {torch.float32}
    assert {p.dtype for prior in hierarchy.to("cpu").priors.values() for p in prior.parameters()} == {torch.bfloat16}
    assert hierarchy.with_prior_precision("bfloat16").priors["top"] is hierarchy.priors["top"]
    codes = sample_hierarchy(hierarchy.priors, hierarchy.grids, samples=[0, 1, 2], chunk_size=3)
    assert codes["bottom"].shape == (3, 4, 4)


# --- saved and published --------------------------------------------------------------------------------------------


def test_what_is_saved_is_the_run_again(trained_run: TrainedRun, tmp_path: Path) -> None:
    run, folder = trained_run.run, tmp_path / "saved"
    load_hierarchy(run).save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "autoencoder", "priors"]
    for part in ("autoencoder", "priors"):
        assert files_below(folder / part).keys() == files_below(run.path / part).keys()
        assert not differing(tensors_below(folder / part), tensors_below(run.path / part))
    for part in ("autoencoder", "priors/top", "priors/bottom"):
        assert json.loads((folder / part / "config.json").read_text()) == json.loads(
            (run.path / part / "config.json").read_text()
        )


def test_a_saved_hierarchy_does_what_the_run_does(
    trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block_hub(monkeypatch)
    first = HierarchicalVQ.from_pretrained(trained_run.run.path)
    first.save_pretrained(tmp_path / "saved")
    again = HierarchicalVQ.from_pretrained(str(tmp_path / "saved"))
    assert again.classes == first.classes == CLASSES
    samples = first.sample([0, 1, 2], seed=5)
    assert torch.equal(again.sample([0, 1, 2], seed=5), samples)
    assert torch.equal(again.reconstruct(samples), first.reconstruct(samples))


def test_configuration_and_numbers_of_a_run_are_kept_but_not_where_files_lay(
    trained_run: TrainedRun, tmp_path: Path
) -> None:
    folder, place = tmp_path / "saved", trained_run.config.data.path
    metrics = {"reconstruction": {"mse": 0.25}}
    load_hierarchy(trained_run.run).save_pretrained(folder, config=trained_run.config, metrics=metrics)
    assert RunFolder(folder).metrics() == metrics
    assert Path(place).is_absolute()
    assert RunFolder(folder).load_config() == changed(trained_run.config, data__path=Path(place).name)
    assert str(Path(place).parent) not in "".join(path.read_text() for path in folder.glob("*.*"))


def test_priors_in_half_precision_are_saved_so_and_load(trained_run: TrainedRun, tmp_path: Path) -> None:
    half = load_hierarchy(trained_run.run).to("cpu", prior_precision="bfloat16")
    half.save_pretrained(tmp_path / "half")
    tensors = load_file(tmp_path / "half" / "priors" / "top" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    loaded = Hierarchy.from_pretrained(tmp_path / "half", device="cpu")
    state = loaded.priors["top"].state_dict()
    assert all(state[name].dtype == torch.float32 for name in state)
    assert all(torch.equal(state[name].to(torch.bfloat16), tensor) for name, tensor in tensors.items())
    again = Hierarchy.from_pretrained(tmp_path / "half", prior_precision="bfloat16")
    codes = [sample_hierarchy(some.priors, some.grids, samples=[0, 1]) for some in (half, again)]
    assert all(torch.equal(codes[0][name], codes[1][name]) for name in codes[0])


def test_an_autoencoder_that_is_not_the_priors_any_more_is_refused(trained_run: TrainedRun, tmp_path: Path) -> None:
    hierarchy = load_hierarchy(trained_run.run)
    hierarchy.autoencoder.to(torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"prior of level top was trained on codes of another .* loaded in$"):
        hierarchy.save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_a_run_folder_is_not_saved_over(copied_run: TrainedRun) -> None:
    before = files_below(copied_run.run.path)
    with pytest.raises(StorageError, match="holds other things, checkpoints and 4 more"):
        load_hierarchy(copied_run.run).save_pretrained(copied_run.run.path)
    assert files_below(copied_run.run.path) == before


def test_an_earlier_one_is_replaced_as_a_whole(copied_run: TrainedRun, tmp_path: Path) -> None:
    load_hierarchy(copied_run.run).save_pretrained(tmp_path / "saved")
    shutil.rmtree(copied_run.run.prior("top"))
    load_hierarchy(copied_run.run).save_pretrained(tmp_path / "saved")
    assert list(Hierarchy.from_pretrained(tmp_path / "saved").priors) == ["bottom"]
    text = (tmp_path / "saved" / "README.md").read_text()
    assert "model.sample" not in text
    assert "pipeline_tag" not in yaml.safe_load(text.split("---\n")[1])


def test_the_card_loads_and_samples(trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_hierarchy(trained_run.run).save_pretrained(tmp_path / "saved", card=ModelCard(title="Stripes", license="mit"))
    text = (tmp_path / "saved" / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert (front["license"], front["pipeline_tag"]) == ("mit", "unconditional-image-generation")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    assert names["rebuilt"].shape == names["images"].shape == (3, 1, 16, 16)


def test_it_is_published_and_comes_back(
    trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hub = make_hub(tmp_path / "hub", monkeypatch)
    system = HierarchicalVQ.from_pretrained(trained_run.run.path)
    assert system.push_to_hub("owner/stripes", private=True, token="t") == "https://hub.example/owner/stripes"
    assert ("create_repo", {"repo_id": "owner/stripes", "private": True}) in hub.calls
    (hub.folder / "owner" / "stripes" / "autoencoder" / "modeling.py").write_text("raise SystemExit('was run')")
    again = HierarchicalVQ.from_pretrained("owner/stripes", revision="v1", token="t")
    assert hub.calls[-1] == ("snapshot_download", {"repo_id": "owner/stripes", "revision": "v1", "token": "t"})
    assert {path.name for path in (hub.folder / "cache").rglob("*") if path.is_file()} == {
        "config.json",
        "model.safetensors",
    }
    assert torch.equal(again.sample([0, 1]), system.sample([0, 1]))


def test_a_name_that_is_neither_folder_nor_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_hub(tmp_path / "hub", monkeypatch)
    with pytest.raises(CheckpointError, match="no folder runs/quikstart here, and the hub did not give"):
        HierarchicalVQ.from_pretrained("runs/quikstart")


# --- put together by hand -------------------------------------------------------------------------------------------


def _by_hand(**changes: Any) -> Hierarchy:
    priors = {"bottom": PixelCNNPrior(codebook_size=13, coarser={"top": 11}, width=4, layers=1).eval()}
    return Hierarchy.of(small_model((2, 4)).eval(), **{"priors": priors, "image_size": (16, 24), **changes})


def test_models_of_a_notebook_become_a_run_folder(tmp_path: Path) -> None:
    hierarchy = _by_hand(options={"bottom": SamplingOptions(top_k=3)})
    hierarchy.save_pretrained(tmp_path / "saved")
    loaded = load_hierarchy(RunFolder(tmp_path / "saved"))
    assert (loaded.grids, loaded.image_size, loaded.channels) == ({"top": (2, 3), "bottom": (4, 6)}, (16, 24), 2)
    assert loaded.options == {"bottom": SamplingOptions(top_k=3)}
    images = torch.rand(2, 2, 16, 24) * 2 - 1
    one, other = loaded.autoencoder(images), hierarchy.autoencoder(images)
    assert torch.equal(one.reconstruction, other.reconstruction)


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    prior = PixelCNNPrior(codebook_size=13, width=4, layers=1)
    with pytest.raises(HVQError, match=r"priors must name exactly the levels .*; unknown middle"):
        _by_hand(priors={"middle": prior})
    with pytest.raises(HVQError, match="options must name exactly the levels bottom; unknown top"):
        _by_hand(options={"top": SamplingOptions()})
    with pytest.raises(ConfigurationError, match="classes must name the 0 classes of the prior; received 2"):
        _by_hand(classes=("cat", "dog")).save_pretrained(tmp_path / "saved")
