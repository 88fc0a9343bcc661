"""Runs in mergekit's own environment: `python run_mergekit.py JOBS.json`, a list of [config file, output folder]."""

import json
import sys
import traceback
from pathlib import Path

import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge


def main() -> int:
    failed = {}
    for config, out in json.loads(Path(sys.argv[1]).read_text()):
        try:
            parsed = MergeConfiguration.model_validate(yaml.safe_load(Path(config).read_text()))
            run_merge(parsed, out, options=MergeOptions(copy_tokenizer=False, quiet=True, random_seed=0))
        except Exception:
            failed[config] = traceback.format_exc()
    Path(sys.argv[1]).with_suffix(".failed.json").write_text(json.dumps(failed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
