"""The benchmark suite runs and says what it should; how fast anything is, no test judges."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from benchmarks.__main__ import add
from benchmarks.results import LeftOutError, alternate, record
from support import ROOT

FIELDS = {"name", "peer", "ours_seconds", "peer_seconds", "ratio", "machine", "versions"}


def suite(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_ratio_is_the_median_of_peer_over_ours_pair_by_pair():
    result = record("a", "b", [(1.0, 2.0), (10.0, 30.0), (2.0, 8.0)], ("ours", "theirs"))
    assert result["ratio"] == 3.0
    assert (result["ours_seconds"], result["peer_seconds"]) == (2.0, 8.0)


def test_each_side_goes_first_in_half_of_the_pairs():
    order = []

    def side(name, seconds):
        return lambda: order.append(name) or seconds

    assert alternate(side("ours", 1.0), side("peer", 2.0), 4) == [(1.0, 2.0)] * 4
    assert order == ["ours", "peer", "peer", "ours", "ours", "peer", "peer", "ours"]


def test_a_new_result_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "new" / "results.json"
    mine = {(peer, s): record("a", peer, [(1.0, s)], ("a", peer)) for peer in "xy" for s in (2, 3)}
    add(path, [mine["y", 2], mine["x", 2]])
    add(path, [mine["x", 3]])
    ratios = {(r["name"], r["peer"]): r["ratio"] for r in json.loads(path.read_text())}
    assert ratios == {("a", "x"): 3, ("a", "y"): 2}
    table = path.with_suffix(".md").read_text().splitlines()
    assert table[2:] == [
        "| `a` | x | 1.00 s | 3.00 s | 3.00 |  |",
        "| `a` | y | 1.00 s | 2.00 s | 2.00 |  |",
    ]


def test_quick_mode_writes_complete_results(tmp_path):
    ended = suite("--quick", "--only", "help", "--json", str(tmp_path / "results.json"))
    assert ended.returncode == 0, ended.stderr
    (result,) = json.loads((tmp_path / "results.json").read_text())
    assert result.keys() >= FIELDS
    assert result["ratio"] == result["peer_seconds"] / result["ours_seconds"]


def test_an_unknown_name_is_told_with_the_known_ones():
    ended = suite("--only", "lenet5_stop")
    assert ended.returncode == 2
    assert "lenet5_stop" in ended.stderr
    assert "lenet5_step" in ended.stderr


@pytest.mark.parametrize("name", ["lenet5_step", "gpu_lstm"])
def test_a_missing_peer_is_left_out_and_said(name, tmp_path, monkeypatch, capsys):
    from benchmarks import __main__, steps

    monkeypatch.setattr(steps, "find_spec", lambda name: None)
    path = tmp_path / "results.json"
    arguments = ["benchmarks", "--quick", "--only", name, "--json", str(path)]
    monkeypatch.setattr(sys, "argv", arguments)
    __main__.main()
    assert f"{name:22} left out: PyTorch is not installed" in capsys.readouterr().out
    assert not path.exists()


def test_without_a_gpu_its_steps_are_left_out(tmp_path, monkeypatch):
    from benchmarks import gpu, steps

    monkeypatch.setattr(steps, "find_spec", lambda name: "found")
    monkeypatch.setattr(gpu, "DEVICES", tmp_path)
    with pytest.raises(LeftOutError, match="there is no GPU here"):
        gpu.measure("gpu_lstm", 1, quick=False)


@pytest.mark.skipif(find_spec("torch") is None, reason="PyTorch is not installed")
def test_the_step_for_gpus_runs_without_one_in_quick_mode(tmp_path):
    ended = suite("--quick", "--only", "gpu_lstm", "--json", str(tmp_path / "results.json"))
    assert ended.returncode == 0, ended.stderr
    (result,) = json.loads((tmp_path / "results.json").read_text())
    assert result.keys() >= FIELDS | {"tokens_per_second", "share_of_ceiling"}
    assert result["tokens_per_second"][0] == pytest.approx(2 * 28 / result["ours_seconds"])


@pytest.mark.slow
def test_a_stream_is_held_against_the_rates_of_gpus(tmp_path):
    ended = suite("--quick", "--only", "gpu_input", "--json", str(tmp_path / "results.json"))
    assert ended.returncode == 0, ended.stderr
    (result,) = json.loads((tmp_path / "results.json").read_text())
    assert result.keys() >= FIELDS | {"images_per_second", "by_workers"}
    assert result["workers_needed"].keys() == {"1000", "3000"}


@pytest.mark.slow
def test_quick_mode_runs_everything(tmp_path):
    path = tmp_path / "results.json"
    ended = suite("--quick", "--json", str(path))
    assert ended.returncode == 0, ended.stderr
    results = json.loads(path.read_text())
    assert {r["name"] for r in results} >= {"help", "first_step_cold", "memory_lenet5"}
    assert all(r.keys() >= FIELDS and r["ratio"] > 0 for r in results)
