# make demo        set up dubbing, dub the example         make test        set up everything, run all tests
# make app         set up dubbing, serve a web page
# make test-quick  run the fast tests                     make lint        check style
# make docs        build the website into site/           make lock        resolve requirements.lock anew
# make clean       remove what these made
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip
# On Linux without an NVIDIA GPU, the builds of these packages that have no CUDA: a tenth of the size.
define install_cpu_builds
	if [ "$$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
		$(PIP) install --no-deps --index-url https://download.pytorch.org/whl/cpu --timeout 15 --retries 1 \
			--constraint requirements.lock $(1) || echo "CPU builds not found; installing the ordinary ones"; \
	fi
endef
EXAMPLE := examples/portrait.mp4 examples/speech.wav checkpoints/dinet_64.safetensors
# one process per core with one thread each is faster than the opposite, because the networks of the tests are small
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

.PHONY: demo app test test-quick lint docs lock clean
.DELETE_ON_ERROR:

demo: demo.mp4
	@echo "Dubbed: $(CURDIR)/demo.mp4"

demo.mp4: $(VENV)/.core $(EXAMPLE)
	$(RUN) inference.py --output $@

app: $(VENV)/.app
	$(RUN) app.py

test: $(VENV)/.weights
	$(PYTEST)

test-quick: $(VENV)/.weights
	$(PYTEST) -m "not slow"

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(VENV)/.weights: $(VENV)/.installed utils/weights.py
	$(RUN) -m scripts.download_weights
	@touch $@

docs: $(VENV)/.installed
	$(VENV)/bin/mkdocs build --strict

# what dubbing needs
$(VENV)/.core: pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip
	$(call install_cpu_builds,torch)
	$(PIP) install --constraint requirements.lock --editable .
	@touch $@

# adaptation to the speaker needs train and eval
$(VENV)/.app: $(VENV)/.core
	$(call install_cpu_builds,torch torchvision)
	$(PIP) install --constraint requirements.lock --editable '.[app,train,eval]'
	@touch $@

# face-alignment asks for opencv-python, which needs libGL of a desktop; the headless build of the same release
# takes its place, so that servers and containers need no system packages.
$(VENV)/.installed: $(VENV)/.core requirements.txt
	$(call install_cpu_builds,torch torchvision)
	$(PIP) install --constraint requirements.lock --requirement requirements.txt
	$(PIP) install --constraint requirements.lock --force-reinstall --no-deps opencv-python-headless
	@touch $@

# for all platforms and all versions of Python that pyproject.toml allows
lock: $(VENV)/.installed
	$(PIP) install --quiet uv
	$(RUN) -m uv pip compile --universal --upgrade --no-annotate \
		--custom-compile-command "make lock" --quiet --output-file requirements.lock requirements.txt

clean:
	rm -rf $(VENV) demo.mp4 site .pytest_cache .ruff_cache
