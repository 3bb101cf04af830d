"""The copy of the journal in a bucket that is away for a while."""

import logging
import time
from dataclasses import dataclass, field

import pytest
from pyarrow import fs

from sweeps.engine import mirror
from sweeps.engine.mirror import LEASE, JournalMirror
from sweeps.engine.storage import Storage, replace_file


@dataclass(frozen=True)
class AwayAtTheEnd(Storage):
    """A bucket that fails so many times once `away` is filled."""

    away: list = field(default_factory=list)

    def write(self, name, content):
        if self.away:
            raise self.away.pop()
        super().write(name, content)


def ended(tmp_path, failures, outage_seconds):
    """The bucket after a sweep whose end found it away."""
    bucket = AwayAtTheEnd(fs.LocalFileSystem(), str(tmp_path / "bucket"), "s", remote=True)
    (tmp_path / "bucket" / "s").mkdir(parents=True)
    journal = tmp_path / "journal"
    journal.write_text("1\n")
    with JournalMirror(bucket, "it", journal, outage_seconds=outage_seconds):
        journal.write_text("1\n2\n")
        bucket.away.extend(OSError("no route") for _ in range(failures))
    return bucket


def test_the_end_waits_for_the_bucket(tmp_path, monkeypatch):
    monkeypatch.setattr(mirror, "MIRROR_SECONDS", 0.1)
    bucket = ended(tmp_path, 3, outage_seconds=60)
    assert bucket.read("journal") == b"1\n2\n" and bucket.read(LEASE) is None


def test_the_log_goes_on_where_its_copy_ends(tmp_path):
    """On another machine, and then on the first one, whose last line was not copied."""
    bucket = Storage(fs.LocalFileSystem(), str(tmp_path / "bucket"), "s", remote=True)
    (tmp_path / "bucket" / "s").mkdir(parents=True)
    for machine, line, lost in (
        ("one", b"1\n", b"2\n"),
        ("two", b"3\n", b""),
        ("one", b"4\n", b""),
    ):
        folder = tmp_path / machine
        folder.mkdir(exist_ok=True)
        log = folder / "sweep.log"
        with JournalMirror(bucket, "it", folder / "journal", logs=[log]), log.open("ab") as out:
            out.write(line)
        with log.open("ab") as out:
            out.write(lost)
    assert bucket.read("sweep.log") == b"1\n2\n3\n4\n"
    assert (tmp_path / "two" / "sweep.log").read_bytes() == b"1\n3\n"


def test_an_end_that_waited_in_vain_says_what_is_missing(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        ended(tmp_path, 99, outage_seconds=0)
    assert "lacks the end of the journal" in caplog.text


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_whoever_reads_the_lease_while_it_is_renewed_sees_all_of_it(tmp_path, scheme):
    """Emptied and written again, it looked given up: a second server took the folder."""
    storage = Storage.at(f"{scheme}{tmp_path.parent}", tmp_path.name)
    lease = mirror.Lease(storage, "the database")
    lease.take()
    before = (tmp_path / LEASE).read_text()
    with (tmp_path / LEASE).open() as reader:
        lease.renew()
        assert reader.read() == before != (tmp_path / LEASE).read_text()
    other = mirror.Lease(storage, "the database")
    other._write()  # it took this one for dead
    lease.drop()
    assert storage.read(LEASE), "it is another's by now"
    other.drop()
    assert storage.read(LEASE) is None


def test_a_file_that_is_replaced_by_one_of_the_same_length_is_copied(tmp_path, monkeypatch):
    """`num_trials: 50` became 90; the bucket kept 50, which the next resume took."""
    monkeypatch.setattr(mirror, "MIRROR_SECONDS", 0.1)
    bucket, here = Storage.at(f"file://{tmp_path}/bucket", "s"), tmp_path / "s"
    (tmp_path / "bucket" / "s").mkdir(parents=True)
    replace_file(here / "options.yaml", b"num_trials: 50")
    with JournalMirror(bucket, "it", here / "journal", here / "options.yaml") as copies:
        copies.copy()
        assert bucket.read("options.yaml") == b"num_trials: 50"
        replace_file(here / "options.yaml", b"num_trials: 90")
    assert bucket.read("options.yaml") == b"num_trials: 90"


def test_a_copy_that_takes_long_does_not_let_the_lease_run_out(tmp_path, monkeypatch):
    """A large journal on a slow line: another driver took this one for dead."""
    monkeypatch.setattr(mirror, "MIRROR_SECONDS", 0.05)
    bucket, journal = Storage.at(f"file://{tmp_path}/bucket", "s"), tmp_path / "journal"
    (tmp_path / "bucket" / "s").mkdir(parents=True)
    journal.write_text("1\n")
    seen, write = set(), Storage.write

    def slow(self, name, content):
        for _ in range(100 if name == "journal" else 0):
            time.sleep(0.02)
            seen.add(self.read(LEASE))
            if len(seen) > 3:
                break
        write(self, name, content)

    monkeypatch.setattr(Storage, "write", slow)
    with JournalMirror(bucket, "it", journal):
        pass
    assert len(seen) > 3 and bucket.read(LEASE) is None and bucket.read("journal") == b"1\n"


def test_a_journal_that_is_slow_to_upload_is_copied_rarely_but_at_once_where_asked(
    tmp_path, monkeypatch
):
    """Every ten seconds anew, a large one took all of the line."""
    monkeypatch.setattr(mirror, "MIRROR_SECONDS", 0.05)
    bucket, journal = Storage.at(f"file://{tmp_path}/bucket", "s"), tmp_path / "journal"
    (tmp_path / "bucket" / "s").mkdir(parents=True)
    seconds, began, write = [0.5], [], Storage.write

    def slow(self, name, content):
        if name == "journal":
            began.append(time.monotonic())
            time.sleep(seconds[0])
        write(self, name, content)

    def copied(text, within):
        until = time.monotonic() + within
        while bucket.read("journal") != text.encode():
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
        return True

    monkeypatch.setattr(Storage, "write", slow)
    with JournalMirror(bucket, "it", journal) as copies:
        journal.write_text("1\n")
        assert copied("1\n", within=60)
        journal.write_text("2\n")
        assert not copied("2\n", within=2)
        copies.now()
        assert copied("2\n", within=2)
        copies.copy()  # nothing is new: the rest is no shorter
        seconds[0] = 0
        for text in ("3\n", "4\n"):
            journal.write_text(text)
            assert copied(text, within=60)
    assert began[2] - began[1] >= 10 * 0.5, "an upload of half a second, and the rest"
    assert began[3] - began[2] < 2, "it takes no time any more"


def test_after_a_failed_upload_the_next_one_does_not_wait_longer(tmp_path, monkeypatch):
    monkeypatch.setattr(mirror, "MIRROR_SECONDS", 0.05)
    bucket, journal = Storage.at(f"file://{tmp_path}/bucket", "s"), tmp_path / "journal"
    (tmp_path / "bucket" / "s").mkdir(parents=True)
    failed, write = [], Storage.write

    def hangs_once(self, name, content):
        if name == "journal" and not failed:
            time.sleep(1.0)
            failed.append(time.monotonic())
            raise OSError("away")
        write(self, name, content)

    monkeypatch.setattr(Storage, "write", hangs_once)
    with JournalMirror(bucket, "it", journal):
        journal.write_text("1\n")
        while not failed or bucket.read("journal") != b"1\n":
            time.sleep(0.01)
        assert time.monotonic() - failed[0] < 5


def test_a_storage_that_is_the_output_folder_is_not_copied_onto_itself(tmp_path):
    """What was appended to the journal meanwhile was lost."""
    journal = tmp_path / "s" / "journal"
    replace_file(journal, b"1\n")
    with JournalMirror(Storage.at(f"file://{tmp_path}", "s"), "it", journal) as copies:
        inode = journal.stat().st_ino
        copies.copy()
    assert journal.stat().st_ino == inode and not (tmp_path / "s" / LEASE).exists()
