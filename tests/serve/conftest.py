import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))


@pytest.fixture
def hold(tmp_path):
    """A file: "fake:hold=PATH" gives no request more than its first token until the test unlinks it."""
    path = tmp_path / "hold"
    path.touch()
    return path
