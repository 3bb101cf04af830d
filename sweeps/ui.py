"""Serves MLflow's UI on what was logged, and prints the link that opens each sweep in it.

    python sweeps/ui.py                                    all sweeps in runs/mlflow.db
    python sweeps/ui.py --name laptop                      one of them
    python sweeps/ui.py --tracking-uri http://HEAD:5000    the links alone: a server runs already

A link opens the sweep's trials as a table, the best first; its button "Chart view" shows their
pictures side by side, and below them how the objective depends on what was searched.
"""

from ali.cli import main, parse_args
from sweeps.engine.ui import UiOptions, serve_ui

if __name__ == "__main__":
    main(lambda: serve_ui(parse_args(UiOptions)))
