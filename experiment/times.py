"""Print how long each stage took here, from the records that every command leaves in data/times.

    cd demo && python -m experiment.times

Only the last run of a command counts; a command is a module with its arguments, such as one shard of `infer`. The
report does not show times: they differ from run to run, and the page must not.
"""

import json
from pathlib import Path

import pandas as pd

from experiment.cli import TIMES


def read(folder: Path) -> tuple[list[dict], list[str]]:
    """The records in a folder, oldest first, and the names of files that are none."""
    records, unreadable = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            record = {"module": str(found["module"]), "arguments": tuple(map(str, found["arguments"]))}
            records.append(record | {"seconds": float(found["seconds"]), "date": str(found.get("date", ""))})
        except (OSError, ValueError, KeyError, TypeError):
            unreadable.append(path.name)
    return sorted(records, key=lambda record: record["date"]), unreadable  # stable: equal dates stay in order of names


def table(records: list[dict]) -> pd.DataFrame:
    """A row per stage, in the order in which they first ended: stage, commands, seconds of their last runs."""
    last = {(record["module"], record["arguments"]): record["seconds"] for record in records}
    frame = pd.DataFrame([(module, spent) for (module, _), spent in last.items()], columns=["stage", "seconds"])
    return frame.groupby("stage", sort=False)["seconds"].agg(commands="count", seconds="sum").reset_index()


def main() -> None:
    records, unreadable = read(TIMES)
    if records:
        print(table(records).to_string(index=False, float_format="%.1f"))
        print(f"last run of every command; {sum(table(records)['seconds']):.0f} s in all, in parallel or not")
    else:
        print(f"{TIMES}: no times; run this in an experiment folder, after `dvc repro`")
    if unreadable:
        more = f" and {len(unreadable) - 1} more" if len(unreadable) > 1 else ""
        print(f"warning: {TIMES / unreadable[0]}{more}: not readable, left out; delete them")


if __name__ == "__main__":
    main()
