# hvpost: build, test, demonstrate.
#
#   make demo    boot Debian's kernel and show what it found (KERNEL=6.1 for the older one)
#   make test    everything: unit, race, fuzz (short) and guest tests
#   make build   the static binary ./hvpost
#
#   make unit, race, guest-test    the parts of make test
#   make fuzz FUZZTIME=10m         every fuzz target for so long
#   make bench-boot, bench-ring    measurements, as ratios of one run
#   make lint, setup, kernels      vet and format; missing packages; Debian's kernels

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

GO       ?= go
KERNEL   ?= 6.12
FUZZTIME ?= 10s
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS  := -s -w -X main.version=$(VERSION)

export CGO_ENABLED ?= 0

.PHONY: help build setup test unit race fuzz guest-test lint demo bench-boot bench-ring clean kernels

build:
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o hvpost .

help:
	@sed -n 's/^#   //p' Makefile

setup:
	@scripts/setup.sh

lint:
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo "run gofmt -w on the files above" >&2; exit 1; }
	$(GO) vet ./...
	@scripts/checkunsafe.sh

# Unit tests need no KVM; those that can use one say so when they skip.
unit:
	$(GO) test -timeout 5m ./...

race:
	CGO_ENABLED=1 $(GO) test -race -short -timeout 5m ./guest/... ./synic/... ./vmbus/... ./vmm/... ./kvm/...

# Each fuzz target for FUZZTIME, one after the other.
fuzz:
	@scripts/fuzz.sh $(FUZZTIME)

kernels: build
	@./hvpost kernel fetch debian:6.12 debian:6.1

guest-test: setup build kernels
	@scripts/guest-test.sh

test: setup build lint
	@scripts/test.sh

demo: setup build
	@KERNEL=$(KERNEL) scripts/demo.sh

bench-boot: setup build kernels
	@scripts/bench-boot.sh

bench-ring:
	$(GO) test -run '^$$' -bench . -benchmem ./vmbus/ring

clean:
	rm -f hvpost
