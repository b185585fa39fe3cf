"""Renew the lock: the exact versions and hashes that `make demo` and `make test` install (`make lock`).

    python scripts/lock.py            update all packages to the newest versions that pyproject.toml allows
    python scripts/lock.py --check    only say whether the lock meets pyproject.toml

uv resolves for every Python version and platform at once. The result is four files in `requirements/`:

    demo.txt    what `make demo` needs: the library and its build dependencies
    test.txt    the same, plus what the tests, the checks and the site need
    torch.txt   torch, with the hashes of its CUDA builds and of one CPU build
    cuda.txt    what the Linux CUDA build additionally needs, installed only if the installed torch requires it

pip installs them with --no-deps and --require-hashes, so nothing is resolved again and nothing else is fetched. Among
several builds of one version, pip prefers a build whose hash the index states, which a folder of wheels does not. So
torch is downloaded first, from wherever pip looks, and its hash is checked on installation.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).parent.parent
FOLDER: Final = ROOT / "requirements"
EXTRAS: Final = {"demo": (), "test": ("test", "check", "docs")}
HEAD: Final = "# Written by `make lock`; not to be edited.\n"
TORCH: Final = "torch==2.13.0"
"""Pinned to the release of the CPU build below; `make test-newest` tries the newest."""
CPU_BUILD: Final = "sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"
"""Hash of torch-2.13.0+cpu for Linux on x86-64 with Python 3.11, accepted where an index offers it."""
ONLY_CUDA: Final = "sys_platform == 'linux'"
"""Environment marker of what torch needs on Linux only: the CUDA libraries and Triton."""


def resolved(extras: tuple[str, ...]) -> list[str]:
    """One entry per package, with its hashes, as written by uv."""
    with tempfile.TemporaryDirectory() as folder:
        held = Path(folder, "held.txt")
        held.write_text(TORCH + "\n", encoding="utf-8")
        options = f"--group build --quiet --universal --python-version 3.11 --generate-hashes --constraint {held}"
        plain = "--no-annotate --no-header --no-emit-index-url"
        command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", *f"{options} {plain}".split()]
        command += [word for extra in extras for word in ("--extra", extra)]
        ran = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return [with_cpu_build(entry) for entry in re.split(r"\n(?=\S)", ran.stdout.rstrip("\n"))]


def with_cpu_build(entry: str) -> str:
    """Add the hash of the CPU build to the entry of torch; other entries are unchanged."""
    return f"{entry} \\\n    --hash={CPU_BUILD}" if entry.startswith(f"{TORCH} ") else entry


def renew() -> None:
    """Write the four files."""
    FOLDER.mkdir(exist_ok=True)
    for name, extras in EXTRAS.items():
        entries = resolved(extras)
        torch = [entry for entry in entries if entry.startswith(f"{TORCH} ")]
        cuda = [entry for entry in entries if ONLY_CUDA in entry.partition("\n")[0]]
        kept = [entry for entry in entries if entry not in torch and entry not in cuda]
        for file, lines in ((name, kept), ("torch", torch), ("cuda", cuda)):
            (FOLDER / f"{file}.txt").write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


def pins(name: str) -> dict[str, list[Requirement]]:
    """The requirements pinned in a lock file, by package; a package may have one version per range of Pythons."""
    found: dict[str, list[Requirement]] = {}
    text = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    for line in re.findall(r"^[^#\s].*?(?= \\$)", text, re.MULTILINE):
        pin = Requirement(line)
        found.setdefault(canonicalize_name(pin.name), []).append(pin)
    return found


def needed(extras: tuple[str, ...]) -> list[Requirement]:
    """The requirements in pyproject.toml, with extras that refer to other extras resolved."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    texts = [*project["project"]["dependencies"], *project["dependency-groups"]["build"]]
    waiting = list(extras)
    while waiting:
        for text in project["project"]["optional-dependencies"][waiting.pop()]:
            own = Requirement(text)
            if own.name == "saeflow":
                waiting += own.extras
            else:
                texts.append(text)
    return [Requirement(text) for text in texts]


def problems() -> list[str]:
    """The requirements in pyproject.toml that the lock does not pin, or pins outside their range."""
    wrong = []
    for name, extras in EXTRAS.items():
        pinned = pins(name) | pins("torch")
        for want in needed(extras):
            have = pinned.get(canonicalize_name(want.name), [])
            versions = [next(iter(pin.specifier)).version for pin in have]
            if not have or not all(want.specifier.contains(version, prereleases=True) for version in versions):
                wrong.append(f"requirements/{name}.txt has {versions or 'no version'} of {want}")
    return wrong


def main() -> None:
    """Renew the lock, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether the lock meets pyproject.toml")
    if not parser.parse_args().check:
        renew()
    wrong = problems()
    if wrong:
        raise SystemExit("the lock does not meet pyproject.toml: run `make lock`.\n" + "\n".join(wrong))


if __name__ == "__main__":
    main()
