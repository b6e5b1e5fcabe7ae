"""The command that publishes a run, or writes the same folder here."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from hvq import HierarchicalVQ
from hvq.storage import RunFolder
from tests.hubs import block_hub, make_hub
from tests.runs import Outcome, TrainedRun, differing, files_below, run_recipe, tensors_below


@pytest.fixture
def reported_run(copied_run: TrainedRun) -> TrainedRun:
    """With a picture as the report leaves it, beside that of the samples."""
    pictures = copied_run.run.path / "pictures"
    pictures.mkdir()
    shutil.copyfile(copied_run.run.samples / "samples.png", pictures / "reconstructions.png")
    return copied_run


def _refused(outcome: Outcome, sentence: str) -> bool:
    return outcome.code == 1 and bool(re.fullmatch(rf"error: .*{sentence}.*\n", outcome.err))


def test_a_folder_is_written_without_the_hub(
    reported_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block_hub(monkeypatch)
    run, folder = reported_run.run, tmp_path / "model"
    outcome = run_recipe("push_to_hub", "--run-dir", run.path, "--to", folder, "--license", "cc-by-4.0")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == f"the model is in {folder}; see {folder}/README.md\n"
    names = {path.name for path in folder.iterdir()}
    assert names == {"README.md", "autoencoder", "config.json", "metrics.json", "pictures", "priors"}
    for part in ("autoencoder", "priors"):
        assert not differing(tensors_below(folder / part), tensors_below(run.path / part))
    assert RunFolder(folder).metrics() == run.metrics()
    one, other = HierarchicalVQ.from_pretrained(folder), HierarchicalVQ.from_pretrained(run.path)
    assert torch.equal(one.sample([0, 1, 2]), other.sample([0, 1, 2]))


def test_the_card_has_data_numbers_pictures_and_configuration(reported_run: TrainedRun, tmp_path: Path) -> None:
    run, folder = reported_run.run, tmp_path / "model"
    run_recipe("push_to_hub", "--run-dir", run.path, "--to", folder, "--license", "cc-by-4.0")
    text = (folder / "README.md").read_text()
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "cc-by-4.0"
    assert "# folder: 2 levels of discrete latents" in text
    assert "16x16 images as top: 2x2 codes of 11; bottom: 4x4 codes of 13: 80 bits each." in text
    assert "16x16 images of 1 channel, of 3 classes: block, columns, rows. They were read by `data.kind=folder`" in text
    psnr = run.metrics()["reconstruction"]["psnr"]
    assert f"| `reconstruction.psnr` | {psnr:.5g} | peak signal-to-noise ratio, dB; higher is better |" in text
    pictures = re.findall(r"!\[.*\]\((.*)\)", text)
    assert len(pictures) == 2
    assert all((folder / picture).read_bytes()[1:4] == b"PNG" for picture in pictures)
    assert '"codebook_size": 13' in text
    # Where the images lay on this machine is left out.
    assert str(tmp_path.parent) not in text


def test_a_run_with_nothing_but_an_autoencoder(copied_run: TrainedRun, tmp_path: Path) -> None:
    run, folder = copied_run.run, tmp_path / "model"
    for path in (run.path / "priors", run.samples):
        shutil.rmtree(path)
    run.metrics_file.unlink()
    outcome = run_recipe("push_to_hub", "--run-dir", run.path, "--to", folder)
    assert (outcome.code, outcome.err) == (0, "")
    assert HierarchicalVQ.from_pretrained(folder).hierarchy.priors == {}
    assert "## Numbers" not in (folder / "README.md").read_text()


def test_a_run_is_published(reported_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = make_hub(tmp_path / "hub", monkeypatch)
    words = ["--run-dir", str(reported_run.run.path), "--license", "mit"]
    outcome = run_recipe("push_to_hub", *words, "--repo", "owner/stripes", "--private")
    assert (outcome.code, outcome.out) == (0, "the model is at https://hub.example/owner/stripes\n")
    assert [name for name, _ in hub.calls] == ["HfApi", "create_repo", "upload_folder"]
    assert hub.calls[1][1] == {"repo_id": "owner/stripes", "private": True}
    run_recipe("push_to_hub", *words, "--to", tmp_path / "model")
    published, written = files_below(hub.folder / "owner" / "stripes"), files_below(tmp_path / "model")
    assert published.keys() == written.keys()
    assert {name for name in written if published[name] != written[name]} == {"README.md"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "name one place: --repo OWNER/NAME to publish, or --to FOLDER to write it here"),
        (["--repo", "a/b", "--to", "c"], "name one place"),
        (["--repo", "stripes"], "is named owner/name; received stripes"),
        (["--repo", "a/b"], r"pip install \"hvq\[hub\]\""),
    ],
)
def test_what_cannot_be_done_is_a_sentence(
    trained_run: TrainedRun, words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    block_hub(monkeypatch)
    assert _refused(run_recipe("push_to_hub", "--run-dir", trained_run.run.path, *words), sentence)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_other_things_is_left_alone(copied_run: TrainedRun, tmp_path: Path) -> None:
    before = files_below(copied_run.run.path)
    outcome = run_recipe("push_to_hub", "--run-dir", copied_run.run.path, "--to", copied_run.run.path)
    assert _refused(outcome, "holds other things, checkpoints and 4 more")
    assert files_below(copied_run.run.path) == before


def test_a_refusal_of_the_hub_is_a_sentence(
    trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_hub(tmp_path / "hub", monkeypatch).fault = OSError("401 Client Error.\n\nInvalid username or password.")
    outcome = run_recipe("push_to_hub", "--run-dir", trained_run.run.path, "--repo", "owner/stripes")
    assert _refused(outcome, "cannot be published as owner/stripes: 401 Client Error. Invalid username or password.")
