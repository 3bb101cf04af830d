"""Writing files: whole or not at all."""

import errno

import pytest

from ali import files
from ali.errors import UserError


def test_writing_leaves_the_old_file_on_failure(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), files.atomic_write(path) as partial:
        partial.write_text("half")
        1 // 0  # noqa: B018
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match="cannot write"), files.atomic_write(path):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_make_folder(tmp_path):
    assert files.make_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        files.make_folder(tmp_path / "file" / "x")
