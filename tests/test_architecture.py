"""The plan of the house, held by reading the source: who imports whom, and who says what."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from pipeline.config import resolve, save_config

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("pipeline", "jobs")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
HEAVY = {
    "torch", "transformers", "peft", "bitsandbytes", "datasets", "matplotlib", "httpx",
    "huggingface_hub", "submitit", "lxml", "scipy", "datasketch",
}  # fmt: skip
LOGIN = HEAVY | {"numpy", "pyarrow"}  # what a command that only looks does without, too
# Each floor stands on those before it; modules of one floor may use each other, but not in a ring.
FLOORS = [
    r"pipeline|pipeline\.(data|model|report|stages)",
    r"pipeline\.redaction",
    r"pipeline\.(disk|errors|files|leftovers)",
    r"pipeline\.faults",
    r"pipeline\.(settings|stop|receipt|lease|provenance)",
    r"pipeline\.twin",
    r"pipeline\.(registry|stage)",
    r"pipeline\.(data|model|report)\..*",
    r"pipeline\.stages\..*",
    r"pipeline\.config",
    r"pipeline\.dag",
    r"jobs(\..*)?",
]
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in FILES.items()}


def imports(node: ast.AST, inside: bool = False) -> Iterator[tuple[str, bool]]:
    """What a module imports when it runs, and whether that is inside a function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            for name in child.names:
                yield name.name, inside
        elif isinstance(child, ast.ImportFrom):
            assert not child.level, "imports are absolute"
            for name in child.names:
                yield f"{child.module}.{name.name}", inside
        function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports(child, inside or function)


def ours(module: str) -> set[str]:
    """The modules of this project that a module imports, anywhere in it."""
    found = set()
    for name, _ in imports(TREES[module]):
        while name and name not in FILES:
            name = name.rpartition(".")[0]
        if name and name != module:
            found.add(name)
    return found


def floor(module: str) -> int:
    (found,) = [n for n, pattern in enumerate(FLOORS) if re.fullmatch(pattern, module)]
    return found


@pytest.mark.parametrize("module", FILES)
def test_imports_go_down_the_floors_only(module: str) -> None:
    up = {name for name in ours(module) if floor(name) > floor(module)}
    assert not up, f"{module} stands below {up}"


def test_no_imports_go_round_in_a_ring() -> None:
    try:
        TopologicalSorter({module: ours(module) for module in FILES}).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


@pytest.mark.parametrize("module", [module for module in FILES if module.startswith("pipeline")])
def test_what_is_computed_knows_nothing_of_how_it_is_scheduled(module: str) -> None:
    text = FILES[module].read_text(encoding="utf-8")
    found = re.findall(r"submitit|sbatch|squeue|sacct|scontrol|SLURM_", text)
    assert not found
    assert not [name for name, _ in imports(TREES[module]) if name.split(".")[0] == "jobs"]


@pytest.mark.parametrize("module", FILES)
def test_what_is_slow_to_import_is_imported_where_it_is_used(module: str) -> None:
    heavy = {name for name, inside in imports(TREES[module]) if not inside}
    assert not {name for name in heavy if name.split(".")[0] in HEAVY}


@pytest.mark.parametrize("module", FILES)
def test_nothing_is_done_at_import_but_defining(module: str) -> None:
    """A docstring, imports, names and definitions; the command line may call its `main`."""
    allowed = (
        ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign | ast.FunctionDef
        | ast.AsyncFunctionDef | ast.ClassDef | ast.If
    )  # fmt: skip
    for node in TREES[module].body:
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert text or isinstance(node, allowed), f"line {node.lineno}: {ast.unparse(node)}"


def public(node: ast.AST, path: str) -> Iterator[tuple[str, ast.AST]]:
    """The public classes, functions and methods in a module or class, by name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if child.name.startswith("_"):
                continue
            yield f"{path}.{child.name}", child
            if isinstance(child, ast.ClassDef):
                yield from public(child, f"{path}.{child.name}")


@pytest.mark.parametrize("module", FILES)
def test_every_public_name_says_what_it_is(module: str) -> None:
    tree = TREES[module]
    named = [(module, tree), *public(tree, module)]
    silent = [name for name, node in named if not ast.get_docstring(node)]  # type: ignore[arg-type]
    assert not silent


@pytest.mark.parametrize("module", FILES)
def test_a_module_can_be_held_in_one_s_head(module: str) -> None:
    lines = FILES[module].read_text(encoding="utf-8").count("\n")
    assert lines <= 300


SAFE = {"shell": {"False"}, "verify": {"True"}, "trust_remote_code": {"False"}}
SAFE |= {"allow_pickle": {"False"}, "weights_only": {"True"}, "Loader": {"_Loader"}}
NEVER = (
    r"eval|exec|os\.system|os\.popen|subprocess\.get(status)?output"
    r"|(\w*pickle|marshal|shelve|joblib|dill)\.(loads?|open|Unpickler)"
    r"|yaml\.(full|unsafe)_load(_all)?|.*\._create_unverified_context|.*\.extractall"
)
NEEDED = {  # calls that are safe only with this said
    r"torch\.load": "weights_only",
    r"yaml\.load(_all)?": "Loader",
    r".*\bAuto\w+\.from_\w+": "trust_remote_code",
}


def unsafe(tree: ast.AST) -> list[str]:
    """Calls that could run what a file holds, start a shell, or trust whoever answers."""
    found = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name, said = ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
        wrong = [k for k, values in SAFE.items() if k in said and said[k] not in values]
        wrong += [k for call, k in NEEDED.items() if re.fullmatch(call, name) and k not in said]
        if wrong or re.fullmatch(NEVER, name):
            found.append(f"line {call.lineno}: {ast.unparse(call)}")
    return found


@pytest.mark.parametrize("module", FILES)
def test_nothing_read_is_run_and_nobody_is_trusted_unseen(module: str) -> None:
    assert not unsafe(TREES[module])


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=careful)",
        "pickle.loads(data)",
        "cloudpickle.load(file)",
        "numpy.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "httpx.Client(verify=False)",
        "ssl._create_unverified_context()",
        "AutoTokenizer.from_pretrained(folder)",
        "transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)",
        "AutoModelForCausalLM.from_config(config)",
        "datasets.load_dataset(repo, trust_remote_code=True)",
        "archive.extractall(folder)",
    ],
)
def test_what_is_unsafe_is_known(line: str) -> None:
    assert unsafe(ast.parse(f"def read():\n    return {line}"))


def loaded(*words: str) -> tuple[subprocess.CompletedProcess[str], set[str], float]:
    """Run a command of `jobs`: what it said, the packages it imported, its seconds of CPU."""
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "jobs", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    after = os.times()
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    packages = {line.rpartition("|")[2].strip().split(".")[0] for line in lines}
    assert "pipeline" in packages
    seconds = after.children_user + after.children_system
    return done, packages, seconds - before.children_user - before.children_system


def test_asking_for_the_status_loads_nothing_heavy(tmp_path: Path) -> None:
    done, packages, seconds = loaded("status", f"--root={tmp_path}")
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert len(said) == 1
    assert said[0].startswith("error: there is no run in")
    assert not packages & LOGIN
    save_config(resolve("nih", "opt-6.7b", name="try"), tmp_path)
    done, packages, seconds = loaded("status", f"--root={tmp_path}", "--dataset=nih")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "download" in done.stdout
    assert not packages & LOGIN
    assert seconds < 2, "CPU; measured 0.5"


@pytest.mark.parametrize("words", [["plan", "--dataset=demo"], ["--help"], ["clean"]])
def test_other_commands_of_the_login_node_load_nothing_heavy(
    tmp_path: Path, words: list[str]
) -> None:
    place = [] if words == ["--help"] else [f"--root={tmp_path}"]
    done, packages, _ = loaded(*words, *place)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not packages & LOGIN


def test_a_plan_that_asks_servers_loads_nothing_heavy_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    path = tmp_path / "far.yaml"
    path.write_text("urls: [http://127.0.0.1:9/far.jsonl.zst]\n")
    done, packages, _ = loaded("plan", f"--dataset={path}", f"--root={tmp_path}", "--model=gpt2")
    assert done.returncode == 3, done.stderr[-2000:]
    assert "download.corpus" in done.stdout
    assert packages & LOGIN == {"httpx", "huggingface_hub"}, "what asks, and nothing else"
