# One command per job. Every target makes .venv itself and does nothing twice.
PYTHON ?= python3
BIN := .venv/bin
TORCH := torch==2.14.1 torchvision==0.29.1

.PHONY: help demo test check evidence benchmark-input benchmark-train benchmark-monitor learning compare docs clean

help:
	@echo "make demo             set up, run the whole pipeline on synthetic scans, write report.html"
	@echo "make check            lint, types and the fastest tests"
	@echo "make test             everything CI runs: lint, types, all tests"
	@echo "make evidence         what takes longer"
	@echo "make benchmark-input  the input pipeline beside MONAI, nnunetv2 and floors"
	@echo "make benchmark-train  training steps against the matrix peak and MONAI's blocks"
	@echo "make benchmark-monitor the share of a run's time that its monitors take"
	@echo "make learning         what every method learns, beside a random encoder; goes on where the last call ended"
	@echo "make compare          the table of documentation/comparing.md; goes on when stopped"
	@echo "make clean            remove .venv and caches"

.venv/base: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(TORCH)
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

.venv/bench: .venv/base
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	touch $@

demo: .venv/base
	$(BIN)/headct_demo

check: .venv/base
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/base tests/networks tests/volume

test: .venv/base
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --dist loadfile --durations=15

evidence: .venv/base
	$(BIN)/pytest -q -m evidence --durations=0

benchmark-input: .venv/bench
	$(BIN)/python -m benchmarks.input

benchmark-train: .venv/bench
	$(BIN)/python -m benchmarks.train

benchmark-monitor: .venv/base
	$(BIN)/python -m benchmarks.monitor

learning: .venv/base
	$(BIN)/python -m benchmarks.learning

compare: .venv/base
	$(BIN)/python -m benchmarks.comparison

docs: .venv/base
	$(BIN)/python -c "from pathlib import Path; from headctssl.reporting.settings_page import write_settings_page as w; w(Path('documentation/settings.md'))"
	$(BIN)/python -c "from pathlib import Path; from headctssl.reporting.encoders_page import write_encoders_table as w; w(Path('documentation/encoders.md'))"
	$(BIN)/python -c "from pathlib import Path; from headctssl.reporting.methods_page import write_methods_page as w; w(Path('documentation/methods/README.md'))"

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
