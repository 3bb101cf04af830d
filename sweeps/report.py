"""What a sweep found: best trials, importance, how trials ended, and what it cost.

    python sweeps/report.py --name laptop                       tables
    python sweeps/report.py --name laptop --html report.html    a page to share: figures, pictures
    make report NAME=laptop                                     the same tables

Works while the sweep is running, too; it only reads.
"""

from ali.cli import main, parse_args
from sweeps.engine.reporting import ReportOptions, show_report

if __name__ == "__main__":
    main(lambda: show_report(parse_args(ReportOptions)))
