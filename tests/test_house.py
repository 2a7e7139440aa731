"""The rules of the house: who may import whom, what lies where, and a README that does not rot."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from importlib.resources import files
from pathlib import Path

import grimp
import pytest

import engine
from engine import events

ROOT = Path(__file__).parent.parent
PAGES = {
    name: (ROOT / name).read_text("utf-8")
    for name in ("README.md", "engine/README.md", "tui/README.md", "tests/bench/README.md")
}
README = PAGES["README.md"]
MAX_README_LINES = 200
TOP_LEVEL = {"LICENSE-APACHE", "LICENSE-MIT", "README.md", "engine", "pyproject.toml", "run_smoke_test.bat", "tests"}
TOP_LEVEL |= {"themes", "tui"}
MAX_FILE_BYTES = 16 * 2**20
HEAVY = ("accelerate", "diffusers", "torch", "transformers")


def repository_files() -> list[str]:
    """Paths of all tracked files; skips the test where this is no git checkout."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip(f"git cannot list the files: {listed.stderr.strip()}")
    return [path for path in listed.stdout.split("\0") if path]


def generate_examples() -> list[str]:
    """What follows `t2i generate` on every such line of the pages' shell blocks."""
    text = "\n".join(PAGES.values())
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```$", text, flags=re.DOTALL | re.MULTILINE)
    return [match for block in blocks for match in re.findall(r"\bt2i generate\b(.*)", block)]


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import engine", (*HEAVY, "textual", "numpy", "PIL")),
        ("from engine import Engine, Request", (*HEAVY, "textual", "PIL")),
        ("import engine.cli.commands", (*HEAVY, "textual", "PIL")),
        ("import tui", HEAVY),
        ("import tui.__main__", (*HEAVY, "textual", "PIL")),
        ("import tui.launch, tui.settings, tui.profile", (*HEAVY, "textual", "PIL")),
        ("import tui.app, tui.screens.gallery, tui.smoke", (*HEAVY, "numpy", "PIL")),
        ("import engine.process", (*HEAVY, "textual", "numpy", "PIL")),
    ],
)
def test_importing_stays_light(statement: str, unwanted: tuple[str, ...]) -> None:
    code = f"import sys\n{statement}\nprint(*sorted({set(unwanted)!r} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_the_import_contracts_hold() -> None:
    lint_imports = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert lint_imports, "lint-imports is not installed; run pip install -e '.[test]'"
    result = subprocess.run([lint_imports, "--no-cache"], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("room", ["engine", "tui"])
def test_no_modules_import_each_other_in_a_circle(room: str) -> None:
    """Imports for type checkers count: who reads a module needs what they name."""
    graph = grimp.build_graph(room, exclude_type_checking_imports=False, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_engine_exports_every_event_and_every_name_resolves() -> None:
    kinds = {name for name, kind in vars(events).items() if isinstance(kind, type) and issubclass(kind, events.Event)}
    assert kinds <= set(engine.__all__)
    assert all(getattr(engine, name) for name in engine.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        getattr(engine, "nonsense")  # noqa: B009


# Names that only FLUX.1's own room may use, and places where one is something else: a node of another program's graph.
OF_FLUX = re.compile(
    r"(single_)?transformer_blocks|(double|single)_blocks|time_text_embed|norm_out|x_embedder|context_embedder"
    r"|(img|txt|time|vector|guidance)_in|text_encoder(_2)?|distill_t5|tokenizer_2|guidance_embeds|lm_head|enc\\.blk"
)
CLASSES_OF_FLUX = re.compile(r"(Flux|CLIP|T5|Distill|AutoencoderKL)[A-Z]?\w*")
ROOMS_OF_FLUX = ("engine/families/", "engine/demo/", "engine/images/foreign/")
NO_TENSOR = {"text_encoder"}  # a field of the plan: how the prompt is read


def strings_and_imports(tree: ast.AST) -> tuple[set[str], set[str]]:
    """String literals that are no docstrings, and imported names."""
    documented = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    texts = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in documented
    }
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    return texts, names


def test_only_families_know_the_networks_and_their_tensors() -> None:
    found = []
    for room in ("engine", "tui"):
        for path in sorted((ROOT / room).rglob("*.py")):
            place = path.relative_to(ROOT).as_posix()
            if place.startswith(ROOMS_OF_FLUX):
                continue
            texts, names = strings_and_imports(ast.parse(path.read_text("utf-8")))
            words = {word for text in texts for word in re.split(r"[^\w]+", text)} - NO_TENSOR
            found += [f"{place}: {word}" for word in sorted(words) if OF_FLUX.fullmatch(word)]
            found += [f"{place}: import {name}" for name in sorted(names) if CLASSES_OF_FLUX.fullmatch(name)]
    assert found == []


def test_the_top_level_holds_only_what_belongs_there() -> None:
    names = {path.partition("/")[0] for path in repository_files()}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


def test_no_file_is_larger_than_16_mb() -> None:
    paths = [ROOT / name for name in repository_files()]
    assert [path for path in paths if path.is_file() and path.stat().st_size > MAX_FILE_BYTES] == []


def test_the_package_brings_its_data() -> None:
    weights = files("engine") / "demo" / "weights"
    assert (weights / "model_index.json").is_file()
    assert (weights / "transformer" / "diffusion_pytorch_model.safetensors").is_file()
    assert (files("engine") / "py.typed").is_file()


def test_readme_stays_a_front_page() -> None:
    assert len(README.splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_links_to_is_there(page: str) -> None:
    links = re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", PAGES[page])
    assert links
    for path, heading in links:
        if path.startswith("https://"):
            continue
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.exists(), path
        if heading:
            headings = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), flags=re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", text).lower().replace(" ", "-") for text in headings}
            assert heading in anchors, f"{path}#{heading}"


@pytest.mark.parametrize("page", PAGES)
def test_the_modules_that_a_page_names_are_there(page: str) -> None:
    """By a path from the root or from the page's folder, or by the name of one that lies somewhere below."""
    named = set(re.findall(r"`([\w./]+\.py)`", PAGES[page]))
    run = re.findall(r"python -m ((?:engine|tests)\.[.a-z_]+[a-z])", PAGES[page])
    named |= {f"{name.replace('.', '/')}.py" for name in run}
    room = (ROOT / page).parent
    for name in named - {path.name for path in room.rglob("*.py")}:
        assert any(place.exists() or place.with_suffix("").is_dir() for place in (ROOT / name, room / name)), name


def test_readme_opens_with_the_two_commands() -> None:
    opening = README.partition("\n## ")[0].splitlines()
    assert "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/t2i" in opening
    assert "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest" in opening


def test_every_test_that_holds_what_is_safe_is_there() -> None:
    held = re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGES["tui/README.md"])
    assert held
    gone = [name for file, name in held if f"def {name}(" not in (ROOT / "tests" / file).read_text("utf-8")]
    assert gone == []


def test_the_apps_page_has_the_table_of_keys() -> None:
    from tui.bindings import Keys
    from tui.keys import markdown_table

    assert markdown_table(Keys()) in PAGES["tui/README.md"], "t2i keys --markdown prints it"


@pytest.mark.parametrize("example", generate_examples())
def test_an_example_in_a_readme_parses(example: str) -> None:
    from typer.core import TyperGroup
    from typer.main import get_command

    from engine.cli import commands as cli

    t2i = get_command(cli.app)
    assert isinstance(t2i, TyperGroup)
    context = t2i.commands["generate"].make_context("generate", shlex.split(example, comments=True))
    given = [context.params[name] for name in ("words", "prompt", "prompts_file", "from_image")]
    assert len(given[0] or []) <= 1
    assert any(given)
