"""The architecture, checked by reading the source: who imports whom, and what may stand where."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from pipeline.config import resolve
from pipeline.saved_config import save_config

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
LOGIN = HEAVY | {"numpy", "pyarrow"}  # commands that only read state import none of these
MAX_LINES = 300
MAX_MODULES = 16  # in one package, `__init__` not counted
# A module imports from earlier floors, and from its own part of its own floor.
FLOORS = [
    r"pipeline|pipeline\.core",
    r"pipeline\.core\.redaction",
    r"pipeline\.core\.(disk|errors|atomic_io|leftovers|cgroup_memory|task_log)",
    r"pipeline\.core\.error_translation",
    r"pipeline\.core\.(settings|stop|receipt|lease|provenance)",
    r"pipeline\.core\.commit",
    r"pipeline\.core\.(adoption|registry)",
    r"pipeline\.core\.stage",
    r"pipeline\.sources(\..*)?",
    r"pipeline\.modeling(\..*)?",
    r"pipeline\.(?P<part>download|decompress|tokenize)(\..*)?",
    r"pipeline\.dataset(\..*)?",
    r"pipeline\.train(\..*)?",
    r"pipeline\.evaluate(\..*)?",
    r"pipeline\.report(\..*)?",
    r"pipeline\.export(\..*)?",
    r"pipeline\.config",
    r"pipeline\.saved_config",
    r"pipeline\.dag",
    r"jobs|jobs\.core(\..*)?",
    r"jobs\.cluster(\..*)?",
    r"jobs\.planning(\..*)?",
    r"jobs\.monitoring(\..*)?",
    r"jobs\.running(\..*)?",
    r"jobs\.housekeeping(\..*)?",
    r"jobs\.cli(\..*)?",
    r"jobs\.__main__",
]
METAPHORS = {"clerk", "board", "press", "walk", "heart", "twin", "lot", "telling", "hush"}
NETWORK = {"ssl", "netrc"}  # what only a download needs
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in FILES.items()}


def imports(node: ast.AST, when: str = "import") -> Iterator[tuple[str, str]]:
    """Yield each import of a module, and when it runs.

    That is "import" (with the module), "call" (inside a function) or "never" (under
    `if TYPE_CHECKING`).
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for name in child.names:
                yield name.name, when
        elif isinstance(child, ast.ImportFrom):
            assert not child.level, "imports are absolute"
            for name in child.names:
                yield f"{child.module}.{name.name}", when
        inner = when
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            inner = "never"
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inner = "call" if when == "import" else when
        yield from imports(child, inner)


def project_imports(module: str, types: bool = True) -> set[str]:
    """The modules of this project that a module imports: in functions and for types, too.

    With `types=False` imports under `if TYPE_CHECKING` are left out.
    """
    found = set()
    for name, when in imports(TREES[module]):
        if when == "never" and not types:
            continue
        while name and name not in FILES:
            name = name.rpartition(".")[0]
        if name and name != module:
            found.add(name)
    return found


def floor(module: str) -> tuple[int, str]:
    """The floor of a module, and its part of the floor ("" where the floor is one part)."""
    matches = [(n, re.fullmatch(pattern, module)) for n, pattern in enumerate(FLOORS)]
    ((number, match),) = [(n, match) for n, match in matches if match]
    return number, match.groupdict().get("part") or ""


def find_ring(graph: dict[str, set[str]]) -> str:
    """One cycle of a graph as `a → b → a`; "" if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " → ".join(error.args[1])
    return ""


def offenders(check: Callable[[str], object]) -> dict[str, object]:
    """What a check finds, by module; modules about which it finds nothing are left out."""
    return {module: found for module in FILES if (found := check(module))}


def test_imports_point_one_way() -> None:
    def imports_from_above(module: str) -> list[str]:
        number, part = floor(module)
        found = {name: floor(name) for name in project_imports(module)}
        return [name for name, (n, p) in found.items() if n > number or (n == number and p != part)]

    assert not offenders(imports_from_above)


def test_modules_import_each_other_in_no_ring() -> None:
    """One type is allowed: the settings class in `stage.py`, in the module that `stage` calls."""
    graph = {}
    for module in FILES:
        settings = {f"{module.rpartition('.')[0]}.stage"} - project_imports(module, types=False)
        graph[module] = project_imports(module) - settings
    assert not find_ring(graph)


def test_packages_import_each_other_in_no_ring() -> None:
    graph: dict[str, set[str]] = {}
    for module, path in FILES.items():
        package = str(path.parent.relative_to(ROOT))
        targets = {str(FILES[name].parent.relative_to(ROOT)) for name in project_imports(module)}
        # a package and the packages inside it are one unit to those outside
        outside = {name for name in targets if not related(name, package)}
        graph.setdefault(package, set()).update(outside)
    assert not find_ring(graph)


def related(one: str, other: str) -> bool:
    """Whether one of two folders contains the other, or they are the same."""
    return Path(one).is_relative_to(other) or Path(other).is_relative_to(one)


def test_pipeline_knows_nothing_of_the_scheduler() -> None:
    def scheduler_words(module: str) -> list[str]:
        if not module.startswith("pipeline"):
            return []
        text = FILES[module].read_text(encoding="utf-8")
        found = re.findall(r"submitit|sbatch|squeue|sacct|scontrol|SLURM_", text)
        return found + [name for name, _ in imports(TREES[module]) if name.split(".")[0] == "jobs"]

    assert not offenders(scheduler_words)


def test_heavy_libraries_are_imported_inside_functions() -> None:
    def heavy_imports(module: str) -> list[str]:
        names = [name for name, when in imports(TREES[module]) if when == "import"]
        return [name for name in names if name.split(".")[0] in HEAVY]

    assert not offenders(heavy_imports)


def test_importing_a_module_only_defines_names() -> None:
    """A docstring, imports, names and definitions; a command-line module may call `main`."""
    allowed = (
        ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign | ast.FunctionDef
        | ast.AsyncFunctionDef | ast.ClassDef | ast.If
    )  # fmt: skip

    def statements(module: str) -> list[str]:
        return [
            f"line {node.lineno}: {ast.unparse(node)}"
            for node in TREES[module].body
            if not isinstance(node, allowed)
            and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        ]

    assert not offenders(statements)


def public(node: ast.AST, path: str) -> Iterator[tuple[str, ast.AST]]:
    """The public classes, functions and methods in a module or class, by name."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if child.name.startswith("_"):
                continue
            yield f"{path}.{child.name}", child
            if isinstance(child, ast.ClassDef):
                yield from public(child, f"{path}.{child.name}")


def test_every_public_name_has_a_docstring() -> None:
    def undocumented(module: str) -> list[str]:
        tree = TREES[module]
        named = [(module, tree), *public(tree, module)]
        return [name for name, node in named if not ast.get_docstring(node)]  # type: ignore[arg-type]

    assert not offenders(undocumented)


def test_no_file_is_longer_than_300_lines() -> None:
    lengths = {name: path.read_text(encoding="utf-8").count("\n") for name, path in FILES.items()}
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_LINES}


def test_no_package_has_more_than_16_modules() -> None:
    modules = Counter(path.parent for path in FILES.values() if path.stem != "__init__")
    assert not {folder: number for folder, number in modules.items() if number > MAX_MODULES}


def name_words(name: str) -> set[str]:
    """The words of an identifier in lower case and singular: `BoardTwins` → board, twin."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name.replace("TensorBoard", ""))
    return {form for part in parts for form in (part.lower(), part.lower().removesuffix("s"))}


def test_names_are_no_metaphors() -> None:
    definitions = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

    def metaphors(module: str) -> set[str]:
        names = [node.name for node in ast.walk(TREES[module]) if isinstance(node, definitions)]
        return {name for name in [*module.split("."), *names] if name_words(name) & METAPHORS}

    assert not offenders(metaphors)


@pytest.mark.parametrize("name", ["Clerk", "FrameWalk", "_twins", "press_frames", "Board2", "hush"])
def test_metaphors_are_found_in_names(name: str) -> None:
    assert name_words(name) & METAPHORS


@pytest.mark.parametrize("name", ["TensorBoardWriter", "decompress", "slot", "tensorboard"])
def test_words_that_contain_a_metaphor_are_allowed(name: str) -> None:
    assert not name_words(name) & METAPHORS


SAFE = {"shell": {"False"}, "verify": {"True"}, "trust_remote_code": {"False"}}
SAFE |= {"allow_pickle": {"False"}, "weights_only": {"True"}, "Loader": {"_Loader"}}
NEVER = (
    r"eval|exec|os\.system|os\.popen|subprocess\.get(status)?output"
    r"|(\w*pickle|marshal|shelve|joblib|dill)\.(loads?|open|Unpickler)"
    r"|yaml\.(full|unsafe)_load(_all)?|.*\._create_unverified_context|.*\.extractall"
)
NEEDED = {  # calls that must pass this argument
    r"torch\.load": "weights_only",
    r"yaml\.load(_all)?": "Loader",
    r".*\bAuto\w+\.from_\w+": "trust_remote_code",
}


def unsafe(tree: ast.AST) -> list[str]:
    """Calls that could run code from a file, start a shell, or skip verification of a server."""
    found = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name, given = ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
        wrong = [k for k, values in SAFE.items() if k in given and given[k] not in values]
        wrong += [k for call, k in NEEDED.items() if re.fullmatch(call, name) and k not in given]
        if wrong or re.fullmatch(NEVER, name):
            found.append(f"line {call.lineno}: {ast.unparse(call)}")
    return found


def test_no_code_loads_pickles_or_trusts_remote_code() -> None:
    assert not offenders(lambda module: unsafe(TREES[module]))


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
def test_unsafe_calls_are_found(line: str) -> None:
    assert unsafe(ast.parse(f"def read():\n    return {line}"))


def loaded(*words: str) -> tuple[subprocess.CompletedProcess[str], set[str], float]:
    """Run a command of `jobs`; return its output, the packages it imported, its CPU seconds."""
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


def test_status_imports_nothing_heavy(tmp_path: Path) -> None:
    done, packages, seconds = loaded("status", f"--root={tmp_path}")
    assert done.returncode == 2
    output = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert len(output) == 1
    assert output[0].startswith("error: there is no run in")
    assert not packages & (LOGIN | NETWORK)
    save_config(resolve("nih", "opt-6.7b", name="try"), tmp_path)
    done, packages, seconds = loaded("status", f"--root={tmp_path}", "--dataset=nih")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "download" in done.stdout
    assert not packages & (LOGIN | NETWORK)
    assert seconds < 2, "CPU; measured 0.5"


@pytest.mark.parametrize("words", [["plan", "--dataset=demo"], ["--help"], ["clean"]])
def test_other_login_node_commands_import_nothing_heavy(tmp_path: Path, words: list[str]) -> None:
    place = [] if words == ["--help"] else [f"--root={tmp_path}"]
    done, packages, _ = loaded(*words, *place)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not packages & LOGIN


def test_a_plan_that_asks_servers_imports_only_http_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    path = tmp_path / "far.yaml"
    path.write_text("urls: [http://127.0.0.1:9/far.jsonl.zst]\n")
    done, packages, _ = loaded("plan", f"--dataset={path}", f"--root={tmp_path}", "--model=gpt2")
    assert done.returncode == 3, done.stderr[-2000:]
    assert "download.corpus" in done.stdout
    assert packages & LOGIN == {"httpx", "huggingface_hub"}, "only what asks servers"
