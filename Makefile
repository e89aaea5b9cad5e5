# `make run` tries Rollcall out, `make check` is for each commit, `make test` checks everything. Each does its own set-up.

CARGO ?= cargo
BUF := .cache/npm/node_modules/.bin/buf

.DEFAULT_GOAL := help
.PHONY: help run run-release run-zookeeper check test stubs bench bench-go setup build unit lint breaking deny packages wheel archive clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# RUN holds options for rollcall-server: make run RUN='--listen 127.0.0.1:7800 --http-listen 127.0.0.1:7801'
run: ## Start rollcall-server here until Ctrl-C, everything in memory: needs Rust and a C compiler
	@tests/ports.sh $(RUN)
	$(CARGO) build --locked -p rollcall-server
	@exec target/debug/rollcall-server --embedded $(RUN)

run-release: ## The same, optimised: it takes half as long again to build
	@tests/ports.sh $(RUN)
	$(CARGO) build --locked --release -p rollcall-server
	@exec target/release/rollcall-server --embedded $(RUN)

run-zookeeper: ## Start ZooKeeper and rollcall-server in front of it here, until Ctrl-C
	@tests/ports.sh $(RUN)
	tests/setup.sh zookeeper
	@command -v grpcurl >/dev/null || ! command -v go >/dev/null || tests/setup.sh grpcurl
	$(CARGO) build --locked -p rollcall-server
	@ROLLCALL_SERVER_BIN=target/debug/rollcall-server exec tests/run.sh $(RUN)

check: lint unit breaking ## Before each commit: format, lints, unit tests, the API beside the last release (needs Rust and npm)

test: setup lint breaking deny ## Everything, from nothing: set-up, lints, all tests
	$(CARGO) build --locked -p rollcall-server
	$(CARGO) build --locked -p rollcall-cli -p rollcall-client --bins --examples
	$(CARGO) test --locked --workspace --no-fail-fast

stubs: ## Generate the stubs of every language (buf.gen.yaml), into gen/ and client-go/
	tests/setup.sh go-plugins buf node java grpc-plugins
	PATH="$(CURDIR)/.cache/bin:$(CURDIR)/.cache/node/node_modules/.bin:$$PATH" $(BUF) generate

bench: ## Measure Rollcall beside ZooKeeper, kazoo and etcd (three quarters of an hour, on a quiet machine)
	tests/setup.sh zookeeper etcd python
	$(CARGO) build --locked --release -p rollcall-server -p rollcall-bench
	target/release/rollcall-bench $(BENCH)

bench-go: ## Measure the Go client beside etcd's (three minutes, on a quiet machine)
	tests/setup.sh zookeeper etcd
	$(CARGO) build --locked --release -p rollcall-server
	cd client-go/bench && go run . $(BENCH)

setup: ## Fetch what the tests run on into .cache
	tests/setup.sh

build: ## Build the server
	$(CARGO) build --locked --release -p rollcall-server

unit: ## The tests that need no other program: of all crates, without what crosses a process
	$(CARGO) test --locked --workspace --exclude rollcall-tests

lint: ## Format, clippy, the rules of the protos
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	tests/setup.sh buf
	$(BUF) lint

breaking: ## What a change of the .proto files breaks for programs that use the last release
	tests/setup.sh buf
	packaging/breaking.sh

deny: ## Licences, sources and bans of the dependencies (builds cargo-deny first)
	tests/setup.sh cargo-deny
	.cache/bin/cargo-deny --locked check bans licenses sources

packages: ## Package the crates that are published, and build each from its package
	CARGO_TARGET_DIR=$(CURDIR)/target $(CARGO) package --locked --workspace --exclude rollcall-tests --exclude rollcall-bench

wheel: ## Build the Python client's sdist and wheel, into dist/
	tests/setup.sh packaging
	.cache/packaging/venv/bin/python -m build --no-isolation --outdir dist client-py

archive: ## Build the release archive for this machine, with its checksum, into dist/
	$(CARGO) build --locked --release -p rollcall-server -p rollcall-cli
	packaging/archive.sh target/release dist

clean: ## Remove what was built and fetched
	rm -rf target .cache gen tests/go/gen dist
