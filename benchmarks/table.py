"""The README's table from benchmarks/results/*.json: ``python benchmarks/table.py``."""

from __future__ import annotations

import json

from common import RESULTS


def main() -> None:
    print("| row | ratio | target | ours | theirs, limit or target | unit | pairs |")
    print("|---|---|---|---|---|---|---|")
    for path in sorted(RESULTS.glob("*.json")):
        for row in json.loads(path.read_text()).get("rows", ()):
            reached = "" if row["target"] is None else f"{row['target']:g}"
            name = f"**{row['name']}**" if row["target"] is not None and row["ratio"] < row["target"] else row["name"]
            print(
                f"| {name} | {row['ratio']:.2f} | {reached} | {row['median_a']:.4g} | {row['median_b']:.4g} "
                f"| {row['unit']} | {len(row['runs'])} |"
            )


if __name__ == "__main__":
    main()
