"""Opens a sweep in Optuna's dashboard: a copy of its study that follows a running sweep.

    python sweeps/dashboard.py --name laptop
    make dashboard NAME=laptop

It needs optuna-dashboard, which `make dashboard` installs.
"""

from ali.cli import main, parse_args
from sweeps.engine.dashboard import DashboardOptions, show_dashboard

if __name__ == "__main__":
    main(lambda: show_dashboard(parse_args(DashboardOptions)))
