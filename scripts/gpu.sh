#!/usr/bin/env bash
# Everything that needs a GPU, on a machine without a network, in under ten minutes: install, the tests with the CUDA
# back end, the memory, race and barrier checkers on the small ones, the benchmarks. After the build every stage runs
# even if another failed, and none can eat the others' time; SKIP=REGEX leaves stages out.
# Leaves junit.xml, benchmarks.json, log.txt in $GPU_OUT.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

out=${GPU_OUT:-build/gpu}
wheels=${GPU_WHEELS:-.gpu-wheels}
site=$PWD/build/gpu-site
python=${PYTHON:-python3}
mkdir -p "$out" build
out=$(cd "$out" && pwd)
exec > >(tee "$out/log.txt") 2>&1
log=$!

names=() results=() spent=()
stage() { # stage NAME SECONDS COMMAND...
  local name=$1 limit=$2 begin=$SECONDS status=0
  shift 2
  [[ -n ${SKIP:-} && $name =~ $SKIP ]] && return
  echo "==== $name (at most $limit s)"
  timeout --kill-after=10 "$limit" "$@" || status=$?
  names+=("$name")
  spent+=($((SECONDS - begin)))
  case $status in
    0) results+=(passed) ;;
    124 | 137) results+=("failed: out of time") ;;
    *) results+=("failed: exit $status") ;;
  esac
  return "$status"
}

summary() {
  local failed=0 i
  echo "==== summary, ${SECONDS} s"
  for i in "${!names[@]}"; do
    printf '%-28s %5s s  %s\n' "${names[i]}" "${spent[i]}" "${results[i]}"
    [[ ${results[i]} == passed ]] || failed=$((failed + 1))
  done
  echo "$((${#names[@]} - failed)) stages passed, $failed failed"
  exec >&- 2>&- # so that the log ends, and all of it is written
  wait "$log"
  exit $((failed > 0))
}

# shellcheck disable=SC2317,SC2329  # called by the shells that `stage` starts
pip_install() {
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$@"
}
export -f pip_install
export python site

rm -rf "$site"
nvidia-smi --query-gpu=name,driver_version,compute_cap --format=csv,noheader || true
if compgen -G "$wheels/*.whl" >/dev/null; then
  stage "wheels" 40 bash -c 'pip_install "$@"' _ "$wheels"/*.whl
fi
CMAKE_BUILD_PARALLEL_LEVEL=$(nproc)
export CMAKE_BUILD_PARALLEL_LEVEL
stage "build and install" 150 bash -c 'pip_install --no-build-isolation .' || summary
export PYTHONPATH=$site

stage "import" 30 "$python" -c '
import torch, fastshape
from fastshape import _C
print("torch", torch.__version__, torch.cuda.get_device_name(), "| fastshape", fastshape.__version__, _C.compiler,
      "| sm", _C.cuda_architectures)
assert _C.cuda_architectures, "built without CUDA kernels"' || summary

# Many processes with few threads each: most of a test's time is Python's.
export OMP_NUM_THREADS=2
workers=(-p no:cacheprovider -n 12)

# What takes long and never touches a GPU is left to CI.
stage "tests" 150 "$python" -m pytest -q "${workers[@]}" --require-backends cpu,cuda -m "not slow" \
  --ignore=tests/emulation --ignore=tests/train --ignore=tests/cli --ignore=tests/test_install.py --ignore=tests/test_benchmarks.py \
  --durations=10 --junitxml="$out/junit.xml"

# shellcheck disable=SC2317,SC2329
check_kernels() { # check_kernels TOOL: the tests' own verdict is the stage before; here the checker's counts
  # Without torch's allocator each tensor is an allocation of its own, so that memcheck sees where it ends.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$checker" --tool "$1" --target-processes all --kernel-name kns=fastshape \
    --report-api-errors no --log-file "$out/$1-%p.log" \
    "$python" -m pytest -q "${workers[@]}" -k cuda -m "not slow" --require-backends cuda tests/ops
  local status=$?
  cat "$out/$1"-*.log >"$out/$1.log" && rm "$out/$1"-*.log
  grep -h '^=========' "$out/$1.log" | grep -v 'ERROR SUMMARY: 0\|RACECHECK SUMMARY: 0\|COMPUTE-SANITIZER' | head -40
  ((status == 0)) && ! grep -q 'SUMMARY: [1-9]' "$out/$1.log"
}
export -f check_kernels
checker=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
export checker out
for tool in memcheck racecheck synccheck; do
  stage "$tool" 60 bash -c "workers=(${workers[*]}); check_kernels $tool"
done

unset OMP_NUM_THREADS
for device in cuda cpu; do
  stage "benchmarks, $device" 90 "$python" -m benchmarks --device "$device" --seconds 0.3 --output "$out/benchmarks.json"
done
summary
