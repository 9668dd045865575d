"""The README's tables from benchmarks/results/: ``python benchmarks/table.py [FOLDER]``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from common import RESULTS


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    print("| row | ratio | target | ours | theirs, limit or target | unit | pairs |")
    print("|---|---|---|---|---|---|---|")
    for path in sorted(folder.glob("*.json")):
        for row in json.loads(path.read_text()).get("rows", ()):
            reached = "" if row["target"] is None else f"{row['target']:g}"
            name = f"**{row['name']}**" if row["target"] is not None and row["ratio"] < row["target"] else row["name"]
            print(
                f"| {name} | {row['ratio']:.2f} | {reached} | {row['median_a']:.4g} | {row['median_b']:.4g} "
                f"| {row['unit']} | {len(row['runs'])} |"
            )


if __name__ == "__main__":
    main()
