# make demo        set up and dub the bundled example     make test        set up and run all tests
# make test-quick  run the fast tests                     make lint        check style
# make clean       remove what these made
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python
EXAMPLE := examples/portrait.mp4 examples/speech.wav checkpoints/dinet_64.safetensors
# one process per core with one thread each is faster than the opposite, because the networks of the tests are small
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

.PHONY: demo test test-quick lint clean
.DELETE_ON_ERROR:

demo: demo.mp4
	@echo "Dubbed: $(CURDIR)/demo.mp4"

demo.mp4: $(VENV)/.installed $(EXAMPLE)
	$(RUN) inference.py --output $@

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

# face-alignment asks for opencv-python, which needs libGL of a desktop; the headless build of the same release
# takes its place, so that servers and containers need no system packages.
$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --upgrade pip
	$(VENV)/bin/pip install --requirement requirements.txt
	$(VENV)/bin/pip install --force-reinstall --no-deps "opencv-python-headless>=5.0,<5.1"
	@touch $@

clean:
	rm -rf $(VENV) demo.mp4 .pytest_cache .ruff_cache
