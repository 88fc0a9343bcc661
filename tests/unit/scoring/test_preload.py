"""What a scoring process imports before its first score, and what it does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from helpers.tiny_models import make

_SCORING = """
import json, sys
from pathlib import Path
from evomerge_scoring import child
child.initialise("cpu", warm=True)
before = set(sys.modules)
said = child.generate(Path(sys.argv[1]), "2+2", 2, 1)
made = {name for name in set(sys.modules) - before if not name.startswith("transformers.models.")}
import torch
there = {"torch._dynamo", "torch.distributed.tensor", "sympy", "scipy", "accelerate"} & set(sys.modules)
import torch._dynamo
compiler = hasattr(torch._dynamo, "optimize") and torch.compiler.disable(len)("ab") == 2
print(json.dumps({"tokens": said.tokens, "made": len(made), "there": sorted(there), "compiler": compiler}))
"""


def test_a_first_score_waits_for_no_compiler_and_nothing_else_of_another_second(tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    command = [sys.executable, "-c", _SCORING, str(folder)]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    assert answer["tokens"] == 2
    assert answer["there"] == []
    assert answer["made"] < 30  # the import was the preload's, not the first model's
    assert answer["compiler"]  # it is there for whoever needs it afterwards
