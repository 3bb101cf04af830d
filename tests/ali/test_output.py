"""What is printed: nothing that keeps it from being read stops the work, and no text is markup."""

import io
import os
import subprocess
import sys
import time

import pytest

from ali import output


@pytest.fixture
def printed_to(monkeypatch):
    """Makes a file descriptor the process's stdout."""
    streams = []

    def replace(descriptor):
        streams.append(os.fdopen(descriptor, "w"))
        monkeypatch.setattr(sys, "stdout", streams[-1])

    yield replace
    for stream in streams:
        stream.close()  # raises if it still holds what it cannot write


def print_much():
    for _ in range(100):
        print("x" * 1000, flush=True)


def test_a_reader_that_went_away_is_not_missed(printed_to):
    reader, writer = os.pipe()
    os.close(reader)
    printed_to(writer)
    with output.lossy_output():
        print_much()
        output.write_now(writer, "at once")
    output.finish_output()


def test_a_full_disk_stops_no_work(printed_to):
    printed_to(os.open("/dev/full", os.O_WRONLY))
    with pytest.raises(OSError, match="No space left"):
        print_much()
    with output.lossy_output():
        print_much()
    output.finish_output()


def test_a_reader_that_stopped_is_waited_for_once(printed_to, monkeypatch):
    monkeypatch.setattr(output, "PATIENCE", 0.2)
    reader, writer = os.pipe()
    printed_to(writer)
    began = time.monotonic()
    with output.lossy_output():
        print_much()  # more than fits into a pipe
        assert 0.2 <= time.monotonic() - began < 2
        os.read(reader, 2**20)
        print("read on", flush=True)
        assert os.read(reader, 2**20).endswith(b"read on\n")
    os.close(reader)


def test_the_text_of_a_string_stream_is_kept(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with output.lossy_output():
        print("text")
    assert sys.stdout.getvalue() == "text\n"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", b"+--+ 2-3 +-4 x5 b1 s0 e ?..."),
        ("latin-1", b"+--+ 2-3 \xb14 \xd75 b1 s0 \xe9 ?..."),
        ("utf-8", "┏━━┓ 2–3 ±4 ×5 β₁ σ₀ é ?…".encode()),  # what no encoding has, in a file's name
    ],
)
def test_text_is_printed_in_any_encoding(monkeypatch, encoding, shown):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    output.prepare_output()
    print("┏━━┓ 2–3 ±4 ×5 β₁ σ₀ é \udcff…", end="", flush=True)
    assert stream.buffer.getvalue() == shown


def test_what_is_opened_later_does_not_get_the_number_of_a_closed_stream():
    code = "from ali.output import prepare_output; prepare_output(); print('lost', flush=True)"
    code += "; assert open('/dev/null').fileno() > 2"
    closed = f'"{sys.executable}" -c "{code}" >&- 2>&-'
    assert subprocess.run(["bash", "-c", closed]).returncode == 0


def test_a_console_takes_text_as_it_is():
    out = io.StringIO()
    output.console(file=out, width=60).print("[/x] [red]a[/red] :smile: [64, 3]")
    assert out.getvalue() == "[/x] [red]a[/red] :smile: [64, 3]\n"
