"""What a run of `benchmarks.gpu` found, as a table, as JSON and as a page that needs no network."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment

from ali.files import atomic_write
from benchmarks.gpu_rows import WRONG, Outcome, Row

PEAK = "matrix product, bfloat16"  # row
WHAT = 55  # columns of a row's name
PICTURES = {  # file, in this order: its title
    "val_error.png": "val_error of the training",
    "samples.png": "samples",
    "reconstructions.png": "reconstructions",
    "interpolations.png": "interpolations",
}


@dataclass(frozen=True)
class SectionResult:
    name: str
    about: str
    seconds: float
    rows: list[Row]

    @property
    def summary(self) -> str:
        """How many rows of which kind, in a line."""
        kinds = [row.outcome for row in self.rows]
        parts = [f"{kinds.count(kind)} {kind.value}" for kind in Outcome if kind in kinds]
        return f"{', '.join(parts) or 'nothing'}, {self.seconds:.0f} s"


@dataclass
class Report:
    folder: Path
    started: str
    command: str
    device: str
    small: bool
    sections: list[SectionResult] = field(default_factory=list)

    @property
    def peak(self) -> float | None:
        """TFLOP/s of bf16 matrix products."""
        found = [row.value for one in self.sections for row in one.rows if row.what == PEAK]
        return found[0] if found else None

    @property
    def machine(self) -> dict[str, Any]:
        """The device and its libraries, as the first section read them."""
        rows = [row for one in self.sections for row in one.rows if "device" in row.details]
        return rows[0].details if rows else {}

    @property
    def title(self) -> str:
        name = self.machine.get("device", self.device)
        return f"{name}, PyTorch {self.machine.get('torch', 'unknown')}, {self.started[:10]}"

    @property
    def warning(self) -> str:
        """What keeps the figures from being a GPU's, if anything does."""
        if self.device != "cuda":
            return "On a CPU: this shows that the command works, and is no figure of a GPU."
        return "Small networks: this shows that the command works." if self.small else ""

    def write(self) -> None:
        """gpu.json and gpu.html, each all or nothing."""
        plain = {name: getattr(self, name) for name in ("started", "command", "device", "small")}
        plain |= {"machine": self.machine, "peak_tflops_bf16": self.peak}
        plain["sections"] = [dataclasses.asdict(one) for one in self.sections]
        with atomic_write(self.folder / "gpu.json") as path:
            path.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
        with atomic_write(self.folder / "gpu.html") as path:
            path.write_text(self.page(), encoding="utf-8")

    def page(self) -> str:
        made = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        return made.from_string(TEMPLATE).render(
            report=self, pictures=list(self._pictures()), wrong=WRONG
        )

    def _pictures(self) -> Iterator[tuple[str, str]]:
        for name, title in PICTURES.items():
            if (self.folder / name).exists():
                yield title, base64.b64encode((self.folder / name).read_bytes()).decode()

    def table(self) -> str:
        """All rows: what, the figure, its share of the peak, what else one has to know."""
        lines = [self.title, f"{'':{WHAT}} {'found':>15}  {'of peak':>7}"]
        for one in self.sections:
            lines += ["", f"{one.name}: {one.about}"]
            for row in one.rows:
                cells = (
                    f"  {row.what:{WHAT - 2}} {row.figure:>15}  {row.peak_share:>7}  {row.remark}"
                )
                lines.append(cells.rstrip())
        return "\n".join([*lines, *filter(None, ["", self.warning])])


TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>ALI on {{ report.title }}</title>
<style>
  :root { color-scheme: light dark; --line: #8884; --soft: #777; --bar: #0072b233 }
  :root { --bad: #c2410c }
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto }
  body { padding: 0 1rem }
  h1 { font-size: 1.4rem; margin: 0 } h2 { font-size: 1.05rem; margin: 2rem 0 .3rem }
  p { margin: .3rem 0 } .soft, figcaption { color: var(--soft) }
  .warning { border-left: 4px solid var(--bad); padding: .2rem .8rem; margin: 1rem 0 }
  .wide { overflow-x: auto }
  table { border-collapse: collapse; table-layout: fixed; width: 100%; min-width: 46rem }
  td, th { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line) }
  td, th { text-align: left; vertical-align: top }
  th { color: var(--soft); font-weight: normal; font-size: .85em }
  th:nth-child(1) { width: 38% } th:nth-child(2) { width: 9rem } th:nth-child(3) { width: 5rem }
  td:nth-child(2), th:nth-child(2), td:nth-child(3), th:nth-child(3) { text-align: right }
  td:nth-child(2), td:nth-child(3) { font-variant-numeric: tabular-nums; white-space: nowrap }
  td:nth-child(3), th:nth-child(3) { padding-right: .4rem }
  td:nth-child(4) { padding-left: 1.2rem }
  tr.wrong td { color: var(--bad) } tr.skipped td { color: var(--soft) }
  figure { display: inline-block; margin: 1rem 1rem 0 0; vertical-align: top }
  img { max-width: 100%; height: auto } code { font-size: .9em; overflow-wrap: anywhere }
  @media print { body { margin: 0; max-width: none } h2 { break-after: avoid } }
</style>
<h1>ALI on {{ report.title }}</h1>
{% set machine = report.machine %}
<p class="soft">{{ machine.get("cores", "?") }} CPU cores
{%- if machine.cuda %}, CUDA {{ machine.cuda }}, cuDNN {{ machine.cudnn }}{% endif %}
{%- if report.peak %}; the peak that shares are of is what bf16 matrix products reached in this run:
{{ "%.3g"|format(report.peak) }} TFLOP/s{% endif %}.</p>
{% if report.warning %}
<p class="warning">{{ report.warning }}</p>
{% endif %}
{% for section in report.sections %}
<h2>{{ section.name }}: {{ section.about }}</h2>
<div class="wide"><table>
{% set shares = section.rows | selectattr("share") | list %}
<tr><th></th><th>found</th><th>{{ "of peak" if shares }}</th><th></th></tr>
{% for row in section.rows %}
<tr class="{{ "wrong" if row.outcome in wrong else row.outcome }}">
<td>{{ row.what }}</td><td>{{ row.figure }}</td>
<td{% if row.share %} style="background: linear-gradient(to right, var(--bar) {{
 "%.1f"|format(100 * [row.share, 1]|min) }}%, transparent 0)"{% endif %}>{{ row.peak_share }}</td>
<td>{{ row.remark }}</td></tr>
{% endfor %}
</table></div>
{% endfor %}
{% if pictures %}
<h2>After the training</h2>
{% for title, content in pictures %}
<figure><img alt="{{ title }}" src="data:image/png;base64,{{ content }}">
<figcaption>{{ title }}</figcaption></figure>
{% endfor %}
{% endif %}
<p class="soft">Started {{ report.started }} with <code>{{ report.command }}</code></p>
</html>
"""
