# Every target that has a comment beginning with two hashes shows up in `make help`.
SHELL := /bin/bash
.DEFAULT_GOAL := help

LISTEN ?= 127.0.0.1:8080
DATA ?= .manyhands/dev
CLUSTER ?= .manyhands
SECONDS ?= 300

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: dev
dev: ## Run everything in one process (LISTEN=127.0.0.1:8080 DATA=.manyhands/dev)
	cargo run --release --locked --bin manyhands -- dev --listen $(LISTEN) --data $(DATA)

.PHONY: test
test: neighbours ## Run every test, against real Postgres, NATS and Redis servers that the tests start themselves
	cargo test --workspace --locked

.PHONY: check
check: ## Formatting, lints, documentation links and the rules of the repository
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
	cargo test --locked --package manyhands-sim --test tidy

.PHONY: bench
bench: ## Time the text engine; CASE=remote for some of it
	cargo bench --locked --package manyhands-crdt --bench engine -- $(CASE)

.PHONY: bench-peers
bench-peers: ## Measure the text engine beside others (QUICK=1, TRACES=folder)
	cargo run --release --locked --manifest-path crates/crdt/bench-peers/Cargo.toml -- \
		$(if $(QUICK),--quick) $(if $(TRACES),--traces $(TRACES))

.PHONY: fuzz
fuzz: ## Fuzz the text engine, with cargo-fuzz on a nightly compiler (TARGET=document SECONDS=60)
	cd crates/crdt/fuzz && for target in $(or $(TARGET),$$(cargo +nightly fuzz list --fuzz-dir .)); do \
		mkdir -p target/corpus/$$target && \
		cargo +nightly fuzz run --sanitizer none --fuzz-dir . $$target target/corpus/$$target corpus/$$target -- \
			-max_total_time=$(or $(SECONDS),60) -rss_limit_mb=512 -malloc_limit_mb=64 -timeout=5 || exit 1; \
	done

.PHONY: cluster
cluster: neighbours ## Start Postgres, NATS, Redis, two document nodes and two edges; addresses in .manyhands/cluster.env
	cargo build --release --locked --bin manyhands --bin loadtest
	$(RELEASE)/loadtest cluster up --dir $(CLUSTER) --binary $(RELEASE)/manyhands

.PHONY: cluster-down
cluster-down: ## Stop exactly what `make cluster` started
	cargo build --release --locked --bin loadtest
	$(RELEASE)/loadtest cluster down --dir $(CLUSTER)

.PHONY: drill
drill: neighbours ## Kill and break a cluster of its own, check that nothing is lost (SECONDS=300 SEED=… DEV=1 FLAGS=…)
	cargo build --release --locked --bin manyhands --bin loadtest
	$(RELEASE)/loadtest drill --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(if $(DEV),--dev) $(FLAGS)

.PHONY: neighbours
neighbours: ## Install the servers that tests and the local cluster run beside us, where they are missing
	@deploy/neighbours.sh

.PHONY: clean
clean: ## Remove what was built (data under .manyhands stays)
	cargo clean

RELEASE = $(or $(CARGO_TARGET_DIR),target)/release
