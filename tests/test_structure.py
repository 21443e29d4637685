import ast
import subprocess
import sys
from pathlib import Path

import router_ml

PACKAGE = Path(router_ml.__file__).parent
LAYERS = [
    {"types"},
    {"errors"},
    {
        "text",
        "tokenizer",
        "surface",
        "catalog",
        "pricing",
        "policy",
        "breaker",
        "needs",
        "wire",
        "profile",
        "registry",
    },
    {"process", "entries", "encoder", "failover", "reply", "session", "faults", "simulated", "schema", "ceiling"},
    {"statements", "queries", "familiarity"},
    {"batch", "database", "spool", "checkpoint"},
    {"store"},
    {"group_commit", "recovery"},
    {"ledger", "audit", "archive"},
    {"classifier", "simulator", "live", "exchange"},
    {"provider", "decider", "stream", "explain"},
    {"intake", "client"},
    {"router"},
    {"demo", "ledger_cli", "explain_cli", "harness_journal"},
    {"harness", "harness_report"},
    {"harness_chart"},
    {"harness_cli"},
    {"cli"},
]


def imported_modules(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "router_ml":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("router_ml."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom | ast.Import):
            module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            assert not (module or "").startswith("training"), f"{path.name} imports training"
    return names


def test_every_module_has_a_layer_and_imports_only_from_those_before_it() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert modules == set().union(*LAYERS)
    for number, layer in enumerate(LAYERS):
        below = set().union(*LAYERS[:number])
        for name in layer:
            assert imported_modules(PACKAGE / f"{name}.py") <= below, name


def test_exported_names_are_exactly_all_and_each_loads() -> None:
    assert sorted(router_ml._MODULE_OF) == sorted(router_ml.__all__)
    for name in router_ml.__all__:
        assert getattr(router_ml, name).__name__ == name


def test_import_loads_nothing_heavy() -> None:
    heavy = "{'numpy', 'openai', 'sqlalchemy', 'pydantic', 'genai_prices', 'torch', 'rich'}"
    code = f"import sys, router_ml; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
