"""Draw what `publishing.py --json FILE` measured.

python tests/benchmarks/plot.py FILE docs/publishing.png
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WORKS = {"tiny": "200 tiny checkpoints", "big": "20 × 100 MB"}
LABELS = {
    "plain": "plain ModelCheckpoint",
    "ours": "lamin-train",
    "lamindb": "lamindb's Checkpoint",
    "mlflow": "MLFlowLogger(log_model=all)",
    "dvclive": "DVCLiveLogger(log_model=all)",
}
COLORS = {"plain": "#9aa0a6", "ours": "#1a7f5a"}


def main() -> None:
    table = json.loads(Path(sys.argv[1]).read_text())
    figure, panels = plt.subplots(2, 2, figsize=(10, 5), layout="constrained", sharey="col")
    for row, (work, title) in zip(panels, WORKS.items(), strict=True):
        cells = table[work]
        ways = [way for way in LABELS if way in cells][::-1]
        for panel, figure_name, unit, scale in [
            (row[0], "blocked_s", "training blocked per save, ms", 1e3),
            (row[1], "whole_s", "whole fit, publishing included, s", 1),
        ]:
            values = [cells[way][figure_name] * scale for way in ways]
            panel.barh(
                [LABELS[way] for way in ways],
                values,
                color=[COLORS.get(way, "#d7a24a") for way in ways],
            )
            for place, value in enumerate(values):
                panel.text(value, place, f" {value:,.3g}", va="center", fontsize=9)
            panel.set_title(f"{title}: {unit}", fontsize=10, loc="left")
            if max(values) > 20 * min(values):
                panel.set_xscale("log")
                panel.set_xlim(min(values) / 2, max(values) * 3)
            else:
                panel.set_xlim(0, max(values) * 1.15)
            panel.spines[["top", "right"]].set_visible(False)
        row[1].tick_params(labelleft=False)
    figure.savefig(sys.argv[2], dpi=130)


if __name__ == "__main__":
    main()
