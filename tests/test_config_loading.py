from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvq.config import DecoderConfig, RunConfig
from hvq.config_data import FolderConfig
from hvq.config_loading import load_run_config, validated
from hvq.config_priors import TransformerPriorConfig
from hvq.errors import ConfigurationError

PRESETS = sorted((Path(__file__).parent.parent / "recipes" / "configs").glob("*.yaml"))
TWO_LEVELS = """
data: {kind: photos, crops_per_photo: 3}
autoencoder:
  levels:
    bottom: {ratio: 2}
    top: {ratio: 3}
"""

DATA_KINDS = "digits | photos | folder | array | shards | hub | waves | tones | volumes"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(TWO_LEVELS)
    return path


def _fault(path: Path | None, *overrides: str) -> str:
    with pytest.raises(ConfigurationError) as raised:
        load_run_config(path, overrides, say=pytest.fail)
    return str(raised.value)


def _loaded(tmp_path: Path, text: str, *overrides: str) -> RunConfig:
    path = tmp_path / "given.yaml"
    path.write_text(text)
    return load_run_config(path, overrides, say=pytest.fail)


# --- merging --------------------------------------------------------------------------------------------------------


def test_overrides_reach_every_kind_of_place(file: Path) -> None:
    overrides = [
        "seed=7",
        "data.size=[41, 43]",
        "autoencoder.levels.top.ratio=5",
        "autoencoder.levels.top.quantizer.learning=gradient",
        "priors.top.sampling.top_k=11",
        "autoencoder_training.learning_rate=3e-4",
        "mixed_precision=no",
        "data.augmentation.flip=true",
    ]
    config = load_run_config(file, overrides, say=pytest.fail)
    assert config.seed == 7
    assert config.data.size == (41, 43)
    assert {name: level.ratio for name, level in config.autoencoder.levels.items()} == {"top": 5, "bottom": 2}
    assert config.autoencoder.levels["top"].quantizer.learning == "gradient"
    assert config.prior("top").sampling.top_k == 11
    assert config.autoencoder_training.learning_rate == 3e-4
    assert config.mixed_precision == "no"
    assert config.data.augmentation.flip is True


def test_the_last_of_two_overrides_holds(file: Path) -> None:
    assert load_run_config(file, ["seed=3", "seed=5"], say=pytest.fail).seed == 5


def test_an_override_can_replace_a_whole_section(file: Path) -> None:
    config = load_run_config(file, ["autoencoder.levels={only: {ratio: 7}}"], say=pytest.fail)
    assert list(config.autoencoder.levels) == ["only"]


def test_values_may_hold_equals_signs(file: Path) -> None:
    config = load_run_config(file, ["data={kind: folder, path: 'a=b'}", "data.path=c=d"], say=pytest.fail)
    assert isinstance(config.data, FolderConfig)
    assert config.data.path == "c=d"


def test_overrides_alone_make_a_run() -> None:
    config = load_run_config(None, ["autoencoder.levels.top.ratio=4", "autoencoder.channels=1"], say=pytest.fail)
    assert config == RunConfig.model_validate({"autoencoder": {"channels": 1, "levels": {"top": {"ratio": 4}}}})


def test_data_without_a_kind_is_of_the_default_kind(tmp_path: Path) -> None:
    text = "{data: {size: [19, 23]}, autoencoder: {channels: 1, levels: {top: {ratio: 4}}}}"
    assert _loaded(tmp_path, text).data.kind == "digits"
    override = _loaded(tmp_path, "{autoencoder: {channels: 1, levels: {top: {ratio: 4}}}}", "data.size=[19, 23]")
    assert override.data.size == (19, 23)


@pytest.mark.parametrize("order", [1, -1])
def test_another_kind_drops_the_fields_that_only_the_old_one_has_and_says_so(file: Path, order: int) -> None:
    notes: list[str] = []
    overrides = ["data.kind=folder", "data.path=pictures", "data.size=[53, 59]"][::order]
    config = load_run_config(file, overrides, say=notes.append)
    assert config.data == FolderConfig(path="pictures", size=(53, 59))
    assert notes == ["data.kind=folder drops data.crops_per_photo, which only kind photos has"]


def test_the_same_kind_drops_nothing(file: Path) -> None:
    config = load_run_config(file, ["data.kind=photos"], say=pytest.fail)
    assert config.data.model_dump()["crops_per_photo"] == 3


def test_fields_of_the_old_kind_are_refused_beside_the_new_one(file: Path) -> None:
    fault = _fault(file, "data.crops_per_photo=5", "data.kind=digits", "autoencoder.channels=3", "data.channels=3")
    assert fault.splitlines()[0] == "data.crops_per_photo is a field of kind photos, but data.kind is digits"


def test_a_new_level_by_override_is_said(file: Path) -> None:
    notes: list[str] = []
    config = load_run_config(file, ["autoencoder.levels.middle.ratio=2"], say=notes.append)
    assert list(config.autoencoder.levels) == ["top", "middle", "bottom"]
    assert notes == ["override autoencoder.levels.middle.ratio adds level middle to bottom, top"]


def _terms(config: RunConfig) -> dict[str, tuple[str, float]]:
    return {name: (term.kind, term.weight) for name, term in config.autoencoder_training.reconstruction.items()}


@pytest.mark.parametrize(
    ("given_terms", "overrides", "terms"),
    [
        (None, ["pixels.kind=l1"], {"pixels": ("l1", 1.0)}),
        (None, ["pixels.weight=0.5"], {"pixels": ("mse", 0.5)}),
        (None, ["sharp={kind: l1, weight: 3}"], {"pixels": ("mse", 1.0), "sharp": ("l1", 3.0)}),
        (None, ["sharp.weight=3", "sharp.kind=l1"], {"pixels": ("mse", 1.0), "sharp": ("l1", 3.0)}),
        ("l1", ["pixels.weight=0.5"], {"pixels": ("l1", 0.5)}),
        ("{near: {kind: l1}}", ["near.weight=0.5"], {"near": ("l1", 0.5)}),
        ("{near: {kind: l1}}", ["pixels.kind=mse"], {"near": ("l1", 1.0), "pixels": ("mse", 1.0)}),
    ],
)
def test_overrides_reach_the_terms_of_the_loss(
    given_terms: str | None, overrides: list[str], terms: dict[str, tuple[str, float]], tmp_path: Path
) -> None:
    text = TWO_LEVELS + (f"autoencoder_training: {{reconstruction: {given_terms}}}\n" if given_terms else "")
    prefix = "autoencoder_training.reconstruction"
    assert _terms(_loaded(tmp_path, text, *(f"{prefix}.{override}" for override in overrides))) == terms


def test_an_override_may_name_a_kind_alone(file: Path) -> None:
    words = ["autoencoder_training.reconstruction.pixels.weight=3", "autoencoder_training.reconstruction=l1"]
    assert _terms(load_run_config(file, words, say=pytest.fail)) == {"pixels": ("l1", 1.0)}
    assert _terms(load_run_config(file, words[::-1], say=pytest.fail)) == {"pixels": ("l1", 3.0)}


def test_a_wrong_level_by_override_says_which_levels_there_are(file: Path) -> None:
    fault = _fault(file, "autoencoder.levels.topp.width=32")
    assert "autoencoder.levels.topp.ratio is missing" in fault
    assert "adds level topp to bottom, top" in fault
    assert "priors names topp, which is not a level; levels are top, bottom" in _fault(
        file, "priors.topp.model.heads=8"
    )


def test_a_name_shared_by_an_anchor_is_not_overridden_with_it(tmp_path: Path) -> None:
    text = "autoencoder: {channels: 1, levels: {top: &level {ratio: 2}, bottom: *level}}"
    config = _loaded(tmp_path, text, "autoencoder.levels.top.ratio=3")
    assert [level.ratio for level in config.autoencoder.levels.values()] == [3, 2]


def test_merge_keys_are_understood(tmp_path: Path) -> None:
    text = "autoencoder: {channels: 1, levels: {top: &level {ratio: 2, width: 7}, bottom: {<<: *level, ratio: 5}}}"
    levels = _loaded(tmp_path, text).autoencoder.levels
    assert [(level.ratio, level.width) for level in levels.values()] == [(2, 7), (5, 7)]


@given(seed=st.integers(0, 10**9), rate=st.floats(1e-12, 1e3), flip=st.booleans())
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_written_as_json_is_read_back(tmp_path: Path, seed: int, rate: float, flip: bool) -> None:
    fields = {
        "seed": seed,
        "data": {"kind": "photos", "augmentation": {"flip": flip}},
        "autoencoder": {"levels": {"fine": {"ratio": 2}, "a": {"ratio": 3}}},
        "autoencoder_training": {"learning_rate": rate},
    }
    config = RunConfig.model_validate(fields)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    again = load_run_config(path, say=pytest.fail)
    assert again == config
    assert list(again.autoencoder.levels) == ["fine", "a"]


# --- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("sede=3", "sede is not a field of the configuration; did you mean seed?"),
        (
            "autoencoder.decodr.width=3",
            "autoencoder.decodr is not a field of the configuration; did you mean autoencoder.decoder?",
        ),
        (
            "autoencoder.levels.top.codebok_size=3",
            "autoencoder.levels.top.codebok_size is not a field of the configuration; "
            "did you mean autoencoder.levels.top.codebook_size?",
        ),
        (
            "autoencoder.levels.top.quantizer.decy=0.5",
            "autoencoder.levels.top.quantizer.decy is not a field of the configuration; "
            "did you mean autoencoder.levels.top.quantizer.decay?",
        ),
        (
            "priors.top.model.layer=3",
            "priors.top.model.layer is not a field of the configuration; did you mean priors.top.model.layers?",
        ),
        ("data.flip=true", "data.flip is not a field of the configuration; did you mean data.augmentation.flip?"),
        (
            "steps=4",
            "steps is not a field of the configuration; "
            "did you mean autoencoder_training.steps or priors.<level>.training.steps?",
        ),
        (
            "extraction.zzz=1",
            "extraction.zzz is not a field of the configuration; the fields there are augmented_epochs, ",
        ),
        ("data.crop=random", "data.crop is a field of kind folder or shards or hub, but data.kind is photos"),
        (
            "data.kind=foldr",
            f'data.kind: expected {DATA_KINDS}, received "foldr" (where the images come from); did you mean folder?',
        ),
        ("autoencoder.levels.top.quantizer.kind=fsq", "quantizer.kind: expected vector | residual"),
        ("autoencoder.levels.top.quantizer.kind=gumble", "did you mean gumbel?"),
        ("autoencoder.levels.top.ratio=0", "autoencoder.levels.top.ratio: expected integer > 0, received 0 ("),
        ("autoencoder.levels.top.ratio=2.5", "autoencoder.levels.top.ratio: expected integer > 0, received 2.5 ("),
        (
            "autoencoder_training.reconstruction=l3",
            "autoencoder_training.reconstruction.pixels.kind: expected mse | l1",
        ),
        (
            "autoencoder_training.reconstruction.pixels.wieght=3",
            "did you mean autoencoder_training.reconstruction.pixels.weight?",
        ),
        (
            "autoencoder_training.reconstruction.sharp.weight=3",
            "autoencoder_training.reconstruction.sharp: expected mapping of fields with kind: mse | l1",
        ),
        ("autoencoder_training.reconstruction={}", "reconstruction: expected mapping by name, not empty, received {}"),
        (
            "autoencoder_training.reconstruction.pixels.weight=-1",
            "autoencoder_training.reconstruction.pixels.weight: expected number >= 0, received -1 (of this term",
        ),
        ("data.size=[8]", "data.size"),
        ("data.size=[8, x]", 'data.size[1]: expected integer > 0, received "x" (height and width of the crops'),
        ("data.size=[1, 2, 3]", "data.size: expected [integer > 0, integer > 0], received [1, 2, 3] ("),
        (
            "data=3",
            f"data: expected mapping of fields with kind: {DATA_KINDS}, received 3",
        ),
        (
            "data.kind=[photos]",
            f'data.kind: expected {DATA_KINDS}, received ["photos"]',
        ),
        ("data.kind=null", f"data.kind: expected {DATA_KINDS}, received null"),
        ("extraction=null", "extraction: expected mapping of fields, received null"),
        ("autoencoder.levels={}", "autoencoder.levels: expected mapping by name, not empty, received {}"),
        ("autoencoder.levels={a.b: {ratio: 2}}", "autoencoder.levels.a.b: expected a name of letters, digits, _ and -"),
        ("autoencoder.levels={1: {ratio: 2}}", "autoencoder.levels.1: expected a name of letters"),
        (
            "mixed_precision=bf61",
            'mixed_precision: expected no | bf16 | fp16 | null, received "bf61" (',
        ),
        (
            "priors.top.model.heads=3",
            "priors.top.model: width must be a multiple of twice heads; received 256 and 3 heads",
        ),
        ("data.channels=1", "data.channels is 1 and autoencoder.channels is 3; set both to the same number"),
        ("seed.value=3", 'seed: expected integer >= 0, received {"value": 3} (of everything that is random)'),
        ("data.size.height=3", 'data.size: expected [integer > 0, integer > 0], received {"height": 3}'),
    ],
)
def test_a_fault_is_one_sentence_with_path_expectation_and_way_out(file: Path, override: str, fault: str) -> None:
    message = _fault(file, override)
    assert fault in message
    assert len(message.splitlines()) == 1
    assert "pydantic" not in message


def test_an_override_into_a_value_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(TWO_LEVELS + "seed: 3\n")
    assert _fault(path, "seed.value=3") == "override seed.value needs a mapping at seed; it is 3"


def test_each_of_several_faults_has_its_line(file: Path) -> None:
    lines = _fault(file, "sede=3", "autoencoder.levels.top.ratio=0", "data.size=[0, 5]").splitlines()
    assert [line.split(" ")[0].rstrip(":") for line in lines] == [
        "sede",
        "data.size[0]",
        "autoencoder.levels.top.ratio",
    ]


@pytest.mark.parametrize("override", ["seed", "=3", ".seed=3", "autoencoder..levels=3", "seed.=3"])
def test_an_override_that_is_none_is_refused(file: Path, override: str) -> None:
    assert "an override must look like autoencoder.levels.top.ratio=4" in _fault(file, override)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("seed: 1\nseed: 2", "line 2 is not valid YAML: seed stands here a second time"),
        ("autoencoder:\n  levels:\n    top: {ratio: 1}\n    top: {ratio: 2}", "line 4 is not valid YAML: top stands"),
        ("seed: [1\ndata: 2", "line 2 is not valid YAML"),
        ("- 3", "must be a mapping of fields; it is [3]"),
        ("&a {data: *a}", "is not valid YAML: found unconstructable recursive node"),
        ("seed: !!int abc", "is not valid YAML: invalid literal"),
        ("seed: !!python/name:os.system", "is not valid YAML: could not determine a constructor"),
        ("? [a]\n: 3", "is not valid YAML: found unhashable key"),
        ("seed: \x01", "is not valid YAML"),
        ("", "autoencoder is missing; set it to mapping of fields (the hierarchy of levels)"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert fault in _fault(path)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    assert _fault(tmp_path / "none.yaml") == f"there is no configuration file {tmp_path / 'none.yaml'}"
    assert "cannot be read" in _fault(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"seed: \xe9")
    assert "cannot be read" in _fault(tmp_path / "latin.yaml")


def test_bad_yaml_in_an_override_is_refused(file: Path) -> None:
    assert "the value of override 'data.size=[1' is not valid YAML" in _fault(file, "data.size=[1").replace(
        ", line 1", ""
    )


def test_a_fault_comes_with_what_an_override_dropped(file: Path) -> None:
    assert _fault(file, "data.kind=folder").splitlines() == [
        "data.path is missing; set it to text (the folder; images are found at any depth)",
        "data.kind=folder drops data.crops_per_photo, which only kind photos has",
    ]


def test_parts_of_a_run_are_validated_alike() -> None:
    assert validated(TransformerPriorConfig, {"layers": 3}).layers == 3
    with pytest.raises(ConfigurationError, match=r"widht is not a field .* did you mean width"):
        validated(DecoderConfig, {"widht": 3})


# --- presets --------------------------------------------------------------------------------------------------------


def test_all_presets_are_here() -> None:
    assert {path.stem for path in PRESETS} == {
        "digits",
        "digits-1level",
        "digits-3level",
        "digits-vae",
        "photos",
        "cifar10-vqvae",
        "cifar10-vqvae2",
        "ffhq256-vqvae2",
        "imagenet256-vqvae2",
        "ffhq1024-3level",
        "tones-vqvae2",
        "volumes-vqvae2",
    }


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_are_valid_and_begin_with_what_they_are(path: Path) -> None:
    config = load_run_config(path, say=pytest.fail)
    levels = config.autoencoder.levels.items()
    assert set(config.priors) == {name for name, level in levels if level.quantizer.kind != "gaussian"}
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize(
    ("name", "grids"),
    [
        ("cifar10-vqvae", {"top": 8}),
        ("cifar10-vqvae2", {"top": 4, "bottom": 8}),
        ("ffhq256-vqvae2", {"top": 32, "bottom": 64}),
        ("imagenet256-vqvae2", {"top": 32, "bottom": 64}),
        ("ffhq1024-3level", {"top": 32, "middle": 64, "bottom": 128}),
    ],
)
def test_presets_have_the_grids_of_the_papers(name: str, grids: dict[str, int]) -> None:
    config = load_run_config(next(path for path in PRESETS if path.stem == name), say=pytest.fail)
    size, found = config.data.size[0], {}
    for level, fields in reversed(config.autoencoder.levels.items()):
        size //= fields.ratio
        found[level] = size
    assert found == grids
    assert all(fields.codebook_size == 512 for fields in config.autoencoder.levels.values())
