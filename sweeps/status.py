"""Prints the state of a sweep, from any machine that reaches its MLflow server.

    python sweeps/status.py --name svhn
    python sweeps/status.py --name svhn --tracking-uri http://HEAD:5000

It reads MLflow only, no file of the sweep.
"""

from ali.cli import main, parse_args
from sweeps.engine.options import Location
from sweeps.engine.status import show_status

if __name__ == "__main__":
    main(lambda: show_status(parse_args(Location)))
