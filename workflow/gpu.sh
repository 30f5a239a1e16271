#!/bin/sh
# Computes what is missing, as far as the seconds reach; exits with 75 while there is more to do.
#   sh run.sh [--seconds 480] [--device cuda] [--workers 5]
#   sh run.sh --collect OUT [--part-mib 16] [--parts 1-4]
# The environment variable PYTHON names the interpreter (python3); it needs torch.
began=$(date +%s)
here=$(cd "$(dirname "$0")" && pwd) || exit 1
python=${PYTHON:-python3}
if [ -d "$here/wheels" ] && [ ! -e "$here/site/.complete" ]; then
    for wheel in "$here"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$here/site" || exit 1; done
    : > "$here/site/.complete"
fi
# safe path: the package here, not one in the folder where this is called
export PYTHONPATH="$here:$here/site" PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
export HARVIS_KEYS="$here/keys.json" HARVIS_ARTIFACTS="$here/data/derived" HARVIS_PROGRESS="$here/progress.txt"
export OMP_WAIT_POLICY=PASSIVE MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296
unset HARVIS_JOURNAL
"$python" -c '
import importlib.util, json, sys
if sys.version_info < (3, 11):
    sys.exit("Python 3.11 or newer is needed; let PYTHON name one")
needs = json.load(open(sys.argv[1]))["needs"]
gone = [package for package, module in needs.items() if not importlib.util.find_spec(module)]
if gone:
    sys.exit("not installed here: " + ", ".join(gone) + "; install them, or pack again with --wheels-for")
' "$here/keys.json" || exit 1
exec "$python" -m workflow.gpu run --began "$began" "$@"
