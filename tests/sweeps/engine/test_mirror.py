"""The copy of the journal in a bucket that is away for a while."""

import logging
from dataclasses import dataclass, field

from pyarrow import fs

from sweeps.engine import mirror
from sweeps.engine.mirror import LEASE, JournalMirror
from sweeps.engine.storage import Storage


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


def test_an_end_that_waited_in_vain_says_what_is_missing(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        ended(tmp_path, 99, outage_seconds=0)
    assert "lacks the end of the journal" in caplog.text
