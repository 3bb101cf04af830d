"""How MLflow's server is reached: which proxies are bypassed, and why a server refuses."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import json
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ali import environment
from ali.errors import UserError
from ali.output import first_line, without_password
from sweeps.engine.retry import reason
from sweeps.engine.tracking.schema import experiment_name

if TYPE_CHECKING:
    from requests import Response

LOOPBACK = ("localhost", "127.0.0.1", "127.0.0.0/8", "::1")
SECONDS = 10.0  # for a server's first answer
LOGIN = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"


def bypass_proxies(uri: str) -> None:
    """Bypasses proxies for this machine and its cluster: they are for outside hosts."""
    environment.bypass_proxies(_near_hosts(uri))


def _near_hosts(uri: str) -> Iterator[str]:
    yield from LOOPBACK
    for address in (uri, environment.artifact_endpoint()):
        if address and (host := _host(address)) and _is_near(host):
            yield host


def _host(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _is_near(host: str) -> bool:
    """Whether a host is this machine, its cluster's head or in a network of its own."""
    head = (environment.ray_address() or "").rpartition("//")[2]
    if not set(".:") & set(host) or _host(f"//{head}") == host:
        return True
    found = _resolved(host)
    return bool(found) and all(
        not ipaddress.ip_address(ip).is_global or _is_own(ip) for ip in found
    )


@functools.cache
def _resolved(host: str) -> set[str]:
    try:
        return {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except OSError:  # often only the proxy resolves outside names, and asking takes seconds
        return set()


def _is_own(ip: str) -> bool:
    with socket.socket(
        socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM
    ) as probe:
        try:
            probe.bind((ip, 0))
        except OSError:
            return False
    return True


def check_server(uri: str) -> None:
    """Raises UserError unless MLflow answers at an http address, and takes our login.

    Asks as MLflow's client does (login, certificates, proxies), but once, not for minutes, so on
    a new connection: a server may be closing one that has been idle.
    """
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        answer = http_request(
            get_default_host_creds(uri),
            "/api/2.0/mlflow/experiments/search",
            "POST",
            json={"max_results": 1},
            max_retries=0,
            extra_headers={"Connection": "close"},
            timeout=SECONDS,
            raise_on_status=False,
        )
        said, refused = _said(answer), answer.status_code in (401, 403)
    except Exception as error:
        said, refused = reason(error), False
    if not said:
        return
    shown, proxy = without_password(uri), _proxy(uri)
    advice = ["start it, correct --tracking-uri, or leave it out to log to a local database"]
    if refused:
        advice = [f"check {LOGIN}"]
    elif "CERTIFICATE" in said:
        advice = ["MLFLOW_TRACKING_SERVER_CERT_PATH names a certificate to trust"]
    elif shown != uri:
        advice = [f"a login belongs into {LOGIN}"]
    if proxy:
        advice += [f"if it is reached without the proxy, add {_host(uri)} to no_proxy"]
        shown += f" through the proxy {without_password(proxy)}"
    what = "access refused by" if refused else "no MLflow server answers at"
    raise UserError(f"{what} {shown} ({said}): {'; '.join(advice)}")


def refuse_taken_port(host: str, port: int) -> None:
    """Raises UserError if no server can be started at a port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise UserError(f"port {port} cannot be used ({error}): give another --port") from error


@contextlib.contextmanager
def refusals(uri: str) -> Iterator[None]:
    """In the block, a UserError says so if MLflow does not let this login write."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in ("PERMISSION_DENIED", "UNAUTHENTICATED"):
            raise
        raise UserError(
            f"MLflow at {without_password(uri)} does not let this login write to experiment "
            f"{experiment_name(uri)!r}: ask its owner for the permission EDIT"
        ) from error


def _said(answer: Response) -> str:
    """What is wrong with an answer, in a line; empty: nothing."""
    try:
        parsed = json.loads(answer.text or "{}")
    except ValueError:
        parsed = None
    if answer.status_code == 200 and isinstance(parsed, dict):
        return ""
    if answer.status_code == 200:
        return "what answers is no MLflow"
    words = parsed.get("message", "") if isinstance(parsed, dict) else answer.text
    words = "" if str(words).lstrip().startswith("<") else f": {words}" if words else ""
    return first_line(f"{answer.status_code} {answer.reason}{words}")


def _proxy(uri: str) -> str | None:
    """The proxy that the environment names for an address."""
    from requests.utils import get_environ_proxies, select_proxy

    return select_proxy(uri, get_environ_proxies(uri))
