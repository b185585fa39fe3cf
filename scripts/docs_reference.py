"""Write docs/reference: the command line, from the commands themselves, and pages that list every public object.

    python scripts/docs_reference.py              write the pages
    python scripts/docs_reference.py --check      list pages that are out of date; exit code 1 if there are any

The pages are plain Markdown: tables of names with one sentence each. On the site, the documentation of each name
follows, taken from its docstrings (scripts/docs_hooks.py). Public are the names in a package's `__all__`, or, for a
module without one, its documented names without a leading underscore.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
OUT: Final = ROOT / "docs" / "reference"


@dataclass(frozen=True)
class Page:
    """A page of the reference.

    Attributes:
        name: the file name, without suffix.
        title: the heading.
        about: a sentence or two under the heading.
        packages: packages whose `__all__` names are all documented, except those on earlier pages.
        modules: modules whose public names are all documented, likewise.
    """

    name: str
    title: str
    about: str
    packages: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()


PAGES: Final = (
    Page("saeflow", "saeflow", "What `import saeflow` gives. Each name is imported at first use.", ("saeflow",)),
    Page(
        "errors",
        "saeflow.errors",
        "Every error that saeflow raises on purpose: what failed, with the values, and what to do.",
        modules=("saeflow.errors",),
    ),
    Page(
        "sources",
        "saeflow.sources",
        "Where features come from: dictionaries on disk or on a hub, and the model they were trained on.",
        modules=(
            "sources.dictionary",
            "sources.library",
            "sources.model",
            "sources.captured",
            "sources.site_map",
            "sources.releases",
            "sources.remote",
        ),
    ),
    Page(
        "matching",
        "saeflow.matching",
        "Which feature of one site is which of another, and how sure that is.",
        modules=(
            "matching.topk",
            "matching.screening",
            "matching.permutation",
            "matching.correlation",
            "matching.transport",
            "matching.calibration",
            "matching.null",
            "matching.table",
            "matching.agreement",
            "matching.methods",
            "matching.rows",
        ),
    ),
    Page("flow", "saeflow.flow", "Matches composed over layers.", ("saeflow.flow",), ("flow.published", "flow.union")),
    Page(
        "labels",
        "saeflow.labels",
        "What features stand for.",
        ("saeflow.labels",),
        ("labels.from_texts", "labels.neuronpedia", "labels.exports", "labels.explain", "labels.search"),
    ),
    Page(
        "comparison",
        "saeflow.comparison",
        "Two or more dictionaries side by side, and labels carried over from one to another.",
        modules=(
            "comparison.results",
            "comparison.run",
            "comparison.pairs",
            "comparison.chain",
            "comparison.tables",
            "comparison.transfer",
        ),
    ),
    Page(
        "experiments",
        "saeflow.experiments",
        "Origins, deactivation and transitions on a running model, and their results folders.",
        modules=(
            "experiments.settings",
            "experiments.results",
            "experiments.origins",
            "experiments.one_text",
            "experiments.deactivation",
            "experiments.transition.run",
            "experiments.groups",
            "experiments.origins_tables",
            "experiments.deactivation_tables",
            "experiments.transition.tables",
            "experiments.sampling",
            "experiments.statistics",
        ),
    ),
    Page(
        "prompt_graph",
        "saeflow.prompt_graph",
        "What happened on a text: features that are active at a token, joined by edges that are measured.",
        ("saeflow.prompt_graph",),
        ("prompt_graph.trace", "prompt_graph.fidelity"),
    ),
    Page(
        "steering",
        "saeflow.steering",
        "From a topic to features, to a plan, to text, to marks.",
        ("saeflow.steering",),
        (
            "steering.generate",
            "steering.sweep.run",
            "steering.sweep.contrasts",
            "steering.judges.offline",
            "steering.judges.llm",
        ),
    ),
    Page(
        "training",
        "saeflow.training",
        "SAEs and transcoders from streamed activations.",
        ("saeflow.training",),
        ("loggers",),
    ),
    Page("doctor", "saeflow.doctor", "Is a release what it says it is?", ("saeflow.doctor",), ("doctor.examine",)),
    Page(
        "report",
        "saeflow.report",
        "What people see: pages, figures and files of other tools.",
        ("saeflow.report",),
        ("report.exports", "report.prompt"),
    ),
    Page(
        "paper",
        "saeflow.paper",
        "Tables of experiments as figures, sentences and pages; the paper's claims and their verdicts.",
        ("saeflow.paper",),
        ("paper.results", "paper.claims", "paper.verdicts"),
    ),
    Page("demo", "saeflow.demo", "The embedded pack: its texts and how good it is.", ("saeflow.demo",)),
    Page("engines", "saeflow.engines", "Where units of work run: here, in a pool, on Ray.", ("saeflow.engines",)),
    Page(
        "reproduce",
        "saeflow.reproduce",
        "The whole paper for a recipe: what it runs, what it costs, and the verdict on each claim.",
        modules=("reproduce.recipe", "reproduce.record", "reproduce.run", "reproduce.plan", "reproduce.report"),
    ),
)


# Docstrings of modules, read without importing them


def source_of(module: str) -> Path | None:
    """The source file of a module or package of saeflow; None if it does not exist."""
    base = ROOT / "src" / module.replace(".", "/")
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


@cache
def tree_of(module: str) -> ast.Module:
    """The syntax tree of a module."""
    path = source_of(module)
    if path is None:
        raise SystemExit(f"there is no module {module}; scripts/docs_reference.py names it")
    return ast.parse(path.read_text(encoding="utf-8"))


def first_sentence(node: Any) -> str:
    """The first paragraph of a docstring on one line; "" without a docstring."""
    said = ast.get_docstring(node) or ""
    return " ".join(said.split("\n\n")[0].split()).replace("|", "\\|")


def public_names(package: str) -> list[str]:
    """The names in a package's `__all__` except `__version__`; empty without `__all__`."""
    for node in tree_of(package).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            try:
                return [name for name in ast.literal_eval(node.value) if name != "__version__"]
            except ValueError:  # not a literal, such as sorted([*_HOME])
                return list(importlib.import_module(package).__all__)
    return []


@cache
def home_of(package: str, name: str) -> str:
    """The module that defines a name which `package` re-exports."""
    for node in ast.walk(tree_of(package)):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    if alias.name == name and source_of(f"{node.module}.{name}") and not defines(node.module, name):
                        return f"{node.module}.{name}"
                    return node.module if defines(node.module, name) else home_of(node.module, name)
    return package


def defines(module: str, name: str) -> bool:
    """Whether a module itself defines a name."""
    return name in sentences(module)


@cache
def sentences(module: str) -> dict[str, str]:
    """The result of `defined` as a dictionary."""
    return dict(defined(module))


def defined(module: str) -> Iterator[tuple[str, str]]:
    """Yield the public classes, functions and constants of a module, each with the start of its docstring."""
    body = tree_of(module).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            if not node.name.startswith("_"):
                yield node.name, first_sentence(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and not target.id.startswith("_"):
                told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                yield target.id, " ".join(str(after.value.value).split()) if told else ""  # pyright: ignore


def objects(page: Page, seen: set[str]) -> list[tuple[str, str, str]]:
    """(where it is defined, its public name, first sentence) of everything new on a page; adds to `seen`."""
    found: list[tuple[str, str, str]] = []
    for package in page.packages:
        for name in public_names(package):
            home = home_of(package, name)
            said = sentences(home).get(name, "")
            found.append((f"{home}.{name}", f"{package}.{name}", said))
    for module in page.modules:
        whole = module if module.startswith("saeflow") else f"saeflow.{module}"
        names = public_names(whole) or [name for name, _ in defined(whole)]
        homes = {name: home_of(whole, name) for name in names}
        said = {name: sentences(home).get(name, "") for name, home in homes.items()}
        found += [(f"{homes[n]}.{n}", f"{whole}.{n}", said[n]) for n in names if said[n]]
    new = [entry for entry in {entry[0]: entry for entry in found}.values() if entry[0] not in seen]
    seen |= {where for where, _, _ in new}
    return new


def page_text(page: Page, seen: set[str]) -> str:
    """The Markdown of a page of the reference."""
    rows = objects(page, seen)
    lines = [f"# {page.title}", "", page.about, "", "| name | |", "|---|---|"]
    lines += [f"| `{called.removeprefix(page.title + '.')}` | {said} |" for _, called, said in rows]
    for where, _, _ in rows:
        lines += ["", f"<!-- api: {where} -->"]
    return "\n".join(lines) + "\n"


# The command line


def commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield all commands that do something, with the words that call them, in the order of the help."""
    names = [name for name in group if not name.startswith("-")]
    for name in sorted(names, key=lambda name: group[name].sort_key):
        if group[name].default_command is not None:
            yield (*words, name), group[name]
        yield from commands(group[name], (*words, name))


def option_row(option: Any) -> str:
    """A table row for an option: its names, default and description."""
    from saeflow.cli.options import shown

    names = ", ".join(f"`{name}`" for name in sorted(option.names, key=lambda name: not name.startswith("--")))
    default = option.field_info.default
    told = None if default is option.field_info.empty else shown(default)
    default = "" if told is None else told if told == "on" else f"`{told}`"
    choices = option.get_choices()
    said = said_of(option.parameter.help)
    if choices and not all(str(choice) in said for choice in choices):
        several = "Any of" if option.token_count()[1] else "One of"
        said = f"{said} {several} {', '.join(f'`{choice}`' for choice in choices if choice)}."
    return f"| {names} | {default} | {said} |"


def cli_text() -> str:
    """The Markdown of the command-line page."""
    from saeflow.cli.app import app

    lines = ["# Command line", ""]
    lines += [
        "Every command that prints a table takes `--json`. Lists take commas, `2/res,3/res`, and layers take ranges,",
        "`6-9`. Errors that saeflow knows end with exit code 2 and one message. This page is made from the commands",
        "themselves by `python scripts/docs_reference.py`.",
        "",
    ]
    found = list(commands(app))
    lines += ["| command | |", "|---|---|"]
    for words, command in found:
        name = " ".join(words)
        lines.append(f"| [`saeflow {name}`](#saeflow-{name.replace(' ', '-')}) | {paragraphs(command)[0]} |")
    for words, command in found:
        declared = [one for one in declared_by(app, words) if one.show]
        arguments = [one for one in declared if one.index is not None]
        options = [one for one in declared if one.index is None]
        usage = " ".join([*words, *[_argument(a) for a in arguments], *(["[OPTIONS]"] if options else [])])
        lines += ["", f"## saeflow {' '.join(words)}", "", "\n\n".join(paragraphs(command))]
        lines += ["", f"`saeflow {usage}`", ""]
        if arguments:
            lines += ["| argument | |", "|---|---|"]
            lines += [f"| {_argument(a)} | {said_of(a.parameter.help)} |" for a in arguments] + [""]
        if options:
            lines += ["| option | default | |", "|---|---|---|", *map(option_row, options)]
    return "\n".join(line.rstrip() for line in lines).rstrip() + "\n"


def meaning_of(help_: str | None) -> str:
    """The meaning of an option in every command: the first clause of its help, before command-specific details."""
    return re.split(r"[:;.](?=\s|$)", " ".join((help_ or "").split()), maxsplit=1)[0].replace("|", "\\|")


def options_text() -> str:
    """The Markdown of the options page: what each means, which commands take it, and its earlier names."""
    from saeflow.cli.app import app
    from saeflow.cli.vocabulary import NUMBER_OF_TEXTS, OLD, TURNED

    means: dict[str, str] = {}
    where: dict[str, list[str]] = {}
    for words, _ in commands(app):
        for option in declared_by(app, words):
            if option.show and option.index is None:
                means.setdefault(option.name, meaning_of(option.parameter.help))
                where.setdefault(option.name, []).append(" ".join(words))
    lines = ["# Words of options", ""]
    lines += [
        "One word has one meaning in every command, and one thing has one word. The meaning is the first clause of an",
        "option's help; what follows it there is the command's own. A singular stands for its plural and the other way",
        "round: `--site` is `--sites`. Several values take commas, or follow each other: `--sites 2/res,3/res`,",
        "`--sites 2/res 3/res`, `--sites 2/res --sites 3/res`.",
        "",
        "| option | meaning | commands |",
        "|---|---|---|",
    ]
    lines += [f"| `{word}` | {said_of(means[word])} | {', '.join(where[word])} |" for word in sorted(means)]
    turned = [("--texts NUMBER", "--n-texts", NUMBER_OF_TEXTS)]
    turned += [(f"--direction {was}", " ".join(now) or "the default", (name,)) for (name, was), now in TURNED.items()]
    lines += ["", "## Old words", "", "They work for one release, and say on stderr what they are now.", ""]
    lines += ["| old | now | commands |", "|---|---|---|"]
    lines += [f"| `{old}` | `{new}` | {', '.join(names)} |" for old, new, names in (*OLD, *turned)]
    return "\n".join(lines) + "\n"


def declared_by(app: Any, words: tuple[str, ...]) -> Any:
    """The arguments and options of a command, with their help."""
    with app.app_stack(words):
        _, (*_, command), _ = app.parse_commands(words)
        return command.assemble_argument_collection(parse_docstring=True)


def paragraphs(command: Any) -> list[str]:
    """The paragraphs of a command's docstring, without its `Args:` section."""
    said = inspect.cleandoc(command.default_command.__doc__).split("\n\nArgs:")[0]
    return [said_of(part) for part in said.split("\n\n")]


def said_of(help_: str | None) -> str:
    """Help text as Markdown on one line, with options formatted as code and bars escaped for tables."""
    line = " ".join((help_ or "").split()).replace("|", "\\|")
    return re.sub(r"(?<![\w`-])(--[a-z][a-z0-9-]*)", r"`\1`", line)


def _argument(argument: Any) -> str:
    """An argument as it appears in the usage line."""
    name = argument.name.upper()
    return name if argument.required else f"[{name}]"


def index_text(found: dict[str, str]) -> str:
    """The Markdown of the reference's index page."""
    lines = ["# Reference", "", "| | |", "|---|---|", "| [Command line](cli.md) | every command with its options |"]
    lines += ["| [Words of options](options.md) | what each option means, in every command |"]
    lines += [f"| [{page.title}]({page.name}.md) | {page.about} |" for page in PAGES if page.name in found]
    lines += ["", "Names that are on no page may change without notice."]
    return "\n".join(lines) + "\n"


def written() -> dict[str, str]:
    """The text of every page, by file name."""
    seen: set[str] = set()
    pages = {page.name: page_text(page, seen) for page in PAGES if all(map(source_of, page.packages))}
    texts = {f"{name}.md": text for name, text in pages.items()}
    return {"index.md": index_text(pages), "cli.md": cli_text(), "options.md": options_text(), **texts}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when a page is out of date")
    asked = parser.parse_args()
    stale = []
    for name, text in written().items():
        path = OUT / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not asked.check:
                OUT.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
    print(f"out of date: {', '.join(stale)}" if asked.check and stale else f"written: {', '.join(stale) or 'nothing'}")
    sys.exit(1 if asked.check and stale else 0)


if __name__ == "__main__":
    main()
