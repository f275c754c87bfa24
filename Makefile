# `make test` and `make demo` each set up .venv and need nothing before them but Python 3.11.
PYTHON ?= python3
BIN := .venv/bin
# half as many again as cores: tests of commands wait for processes of their own
WORKERS ?= $(shell $(PYTHON) -c "import os; print(3 * os.cpu_count() // 2)")
READY := .venv/.installed

.PHONY: test demo lint clean

test: $(READY)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

demo: $(READY)
	$(BIN)/python PCsampling_demo_svd.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy

$(READY): requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -qq -r requirements.txt
	touch $(READY)

clean:
	rm -rf .venv
