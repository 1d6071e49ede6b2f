#!/usr/bin/env python3
"""Crosses Keyward's messages with those of AWS's Encryption SDK for Python, both ways, without a server.

    local.py --rust PATH [--big-mib N]

PATH is the example `esdk_local` of `crates/client`. For each suite, each content size that is at or beside a
boundary of frames, and one big file, each side reads what the other wrote; then each side must refuse a
damaged, a truncated and a foreign message of the other's. Prints one line a case; exit code 1 if any fails.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

import cross

KEY = "9f" * 32
OTHER_KEY = "60" * 32
SUITES = ["0x0478", "0x0578"]
FRAME = 4096
SIZES = [0, 1, FRAME - 1, FRAME, FRAME + 1, 3 * FRAME - 1, 3 * FRAME, 3 * FRAME + 1]
CONTEXTS = [[], ["purpose=cross test"], ["z=last", "a=first", "Ä=ümlaut", "é=", "A=capital"]]


class Case:
    """The two sides, and a folder to work in."""

    def __init__(self, rust, folder):
        self.rust, self.folder, self.failures, self.count = rust, folder, 0, 0

    def run(self, side, operation, source, target, suite, context, key=KEY, frame=None):
        arguments = [operation, "--in", str(source), "--out", str(target)]
        arguments += ["--suite", suite, "--local-key", key]
        for pair in context:
            arguments += ["--context", pair]
        if frame:
            arguments += ["--frame-length", str(frame)]
        if side == "python":
            return cross.main(arguments)
        return subprocess.run([self.rust, *arguments], capture_output=True, check=False).returncode

    def note(self, good, text):
        self.count += 1
        self.failures += not good
        print("ok  " if good else "FAIL", text)

    def both_ways(self, content, name, suite, context, frame):
        plain, message, back = (self.folder / file for file in ["plain", "message", "back"])
        plain.write_bytes(content)
        for writer, reader in [("rust", "python"), ("python", "rust")]:
            back.unlink(missing_ok=True)
            wrote = self.run(writer, "encrypt", plain, message, suite, context, frame=frame)
            read = self.run(reader, "decrypt", message, back, suite, context)
            same = wrote == 0 and read == 0 and back.read_bytes() == content
            self.note(same, f"{suite} {name}: {writer} writes, {reader} reads")

    def refusals(self, suite):
        plain, message, bad, back = (self.folder / file for file in ["plain", "message", "bad", "back"])
        plain.write_bytes(os.urandom(3 * FRAME))
        for writer, reader in [("rust", "python"), ("python", "rust")]:
            self.run(writer, "encrypt", plain, message, suite, [], frame=FRAME)
            whole = message.read_bytes()
            for name, damaged in {
                "a flipped bit in the header": whole[:200] + bytes([whole[200] ^ 1]) + whole[201:],
                "a flipped bit in the last frame": whole[:-200] + bytes([whole[-200] ^ 1]) + whole[-199:],
                "a cut by one byte": whole[:-1],
                "a cut by half": whole[: len(whole) // 2],
                "a byte appended": whole + b"x",
            }.items():
                bad.write_bytes(damaged)
                refused = self.run(reader, "decrypt", bad, back, suite, []) == 1
                self.note(refused, f"{suite} {writer} writes, {reader} refuses {name}")
            refused = self.run(reader, "decrypt", message, back, suite, [], key=OTHER_KEY) == 1
            self.note(refused, f"{suite} {writer} writes, {reader} refuses without the key")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rust", required=True, help="the example esdk_local")
    parser.add_argument("--big-mib", type=int, default=32, help="size of the big file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        case = Case(options.rust, pathlib.Path(folder))
        for suite in SUITES:
            for size in SIZES:
                for context in CONTEXTS:
                    name = f"{size} bytes, {len(context)} context pairs"
                    case.both_ways(os.urandom(size), name, suite, context, FRAME)
            big = os.urandom(options.big_mib << 20)
            for frame in [FRAME, 1 << 16, 1 << 20]:
                name = f"{options.big_mib} MiB in frames of {frame}"
                case.both_ways(big, name, suite, CONTEXTS[1], frame)
            case.refusals(suite)
    print(f"{case.count - case.failures} of {case.count} cases passed")
    return 1 if case.failures else 0


if __name__ == "__main__":
    sys.exit(main())
