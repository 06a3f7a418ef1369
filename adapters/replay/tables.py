"""A report drawn for people, with rich."""

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from adapters.replay.report import Latency, Report


def draw(report: Report, console: Console) -> None:
    """Print the whole report."""
    console.print()
    console.print(_operations(report))
    console.print(_flow(report))
    console.print(_audit(report))


def _operations(report: Report) -> Table:
    table = Table(title=f"{report.operations:,} operations", title_justify="left")
    table.add_column("operation")
    table.add_column("done", justify="right")
    table.add_column("refused", justify="right")
    for kind, counts in report.operations_by_kind.items():
        refused = f"{counts['refused']:,}" if counts["refused"] else ""
        table.add_row(kind, f"{counts['ok']:,}", refused)
    table.add_section()
    for status, count in report.refused_by_status.items():
        table.add_row(f"refused: {status}", "", f"{count:,}")
    if report.skipped:
        table.add_row("not sent, their order was refused", "", f"{report.skipped:,}")
    table.add_section()
    for state, count in report.orders_by_state.items():
        table.add_row(f"orders {state}", f"{count:,}", "")
    table.add_row("cells in shortage", f"{report.shortages:,}", "")
    return table


def _flow(report: Report) -> Table:
    table = Table(title="Rate, latency, deltas", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("opening stock", f"{report.opening_lines_per_s:,.0f} lines/s")
    table.add_row("trading", f"{report.lines_per_s:,.0f} lines/s, {report.trading_s:,.1f} s")
    table.add_row("Submit, direct to the shard", _latency(report.batch))
    table.add_row("unary, through the gateway", _latency(report.unary))
    for kill in report.kills:
        where = f"shard killed (SIGKILL) at {kill['share']:.0%}"
        table.add_row(where, f"answered again after {kill['recovered_ms']:,.0f} ms")
    table.add_section()
    table.add_row("delta subscribers, one a store", f"{report.subscribers:,}")
    table.add_row("deltas delivered (changed cells)", f"{report.deltas_delivered:,}")
    table.add_row("frames delivered, of any kind", f"{report.frames_delivered:,}")
    delay = (report.delta_delay_ms_p50, report.delta_delay_ms_p99, report.delta_delay_ms_max)
    table.add_row("delay, block to subscriber", _percentiles(*delay))
    if report.resumed:
        table.add_row("subscriptions resumed by token", f"{report.resumed:,}")
    table.add_row("peak memory, all processes", f"{report.peak_rss_mib:,.0f} MiB")
    return table


def _audit(report: Report) -> RenderableType:
    proof = report.proof
    restart = "state hash is the same after a restart from the journal"
    if proof.restart_ms:
        restart += f" ({proof.restart_ms:,.0f} ms)"
    lines = [
        _check(
            proof.conserved,
            f"conservation: {proof.cells_compared:,} cells are as the books say",
            [*proof.first_differences, *_more(proof.cells_different, proof.first_differences)],
        ),
        _check(
            proof.invariants_hold,
            "reserved and committed are what the shards' open holds say",
            proof.first_problems,
        ),
        _check(
            not proof.unexpected,
            "every answer was one that a correct engine can give",
            [*proof.first_unexpected, *_more(proof.unexpected, proof.first_unexpected)],
        ),
        _check(
            proof.replicas_equal,
            f"{proof.replicas_compared:,} subscribers' replicas equal the engine's state",
            [f"not equal: {', '.join(proof.replicas_different)}"] * bool(proof.replicas_different),
        ),
        _check(proof.hash_after_restart_equal, restart, []),
    ]
    title = "audit: holds" if proof.holds else "audit: FAILED"
    style = "green" if proof.holds else "red"
    return Panel(Group(*lines), title=title, border_style=style, expand=False)


def _check(holds: bool, what: str, details: list[str]) -> Text:
    text = Text("ok   " if holds else "FAIL ", style="bold green" if holds else "bold red")
    text.append(what, style="default")
    for detail in details:
        text.append(f"\n     {detail}", style="red")
    return text


def _more(total: int, shown: list[str]) -> list[str]:
    return [f"and {total - len(shown):,} more"] if total > len(shown) else []


def _latency(latency: Latency) -> str:
    if not latency.calls:
        return "none"
    figures = _percentiles(latency.p50_ms, latency.p99_ms, latency.max_ms)
    return f"{latency.calls:,} calls, {figures}"


def _percentiles(p50_ms: float, p99_ms: float, max_ms: float) -> str:
    return f"p50 {p50_ms:,.1f} ms, p99 {p99_ms:,.1f} ms, max {max_ms:,.1f} ms"
