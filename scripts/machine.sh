# What the scripts ask of a machine: Debian or Ubuntu, a Rust toolchain, packages, root. Sourced by them, not run.
#
# Every function ends the script with a sentence that says what is missing when it cannot go on.

say() { printf '\n==> %s\n' "$*"; }

fail() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        command -v sudo > /dev/null || fail "this needs root: run it as root, or install sudo (while running: $*)"
        sudo -- "$@"
    fi
}

# A toolchain that can build Kiln.
need_rust() {
    command -v cargo > /dev/null || [ ! -x "$HOME/.cargo/bin/cargo" ] || PATH=$HOME/.cargo/bin:$PATH
    command -v cargo > /dev/null || fail "cargo is missing: install a Rust toolchain from https://rustup.rs, then run this again"
    local needed have
    needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    have=$(rustc --version | cut -d ' ' -f 2)
    printf '%s\n%s\n' "$needed" "$have" | sort -VC || fail "Rust $needed or later is needed, this is $have: rustup update stable"
}

# Installs the Debian packages that are not there yet: `need_packages PACKAGE...`.
need_packages() {
    command -v apt-get > /dev/null || fail "there is no apt-get: install the equivalents of these Debian packages and comment this check out: $*"
    local package missing=()
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2> /dev/null | grep -qx installed || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    say "installing ${missing[*]}"
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)
    as_root "${apt[@]}" update || fail "apt-get update failed: is the network there?"
    as_root "${apt[@]}" install --no-install-recommends "${missing[@]}" > /dev/null || fail "apt-get could not install ${missing[*]}"
}

# What Kiln's build needs besides Rust: a C compiler and the C library to link statically.
need_compiler() { need_packages gcc libc6-dev ca-certificates; }
