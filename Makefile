# The front door: what a newcomer types. The build itself is meson.build.
#
#   make          builds build/ring3
#   make deps     installs what the build and the tests need (apt; quick when all is there)
#   make test     deps, build, all tests; the last line is "N passed, N failed"
#   make run      boots a stock system (scripts/run-stock; RUN_ARGS= are passed to it)
#   make clean
#
# BUILD=dir builds elsewhere; MESON_ARGS=-Db_sanitize=address,undefined for a sanitized tree.

BUILD ?= build
MESON_ARGS ?=
RUN_ARGS ?=

.DEFAULT_GOAL := all
.PHONY: all deps test run clean

all:
	@scripts/deps --check
	@scripts/build $(BUILD) $(MESON_ARGS)

deps:
	@scripts/deps

test: deps
	@scripts/build $(BUILD) $(MESON_ARGS)
	@tests/run --build $(BUILD)

run: all
	@if [ -x scripts/run-stock ]; then exec scripts/run-stock $(BUILD)/ring3 $(RUN_ARGS); \
	else echo "make run: scripts/run-stock is not there yet" >&2; exit 1; fi

clean:
	rm -rf $(BUILD)
