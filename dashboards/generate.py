#!/usr/bin/env python3
"""Writes the dashboards next to this file from the Python in `src/`; with `--check`, says which are out of date."""

import argparse
import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "src"))

import capacity  # noqa: E402
import cluster  # noqa: E402
import groups  # noqa: E402
import overview  # noqa: E402
import performance  # noqa: E402
import telemetry  # noqa: E402
import topic  # noqa: E402

DASHBOARDS = [module.DASHBOARD for module in (overview, performance, capacity, groups, cluster, topic, telemetry)]


def files():
    """Each file's path and what belongs into it."""
    for made in DASHBOARDS:
        yield HERE / f"{made['uid']}.json", json.dumps(made, indent=2, sort_keys=True) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is out of date")
    check = parser.parse_args().check
    wanted = dict(files())
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    unknown = [path for path in HERE.glob("*.json") if path not in wanted]
    if check:
        for path in stale + unknown:
            print(f"{path.name} is not what dashboards/generate.py makes", file=sys.stderr)
        return 1 if stale or unknown else 0
    for path in stale:
        path.write_text(wanted[path])
    for path in unknown:
        path.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
