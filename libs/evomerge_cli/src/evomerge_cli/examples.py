"""What is typed most, shown below each command's help; a test reads every line with the parser itself."""

from __future__ import annotations

EXAMPLES = {
    "demo": """\
  evomerge demo                                 three experts of one base model, made here, in ./evomerge-demo
  evomerge demo --out d --open                  and its live page in the browser""",
    "run": """\
  evomerge run run.yaml --out out               everything on this machine; Ctrl-C, then the same again: it goes on
  evomerge run --model1 org/a --model2 ./b --suite tasks.yaml --evaluations 64 --seed 1
  evomerge run run.yaml --out out --json        progress on stderr, the result as one JSON object on stdout
  evomerge run run.yaml --server host:50051     on a stack that is up elsewhere""",
    "merge": """\
  evomerge merge recipe.yaml merged --dry-run   what goes where, memory, disk, time
  evomerge merge mergekit.yml merged""",
    "evaluate": """\
  evomerge evaluate ./merged --suite tasks.yaml --split holdout
  evomerge evaluate org/name --json scores.json""",
    "generate": """\
  evomerge generate out/model --prompt "2 + 2 =" --max-new-tokens 8
  evomerge generate out/model --chat --prompt "Who wrote Faust?\"""",
    "init": """\
  evomerge init                                 evomerge.yaml, to be edited
  evomerge init run.yaml --interactive          asks""",
    "up": """\
  evomerge up && evomerge run run.yaml --server 127.0.0.1:50051""",
    "down": """\
  evomerge down""",
    "status": """\
  evomerge status --json""",
    "runs": """\
  evomerge runs list
  evomerge runs watch run-1a2b                  full screen: q leaves, p pauses, r resumes
  evomerge runs trace out""",
    "runs list": """\
  evomerge runs list --json""",
    "runs show": """\
  evomerge runs show run-1a2b""",
    "runs watch": """\
  evomerge runs watch run-1a2b                  a run of the stack that is up
  evomerge runs watch out                       a finished run, from its folder""",
    "runs events": """\
  evomerge runs events run-1a2b > events.jsonl""",
    "runs lineage": """\
  evomerge runs lineage out
  evomerge runs lineage out --candidate 3f9c""",
    "runs trace": """\
  evomerge runs trace out --out timeline.svg""",
    "runs pause": """\
  evomerge runs pause run-1a2b""",
    "runs resume": """\
  evomerge runs resume run-1a2b""",
    "runs finish": """\
  evomerge runs finish run-1a2b --reason "good enough\"""",
    "runs cancel": """\
  evomerge runs cancel run-1a2b""",
    "report": """\
  evomerge report out
  evomerge report run-1a2b --out report-1a2b""",
    "compare": """\
  evomerge compare out-a out-b --out compared.html""",
    "export": """\
  evomerge export out merged                    the champion as a Hugging Face folder
  evomerge export out merged.gguf --gguf q8_0   for llama.cpp
  evomerge export out adapter --adapter --rank 16""",
    "push": """\
  evomerge push out me/my-merge --dry-run       what would be sent where, under which licence
  evomerge push out me/my-merge                 the champion of the run in out/, to a private repository
  evomerge push out me/my-merge --public --gguf-repo
  evomerge push ./merged me/my-merge --branch v2 --message "with more maths"

The token: HF_TOKEN, or `hf auth login`. A push that was interrupted goes on when it is typed again.""",
    "gguf": """\
  evomerge gguf inspect model.gguf""",
    "gguf inspect": """\
  evomerge gguf inspect model.gguf --json""",
    "models": """\
  evomerge models list
  evomerge models pin org/name""",
    "models list": """\
  evomerge models list --json""",
    "models pin": """\
  evomerge models pin org/name""",
    "models unpin": """\
  evomerge models unpin org/name --all""",
    "models evict": """\
  evomerge models evict org/name""",
    "extract-lora": """\
  evomerge extract-lora ./finetuned --base org/base --rank 32 --out adapter""",
    "doctor": """\
  evomerge doctor""",
    "bench": """\
  evomerge bench                                which there are
  evomerge bench merge --size 0.4""",
    "completion": """\
  evomerge completion bash > ~/.local/share/bash-completion/completions/evomerge
  evomerge completion zsh > "${fpath[1]}/_evomerge"
  evomerge completion fish > ~/.config/fish/completions/evomerge.fish""",
    "help": """\
  evomerge help run
  evomerge help runs watch""",
}
"""Lines by command, or by command and action."""
