#!/bin/sh
# Builds RocksDB once per machine and prints the folder that holds librocksdb.a, for ROCKSDB_LIB_DIR.
#
# Cargo would compile it again for every profile, clone and tool (ten minutes or more each). The library
# is kept in the user's cache, by the version of librocksdb-sys that Cargo.lock names. Without it
# everything still builds: set KEYWARD_ROCKSDB=build to have Cargo compile it itself.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
version=$(sed -n '/^name = "librocksdb-sys"$/{n;s/^version = "\(.*\)"$/\1/p;}' "$root/Cargo.lock")
target=$(rustc -vV | sed -n 's/^host: //p')
folder="${XDG_CACHE_HOME:-$HOME/.cache}/keyward/librocksdb-sys-$version-$target"

if [ ! -f "$folder/librocksdb.a" ]; then
    echo "compiling RocksDB once for this machine: about 10 minutes on two cores" >&2
    mkdir -p "$folder"
    work="$folder/build.$$"
    trap 'rm -rf "$work"' EXIT
    CARGO_TARGET_DIR="$work" cargo build --manifest-path "$root/Cargo.toml" --release --locked \
        --quiet -p librocksdb-sys >&2
    library=$(find "$work/release/build" -name librocksdb.a | head -n 1)
    [ -n "$library" ] || { echo "RocksDB was built and librocksdb.a is not there" >&2; exit 1; }
    # A rename: another build at the same time finds it whole or not at all.
    mv "$library" "$folder/librocksdb.a.$$"
    mv "$folder/librocksdb.a.$$" "$folder/librocksdb.a"
fi
echo "$folder"
