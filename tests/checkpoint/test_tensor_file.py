"""Files that are streamed out are safetensors files; what is none is refused in words."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from trainer.checkpoint.folder import Folder
from trainer.checkpoint.manifest import FileRecord
from trainer.checkpoint.tensor_file import CODES, Entry, TensorFile, TensorFileWriter

SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


def _write(folder: Path, tensors: dict[str, torch.Tensor], piece: int = 7) -> FileRecord:
    entries = [Entry(key, tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()]
    with Folder(folder).sink("f.safetensors") as write:
        writer = TensorFileWriter(write, entries)
        for tensor in tensors.values():
            content = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            for start in range(0, len(content), piece):
                writer.write(content[start : start + piece])
        return writer.close()


@settings(max_examples=20, deadline=None)
@given(st.dictionaries(st.text("ab/@,.é", min_size=1, max_size=4), st.tuples(st.sampled_from(list(CODES)), SHAPES)))
def test_the_library_reads_what_is_written_and_the_other_way_round(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]]
) -> None:
    folder = tmp_path_factory.mktemp("file")
    tensors = {key: torch.randint(0, 2, shape).to(dtype) for key, (dtype, shape) in shapes.items()}
    record = _write(folder, tensors)
    content = (folder / "f.safetensors").read_bytes()
    assert record == FileRecord(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    if tensors:
        with safe_open(folder / "f.safetensors", framework="pt") as file:
            for key, tensor in tensors.items():
                found = file.get_tensor(key)
                assert found.dtype == tensor.dtype
                assert torch.equal(found, tensor)
    save_file(tensors, folder / "theirs.safetensors")
    with Folder(folder).open("theirs.safetensors") as opened:
        ours = TensorFile(opened)
        assert {key: entry.dtype for key, entry in ours.entries.items()} == {k: t.dtype for k, t in tensors.items()}
        for key, tensor in tensors.items():
            assert torch.equal(ours.read(key), tensor)
            if tensor.dim() and len(tensor) > 1:
                assert torch.equal(ours.read(key, 1, 2), tensor[1:2])


def test_fewer_bytes_than_announced_are_no_file(tmp_path: Path) -> None:
    with Folder(tmp_path).sink("f") as write, pytest.raises(RuntimeError, match="announced"):
        TensorFileWriter(write, [Entry("a", torch.float32, (3,))]).close()


def _file(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no header"),
        (b"\x80\x05pickle", "no header"),
        (_file(b"{]"), "not JSON"),
        (_file([1]), "not an object"),
        (_file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234"), "does not lie in the file"),
        (_file({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}, b"12345678"), "does not lie"),
        (_file({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}, b"12345678"), "does not lie"),
        (_file({"a": {"dtype": "pickle", "shape": [1], "data_offsets": [0, 8]}}, b"12345678"), "not described"),
        (_file({"a": 3}), "not described"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(ValueError, match=said), Folder(tmp_path).open("f") as opened:
        TensorFile(opened)
