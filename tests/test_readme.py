"""The README's Python runs as it stands, against the loopback provider."""

import re
from pathlib import Path

import pytest

from router_ml.simulator import Simulator

README = Path(__file__).parent.parent / "README.md"


def test_the_readmes_python_runs(simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLOBAL_API_KEY", "key")
    Path("router.toml").write_text(f'[providers.global-api]\nbase_url = "{simulator.base_url}"\n', encoding="utf-8")
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks:
        exec(block, names)
    names["router"].close()  # type: ignore[attr-defined]
    assert len(simulator.requests) == 7
