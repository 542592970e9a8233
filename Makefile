# SPDX-License-Identifier: MIT OR Apache-2.0
#
# The door for distributions and for newcomers; CI calls nothing else.
#
#   make                      release build of the daemon and the client
#   make install DESTDIR= PREFIX=/usr
#   make demo                 the main job on a host made for the occasion
#   make test                 every test that needs no machine (as root, or with sudo)
#   make test-boot            machines that boot, update, lose power (BOOT= picks some)
#   make vm                   a machine to try it on, in this terminal (MACHINE=, SUITE=)
#   make soak N=200           as many power cuts, at random instants (SEED= repeats them),
#                             as many seconds of a crowd of clients, as many kills of the
#                             daemon, and as many upgrades with others cleaning up beside
#   make lint                 formatting, clippy, licences and sources of dependencies
#   make bench                measurements, printed (BENCH=status or BENCH=update: only these;
#                             ROUNDS= of each; see docs/performance.md)
#   make advisories           known holes in dependencies (fetches a database)
#   make deps                 what all of these need; they call it themselves
#   make clean

DESTDIR ?=
PREFIX ?= /usr
CARGO ?= cargo
INSTALL ?= install
# Cargo's switches, such as --offline or --frozen.
CARGOFLAGS ?= --locked

bindir = $(PREFIX)/bin
libexecdir = $(PREFIX)/libexec
unitdir = $(PREFIX)/lib/systemd/system
tmpfilesdir = $(PREFIX)/lib/tmpfiles.d
dbusdir = $(PREFIX)/share/dbus-1
polkitdir = $(PREFIX)/share/polkit-1/actions
mandir = $(PREFIX)/share/man
bashdir = $(PREFIX)/share/bash-completion/completions
zshdir = $(PREFIX)/share/zsh/site-functions
fishdir = $(PREFIX)/share/fish/vendor_completions.d
docdir = $(PREFIX)/share/doc/osteward

target = $(or $(CARGO_TARGET_DIR),target)
# What is installed; the suite's machines get what is optimised less.
programs = $(target)/release
lab = $(target)/lab
# Manual pages and completions, which `make` writes.
manuals = $(target)/manuals
oracle = tests/oracle/Cargo.toml

# Whole-system tests and the demo make mount namespaces, which only root may. Cargo stays
# the user it was; only what it built is run as root.
host = $(shell rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
sudo = $(if $(filter-out 0,$(shell id -u)),sudo)
as_root = $(if $(sudo),CARGO_TARGET_$(host)_RUNNER='sudo --preserve-env env PATH=$(PATH)')

# The quick build of programs, in $(1). Cargo unites the features of all packages that are
# selected, and compiles dependencies again for another selection: so it is always the same.
build_quickly = $(CARGO) build $(CARGOFLAGS) -p ostewardd -p osteward -p osteward-tests \
	$(1:%=--bin %)
run_built = $(if $(sudo),sudo --preserve-env env PATH='$(PATH)') $(target)/debug/

build_oracle = CARGO_TARGET_DIR='$(abspath $(target))/oracle' \
	$(CARGO) build $(CARGOFLAGS) --quiet --manifest-path $(oracle)

.PHONY: all
all: deps-build
	$(CARGO) build $(CARGOFLAGS) --release -p ostewardd -p osteward
	$(CARGO) run $(CARGOFLAGS) --quiet -p osteward --example manuals -- '$(abspath $(manuals))'

# For tests: the same pages, by what they build anyway.
.PHONY: manuals
manuals: deps-build
	$(build_quickly) --quiet --example manuals
	$(target)/debug/examples/manuals '$(abspath $(manuals))'

# Installs what `make` built; builds nothing, so that it can run as root.
.PHONY: install
install:
	$(INSTALL) -D -m 0755 $(programs)/ostewardd $(DESTDIR)$(libexecdir)/ostewardd
	$(INSTALL) -D -m 0755 $(programs)/osteward $(DESTDIR)$(bindir)/osteward
	$(MAKE) --no-print-directory install-data

.PHONY: install-data
install-data:
	$(INSTALL) -d $(DESTDIR)$(unitdir) $(DESTDIR)$(tmpfilesdir) $(DESTDIR)$(polkitdir) \
		$(DESTDIR)$(dbusdir)/system-services $(DESTDIR)$(dbusdir)/system.d \
		$(DESTDIR)$(dbusdir)/interfaces $(DESTDIR)$(docdir)
	sed 's|@libexecdir@|$(libexecdir)|' systemd-units/ostewardd.service.in \
		>$(DESTDIR)$(unitdir)/ostewardd.service
	chmod 0644 $(DESTDIR)$(unitdir)/ostewardd.service
	$(INSTALL) -m 0644 systemd-units/org.osteward1.service $(DESTDIR)$(dbusdir)/system-services/
	$(INSTALL) -m 0644 systemd-units/org.osteward1.conf $(DESTDIR)$(dbusdir)/system.d/
	$(INSTALL) -m 0644 systemd-units/org.osteward1.policy $(DESTDIR)$(polkitdir)/
	$(INSTALL) -m 0644 systemd-units/osteward.tmpfiles.conf $(DESTDIR)$(tmpfilesdir)/osteward.conf
	$(INSTALL) -m 0644 dbus-interfaces/org.osteward1.*.xml $(DESTDIR)$(dbusdir)/interfaces/
	$(INSTALL) -m 0644 README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE daemon/osteward.toml \
		$(DESTDIR)$(docdir)/
	$(INSTALL) -d $(DESTDIR)$(mandir)/man1 $(DESTDIR)$(mandir)/man5 $(DESTDIR)$(mandir)/man8 \
		$(DESTDIR)$(bashdir) $(DESTDIR)$(zshdir) $(DESTDIR)$(fishdir)
	$(INSTALL) -m 0644 $(manuals)/man/*.1 $(DESTDIR)$(mandir)/man1/
	$(INSTALL) -m 0644 $(manuals)/man/*.5 $(DESTDIR)$(mandir)/man5/
	$(INSTALL) -m 0644 $(manuals)/man/*.8 $(DESTDIR)$(mandir)/man8/
	$(INSTALL) -m 0644 $(manuals)/completions/osteward.bash $(DESTDIR)$(bashdir)/osteward
	$(INSTALL) -m 0644 $(manuals)/completions/_osteward $(DESTDIR)$(zshdir)/
	$(INSTALL) -m 0644 $(manuals)/completions/osteward.fish $(DESTDIR)$(fishdir)/

.PHONY: demo
demo: deps
	$(call build_quickly,ostewardd osteward osteward-demo) --quiet
	$(run_built)osteward-demo

.PHONY: test
test: deps test-unit test-system test-units

# No root, no services: the pure parts, libostree in scratch directories, the contract.
.PHONY: test-unit
test-unit: deps
	$(CARGO) test $(CARGOFLAGS) -p osteward-dbus -p ostewardd -p osteward

# The real daemon and client on a private bus, with real services and the oracle.
.PHONY: test-system
test-system: deps
	$(call build_quickly,ostewardd osteward)
	$(build_oracle)
	$(as_root) $(CARGO) test $(CARGOFLAGS) -p osteward-tests

.PHONY: test-units
test-units: deps manuals
	$(call build_quickly,ostewardd)
	rm -rf $(target)/install
	$(INSTALL) -D -m 0755 $(target)/debug/ostewardd $(target)/install$(libexecdir)/ostewardd
	$(MAKE) --no-print-directory install-data DESTDIR='$(abspath $(target))/install'
	.ci/check-units '$(abspath $(target))/install' '$(PREFIX)'
	rm -rf $(target)/install

# Scenarios on machines that boot the image that `make install` is part of. Debian's
# packages for them are fetched once, into target/boot.
BOOT ?=
.PHONY: test-boot
test-boot: deps boot-programs
	OSTEWARD_BIN_DIR='$(abspath $(lab))' $(as_root) \
		$(CARGO) test $(CARGOFLAGS) -p osteward-tests --test boot -- $(BOOT)

N ?= 200
SEED ?=
.PHONY: soak
soak: deps boot-programs
	OSTEWARD_BIN_DIR='$(abspath $(lab))' \
		OSTEWARD_CUTS=$(N) $(SEED:%=OSTEWARD_SEED=%) $(as_root) \
		$(CARGO) test $(CARGOFLAGS) -p osteward-tests --test boot -- power-cuts
	OSTEWARD_BIN_DIR='$(abspath $(lab))' \
		OSTEWARD_CROWD_SECONDS=$(N) $(SEED:%=OSTEWARD_CROWD_SEED=%) $(as_root) \
		$(CARGO) test $(CARGOFLAGS) -p osteward-tests --test crowd -- --nocapture
	OSTEWARD_BIN_DIR='$(abspath $(lab))' \
		OSTEWARD_KILLS=$(N) $(SEED:%=OSTEWARD_KILLS_SEED=%) $(as_root) \
		$(CARGO) test $(CARGOFLAGS) -p osteward-tests --test kills -- --nocapture
	OSTEWARD_BIN_DIR='$(abspath $(lab))' \
		OSTEWARD_VERSIONS=$(N) $(SEED:%=OSTEWARD_VERSIONS_SEED=%) $(as_root) \
		$(CARGO) test $(CARGOFLAGS) -p osteward-tests --test beside -- cleaning_up --nocapture

# A machine of the suite for whoever types at it: MACHINE is uml, container or qemu.
MACHINE ?= uml
SUITE ?= forky
.PHONY: vm
vm: deps manuals
	$(call build_quickly,$(if $(sudo),ostewardd osteward) osteward-vm)
	$(run_built)osteward-vm $(MACHINE) $(SUITE)

# What the suite finds built, so that its files are not root's.
.PHONY: boot-programs
boot-programs: manuals
	$(CARGO) build $(CARGOFLAGS) --profile lab -p ostewardd -p osteward
	$(build_oracle)

.PHONY: lint
lint: deps-build
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(CARGOFLAGS) --workspace --all-targets -- -D warnings
	$(CARGO) fmt --manifest-path $(oracle) --check
	CARGO_TARGET_DIR='$(abspath $(target))/oracle' \
		$(CARGO) clippy $(CARGOFLAGS) --manifest-path $(oracle) -- -D warnings
	command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny
	$(CARGO) deny --log-level error check licenses bans sources

# Apart from lint: the database may be out of reach, and what it says changes by the day.
.PHONY: advisories
advisories: deps-build
	command -v cargo-deny >/dev/null || $(CARGO) install --locked cargo-deny
	$(CARGO) deny check advisories

# What is measured is what `make` builds. The images are kept in target/bench.
BENCH ?= status update
.PHONY: bench
bench: deps
	$(CARGO) build $(CARGOFLAGS) --release -p ostewardd -p osteward
	$(build_oracle)
	$(build_oracle) --release
	OSTEWARD_BIN_DIR='$(abspath $(programs))' $(as_root) \
		$(CARGO) bench $(CARGOFLAGS) -p osteward-tests $(BENCH:%=--bench %)

.PHONY: deps
deps:
	@.ci/deps test

.PHONY: deps-build
deps-build:
	@.ci/deps build

.PHONY: clean
clean:
	# Tests that were killed leave deployments, which libostree makes immutable.
	[ ! -e $(target)/sandbox ] || { $(sudo) chattr -R -f -i $(target)/sandbox; $(sudo) rm -rf $(target)/sandbox; }
	[ ! -e $(target)/boot ] || $(sudo) rm -rf --one-file-system $(target)/boot
	[ ! -e $(target)/big-image ] || $(sudo) rm -rf $(target)/big-image
	[ ! -e $(target)/bench ] || $(sudo) rm -rf --one-file-system $(target)/bench
	$(CARGO) clean
