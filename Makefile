# SPDX-License-Identifier: Apache-2.0
# The commands of README.md. CMake does the building (`cmake --preset dev` works too); this file only
# says what belongs to a command. `make help` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := all
.NOTPARALLEL:

JOBS := $(shell tools/jobs)
PREFIX ?= /usr/local
SUITE ?=
ALL ?=
ORACLE ?=
ONLY ?=
NAME ?=
STAGE ?=

# What this file starts is cmake and ninja: they must not take our flags for theirs.
unexport MAKEFLAGS MFLAGS MAKELEVEL

configure = @if [ ! -f $(2)/build.ninja ]; then echo "configuring $(1)"; \
	cmake --preset $(1) >$(2).configure.log 2>&1 || { cat $(2).configure.log; exit 1; }; \
	mv $(2).configure.log $(2)/configure.log; fi
ninja = NINJA_STATUS='[%f/%t %es] ' ninja -j$(JOBS) -C

.PHONY: all configured build mutation tsan_rounds demo test stress check conformance bench race install clean help

all: build ## the tool, the engine, the examples and the tests, in build/

configured:
	@tools/install-deps build
	@mkdir -p build
	$(call configure,fast,build)

build: configured
	@$(ninja) build

demo: configured ## install what is needed, build, and show a guest at work
	@$(ninja) build stagetwo stagetwo_preload hello_vmm private_vmm
	@tools/demo

# The programs that remove a guard exist in the preset `mutation` only.
mutation: build
	@mkdir -p build/mutation
	$(call configure,mutation,build/mutation)
	@$(ninja) build/mutation mutation_tests

run_tests = tools/run-tests --folder build/tests --folder build/mutation/tests --only '$(ONLY)'

test: mutation ## build and run every test, from a fixed seed, about 3 s for each stress program
	@$(run_tests)

# The rounds of the kernel's cases anon_teardown and migrate_multiple are wanted under the thread sanitizer, too.
rounds = build/tsan/rounds/stress_hmm_rounds_tsan_test
tsan_rounds: build
	@if command -v clang++-19 >/dev/null; then mkdir -p build/tsan/rounds; else \
		echo "skipped: needs root (package installation: clang-19): the rounds under the thread sanitizer"; fi
	@[ ! -d build/tsan/rounds ] || [ -f build/tsan/build.ninja ] || cmake --preset tsan >/dev/null
	@[ ! -d build/tsan/rounds ] || $(ninja) build/tsan stress_hmm_rounds_test
	@[ ! -d build/tsan/rounds ] || ln -sf ../tests/stress_hmm_rounds_test $(rounds)

stress: mutation tsan_rounds ## the same tests from fresh seeds, 60 s for each stress program, a million steps for each model
	@STAGETWO_TEST_SECONDS=$${STAGETWO_TEST_SECONDS:-60} STAGETWO_TEST_STEPS=$${STAGETWO_TEST_STEPS:-1000000} \
		$(run_tests) --folder build/tsan/rounds --fresh-seeds --tell-cuts

check: ## format, clang-tidy, thread-safety analysis, sanitizers, fuzzing: STAGE=, ONLY=REGEX
	@tools/install-deps build
	@tools/install-deps check
	@tools/check --jobs $(JOBS) --only '$(STAGE)' --match '$(ONLY)'

conformance: build ## the kernel's own suites: SUITE=kvm, ALL=1, ORACLE=1, ONLY=REGEX
	@tools/install-deps conformance
	@tools/conformance --jobs $(JOBS) $(if $(SUITE),--suite $(SUITE)) $(if $(ALL),--all) \
		$(if $(ORACLE),--oracle) $(if $(ONLY),--only '$(ONLY)')

bench: ## figures beside their yardsticks, into build/bench/results.json
	@tools/install-deps conformance
	@mkdir -p build
	$(call configure,bench,build/bench)
	@$(ninja) build/bench
	@tools/bench --only '$(ONLY)'

race: configured ## NAME=: a race by its name (none: lists them), or a test over many seeds
	@tools/install-deps race
	@tools/race '$(NAME)' $(JOBS)

install: build ## the tool, the engine, the CMake package: PREFIX=/usr/local
	@cmake --install build --prefix '$(DESTDIR)$(PREFIX)'

clean: ## all of build/ but the unpacked kernel sources
	@if [ -d build ]; then find build -mindepth 1 -maxdepth 1 ! -name conformance -exec rm -rf {} +; fi
	@if [ -d build/conformance ]; then \
		find build/conformance -mindepth 1 -maxdepth 1 ! -name src -exec rm -rf {} +; fi

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
