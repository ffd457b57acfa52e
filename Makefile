# make demo   install what is missing, and show what lazyfs does
# make test   install what is missing, check the code, and run all tests
# make quick  the tests of pure modules and of the seams, in under a minute
# make test-guest  the tests in a virtual machine, at full length (about an hour)
# make test-packages  the Debian packages on fresh machines (about half an hour)
# make soak   the campaigns at full length: faults, kills, damage (about ten minutes)
# make venv   lazyfs in .venv, and nothing else
# make check  style, types and import rules
# make bench        measure beside other tools, three times (as root; takes some hours)
# make bench-quick  the important cells once, in under 5 minutes
# make docs   the documentation as a site, in build/docs
# make man    the manual pages, in build/man
# make clean  remove what was made here (system packages stay)
#
# PYTHON=/usr/bin/python3 chooses the interpreter (3.11 or later); ARGS='-k loop' goes to pytest.

PYTHON ?= python3
ARGS ?=

CAMPAIGNS := $(addprefix tests/faults/test_,power.py damage.py campaign.py crashes.py soak.py edges.py)
BIN := .venv/bin
LOG := build/make.log
WITH_TESTS := .[test,docs]
NEED := PYTHON='$(PYTHON)' contrib/need-packages
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --root-user-action=ignore

# $(call step,what,command): one line when it goes well, and everything that was said when not.
step = @mkdir -p $(dir $(LOG)) && : >$(LOG) || exit 1; echo '  $(1)'; \
	{ $(2); } >$(LOG) 2>&1 || { cat $(LOG); echo '  failed: $(1)'; exit 1; } >&2

.PHONY: demo test quick test-guest test-packages soak check venv docs man clean bench bench-quick packages-run packages-test \
	packages-guest packages-live packages-debian packages-bench
.DELETE_ON_ERROR:
.NOTPARALLEL:

demo: venv
	@$(BIN)/lazyfs demo

test: packages-test packages-guest packages-debian check
	@$(BIN)/python -m pytest $(ARGS)

quick: .venv/with-tests
	@PYTHONHASHSEED=0 LAZYFS_HYPOTHESIS=quick $(BIN)/python -m pytest --quiet -n 6 \
		tests/pure tests/seams $(ARGS)

test-guest: packages-test packages-guest packages-live .venv/with-tests
	@LAZYFS_CAMPAIGN=long $(BIN)/python -m pytest tests/guest $(ARGS)

test-packages: packages-test packages-debian packages-live .venv/with-tests
	@LAZYFS_CAMPAIGN=long $(BIN)/python -m pytest tests/packaging $(ARGS)

soak: packages-test .venv/with-tests
	@LAZYFS_CAMPAIGN=long $(BIN)/python -m pytest $(CAMPAIGNS) $(ARGS)

bench bench-quick: venv packages-bench
	@mkdir -p build
	@$(BIN)/python -m bench $(if $(filter bench-quick,$@),--quick) \
		--json build/$@.json --svg build/$@.svg $(ARGS)

check: .venv/with-tests
	$(call step,style,$(BIN)/ruff check . && $(BIN)/ruff format --check .)
	$(call step,types,$(BIN)/mypy)
	$(call step,import rules,$(BIN)/python -m pytest --quiet tests/pure/test_house.py)

docs: .venv/with-tests
	$(call step,the documentation in build/docs,$(BIN)/sphinx-build -W --keep-going -q docs build/docs)

man: .venv/with-tests
	$(call step,manual pages,$(BIN)/python docs/man/build.py build/man)

venv: .venv/ready

.venv/ready: setup.cfg pyproject.toml | packages-run
	$(call step,a virtual environment for lazyfs,$(PYTHON) -m venv --clear .venv)
	$(call step,lazyfs and what it stands on,$(PIP) --editable .)
	@touch $@

.venv/with-tests: .venv/ready
	$(call step,what the tests stand on,$(PIP) --editable '$(WITH_TESTS)')
	@touch $@

packages-run:
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo '$(PYTHON) is not Python 3.11 or later: see make PYTHON=...' >&2; exit 1; }
	$(call step,system packages,$(NEED) run)

packages-test:
	$(call step,system packages for the tests,$(NEED) test)

packages-guest:
	$(call step,what a virtual machine needs,$(NEED) guest)

packages-live:
	$(call step,what makes a live system,$(NEED) live)

packages-debian:
	$(call step,what builds Debian packages,$(NEED) debian)

packages-bench:
	$(call step,the tools to compare with,$(NEED) bench)

clean:
	rm -rf .venv build dist lazyfs.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
