"""Every environment variable that this project reads, one function each; nothing else reads any."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

KUBERAY = "RAY_USAGE_STATS_KUBERAY_IN_USE"  # set by its operator
NO_PROXY = "no_proxy"


def cache_dir() -> Path:
    """$ALI_CACHE: decoded data sets, shared by all processes; default ~/.cache/ali-sweeps."""
    return Path(os.environ.get("ALI_CACHE") or "~/.cache/ali-sweeps").expanduser()


def data_dir() -> Path | None:
    """$ALI_DATA_DIR: a folder of data sets by name, used by sweeps where no --data-dir is given."""
    root = os.environ.get("ALI_DATA_DIR")
    return Path(root).expanduser() if root else None


def output_dir() -> Path:
    """$ALI_OUTPUT_DIR: the folder of all sweeps (--output-dir); default: runs."""
    return Path(os.environ.get("ALI_OUTPUT_DIR") or "runs").expanduser()


def storage_path() -> str | None:
    """$ALI_STORAGE_PATH: the bucket for checkpoints (--storage-path); default: --output-dir."""
    return os.environ.get("ALI_STORAGE_PATH") or None


def tracking_uri() -> str | None:
    """$MLFLOW_TRACKING_URI: the MLflow server (--tracking-uri), without a login.

    http://user:password@host becomes http://host, since addresses are shown; the login goes to the
    variables in which MLflow's client looks for it.
    """
    # A secret that was read from a file often ends with a newline.
    uri = (os.environ.get("MLFLOW_TRACKING_URI") or "").strip() or None
    try:
        parts = urlsplit(uri or "")
    except ValueError:  # reported on connecting
        return uri
    if parts.scheme in ("http", "https") and "@" in parts.netloc:
        login, _, host = parts.netloc.rpartition("@")
        user, colon, password = login.partition(":")
        uri = parts._replace(netloc=host).geturl()
        os.environ.update(MLFLOW_TRACKING_URI=uri, MLFLOW_TRACKING_USERNAME=unquote(user))
        if colon:
            os.environ.update(MLFLOW_TRACKING_PASSWORD=unquote(password))
    return uri


def tracking_variables() -> dict[str, str]:
    """What MLflow's client needs to reach its server: $MLFLOW_TRACKING_USERNAME, _PASSWORD, _TOKEN,
    _INSECURE_TLS and the like, Databricks' own, and $no_proxy. Trials on other machines lack it."""
    prefixes = ("MLFLOW_TRACKING_", "DATABRICKS_")
    found = {name: value for name, value in os.environ.items() if name.startswith(prefixes)}
    found.pop("MLFLOW_TRACKING_URI", None)
    return found | {NO_PROXY: ",".join(_no_proxy())}


def adopt_tracking_variables(variables: Mapping[str, str]) -> None:
    """Sets another process's `tracking_variables`, except those that are set in this one."""
    bypass_proxies(variables.get(NO_PROXY, "").split(","))
    set_defaults(**{name: value for name, value in variables.items() if name != NO_PROXY})


def bypass_proxies(hosts: Iterable[str]) -> None:
    """Exempts these hosts from the proxy that variables such as $http_proxy name."""
    from urllib.request import getproxies_environment

    if getproxies_environment().keys() - {"no"}:
        joined = ",".join(dict.fromkeys([*_no_proxy(), *filter(None, hosts)]))
        # Libraries read one or the other: the shorter would hide the longer.
        os.environ[NO_PROXY] = os.environ[NO_PROXY.upper()] = joined


def _no_proxy() -> list[str]:
    both = f"{os.environ.get(NO_PROXY, '')},{os.environ.get(NO_PROXY.upper(), '')}"
    return [host.strip() for host in both.split(",") if host.strip()]


def artifact_endpoint() -> str | None:
    """$MLFLOW_S3_ENDPOINT_URL: where MLflow's client finds a bucket that is not at Amazon."""
    return os.environ.get("MLFLOW_S3_ENDPOINT_URL") or None


def c_compiler() -> str:
    """$ALI_CC: the compiler for the layers of narrow networks; empty: none; default: cc."""
    return os.environ.get("ALI_CC", "cc")


def cuda_graphs() -> bool:
    """$ALI_CUDA_GRAPHS: whether training steps on a GPU are captured; 0: no; default: yes."""
    return os.environ.get("ALI_CUDA_GRAPHS", "1") != "0"


def has_mps() -> bool:
    """Whether CUDA has been told of a Multi-Process Service ($CUDA_MPS_PIPE_DIRECTORY)."""
    return bool(os.environ.get("CUDA_MPS_PIPE_DIRECTORY"))


def ray_address() -> str | None:
    """$RAY_ADDRESS: the Ray cluster to join; default: this user's on this node, or a new one."""
    return os.environ.get("RAY_ADDRESS") or None


def in_kuberay() -> bool:
    """Whether this is a pod of a Ray cluster on Kubernetes."""
    return bool(os.environ.get(KUBERAY))


def ray_tmpdir() -> Path | None:
    """$RAY_TMPDIR: folder of Ray's sockets and logs; default: ali-UID in $TMPDIR."""
    folder = os.environ.get("RAY_TMPDIR")
    return Path(folder) if folder else None


def tmpdir() -> Path:
    """$TMPDIR: folder of temporary files; default: /tmp."""
    return Path(os.environ.get("TMPDIR") or "/tmp")


def set_defaults(**values: str) -> None:
    """Sets variables that libraries read, where the user has not set them."""
    for name, value in values.items():
        os.environ.setdefault(name, value)


def set_values(**values: str) -> None:
    """Sets variables that libraries read, whatever the user has set."""
    os.environ.update(values)


@contextlib.contextmanager
def temporarily(**values: str) -> Iterator[None]:
    """In the block, variables that a library reads have these values."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, old in before.items():
            if old is None:
                del os.environ[name]
            else:
                os.environ[name] = old
