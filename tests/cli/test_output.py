import io
import os
import sys

from experiments.cli.output import Stream, harmless


def test_text_goes_nowhere_once_its_reader_has_left():
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as pipe:
        stream = Stream(pipe)
        os.close(reading)
        for _ in range(2):
            assert stream.write("text") == 4
            stream.flush()


def test_letters_that_a_terminal_lacks_are_escaped(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written := io.BytesIO(), "ascii"))
    with harmless():
        print("caf\u00e9")
    assert written.getvalue() == b"caf\\xe9\n"
