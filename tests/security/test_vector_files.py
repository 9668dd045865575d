"""A vector's folder from a stranger: read, or refused in one line; nothing in it is run, nothing large is made."""

import json
import os
import struct
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as serialize

from steerkit.cli import main
from steerkit.errors import PluginError, SteerkitError, VectorError
from steerkit.hookpoints import HookPoint
from steerkit.interventions import Static
from steerkit.testing import randomize
from steerkit.vectors import CONFIG_FILE, TENSOR_FILE, SteeringVector, VectorMetadata
from steerkit.vectors.files import digest_of

FEW = settings(
    max_examples=30,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def parts():
    """The two files of a good vector: (tensors, config)."""
    items = Static.build([HookPoint(2), HookPoint(0)], 32)
    for seed, item in enumerate(items.values()):
        randomize(item, seed)
    vector = SteeringVector.from_interventions("static", items, VectorMetadata(model="org/tiny", n_layers=3))
    return {f"{point}/{name}": t for point, named in vector.tensors.items() for name, t in named.items()}, vector


@pytest.fixture
def folder(parts, tmp_path, monkeypatch):
    parts[1].save_pretrained(tmp_path / "vector")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "vector"


def write(folder, tensors=None, header=None, **changes):
    """A stranger's vector whose digest fits."""
    config = json.loads((folder / CONFIG_FILE).read_text()) | changes
    if tensors is not None:
        (folder / TENSOR_FILE).write_bytes(serialize(tensors, metadata=header))
        config["digest"] = digest_of(tensors)
    (folder / CONFIG_FILE).write_text(json.dumps(config))


def use(folder):
    """All that is done with a vector before it meets a model."""
    vector = SteeringVector.from_pretrained(folder)
    vector.norms(), vector.random_like(0), vector.to_interventions(), vector.save_pretrained("again")


@pytest.fixture
def code(tmp_path):
    """Code in the working directory that leaves a mark when it is imported."""
    (tmp_path / "evil.py").write_text(
        "open('owned', 'w').close()\nfrom steerkit.interventions import Static\nclass Evil(Static):\n    pass\n"
    )
    return tmp_path / "owned"


@pytest.mark.parametrize("spec", ["evil.py:Evil", "evil:Evil", "subprocess:Popen", "os:system"])
def test_a_file_can_not_name_code(folder, code, spec, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder.parent)])
    write(folder, intervention=spec)
    with pytest.raises(
        VectorError, match=r"names code to run, .* instead of an installed intervention.*allow_code=True"
    ):
        SteeringVector.from_pretrained(folder)
    assert not code.exists()


def test_it_can_once_the_user_says_so(folder, code, capsys):
    write(folder, intervention="evil.py:Evil")
    vector = SteeringVector.from_pretrained(folder, allow_code=True)
    assert len(vector.to_interventions()) == 2 and code.exists()
    code.unlink()
    command = ["evaluate", "--model", "nothing/here", "--out", "out", "--vector", "vector"]
    assert main(command) == 2
    assert "--allow_code" in capsys.readouterr().err and not code.exists()
    assert main([*command, "--allow_code"]) == 2
    assert "No model 'nothing/here'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "receipts",
    [
        {"dataset_spec": {"name": "subprocess:Popen", "args": ["touch", "owned"]}},
        {"dataset_spec": "evil.py:Evil"},
        {"rewards": [{"name": "verifiable", "verifier": {"name": "subprocess:Popen", "args": ["touch", "owned"]}}]},
        {"prompt": {"style": "evil"}},
        {"prompt": {"few_shot": 3}},
        {"max_tokens": "many"},
    ],
    ids=lambda receipts: next(iter(receipts)),
)
def test_receipts_run_nothing(folder, code, receipts, capsys):
    write(folder, receipts=receipts)
    with pytest.raises((SteerkitError, SystemExit)):
        main(["evaluate", "--model", "tiny-reasoner", "--vector", "vector", "--out", "out", "--debug", "--limit", "1"])
    assert not code.exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"intervention": "projected", "settings": {"rank": 2**17, "shared": False}, "d_model": 2**17}, "numbers"),
        ({"intervention": "lowrank", "settings": {"rank": 2**40}}, "numbers"),
        ({"intervention": "tokenwise", "settings": {"d_inner": 2**40}}, "numbers"),
        ({"d_model": 2**60}, "d_model"),
        ({"d_model": -1}, "d_model"),
        ({"d_model": "32"}, "d_model"),
        ({"settings": {"gate": [1]}}, "does not take the settings"),
        ({"settings": [1]}, "settings"),
        ({"intervention": "lora"}, "no intervention"),
        ({"intervention": 3}, "intervention"),
        ({"intervention": "../../static"}, "No intervention named"),
        ({"token_mask": "last_prompt:" + "9" * 5000}, "token_mask"),
        ({"receipts": "none"}, "receipts"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value)[:40],
)
def test_absurd_entries(folder, changes, message):
    names = {"projected": ("code",), "lowrank": ("mix", "basis"), "tokenwise": ("a", "b")}
    fitting = names.get(changes.get("intervention", "")) if "settings" in changes else None
    write(folder, fitting and {f"layers.0.output/{name}": torch.ones(4) for name in fitting}, **changes)
    tracemalloc.start()
    try:
        with pytest.raises((VectorError, PluginError), match=message):
            use(folder)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def entry(shape, offsets, name="layers.0.output/vector"):
    return {name: {"dtype": "F32", "shape": shape, "data_offsets": offsets}}


HEADERS = {
    "longer than the file": struct.pack("<Q", 2**62) + b"{}",
    "a huge shape": entry([2**40], [0, 2**42]),
    "a shape that is not the bytes": entry([2**40], [0, 8]),
    "an overflowing shape": entry([2**63, 2], [0, 8]),
    "outside of the file": entry([2], [2**40, 2**40 + 8]),
    "negative": entry([2], [-8, 0]),
    "no numbers": entry([2], ["0", "8"]),
    "empty, and huge": entry([0, 2**60], [0, 0]),
    "many": {key: e for k in range(300_000) for key, e in entry([0], [0, 0], f"layers.{k}.output/v").items()},
    "not an object": [1, 2],
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_are_refused_before_anything_is_allocated(folder, name):
    header = HEADERS[name]
    if not isinstance(header, bytes) or name == "deep":
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        header = struct.pack("<Q", len(text)) + text + bytes(8)
    (folder / TENSOR_FILE).write_bytes(header)
    tracemalloc.start()
    try:
        with pytest.raises(VectorError):
            SteeringVector.from_pretrained(folder)
        # The many entries are read as JSON: some multiples of the file's size.
        assert tracemalloc.get_traced_memory()[1] < 5e6 + 20 * len(header)
    finally:
        tracemalloc.stop()


@FEW
@given(data=st.data())
def test_damaged_files(parts, tmp_path_factory, data):
    """Bytes changed, cut or added anywhere, in either file: read as it was, or refused."""
    folder = tmp_path_factory.mktemp("vector")
    parts[1].save_pretrained(folder)
    file = folder / data.draw(st.sampled_from([TENSOR_FILE, CONFIG_FILE]))
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(0, len(content) - 1)))
        change = data.draw(st.sampled_from(["set", "cut", "insert"]))
        if change == "set" and content:
            content[place] = data.draw(st.integers(0, 255))
        elif change == "cut":
            del content[place:]
        else:
            content[place:place] = data.draw(st.binary(max_size=8))
    file.write_bytes(content)
    try:
        vector = SteeringVector.from_pretrained(folder)
        vector.to_interventions()
    except (VectorError, PluginError) as error:
        assert "\n" not in str(error)
        return
    for point, named in vector.tensors.items():
        for name, tensor in named.items():  # a digest that still fits: the numbers are those saved
            assert torch.equal(tensor, parts[0][f"{point}/{name}"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@FEW
@given(
    changes=st.dictionaries(
        st.sampled_from(["intervention", "settings", "token_mask", "model", "d_model", "n_layers", "receipts"]), JSON
    )
)
@example(changes={"settings": {"self": 1}})
@example(changes={"settings": {"points": [], "d_model": 3}})
@example(changes={"intervention": "\ud800:x"})
def test_any_json_in_the_config(parts, tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("vector")
    parts[1].save_pretrained(folder)
    write(folder, **changes)
    here = os.getcwd()
    os.chdir(folder)
    try:
        use(folder)
    except SteerkitError as error:
        assert "\n" not in str(error)
    finally:
        os.chdir(here)


POINTS = st.from_regex(r"layers\.-?\d{1,6}\.[a-z_]{1,9}/[a-z.]{1,9}")


@FEW
@given(
    names=st.lists(
        st.text(max_size=30) | st.from_regex(r"layers\.-?\d{1,6}\.[a-z_]{1,9}/[a-z.]{1,9}"), min_size=1, max_size=3
    ),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.float64, torch.int64, torch.bool, torch.uint8]),
    shape=st.lists(st.integers(0, 3), max_size=3),
)
@example(names=["layers.0.output/vector"], dtype=torch.complex64, shape=[32])
@example(names=["../../etc/passwd"], dtype=torch.float32, shape=[1])
@example(names=["layers." + "9" * 5000 + ".output/vector"], dtype=torch.float32, shape=[32])
def test_any_tensors(parts, tmp_path_factory, names, dtype, shape):
    folder = tmp_path_factory.mktemp("vector")
    parts[1].save_pretrained(folder)
    before = sorted(path.name for path in folder.parent.iterdir())
    try:
        write(folder, {name: torch.ones(shape, dtype=dtype) for name in names})
    except Exception:  # names that safetensors itself can't write
        return
    here = os.getcwd()
    os.chdir(folder)
    try:
        use(folder)
    except SteerkitError as error:
        assert "\n" not in str(error)
    finally:
        os.chdir(here)
    assert sorted(path.name for path in folder.parent.iterdir()) == before  # nothing beside the folder


def test_only_the_vectors_files_are_fetched(monkeypatch, tmp_path, folder):
    asked = {}

    def snapshot(name, revision, allow_patterns):
        asked["patterns"] = allow_patterns
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    SteeringVector.from_pretrained("org/name")
    assert sorted(asked["patterns"]) == ["README.md", TENSOR_FILE, CONFIG_FILE]
    with pytest.raises(VectorError, match="give a folder"):
        SteeringVector.from_pretrained("../name/../..")


def test_no_pickle_is_read_anywhere():
    """Every ``torch.load`` says weights_only, and nothing else that runs what it reads is called."""
    package = Path(__file__).parents[2] / "steerkit"
    for file in package.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        for word in ("import pickle", "joblib", "np.load(", "numpy.load(", "yaml.load(", "dill", "marshal", "shelve"):
            assert word not in text, (file, word)
        for call in text.split("torch.load(")[1:]:
            assert "weights_only=True" in call.split("\n")[0], file
