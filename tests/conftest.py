"""What tests of several folders share, and the run-time checks of shapes."""

import sys
from pathlib import Path

import jaxtyping
import pytest

SOURCE = Path(__file__).parent.parent / "src"
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"


def modules_with_shapes() -> list[str]:
    """Modules that annotate arrays; the types of all others are pyright's."""
    return [
        ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(SOURCE.rglob("*.py"))
        if "from jaxtyping import" in path.read_text(encoding="utf-8")
    ]


def outside_functions(*, typechecker, whole=jaxtyping.jaxtyped):
    """`jaxtyped` for what a module and its classes define.

    A function inside a function, such as a hook, is defined at every call, and its check compiled each time: 3 ms.
    """
    return lambda thing: thing if "<locals>" in thing.__qualname__ else whole(thing, typechecker=typechecker)


# Before anything of saeflow is imported. pytest's own option, --jaxtyping-packages, takes no list with this checker.
jaxtyping.jaxtyped = outside_functions
jaxtyping.install_import_hook(modules_with_shapes(), CHECKER)

from saeflow import cli  # noqa: E402


@pytest.fixture
def saeflow_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run `saeflow ...`; returns (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["saeflow", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        printed = capsys.readouterr()
        return stopped.value.code or 0, printed.out, printed.err

    return call


@pytest.fixture
def stdout(saeflow_here):
    """Run `saeflow ...`, which must succeed; returns stdout."""

    def call(*arguments: object) -> str:
        code, out, err = saeflow_here(*arguments)
        assert code == 0, err
        return out

    return call


@pytest.fixture
def refusal(saeflow_here):
    """Run `saeflow ...`, which must be refused with exit code 2; returns stderr."""

    def call(*arguments: object) -> str:
        code, out, err = saeflow_here(*arguments)
        assert (code, out) == (2, ""), err
        assert err.startswith("saeflow: ")
        return err

    return call


@pytest.fixture
def saeflow(monkeypatch: pytest.MonkeyPatch, saeflow_here, tmp_path):
    """Run `saeflow ...` in an empty folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return saeflow_here
