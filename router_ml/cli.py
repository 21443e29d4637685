"""router-ml: classify, explain, complete, simulate, log, ledger, harness, catalog, demo.

Exit status 0 done, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from router_ml.errors import InputError, RouterError
from router_ml.harness_cli import add_command as add_harness
from router_ml.ledger_cli import add_commands
from router_ml.types import TIERS, Completion, Complexity

if TYPE_CHECKING:
    from router_ml.router import Router


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except RouterError as exc:
        sys.stderr.write(f"router-ml: {exc}\n")
        return 2 if isinstance(exc, InputError) else 1
    except (BrokenPipeError, KeyboardInterrupt):
        return 1
    return 0


def _classify(args: argparse.Namespace) -> None:
    from router_ml.classifier import ComplexityClassifier

    said = ComplexityClassifier.load(args.model).classify(_text(args))
    if args.json:
        _print_json(_complexity(said))
    else:
        _print(f"{said.tier}  ({_shares(said)})")


def _explain(args: argparse.Namespace) -> None:
    from router_ml.explain_cli import run

    said = run(args, _text(args))
    if args.json:
        _print_json(said)


def _complete(args: argparse.Namespace) -> None:
    from router_ml.router import Router

    with Router(args.config) as router:
        reply = router.complete(_text(args), args.tier, quality=args.quality)
    if args.json:
        _print_json(_reply(reply))
        return
    _print(reply.text)
    sys.stderr.write(f"[{reply.tier} {reply.offer}, {_usd(reply.cost_usd)}, request {reply.request_id}]\n")


def _simulate(args: argparse.Namespace) -> None:
    from router_ml.classifier import ComplexityClassifier
    from router_ml.demo import _tokenizer
    from router_ml.simulator import Simulator

    count = _tokenizer(ComplexityClassifier.load()).count
    try:
        simulator = Simulator(
            count, latency_s=args.latency_ms / 1_000, fault=args.fault, port=args.port, keep_requests=False
        )
        with simulator:
            sys.stderr.write(f"simulated answers at {simulator.base_url}; Ctrl-C ends it\n")
            threading.Event().wait()
    except OSError as exc:
        raise InputError(f"port {args.port} cannot be had: {exc.strerror}") from exc
    except ValueError as exc:
        raise InputError(str(exc)) from None


def _log(args: argparse.Namespace) -> None:
    from router_ml.catalog import Catalog
    from router_ml.ledger import Ledger

    ledger = Ledger(args.database or Catalog.load(args.config).settings.database)
    rows = ledger.recent(args.limit)
    ledger.close()
    if args.json:
        _print_json(rows)
        return
    columns = ["started", "status", "tier", "model", "in", "out", "cost", "score", "request"]
    _table(columns, [_log_row(row) for row in rows])


def _log_row(row: dict[str, Any]) -> list[object]:
    cost = row["cost_nanousd"]
    usd = _usd(None if cost is None else Decimal(cost) / 1_000_000_000)
    started = f"{row['started_at']:%Y-%m-%d %H:%M:%S}"
    middle = (row["status"], row["tier"], row["model"], row["input_tokens"], row["output_tokens"])
    return [started, *middle, usd, row["score"], row["request_id"]]


def _catalog(args: argparse.Namespace) -> None:
    from router_ml.catalog import Catalog

    catalog = Catalog.load(args.config)
    rows: list[list[object]] = []
    for offer in catalog.offers:
        provider = catalog.providers[offer.provider]
        own = f"${offer.price.input_mtok} / ${offer.price.output_mtok} per M" if offer.price else ""
        price = own or ("free" if provider.free else f"genai-prices: {provider.price_provider or 'unknown'}")
        routed = offer.provider in catalog.settings.route
        rows.append(
            ["*" if routed else "", offer.provider, offer.tier.value, offer.model, price, provider.key_env or "-"]
        )
    if args.json:
        _print_json(
            [dict(zip(("routed", "provider", "tier", "model", "price", "key"), row, strict=True)) for row in rows]
        )
    else:
        _table(["routed", "provider", "tier", "model", "price", "key"], rows)


def _demo(args: argparse.Namespace) -> None:
    from router_ml.demo import LIVE_PROMPTS, simulated_router, workload
    from router_ml.router import Router

    prompts = workload()
    if args.live:
        with Router(args.config) as router:
            _show(args, router, prompts[:LIVE_PROMPTS], "LIVE: real answers, real money")
    else:
        with simulated_router(args.config) as router:
            _show(args, router, prompts, "SIMULATED: answers and their lengths are the loopback provider's")


def _show(args: argparse.Namespace, router: Router, prompts: Sequence[str], what: str) -> None:
    from rich.console import Console
    from rich.progress import track

    from router_ml.demo import savings

    progress = track(prompts, "routing", console=Console(stderr=True), transient=True)
    replies = [router.complete(prompt) for prompt in progress]
    saved = savings(router, replies)
    if args.json:
        totals = {name: getattr(saved, name) for name in ("routed_usd", "premium_usd", "baseline_usd")}
        _print_json({"what": what, "replies": [_reply(reply) for reply in replies], **totals})
        return
    rows: list[list[object]] = []
    for prompt, reply in zip(prompts, replies, strict=True):
        usage, said = reply.usage, reply.decision.complexity
        tokens = f"{usage.input_tokens} + {usage.output_tokens}" if usage else "?"
        rows.append(
            [prompt, reply.tier.value, _shares(said) if said else "", reply.model, tokens, _usd(reply.cost_usd)]
        )
    _table(["prompt", "tier", "P(simple) P(complex) P(premium)", "model", "tokens", "cost"], rows, clip=48)
    _print(what)
    counts = ", ".join(f"{sum(reply.tier == tier for reply in replies)} {tier}" for tier in TIERS)
    _print(f"{len(replies)} prompts: {counts}; quality target {router.quality:g} of premium's")
    _print(f"routed {_usd(saved.routed_usd)}")
    for name, usd in (("always premium", saved.premium_usd), (router.settings.baseline, saved.baseline_usd)):
        _print(f"  against {name}: {_usd(usd)} -> {_saving(saved.routed_usd, usd)}")


def _saving(routed: Decimal | None, other: Decimal | None) -> str:
    if routed is None or other is None or not other:
        return "a price is unknown, so no saving can be stated"
    share = 1 - routed / other
    return f"{share:.1%} saved" if share > 0 else f"routing does not pay here: it costs {-share:.1%} more"


def _text(args: argparse.Namespace) -> str:
    text = " ".join(args.text) if args.text else sys.stdin.read()
    if not text.strip():
        raise InputError("no prompt: pass it as an argument or on standard input")
    return text


def _shares(said: Complexity) -> str:
    return "  ".join(f"{said.probabilities[tier]:.2f}" for tier in TIERS)


def _complexity(said: Complexity) -> dict[str, Any]:
    return {
        "tier": said.tier,
        "confidence": said.confidence,
        "probabilities": said.probabilities,
        "success": dict(said.success),
        "classifier_version": said.classifier_version,
    }


def _reply(reply: Completion) -> dict[str, Any]:
    usage, said = reply.usage, reply.decision.complexity
    return {
        "request_id": reply.request_id,
        "text": reply.text,
        "tier": reply.tier,
        "provider": reply.provider,
        "model": reply.model,
        "cost_usd": reply.cost_usd,
        "input_tokens": usage.input_tokens if usage else None,
        "output_tokens": usage.output_tokens if usage else None,
        "reason": reply.decision.reason,
        "complexity": _complexity(said) if said else None,
    }


def _usd(usd: Decimal | None) -> str:
    return "unknown" if usd is None else f"${usd:.6f}"


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _print_json(value: object) -> None:
    _print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]], clip: int = 60) -> None:
    """Printed by rich; control characters in cells are shown as blanks, so that text cannot forge a line."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        cells = ("" if cell is None else "".join(c if c.isprintable() else " " for c in str(cell)) for cell in row)
        table.add_row(*(Text(cell if len(cell) <= clip else f"{cell[: clip - 1]}…", no_wrap=True) for cell in cells))
    console = Console()
    console.width = max(console.width, 170)
    console.print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="router-ml", description="Send each prompt to the cheapest model that will do."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, about: str, *, text: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(run=run)
        sub.add_argument("--config", help="a router.toml (default: ./router.toml where there is one)")
        sub.add_argument("--json", action="store_true", help="print JSON")
        if text:
            sub.add_argument("text", nargs="*", help="the prompt (default: standard input)")
        return sub

    command("classify", _classify, "say which tier a prompt needs", text=True).add_argument(
        "--model", help="an artefact's folder"
    )
    command("explain", _explain, "say why a prompt gets its tier, and what would change it", text=True).add_argument(
        "--model", help="an artefact's folder"
    )
    complete = command("complete", _complete, "answer a prompt with the model of its tier", text=True)
    complete.add_argument("--tier", help="pin simple, complex or premium")
    complete.add_argument("--quality", type=float, help="share of premium's quality to keep, in (0, 1]")
    simulate = command("simulate", _simulate, "serve simulated answers on 127.0.0.1")
    simulate.add_argument("--port", type=int, default=8642)
    simulate.add_argument("--latency-ms", type=float, default=0.0)
    simulate.add_argument(
        "--fault", default="", help="a status code, reset, stall, html, cut:20, 500%%10 ...: see router_ml.faults"
    )
    log = command("log", _log, "list recent requests")
    log.add_argument("--limit", type=int, default=20)
    log.add_argument("--database", help="SQLAlchemy URL of the ledger")
    add_commands(commands)
    add_harness(commands)
    command("catalog", _catalog, "list providers and offers")
    command("demo", _demo, "route the 100-prompt workload").add_argument(
        "--live", action="store_true", help="real calls"
    )
    return parser
