# LifeLab. Two commands are all a newcomer needs: make demo, make test.
PY     ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
PIP     = $(VENV)/bin/python -m pip --disable-pip-version-check -q
PROFILE ?= starter

.PHONY: help demo test lab docs lint readme browser clean
.DELETE_ON_ERROR:

help:
	@echo "make demo   environment, starter data, all eight stages, a report and a model to ask (twenty to twenty-five minutes on two cores)"
	@echo "make test   every test (from nothing)"
	@echo "make lab    JupyterLab on the stage notebooks"
	@echo "make lint   the rules of the house: names, import order, budgets, notebooks in step with the package"
	@echo "make docs   the site in _docs/: notebooks with their outputs, data cards, the mix, the evaluation card (LAB=lab/starter)"
	@echo "make readme README.md from nbs/index.ipynb"
	@echo "make clean  remove the environment and built files (your lab/ stays)"

$(VENV)/bin/python:
	@test -n "$(PY)" || { echo "Python 3.11 or newer is needed: on Debian, apt-get install python3.11-venv"; exit 1; }
	@$(PY) -c 'import sys; sys.exit(sys.version_info<(3,11))' || { echo "$(PY) is older than Python 3.11: make PY=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PY) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python settings.ini setup.py constraints.txt
	@echo "Installing LifeLab into $(VENV) (about two minutes)"
	@$(PIP) install -c constraints.txt -e '.[lab]'
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@echo "Adding the development tools"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.run
	@$(VENV)/bin/lifelab run --profile $(PROFILE)

test: $(VENV)/.dev lint browser
	@$(VENV)/bin/python tools/notebook_tests.py
	@$(VENV)/bin/python -m pytest -q -rs -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder tests

lab: $(VENV)/.run
	$(VENV)/bin/jupyter lab nbs --MappingKernelManager.root_dir="$(CURDIR)"

# The page, site and JupyterLab tests drive a browser; where it cannot be installed they say so and their counterparts run.
browser:
	@{ command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null 2>&1 || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium >/dev/null; }; } \
		|| echo "no Chromium here: the browser tests will be skipped (on Debian: apt-get install chromium)"

lint: $(VENV)/.dev
	@$(VENV)/bin/python tools/lint.py

docs: $(VENV)/.dev
	@$(VENV)/bin/python tools/site.py

readme: $(VENV)/.dev
	$(VENV)/bin/python tools/readme.py

clean:
	rm -rf $(VENV) .venv-lint build dist *.egg-info .pytest_cache .hypothesis
