"""Bad input: a clear error naming wanted and got, nothing half-written, the server unharmed."""
import contextlib
import json
import os
import re
import socket
import struct
import subprocess

import pytest

from conftest import EXAMPLES, submit_args, wait_for
from random_models import write_random_model


def read_safetensors(path):
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8:8 + length]), raw[8 + length:]


def write_safetensors(path, header, data):
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def edit_config(model, **changes):
    config = json.loads((model / "config.json").read_text())
    config.update(changes)
    (model / "config.json").write_text(json.dumps(config))


def unknown_model_type(model):
    edit_config(model, model_type="gpt_bigcode", architectures=["GPTBigCodeForCausalLM"])


def missing_shard(model):
    header, _ = read_safetensors(model / "model.safetensors")
    names = [name for name in header if name != "__metadata__"]
    index = {"metadata": {}, "weight_map": {name: "model-00001-of-00002.safetensors" for name in names}}
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    index["weight_map"][names[-1]] = "model-00002-of-00002.safetensors"
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def index_escapes(model):
    missing_shard(model)
    path = model / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    last = list(index["weight_map"])[-1]
    index["weight_map"][last] = "../x.safetensors"
    path.write_text(json.dumps(index))


def truncated(model):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def header_length_huge(model):
    path = model / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**63) + path.read_bytes()[8:])


def header_nested_deep(model):
    """A parser that calls itself for each level would leave its stack."""
    path = model / "model.safetensors"
    text = b'{"a":' * 10_000 + b"1" + b"}" * 10_000
    path.write_bytes(struct.pack("<Q", len(text)) + text + read_safetensors(path)[1])


def overlapping_offsets(model):
    path = model / "model.safetensors"
    header, data = read_safetensors(path)
    header["model.norm.weight"]["data_offsets"] = [0, 256]
    write_safetensors(path, header, data)


def unknown_dtype(model):
    path = model / "model.safetensors"
    header, data = read_safetensors(path)
    header["model.norm.weight"]["dtype"] = "F37"
    write_safetensors(path, header, data)


def nan_in(tensor):
    """Its last value: of the embedding, in a row that no text uses."""
    def damage(model):
        path = model / "model.safetensors"
        header, data = read_safetensors(path)
        _, end = header[tensor]["data_offsets"]
        write_safetensors(path, header, data[:end - 4] + struct.pack("<f", float("nan")) + data[end:])
    damage.__name__ = "nan_in_" + tensor
    return damage


def shapes_contradict(model):
    edit_config(model, intermediate_size=176)


def small_vocabulary(model):
    edit_config(model, vocab_size=256)
    path = model / "model.safetensors"
    header, data = read_safetensors(path)
    assert header["model.embed_tokens.weight"]["data_offsets"] == [0, 131072]
    smaller = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            entry = {**entry, "data_offsets": [max(0, begin - 65536), end - 65536]}
        smaller[name] = entry
    smaller["model.embed_tokens.weight"]["shape"] = [256, 64]
    write_safetensors(path, smaller, data[65536:])


def pickle_only(model):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


BROKEN_MODELS = [
    (unknown_model_type, "UNSUPPORTED_ARCHITECTURE", ["gpt_bigcode", "llama"]),
    (missing_shard, "INVALID_CHECKPOINT", ["model-00002-of-00002.safetensors"]),
    (index_escapes, "INVALID_CHECKPOINT", ["../x"]),
    (truncated, "INVALID_CHECKPOINT", ["model.safetensors"]),
    (header_length_huge, "INVALID_CHECKPOINT", ["9223372036854775808"]),
    (header_nested_deep, "INVALID_CHECKPOINT", ["unknown field 'a'"]),
    (overlapping_offsets, "INVALID_CHECKPOINT", ["overlaps"]),
    (unknown_dtype, "INVALID_CHECKPOINT", ["F37"]),
    *((nan_in(tensor), "NON_FINITE_WEIGHTS", [tensor]) for tensor in
      ("model.layers.2.self_attn.q_proj.weight", "model.norm.weight", "model.embed_tokens.weight")),
    (shapes_contradict, "INVALID_CHECKPOINT", ["172", "176"]),
    (small_vocabulary, "INVALID_TOKENIZER", ["256"]),
]


@pytest.fixture(scope="module")
def shared_server(binaries, tmp_path_factory):
    from conftest import Server
    server = Server(binaries, tmp_path_factory.mktemp("bad") / "data", local_roots=[EXAMPLES]).start()
    yield server
    server.stop()


def written(server):
    """Every file of artifacts, attempts and uploads that are not whole; stored checkpoints are kept for a retry."""
    data = server.data_dir
    places = [data / "artifacts", data / "worker/jobs", data / "tmp", *(data / "blobs").glob("*/.partial")]
    return {path for place in places for path in place.rglob("*") if path.is_file() and "checkpoints" not in path.parts}


@contextlib.contextmanager
def nothing_half_written(server):
    """What happens inside leaves no such file. The worker tells the server first and tidies up then."""
    before = written(server)
    yield
    wait_for(lambda: written(server) <= before, 10, f"these files to go: {sorted(written(server) - before)}")


def fails(server, args, reason, words):
    """The CLI refuses before the upload (2), or the job fails (1) and has no artifact."""
    with nothing_half_written(server):
        done = server.cli(*args, "--wait", "--output", "json")
    text = done.stdout + done.stderr
    assert done.returncode in (1, 2), text
    assert reason in text, text
    for word in words:
        assert word in text, f"{word!r} not in {text}"
    if done.returncode == 1:
        assert not json.loads(done.stdout).get("artifact"), text


@pytest.mark.parametrize("breaks, reason, words", BROKEN_MODELS, ids=[row[0].__name__ for row in BROKEN_MODELS])
def test_broken_model(shared_server, model_copy, breaks, reason, words):
    breaks(model_copy)
    fails(shared_server, submit_args(model_copy), reason, words)


@pytest.mark.parametrize("breaks, reason, words", [row for row in BROKEN_MODELS if row[0] in (missing_shard, index_escapes)],
                         ids=["missing_shard", "index_escapes"])
def test_broken_index_below_a_root(make_server, model_copy, breaks, reason, words):
    breaks(model_copy)
    server = make_server(local_roots=[model_copy.parent]).start()
    fails(server, path_args(model_copy), reason, words)


def test_pickle_only_checkpoint_says_how_to_convert(shared_server, model_copy):
    pickle_only(model_copy)
    fails(shared_server, submit_args(model_copy), "CHECKPOINT_FORMAT_REFUSED", ["pytorch_model.bin", "safe_serialization=True"])


def test_group_size_that_does_not_divide(shared_server, stories):
    fails(shared_server, submit_args(stories, group=128), "INVALID_SPEC", ["q_proj", "down_proj", "172"])


def test_a_check_refuses_at_once_what_the_model_cannot_do(shared_server, stories):
    with nothing_half_written(shared_server):
        done = shared_server.cli(*submit_args(stories, "--check", "--output", "json", group=128))
    assert done.returncode == 2 and "172" in done.stdout + done.stderr, (done.stdout, done.stderr)
    assert json.loads(done.stdout)["error"]["reason"] == "INVALID_SPEC"


def test_a_check_refuses_a_size_that_cannot_be_rotated(shared_server, tmp_path):
    """While activations are quantized inputs are rotated as the model runs; no Hadamard matrix of 2^k x 12, 20, 28, 36, 40 ... has 184 rows."""
    write_random_model(tmp_path / "model", "llama-gqa-tied", intermediate_size=184)
    for method, extra in (("quarot", []), ("tesseraq", ["--init", "quarot"])):
        args = submit_args(tmp_path / "model", "--check", "--output", "json", "--activation-bits", 4, *extra, method=method)
        with nothing_half_written(shared_server):
            done = shared_server.cli(*args, check=2)
        error = json.loads(done.stdout)["error"]
        assert error["reason"] == "INVALID_SPEC" and "intermediate_size" in error["message"] and "184" in error["message"], error


@pytest.mark.parametrize("flag", ["--calibration", "--evaluation"])
def test_a_check_refuses_a_text_that_cannot_hold_the_windows(shared_server, stories, tmp_path, flag):
    text = tmp_path / "short.txt"
    text.write_text("Once upon a time there was a fox.")
    args = submit_args(stories, "--check", "--output", "json")
    args[args.index(flag) + 1] = text
    with nothing_half_written(shared_server):
        done = shared_server.cli(*args, check=2)
    error = json.loads(done.stdout)["error"]
    assert error["reason"] == "INVALID_SPEC"
    assert f"INVALID_{flag[2:].upper()}: {flag[2:]} text has 33 bytes, at most 34 tokens = 0 windows of 128, 32 are asked for" in error["message"]


@pytest.mark.parametrize("samples, length, lines", [(32, 128, 250), (512, 512, 15_000)])
def test_a_check_counts_tokens_where_bytes_leave_a_doubt(shared_server, stories, tmp_path, samples, length, lines):
    text = tmp_path / "few.txt"
    text.write_text("Once upon a time there was a fox. " * lines)  # 34 bytes a line: more than the tokens wanted, which are fewer
    args = submit_args(stories, "--check", "--output", "json", samples=samples, length=length)
    args[args.index("--calibration") + 1] = text
    with nothing_half_written(shared_server):
        done = shared_server.cli(*args, check=2)
    message = json.loads(done.stdout)["error"]["message"]
    assert re.search(rf"INVALID_CALIBRATION: .* has \d+ tokens = \d+ windows of {length}, {samples} are asked for", message), message


def test_a_check_refuses_a_corpus_and_adapters_that_cannot_work(shared_server, stories, tmp_path):
    """What preprocessing would fail on, told before it is queued."""
    short = tmp_path / "short.txt"
    short.write_text("Once upon a time there was a fox.")
    corpus = EXAMPLES / "text" / "calibration.txt"
    args = ["submit", stories, "--method", "ptq161", "--calibration", corpus, "--calibration-samples", 32,
            "--calibration-length", 128, "--preprocessing", "lora", "--check", "--output", "json"]
    for flags, words in ((("--preprocessing-corpus", short), "preprocessing corpus text has 33 bytes"),
                         (("--preprocessing-corpus", corpus, "--preprocessing-rank", 1000), "at most 32")):
        with nothing_half_written(shared_server):
            done = shared_server.cli(*args, *flags, check=2)
        error = json.loads(done.stdout)["error"]
        assert error["reason"] == "INVALID_SPEC" and words in error["message"], error


def test_a_first_pass_of_no_known_recipe(shared_server, stories, tmp_path):
    config = tmp_path / "restore.json"
    config.write_text('{"restore": {"first_pass": {"recipe": "ptq161-pluss"}}}')
    args = ["submit", stories, "--method-config", config, "--calibration", EXAMPLES / "text" / "calibration.txt",
            "--preprocessing-corpus", EXAMPLES / "text" / "calibration.txt"]
    with nothing_half_written(shared_server):
        done = shared_server.cli(*args, check=2)
    assert "restore.first_pass.recipe" in done.stderr and "one of ptq161, ptq161-plus, got 'ptq161-pluss'" in done.stderr, done.stderr


def test_rotation_alone_needs_no_calibration(shared_server, stories, tmp_path):
    """As its description says; with gptq it does."""
    shared_server.cli("submit", stories, "--method", "quarot", "--bits", 4, "--group-size", 64, "--check")
    config = tmp_path / "gptq.json"
    config.write_text('{"quarot": {"grid": {"bits": 4, "group_size": 64}, "gptq": true}}')
    done = shared_server.cli("submit", stories, "--method-config", config, "--check", check=2)
    assert "quarot needs one" in done.stderr, done.stderr


def test_bits_out_of_range(shared_server, stories):
    with nothing_half_written(shared_server):
        done = shared_server.cli(*submit_args(stories, bits=5), check=2)
    assert "5" in done.stderr and "bits" in done.stderr


@pytest.mark.parametrize("content, reason, words", [
    (b"", "CALIBRATION", ["is empty: wanted text to take windows of tokens from"]),
    (b"Once upon a time there was a fox.", "CALIBRATION",
     ["has 11 tokens = 0 windows of 128, 32 are asked for: give more text, or ask for fewer or shorter windows"]),
    (b"Once upon a time \xff\xfe there was " * 4000, "CALIBRATION", ["UTF-8", "17"]),
], ids=["empty", "too little", "not UTF-8"])
def test_calibration_text(shared_server, stories, tmp_path, content, reason, words):
    text = tmp_path / "calibration.txt"
    text.write_bytes(content)
    args = submit_args(stories)
    args[args.index("--calibration") + 1] = text
    fails(shared_server, args, reason, words)


def path_args(path):
    args = submit_args(path, method="rtn", evaluation=False)
    args[1:2] = ["--model-path", str(path)]
    return args


def test_model_path_outside_the_roots(shared_server, model_copy):
    with nothing_half_written(shared_server):
        done = shared_server.cli(*path_args(model_copy))
    assert done.returncode in (2, 5)
    assert "SOURCE_FORBIDDEN" in done.stderr and str(model_copy) in done.stderr


def test_model_path_through_a_symlink(make_server, model_copy, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(model_copy)
    server = make_server(local_roots=[root]).start()
    with nothing_half_written(server):
        done = server.cli(*path_args(root / "link"))
    assert done.returncode in (2, 5)
    assert "SOURCE_FORBIDDEN" in done.stderr


def test_request_id_same_and_other_payload(shared_server, stories):
    request = "11111111-2222-4333-8444-555555555555"
    first = shared_server.json(*submit_args(stories, "--request-id", request, method="rtn", evaluation=False))
    second = shared_server.json(*submit_args(stories, "--request-id", request, method="rtn", evaluation=False))
    assert first["name"] == second["name"]
    other = shared_server.cli(*submit_args(stories, "--request-id", request, method="rtn", bits=3, evaluation=False), check=2)
    assert "REQUEST_ID_REUSED" in other.stderr


def test_id_taken(shared_server, stories):
    shared_server.json(*submit_args(stories, "--id", "taken", method="rtn", evaluation=False))
    done = shared_server.cli(*submit_args(stories, "--id", "taken", method="rtn", evaluation=False), check=2)
    assert "JOB_ID_TAKEN" in done.stderr


def test_delete_of_a_running_job(make_server, stories):
    server = make_server().start()
    server.json(*submit_args(stories, "--id", "running", samples=48, length=256))
    done = server.cli("delete", "running", check=2)
    assert "JOB_NOT_ENDED" in done.stderr
    assert server.json("watch", "running")["state"] == "SUCCEEDED"


def test_two_servers_on_one_data_folder(make_server, tmp_path):
    make_server().start()
    second = make_server()
    assert second.start(expect_failure=True) != 0
    assert "DATA_DIR_LOCKED" in second.log_text() or "in use" in second.log_text()


def test_unknown_flag_and_config_key(binaries, tmp_path):
    config = tmp_path / "config.json"
    config.write_text('{"data_dirr": "/tmp/x"}')
    for arguments in (["--data-dirr=/tmp/x"], [f"--config={config}", "--check-config"]):
        done = subprocess.run([binaries / "quantryd", *arguments], capture_output=True, text=True, timeout=20)
        assert done.returncode == 2
        assert "data_dir" in done.stderr.replace("-", "_")


@pytest.mark.parametrize("setting, says", [
    ("--hub-endpoint=foo", "hub_endpoint: wanted https://HOST"), ("--engine-user=no-such-account", "no-such-account"),
    ("QUANTRY_MIN_FREE_DISK_BYTES=abc", "abc"), ("--artifact-root=/tmp/foo", "wanted file:///FOLDER"),
    ("--blob-root=s3://key:secret@bucket/prefix", "holds credentials"), ("--worker-binary=/no/such", "/no/such")])
def test_settings_of_the_embedded_worker_are_checked(binaries, tmp_path, setting, says):
    """With a flag of the server or not, --check-config and a start say what the worker would die of."""
    arguments, environment = ([setting], {}) if setting.startswith("-") else ([], dict([setting.split("=")]))
    for check in (["--check-config"], []):
        done = subprocess.run([binaries / "quantryd", f"--data-dir={tmp_path}", *arguments, *check], env={**os.environ, **environment},
                              capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and says in done.stderr, done.stderr


def test_a_checked_configuration_is_one_object(binaries, tmp_path):
    done = subprocess.run([binaries / "quantryd", f"--data-dir={tmp_path}", "--check-config"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["data_dir"] == str(tmp_path)


def test_a_worker_for_a_gpu_that_is_not_there(binaries, tmp_path):
    """It would take every job and fail it."""
    done = subprocess.run([binaries / "quantry-worker", f"--work-dir={tmp_path}", "--admin-listen=127.0.0.1:0", "--device=cuda:99",
                           "--engine-user=root"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "--device=cuda:99: wanted a device that the engine can use (cpu" in done.stderr, done.stderr


def test_workers_of_one_machine_have_ids_of_their_own(binaries, tmp_path):
    """Two processes under one id would take each other's jobs for ever: each looks like the other one's restart."""
    def worker_id(folder):
        done = subprocess.run([binaries / "quantry-worker", f"--work-dir={folder}", "--check-config"], capture_output=True, text=True,
                              timeout=20)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["worker_id"]

    first, second = worker_id(tmp_path / "a"), worker_id(tmp_path / "b")
    assert first != second
    assert worker_id(f"{tmp_path}/x/../a/") == first, "the same folder, the same worker"
    assert first.startswith(socket.gethostname())


def test_a_worker_at_the_tenant_port(shared_server, binaries, tmp_path):
    """As with the QUANTRY_SERVER of clients exported."""
    done = subprocess.run([binaries / "quantry-worker", f"--work-dir={tmp_path}/work", "--admin-listen=127.0.0.1:0"],
                          env={**os.environ, "QUANTRY_SERVER": shared_server.address}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "wanted quantryd's worker port" in done.stderr and shared_server.address in done.stderr, done.stderr


def test_an_answer_that_cannot_be_written_is_no_success(shared_server):
    version = [shared_server.binaries / "quantry", "version"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(version, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert "cannot write" in done.stderr
    # Whoever reads no more of a pipe has had what he wanted.
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(version, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_server_unharmed_after_all_that(shared_server, stories):
    assert shared_server.json(*submit_args(stories, "--wait"))["state"] == "SUCCEEDED"
