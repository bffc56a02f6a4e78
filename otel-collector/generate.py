#!/usr/bin/env python3
"""Writes into push.yaml which name each metric gets; with `--check`, says whether that is out of date."""

import argparse
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
FILE = HERE / "push.yaml"
CATALOGUE = HERE.parent / "docs" / "METRICS.md"
BEGIN, END = "      # made: begin\n", "      # made: end\n"


def statements():
    """A line for each metric of the catalogue."""
    rows = re.findall(r"^\| `([a-z_]+)` \| `([a-z_.]+)` \| \w+ \|", CATALOGUE.read_text(), re.M)
    return "".join(
        f"""      - 'set(metric.name, "{name}") where metric.name == "{otel}"'\n""" for name, otel in rows
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the file is out of date")
    check = parser.parse_args().check
    text = FILE.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    wanted = before + BEGIN + statements() + END + after
    if check and wanted != text:
        print("push.yaml is not what otel-collector/generate.py makes", file=sys.stderr)
        return 1
    if wanted != text:
        FILE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
