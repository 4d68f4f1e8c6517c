# make demo, make test: need Python >= 3.10 and make; both set up .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := build/demo
DEMO_TEXT := "[an orange square] , [an orange triangle] and [a blue diamond]"

.PHONY: demo test lint wheel clean

demo: $(READY)
	rm -rf $(DEMO)
	$(BIN)/hf-grounding train multilevel_scenes --num_train_epochs 5 --output_dir $(DEMO)/multilevel_scenes
	$(BIN)/hf-grounding evaluate $(DEMO)/multilevel_scenes --split test
	$(BIN)/hf-grounding ground docs/scene.png $(DEMO_TEXT) --model $(DEMO)/multilevel_scenes \
		--draw $(DEMO)/multilevel_scenes/grounding.png
	$(BIN)/hf-grounding train mia_scenes --num_train_epochs 5 --output_dir $(DEMO)/mia_scenes
	$(BIN)/hf-grounding evaluate $(DEMO)/mia_scenes --split test
	$(BIN)/hf-grounding train ss_attention_scenes --num_train_epochs 6 --output_dir $(DEMO)/ss_attention_scenes
	$(BIN)/hf-grounding evaluate $(DEMO)/ss_attention_scenes --split test
	$(BIN)/hf-grounding train vqa_scenes --mia_iterations 0 --question_hidden_size 128 --per_device_train_batch_size 64 \
		--num_train_epochs 3 --dataset.options.num_train 2500 --dataset.options.num_val 300 \
		--dataset.options.num_test 300 --output_dir $(DEMO)/vqa_scenes
	$(BIN)/hf-grounding evaluate $(DEMO)/vqa_scenes --split test

test: $(READY)
	$(BIN)/python -m pytest -q

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: $(READY)
	$(BIN)/python -m build --no-isolation --outdir dist .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache

$(READY): setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@
