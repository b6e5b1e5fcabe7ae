"""Build the package, install it into an environment of its own, and run the tests against it there.

python tests/packaging/installed.py                                      # the versions of constraints.txt, all tests
python tests/packaging/installed.py --constraints constraints-oldest.txt
python tests/packaging/installed.py --constraints ''                     # the newest versions that are allowed
python tests/packaging/installed.py -- tests/quantizers -k "not vector"  # words for pytest

The sdist is built from the files that git knows, the wheel from the sdist. It is installed alone first, and a whole run
of tiny models shows that the core is enough; then with the extra `dev`, for the tests. They lie in a folder with
everything of the project but the package, so that what they import is what was installed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "hvq"
# A small share of the tests, of all rooms that compute.
QUICK = (
    "tests/quantizers",
    "tests/autoencoders",
    "tests/priors",
    "tests/storage",
    "tests/golden",
    "tests/packaging",
    "tests/test_pipeline.py",
    "tests/training/test_autoencoder.py",
    "tests/training/test_checkpoints.py",
    "tests/training/test_prior.py",
    "tests/training/test_processes.py",
    "--pyargs",
    PACKAGE,
)
ALL = ("tests", "--pyargs", PACKAGE)
VERSIONS = """
from importlib.metadata import version
import hvq
names = "hvq torch accelerate einops torchmetrics safetensors numpy pydantic pyyaml pillow tqdm".split()
print(hvq.__file__)
print(", ".join(f"{name} {version(name)}" for name in names))
"""
CORE_RUN = """
import sys
from pathlib import Path
from tests.runs import train_everything
train_everything(Path(sys.argv[1]))
print("a whole run with the core alone: done")
"""


def project_files(root: Path) -> list[Path]:
    """What belongs to the project, by relative path: tracked files, and new ones that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    return [path for path in map(Path, filter(None, listed.split("\0"))) if (root / path).is_file()]


def copy_files(root: Path, files: Sequence[Path], folder: Path) -> None:
    """Copy some files of a folder to another one, where they lie as they did."""
    for path in files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / path, folder / path)


def build(source: Path, folder: Path) -> Path:
    """The wheel of a source tree, made of its sdist."""
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, source], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def missing_files(wheel: Path, files: Sequence[Path]) -> list[str]:
    """Which files of the package a wheel lacks, or has beyond them."""
    with zipfile.ZipFile(wheel) as content:
        inside = {name for name in content.namelist() if ".dist-info/" not in name}
    return sorted(inside ^ {path.as_posix() for path in files if path.parts[0] == PACKAGE})


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and what its pip installs with.

    Attributes:
        path: where it lies.
        constraints: file of versions; None for the newest.
    """

    path: Path
    constraints: Path | None

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.path / ("Scripts" if os.name == "nt" else "bin") / "python"

    def install(self, requirement: str) -> None:
        """Have pip install something."""
        pinned = [] if self.constraints is None else ["-c", str(self.constraints)]
        self.run(
            "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pinned, requirement, folder=self.path
        )

    def run(self, *words: str | Path, folder: Path) -> None:
        """Run its interpreter in a folder; ends everything where that fails."""
        self._start(*words, folder=folder)

    def says(self, *words: str | Path, folder: Path) -> str:
        """What its interpreter prints."""
        return str(self._start(*words, folder=folder, stdout=subprocess.PIPE).stdout)

    def _start(self, *words: str | Path, folder: Path, stdout: int | None = None) -> subprocess.CompletedProcess[str]:
        # A path to the checkout would bring the package that lies there.
        others = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run([self.python, *words], cwd=folder, env=others, text=True, stdout=stdout, check=True)


def describe(environment: Environment, folder: Path) -> str:
    """The versions of an environment, once it is sure that the package in it is the one that is imported."""
    place, versions = environment.says("-c", VERSIONS, folder=folder).splitlines()
    if not Path(place).is_relative_to(environment.path.resolve()):
        raise SystemExit(f"hvq is imported from {place}, which is not in {environment.path}")
    return versions


def check(work: Path, environment: Environment, tests: Sequence[str]) -> None:
    """Build, install, run; a command that fails ends it."""
    files = project_files(ROOT)
    copy_files(ROOT, files, work / "source")
    wheel = build(work / "source", work / "dist")
    if differing := missing_files(wheel, files):
        raise SystemExit(f"the wheel and the package differ in {', '.join(differing)}")
    beside = work / "beside"
    copy_files(ROOT, [path for path in files if path.parts[0] != PACKAGE], beside)
    if not environment.python.exists():
        subprocess.run([sys.executable, "-m", "venv", environment.path], check=True)
    environment.install(str(wheel))
    print(f"installed: {describe(environment, beside)}", flush=True)
    environment.run("-c", CORE_RUN, work / "run", folder=beside)
    environment.install(f"{wheel}[dev]")
    print(f"tests with {describe(environment, beside)}", flush=True)
    environment.run("-m", "pytest", *tests, folder=beside)


def main() -> int:
    """Read the command line, and check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--constraints", default="constraints.txt", metavar="FILE", help="versions; '' for the newest")
    parser.add_argument("--environment", type=Path, metavar="DIR", help="where; one that is there is used and kept")
    parser.add_argument("--quick", action="store_true", help="a share of the tests, of all rooms that compute")
    parser.add_argument("tests", nargs="*", help="words for pytest; all tests by default")
    options = parser.parse_args()
    tests = options.tests or (QUICK if options.quick else ALL)
    print(shlex.join(["pytest", *tests]), flush=True)
    with tempfile.TemporaryDirectory(prefix="hvq-installed-") as folder:
        place = options.environment or Path(folder) / "environment"
        constraints = (ROOT / options.constraints).resolve() if options.constraints else None
        try:
            check(Path(folder), Environment(place.resolve(), constraints), tests)
        except subprocess.CalledProcessError as failed:
            print(f"failed: {shlex.join(map(str, failed.cmd))}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
