"""Prints what a sweep found: best trials, importance, how trials ended, and what it cost.

    python sweeps/report.py --name laptop
    make report NAME=laptop

Works while the sweep is running, too; it only reads.
"""

from ali.cli import main, parse_args
from sweeps.engine.options import Location
from sweeps.engine.reporting import show_report

if __name__ == "__main__":
    main(lambda: show_report(parse_args(Location)))
