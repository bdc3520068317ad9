#!/usr/bin/env python3
"""Where the time of a step of TesseraQ and of PTQ1.61 goes: perf's samples of quantry_reconstruction_step and
quantry_ptq161_step by function, one core.

    .deps/venv/bin/python benchmarks/profile_step.py            # writes benchmarks/profiles/*.txt
    .deps/venv/bin/python benchmarks/profile_step.py --core 1 --seconds 60 --smollm2 FOLDER

PTQ1.61's step takes a checkpoint: the examples' and, where its folder is given, SmolLM2-135M.
Needs perf (Debian: linux-perf) and the release build. Kernels that oneDNN makes at run time are named through its own
map for perf; those of one kind are added up.
"""
import argparse
import collections
import datetime
import os
import pathlib
import re
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROFILES = ROOT / "benchmarks" / "profiles"
# Size, products' type, milliseconds a step about, to fill the seconds.
TESSERAQ = [("SmolLM2-135M", "float32", 500), ("SmolLM2-135M", "bfloat16", 275), ("tiny1m", "bfloat16", 11.5)]
ROUNDS = 3  # of quantry_ptq161_step over its windows
WIDTH = 100


def kind_of(name):
    """A symbol without what is particular to this run or longer than it tells."""
    if re.fullmatch(r"0x[0-9a-f]+", name):
        return "(no symbol)"
    kernel = re.search(r"at::native::[^;]*?(\w+_kernel)\(", name)
    if kernel and "callback_fn" in name:
        return f"at::native {kernel[1]}"
    name = re.sub(r"(jit_\w+?)(\.\d+)+$", r"\1", name)
    name = name.replace("quantry::engine::", "").replace("(anonymous namespace)::", "")
    return name if len(name) <= WIDTH else name[:WIDTH - 3] + "..."


def place_of(dso, name, command):
    if dso == command:
        return "quantry"
    if name.startswith("mkl_"):
        return "MKL"
    if dso.startswith("[JIT]"):
        return "oneDNN, made at run time"
    return "kernel" if dso.startswith("[kernel") or dso == "[unknown]" else re.sub(r"\.so.*", "", dso)


def samples(data, command):
    """(function, place) -> percent. Removes oneDNN's map, which it leaves beside all others."""
    text = subprocess.run(["perf", "report", "-i", data, "--stdio", "--no-children", "--sort", "dso,symbol", "-t", "\t"],
                          capture_output=True, text=True, check=True).stdout
    seen = collections.Counter()
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("\t")]
        if line.startswith("#") or len(fields) < 3:
            continue
        name = re.sub(r"^\[.\] ", "", fields[2])
        seen[kind_of(name), place_of(fields[1], name, command)] += float(fields[0].rstrip("%"))
    for task in set(re.findall(r"\[JIT\] tid (\d+)", text)):
        pathlib.Path(f"/tmp/perf-{task}.map").unlink(missing_ok=True)
    return seen


def profile(command, core):
    """What the program said, and its samples."""
    with tempfile.TemporaryDirectory() as scratch:
        data = os.path.join(scratch, "perf.data")
        # 2: a map of what oneDNN compiles, for perf.
        process = subprocess.Popen(["taskset", "-c", str(core), "perf", "record", "-q", "-F", "999", "-o", data, *command],
                                   env={**os.environ, "OMP_NUM_THREADS": "1", "ONEDNN_JIT_PROFILE": "2"},
                                   stdout=subprocess.PIPE, text=True)
        said = process.communicate()[0]
        if process.returncode != 0:
            raise SystemExit(f"perf record failed with {process.returncode}")
        return said.strip(), samples(data, command[0].name)


def commands(binaries, smollm2, seconds):
    """Name of the profile -> command."""
    found = {}
    for size, dtype, milliseconds in TESSERAQ:
        found[f"tesseraq-step-{size}-{dtype}"] = [binaries / "quantry_reconstruction_step", "--alone", "--size", size, "--compute-dtype", dtype,
                                                  "1", str(int(1000 * seconds / milliseconds))]
    models = [("tinystories-656k", ROOT / "examples" / "tinystories-656k", 256, 5)]
    if smollm2:
        models.append(("SmolLM2-135M", smollm2, 512, 80))
    for name, folder, length, milliseconds in models:
        for dtype in ("float32", "bfloat16"):
            windows = max(1, int(1000 * seconds / milliseconds / ROUNDS))
            found[f"ptq161-step-{name}-{dtype}"] = [binaries / "quantry_ptq161_step", "--alone", "--compute-dtype", dtype, folder,
                                                    str(length), str(windows), "1"]
    return found


def processor():
    model = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    return model[1] if model else "unknown"


def report(said, seen, top):
    lines = [said, f"{processor()}, {datetime.date.today()}", "", "percent  where                     function"]
    for (name, place), percent in seen.most_common(top):
        lines.append(f"{percent:7.2f}  {place:24}  {name}")
    places = collections.Counter()
    for (_, place), percent in seen.items():
        places[place] += percent
    lines += [f"{sum(seen.values()) - sum(p for _, p in seen.most_common(top)):7.2f}  the rest", "", "percent  where"]
    lines += [f"{percent:7.2f}  {place}" for place, percent in places.most_common() if percent >= 0.1]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, default=os.environ.get("QUANTRY_BIN", ROOT / "build/release/bin"),
                        help="folder of the release build's programs (default: QUANTRY_BIN, else build/release/bin)")
    parser.add_argument("--output", type=pathlib.Path, default=PROFILES)
    parser.add_argument("--only", default="", help="profiles whose names begin so: tesseraq, ptq161")
    parser.add_argument("--smollm2", type=pathlib.Path, default=os.environ.get("QUANTRY_SMOLLM2"),
                        help="folder of SmolLM2-135M (default: QUANTRY_SMOLLM2)")
    parser.add_argument("--core", type=int, default=0, help="of the CPU, for all of it")
    parser.add_argument("--seconds", type=float, default=30, help="of each profile, about")
    parser.add_argument("--top", type=int, default=25, help="functions that are listed")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name, command in commands(options.bin, options.smollm2, options.seconds).items():
        if not name.startswith(options.only):
            continue
        said, seen = profile(command, options.core)
        path = options.output / f"{name}.txt"
        path.write_text(report(f"{name}: {said}", seen, options.top))
        print(path.name, said)


if __name__ == "__main__":
    main()
