#!/bin/sh
# Installs the system packages that a build needs and that are missing. Debian and its kin.
#
#   C++ compiler, libclang   RocksDB and its bindings
#   python3-venv             clients of other languages, for the tests
#   libfaketime, iproute2    wrong clocks and networks of one's own, for the tests
#   softhsm2, opensc         a PKCS#11 token in software and a tool that looks into it, for the tests
#   chromium                 opens the report of a drill, for the tests
set -eu

missing=""
need() { # need PACKAGE COMMAND...: PACKAGE is missing when COMMAND fails
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}
# libclang-cpp is another library, which other packages bring.
has_libclang() { ls /usr/lib/llvm-*/lib/libclang*.so* /usr/lib/*/libclang*.so* 2>/dev/null | grep -qv libclang-cpp; }

has_faketime() { ls /usr/lib/*/faketime/libfaketime.so.1 2>/dev/null | grep -q .; }

need g++ g++ --version
need make make --version
need libclang-dev has_libclang
need python3-venv python3 -c 'import venv, ensurepip'
need softhsm2 softhsm2-util --version
need opensc command -v pkcs11-tool
need libfaketime has_faketime
need iproute2 command -v ip
need chromium command -v chromium
need ca-certificates test -d /etc/ssl/certs

[ -n "$missing" ] || exit 0
echo "installing:$missing"
if ! command -v apt-get >/dev/null 2>&1; then
    echo "this is not a Debian: install the equivalents of:$missing" >&2
    exit 1
fi
sudo=""
[ "$(id -u)" = 0 ] || sudo="sudo"
$sudo apt-get update -qq
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends $missing
