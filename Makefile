# `make demo` shows the whole product, `make test` checks it. Both need only python3 and make.

PYTHON ?= python3
MODEL ?= qwen2.5-coder-1.5b
BIN := .venv/bin

.PHONY: demo up test coverage lint format bench bench-gas torture ollama contracts clean

demo: $(BIN)/.ready
	@$(BIN)/tollseal demo --model '$(MODEL)' $(if $(FILE),'$(FILE)')

up: $(BIN)/.ready
	@$(BIN)/tollseal up --model '$(MODEL)'

test: $(BIN)/.ready
	@$(BIN)/pytest -n 2 --dist loadgroup $(ARGS)

coverage: $(BIN)/.ready
	@mkdir -p .tollseal
	@$(BIN)/coverage run -m pytest -m 'not hypothesis' tests/unit tests/vectors
	@$(BIN)/coverage report

lint: $(BIN)/.ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(BIN)/.ready
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(BIN)/.ready
	@$(BIN)/python -m bench

bench-gas: $(BIN)/.ready
	@$(BIN)/python -m bench.gas

torture: $(BIN)/.ready
	@$(BIN)/python -m bench.torture $(ARGS)

# A real Ollama for the tests, built from source: needs Go and a C++ compiler, and takes a quarter of an hour once.
ollama: $(BIN)/.ready
	@$(BIN)/python scripts/ollama.py

contracts: $(BIN)/.ready
	@$(BIN)/python -m service.localchain.contracts

clean:
	rm -rf .venv .tollseal bench/out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# The environment is made anew whenever the lock file changes.
$(BIN)/.ready: uv.lock pyproject.toml scripts/bootstrap.py
	@$(PYTHON) scripts/bootstrap.py --extra dev
	@touch $@
