"""How memory and time of a batch job grow with its rows: applicants for `credit` 1.0, from ten thousand rows up.

    python -m loadtest.batch.sizes --rows 10000 500000 10000000

One JSON line per size: seconds from the command's start to its end, rows a second, processor seconds by kind of
process, and the most memory that a process of each kind had for itself (USS).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from loadtest.batch.jobs import finish
from loadtest.batch.rows import applicants
from loadtest.stack import ARCHIVES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 500_000, 5_000_000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sizes-") as work:
        folder = Path(work)
        for rows in options.rows:
            path = folder / f"{rows}.parquet"
            applicants(path, rows)
            done = finish(ARCHIVES / "credit-1.0.mar", [path], folder / f"out-{rows}", "--key", "id")
            told = {"rows": done.rows, "seconds": done.seconds, "rows_per_s": round(done.rows / done.seconds)}
            units = {
                "unit_rows": done.manifest["settings"]["unit_rows"],
                "in_units_cpu_s": done.manifest["cpu_seconds"],
            }
            print(json.dumps(told | units | {"cpu_s": done.cpu_s, "peak_mib": done.peak_mib}), flush=True)
            path.unlink()


if __name__ == "__main__":
    main()
