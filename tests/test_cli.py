import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from router_ml import ComplexityClassifier
from router_ml.cli import main


def test_classify_reads_arguments_and_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["classify", "--json", "what", "is", "SSO"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["tier"] == ComplexityClassifier.load().classify("what is SSO").tier
    monkeypatch.setattr(sys, "stdin", io.StringIO("what is SSO"))
    assert main(["classify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == said


def test_errors_have_an_exit_status_and_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in list(os.environ):
        if name.endswith("_API_KEY"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    assert main(["complete", "hi"]) == 1
    assert "set the environment variable GLOBAL_API_KEY" in capsys.readouterr().err
    assert main(["classify", " "]) == 2
    assert main(["classify", "--model", "none", "hi"]) == 1
    assert main(["log", "--config", "none.toml"]) == 1
    assert list(tmp_path.iterdir()) == []


def test_demo_routes_the_whole_workload(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--json"]) == 0
    demo = json.loads(capsys.readouterr().out)
    assert len(demo["replies"]) == 100
    assert "SIMULATED" in demo["what"]
    assert float(demo["routed_usd"]) == pytest.approx(sum(float(reply["cost_usd"]) for reply in demo["replies"]))
    assert 0 < float(demo["routed_usd"]) <= float(demo["premium_usd"])


def test_demo_prints_a_table_and_totals(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo"]) == 0
    out = capsys.readouterr().out
    assert "how do I reset my password?" in out
    assert "against always premium" in out


def test_catalog_and_log_list(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["catalog", "--json"]) == 0
    assert {row["provider"] for row in json.loads(capsys.readouterr().out)} >= {"global-api", "deepseek", "openrouter"}
    assert main(["log", "--json", "--database", f"sqlite:///{tmp_path}/l.db"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).with_name("router-ml")
    assert subprocess.run([command, "--help"], capture_output=True, text=True).returncode == 0
