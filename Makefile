# The front door: what a newcomer types. The build itself is meson.build.
#
#   make          builds build/ring3
#   make deps     installs what the build and the tests need (apt; quick when all is there)
#   make test     deps, build, all tests; the last line is "N passed, N failed"
#   make run      deps, build, boots Debian's stock kernel to a shell on this terminal
#                 (scripts/run-stock; RUN_ARGS= are options of ring3 run, e.g. RUN_ARGS="-m 1G")
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

run:
	@scripts/deps --run
	@scripts/build $(BUILD) $(MESON_ARGS)
	@scripts/run-stock $(BUILD)/ring3 $(RUN_ARGS) || { s=$$?; [ $$s = 67 ] || exit $$s; } # 67: Ctrl-A x

clean:
	rm -rf $(BUILD)
