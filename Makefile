# The menu. `make` or `make help` shows it.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

export LLM_SURGEON_CACHE := $(abspath $(or $(LLM_SURGEON_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/llm-surgeon))
CACHE := $(LLM_SURGEON_CACHE)

# One profile everywhere: torch-sys takes minutes to compile, so it is compiled once.
CARGO ?= cargo
NEXTEST := $(shell command -v cargo-nextest 2>/dev/null)
TEST_FLAGS ?=

# make demo TARGET_SIZE=0.7 SHOTS=8 DEMO_ARGS="--shape per-layer"
MODEL ?= $(CACHE)/models/SmolLM2-135M-Instruct
TARGET_SIZE ?= 0.8
SHOTS ?= 4
SAMPLES ?= 32
SEQ_LEN ?= 512
DEMO_OUT ?= demo-out
DEMO_ARGS ?=

.PHONY: help
help: ## Show this menu
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  Cache (libtorch, builds, models, text): $(CACHE)"
	@echo "  Another one: LLM_SURGEON_CACHE=DIR. Own libtorch: LIBTORCH=DIR. CPU or CUDA set: LLM_SURGEON_CUDA=0|1."

# ---- use -------------------------------------------------------------------------------------------------------------

.PHONY: setup
setup: ## Check the tools, put libtorch into the cache (VERIFY=1: check its digests again)
	@scripts/setup.sh

.PHONY: build
build: setup ## Build llm-surgeon
	@$(CARGO) build --release --workspace --bins

.PHONY: demo
demo: build demo-model demo-data ## Prune SmolLM2-135M to 80 % and print what it cost (TARGET_SIZE, SHOTS, SAMPLES, SEQ_LEN, DEMO_ARGS)
	@scripts/demo.sh "$(MODEL)" "$(DEMO_OUT)" --target-size $(TARGET_SIZE) --shots $(SHOTS) --samples $(SAMPLES) --seq-len $(SEQ_LEN) $(DEMO_ARGS)

.PHONY: demo-model
demo-model: ## Make SmolLM2-135M-Instruct in the cache
	@scripts/demo_model.sh SmolLM2-135M-Instruct

.PHONY: demo-data
demo-data: ## Put the State of the Union addresses into the cache
	@scripts/demo_data.sh

# ---- check -----------------------------------------------------------------------------------------------------------

.PHONY: test
test: setup test-models check-output test-python test-clients test-observability ## Everything but lint; the test runner's summary comes last
ifdef NEXTEST
	@$(CARGO) test --release --workspace --doc --quiet
	@$(CARGO) nextest run --release --workspace --no-fail-fast $(TEST_FLAGS)
else
	@$(CARGO) test --release --workspace --no-fail-fast $(TEST_FLAGS)
endif

# Binaries and tests in one go: the end-to-end tests run the binary, and one set of features is compiled once.
.PHONY: build-tests
build-tests: setup
	@$(CARGO) build --release --workspace --bins --tests

.PHONY: test-models
test-models: ## Put what tests need into the cache: glassllm-en, a small trained model; moto, a server like S3; rotel, a collector; libfaketime
	@scripts/demo_model.sh glassllm-en
	@scripts/moto.sh
	@scripts/rotel.sh
	@scripts/faketime.sh

.PHONY: check-output
check-output: build-tests test-models ## Prune glassllm and check the folders with transformers' AutoConfig, without torch
	@scripts/check_output.sh

.PHONY: test-observability
test-observability: build-tests test-models ## Real services scraped by a real Prometheus: what they tell, every panel, every alert (prometheus, curl)
	@scripts/test_observability.sh

.PHONY: check-k8s
check-k8s: build ## Render k8s/, check it against the schemas and the programs' flags (kubectl), dashboards and alerts (promtool, npm)
	@scripts/k8s.sh
	@scripts/check_observability.sh

.PHONY: images-check
images-check: build test-models ## The images' root file systems without a container engine: every library is there, a run over three containers
	@scripts/images.sh check

.PHONY: images-sbom
images-sbom: build ## Bills of materials of the images, CycloneDX 1.6 (OUT=sbom)
	@scripts/images.sh sbom $(or $(OUT),sbom)

.PHONY: images-lint
images-lint: ## hadolint over the Containerfiles; whether their Rust is that of rust-toolchain.toml
	@scripts/images.sh lint

.PHONY: dashboards
dashboards: ## Write the dashboards below k8s/observability
	@python3 scripts/dashboards.py

.PHONY: test-python
test-python: build-tests test-models ## The Python client: its stubs as proto/ gives them, its types, its tests against real services
	@scripts/test_python.sh

.PHONY: test-clients
test-clients: build-tests test-models ## The clients in Go and Node: types, vet, runs against real services (fetches Go from Debian's packages, 95 MB)
	@scripts/test_clients.sh

.PHONY: fuzz
fuzz: setup ## Fuzz what parses bytes from outside: files, configs, texts, records, messages, streams (FUZZ_ARGS="180 journal": seconds, targets)
	@scripts/fuzz.sh $(FUZZ_ARGS)

.PHONY: test-faults
test-faults: build-tests test-models ## The fault suite on real processes, and how many faults it put in (a quarter of an hour; FAULTS_ARGS=cut: tests so named)
	@scripts/faults.sh $(FAULTS_ARGS)

.PHONY: soak
soak: build test-models ## 200 small runs while 1,000 watch and strangers knock: memory, times, refusals (ten minutes; SOAK_ARGS="1000 --delete")
	@scripts/soak.sh $(SOAK_ARGS)

.PHONY: test-hosts
test-hosts: build test-models ## Hosts as network namespaces, mTLS, each cut off for 30 s: the same digest (root, iproute2; HOSTS_ARGS="--cut unplugged")
	@scripts/hosts.sh $(HOSTS_ARGS)

.PHONY: test-fast
test-fast: ## Only what needs no libtorch: types, planning, the contract, services without tensors
	@$(CARGO) test --release -p types -p planning -p proto -p service -p coordinator $(TEST_FLAGS)

.PHONY: e2e
e2e: setup test-models build-tests ## Only the end-to-end tests
	@$(CARGO) test --release -p e2e $(TEST_FLAGS)

.PHONY: lint
lint: setup ## Cargo.lock, fmt, clippy, cargo deny, buf: all without warnings
	@$(CARGO) metadata --locked --format-version 1 >/dev/null
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy --release --workspace --all-targets -- -D warnings
	@scripts/deny.sh
	@scripts/buf.sh lint
	@scripts/buf_breaking.sh

.PHONY: fmt
fmt: ## Format the code
	@$(CARGO) fmt --all

.PHONY: verify-hf
verify-hf: build ## Every family, shape and FOLDERS=... against transformers + torch: logits, perplexity (4.3 GB of packages)
	@scripts/verify_formats.sh hf
	@scripts/verify_hf.sh $(or $(FOLDERS),$(MODEL))

.PHONY: verify-gguf
verify-gguf: build ## Every family, shape and number format against llama.cpp: logits (builds it once, ten minutes)
	@scripts/verify_formats.sh gguf

.PHONY: verify-vllm
verify-vllm: build ## Pruned SmolLM2 in vLLM on a CPU: the same tokens as here, per-layer refused (verify-hf's packages and 0.6 GB)
	@scripts/verify_vllm.sh

.PHONY: verify-guide
verify-guide: build ## Run the blocks of docs/take-it-from-here.md that can run here (transformers, PEFT, llama.cpp)
	@scripts/verify_guide.sh

.PHONY: golden
golden: ## Make testdata/golden again with transformers + torch: a reviewed difference
	@scripts/golden.sh

.PHONY: proto-breaking
proto-breaking: ## Whether proto/ breaks callers of the last tag, or of proto/baseline.binpb (REF=... for another commit)
	@scripts/buf_breaking.sh $(REF)

.PHONY: proto-baseline
proto-baseline: ## Make proto/baseline.binpb again, for a release: what callers know from then on
	@scripts/buf_breaking.sh renew

# ---- measure ---------------------------------------------------------------------------------------------------------

.PHONY: bench
bench: build demo-model demo-data ## Time of each stage against its floor; writes docs/performance.md
	@scripts/bench.sh

.PHONY: quality
quality: build demo-model demo-data ## Perplexity by size and method on SmolLM2: docs/quality.md, .json and .svg (two hours)
	@python3 scripts/quality_table.py --binary "$$(scripts/binary.sh)" --cache "$(CACHE)"
	@scripts/plot.sh quality_plot.py

.PHONY: quality-quick
quality-quick: build test-models ## Methods, shots and predictions on glassllm: docs/quality-glassllm.md, .json and .svg (an hour of one core; QUICK_ARGS="--parts text,methods": 10 minutes)
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 scripts/plot.sh quality_glassllm.py --binary "$$(scripts/binary.sh)" --cache "$(CACHE)" $(QUICK_ARGS)
	@scripts/plot.sh quality_glassllm_plot.py

.PHONY: report-screenshot
report-screenshot: build test-models ## Take the picture of a run's page, docs/report.png (needs Chromium)
	@scripts/report_screenshot.sh

.PHONY: bench-telemetry
bench-telemetry: build test-models ## What telemetry costs a sweep: a collector that takes it, never answers, or is not there (ten minutes)
	@python3 scripts/bench_telemetry.py --programs "$$(dirname "$$(scripts/binary.sh)")" --collector "$(CACHE)/venvs/rotel/bin/rotel-agent" \
	  --model "$(CACHE)/models/glassllm-en" --text testdata/text/calibration $(BENCH_ARGS)

.PHONY: bench-net
bench-net: setup ## What moving factors costs over loopback, without and with TLS, beside bare sockets that do as much (GIB=1)
	@$(CARGO) run --release -p cli --example bench_net -- $(or $(GIB),1)

.PHONY: bench-scaling
PARTS ?= products,sweep,services
bench-scaling: build demo-model ## How much sooner two calibrators are done than one, against what the machine has (ten minutes; ROUNDS=3 PARTS=products,sweep,services)
	@$(CARGO) run --release -p cli --example bench_scaling -- "$(MODEL)" testdata/text/calibration "$$(dirname "$$(scripts/binary.sh)")" \
	  $(or $(ROUNDS),3) $(PARTS)

.PHONY: bench-elements
bench-elements: setup ## Time of scoring and updating a 4096 x 4096 layer of single weights, against the paper's groups
	@$(CARGO) run --release -p pruning --example element_time -- $(or $(SIZE),4096) --max-correlate 2000

# ---- the rest --------------------------------------------------------------------------------------------------------

.PHONY: doc
doc: setup ## Build the API documentation
	@$(CARGO) doc --release --workspace --no-deps

.PHONY: clean-cache
clean-cache: ## Remove the cache: libtorch, builds, models, text, Python environments
	@[ -e "$(CACHE)" ] || { echo "nothing to remove: $(CACHE) does not exist"; exit 0; }; \
	  [ -e "$(CACHE)/.lock" ] || { echo "$(CACHE) was not made by this project: not removed" >&2; exit 1; }; \
	  du -sh "$(CACHE)"; rm -rf "$(CACHE)" .cargo/config.toml
