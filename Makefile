# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv first.
PYTHON ?= python3
BIN := .venv/bin
# Two threads are what the figures in benchmarks/findings/LOG.md were taken with; OpenMP libraries spin against each other beyond the cores.
export OMP_WAIT_POLICY := passive

.PHONY: notebooks gpu light quick venv demo docs reference test test-ray lint clean

venv: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

# Each of two processes takes half of the tests in order, and helps the other at the end: what a file's tests share is nearly always made once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

demo: venv
	$(BIN)/karmafunnel demo --out out/demo

test: venv
	$(PYTEST)

# The documentation site, out/site/index.html. A broken link fails.
docs: venv out/sample/report.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The sample report of the site: two funnels on a generated marketplace
out/sample/report.html: $(wildcard simulator/report/*.py simulator/report/templates/*) | venv
	$(BIN)/karmafunnel world out/sample/log --items 1000 --users 300 --requests 3000
	$(BIN)/karmafunnel replay baseline out/sample/log --out out/sample/baseline --force
	$(BIN)/karmafunnel replay popular out/sample/log --out out/sample/popular --force
	$(BIN)/karmafunnel report out/sample/baseline out/sample/popular --out $@

# docs/reference/cli.md and parts.md, from the code
reference: venv
	$(BIN)/python -m karmafunnel.benchmarks.site.reference

quick: venv
	$(PYTEST) $(shell grep -L "pytest.mark.slow" tests/test_*.py)

# What needs a GPU: throughput, memory, tables with SmolLM2 on a World and on LOGS; figures in out/gpu/gpu.json.
# Without a GPU the same code at a tiny size, in two processes.
gpu: venv
	$(BIN)/python -m karmafunnel.benchmarks.speed.gpu $(LOGS) --out out/gpu

test-ray: venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,ray]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_workers.py

# Run the notebooks of the documentation and keep what they print.
notebooks: venv
	rm -rf out/notebooks && mkdir -p out/notebooks && cp docs/notebooks/*.ipynb out/notebooks
	PYTHONWARNINGS=ignore $(BIN)/jupyter execute --inplace --NotebookClient.record_timing=False out/notebooks/*.ipynb
	cp out/notebooks/*.ipynb docs/notebooks

# The wheel in a clean environment without torch, under another Python: make light PYTHON=python3.13
light:
	$(PYTHON) benchmarks/validation/light.py

lint: venv
	$(BIN)/ruff check .
	mkdir -p .mypy_root && ln -sfn .. .mypy_root/karmafunnel
	MYPYPATH=.mypy_root $(BIN)/mypy -p karmafunnel
	$(BIN)/python -m karmafunnel.benchmarks.site.prose

clean:
	rm -rf .venv .mypy_root out build *.egg-info
