"""gunicorn's configuration of MLflow's server: clients need MLFLOW_TRACKING_TOKEN.

Without it, whoever reaches the port can write and read files wherever the server's user may: the
API takes an experiment with any artifact_location, and uploads to it. MLflow's clients send the
token by themselves; a browser asks for a name (any) and a password (the token).
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Iterable
from typing import Any

from werkzeug.wrappers import Request, Response

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def guarded(app: Wsgi, token: str) -> Wsgi:
    """The application behind a check of the token; only /health is open."""

    def checked(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request = Request(environ)
        shown = request.authorization
        given = (shown and (shown.token or shown.password)) or ""
        if request.path != "/health" and not hmac.compare_digest(given.encode(), token.encode()):
            says = "MLFLOW_TRACKING_TOKEN is missing or wrong: see cluster/README.md\n"
            realm = 'Basic realm="MLflow: any name, and the token as password"'
            return Response(says, 401, {"WWW-Authenticate": realm})(environ, start_response)
        return app(environ, start_response)

    return checked


def post_worker_init(worker: Any) -> None:
    """Called by gunicorn in each worker before its first request."""
    from mlflow.server import app

    app.wsgi_app = guarded(app.wsgi_app, os.environ["MLFLOW_TRACKING_TOKEN"])  # type: ignore[method-assign]
