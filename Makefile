# The entry points; `make` alone lists them. Variables: FAST=1 (up, demo), KIND=… (failover), ARGS=… (test, bench),
# PAIRS=… (soak).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo up status failover down test soak lint bench docs clean deps

KIND ?= node
PAIRS ?= 100000
SPEED = $(if $(filter-out 0 no,$(FAST)),--fast)
TARGET = $(shell cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
TESTBED = "$(TARGET)/debug/leaderpool-testbed"
# As `cargo test --workspace` builds them, so that neither makes the other build again.
BUILD = cargo build --workspace --bin leaderpool-testbed --example backend

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

demo: deps ## the whole system under a load, live in this terminal (FAST=1)
	@$(BUILD)
	@$(TESTBED) demo $(SPEED)

up: deps ## the whole system in the background; FAST=1: 20/1/3, not 30/10/10
	@$(BUILD)
	@$(TESTBED) up $(SPEED)

status: ## who leads, who follows; fails if the system is not healthy
	@[ -x $(TESTBED) ] || $(BUILD)
	@$(TESTBED) status

failover: ## kills the leader, tells the story (KIND=node, postmaster, switchover)
	@[ -x $(TESTBED) ] || $(BUILD)
	@$(TESTBED) failover --kind $(KIND)

down: ## stops the system
	@[ -x $(TESTBED) ] || $(BUILD)
	@$(TESTBED) down

test: deps ## every test, on real clusters too (ARGS="--test cluster -- node")
	RUST_BACKTRACE=0 cargo test --workspace --no-fail-fast $(ARGS)

soak: deps ## 100,000 writes, each read by its token elsewhere, from replicas that lag; 5 minutes
	SOAK_PAIRS=$(PAIRS) RUST_BACKTRACE=0 cargo test --test soak

lint: deps ## format, clippy, documentation, package; licences, by cargo-deny
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	@# As its users build it, without what tests turn on.
	cargo clippy -p leaderpool -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --workspace
	cargo package -p leaderpool --allow-dirty
	@if cargo deny --version >/dev/null 2>&1; then \
	  set -x; cargo deny check bans licenses sources; \
	else \
	  echo "cargo deny is not installed: bans, licences and sources are not checked"; \
	fi

bench: deps ## what the pool costs, and how soon it follows a failover
	cargo bench --bench overhead
	cargo bench --bench failover $(if $(ARGS),-- $(ARGS))

docs: deps ## the API's documentation, in target/doc
	cargo doc --no-deps --workspace
	@echo "open $(TARGET)/doc/leaderpool/index.html"

clean: ## stops the system, removes what was built and what it left
	@if [ -e .demo ] && [ -x $(TESTBED) ]; then $(TESTBED) down; fi
	@# Where the checkout lies in a home that `postgres` cannot enter, the servers' files lie elsewhere.
	@if [ -L .demo/cluster ]; then rm -rf "$$(readlink .demo/cluster)"; fi
	rm -rf .demo
	cargo clean

deps:
	@cluster/install-deps
