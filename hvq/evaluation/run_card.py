"""The model card of a run, from what its stages have left in the run folder."""

from __future__ import annotations

from pathlib import Path

from hvq.config import RunConfig
from hvq.config_data import DataConfig, HubConfig
from hvq.data.views import noun
from hvq.evaluation.number_table import number_rows
from hvq.evaluation.report import RECONSTRUCTIONS, SAMPLES
from hvq.evaluation.run_report import run_summary, run_title
from hvq.evaluation.samples import GRID
from hvq.model_card import UNKNOWN_LICENSE, ModelCard
from hvq.storage import Hierarchy, RunFolder

_RECONSTRUCTIONS_CAPTION = "Held-out images, and what is left of them, level by level"
_SAMPLES_CAPTION = "Samples drawn from the priors"


def run_card(config: RunConfig, run: RunFolder, hierarchy: Hierarchy, *, license: str = UNKNOWN_LICENSE) -> ModelCard:
    """What a run's card says: data, numbers of `metrics.json`, and the pictures that are at hand.

    Args:
        config: of the run.
        run: where numbers and pictures lie; those that are not there are left out.
        hierarchy: its models.
        license: of the weights.
    """
    return ModelCard(
        title=run_title(config),
        summary=run_summary(hierarchy),
        license=license,
        data=_about_data(config.data, hierarchy),
        datasets=(config.data.name,) if isinstance(config.data, HubConfig) and _on_the_hub(config.data) else (),
        numbers=tuple((name, value, meaning) for value, name, meaning in number_rows(run.metrics())),
        pictures=_pictures(run),
    )


def _pictures(run: RunFolder) -> dict[str, Path]:
    """Those of the report, or else the one that sampling has left."""
    reported = run.path / "pictures"
    places = {
        _RECONSTRUCTIONS_CAPTION: (reported / f"{RECONSTRUCTIONS}.png",),
        _SAMPLES_CAPTION: (reported / f"{SAMPLES}.png", run.samples / GRID),
    }
    there = {caption: [path for path in paths if path.exists()] for caption, paths in places.items()}
    return {caption: paths[0] for caption, paths in there.items() if paths}


def _on_the_hub(data: HubConfig) -> bool:
    return data.name.count("/") <= 1 and not Path(data.name).exists()


def _about_data(data: DataConfig, hierarchy: Hierarchy) -> str:
    """What the images are like, and what they are called, but for where they lay."""
    called = next((value for field in ("name", "path", "train") if (value := getattr(data, field, None))), None)
    name = "" if called is None else f", `{Path(str(called)).name if Path(str(called)).is_absolute() else called}`"
    size, classes = hierarchy.image_size, hierarchy.classes
    shown = ", ".join(classes[:10]) + f" and {len(classes) - 10} more" * (len(classes) > 10)
    of_classes = f", of {len(classes)} classes: {shown}" if classes else ""
    what = f"{'x'.join(map(str, size))} {noun(size)}s of {hierarchy.channels} channel{'s' * (hierarchy.channels > 1)}"
    return f"{what}{of_classes}. They were read by `data.kind={data.kind}`{name}."
