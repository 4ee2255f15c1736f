"""The command line in this process."""

from pathlib import Path

import pytest

from engine import __main__


def main(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """The command line without a new process: exit code, standard output, standard error."""
    code = __main__.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()
