"""Planning reads headers and says what is wrong; it must not cost the second that torch takes to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from helpers.tiny_merging import random_tensors, raw_model

_PLAN = """
import sys
from pathlib import Path
sys.modules["torch"] = None  # an import of it fails
from evomerge_merging import plan_merge, read_recipe_file
print(plan_merge(read_recipe_file(Path(sys.argv[1]))).bytes)
"""


def test_a_plan_is_made_without_torch(tmp_path: Path) -> None:
    model = raw_model(tmp_path / "a", random_tensors(0, 300))
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(f"merge_method: linear\nmodels:\n- {{model: {model}, parameters: {{weight: 1}}}}\n")
    done = subprocess.run([sys.executable, "-c", _PLAN, str(recipe)], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 0
