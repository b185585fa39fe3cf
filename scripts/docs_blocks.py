"""Find the fenced blocks of the documentation and check that they do what they say.

    python scripts/docs_blocks.py                     run the quick blocks of every page, print seconds per page
    python scripts/docs_blocks.py --long              run the long blocks and record them in docs/executed.json
    python scripts/docs_blocks.py --long docs/experiments.md --matching origins
    python scripts/docs_blocks.py --list              list every block and what is done with it

What is done with a block depends on its language and on the italic line below it:

    python, sh                           run, all blocks of a page in one folder and one namespace, in order
    output                               compared with what the block above printed; a line "..." matches any lines
    *Takes ...*                          long: run only with --long, recorded by the hash of its text
    *Not run here: ...*                  its command lines are parsed by the real command line, its Python compiled
    json, toml                           parsed
    text                                 only checked not to contain a command

Each command in a quick `sh` block is one of saeflow's and runs in this process. Anything else (make, pip,
python scripts/...) must be in a block that is long or not run here, and the files and targets it names must exist.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import shlex
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
RECORD: Final = ROOT / "docs" / "executed.json"
RUN: Final = frozenset({"python", "sh"})
DATA: Final = frozenset({"json", "toml"})
PROSE: Final = frozenset({"text", "output"})
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w-]*)[^\n]*\n(?P<code>.*?)^(?P=indent)```\s*?$", re.M | re.S)
_NOTE = re.compile(r"\s*\*(?P<kind>Takes|Not run here:) (?P<words>[^*]+)\*\s*?$", re.M)
_COMMAND = re.compile(
    r"^\s*(\$ |>>> |saeflow [a-z<\[A-Z]|python3? \S|pip3? |make [a-z]|git |import \w|from \w+ import)"
)
_ENVIRONMENT = re.compile(r"^[A-Z][A-Z0-9_]*=")


class Untrue(AssertionError):
    """A block does not do what the page says. The message gives the page and line."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: the page, relative to the root of the repository.
        line: the line of the opening fence, counted from 1.
        language: the language named by the fence.
        code: the text, without the fence.
        note: the beginning of the italic line below, "Takes" or "Not run here:"; "" without one.
        words: the rest of that line.
    """

    page: str
    line: int
    language: str
    code: str
    note: str = ""
    words: str = ""

    @property
    def fate(self) -> str:
        """What is done with the block: quick, long, checked, compared, parsed or read."""
        if self.note:
            return "long" if self.note == "Takes" else "checked"
        if self.language in RUN:
            return "quick"
        return {"output": "compared", "text": "read"}.get(self.language, "parsed")

    @property
    def hash(self) -> str:
        """Hash of the language and text: a block with a changed text is a new block."""
        return hashlib.sha256(f"{self.language}\n{self.code}".encode()).hexdigest()[:16]

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command line of a shell block, without leading assignments."""
        lines = self.code.replace("\\\n", " ").splitlines()
        found = [shlex.split(line, comments=True) for line in lines]
        return [list(_without_assignments(words)) for words in found if words]

    def wrong(self, what: str) -> Untrue:
        """An error that gives the page and line of this block."""
        return Untrue(f"{self.page}:{self.line}: {what}")


def _without_assignments(words: list[str]) -> Iterator[str]:
    """Yield the words after any leading `NAME=value` pairs."""
    started = False
    for word in words:
        started = started or not _ENVIRONMENT.match(word)
        if started:
            yield word


def pages() -> list[Path]:
    """Every page of the documentation, including the README."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text, name = page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix()
    found: list[Block] = []
    for match in _FENCE.finditer(text):
        indent = match["indent"]
        code = "".join(line.removeprefix(indent) for line in match["code"].splitlines(keepends=True))
        note = _NOTE.match(text, match.end())
        line = text.count("\n", 0, match.start()) + 1
        kind, words = (note["kind"], note["words"]) if note else ("", "")
        found.append(Block(name, line, match["language"], code, kind, words))
    return found


def outside_fences(page: Path) -> str:
    """The text of a page without its fenced blocks, to find commands outside of them."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


# Checks without running


def check(block: Block) -> None:
    """Check a block that is not run: its commands exist, its Python compiles, its data can be parsed.

    Raises:
        Untrue: when a check fails.
    """
    if block.language == "sh":
        for words in block.commands:
            check_command(block, words)
    elif block.language == "python":
        compile(block.code, f"{block.page}:{block.line}", "exec")
    elif block.language in DATA:
        try:
            json.loads(block.code) if block.language == "json" else tomllib.loads(block.code)
        except ValueError as error:
            raise block.wrong(f"this is no {block.language}: {error}") from None
    elif block.language in PROSE:
        escaped = [line for line in block.code.splitlines() if block.language == "text" and _COMMAND.match(line)]
        if escaped:
            raise block.wrong(f"{escaped[0]!r} looks like a command. Put it into a block of sh or python.")
    else:
        raise block.wrong(f"a block of {block.language or 'no language'}. Languages are in {Path(__file__).name}.")


def check_command(block: Block, words: list[str]) -> None:
    """Check one command line: a saeflow command with valid options, or a file, target or extra that exists.

    Raises:
        Untrue: when a check fails.
    """
    program, rest = words[0], words[1:]
    if program == "saeflow":
        reason = refused(rest)
        if reason:
            raise block.wrong(f"saeflow {shlex.join(rest)}: {reason}")
    elif program in {"python", "python3"} and rest and rest[0].endswith(".py"):
        if not (ROOT / rest[0]).is_file():
            raise block.wrong(f"there is no {rest[0]}")
    elif program == "make":
        targets = set(re.findall(r"^([\w-]+(?: [\w-]+)*):", (ROOT / "Makefile").read_text(), re.M))
        known = {name for line in targets for name in line.split()}
        if not {word for word in rest if "=" not in word} <= known:
            raise block.wrong(f"the Makefile has no {shlex.join(rest)}")
    elif program == "pip":
        declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for extra in re.findall(r"(?:saeflow|\.)\[([\w,-]+)\]", " ".join(rest)):
            if missing := set(extra.split(",")) - set(declared):
                raise block.wrong(f"there is no extra {', '.join(missing)}")
    elif program not in {"mkdir", "cd", "cp", "git", "python", "ray", "ssh", "curl", "jupyter"}:
        raise block.wrong(f"{program!r} is no command these pages use")


def refused(arguments: list[str]) -> str:
    """Why saeflow's command line would reject `arguments`; "" if it accepts them. Nothing is run.

    The check of devices is patched out, since a page may name a device that this machine lacks.
    """
    from unittest.mock import patch

    from cyclopts import CycloptsError

    from saeflow.cli.app import app, in_words_of_today, sentence
    from saeflow.errors import SaeflowError

    try:
        with patch("saeflow.sources.devices.known_device"):
            app.parse_args(in_words_of_today(arguments)[0])
    except (CycloptsError, SaeflowError) as error:
        return sentence(error)
    return ""


# Running


def run_page(page: Path, folder: Path) -> int:
    """Run the quick blocks of a page in `folder` and check all others; returns how many were run.

    Raises:
        Untrue: when a block fails or prints something different from what the page shows.
    """
    namespace: dict[str, Any] = {"__name__": "__docs__"}
    printed, ran = "", 0
    before = Path.cwd()
    os.chdir(folder)
    try:
        for block in blocks(page):
            if block.fate == "quick":
                printed, ran = run_block(block, namespace), ran + 1
            else:
                check(block)
                if block.fate == "compared":
                    compare(block, printed)
    finally:
        os.chdir(before)
    return ran


def run_block(block: Block, namespace: dict[str, Any]) -> str:
    """Run one block in this process; returns what it printed.

    Raises:
        Untrue: when it fails.
    """
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            if block.language == "python":
                exec(compile(block.code, f"{block.page}:{block.line}", "exec"), namespace)  # noqa: S102
            else:
                for words in block.commands:
                    saeflow(block, words, errors)
        except Untrue:
            raise
        except Exception as error:
            raise block.wrong(f"{type(error).__name__}: {error}") from error
    return out.getvalue()


def saeflow(block: Block, words: list[str], errors: io.StringIO) -> None:
    """Run one saeflow command line in this process.

    Raises:
        Untrue: when it is not a saeflow command, or ends with an error.
    """
    from saeflow import cli

    if words[0] != "saeflow":
        raise block.wrong(f"{words[0]!r} is not run here. Mark the block, or leave it to saeflow.")
    before, sys.argv = sys.argv, words
    try:
        cli.main()
    except SystemExit as stopped:
        if stopped.code not in {0, None}:
            said = errors.getvalue().strip().splitlines()[-8:]
            raise block.wrong(f"{shlex.join(words)} ended with {stopped.code}: {' / '.join(said)}") from None
    finally:
        sys.argv = before


def compare(block: Block, printed: str) -> None:
    """Compare the output that a page shows with what was printed.

    Raises:
        Untrue: when they differ.
    """
    shown = [line.rstrip() for line in block.code.strip("\n").splitlines()]
    pattern = "\n".join(r"(?:.*\n)*?.*" if line == "..." else re.escape(line) for line in shown)
    found = "\n".join(line.rstrip() for line in printed.strip("\n").splitlines())
    if not re.fullmatch(pattern, found):
        raise block.wrong(f"this is shown:\n{block.code}\nand this was printed:\n{found}")


def environment(cache: Path) -> dict[str, str]:
    """The environment for running blocks: no network, a separate cache, a fixed table width."""
    return {
        "COLUMNS": "100",
        "HF_HUB_OFFLINE": "1",
        "SAEFLOW_OFFLINE": "1",
        "SAEFLOW_CACHE": str(cache),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "NO_COLOR": "1",
    }


# Long blocks


def read_record() -> dict[str, dict[str, Any]]:
    """The record of long blocks by hash: {page, date, seconds, processor_seconds, version}, or {page, not_run: why}."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}


def said_of(block: Block, record: Mapping[str, Mapping[str, Any]]) -> str:
    """A sentence that says when a long block was last run."""
    entry = record.get(block.hash)
    if entry is None or "not_run" in entry:
        return f"Not run for this version{': ' + entry['not_run'] if entry else ''}."
    used = f", {clock(entry['processor_seconds'])} of processor time" if "processor_seconds" in entry else ""
    return f"Last run on {entry['date']} with saeflow {entry['version']}: {clock(entry['seconds'])} by the clock{used}."


def clock(seconds: float) -> str:
    """Seconds or minutes as readable text."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pages", nargs="*", type=Path, help="these pages only")
    parser.add_argument("--long", action="store_true", help="run the long blocks and record them")
    parser.add_argument("--list", action="store_true", help="list all blocks")
    parser.add_argument("--matching", default="", help="with --long: only blocks in which this expression is found")
    asked = parser.parse_args()
    chosen = [page.resolve() for page in asked.pages] or pages()
    if asked.long:
        from docs_long import record_long

        record_long(asked.pages, asked.matching)
        return
    for page in chosen:
        if asked.list:
            for block in blocks(page):
                print(f"{block.page}:{block.line}: {block.language or '(none)'}, {block.fate} {block.words}")
            continue
        with tempfile.TemporaryDirectory() as folder:
            os.environ.update(environment(Path(folder) / "cache"))
            before = time.process_time()
            try:
                ran = run_page(page, Path(folder))
            except Untrue as error:
                print(f"FAILED {error}")
                continue
            print(
                f"{page.relative_to(ROOT)}: {ran} run, {time.process_time() - before:.1f} s of processor time",
                flush=True,
            )


if __name__ == "__main__":
    main()
