"""The code of README.md and docs/python.md, run as it is written but for the size of the job."""
import os
import re
import subprocess
import sys

import pytest

import quantry
from conftest import EXAMPLES, ROOT, TESTS
from quantry import errors

SMALLER = {
    '"127.0.0.1:7070"': "os.environ['QUANTRY_SERVER']",
    "group_size=128": 'group_size="channel", calibration_samples=8, calibration_length=64, evaluation_windows=8',
    'method="rtn"': 'method="rtn", group_size="channel"',
    "progress=True": "progress=lambda job: None",
}


def blocks(path):
    return re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)


def run(code, folder, server):
    for old, new in SMALLER.items():
        code = code.replace(old, new)
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), "QUANTRY_SERVER": server.address}
    done = subprocess.run([sys.executable, "-c", f"import os\n{code}"], cwd=folder, env=environment, capture_output=True,
                          text=True, timeout=100)
    assert done.returncode == 0, code + done.stderr
    return done.stdout


def test_readme(server, stories, tmp_path):
    synopsis, pipeline, _, dense = blocks("client/python/README.md")
    for name, source in (("my-model", stories), ("model", stories), ("train.txt", EXAMPLES / "text/calibration.txt"),
                         ("test.txt", EXAMPLES / "text/evaluation.txt")):
        (tmp_path / name).symlink_to(source)
    ratio, folder = run(synopsis, tmp_path, server).split()
    assert 1 < float(ratio) < 2 and folder == "my-model-w4"
    assert quantry.LocalArtifact(tmp_path / folder).verify() > 6
    run(f"import quantry\nclient = quantry.connect()\n{pipeline}", tmp_path, server)
    run(f"import quantry\n{dense}", tmp_path, server)
    assert (tmp_path / "my-model-dense/model.safetensors").exists()


def test_readme_of_the_project(server, stories, tmp_path):
    (code,) = blocks("README.md")
    (tmp_path / "my-model").symlink_to(stories)
    (tmp_path / "train.txt").symlink_to(EXAMPLES / "text/calibration.txt")
    small = ', group_size="channel", calibration_samples=8, calibration_length=64)'
    run("import quantry\n" + code.replace('calibration="train.txt")', f'calibration="train.txt"{small}'), tmp_path, server)
    assert quantry.LocalArtifact(tmp_path / "my-model-w4").verify() > 6


@pytest.mark.full
def test_data_frames(client, finished, tmp_path):
    pandas = pytest.importorskip("pandas", reason="pandas is an extra, not in the default test environment")
    client.pull(finished, tmp_path / "w4")
    frame = pandas.DataFrame(quantry.LocalArtifact(tmp_path / "w4").block_rows())
    assert frame["block"].tolist() == [0, 1, 2, 3, 4] and (frame["loss_final"] <= frame["loss_rtn"]).all()
    jobs = pandas.DataFrame([job.row() for job in client.list(state="succeeded")])
    ratios = jobs.groupby(["method", "recipe", "preprocessing", "bits"], dropna=False)["perplexity_ratio"].min()
    assert ratios["awq", "", "none", 4] > 1


def test_the_reference_names_what_there_is():
    """Every argument, method, attribute and error of the package is in docs/python.md."""
    text = (ROOT / "docs/python.md").read_text()
    from quantry._arguments import Arguments
    from quantry.job import Event, Job, Progress, Quote
    names = set(Arguments.__dataclass_fields__) | set(errors.__all__) - {"Violation"}
    for kind in (quantry.Client, Job, Progress, Event, Quote, quantry.LocalArtifact):
        names |= {name for name, value in vars(kind).items() if not name.startswith("_") and kind is not quantry.Client
                  or callable(value) and not name.startswith("_")}
    missing = sorted(name for name in names - {"close", "of", "proto"} if not re.search(rf"\b{name}\b", text))
    assert not missing


def test_tree_of_errors_is_the_documented_one():
    text = (ROOT / "docs/python.md").read_text()
    tree = re.search(r"```\n(QuantryError .*?)```", text, re.DOTALL).group(1)
    assert set(re.findall(r"^\W*([A-Z]\w+)", tree, re.MULTILINE)) == set(errors.__all__) - {"Violation"}
