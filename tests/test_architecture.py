"""Checks of the rules in docs/architecture.md, read from the syntax trees; nothing is imported."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "yolox"
FILES = sorted(PACKAGE.rglob("*.py"))
KERNEL_SOURCES = {path for pattern in ("*.cpp", "*.h") for path in PACKAGE.rglob(pattern)}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 350, 50, 7

LOW = {
    "error_stream",
    "errors",
    "precision_names",
    "structures",
    "boxes",
    "tables",
    "files",
    "text_files",
    "torch_files",
} | {
    "temporary_folders",
    "fields",
    "config",
    "class_names",
    "cpu",
}
ENGINE_LOW = {
    "error_stream",
    "errors",
    "precision_names",
    "tables",
    "files",
    "temporary_folders",
    "text_files",
    "torch_files",
    "cpu",
}
# package -> the other packages it may import; an arrow that is not here does not exist
ARROWS: dict[str, set[str]] = {
    "__init__": {"api"},
    "__main__": {"tools"},
    "error_stream": set(),
    "errors": set(),
    "precision_names": {"errors"},
    "structures": set(),
    "files": {"errors"},
    "temporary_folders": set(),
    "torch_files": {"errors"},
    "safe_weights": {"errors", "config", "files"},
    "text_files": {"errors"},
    "tables": set(),
    "class_names": {"errors"},
    "boxes": {"structures"},
    "fields": {"errors", "structures"},
    "config": {"errors", "structures", "fields"},
    "cpu": {"errors", "files"},
    "experiments": {"errors", "structures", "config", "text_files"},
    "visualize": LOW,
    "processes": {"errors", "files", "temporary_folders", "cpu"},
    "kernels": {"errors", "files", "cpu", "tables"},
    "models": LOW,
    "losses": LOW,
    "data": LOW | {"processes"},
    "downloads": {"errors"},
    "published_weights": {"errors", "files", "downloads", "experiments"},
    "checkpoint": LOW | {"models", "experiments", "published_weights", "safe_weights"},
    "prediction": LOW
    | {"downloads", "checkpoint", "models", "experiments", "data", "evaluation", "inference", "processes", "visualize"},
    "evaluation": LOW | {"models", "data", "inference"},
    "report": LOW | {"data", "evaluation", "visualize"},
    "recipe": LOW | {"models", "losses", "data", "evaluation", "report"},
    "trainer": ENGINE_LOW | {"kernels", "processes"},
    "inference": ENGINE_LOW | {"kernels", "processes"},
    "tools": LOW
    | {"experiments", "checkpoint", "models", "losses", "data", "evaluation", "recipe", "trainer", "inference"}
    | {"kernels", "visualize", "prediction", "processes", "published_weights", "safe_weights", "serve", "report"}
    | {"__init__"},
    "serve": LOW | {"prediction"},
    "api": {"errors", "precision_names", "config", "prediction", "tools", "evaluation"},
}
# an optional library -> the only files that may import it
OPTIONAL: dict[str, set[str]] = {
    "openvino": {"inference/backends/openvino.py"},
    "onnxruntime": {"inference/backends/onnxruntime.py", "inference/convert/quantizers/onnx.py"},
    "onnx": {
        "inference/convert/onnx_export.py",
        "inference/convert/quantizers/onnx.py",
        "inference/backends/onnxruntime.py",
        "kernels/int8/onnx_reader.py",
        "kernels/int8/onnx_cut.py",
    },
    "nncf": {"inference/convert/quantizers/nncf.py"},
    "torchao": {"inference/convert/quantizers/pt2e.py"},
    "neural_compressor": {"inference/convert/quantizers/neural_compressor.py"},
    "intel_extension_for_pytorch": {"cpu/ipex_location.py"},
    "fastapi": {"serve/service.py"},
    "uvicorn": {"serve/server.py"},
    "starlette": {"serve/service.py"},
    "supervision": {"prediction/results.py"},
    "trackers": {"prediction/tracking.py"},
    "ray": {"processes/ray_cluster.py", "prediction/ray_data.py"},
    "pyspark": {"processes/spark_context.py", "trainer/launchers/spark_barrier.py"},
    "pnnx": {"inference/convert/ncnn_export.py"},
    "pyarrow": {"prediction/image_tables.py"},
}
PRIVATE_LIGHTNING = "trainer/lightning_bridge.py"

# file -> private names of other libraries that it uses, since there is no public way
PRIVATE: dict[str, set[str]] = {
    "inference/backends/torch_internals.py": {
        "_assert_tensor_metadata",
        "_C",
        "_create_function_from_graph",
        "_inductor",
        "_jit_pass_inline",
    },
    "inference/backends/ipex.py": {"_C"},  # whether IPEX takes the processor for one with bf16
    "inference/convert/quantizers/neural_compressor.py": {"_exported"},  # its own export function sets it
    "kernels/training/bindings.py": {"_fields_", "_length_", "_type_"},  # the public names of what ctypes declares
    "kernels/training/copies.py": {"_to_copy"},  # an operator
    "kernels/training/acceleration.py": {"_BatchNorm"},  # the base class of all batch normalisations
    "kernels/training/graph.py": {"_BatchNorm"},
    "kernels/training/eligibility.py": {  # whether somebody watches a layer
        "_C",
        "_autograd",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_buffers",
        "_forward_hooks",
        "_forward_pre_hooks",
        "_get_current_graph_task_keep_graph",
        "_has_any_global_hook",
        "_modules",
        "_parameters",
    },
    "trainer/ipex.py": {"_C", "_parameters", "_unpack_cast_to_fp32"},  # its packed weights have no public access
    "processes/spark_context.py": {"_active_spark_context", "_gateway", "_jvm"},  # the Java process to end
    "trainer/sync_batchnorm.py": {"_BatchNorm"},
}


def relative(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def package(file: Path) -> str:
    parts = file.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else file.stem


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imports(node: ast.AST) -> Iterator[str]:
    """Every imported module of a tree, as a dotted name that includes the imported names of our own package."""
    for item in ast.walk(node):
        if isinstance(item, ast.Import):
            yield from (alias.name for alias in item.names)
        elif isinstance(item, ast.ImportFrom):
            assert item.level == 0, "imports are absolute"
            module = item.module or ""
            yield from ((f"{module}.{alias.name}" for alias in item.names) if module == "yolox" else (module,))


def functions(file: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_imports_follow_the_arrows(file: Path) -> None:
    here = package(file)
    assert here in ARROWS, f"package '{here}' is not in ARROWS"
    for name in imports(tree(file)):
        parts = name.split(".")
        if parts[0] == "yolox" and len(parts) > 1 and not parts[1].startswith("__") and parts[1] != here:
            assert parts[1] in ARROWS[here], f"{relative(file)} imports {name}: no arrow from {here} to {parts[1]}"


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_optional_libraries_are_imported_in_one_file(file: Path) -> None:
    top_level = {name.split(".")[0] for node in tree(file).body for name in imports_at_top(node)}
    for name in {name.split(".")[0] for name in imports(tree(file))} & OPTIONAL.keys():
        assert relative(file) in OPTIONAL[name], f"{relative(file)} imports {name}"
        assert name not in top_level, f"{relative(file)} imports {name} before it is needed"


def imports_at_top(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from imports(node)


@pytest.mark.parametrize("file", [f for f in FILES if package(f) == "tools"], ids=relative)
def test_tools_import_nothing_heavy_at_the_top(file: Path) -> None:
    heavy = {"torch", "pytorch_lightning", "cv2", "matplotlib", "faster_coco_eval"}
    top = {name.split(".")[0] for node in tree(file).body for name in imports_at_top(node)}
    assert not top & heavy, f"{relative(file)} slows --help down with {top & heavy}"


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_files_and_functions_stay_small(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    for function in functions(file):
        doc = ast.get_docstring(function, clean=False) or ""
        first = function.body[0].lineno if function.body else function.lineno
        length = (function.end_lineno or first) - first + 1 - (doc.count("\n") + 1 if doc else 0)
        assert length <= MAX_FUNCTION_LINES, f"{function.name} has {length} lines"


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_no_habits_we_gave_up(file: Path) -> None:
    body = tree(file).body
    started = [node for node in body if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)]
    assert started in ([], body[-1:]), "what is defined after the start of a script does not exist in it"
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), "star import"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except at line {node.lineno}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "setattr", f"setattr at line {node.lineno}"
            assert node.func.id != "print" or package(file) == "tools", f"print at line {node.lineno}"
        if isinstance(node, ast.Attribute):
            assert node.attr != "cuda" or package(file) == "trainer", f".cuda at line {node.lineno}"


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_only_the_bridge_touches_private_lightning(file: Path) -> None:
    if relative(file) != PRIVATE_LIGHTNING:
        private = [n for n in imports(tree(file)) if "lightning" in n and any(p.startswith("_") for p in n.split("."))]
        private += [ast.unparse(node) for node in ast.walk(tree(file)) if is_private_lightning(node)]
        assert not private, f"{relative(file)} uses {private}"


def is_private_lightning(node: ast.AST) -> bool:
    """Whether a node is a private attribute of a trainer, a strategy, a loop or a connector, or the state of a loop."""
    if isinstance(node, ast.Subscript):
        key = node.slice.value if isinstance(node.slice, ast.Constant) else None
        return isinstance(key, str) and (key == "loops" or key.split(".")[0].endswith(("_loop", "_progress")))
    if not isinstance(node, ast.Attribute) or not node.attr.startswith("_") or node.attr.startswith("__"):
        return False
    owner = ast.unparse(node.value).split(".")[-1]
    return owner in {"trainer", "pl_module", "strategy", "connector", "loop", "fit_loop", "epoch_loop"}


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_private_parts_of_other_libraries_are_listed(file: Path) -> None:
    if relative(file) != PRIVATE_LIGHTNING:
        nodes = list(ast.walk(tree(file)))
        own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}

        found = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
        for node in nodes:
            if isinstance(node, ast.Attribute):
                is_own = isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}
                (own if is_own else found).add(node.attr)
        private = {name for name in found if name.startswith("_") and not name.startswith("__")}
        assert private - own - {"_asdict", "_replace", "_exit"} == PRIVATE.get(relative(file), set())


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_nothing_is_mocked_outside_the_tests(file: Path) -> None:
    found = {name.split(".")[0] for name in imports(tree(file))} & {"unittest", "mock", "pytest"}
    assert not found, f"{relative(file)} imports {found}"


def test_setup_imports_no_torch() -> None:
    names = {name.split(".")[0] for name in imports(ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")))}
    assert names <= {"os", "sys", "pathlib", "setuptools", "yolox"}
    code = "import sys, yolox.kernels.build; print({'torch', 'numpy', 'cv2'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert found.strip() == "set()", "what setup.py imports must not need what is not yet installed"


WORDS = (
    "batchnorm_silu|crew|desk|hand_over|ladder|light_silu|mailbag|may_wait|return_mail|shared_sums|side_by_side|"
    "switchboard"
)
"""Names that were ours alone; the words of PyTorch, Lightning, ONNX and the paper stand in their place."""


def test_kernel_sources_and_tests_stay_small() -> None:
    sources = {path: path.read_text(encoding="utf-8").splitlines() for path in KERNEL_SOURCES}
    assert not [path for path, lines in sources.items() if len(lines) > MAX_FILE_LINES or max(map(len, lines)) > 120]
    tests = [path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert not [path for path in tests if len(path.read_text(encoding="utf-8").splitlines()) > MAX_FILE_LINES]


def test_words_are_those_of_the_field() -> None:
    files = [path for folder in ("yolox", "docs", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.*")]
    texts = {path: path.read_text(encoding="utf-8") for path in files if path.suffix in {".py", ".md", ".cpp", ".h"}}
    del texts[Path(__file__).resolve()]
    found = [f"{path}: {word}" for path, text in texts.items() for word in re.findall(rf"(?i)\b_?(?:{WORDS})\b", text)]
    assert not found


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_the_reading_order_is_short(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    way = re.search(r"`structures` →.*?`losses/detection_loss`", text, re.DOTALL)
    assert way is not None
    order = re.findall(r"`([a-z_/]+)`", way.group())
    files = [PACKAGE / f"{name}.py" for name in order]
    assert len(files) <= 8
    assert sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files) <= 1000


def test_no_package_without_a_name() -> None:
    forbidden = {"utils", "core", "common", "deps", "misc", "helpers"}
    assert not forbidden & {part for file in FILES for part in (*file.relative_to(PACKAGE).parts, file.stem)}


def test_the_wheel_holds_what_is_compiled() -> None:
    nodes = ast.walk(ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")))
    (data,) = [node.value for node in nodes if isinstance(node, ast.keyword) and node.arg == "package_data"]
    packed = {path for pattern in ast.literal_eval(data)["yolox"] for path in PACKAGE.glob(pattern)}
    assert KERNEL_SOURCES, "kernels have sources"
    assert packed >= KERNEL_SOURCES, f"setup.py leaves out {sorted(map(relative, KERNEL_SOURCES - packed))}"
