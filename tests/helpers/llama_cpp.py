"""llama.cpp as a judge: one server for one file, asked for tokens, continuations and embeddings."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ.get("LLAMA_CPP", Path(__file__).parents[2] / ".llama-cpp"))


class Judge:
    """Starts llama-server with a GGUF file; use it in a `with`, which ends it."""

    def __init__(self, model: Path, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._log = model.with_suffix(".log").open("w+")
        self._process = subprocess.Popen(
            [FOLDER / "bin" / "llama-server", "-m", model, "--host", "127.0.0.1", "--port", str(self._port), "-np", "1",
             "-c", "0", "--no-warmup", "-t", "2", "-fa", "off", "-ctk", "f32", "-ctv", "f32", *options],
            stdout=self._log, stderr=self._log,
        )  # fmt: skip

    def __enter__(self) -> Judge:
        deadline = time.monotonic() + 60
        while True:
            try:
                self._ask("/health")
                return self
            except (OSError, urllib.error.URLError):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.__exit__()
                    raise AssertionError(f"llama.cpp does not load the file:\n{self._words()[-3000:]}") from None
                time.sleep(0.02)

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait()
        if not exc:
            return
        self._log.close()

    def _words(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def tokens(self, text: str) -> list[int]:
        """Ids of a text, with the special tokens that the model wants around it."""
        answer = self._ask("/tokenize", {"content": text, "add_special": True, "parse_special": True})
        return list(answer["tokens"])

    def continuation(self, prompt: list[int] | str, count: int) -> list[int]:
        """The tokens that follow at temperature 0, the end of the text not heeded."""
        body = {"prompt": prompt, "n_predict": count, "temperature": 0, "top_k": 1, "return_tokens": True,
                "ignore_eos": False, "cache_prompt": False, "repeat_penalty": 1.0}  # fmt: skip
        return list(self._ask("/completion", body)["tokens"])

    def log_probability(self, prompt: list[int], token: int, vocabulary: int) -> float:
        """Of one token after others, natural logarithm."""
        # Probabilities are told with a whole letter alone, not at a text's end or in the middle of one: "a" is sampled
        # whatever they are. A bias does not show in them.
        letter = self._ask("/tokenize", {"content": "a", "add_special": False})["tokens"][0]
        for count in (min(200, vocabulary), vocabulary):  # a whole vocabulary takes long to be told
            body = {"prompt": prompt, "n_predict": 1, "temperature": 0, "n_probs": count, "cache_prompt": True,
                    "logit_bias": [[letter, 1e6]]}  # fmt: skip
            (first,) = self._ask("/completion", body)["completion_probabilities"]
            for one in first["top_logprobs"]:
                if one["id"] == token:
                    return float(one["logprob"])
        raise AssertionError(f"llama.cpp has no token {token}")

    def embedding(self, text: str) -> list[list[float]]:
        """One vector a token (the server is started with --embedding --pooling none)."""
        return list(self._ask("/embedding", {"content": text, "embd_normalize": -1})[0]["embedding"])
