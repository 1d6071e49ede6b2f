# Two commands on a fresh machine with Rust:
#   make demo   brings up a three-node Region and does the main job on real input
#   make test   passes all tests
# Both install what is missing, and compile RocksDB once per machine (deploy/rocksdb.sh).

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-regions build test test-rust test-loom test-sabotage test-clients check fmt clippy docs deny advisories bench bench-quick chaos sim clean

# Filled in by the recipes: every cargo call below finds the one RocksDB.
ROCKS = ROCKSDB_STATIC=1 ROCKSDB_LIB_DIR="$$(deploy/rocksdb.sh)"
ifeq ($(KEYWARD_ROCKSDB),build)
ROCKS =
endif
CARGO = $(ROCKS) cargo
VENV ?= target/venv

help: ## What there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

setup:
	@deploy/setup.sh

demo: setup ## Bring up a three-node Region and do the main job
	$(CARGO) build --release --locked -p keyward
	target/release/keyward dev demo

demo-regions: setup ## Bring up three Regions, lose one, and see it back
	$(CARGO) build --release --locked -p keyward
	target/release/keyward dev demo-regions

build: setup ## Build the binary for use: target/release/keyward
	$(CARGO) build --release --locked -p keyward

test: test-rust test-loom test-sabotage test-clients ## All tests

test-rust: setup
	$(CARGO) test --locked --workspace

test-loom: setup ## Every interleaving of the lock-free cells
	@# The whole workspace, so that what test-rust has built is taken as it is.
	$(CARGO) test --locked --workspace --test loom

test-sabotage: setup ## Known bugs, each of which the simulator must find
	@# The whole workspace, so that outside crates keep their features and are not compiled again.
	$(CARGO) test --locked --workspace --features keyward-sim/sabotage --test sabotage

$(VENV)/ready: tests/esdk/requirements.txt
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet -r tests/esdk/requirements.txt
	touch $@

test-clients: setup $(VENV)/ready
	@# The same build as test-rust: other features would compile much of it again.
	$(CARGO) test --locked --workspace --no-run --quiet
	PYTHONDONTWRITEBYTECODE=1 $(VENV)/bin/python tests/esdk/local.py --rust target/debug/examples/esdk_local
	PYTHONDONTWRITEBYTECODE=1 $(VENV)/bin/python tests/clients/run.py --keyward target/debug/keyward

check: fmt clippy docs deny ## Formatting, lints, docs, licences

fmt:
	cargo fmt --all -- --check

clippy: setup
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

docs: setup
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps

# cargo-deny is a program of its own: installed once per machine.
deny:
	@cargo deny --version 2>/dev/null | grep -q . || cargo install --quiet --locked cargo-deny
	cargo deny --locked check licenses bans sources

advisories: ## Known vulnerabilities (needs the network)
	@cargo deny --version 2>/dev/null | grep -q . || cargo install --quiet --locked cargo-deny
	cargo deny --locked check advisories

bench: setup ## Measure all figures that the docs quote: scale, failover, OpenBao beside it; about an hour
	$(CARGO) bench --locked -p keyward --bench region -- --keys 1000000

bench-quick: setup ## What calls cost beside an echo, in under two minutes; fails if a limit does not hold
	$(CARGO) bench --locked -p keyward --bench region -- --only quick

chaos: setup ## Ten minutes of random faults on three machines made of network namespaces
	KEYWARD_CHAOS_SECONDS=600 $(CARGO) test --locked -p keyward --test region random_faults -- --nocapture

sim: setup ## Simulate seeds until stopped
	$(CARGO) run --release --locked -p keyward-sim -- --seeds 0..1000000 --jobs 2

clean:
	cargo clean
