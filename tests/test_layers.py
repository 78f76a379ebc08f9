"""The architecture, held: imports point one way, heavy packages wait, and the loop knows abstract ideas only."""

import ast
import subprocess
import sys
from pathlib import Path

import unmask

ROOT = Path(unmask.__file__).parent
LAYERS = [
    {"cli", "__main__"},
    {"demo"},
    {"generate", "doctor", "harness", "serve"},
    {"config"},
    {"rl", "supervised"},
    {"run"},
    {"evaluation", "breakdown", "picture_folder", "progress", "stored", "learner", "report", "model_card"},
    {"run_directory", "stream"},
    {
        "samplers",
        "views",
        "objectives",
        "advantages",
        "modalities",
        "tasks",
        "rewards",
        "models",
        "runtime",
        "describe",
        "guard",
        "messages",
        "pictures",
    },
    {"types", "random", "schedules", "tensors"},
    {"errors"},
]
RANK = {name: number for number, names in enumerate(LAYERS) for name in names}
RANK["__init__"] = 0


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def home(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Modules of unmask that a file imports, dotted, without `unmask.`; type-checking imports do not count."""
    tree = ast.parse(path.read_text())
    guarded = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "unmask":
            inside = (node.module or "").split(".")[1:]
            found += [".".join(inside)] if inside else [alias.name for alias in node.names]
        if isinstance(node, ast.Import):
            found += [a.name.removeprefix("unmask.") for a in node.names if a.name.startswith("unmask.")]
    return found


def test_every_module_has_a_layer():
    assert {home(path) for path in modules()} == set(RANK) - {"presets"}


def test_imports_point_downwards():
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules()
        for name in imports(path)
        if RANK[name.split(".")[0]] < RANK[home(path)]
    ]
    assert not wrong


def test_the_loop_imports_abstract_ideas_only():
    concrete = {"samplers.planned", "samplers.confidence", "objectives.surrogate", "objectives.kl", "views.levels"}
    concrete |= {"views.support", "tasks.sudoku", "modalities.text", "models.backbone", "models.families"}
    assert not concrete & set(imports(ROOT / "rl.py"))
    assert {"objectives.base", "views.likelihood", "advantages"} <= set(imports(ROOT / "rl.py"))


def test_the_runtime_is_the_only_user_of_accelerate_and_is_used_by_loops_only():
    users = {
        home(path)
        for path in modules()
        if "import accelerate" in path.read_text() or "from accelerate" in path.read_text()
    }
    assert users == {"runtime"}
    assert {home(path) for path in modules() if "runtime" in imports(path)} <= {
        *("rl", "supervised", "run", "learner", "evaluation"),
        *("generate", "doctor", "demo", "harness"),
    }


def test_views_objectives_and_the_loop_do_not_know_modalities():
    for folder in ("views", "objectives", "rl.py", "advantages.py"):
        files = [ROOT / folder] if folder.endswith(".py") else sorted((ROOT / folder).glob("*.py"))
        for file in files:
            code = ast.unparse(_without_docstrings(ast.parse(file.read_text())))
            words = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
            assert not words & {"text", "image", "Text", "Image"}, file


def test_no_token_ids_are_written_in_code():
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and type(node.value) is int and home(path) not in ("random", "tasks"):
                assert not 100_000 <= node.value < 1_000_000, (path, node.value)


def test_importing_the_package_is_light():
    heavy = {"torch", "transformers", "datasets", "peft", "accelerate"}
    code = f"import sys, unmask; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_resolve():
    for name in unmask.__all__:
        assert callable(getattr(unmask, name))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0] = ast.Pass()
    return tree
