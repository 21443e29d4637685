import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from conftest import CANARY_KEY
from hypothesis import given
from hypothesis import strategies as st

from router_ml import Catalog, InputError, Ledger, RouterError
from router_ml.cli import main
from router_ml.harness import measure, plan, simulated, tasks
from router_ml.harness_journal import Journal, Measurement, Numbers, Plan, Run, read
from router_ml.harness_report import ACCURACY, ALL_REGIONS, Digest, Line, Percentiles, summarise
from router_ml.simulator import Simulator

PLAN = Plan("eu", True, False, (10,), 100, None)
RUN = Run("r1", "2026-01-15T12:00:00+00:00", PLAN)
MEASURED = Measurement(
    run_id="r1",
    simulated=True,
    concurrency=10,
    number=0,
    elapsed_s=1.0,
    ended_at="2026-01-15T12:00:01.000+00:00",
    prompt_id="w001",
    task="chat",
    request_id="q",
    tier="simple",
    provider="one",
    model="small",
    error=None,
    message=None,
    attempts=1,
    failed_at=(),
    latency_ms=100.0,
    first_content_ms=None,
    input_tokens=10,
    output_tokens=20,
    cost_usd=Decimal("0.000001"),
    cost_source="offer",
)
ASKED = ("region", "simulated", "stream", "concurrencies", "count", "duration_s")
SIMULATED = ["harness", "--simulate", "--concurrency"]


def measured(number: int, **changes: Any) -> tuple[Run, Measurement]:
    return RUN, replace(MEASURED, number=number, **changes)


def only(lines: list[Line], value: str, region: str = "eu") -> Line:
    (line,) = (line for line in lines if (line.value, line.region) == (value, region))
    return line


def near(value: float) -> Any:
    return pytest.approx(value, rel=ACCURACY)


def in_file(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def requests(path: Path) -> list[dict[str, Any]]:
    return [row for row in in_file(path) if row["kind"] == "request"]


# Summarising


@given(st.lists(st.floats(1e-3, 1e9), min_size=1), st.floats(0.01, 1.0))
def test_a_quantile_is_within_half_a_percent_of_the_nearest_ranks_value(values: list[float], share: float) -> None:
    digest = Digest()
    for value in values:
        digest.add(value)
    rank = next(n for n in range(1, len(values) + 1) if n >= share * len(values))
    assert digest.quantile(share) == pytest.approx(sorted(values)[rank - 1], rel=ACCURACY + 1e-9)


def test_a_line_is_what_a_hand_computes() -> None:
    rows = [measured(n, latency_ms=float(n + 1), first_content_ms=(n + 1) / 10) for n in range(99)]
    failed: dict[str, Any] = {"error": "RequestFailed", "latency_ms": 1e6, "cost_usd": None, "output_tokens": None}
    rows.append(measured(99, attempts=3, failed_at=(("one", "small"), ("one", "small"), ("two", "big")), **failed))
    [line] = summarise(rows).of("all")
    assert (line.requests, line.answered, line.success_rate) == (100, 99, 0.99)
    assert line.latency == Percentiles(near(50), near(95), near(99))
    assert line.first_content == Percentiles(near(5.0), near(9.5), near(9.9))
    assert (line.input_tokens, line.output_tokens) == (1_000, 1_980)
    assert (line.cost_usd, line.cost_unknown, line.cost_estimated) == (Decimal("0.000099"), 1, 0)
    assert (line.failovers, line.failed_calls, line.errors) == (2, 3, {"RequestFailed": 1})


def test_a_failed_call_counts_at_the_provider_that_failed_and_its_request_at_the_one_that_answered() -> None:
    report = summarise([measured(0, provider="two", model="big", attempts=2, failed_at=(("one", "small"),))])
    one, two = (only(report.of("provider"), name) for name in ("one", "two"))
    assert (one.requests, one.success_rate, one.failed_calls, one.failovers) == (0, None, 1, 0)
    assert (two.requests, two.success_rate, two.failed_calls, two.failovers) == (1, 1.0, 0, 1)
    assert only(report.of("model"), "one/small").failed_calls == 1
    assert only(report.of("task"), "chat").failed_calls == 1


def test_requests_are_counted_by_task_tier_mode_and_day() -> None:
    later = "2026-01-16T00:00:00.000+00:00"
    report = summarise([measured(0), measured(1, task="code", tier="premium", ended_at=later)])
    counted = {line.value: line.requests for name in ("task", "tier", "mode", "day") for line in report.of(name)}
    halves = dict.fromkeys(["chat", "code", "simple", "premium", "2026-01-15", "2026-01-16"], 1)
    assert counted == {**halves, "whole": 2}


def test_an_estimated_cost_is_marked() -> None:
    [line] = summarise([measured(0, cost_source="estimate"), measured(1)]).of("all")
    assert (line.cost_usd, line.cost_estimated) == (Decimal("0.000002"), 1)


def test_simulated_and_real_requests_share_no_line() -> None:
    lines = summarise([measured(0), measured(1, simulated=False)]).of("all")
    assert [(line.simulated, line.requests) for line in lines] == [(False, 1), (True, 1)]


def test_regions_have_lines_of_their_own_and_one_over_all() -> None:
    us = replace(RUN, run_id="r2", plan=replace(PLAN, region="us"))
    rows = [measured(0), (us, replace(MEASURED, run_id="r2", latency_ms=300.0))]
    report = summarise(rows)
    assert report.regions == ("eu", "us")
    assert [(line.region, line.latency.p50_ms) for line in report.of("all")] == [
        ("eu", near(100)),
        ("us", near(300)),
        (ALL_REGIONS, near(100)),
    ]
    assert only(report.of("all"), "all", ALL_REGIONS).requests == 2


def test_a_request_read_twice_counts_once() -> None:
    rows = [measured(n) for n in (1, 0, 3)]
    report = summarise([*rows, *rows])
    assert (report.of("all")[0].requests, report.repeated) == (3, 3)


def test_summarising_takes_no_more_memory_for_more_rows() -> None:
    def peak_bytes(count: int) -> int:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        summarise(measured(n, latency_ms=1.0 + n % 100) for n in range(count))
        return tracemalloc.get_traced_memory()[1] - before

    tracemalloc.start()
    try:
        peak_bytes(100)
        assert peak_bytes(2_000) < peak_bytes(500) + 20_000
    finally:
        tracemalloc.stop()


@given(st.lists(st.integers(0, 30)), st.integers(0, 40))
def test_numbers_know_what_is_left_in_any_order(added: list[int], count: int) -> None:
    numbers, seen = Numbers(), set[int]()
    for number in added:
        assert numbers.add(number) == (number not in seen)
        seen.add(number)
    if count >= numbers.end:
        assert list(numbers.left(count)) == sorted(set(range(count)) - seen)


# The journal


def test_the_same_plan_is_resumed_another_begins_and_again_begins(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path, PLAN) as first:
        first.append(replace(MEASURED, run_id=first.run.run_id, number=1, elapsed_s=2.5))
    with Journal(path, PLAN) as same:
        assert (same.run, same.resumed) == (first.run, True)
        assert list(same.levels[10].numbers.left(3)) == [0, 2]
        assert same.levels[10].elapsed_s == 2.5
    with Journal(path, replace(PLAN, region="us")) as other:
        assert other.run.run_id != first.run.run_id
        other.append(replace(MEASURED, run_id=other.run.run_id, number=0))
    with Journal(path, PLAN) as unmoved:
        assert list(unmoved.levels[10].numbers.left(3)) == [0, 2]
    with Journal(path, PLAN, again=True) as fresh:
        assert (fresh.run.run_id != first.run.run_id, fresh.resumed) == (True, False)


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", PLAN), pytest.raises(InputError, match="written by another process"):
        Journal(tmp_path / "j", PLAN)


def test_a_torn_last_line_is_dropped_and_its_request_left_to_do(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path, PLAN) as journal:
        for number in (0, 1):
            journal.append(replace(MEASURED, run_id=journal.run.run_id, number=number))
    path.write_bytes(path.read_bytes()[:-9])
    assert len(list(read([path]))) == 1
    with Journal(path, PLAN) as journal:
        assert list(journal.levels[10].numbers.left(2)) == [1]
        journal.append(replace(MEASURED, run_id=journal.run.run_id, number=1))
    assert [found.number for _, found in read([path])] == [0, 1]


@pytest.mark.parametrize("content", ["a line\nand half a", "no line", '{"kind": 1}\nx', "[1]\nx"])
def test_a_file_of_another_kind_is_refused_and_left_as_it_is(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(InputError, match=r"not a (line|file) of the harness"):
        Journal(path, PLAN)
    assert path.read_text() == content


def test_a_damaged_line_is_named_by_file_and_number(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path, PLAN) as journal:
        journal.append(replace(MEASURED, run_id=journal.run.run_id))
        journal.append(replace(MEASURED, run_id="of another file"))
    with pytest.raises(InputError, match=r"j\.jsonl:3: the file lacks the run"):
        list(read([path]))
    path.write_text(path.read_text().replace('"elapsed_s"', '"elapsed"'))
    with pytest.raises(InputError, match=r"j\.jsonl:2 is not a line of the harness: KeyError 'elapsed_s'"):
        list(read([path]))


def test_a_journal_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(RouterError, match="cannot be written"):
        Journal(tmp_path, PLAN)
    with pytest.raises(InputError, match="no regular file"):
        Journal(Path(os.devnull), PLAN)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="fills the disk with /dev/full")
def test_a_full_disk_ends_the_run_with_one_error(tmp_path: Path) -> None:
    catalog = Catalog.load()
    asked = plan(catalog, **{name: getattr(PLAN, name) for name in ASKED})

    def opened() -> Journal:
        journal = Journal(tmp_path / "j", asked)
        with Path("/dev/full").open("wb") as full:
            os.dup2(full.fileno(), journal._file)
        return journal

    with simulated(catalog) as pointed, pytest.raises(RouterError, match="j cannot be written: No space left"):
        measure(pointed, asked, opened, progress=lambda *_: None)


# The command


def test_simulated_results_say_so_wherever_they_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "j.jsonl"
    assert main([*SIMULATED, "1", "4", "--count", "10", "--out", str(path)]) == 0
    said = capsys.readouterr().out
    assert "SIMULATED" in said
    assert "simulated  concurrency  4" in said
    assert all(row["simulated"] for row in in_file(path))
    assert main(["harness", "report", str(path), "--markdown"]) == 0
    assert "SIMULATED" in (said := capsys.readouterr().out)
    assert "| simulated | all | all | local | 20 | 100.00% |" in said
    assert main(["harness", "report", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["simulated"]
    assert all(line["simulated"] for line in document["lines"])


def test_each_prompt_is_asked_in_turn_and_is_in_no_file(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    assert main([*SIMULATED, "20", "--count", "120", "--out", str(path)]) == 0
    rows = requests(path)
    assert Counter(row["prompt_id"] for row in rows) == {task.prompt_id: 1 + (n < 20) for n, task in enumerate(tasks())}
    assert sorted(row["number"] for row in rows) == list(range(120))
    assert not any(task.prompt[:40] in path.read_text() for task in tasks())


def test_running_it_again_repeats_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*SIMULATED, "2", "--count", "6", "--json", "--out", str(tmp_path / "j.jsonl")]
    assert main(command) == 0
    first, before = capsys.readouterr().out, (tmp_path / "j.jsonl").read_bytes()
    assert main(command) == 0
    said = capsys.readouterr()
    assert (said.out, (tmp_path / "j.jsonl").read_bytes()) == (first, before)
    assert "resumed" in said.err


def test_failing_providers_show_as_failovers_not_as_failures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = f"sqlite:///{tmp_path}/l.db"
    faults = ["--faults", "503%10", "", "--database", database]
    assert main([*SIMULATED, "5", "--count", "100", *faults, "--out", str(tmp_path / "j"), "--json"]) == 0
    lines = {(line["dimension"], line["value"]): line for line in json.loads(capsys.readouterr().out)["lines"]}
    total = lines["all", "all"]
    assert (total["success_rate"], total["failovers"] >= 8, total["errors"]) == (1.0, True, {})
    assert lines["provider", "global-api"]["failed_calls"] == total["failovers"]
    ledger = Ledger(database)
    books = {row["request_id"]: row["cost_nanousd"] for row in ledger.recent(1_000)}
    ledger.close()
    assert books == {row["request_id"]: round(Decimal(row["cost_usd"]) * 10**9) for row in requests(tmp_path / "j")}


def test_streams_have_a_time_to_first_content_and_a_cut_one_is_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "j.jsonl"
    assert (
        main([*SIMULATED, "4", "--count", "30", "--stream", "--faults", "cut:2%20", "--json", "--out", str(path)]) == 0
    )
    [total] = (line for line in json.loads(capsys.readouterr().out)["lines"] if line["dimension"] == "all")
    cut = total["errors"]["StreamInterrupted"]
    assert (0 < cut < 10, total["answered"]) == (True, 30 - cut)
    assert all(0 < row["first_content_ms"] <= row["latency_ms"] for row in requests(path))


def test_a_run_that_no_provider_answers_is_measured_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*SIMULATED, "2", "--faults", "401", "--count", "4", "--json", "--out", str(tmp_path / "j.jsonl")]
    assert main(command) == 0
    lines = json.loads(capsys.readouterr().out)["lines"]
    assert (lines[0]["answered"], lines[0]["errors"]) == (0, {"RequestFailed": 4})
    assert lines[0]["latency"]["p50_ms"] is None


def test_a_duration_ends_each_concurrency_and_is_not_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    command = [*SIMULATED, "1", "5", "--duration", "0.5s", "--latency-ms", "20", "--out", str(path)]
    assert main(command) == 0
    rows = requests(path)
    assert {row["concurrency"] for row in rows} == {1, 5}
    assert 0.45 < max(row["elapsed_s"] for row in rows) < 1.5
    assert main(command) == 0
    assert requests(path) == rows


def test_an_outage_for_long_is_asked_less_and_less_often(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    assert main([*SIMULATED, "1", "--faults", "401", "--duration", "1s", "--out", str(path)]) == 0
    assert 3 <= len(requests(path)) <= 6
    assert max(row["elapsed_s"] for row in requests(path)) < 2


def test_progress_is_shown_on_a_terminals_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main([*SIMULATED, "3", "--count", "5", "--json", "--out", str(tmp_path / "j")]) == 0
    said = capsys.readouterr()
    assert "simulated, 3 concurrent" in said.err
    assert json.loads(said.out)


def test_two_regions_files_merge_into_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(tmp_path / f"{region}.jsonl") for region in ("eu", "us")]
    for region, latency_ms, file in (("eu", "0", files[0]), ("us", "80", files[1])):
        command = [*SIMULATED, "2", "--count", "6", "--region", region, "--latency-ms", latency_ms, "--out", file]
        assert main(command) == 0
    capsys.readouterr()
    assert main(["harness", "report", *files, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["regions"] == ["eu", "us"]
    eu, us, both = (line for line in report["lines"] if line["dimension"] == "concurrency")
    assert (eu["region"], us["region"], both["region"]) == ("eu", "us", ALL_REGIONS)
    assert us["latency"]["p50_ms"] > 80 > eu["latency"]["p50_ms"]
    assert (eu["requests"], us["requests"], both["requests"]) == (6, 6, 12)


KILLED = "import sys; from router_ml.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for the process's children in /proc")
@pytest.mark.parametrize(
    "size", [(20, 200, 60), *(pytest.param((50, 1_000, n), marks=pytest.mark.slow) for n in (9, 700))]
)
def test_a_killed_run_loses_no_answer_resumes_where_it_stopped_and_leaves_no_process(
    tmp_path: Path, size: tuple[int, int, int]
) -> None:
    concurrency, count, killed_after = size
    path, database = tmp_path / "j.jsonl", f"sqlite:///{tmp_path}/l.db"
    command = [*SIMULATED, str(concurrency), "--count", str(count), "--latency-ms", "50"]
    command += ["--out", str(path), "--database", database]
    with subprocess.Popen([sys.executable, "-c", KILLED, *command], stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: path.exists() and path.read_bytes().count(b"\n") > killed_after)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGKILL)
    before = requests(path)
    assert killed_after <= len(before) < count
    assert main(command) == 0
    assert requests(path)[: len(before)] == before
    assert sorted(row["number"] for row in requests(path)) == list(range(count))
    assert len({row["run_id"] for row in in_file(path)}) == 1
    ledger = Ledger(database)
    books = Counter((row["request_id"], row["status"]) for row in ledger.recent(2 * count))
    ledger.close()
    assert all(books[row["request_id"], "answered"] == 1 for row in requests(path))
    assert len(books) <= count + concurrency
    assert children
    wait_until(lambda: not any(alive(child) for child in children))


def wait_until(true: Any, within_s: float = 20.0) -> None:
    until = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_configured_providers_are_real_ones_and_their_keys_are_in_no_file(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    simulator.fault = "401%50"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLOBAL_API_KEY", CANARY_KEY)
    own = '[router]\nroute = ["global-api"]\nmax_attempts = 1\n'
    own += f'[providers.global-api]\nbase_url = "{simulator.base_url}"\n'
    Path("router.toml").write_text(own)
    assert main(["harness", "--concurrency", "2", "--count", "6"]) == 0
    said = capsys.readouterr()
    assert "SIMULATED" not in said.out
    assert {row["simulated"] for row in in_file(Path("harness.jsonl"))} == {False}
    assert Counter(row["error"] for row in requests(Path("harness.jsonl"))).keys() == {None, "RequestFailed"}
    assert CANARY_KEY not in said.out + said.err + Path("harness.jsonl").read_text()
    ledger = Ledger("sqlite:///router.db")
    assert len(ledger.recent(100)) == 6
    ledger.close()


def test_without_a_key_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.endswith("_API_KEY")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    assert main(["harness"]) == 1
    assert "set the environment variable GLOBAL_API_KEY" in capsys.readouterr().err
    assert not Path("harness.jsonl").exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--faults", "503"], "add --simulate"),
        (["--simulate", "--faults", "nonsense"], "unknown fault 'nonsense'"),
        (["--simulate", "--concurrency", "1", "1"], "each concurrency is measured once"),
        (["--simulate", "--concurrency", "0"], "concurrency is at least 1"),
        (["--simulate", "--count", "0"], "count = 0 is below 1"),
        (["--simulate", "--region", "a\nb"], "printable"),
        (["report", "none.jsonl"], "none.jsonl cannot be read"),
    ],
)
def test_wrong_usage_is_refused_by_name(
    wrong: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["harness", *wrong]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_files_text_cannot_forge_a_line_of_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path, PLAN) as journal:
        journal.append(replace(MEASURED, run_id=journal.run.run_id, task="a\n\x1b[2Jb|c"))
    assert main(["harness", "report", str(path)]) == 0
    assert "a  [2Jb|c" in capsys.readouterr().out
    assert main(["harness", "report", str(path), "--markdown"]) == 0
    assert "| a  [2Jb\\|c |" in capsys.readouterr().out


def test_a_chart_without_matplotlib_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([*SIMULATED, "1", "--out", str(tmp_path / "j"), "--plot", str(tmp_path / "p.png")]) == 1
    assert "pip install 'router-ml[notebook]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_chart_is_drawn_of_every_region(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with Journal(tmp_path / "j", PLAN) as journal:
        journal.append(replace(MEASURED, run_id=journal.run.run_id, first_content_ms=10.0))
    assert main(["harness", "report", str(tmp_path / "j"), "--plot", str(tmp_path / "p.svg")]) == 0
    drawn = (tmp_path / "p.svg").read_text()
    assert "eu, 10 concurrent (simulated)" in drawn
    assert "SIMULATED" in drawn
