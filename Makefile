# The one door. `make` lists what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# A shell that has never sourced cargo's env finds it all the same.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin:/usr/local/sbin:/usr/sbin:/sbin

CARGO ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
# Asked only where a recipe uses it: `make setup` must run before there is a rustc.
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
ENOKI := $(TARGET_DIR)/release/enoki
# The helpers are linked statically, with a folder of their own so that their flags do not throw away other builds.
STATIC_DIR := $(TARGET_DIR)/static
HELPERS = $(STATIC_DIR)/$(HOST)/release
YES ?=
HOSTS ?= 3
SERVERS ?= 1
# The versions of Spark and of Dask that the tests run.
SPARK := 4.0.1
DASK := 2026.8.0

.PHONY: help setup build helpers install images images-spark images-dask up down destroy test check deny unit sweep lab lab-down vm-test bench-launch bench-propagation bench-spark

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what this machine lacks, from the Debian archive
	@deploy/setup.sh

build: helpers ## build the release binary and its two helpers
	$(CARGO) build --release --locked -p enoki --bin enoki

# gnu with crt-static needs an explicit target, or build scripts would be linked statically too.
helpers: ## build the two static helpers (tests need them as well)
	RUSTFLAGS="-C target-feature=+crt-static -C strip=debuginfo" $(CARGO) build --release --locked --target $(HOST) \
		--target-dir $(STATIC_DIR) -p enoki-helpers

install: build ## put the programs into /usr/local
	@deploy/install.sh $(ENOKI) $(HELPERS)

images: ## build the base images (cached under /var/cache/enoki/images)
	@deploy/images/tiny.sh
	@deploy/images/debian.sh

# Of Spark half a gigabyte and some minutes each, so `make up` does without. A cloud that is up gets them.
images-spark: ## build an image of each version in deploy/images/spark.versions, and give them to the cloud that is up
images-dask: ## the same of each version in deploy/images/dask.versions
images-spark images-dask: images-%:
	@for version in $$(awk '/^[0-9]/ { print $$1 }' deploy/images/$*.versions); do deploy/images/$*.sh $$version; done
	@if enoki image list >/dev/null 2>&1; then deploy/import-images.sh $*; else \
		echo "no cloud is up: they are imported by the next \`make images-$*\` while there is one"; fi

up: setup ## a running one-machine cloud with the instance hello
	@$(MAKE) install
	@enoki up
	@deploy/import-images.sh
	@deploy/tour.sh

down: ## stop our processes; instances go on
	@enoki down

destroy: ## remove everything of ours (asks; YES=1 does not)
	@enoki down --purge $(if $(filter 1 y yes,$(YES)),--yes)

# An image of Spark is half a gigabyte to fetch: it is made while the rest is compiled, and that of Dask. If that fails, the test
# that needs it says why.
test: setup ## everything that CI runs
	@{ deploy/images/dask.sh $(DASK); deploy/images/spark.sh $(SPARK); } >/dev/null & \
	{ $(MAKE) check && $(MAKE) deny && $(MAKE) unit; }; status=$$?; wait; exit $$status

check:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

deny:
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
		$(CARGO) deny --locked check licenses bans sources; \
	else \
		echo "cargo-deny is not installed, licences, bans and sources are not checked: cargo install cargo-deny --locked"; \
	fi

# nextest's closing lines come last, so doc tests run before it. A test that was killed leaves its namespaces and
# folders behind: they are swept here without a word, and its failure stays a failure.
unit: helpers
	@$(CARGO) nextest --version >/dev/null 2>&1 || $(CARGO) install cargo-nextest --locked
	$(CARGO) test --workspace --locked --doc --quiet
	ENOKI_TEST_HELPERS=$(HELPERS) $(CARGO) nextest run --workspace --locked || { \
		status=$$?; $(MAKE) sweep >/dev/null 2>&1 || true; exit $$status; }

sweep: ## remove what killed test runs left behind
	@ENOKI_TEST_HELPERS=$(HELPERS) $(CARGO) nextest run --locked --test harness_self -E 'test(=sweeps_up_after_killed_runs)'

lab: setup helpers ## a cloud of HOSTS=3 machines on this one, SERVERS=1 of them servers; source /run/enoki-lab/env to talk to it
	$(CARGO) build --locked -p enoki --bin enoki -p enoki-harness --bin enoki-lab
	@deploy/images/tiny.sh >/dev/null
	@deploy/images/debian.sh >/dev/null
	@ENOKI_TEST_HELPERS=$(HELPERS) deploy/lab.sh up $(HOSTS) $(SERVERS) $(TARGET_DIR)/debug/enoki-lab

lab-down: ## end the lab
	@deploy/lab.sh down

# Not part of `make test`: the machine is emulated, which takes its time on any machine.
vm-test: setup helpers ## on a real Debian 12 with systemd, through a reboot and a power cut (emulated: half an hour)
	@tests/vm/setup.sh
	$(CARGO) build --locked -p enoki --bin enoki
	@tests/vm/run.sh $(TARGET_DIR)/debug/enoki $(HELPERS)

bench-launch: setup helpers ## launch speed of instances on one host and on three, beside peers (FULL=1: the whole; SMOKE=1: a try)
	@benches/setup.sh
	ENOKI_TEST_HELPERS=$(HELPERS) $(CARGO) bench --locked --bench launch

bench-propagation: setup helpers ## how fast a change reaches the agents of HOSTS simulated hosts (500 unless told)
	ENOKI_TEST_HELPERS=$(HELPERS) BENCH_HOSTS=$(if $(filter command line,$(origin HOSTS)),$(HOSTS),500) $(CARGO) bench --locked --bench propagation

bench-spark: setup helpers ## compute clusters: how fast one comes, beside raw Docker, and how its pool follows its jobs (FULL=1, SMOKE=1)
	@deploy/images/spark.sh $(SPARK) >/dev/null
	ENOKI_TEST_HELPERS=$(HELPERS) $(CARGO) bench --locked --bench spark
