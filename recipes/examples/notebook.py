"""The whole way from images to new images in a notebook or a script, without a recipe.

python recipes/examples/notebook.py
"""

from pathlib import Path

from hvq import HierarchicalVQ
from hvq.config_loading import load_run_config
from hvq.evaluation.evaluate import evaluate
from hvq.storage import RunFolder
from hvq.training import extract_codes, fit_autoencoder, fit_prior
from hvq.training.processes import make_accelerator

CONFIG = Path(__file__).parents[1] / "configs" / "digits.yaml"


def main(folder: str = "runs/notebook", overrides: tuple[str, ...] = ()) -> HierarchicalVQ:
    """Train, sample, measure; what each call leaves lies in the folder, and the next one finds it there."""
    config = load_run_config(CONFIG, list(overrides))  # or RunConfig(...): every field has a type and a default
    run = RunFolder(folder)
    accelerator = make_accelerator(config, run)
    fit_autoencoder(config, run, accelerator=accelerator)
    extract_codes(config, run, accelerator=accelerator)
    for level in config.autoencoder.levels:
        fit_prior(config, run, level, accelerator=accelerator)
    print(evaluate(config, run, accelerator=accelerator)["reconstruction"])
    model = HierarchicalVQ.from_pretrained(folder)
    print(model.sample([3, 1, 4], seed=0).shape)
    return model


if __name__ == "__main__":
    main()
