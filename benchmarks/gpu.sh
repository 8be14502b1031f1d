#!/usr/bin/env bash
# All of the GPU acceptance in one call, on a machine with an NVIDIA GPU:
#     benchmarks/gpu.sh OUT [MODEL...]
# OUT gets doctor.txt, tests.txt, demo/ (a run of the command line), gpu.json and gpu.md.
# $PYTHON (python3) must have histoseg with onnxruntime-gpu[cuda,cudnn], and onnx for the benchmark's U-Net;
# with pytest, the tests that a GPU concerns run too. Ends with one line of JSON; exits 1 when a check fails.
set -uo pipefail
[ $# -ge 1 ] || { echo "usage: benchmarks/gpu.sh OUT [MODEL...]" >&2; exit 2; }

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
out=$1
shift
mkdir -p "$out" || exit 1
failed=0

# says in one line that there is no GPU
command -v nvidia-smi >/dev/null || exec "$python" "$root/benchmarks/gpu.py" "$out" "$@"

"$python" -c 'from histoseg.doctor import main; main()' 2>&1 | tee "$out/doctor.txt" || failed=1

if "$python" -c 'import pytest, hypothesis' 2>/dev/null; then
    tests=("$root"/tests/runtime/test_{session,load,libraries,providers,probe}.py)
    "$python" -m pytest -c "$root/pyproject.toml" -p no:cacheprovider -rs "${tests[@]}" >"$out/tests.txt" 2>&1 ||
        failed=1
    tail -n 1 "$out/tests.txt"
fi

"$python" -c 'from histoseg.cli import main; main()' --demo --provider cuda -o "$out/demo" || failed=1

"$python" "$root/benchmarks/gpu.py" "$out" "$@" || failed=1
exit $failed
