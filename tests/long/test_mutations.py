"""Wrong numbers are noticed: the package is changed in one place at a time, and the tests of that place must fail.

``make test-mutations``. Each change is one that a person could make: an axis swapped, a window too short, the wrong
people, a threshold over zeros, a criterion loosened, a control that looks at training windows.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: name -> (file in the package, what stands there, what is put there, test files that must notice)
MUTATIONS = {
    "last window left out": (
        "data/windowing",
        "len(signal) - settings.length + 1,",
        "len(signal) - settings.length,",
        ["windows"],
    ),
    "wrong people": (
        "data/windowing",
        "_cut_split(recordings, dataset.split[name],",
        '_cut_split(recordings, dataset.split["train"],',
        ["windows"],
    ),
    "one deviation": (
        "data/windowing",
        "amplitude.mean() + 2 * amplitude.std()",
        "amplitude.mean() + amplitude.std()",
        ["windows"],
    ),
    "nearest sample": ("data/windowing", "np.interp(at, seen, axis)", "axis[np.searchsorted(seen, at)]", ["windows"]),
    "threshold over zeros": (
        "maximization/unit_statistics",
        "(each > 0).sum(1)",
        "(each >= 0).sum(1)",
        ["activations"],
    ),
    "threshold too low": ("maximization/unit_statistics", "mean + 2 * std", "mean + std", ["activations"]),
    "90 % point": ("maximization/unit_statistics", "0.95 * (n_outputs - 1)", "0.9 * (n_outputs - 1)", ["activations"]),
    "penalty over all samples": (
        "fast/gradients",
        "excess.sum(-1) / (excess > 0).sum(-1).clamp(min=1)",
        "excess.mean(-1)",
        ["engine"],
    ),
    "squared variation": (
        "fast/gradients",
        "x.diff(dim=-1).abs().sum(-1)",
        "x.diff(dim=-1).square().sum(-1)",
        ["engine"],
    ),
    "nothing clipped": (
        "fast/gradients",
        "torch.where(maps > th_eap[:, None], th_eap[:, None], maps)",
        "maps + 0",
        ["engine"],
    ),
    "axes swapped": (
        "metrics/nearest",
        "window * self.n_axes + axis[each]",
        "window + axis[each] * len(self.split)",
        ["nearest"],
    ),
    "weakest piece": ("metrics/similarity", "start = sums.argmax(1)", "start = sums.argmin(1)", ["similarity"]),
    "limit in another unit": (
        "metrics/similarity",
        "failed = amplitude > settings.fail_amplitude_g",
        "failed = amplitude > 9.81 * settings.fail_amplitude_g",
        ["similarity"],
    ),
    "half an interval": ("metrics/intervals", "LEVEL = (0.025, 0.975)", "LEVEL = (0.25, 0.75)", ["intervals"]),
    "C5 loosened": ("paper/claims", "HALF = 0.5", "HALF = 0.9", ["claims"]),
    "control from training": (
        "metrics/realism",
        "th_eap, windows.test, network.seed)",
        "th_eap, windows.train, network.seed)",
        ["realism"],
    ),
    "explained where it was made": (
        "paper/explaining",
        "windows.test, th_eap.sel(layer=layer), settings",
        "windows.train, th_eap.sel(layer=layer), settings",
        ["explanation", "variants"],
    ),
    "epoch chosen on test people": (
        "training/supervised",
        'np.nanargmax(notes["val_f1"])) == epoch',
        'np.nanargmax(notes["test_f1"])) == epoch',
        ["training"],
    ),
    "random weights": (
        "training/supervised",
        '    model.load_state_dict(part_of(found, "weights."))\n    history',
        "    history",
        ["training"],
    ),
    "share in place of overlap": (
        "lenses/dissection",
        "np.diff(units.indptr)[:, None] + size - both",
        "np.diff(units.indptr)[:, None] + size",
        ["lens_dissection"],
    ),
    "guided for deconvnet": (
        "networks/backward",
        "return torch.relu(gradient)\n",
        "return torch.relu(gradient) * (x > 0)\n",
        ["lens_deconvnet"],
    ),
    "votes across recordings": (
        "metrics/voting",
        "np.stack([split.recording[inside],",
        "np.stack([split.subject[inside],",
        ["self_attention"],
    ),
    "distance of products": ("metrics/generative", "- 2 * both))", "- both))", ["generators"]),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The project's tracked files, apart from what is published, in a folder of their own."""
    root = tmp_path_factory.mktemp("copy")
    for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines():
        if not name.startswith("reports/"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    return root


def run(root: Path, tests: list[str], where: Path) -> subprocess.CompletedProcess:
    """The tests of these names in a copy of the project, up to the first that fails."""
    files = [f"tests/test_{name}.py" for name in tests]
    place = {f"HARVIS_{name.upper()}": str(where / name) for name in ("artifacts", "reports")} | {
        "PYTHONPATH": str(root)
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *files]
    return subprocess.run(command, cwd=root, env=os.environ | place, capture_output=True, text=True, timeout=900)


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_number_is_noticed(copy, tmp_path, name):
    file, old, new, tests = MUTATIONS[name]
    path = copy / "harvis_utils" / f"{file}.py"
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, "the place to be changed is not there, or not alone"
    path.write_text(text.replace(old, new), encoding="utf-8")
    try:
        done = run(copy, tests, tmp_path)
    finally:
        path.write_text(text, encoding="utf-8")
    assert done.returncode == 1 and " failed" in done.stdout, f"nobody noticed:\n{done.stdout[-2000:]}"
