"""Processes that train together end together, and say once why."""

import subprocess
import sys
import time

import pytest

PROGRAM = """
import json, os, signal, sys, time
from experiments.processes import watch
index, how = int(sys.argv[1]), sys.argv[2]
connected = watch.Watch(index, 3, "it goes on by resume=there")
if index:
    connected.connect("127.0.0.1", int(sys.argv[3]), "secret")
else:
    print(connected.listen("secret"), flush=True)
watch.begin(connected)
print("watches", flush=True)
command = sys.stdin.readline()
if command == "leave\\n":
    with watch.until_it_ends():
        pass
    watch.end(7)  # does nothing any more
elif command:
    watch.end(int(command))
"""


@pytest.fixture
def three():
    """Three processes that are connected."""
    processes = []

    def start(index: int, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-c", PROGRAM, str(index), "", *arguments]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        return processes[-1]

    port = start(0).stdout.readline().strip()
    others = [start(index, port) for index in (1, 2)]
    for process in processes:
        assert process.stdout.readline() == "watches\n"
    time.sleep(0.1)  # until the first one has heard who they are
    yield processes
    for process in (*others, processes[0]):
        process.kill()
        process.communicate()


def ends(processes) -> list[tuple[int, str]]:
    """The exit code of each, and what it complained about."""
    return [(process.wait(5), process.stderr.read()) for process in processes]


@pytest.mark.parametrize(("killed", "speaker"), [(2, 0), (0, 1)])
def test_a_process_that_is_killed_ends_all(three, killed, speaker):
    began = time.monotonic()
    three[killed].kill()
    found = ends(three)
    assert time.monotonic() - began < 2
    assert [code for code, _ in found] == [-9 if i == killed else 1 for i in range(3)]
    assert [said != "" for _, said in found] == [i == speaker for i in range(3)]
    assert f"process {killed} of 3" in found[speaker][1]
    assert "it goes on by resume=there" in found[speaker][1]


@pytest.mark.parametrize("failed", [0, 1])
def test_all_end_with_the_exit_code_of_one_that_fails(three, failed):
    three[failed].communicate("2\n")
    found = [three[i].wait(5) for i in range(3)]
    assert found == [2, 2, 2]


def test_those_that_leave_in_order_end_nothing(three):
    for process in three[:2]:
        process.stdin.write("leave\n")
        process.stdin.flush()
        assert process.wait(5) == 0
    time.sleep(0.2)
    assert three[2].poll() is None
