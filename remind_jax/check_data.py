"""Validates a manifest folder: every problem with its row, its column and what to do about it.

    remind check DIR [--json] [--bad-files=missing] [--window=percentile]

    DIR                  holds schema.yaml and manifest.csv or manifest.parquet
    --json               print one JSON object: ok, findings (code, message, fatal), counts; or ok
                         and error
    --bad-files=refuse   refuse | missing: what training does with files that cannot be read, as
                         data.bad_files
    --window=stored      stored | dicom | percentile: how values of pictures become bytes, as
                         data.window

Every file is decoded. The exit code is 2 when training is refused.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from remind_jax import cli
from remind_jax.data import check, examine, reading
from remind_jax.data.kinds import images
from remind_jax.errors import UserError
from remind_jax.runtime import progress


def run(arguments: Sequence[str]) -> int:
    """Checks the folder that `arguments` name, prints what was found, and returns the exit code (0 or 2)."""
    parser = cli.Parser("remind check DIR [--json] [--bad-files=missing] [--window=percentile]")
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--bad-files", choices=reading.BAD_FILES, default="refuse")
    parser.add_argument("--window", choices=images.WINDOWS, default="stored")
    options = parser.parse_args(arguments)
    how = {"bad_files": options.bad_files, "window": options.window}
    try:
        with progress.make(0, "reading files", not options.json) as bar:
            manifest = reading.load_manifest(options.folder, **how, count=bar.count)
    except UserError as error:
        if options.json:
            print(json.dumps({"ok": False, "error": str(error)}))
        raise
    findings, summary = examine.examine(manifest)
    refused = any(finding.fatal for finding in findings)
    if options.json:
        print(json.dumps({"ok": not refused, "findings": [dataclasses.asdict(f) for f in findings], **summary}))
    else:
        _print(findings, summary)
    return 2 if refused else 0


def _print(findings: Sequence[check.Finding], summary: dict[str, Any]) -> None:
    print(f"{summary['name']}: {summary['samples']} samples of {summary['patients']} patients")
    for title in ("classes", "label", "modalities", "combinations", "splits"):
        if title in summary:
            print(f"  {title}: " + ", ".join(f"{name} {count}" for name, count in summary[title].items()))
    for finding in findings:
        print(f"{'error' if finding.fatal else 'warning'} {finding.code}: {finding.message}")
    fatal = sum(finding.fatal for finding in findings)
    counted = ", ".join(
        f"{n} {name}{'' if n == 1 else 's'}" for n, name in ((fatal, "error"), (len(findings) - fatal, "warning"))
    )
    print(counted + ("; fix the errors first" if fatal else "; the data can be used"))


def main(arguments: list[str]) -> None:
    """Runs the command line given without the program's name, and ends the process where training is refused."""
    code = run(arguments)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    cli.run(main, __doc__)
