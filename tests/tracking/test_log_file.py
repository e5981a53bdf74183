import logging

from experiments.tracking.log_file import LogFile


def test_a_log_file_that_cannot_be_opened_is_said_once(tmp_path, capsys):
    handler = LogFile(tmp_path, delay=True)  # a folder
    for number in range(3):
        handler.handle(logging.makeLogRecord({"msg": "step %d", "args": (number,)}))
    handler.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path} cannot be written: [Errno 21] Is a directory")
