"""Renew the lock: the exact versions and hashes that `make demo` and `make test` install (`make lock`).

    python scripts/lock.py            all to the newest that pyproject.toml allows
    python scripts/lock.py --check    only say whether the lock meets pyproject.toml

uv resolves for every Python and platform at once. Four files come of it, in `requirements/`:

    demo.txt    what `make demo` needs: the library and what builds it
    test.txt    the same with what the tests, the checks and the site need
    torch.txt   torch, with the hashes of its builds with CUDA and of one without
    cuda.txt    what the Linux build with CUDA needs besides, installed only where the installed torch asks for it

pip installs them with --no-deps and --require-hashes: nothing is resolved again, nothing else is fetched. Among
several builds of one version pip prefers one whose hash the index states, which a folder of wheels does not: so
torch is downloaded first, from wherever pip looks, and its hash is checked when it is installed.
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
"""Held at the release whose CPU build stands below; `make test-newest` tries the newest."""
CPU_BUILD: Final = "sha256:6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"
"""torch-2.13.0+cpu for Linux on x86-64 with Python 3.11: accepted where an index offers it."""
ONLY_CUDA: Final = "sys_platform == 'linux'"
"""The marker of what torch needs on Linux alone, CUDA's libraries and Triton."""


def resolved(extras: tuple[str, ...]) -> list[str]:
    """One entry per package, with its hashes, as uv writes them."""
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
    """The entry of torch with one more hash; any other as it is."""
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
    """What a file of the lock pins: a package may have one version per range of Pythons."""
    found: dict[str, list[Requirement]] = {}
    text = (FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    for line in re.findall(r"^[^#\s].*?(?= \\$)", text, re.MULTILINE):
        pin = Requirement(line)
        found.setdefault(canonicalize_name(pin.name), []).append(pin)
    return found


def needed(extras: tuple[str, ...]) -> list[Requirement]:
    """What pyproject.toml asks for, the extras that name other extras followed."""
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
    """Requirements of pyproject.toml that the lock does not pin, or pins outside their range."""
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
