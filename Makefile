# `make test` and `make demo` each set up .venv and need nothing before them but Python 3.11.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed

.PHONY: test demo lint clean

test: $(READY)
	$(BIN)/python -m pytest -q -n auto

demo: $(READY)
	$(BIN)/python PCsampling_demo_svd.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy

$(READY): requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements.txt
	touch $(READY)

clean:
	rm -rf .venv
