"""Results as lines for a terminal and as a table of Markdown."""

from collections.abc import Iterable, Mapping
from typing import Any

HEAD = f"{'benchmark':22} {'against':34} {'ours':>10} {'peer':>10} {'ratio':>6} {'CPU':>6}"


def line(result: Mapping[str, Any]) -> str:
    """A result as a line under `HEAD`."""
    ours, peer = _sides(result)
    cpu = f" {result['cpu_ratio']:6.2f}" if "cpu_ratio" in result else ""
    text = f"{result['name']:22} {result['peer']:34} {ours:>10} {peer:>10} "
    return f"{text}{result['ratio']:6.2f}{cpu}"


def markdown(results: Iterable[Mapping[str, Any]]) -> str:
    """Results of one machine for a README, in the order of their names."""
    rows = [("benchmark", "against", "ours", "peer", "ratio", "CPU ratio"), ("---",) * 6]
    for result in sorted(results, key=lambda result: (result["name"], result["peer"])):
        cpu = f"{result['cpu_ratio']:.2f}" if "cpu_ratio" in result else ""
        ratio = f"{result['ratio']:.2f}"
        rows.append((f"`{result['name']}`", result["peer"], *_sides(result), ratio, cpu))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _sides(result: Mapping[str, Any]) -> tuple[str, str]:
    """Return the figures of ours and of the peer."""
    if result["ours_seconds"] is None:
        return f"{result['ours_mib']} MiB", f"{result['peer_mib']} MiB"
    return _time(result["ours_seconds"]), _time(result["peer_seconds"])


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.2f} ms"
