"""`fetch` against a real HTTP server on this machine, scripted to misbehave path by path."""

import contextlib
import errno
import hashlib
import http.server
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import yaml

from deconvnet import download
from deconvnet.download import Expected, Patience, fetch
from deconvnet.errors import InputError

BODY = random.Random(0).randbytes(600_000)
MD5 = hashlib.md5(BODY).hexdigest()
SHA256 = hashlib.sha256(BODY).hexdigest()
CORRUPTED = BODY[:300_000] + bytes([BODY[300_000] ^ 1]) + BODY[300_001:]
GIT_BLOB = hashlib.sha1(b"blob 600000\0" + BODY).hexdigest()
REPOSITORY = Path(__file__).parents[2]
FILE = "data/archives/a.tar"
PART = Path(f"{FILE}.part")


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers the nth request of a path by the nth behaviour in the server's script, the last one again and again."""

    def do_GET(self):
        behaviours = self.server.scripts[self.path]
        behaviour = behaviours.pop(0) if len(behaviours) > 1 else behaviours[0]
        self.record = {"path": self.path, "range": self.headers["Range"], "headers": self.headers, "sent": 0}
        self.server.requests.append(self.record)
        with contextlib.suppress(ConnectionError):  # a client that was killed
            behaviour(self)

    def answer(self, status, headers=(), body=b"", slowly=0.0):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        for start in range(0, len(body), 20_000):
            piece = body[start : start + 20_000]
            self.wfile.write(piece)
            self.record["sent"] += len(piece)
            time.sleep(slowly)

    def log_message(self, *_):
        pass


def gives(body=BODY, *, upto=None, ranges=True, shift=0, length=None, slowly=0.0, etag=None, headers=()):
    """Serve `body`, as a good server does, or: only `upto` bytes of an answer, without ranges, a range `shift` bytes
    off, with another Content-Length ("": none)."""

    def behaviour(handler):
        start = 0
        asked = handler.headers["Range"] if ranges else None
        if asked and handler.headers["If-Range"] in (None, etag):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                return handler.answer(416, {"Content-Range": f"bytes */{len(body)}"})
            start += shift
        sent = {"Content-Length": len(body) - start if length is None else length, **dict(headers)}
        if etag:
            sent["ETag"] = etag
        if sent["Content-Length"] == "":
            del sent["Content-Length"]
        if start:
            sent["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        handler.answer(206 if start else 200, sent, body[start:][:upto], slowly)

    return behaviour


def says(status, **headers):
    return lambda handler: handler.answer(status, {name.replace("_", "-"): value for name, value in headers.items()})


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.scripts, server.requests = {}, []
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        server.ranges = lambda: [request["range"] for request in server.requests]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def experiment(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def get(*addresses, size=None, md5=MD5, sha256=None, git_blob=None, pauses=None, **patience):
    """Fetch without really pausing; the pauses are appended to `pauses`."""
    pauses = [] if pauses is None else pauses
    expected = Expected(size, md5, sha256, git_blob)
    remedy = "put its path first in fetch.voc.addresses in params.yaml"
    fetch(FILE, addresses, expected, Patience(sleep=pauses.append, **patience), remedy)
    assert Path(FILE).read_bytes() == BODY
    assert not PART.exists()


def fails(*addresses, **options) -> str:
    """The message of a fetch that must fail, leaving nothing under the final name."""
    with pytest.raises(InputError) as caught:
        get(*addresses, **options)
    assert not Path(FILE).exists()
    message = str(caught.value)
    assert "\n" not in message
    return message


def leave_part(content):
    PART.parent.mkdir(parents=True)
    PART.write_bytes(content)


# The good cases


@pytest.mark.parametrize(
    "checksums",
    [
        {"md5": MD5.upper()},
        {"md5": None, "sha256": SHA256},
        {"md5": MD5, "sha256": SHA256[:8]},
        {"md5": None, "git_blob": GIT_BLOB},
        {"size": len(BODY), "md5": MD5, "sha256": SHA256, "git_blob": GIT_BLOB},
    ],
)
def test_one_good_mirror(server, checksums, capsys):
    server.scripts["/a"] = [gives()]
    get(f"{server.url}/a", **checksums)
    assert len(server.requests) == 1
    assert server.requests[0]["headers"]["Accept-Encoding"] == "identity"
    out, err = capsys.readouterr()
    assert "checksum holds" in out
    assert "600k/600k" in err  # the bar, with the total from Content-Length


def test_present_file_is_left_alone(server, capsys):
    Path(FILE).parent.mkdir(parents=True)
    Path(FILE).write_bytes(BODY)
    inode = os.stat(FILE).st_ino
    server.scripts["/a"] = [gives()]
    get(f"{server.url}/a")
    assert os.stat(FILE).st_ino == inode
    assert server.requests == []
    assert "present" in capsys.readouterr().out


def test_present_hard_link_of_other_content_is_replaced_not_written_through(server):
    Path(FILE).parent.mkdir(parents=True)
    Path("cache").write_bytes(b"another version")
    Path("cache").chmod(0o444)
    os.link("cache", FILE)
    server.scripts["/a"] = [gives()]
    get(f"{server.url}/a")
    assert Path("cache").read_bytes() == b"another version"
    assert os.stat("cache").st_nlink == 1


def test_without_checksum_the_sha256_is_printed_to_be_pinned(server, capsys):
    server.scripts["/a"] = [gives()]
    get(f"{server.url}/a", md5=None)
    assert f"sha256: {SHA256}" in capsys.readouterr().out


def test_what_a_server_labels_as_compressed_stays_as_it_is(server):
    server.scripts["/a"] = [gives(headers={"Content-Encoding": "gzip"})]
    get(f"{server.url}/a")


def test_redirects_are_followed_with_their_range(server):
    server.scripts["/a"] = [says(302, Location="/b")]
    server.scripts["/b"] = [says(301, Location=f"{server.url}/c")]
    server.scripts["/c"] = [gives(upto=200_000), gives()]
    get(f"{server.url}/a")
    assert [request["path"] for request in server.requests] == ["/a", "/b", "/c"] * 2
    assert server.ranges()[-1] == "bytes=200000-"


# Interrupted transfers


def test_dropped_connections_are_resumed_byte_by_byte(server):
    server.scripts["/a"] = [gives(upto=100_000), gives(upto=150_000), gives(upto=1), gives()]
    pauses = []
    get(f"{server.url}/a", pauses=pauses)
    assert server.ranges() == [None, "bytes=100000-", "bytes=250000-", "bytes=250001-"]
    assert sum(request["sent"] for request in server.requests) == len(BODY)
    assert pauses == [1, 2, 4]


def test_attempts_that_gain_ground_do_not_count(server):
    server.scripts["/a"] = [gives(upto=100_000)]
    pauses = []
    get(f"{server.url}/a", attempts=2, gain=100_000, pauses=pauses)
    assert len(server.requests) == 6
    assert pauses == [1] * 5
    os.unlink(FILE)
    server.requests.clear()
    assert "2 attempts" in fails(f"{server.url}/a", attempts=2, gain=400_000)
    assert len(server.requests) == 2


def test_starting_over_again_and_again_gains_no_ground(server):
    server.scripts["/a"] = [gives(upto=100_000, ranges=False)]
    assert "3 attempts" in fails(f"{server.url}/a", attempts=3, gain=50_000)
    assert len(server.requests) == 3


def test_stalled_transfer_is_dropped_and_resumed(server):
    server.scripts["/a"] = [gives(slowly=1.5), gives()]
    get(f"{server.url}/a", timeout=(1, 0.3))
    assert len(server.requests) == 2


def test_connection_reset_before_any_answer_is_tried_again(server):
    server.scripts["/a"] = [lambda handler: handler.connection.shutdown(socket.SHUT_RDWR), gives()]
    get(f"{server.url}/a")
    assert len(server.requests) == 2


@pytest.mark.parametrize("left", [0, 1, 250_000, len(BODY) - 1])
def test_part_of_an_earlier_process_is_continued(server, left, capsys):
    leave_part(BODY[:left])
    server.scripts["/a"] = [gives()]
    get(f"{server.url}/a")
    assert [request["sent"] for request in server.requests] == [len(BODY) - left]
    assert f"{left / 1000:.0f}k/600k" in capsys.readouterr().err or left < 1000  # the bar starts where the part ends


@pytest.mark.parametrize("left", [BODY, BODY + b"more", b"x" * 1000, CORRUPTED])
def test_part_that_is_whole_too_long_or_another_file(server, left):
    leave_part(left)
    server.scripts["/a"] = [gives()]
    get(f"{server.url}/a")
    assert sum(request["sent"] for request in server.requests) <= 2 * len(BODY)


def test_whole_part_needs_no_server():
    leave_part(BODY)
    get("http://127.0.0.1:9/a")


def test_next_mirror_continues_the_same_part(server):
    server.scripts["/a"] = [gives(upto=100_000), says(503)]
    server.scripts["/b"] = [gives()]
    get(f"{server.url}/a", f"{server.url}/b", attempts=2)
    assert server.requests[-1]["range"] == "bytes=100000-"


def test_without_checksum_nothing_is_mixed(server):
    leave_part(b"x" * 1000)
    server.scripts["/a"] = [gives(upto=100_000), says(503)]
    server.scripts["/b"] = [
        gives(upto=200_000, etag='"1"'),
        gives(CORRUPTED, etag='"2"', upto=300_000),
        gives(etag='"3"'),
    ]
    get(f"{server.url}/a", f"{server.url}/b", md5=None, attempts=3)
    assert server.ranges()[0] is None
    second = [request for request in server.requests if request["path"] == "/b"]
    assert [request["range"] for request in second] == [None, "bytes=200000-", "bytes=300000-"]
    assert [request["headers"]["If-Range"] for request in second] == [None, '"1"', '"2"']
    assert second[-1]["sent"] == len(BODY)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_process_is_continued_by_the_next(server, how):
    server.scripts["/a"] = [gives(slowly=0.02), gives()]
    values = yaml.safe_load((REPOSITORY / "demo/params.yaml").read_text())
    values["fetch"]["vgg16"] = {
        "by": "stages/fetch.py",
        "file": FILE,
        "addresses": [f"{server.url}/a"],
        "bytes": len(BODY),
        "md5": MD5,
    }
    Path("params.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-P", str(REPOSITORY / "stages/fetch.py"), "vgg16"]  # as dvc.yaml runs it
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    # a shell's background job ignores SIGINT, and so would its children
    defaults = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=defaults
    )
    deadline = time.monotonic() + 10
    while not (PART.exists() and PART.stat().st_size >= 100_000):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(how)
    _, err = process.communicate(timeout=10)
    assert process.returncode != 0
    assert "Traceback" not in err
    assert not Path(FILE).exists()
    left = PART.stat().st_size
    assert 100_000 <= left < len(BODY)
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=10)
    assert Path(FILE).read_bytes() == BODY
    assert server.requests[-1]["range"] == f"bytes={left}-"


def test_full_disk_is_one_line_and_keeps_the_part(server, monkeypatch):
    server.scripts["/a"] = [gives()]
    write = download._write

    def full(chunks, part, offset, total, most):
        write([next(iter(chunks))], part, offset, total, most)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(download, "_write", full)
        message = fails(f"{server.url}/a")
    assert "a.tar.part: No space left" in message
    assert BODY.startswith(PART.read_bytes())
    left = PART.stat().st_size
    assert left > 0
    get(f"{server.url}/a")
    assert server.requests[-1]["range"] == f"bytes={left}-"


def test_device_that_is_really_full(server):
    PART.parent.mkdir(parents=True)
    PART.symlink_to("/dev/full")
    server.scripts["/a"] = [gives()]
    assert "No space left" in fails(f"{server.url}/a")


# Servers that lie


def test_server_that_ignores_ranges_starts_over(server):
    server.scripts["/a"] = [gives(upto=400_000), gives(ranges=False)]
    get(f"{server.url}/a")
    assert server.requests[1]["range"] == "bytes=400000-"
    assert server.requests[1]["sent"] == len(BODY)


@pytest.mark.parametrize("md5", [MD5, None])
@pytest.mark.parametrize("shift", [-10, 10])
def test_another_range_than_asked_for_starts_over(server, shift, md5):
    server.scripts["/a"] = [gives(upto=400_000), gives(shift=shift)]
    get(f"{server.url}/a", md5=md5)
    assert server.ranges() == [None, "bytes=400000-", None]


@pytest.mark.parametrize("md5", [MD5, None])
def test_less_of_a_range_than_asked_for_is_continued(server, md5):
    def less(handler):
        headers = {"Content-Range": f"bytes 200000-299999/{len(BODY)}", "Content-Length": 100_000}
        handler.answer(206, headers, BODY[200_000:300_000])

    server.scripts["/a"] = [gives(upto=200_000), less, gives()]
    get(f"{server.url}/a", md5=md5)
    assert server.ranges() == [None, "bytes=200000-", "bytes=300000-"]


@pytest.mark.parametrize("md5", [MD5, None])
def test_range_refused_without_saying_why_starts_over(server, md5):
    server.scripts["/a"] = [gives(upto=400_000), says(416), gives()]
    get(f"{server.url}/a", md5=md5)
    assert server.ranges() == [None, "bytes=400000-", None]


@pytest.mark.parametrize("md5", [MD5, None])
def test_more_announced_than_there_is(server, md5):
    server.scripts["/a"] = [gives(length=700_000)]
    get(f"{server.url}/a", md5=md5)
    assert server.ranges() == [None, "bytes=600000-"]  # whereupon 416 says that nothing is missing


def test_more_announced_than_there_is_and_no_ranges(server):
    server.scripts["/a"] = [gives(length=700_000, ranges=False)]
    get(f"{server.url}/a")  # the checksum holds, whatever the server says
    os.unlink(FILE)
    assert "broke off" in fails(f"{server.url}/a", md5=None)


def test_less_announced_than_there_is(server):
    server.scripts["/a"] = [gives(length=500_000)]
    server.scripts["/b"] = [gives()]
    get(f"{server.url}/a", f"{server.url}/b")
    assert [request["path"] for request in server.requests] == ["/a", "/b"]


def test_no_length_announced(server):
    server.scripts["/a"] = [gives(length="")]
    get(f"{server.url}/a")


@pytest.mark.parametrize("md5", [MD5, None])
def test_html_page_instead_of_the_file_leaves_the_part_alone(server, md5):
    page = b"\n<!DOCTYPE html><html><body>Please log in</body></html>"
    server.scripts["/a"] = [gives(page, ranges=False, headers={"Content-Type": "application/x-tar"})]
    leave_part(BODY[:1000])
    assert "looks like an HTML page" in fails(f"{server.url}/a", md5=md5)
    if md5:
        assert PART.read_bytes() == BODY[:1000]


@pytest.mark.parametrize("md5", [MD5, None])
def test_empty_body_is_not_the_file(server, md5):
    server.scripts["/a"] = [gives(b"")]
    assert "empty" in fails(f"{server.url}/a", md5=md5)


def test_corrupted_body_then_a_good_mirror(server, capsys):
    server.scripts["/a"] = [gives(CORRUPTED)]
    server.scripts["/b"] = [gives()]
    get(f"{server.url}/a", f"{server.url}/b")
    assert server.ranges() == [None, None]  # nothing of the corrupted body is continued
    out = capsys.readouterr().out
    assert MD5 in out
    assert hashlib.md5(CORRUPTED).hexdigest() in out


def test_corrupted_everywhere(server):
    server.scripts["/a"] = [gives(CORRUPTED)]
    server.scripts["/b"] = [gives(BODY[:-1])]
    message = fails(f"{server.url}/a", f"{server.url}/b", md5=None, sha256=SHA256[:10])
    assert not PART.exists()
    for words in (
        f"{FILE}: no address gave it",
        f"{server.url}/a: ",
        f"{server.url}/b: ",
        f"sha256 expected {SHA256[:10]}, got ",
    ):
        assert words in message
    assert hashlib.sha256(CORRUPTED).hexdigest()[:10] in message
    assert "put its path first in fetch.voc.addresses in params.yaml" in message


def test_corrupted_when_put_together_is_fetched_once_more_from_zero(server):
    server.scripts["/a"] = [gives(CORRUPTED, upto=400_000), gives()]
    get(f"{server.url}/a")
    assert server.ranges() == [None, "bytes=400000-", None]
    os.unlink(FILE)
    server.requests.clear()
    server.scripts["/a"] = [gives(CORRUPTED, upto=400_000), gives(CORRUPTED)]
    assert "expected" in fails(f"{server.url}/a")
    assert server.ranges() == [None, "bytes=400000-", None]  # once, not for ever
    server.requests.clear()
    server.scripts["/a"] = [gives(CORRUPTED, upto=400_000), gives(CORRUPTED)] * 2
    assert "expected" in fails(f"{server.url}/a")
    assert server.ranges() == [None, "bytes=400000-"] * 2


def test_one_wrong_digit_of_a_checksum_is_enough(server):
    server.scripts["/a"] = [gives()]
    for name, digits in (("md5", MD5), ("sha256", SHA256), ("sha256", SHA256[:8]), ("git_blob", GIT_BLOB)):
        other = digits[:-1] + ("1" if digits[-1] == "0" else "0")
        assert f"{name} expected {other}, got {digits}" in fails(f"{server.url}/a", **{"md5": MD5, name: other})


# Refusals


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 204, 304])
def test_refusal_moves_on_at_once(server, status):
    server.scripts["/a"] = [says(status)]
    server.scripts["/b"] = [gives()]
    pauses = []
    get(f"{server.url}/a", f"{server.url}/b", pauses=pauses)
    assert [request["path"] for request in server.requests] == ["/a", "/b"]
    assert pauses == []
    os.unlink(FILE)
    assert f"HTTP {status}" in fails(f"{server.url}/a")


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_passing_trouble_is_waited_for(server, status):
    server.scripts["/a"] = [says(status), says(status), gives()]
    pauses = []
    get(f"{server.url}/a", pauses=pauses)
    assert pauses == [1, 2]


def test_lasting_trouble_moves_on(server):
    server.scripts["/a"] = [says(500)]
    pauses = []
    assert "HTTP 500 Internal Server Error (4 attempts)" in fails(f"{server.url}/a", attempts=4, pauses=pauses)
    assert len(server.requests) == 4
    assert pauses == [1, 2, 4]


def test_retry_after_is_honoured_a_little(server):
    server.scripts["/a"] = [
        says(503, Retry_After="7"),
        says(503, Retry_After="86400"),
        says(503, Retry_After="x"),
        gives(),
    ]
    pauses = []
    get(f"{server.url}/a", pauses=pauses)
    assert pauses == [7, 60, 4]


def test_redirect_loop(server):
    server.scripts["/a"] = [says(302, Location="/b")]
    server.scripts["/b"] = [says(302, Location="/a")]
    assert "redirects" in fails(f"{server.url}/a")
    assert len(server.requests) < 50


def test_redirect_to_a_local_file_is_not_followed(server):
    Path("secret").write_bytes(BODY)
    server.scripts["/a"] = [says(302, Location=f"file://{Path('secret').absolute()}")]
    fails(f"{server.url}/a")


def test_redirect_whose_body_nobody_can_hold(server):
    headers = {"Location": "/b", "Content-Encoding": "gzip", "Content-Length": 10**30}
    server.scripts["/a"] = [lambda handler: handler.answer(302, headers, b"no gzip")]
    assert "leads nowhere" in fails(f"{server.url}/a")


def test_no_network():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        refusing = f"http://127.0.0.1:{closed.getsockname()[1]}/a"
        pauses = []
        message = fails(refusing, "https://no-such-host.invalid/a.tar", "http:///", pauses=pauses)
    assert f"{refusing}: Connection refused; " in message
    assert "https://no-such-host.invalid/a.tar: host name not found (no network?)" in message
    assert len(message) < 600
    assert pauses == []  # the next mirror is quicker


def test_network_that_goes_away_midway_is_waited_for(server):
    def last(handler):
        server.socket.close()
        gives(upto=100_000)(handler)

    server.scripts["/a"] = [last]
    pauses = []
    assert "refused (3 attempts)" in fails(f"{server.url}/a", attempts=3, pauses=pauses)
    assert pauses == [1, 2]
    assert PART.read_bytes() == BODY[:100_000]


# Files


@pytest.mark.parametrize(
    "form", ["{0}", "my disk/v%41.tar", "~/my disk/v%41.tar", "file://{1}", "file://localhost{1}", "file:{1}"]
)
def test_plain_paths_and_file_addresses(form, tmp_path, monkeypatch, capsys):
    source = tmp_path / "my disk" / "v%41.tar"
    source.parent.mkdir()
    source.write_bytes(BODY)
    source.chmod(0o444)
    monkeypatch.setenv("HOME", str(tmp_path))
    get(form.format(source, str(source).replace("%", "%25").replace(" ", "%20")))
    assert source.read_bytes() == BODY
    assert os.stat(FILE).st_ino != source.stat().st_ino
    assert "600k/600k" in capsys.readouterr().err


def test_paths_that_fail(server, tmp_path):
    Path("bad").write_bytes(CORRUPTED)
    message = fails("nowhere", str(tmp_path), "bad", "file:///nowhere/a%20b")
    assert "nowhere: no such file; " in message
    assert f"{tmp_path}: not a file; " in message
    assert f"bad: corrupted, or another file: md5 expected {MD5}, got {hashlib.md5(CORRUPTED).hexdigest()}; " in message
    assert Path("bad").read_bytes() == CORRUPTED
    assert not PART.exists()
    server.scripts["/a"] = [gives()]
    get("nowhere", "bad", f"{server.url}/a")


def test_the_part_itself_as_the_address():
    leave_part(BODY)
    get(str(PART))


def test_file_that_is_a_folder():
    Path(FILE).mkdir(parents=True)
    with pytest.raises(InputError, match="data/archives/a.tar: it or a.tar.part is a folder"):
        get("x")


def test_a_checksum_as_git_has_it():
    Path("file").write_bytes(BODY)
    said = subprocess.run(
        ["git", "hash-object", "--no-filters", "file"], capture_output=True, text=True, check=True
    ).stdout
    assert Expected(git_blob=said.strip()).wrong(Path("file")) == ""
    assert said.strip() == GIT_BLOB


# Sizes


def test_a_wrong_size_ends_a_mirror_before_its_body(server):
    server.scripts["/a"] = [gives(BODY + b"more")]
    server.scripts["/b"] = [gives()]
    pauses = []
    get(f"{server.url}/a", f"{server.url}/b", size=len(BODY), pauses=pauses)
    assert [request["path"] for request in server.requests] == ["/a", "/b"]
    assert server.requests[1]["range"] is None  # nothing of the other file is continued
    assert pauses == []
    os.unlink(FILE)
    assert "/a: another file: 600,000 bytes expected, got 600,004" in fails(f"{server.url}/a", size=len(BODY))


def test_a_wrong_size_in_the_answer_to_a_range(server):
    leave_part(BODY[:1000])
    server.scripts["/a"] = [gives(BODY[:-1])]
    assert "another file: 600,000 bytes expected, got 599,999" in fails(f"{server.url}/a", size=len(BODY))
    assert PART.read_bytes() == BODY[:1000], "another mirror may continue it"


def test_a_body_without_an_announced_length_that_does_not_end(server):
    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        for _ in range(1000):
            handler.wfile.write(BODY[:100_000])
            handler.record["sent"] += 100_000

    server.scripts["/a"] = [endless]
    server.scripts["/b"] = [gives()]
    get(f"{server.url}/a", f"{server.url}/b", size=len(BODY))
    assert server.requests[0]["sent"] < 50 * len(BODY)
    assert [(request["path"], request["range"]) for request in server.requests] == [("/a", None), ("/b", None)]


def test_a_copy_of_another_size_is_not_even_read(monkeypatch):
    Path("short").write_bytes(BODY[:-1])
    monkeypatch.setattr(download, "_write", None)
    message = fails("short", size=len(BODY))
    assert "short: another file: 600,000 bytes expected, got 599,999" in message


def test_a_size_alone_vouches_for_nothing(server):
    """Two files may be of one size: without a checksum what is there is fetched anew."""
    Path(FILE).parent.mkdir(parents=True)
    Path(FILE).write_bytes(CORRUPTED)
    server.scripts["/a"] = [gives()]
    get(f"{server.url}/a", size=len(BODY), md5=None)
    assert len(server.requests) == 1


def test_one_reading_makes_every_checksum(monkeypatch):
    Path("file").write_bytes(BODY)
    opened = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *mode: (opened.append(path), real(path, *mode))[1])
    assert Expected(len(BODY), MD5, SHA256, GIT_BLOB).wrong(Path("file")) == ""
    assert len(opened) == 1
    assert "bytes expected" in Expected(1, MD5, SHA256).wrong(Path("file"))
    assert len(opened) == 1, "a wrong size needs no reading"


# A copy got by hand


def test_a_copy_saved_under_the_name_needs_no_server():
    Path(FILE).parent.mkdir(parents=True)
    Path(FILE).write_bytes(BODY)
    get("http://127.0.0.1:9/a", size=len(BODY))


def test_a_wrong_copy_is_said_and_fetched_over(server, capsys):
    Path(FILE).parent.mkdir(parents=True)
    Path(FILE).write_bytes(BODY[:-1])
    server.scripts["/a"] = [gives()]
    get(f"{server.url}/a", size=len(BODY))
    assert f"{FILE}: another file: 600,000 bytes expected, got 599,999; fetching it" in capsys.readouterr().out
    Path(FILE).write_bytes(CORRUPTED)
    server.scripts["/a"] = [says(404)]
    with pytest.raises(InputError) as caught:
        get(f"{server.url}/a", size=len(BODY))
    assert f"(the present file: corrupted, or another file: md5 expected {MD5}, got " in str(caught.value)
    assert Path(FILE).read_bytes() == CORRUPTED, "what somebody put there is not removed"


def test_the_message_says_everything_that_a_hand_needs(server):
    server.scripts["/x/benchmark.tgz"] = [says(404)]
    server.scripts["/y"] = [says(403)]
    first, second = f"{server.url}/x/benchmark.tgz", f"{server.url}/y"
    message = fails(first, second, size=1_419_539_633, md5=None, sha256=SHA256)
    assert message == (
        f"{FILE}: no address gave it ({first}: HTTP 404 Not Found; {second}: HTTP 403 Forbidden); get a copy of "
        f"benchmark.tgz (1,419,539,633 bytes, sha256 {SHA256}) by hand and save it as {FILE}, or put its path first in "
        "fetch.voc.addresses in params.yaml"
    )
    unknown = fails(second, md5=None)  # nothing vouches for a copy under the name: it would be fetched again
    assert unknown.endswith("get a copy of y by hand and put its path first in fetch.voc.addresses in params.yaml")
