"""A process of its own that asks some versions at a rate, so that no other load shares its interpreter."""

from __future__ import annotations

import json
import sys

from loadtest.generator import Generator, Target
from loadtest.shapes import poisson_times
from loadtest.shared.__main__ import figures, stream


def main(gateway: str, rate: str, seconds: str, *names: str) -> int:
    target = Target.of(f"{gateway}/v1/predict", marker=b'"prediction"')
    generator = Generator(target, stream(names, seed=11))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    outcomes = generator.open(poisson_times(float(rate), float(seconds), "steady"))
    sys.stdout.write(json.dumps(figures(outcomes)) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
