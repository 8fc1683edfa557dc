"""The boundaries between the parts, as the code has them and not as a drawing says."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for top in ("pipeline", "producers") for path in (ROOT / top).rglob("*.py"))

CORE_LIBRARIES = {"msgspec", "numpy"}
CORE_EXCEPTIONS = {
    ("pipeline.core.book", "genai_prices"),
    ("pipeline.core.book_source", "genai_prices"),
}
IMPURE = {
    "asyncio", "ctypes", "http", "io", "logging", "multiprocessing", "os", "random", "secrets",
    "shutil", "signal", "socket", "sqlite3", "subprocess", "tempfile", "threading", "time",
    "urllib", "uuid",
}  # fmt: skip

# What the parts may import of each other. `stream.topics`, `stream.topic_identity` and
# `stream.reader` are the log's names and ids and how it is read, which every part shares.
LOG = {"pipeline.stream.topics", "pipeline.stream.topic_identity", "pipeline.stream.reader"}
FORBIDDEN = {
    "pipeline.core": {"pipeline", "producers"},
    "pipeline.native": {"pipeline", "producers"},
    "pipeline.stream": {"pipeline.ledger", "pipeline.web", "pipeline.ops", "pipeline.cli",
                        "pipeline.audit", "pipeline.corrections", "pipeline.wiring", "producers"},
    "pipeline.ledger": {"pipeline.stream", "pipeline.web", "pipeline.ops", "pipeline.cli",
                        "pipeline.audit", "pipeline.corrections", "pipeline.wiring", "producers"},
    "pipeline.corrections": {"pipeline.web", "pipeline.ops", "pipeline.cli", "pipeline.audit",
                             "pipeline.wiring", "producers"},
    "pipeline.web": {"pipeline.ops", "pipeline.cli", "pipeline.audit", "pipeline.wiring"},
    "pipeline.audit": {"pipeline.web", "pipeline.ops", "pipeline.cli", "pipeline.wiring"},
    "pipeline.reports": {"pipeline.stream", "pipeline.web", "pipeline.ops", "pipeline.cli",
                         "pipeline.audit", "pipeline.wiring", "pipeline.notices", "producers"},
    "pipeline.notices": {"pipeline.stream", "pipeline.web", "pipeline.ops", "pipeline.cli",
                         "pipeline.audit", "pipeline.wiring", "producers"},
    "pipeline.ops": {"pipeline.cli"},
    "pipeline.bench": {"pipeline.cli"},
    "producers": {"pipeline"},
    "pipeline.settings": {"pipeline.stream", "pipeline.ledger", "pipeline.web", "pipeline.ops"},
}  # fmt: skip
ALLOWED = {
    "pipeline.core": {"pipeline.core"},
    "pipeline.native": {"pipeline.core", "pipeline.native"},
    "producers": {"pipeline.core"},
    # Mail knows this machine by the API's rule, and an audit that is due runs as a child process.
    "pipeline.notices": {*LOG, "pipeline.web.loopback", "pipeline.ops.background"},
    # What an administrator starts on the page runs as a child process.
    "pipeline.web": {"pipeline.ops.background"},
    # The embedded server binds its port and locks its folder as every other server here does, and
    # lets in the holders of API keys.
    "pipeline.ledger": {
        *LOG,
        "pipeline.web.server",
        "pipeline.ops.folder_lock",
        "pipeline.web.key_file",
        "pipeline.web.key_ring",
    },
}

# An auditor that shares code with what it audits would share its mistakes.
RECOUNT_MAY_IMPORT = {"pipeline.core.errors", "pipeline.audit.recount"}

VAGUE_NAMES = re.compile(r"(^|_)(util|utils|helper|helpers|manager|managers|common|misc)(_|$)")
MAX_FUNCTION_LINES = 60


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def imports(path: Path) -> set[str]:
    """Every module that a file imports, ``from a import b`` as both ``a`` and ``a.b``."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module
            if node.module in ("pipeline", "producers") or is_package(node.module):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return found


def is_package(module: str) -> bool:
    return (ROOT / Path(*module.split("."))).is_dir()


def within(module: str, names: set[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


def modules_under(package: str) -> Iterator[tuple[str, Path]]:
    for path in SOURCES:
        if within(module_name(path), {package}):
            yield module_name(path), path


def test_the_table_of_parts_names_every_part() -> None:
    listed = re.findall(r"^\| \[([\w/]+)\]", (ROOT / "docs/architecture.md").read_text(), re.M)
    parts = {path.parent for path in (ROOT / "pipeline").glob("*/__init__.py")}
    assert sorted(listed) == sorted([*(f"pipeline/{part.name}" for part in parts), "producers"])


def test_there_is_something_to_check() -> None:
    assert len(SOURCES) > 30
    for package in FORBIDDEN:
        assert list(modules_under(package)), package


def test_the_core_is_pure() -> None:
    wrong = [
        f"{name} imports {found}"
        for name, path in modules_under("pipeline.core")
        for found in imports(path)
        for top in [found.split(".")[0]]
        if top in IMPURE
        or (top not in sys.stdlib_module_names | CORE_LIBRARIES | {"pipeline"}
            and (name, top) not in CORE_EXCEPTIONS)
    ]  # fmt: skip
    assert wrong == []


def test_the_core_takes_nothing_but_intern_from_sys() -> None:
    taken = {
        node.attr
        for _, path in modules_under("pipeline.core")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "sys"
    }
    assert taken <= {"intern", "maxsize"}


def test_struct_types_are_prepared_at_import() -> None:
    """Two threads that first decode into the same struct at once crash the interpreter (msgspec
    0.22). What runs in services therefore makes its decoders while it is imported."""
    late = [
        f"{name}:{node.lineno}"
        for package in ("pipeline.core", "producers")
        for name, path in modules_under(package)
        for function in ast.walk(tree(path))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and (
            (node.func.attr == "decode" and any(word.arg == "type" for word in node.keywords))
            or (node.func.attr == "Decoder" and node.args)
            or (node.func.attr == "convert" and not has_prepared_types(path))
        )
    ]
    assert late == []


def has_prepared_types(path: Path) -> bool:
    return bool(
        re.search(r"^(_PREPARED|_decoder) = msgspec\.\w+\.Decoder\(", path.read_text(), re.M)
    )


def test_the_core_asks_no_clock() -> None:
    asked = [
        f"{name}:{node.lineno}"
        for name, path in modules_under("pipeline.core")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and node.attr in ("now", "utcnow", "today")
    ]
    assert asked == []


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_parts_import_each_other_in_one_direction(package: str) -> None:
    wrong = [
        f"{name} imports {found}"
        for name, path in modules_under(package)
        for found in imports(path)
        if within(found, FORBIDDEN[package]) and not within(found, ALLOWED.get(package, set()))
    ]
    assert wrong == []


def test_only_the_command_imports_the_command_line() -> None:
    users = {
        module_name(path)
        for path in SOURCES
        if any(within(found, {"pipeline.cli"}) for found in imports(path))
    }
    assert {user for user in users if not within(user, {"pipeline.cli"})} == {"pipeline.__main__"}


def test_the_recount_shares_nothing_with_what_it_checks() -> None:
    wrong = [
        f"{name} imports {found}"
        for name, path in modules_under("pipeline.audit.recount")
        for found in imports(path)
        if within(found, {"pipeline", "producers"}) and not within(found, RECOUNT_MAY_IMPORT)
    ]
    assert len(list(modules_under("pipeline.audit.recount"))) > 10
    assert wrong == []


def loaded_by(statement: str, *, whole_names: bool = False) -> set[str]:
    """The top-level packages (or modules) a fresh interpreter has loaded after a statement."""
    name = "name" if whole_names else "name.split('.')[0]"
    code = f"{statement}\nimport sys; print(*{{{name} for name in sys.modules}})"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return set(run.stdout.split())


def test_producers_import_nothing_heavy() -> None:
    """The SDK sits in other people's services: it loads its own dependencies and no more."""
    modules = [name for name, _ in modules_under("producers")]
    heavy = loaded_by(f"import {', '.join(modules)}") - sys.stdlib_module_names
    # msgspec loads typing_extensions where it happens to be installed.
    assert {name for name in heavy if not name.startswith("_")} <= {
        "msgspec", "pipeline", "producers", "cython_runtime", "typing_extensions",
    }  # fmt: skip


def test_a_meter_is_imported_without_what_only_one_transport_needs() -> None:
    loaded = loaded_by("from producers import Meter, BudgetExceeded", whole_names=True)
    assert not loaded & {
        "asyncio", "http.client", "ssl", "email", "multiprocessing", "confluent_kafka", "hashlib",
        "tempfile", "pipeline.core.prices", "pipeline.core.book", "pipeline.core.policies",
        "producers.transports.kafka", "producers.transports.http", "producers.wrap",
    }  # fmt: skip


@pytest.mark.parametrize("package", ["pipeline", "producers", "pipeline.__main__"])
def test_a_package_alone_loads_only_the_standard_library(package: str) -> None:
    third_party = loaded_by(f"import {package}") - sys.stdlib_module_names
    assert {name for name in third_party if not name.startswith("_")} <= {"pipeline", "producers"}


def test_help_loads_no_part() -> None:
    """``tallyport --help`` answers at once because no command's code is loaded for it."""
    statement = (
        "import contextlib\nfrom pipeline.__main__ import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(None): main(['--help'])"
    )
    assert not loaded_by(statement) & {
        "aiokafka", "chdb", "clickhouse_connect", "faust", "numpy", "pyarrow", "pydantic", "rich",
        "starlette", "uvicorn",
    }  # fmt: skip


def test_modules_have_names_of_their_own() -> None:
    assert [module_name(path) for path in SOURCES if VAGUE_NAMES.search(path.stem)] == []


def test_functions_fit_a_screen() -> None:
    long = [
        f"{module_name(path)}.{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert long == []


def test_every_module_says_what_it_is() -> None:
    empty = [
        module_name(path)
        for path in SOURCES
        if tree(path).body and not ast.get_docstring(tree(path))
    ]
    assert empty == []
