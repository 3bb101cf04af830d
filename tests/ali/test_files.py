"""Writing files: whole or not at all."""

import errno
import os
from pathlib import Path

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


def test_links_at_names_that_can_be_guessed_are_not_followed(tmp_path):
    """Where others may write to the folder, they may have put them there."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in (".file.partial", "log"):
        (tmp_path / name).symlink_to(victim)
    with files.atomic_write(tmp_path / "file") as partial:
        partial.write_text("new")
    assert (tmp_path / "file").read_text() == "new" and not (tmp_path / "file").is_symlink()
    with pytest.raises(UserError, match="log is a link or no file: remove it"):
        files.append_line(tmp_path / "log", "a line")
    os.mkfifo(tmp_path / "pipe")  # waits for a reader
    with pytest.raises(UserError, match="pipe is a link or no file: remove it"):
        files.append_line(tmp_path / "pipe", "a line")
    assert victim.read_text() == "precious"


def test_what_is_put_in_place_of_a_file_being_written_is_not_written_to(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    with files.atomic_write(tmp_path / "file") as partial:
        (begun,) = tmp_path.glob(".file.*")
        begun.unlink()
        begun.symlink_to(victim)
        partial.write_text("new")
    assert victim.read_text() == "precious"


def test_links_of_other_users_in_a_folder_are_refused(tmp_path, foreign_link):
    (tmp_path / "own").symlink_to(tmp_path / "elsewhere")
    assert files.make_folder(tmp_path)
    (tmp_path / "victim").mkdir()
    foreign_link(tmp_path / "link", tmp_path / "victim")
    with pytest.raises(UserError, match=r"link is a link that another user made \(uid 1234\)"):
        files.make_folder(tmp_path)
    assert files.make_folder(tmp_path, shared=True)
    with pytest.raises(UserError, match="another user made"):
        files.make_folder(tmp_path / "link", shared=True)


def test_new_files_have_the_rights_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        with files.atomic_write(tmp_path / "file") as partial:
            partial.write_text("new")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_full_disk_leaves_no_half_line_and_no_half_file(small_disk):
    folder, resize = small_disk
    resize(8)  # two pages
    log, file = folder / "log", folder / "file"
    files.append_line(log, "a" * 3000)
    file.write_text("old")
    with pytest.raises(UserError, match=r"cannot write .*log: no space left on device"):
        files.append_line(log, "b" * 3000)
    says = r"cannot write .*file: no space left on device"
    with pytest.raises(UserError, match=says), files.atomic_write(file) as partial:
        partial.write_text("new" * 3000)
    assert log.read_text() == "a" * 3000 + "\n" and file.read_text() == "old"
    assert sorted(path.name for path in folder.iterdir()) == ["file", "log"]


def test_an_address_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for address in ("s3://bucket/x", "gs:/x", "file:///x"):
        with pytest.raises(UserError, match="is an address"):
            files.make_folder(Path(address))
    assert list(tmp_path.iterdir()) == []
    assert files.make_folder(Path("a:b")).is_dir()


def test_the_part_of_a_path_that_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert files.existing_part(tmp_path / "a" / "b") == tmp_path
    assert files.existing_part(Path("a")) == tmp_path
    assert files.existing_part(tmp_path) == tmp_path
