"""The numbers of a run, against plain computations from what the run holds."""

from __future__ import annotations

import io
import math
import shutil
import sys
from collections import Counter
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hvq import HierarchicalVQ
from hvq.config import RunConfig
from hvq.data import CodeFolder, Sources, TensorImages, spread_rows
from hvq.data.pixels import bytes_to_model
from hvq.distributed import Reduction
from hvq.errors import CheckpointError, DataError
from hvq.evaluation import evaluate as evaluate_module
from hvq.evaluation import real_images
from hvq.evaluation.classification import SmallClassifier
from hvq.evaluation.evaluate import evaluate
from hvq.evaluation.measure_reconstruction import measure_reconstruction
from hvq.files import read_tensors
from hvq.histograms import perplexity, usage
from hvq.priors import Condition
from hvq.storage import RunFolder, load_hierarchy, load_prior
from hvq.training.processes import make_accelerator
from tests.processes import run_in_processes
from tests.runs import (
    HELD_OUT_IMAGES,
    TRAIN_IMAGES,
    TrainedRun,
    changed,
    drawing_precisions,
    files_below,
    rewrite_codes,
)

MEASURED_OF_CODES = {"about", "reconstruction", "levels", "cooccurrence", "bits_per_image", "likelihood"}


@pytest.fixture(scope="module")
def numbers(trained_run: TrainedRun) -> dict[str, Any]:
    return trained_run.run.metrics()


@pytest.fixture(scope="module")
def images(trained_run: TrainedRun) -> Tensor:
    source = trained_run.sources.validation
    return torch.stack([source.image(i) for i in range(HELD_OUT_IMAGES)]).float() / 255


@pytest.fixture(scope="module")
def system(trained_run: TrainedRun) -> HierarchicalVQ:
    return HierarchicalVQ.from_pretrained(trained_run.run.path, chunk_size=7)


def _evaluate(run: TrainedRun, **changes: Any) -> dict[str, Any]:
    config = changed(run.config, **changes)
    with redirect_stdout(io.StringIO()):
        return evaluate(config, run.run, accelerator=make_accelerator(config, run.run))


def test_reconstruction(numbers: dict[str, Any], system: HierarchicalVQ, images: Tensor) -> None:
    errors = (system.reconstruct(images).double() - images.double()).square().mean(dim=(1, 2, 3))
    found = numbers["reconstruction"]
    assert found["mse"] == pytest.approx(float(errors.mean()), rel=1e-9)
    assert found["psnr"] == pytest.approx(float((-10 * errors.log10()).mean()), rel=1e-9)
    assert -1 <= found["ssim"] <= 1


@pytest.mark.parametrize("level", ["top", "bottom"])
def test_levels(numbers: dict[str, Any], system: HierarchicalVQ, images: Tensor, level: str) -> None:
    codes = system.encode(images)[level]
    counts = Counter(codes.flatten().tolist())
    entropy = -sum(n / codes.numel() * math.log(n / codes.numel()) for n in counts.values())
    found = numbers["levels"][level]
    assert found["usage"] == len(counts) / {"top": 11, "bottom": 13}[level]
    assert found["perplexity"] == pytest.approx(math.exp(entropy))
    without = (system.reconstruct(images, absent=[level]) - images).double().square().mean()
    assert found["absent_mse"] == pytest.approx(float(without), rel=1e-9)
    assert found["absent_stand_in"] == ("mean codebook vector" if level == "top" else "learned vector")


def test_padding_is_not_counted_as_usage(trained_run: TrainedRun) -> None:
    """17 x 9 images are padded to 24 x 16, of whose 6 x 4 positions at the bottom 5 x 3 see a pixel."""
    pixels = torch.randint(0, 256, (11, 1, 17, 9), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    hierarchy = load_hierarchy(trained_run.run)
    found = measure_reconstruction(trained_run.config, hierarchy, TensorImages(pixels), Reduction())
    found = found.measured.numbers["levels"]
    # In training mode, what the codebooks would learn from is counted.
    model = hierarchy.autoencoder.train()
    statistics = {name: level.statistics[0].counts for name, level in model(bytes_to_model(pixels)).levels.items()}
    grids = {name: codes.shape[1:].numel() for name, codes in model.encode(bytes_to_model(pixels)).items()}
    assert {name: int(counts.sum()) for name, counts in statistics.items()} == {"top": 11 * 3 * 2, "bottom": 11 * 5 * 3}
    assert grids == {"top": 3 * 2, "bottom": 6 * 4}
    for name, counts in statistics.items():
        assert found[name]["usage"] == usage(counts.unsqueeze(0))
        assert found[name]["perplexity"] == pytest.approx(perplexity(counts.unsqueeze(0)))


def test_codes_that_occur_together(numbers: dict[str, Any], system: HierarchicalVQ, images: Tensor) -> None:
    codes = system.encode(images)
    top, bottom = codes["top"].numpy(), codes["bottom"].numpy()
    every = range(HELD_OUT_IMAGES)
    pairs = {
        "top.right": [(top[n, i, 0], top[n, i, 1]) for n in every for i in range(2)],
        "top.below": [(top[n, 0, j], top[n, 1, j]) for n in every for j in range(2)],
        "bottom.right": [(bottom[n, i, j], bottom[n, i, j + 1]) for n in every for i in range(4) for j in range(3)],
        "bottom.below": [(bottom[n, i, j], bottom[n, i + 1, j]) for n in every for i in range(3) for j in range(4)],
        "top-bottom": [(top[n, i // 2, j // 2], bottom[n, i, j]) for n in every for i in range(4) for j in range(4)],
    }
    assert numbers["cooccurrence"].keys() == pairs.keys()
    for name, found in numbers["cooccurrence"].items():
        both, one, two = Counter(pairs[name]), Counter(a for a, _ in pairs[name]), Counter(b for _, b in pairs[name])
        count = len(pairs[name])
        expected = sum(n / count * math.log(n * count / (one[a] * two[b])) for (a, b), n in both.items())
        assert found["pairs"] == count
        assert found["mutual_information"] == pytest.approx(expected, abs=1e-12)


def test_bits_of_codes_and_of_the_whole_model(numbers: dict[str, Any], system: HierarchicalVQ, images: Tensor) -> None:
    """2 x 2 codes of 11 and 4 x 4 of 13 for 16 x 16 pixels."""
    bits, priors = numbers["bits_per_image"], numbers["priors"]
    assert bits["raw"] == pytest.approx(4 * math.log2(11) + 16 * math.log2(13))
    nats = 4 * priors["top"]["held_out_nats"] + 16 * priors["bottom"]["held_out_nats"]
    assert bits["priors"] == pytest.approx(nats / math.log(2))
    values = (images.double() * 255).round().numpy().flatten()
    means = (system.reconstruct(images).double() * 255).round().numpy().flatten()
    functions = {
        "gaussian": np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2))),
        "logistic": lambda x: 1 / (1 + np.exp(-x)),
    }
    for kind, function in functions.items():
        found = numbers["likelihood"][kind]
        above, below = (function((values + side - means) / (255 * found["scale"])) for side in (0.5, -0.5))
        above, below = np.where(values == 255, 1.0, above), np.where(values == 0, 0.0, below)
        expected = -np.log2(above - below).mean()
        assert found["reconstruction_bits"] == pytest.approx(expected, rel=1e-6)
        assert found["code_bits"] == pytest.approx(bits["priors"] / 256)
        assert found["bits_per_dimension"] == found["reconstruction_bits"] + found["code_bits"]
    # The scale is that of training images: near their error, but not that of the held-out ones.
    assert numbers["likelihood"]["gaussian"]["scale"] == pytest.approx(numbers["reconstruction"]["mse"] ** 0.5, rel=0.2)
    assert "under the priors" in numbers["about"]["likelihood"]


def test_distances_are_of_the_features_of_the_saved_classifier(
    numbers: dict[str, Any], trained_run: TrainedRun, system: HierarchicalVQ, images: Tensor
) -> None:
    training = torch.stack([trained_run.sources.train.image(i) for i in range(TRAIN_IMAGES)])
    network = SmallClassifier(channels=1, size=(16, 16), num_classes=3)
    network.load_state_dict(read_tensors(trained_run.run.classifier / "model.safetensors", "classifier")[0])

    def features(pixels: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
        with torch.no_grad():
            return network.features(pixels.float() / 127.5 - 1).double().numpy()

    def frechet(one: Tensor, other: Tensor) -> float:
        seen = features(one), features(other)
        roots = [(x - x.mean(0)) / math.sqrt(len(x) - 1) for x in seen]
        cross = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
        means = ((seen[0].mean(0) - seen[1].mean(0)) ** 2).sum()
        return float(means + sum((root**2).sum() for root in roots) - 2 * cross)

    held_out = (images * 255).round().byte()
    restored = (system.reconstruct(images) * 255).round().byte()
    found = numbers["generation"]
    assert numbers["reconstruction"]["classifier_rfid"] == pytest.approx(frechet(held_out, restored), rel=1e-4)
    assert found["classifier_fid_held_out"] == pytest.approx(frechet(training, held_out), rel=1e-4)
    samples = system.sample([0] * 7 + [1] * 7 + [2] * 7, seed=trained_run.config.seed)
    assert found["classifier_fid"] == pytest.approx(frechet(training, (samples * 255).round().byte()), rel=1e-4)
    for name in ("precision", "recall"):
        assert 0 <= found[f"classifier_{name}"] <= 1
    assert 1 <= found["classifier_score"] <= 3
    about = numbers["about"]
    for text in (about["generation.classifier_fid"], about["reconstruction.classifier_rfid"]):
        assert found["extractor"] in text
        assert "NOT Inception" in text
        assert "covariances are singular" in text


def test_rejection_keeps_the_shares(numbers: dict[str, Any]) -> None:
    """Of 7 samples of each of 3 classes one is left at the least, and 3 are too few for manifolds."""
    assert {share: found["kept"] for share, found in numbers["rejection"].items()} == {
        "1": 21,
        "0.5": 9,
        "0.25": 3,
        "0.125": 3,
    }
    assert all(found["precision"] is found["recall"] is None for found in numbers["rejection"].values())
    assert all(0 <= found["accuracy"] <= 1 for found in numbers["rejection"].values())
    assert "manifolds take more than 3 images of each set, and there are 3 of one" in numbers["about"]["rejection"]


def test_without_labels_the_extractor_tells_rotations_and_classes_are_not_asked_for(copied_run: TrainedRun) -> None:
    split = [torch.stack([s.image(i) for i in range(len(s))]) for s in vars(copied_run.sources).values()]
    sources = Sources(*(TensorImages(images) for images in split))
    with redirect_stdout(io.StringIO()):
        accelerator = make_accelerator(copied_run.config, copied_run.run)
        numbers = evaluate(copied_run.config, copied_run.run, accelerator=accelerator, sources=sources)
    found = numbers["generation"]
    assert "without labels, to tell 4 rotations" in found["extractor"]
    assert found["rotations_fid"] > 0
    assert found["rotations_score"] is None
    assert "knows no classes" in numbers["about"]["generation.rotations_score"]
    assert "rejection" not in numbers
    assert numbers["about"]["rejection"].startswith("left out")
    assert numbers["classification_accuracy_score"].keys() == {"copies", "copies_by_codes"}


def test_inception_without_its_weights_is_named_and_nothing_stands_in_for_it(
    copied_run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    numbers = _evaluate(copied_run, evaluation__extractor="inception")
    assert not {"generation", "rejection"} & numbers.keys()
    for name in ("generation", "rejection", "reconstruction.rfid"):
        assert numbers["about"][name].startswith("left out: Inception takes the package torch-fidelity")


@pytest.mark.parametrize("level", ["top", "bottom"])
def test_priors(numbers: dict[str, Any], trained_run: TrainedRun, level: str) -> None:
    prior, description = load_prior(trained_run.run.prior(level))
    found = numbers["priors"][level]
    assert found["held_out_nats"] == description.held_out_nats
    assert found["unigram_entropy"] == CodeFolder(trained_run.run.codes, "validation").entropy(level)
    assert found["log_codebook_size"] == math.log({"top": 11, "bottom": 13}[level])
    # As many training images as are held out, as they are, of all classes although they are sorted.
    rows = CodeFolder(trained_run.run.codes, "train").fetch(spread_rows(TRAIN_IMAGES, HELD_OUT_IMAGES))
    assert rows.labels.unique().tolist() == [0, 1, 2]
    condition = Condition(codes={"top": rows.codes["top"]} if level == "bottom" else {}, labels=rows.labels)
    with torch.no_grad():
        logits = prior(rows.codes[level], condition).double()
    expected = functional.cross_entropy(logits.flatten(0, -2), rows.codes[level].flatten())
    assert found["train_nats"] == pytest.approx(float(expected), rel=1e-6)


def test_samples_and_what_the_numbers_mean(numbers: dict[str, Any]) -> None:
    score = numbers["classification_accuracy_score"]
    assert {"generated", "reconstructed", "real", "copies"} <= score.keys()
    tops = {f"{source}_top5" for source in ("generated", "reconstructed", "real")}
    assert {score[name] for name in tops} == {None}
    assert all(0 <= value <= 1 for name, value in score.items() if name not in tops)
    held_out_correct = score["real"] * HELD_OUT_IMAGES * 2
    assert held_out_correct == pytest.approx(round(held_out_correct))
    about = numbers["about"]
    assert all(name in about["priors"] for name in numbers["priors"]["top"])
    assert f"{HELD_OUT_IMAGES} held-out images, 16x16, 1 channel(s), pixels in [0, 1]" in about["split"]
    assert "21 generated images" in about["classification_accuracy_score"]


def test_numbers_do_not_depend_on_the_chunk_size(numbers: dict[str, Any], copied_run: TrainedRun) -> None:
    for chunk_size in (4, 64):
        again = _evaluate(copied_run, chunk_size=chunk_size)
        for part in ("reconstruction", "levels", "priors"):
            assert _flat(again[part]) == pytest.approx(_flat(numbers[part]), rel=1e-6)


def test_samples_are_measured_in_their_precision_and_priors_in_float32(
    numbers: dict[str, Any], copied_run: TrainedRun
) -> None:
    with drawing_precisions() as precisions:
        again = _evaluate(copied_run, sampling__precision="bfloat16")
    assert precisions == {torch.bfloat16}
    assert again["priors"] == numbers["priors"]
    assert "21 generated images (priors in bfloat16; seed 3; top: " in again["about"]["classification_accuracy_score"]


def test_how_samples_are_drawn_stands_beside_their_numbers(copied_run: TrainedRun) -> None:
    top = {"temperature": 0.9, "top_k": 5, "top_p": 0.75, "guidance": 1.5}
    about = _evaluate(copied_run, priors__top__sampling=top)["about"]
    for name in ("generation", "classification_accuracy_score", "classification_accuracy_score.copies", "rejection"):
        assert "top: temperature 0.9, top_k 5, top_p 0.75, guidance 1.5" in about[name], name
        assert "bottom: temperature 1, top_k none, top_p 1, guidance 1" in about[name]
        assert "priors in float32; seed 3" in about[name]


def test_nats_and_bits_of_priors_are_given_the_class(numbers: dict[str, Any]) -> None:
    for name in ("priors", "bits_per_image", "likelihood"):
        assert "given the class of each image" in numbers["about"][name]


def test_of_images_of_another_size_all_is_measured_but_what_samples_are_compared_by(copied_run: TrainedRun) -> None:
    copied_run.run.metrics_file.unlink()
    numbers = _evaluate(copied_run, data__size=[24, 16])
    assert numbers.keys() - {"seconds"} == (MEASURED_OF_CODES - {"likelihood"}) | {"priors"}
    assert numbers["reconstruction"]["classifier_rfid"] > 0
    for name in ("generation", "rejection", "classification_accuracy_score"):
        reason = numbers["about"][name]
        assert reason == ("left out, since samples are 16x16, the size of training, and data gives images of 24x16")


def test_one_class_is_measured_without_what_tells_classes_apart(copied_run: TrainedRun) -> None:
    sources = copied_run.sources
    one = Sources(
        *(
            TensorImages(
                torch.stack([source.image(i) for i in range(len(source))]),
                labels=[0] * len(source),
                classes=source.classes,
            )
            for source in (sources.train, sources.validation)
        )
    )
    with redirect_stdout(io.StringIO()):
        numbers = evaluate(
            copied_run.config,
            copied_run.run,
            accelerator=make_accelerator(copied_run.config, copied_run.run),
            sources=one,
        )
    assert numbers["classification_accuracy_score"].keys() == {"copies", "copies_by_codes"}
    assert "rejection" not in numbers
    for name in ("rejection", "classification_accuracy_score"):
        assert numbers["about"][name].startswith("left out, since training images are of one class")


def test_features_that_the_loss_has_matched_are_named_as_such(copied_run: TrainedRun) -> None:
    own = {"kind": "perceptual", "extractor": str(copied_run.run.classifier)}
    gone = {"kind": "perceptual", "extractor": str(copied_run.run.path / "nowhere")}
    terms = {"pixels": {"kind": "mse"}, "features": own, "others": gone}
    numbers = _evaluate(copied_run, autoencoder_training__reconstruction=terms)
    about, found = numbers["about"], numbers["generation"]["extractor"]
    assert "the autoencoder's own loss features is of these very features" in found
    assert "whether the autoencoder's own loss others is of these very features is not known" in found
    for name in ("reconstruction.classifier_rfid", "generation.classifier_fid", "generation.classifier_recall"):
        assert found in about[name]
    assert found in about["rejection"]


def test_copies_are_looked_for_in_the_same_images_by_pixels_and_by_codes(
    copied_run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real_images, "MOST_REAL_IMAGES", 10)
    rows = spread_rows(TRAIN_IMAGES, 10)
    found = evaluate_module._training_codes(copied_run.run, channels=1)["top"]
    codes = CodeFolder(copied_run.run.codes, "train")
    assert len(codes) == 2 * TRAIN_IMAGES
    assert torch.equal(found, codes.fetch(np.concatenate([rows, rows + TRAIN_IMAGES])).codes["top"])
    about = _evaluate(copied_run)["about"]["classification_accuracy_score"]
    assert "on 10 held-out real images" in about
    assert "reconstructions of 10 training images" in about


def _flat(tree: dict[str, Any]) -> dict[str, float]:
    """The numbers of nested mappings, by dotted path."""
    inner = {
        f"{name}.{path}": number
        for name, value in tree.items()
        if isinstance(value, dict)
        for path, number in _flat(value).items()
    }
    return inner | {name: value for name, value in tree.items() if isinstance(value, int | float)}


def test_a_run_is_measured_as_far_as_it_is(copied_run: TrainedRun) -> None:
    run = copied_run.run
    run.metrics_file.unlink()
    shutil.rmtree(run.prior("bottom"))
    numbers = _evaluate(copied_run)
    assert numbers.keys() - {"seconds"} == MEASURED_OF_CODES | {"priors"}
    assert list(numbers["priors"]) == ["top"]
    run.metrics_file.unlink()
    shutil.rmtree(run.path / "priors")
    shutil.rmtree(run.codes)
    assert _evaluate(copied_run).keys() - {"seconds"} == MEASURED_OF_CODES


def _evaluated_in_group(plain: dict[str, Any], folder: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    config, run = RunConfig.model_validate(plain), RunFolder(folder)
    with redirect_stdout(io.StringIO()):
        return evaluate(config, run, accelerator=make_accelerator(config, run))


@pytest.mark.processes
@pytest.mark.parametrize(("processes", "chunk_size"), [(2, 64), (3, 7)])
def test_processes_measure_what_one_measures(
    numbers: dict[str, Any], copied_run: TrainedRun, processes: int, chunk_size: int
) -> None:
    """On 47 and 23 images; at a chunk size of 64 the second process has nothing to do."""
    plain = changed(copied_run.config, chunk_size=chunk_size).model_dump(mode="json")
    copied_run.run.metrics_file.unlink()
    found = run_in_processes(_evaluated_in_group, processes, plain, str(copied_run.run.path))
    assert found == [found[0]] * processes
    assert found[0]["levels"].keys() == numbers["levels"].keys()
    expected = {name: value for name, value in _flat(numbers).items() if not name.startswith("seconds")}
    assert {"reconstruction.mse", "priors.bottom.train_nats", "levels.top.usage"} <= expected.keys()
    assert "classification_accuracy_score.reconstructed" in expected
    if chunk_size != 7:
        # Samples, and what is trained on them, depend on the chunk size in the last bits.
        expected = {name: value for name, value in expected.items() if not name.startswith("classification")}
    measured = {name: value for name, value in _flat(found[0]).items() if name in expected}
    assert measured == pytest.approx(expected, rel=1e-6)


def test_what_does_not_belong_together_is_refused(copied_run: TrainedRun) -> None:
    before = files_below(copied_run.run.path)
    with pytest.raises(DataError, match=r"takes images of 1 channel\(s\); data.channels gives 3"):
        _evaluate(copied_run, data__channels=3, autoencoder__channels=3)
    assert files_below(copied_run.run.path) == before
    rewrite_codes(copied_run.run, "validation", encoder_hash="abc")
    with pytest.raises(CheckpointError, match=r"codes in .*validation were made by another autoencoder"):
        _evaluate(copied_run)
    shutil.rmtree(copied_run.run.codes)
    with pytest.raises(CheckpointError, match="no complete codes"):
        _evaluate(copied_run)
