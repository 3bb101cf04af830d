"""How MLflow's server is reached: logins, certificates, proxies; and what is never shown."""

import base64
import http.server
import json
import os
import pickle
import ssl
import subprocess
import threading

import pytest

from ali import environment
from ali.errors import UserError
from sweeps.engine.tracking import TrackingContext, access, connect, experiment_id, start_sweep

pytestmark = pytest.mark.versions
PASSWORD = "p@ss/word:1"
BASIC = "Basic " + base64.b64encode(f"me:{PASSWORD}".encode()).decode()


@pytest.fixture
def clean(monkeypatch):
    """No variable says how to reach anything; what a test sets, and sets off, is undone."""
    for name in [*os.environ]:
        if name.lower().endswith("_proxy") or name.startswith(("MLFLOW_TRACKING", "DATABRICKS_")):
            monkeypatch.delenv(name)
    before = dict(os.environ)
    yield monkeypatch
    os.environ.clear()
    os.environ.update(before)


class Stub(http.server.ThreadingHTTPServer):
    """Answers what MLflow, or a proxy, would to a request with the right login; notes all."""

    def __init__(self, wants=None, status=200, body='{"experiments": []}', denied="nothing"):
        self.wants, self.answer, self.denied, self.asked = wants, (status, body), denied, []
        super().__init__(("127.0.0.1", 0), Answers)
        self.uri = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=[0.01], daemon=True).start()


class Answers(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        login = self.headers.get("Authorization")
        self.server.asked.append((self.path, login, self.rfile.read(length)))
        status, body = self.server.answer
        if self.server.wants not in (None, login):
            status, body = 401, "You are not authenticated."
        if self.path.endswith(self.server.denied):
            status, body = 403, "Permission denied"
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    do_GET = do_CONNECT = do_POST

    def log_message(self, *_):
        """Says nothing."""


@pytest.fixture
def stub():
    made = []

    def make(*arguments, **options):
        made.append(Stub(*arguments, **options))
        return made[-1]

    yield make
    for server in made:
        server.shutdown()
        server.server_close()


def refusal(uri):
    with pytest.raises(UserError) as caught:
        connect(uri)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_check_has_a_connection_of_its_own(clean, stub):
    """A server closes idle connections: reused just then, one ends in "connection aborted"."""

    class OneAnswer(Answers):
        protocol_version = "HTTP/1.1"

        def handle(self):
            self.handle_one_request()
            if not self.close_connection:
                self.rfile.readline()  # the next request gets no answer

        def end_headers(self):
            self.send_header("Content-Length", str(len(self.server.answer[1])))
            super().end_headers()

    server = stub()
    server.RequestHandlerClass = OneAnswer
    for _ in range(2):
        connect(server.uri)
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("wants", "variables"),
    [
        (BASIC, {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": PASSWORD}),
        ("Bearer abc", {"MLFLOW_TRACKING_TOKEN": "abc"}),
    ],
)
def test_the_check_logs_in_as_mlflows_client_does(clean, stub, wants, variables):
    server = stub(wants)
    says = refusal(server.uri)
    assert "access refused" in says and all(name in says for name in variables)
    for name, value in variables.items():
        clean.setenv(name, value)
    assert connect(server.uri).search_experiments() == []


def test_a_login_in_the_address_works_and_is_in_no_address_afterwards(clean, stub):
    server = stub(BASIC)
    clean.setenv("MLFLOW_TRACKING_URI", server.uri.replace("//", "//me:p%40ss%2Fword%3A1@"))
    assert environment.tracking_uri() == os.environ["MLFLOW_TRACKING_URI"] == server.uri
    assert connect(environment.tracking_uri()).search_experiments() == []
    wrong = stub("Basic other")
    assert "word" not in refusal(wrong.uri)


@pytest.mark.parametrize(
    "uri",
    [
        "http://me:p@ss/hush:1@127.0.0.1:9",
        "http://me:pass/hush@127.0.0.1:9",
        "http://me:hush@[",
        "postgresql://me:hush@127.0.0.1:9/mlflow",
        "mysql+none:///mlflow?user=me&password=hush",
    ],
)
def test_an_address_that_does_not_work_is_shown_without_its_password(clean, uri):
    clean.setenv("MLFLOW_TRACKING_URI", uri)
    assert "hush" not in refusal(environment.tracking_uri())


@pytest.mark.parametrize(
    ("shown", "uri"),
    [
        ("http://…@host:5000/a", "http://me:secret@host:5000/a"),
        ("http://…@host", "http://token@host"),
        ("https://…@host", "https://me:a/b@c@host"),
        ("postgresql://host/db?user=me&password=…", "postgresql://host/db?user=me&password=secret"),
        ("cannot reach http://…@host: no", "cannot reach http://me:secret@host: no"),
        ("sqlite:////home/me:x@y/mlflow.db", "sqlite:////home/me:x@y/mlflow.db"),
        ("databricks://profile", "databricks://profile"),
        ("http://host:5000", "http://host:5000"),
    ],
)
def test_what_is_shown_of_an_address(shown, uri):
    assert access.without_password(uri) == shown


def test_the_login_travels_to_trials_on_other_machines_and_is_not_shown(clean, stub):
    server = stub(BASIC)
    clean.setenv("MLFLOW_TRACKING_USERNAME", "me")
    clean.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    clean.setenv("NO_PROXY", "head")
    packed = pickle.dumps(to := TrackingContext(server.uri, "0", "s", "p", "val_error"))
    assert PASSWORD not in repr(to) and "MLFLOW_TRACKING_URI" not in to.variables
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "NO_PROXY"):
        clean.delenv(name)
    clean.setenv("http_proxy", "http://127.0.0.1:9")
    clean.setenv("no_proxy", "intranet")
    environment.adopt_tracking_variables(pickle.loads(packed).variables)
    assert connect(server.uri).search_experiments() == []
    assert {"intranet", "head", "127.0.0.1"} <= set(os.environ["NO_PROXY"].split(","))


def test_a_certificate_of_ones_own(clean, stub, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost"
    make += f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {certificate}"
    subprocess.run(make.split(), check=True, capture_output=True)
    server = stub()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    uri = server.uri.replace("http:", "https:")
    assert "MLFLOW_TRACKING_SERVER_CERT_PATH" in refusal(uri)
    clean.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
    assert connect(uri).search_experiments() == []
    clean.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH")
    clean.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    assert connect(uri).search_experiments() == []


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_a_server_here_is_not_asked_through_a_proxy(clean, stub, variable):
    server, proxy = stub(), stub(status=403, body="Forbidden")
    clean.setenv(variable, proxy.uri)
    clean.setenv("NO_PROXY", "intranet")
    for uri in (server.uri, server.uri.replace("127.0.0.1", "localhost")):
        assert connect(uri).search_experiments() == []
    assert proxy.asked == [] and server.asked
    assert os.environ["no_proxy"].startswith("intranet,"), "what the user set stays"


def test_a_proxy_that_answers_in_the_servers_place_is_named(clean, stub):
    proxy = stub(status=403, body="Forbidden")
    shown = proxy.uri.replace("//", "//…@")
    for name in ("http_proxy", "https_proxy"):
        clean.setenv(name, proxy.uri.replace("//", "//me:secret@"))
    for scheme in ("http", "https"):
        says = refusal(f"{scheme}://mlflow.example.org")
        assert shown in says and "403" in says and "mlflow.example.org to no_proxy" in says
        assert "secret" not in says


@pytest.mark.parametrize(
    ("host", "near"),
    [
        *((host, True) for host in ("10.1.2.3", "192.168.0.9", "127.0.1.1", "head", "fd00::1")),
        *((host, False) for host in ("8.8.8.8", "2001:4860:4860::8888", "no.such.example.org")),
    ],
)
def test_which_hosts_are_asked_without_a_proxy(host, near):
    assert access._is_near(host) == near


@pytest.mark.parametrize("address", ["8.8.8.8:6379", "ray://8.8.8.8:10001"])
def test_the_head_of_the_cluster_is_asked_without_a_proxy(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert access._is_near("8.8.8.8")


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (200, "<html>Welcome</html>", "what answers is no MLflow"),
        (404, "<html>nothing</html>", "(404 Not Found)"),
        (500, '{"error_code": "INTERNAL_ERROR", "message": "no disk"}', "Error: no disk)"),
        (403, "Invalid Host header", "403 Forbidden: Invalid Host header"),
    ],
)
def test_what_the_server_says_is_passed_on(clean, stub, status, body, says):
    assert says in refusal(stub(status=status, body=body).uri)


@pytest.mark.parametrize("uri", ["localhost:5000", "htp://localhost:5000", "http:/localhost:5000"])
def test_an_address_that_is_none_is_told_what_one_is(clean, uri):
    assert f"{uri} is no address that MLflow knows: a server's is http://HOST:PORT" in refusal(uri)


def test_the_end_of_a_line_is_no_part_of_an_address(clean):
    clean.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000\n")
    assert environment.tracking_uri() == "http://localhost:5000"


def test_a_login_that_may_only_read_is_told_so(clean, stub, tmp_path):
    server = stub(body='{"runs": []}', denied="/runs/create")
    with pytest.raises(UserError, match=r"does not let this login write .*EDIT"):
        start_sweep(connect(server.uri), "0", "s", "val_error", {})


def test_databricks_is_asked_as_mlflow_does(clean, stub, tmp_path):
    pytest.importorskip("databricks.sdk")
    answers = '{"experiment_id": "7", "experiments": [], "registered_models": []}'
    server = stub("Bearer abc", body=answers)
    clean.setenv("DATABRICKS_HOST", server.uri)
    clean.setenv("DATABRICKS_TOKEN", "abc")
    client = connect("databricks")
    clean.setattr(client, "get_experiment_by_name", lambda name: None)
    assert experiment_id(client, tmp_path) == "7"
    path, _, body = server.asked[-1]
    assert path.endswith("/mlflow/experiments/create")
    assert json.loads(body) == {"name": "/Shared/ali"}
