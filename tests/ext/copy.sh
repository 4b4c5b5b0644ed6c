# Sourced by the scripts beside it: makes a copy of the tree without built extensions, enters it, removes it at exit.
# Sets copy (the folder) and python (an absolute path where PYTHON is one of a file).
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
case $python in */*) python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") ;; esac
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r "$root/setup.py" "$root/pyproject.toml" "$root/README.md" "$root/LICENSE" "$root/csrc" "$root/kernels" \
  "$root/latte_fast" "$root/tests" "$copy"
rm -f "$copy"/latte_fast/*.so
cd "$copy"
