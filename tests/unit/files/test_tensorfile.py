"""Our writer against the safetensors library itself, and what broken files say."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from quant.errors import InputError
from quant.files import behind, checksums, tensorfile
from quant.files.pieces import Piece, Wholes

SHAPES: dict[str, tuple[int, ...]] = {"matrix": (3, 5), "one": (1,), "odd": (7,), "cube": (2, 3, 1), "empty": (0, 4)}


def tensors_of(dtype: torch.dtype, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randint(0, 100, shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in expected.items()
    )


def read(path: Path) -> dict[str, Tensor]:
    with tensorfile.opened(path) as file:
        return {name: file.get(name) for name in file.names}


PIECES = {
    "e.0.gate": Piece("experts", 0, 0, None, 2, True), "e.0.up": Piece("experts", 0, 1, None, 2, True),
    "e.1.gate": Piece("experts", 1, 0, None, 2, True), "e.1.up": Piece("experts", 1, 1, None, 2, True),
    "b.0": Piece("bias", 0, 0, 2), "b.1": Piece("bias", 0, 2), "turned": Piece("turned", transposed=True),
}  # fmt: skip
WHOLES = Wholes({"experts": (2, 3, 4), "bias": (1, 5), "turned": (3, 2)}, PIECES)


def test_pieces_of_larger_tensors(tmp_path: Path) -> None:
    """Others read the whole tensors, we the pieces, whatever order they are written in."""
    whole = tensors_of(torch.bfloat16, WHOLES.shapes) | {"plain": torch.ones(2)}
    experts, bias, turned = (whole[name] for name in WHOLES.shapes)
    expected = {
        "e.0.gate": experts[0].T[::2], "e.0.up": experts[0].T[1::2], "e.1.gate": experts[1].T[::2],
        "e.1.up": experts[1].T[1::2], "b.0": bias[0, :2], "b.1": bias[0, 2:], "turned": turned.T,
        "plain": whole["plain"],
    }  # fmt: skip
    path = tmp_path / "x.safetensors"
    for names in (list(expected), list(reversed(expected))):
        tensorfile.save(path, {name: expected[name] for name in names}, {"format": "pt"} | WHOLES.metadata())
        assert same(load_file(path), whole)
        assert same(read(path), expected)
    with tensorfile.opened(path) as file:
        assert file.layout() == {name: (value.dtype, tuple(value.shape)) for name, value in expected.items()}
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="does not match its checksum"):
        tensorfile.verify(path)


@pytest.mark.parametrize("listed", ["[", '{"experts": 1}', '{"experts": [[2, 3], {"e": [9, 0, null, 1, false]}]}'])
def test_pieces_that_are_none(listed: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"experts": torch.ones(2, 3)}, path, {"pieces": listed})
    with pytest.raises(InputError, match="pieces are not those of its tensors"), tensorfile.opened(path):
        pass


@pytest.mark.parametrize("dtype", tensorfile.DTYPES, ids=str)
def test_round_trip_with_safetensors(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = tensors_of(dtype, SHAPES)
    metadata = {"format": "pt", "note": 'ünï "quoted"\n', "empty": ""}
    tensorfile.save(tmp_path / "ours.safetensors", tensors, metadata)
    assert same(load_file(tmp_path / "ours.safetensors"), tensors)
    with safe_open(tmp_path / "ours.safetensors", framework="pt") as file:
        assert file.metadata().items() >= metadata.items()
    save_file(tensors, tmp_path / "theirs.safetensors", {"a": "b"})
    assert same(read(tmp_path / "theirs.safetensors"), tensors)
    with tensorfile.opened(tmp_path / "theirs.safetensors") as file:
        assert file.metadata == {"a": "b"}
        assert file.layout() == {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()}


@pytest.mark.parametrize("dtype", tensorfile.DTYPES, ids=str)
def test_scalars(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = tensors_of(dtype, {"scalar": (), "matrix": (2, 2)})
    tensorfile.save(tmp_path / "file.safetensors", tensors, {})
    assert same(load_file(tmp_path / "file.safetensors"), tensors)


def test_unaligned_mix_is_aligned(tmp_path: Path) -> None:
    dtypes = [torch.uint8, torch.float64, torch.bool, torch.float16, torch.int8, torch.float32, torch.bfloat16]
    tensors = {f"t{i}": torch.ones(i + 1, dtype=dtype) for i, dtype in enumerate(dtypes)}
    path = tmp_path / "file.safetensors"
    tensorfile.save(path, tensors, {})
    assert same(load_file(path), tensors)
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    for name, value in tensors.items():
        assert (start + header[name]["data_offsets"][0]) % value.element_size() == 0


def test_views_are_written_as_they_read(tmp_path: Path) -> None:
    base = torch.arange(24.0).view(4, 6)
    tensors = {
        "transposed": base.T,
        "column": base[:, :1].T.contiguous().T,
        "strided": base[:, ::2],
        "gradient": torch.nn.Parameter(base + 1),
    }
    tensorfile.save(tmp_path / "file.safetensors", tensors, {})
    assert same(read(tmp_path / "file.safetensors"), {name: value.detach() for name, value in tensors.items()})


def test_order_of_writing_does_not_matter(tmp_path: Path) -> None:
    layout: tensorfile.Layout = {"a": (torch.float32, (2,)), "b": (torch.int64, (3,)), "c": (torch.uint8, (1,))}
    tensors = {name: torch.ones(shape, dtype=dtype) for name, (dtype, shape) in layout.items()}
    for order in ("abc", "cba"):
        with tensorfile.writing(tmp_path / order, layout, {"k": "v"}) as writer:
            for name in order:
                writer.put(name, tensors[name])
    assert (tmp_path / "abc").read_bytes() == (tmp_path / "cba").read_bytes()


def test_a_mark_is_of_the_tensors_alone(tmp_path: Path) -> None:
    """Not of what made them; with checksums or without."""
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.int32)}

    def mark(changes: dict[str, Tensor], **metadata: str) -> str:
        tensorfile.save(tmp_path / "one.safetensors", tensors | changes, metadata)
        with tensorfile.opened(tmp_path / "one.safetensors") as file:
            return file.mark()

    save_file(tensors, tmp_path / "plain.safetensors")
    with tensorfile.opened(tmp_path / "plain.safetensors") as file:
        assert mark({}) == mark({}, made="by another") == mark({}, names='{"a": "other"}') == file.mark()
    others = [{"a": torch.arange(6.0).view(3, 2)}, {"b": torch.tensor([1, 2], dtype=torch.int32)}, {"c": torch.ones(1)}]
    assert len({mark({}), *map(mark, others), mark({"b": torch.ones(2, dtype=torch.int64)})}) == 5


def test_appended_tensors_read_like_saved_ones(tmp_path: Path) -> None:
    tensors = tensors_of(torch.float32, SHAPES) | {"late": torch.ones(2, 2).T}
    with tensorfile.appending(tmp_path / "f.safetensors", 1) as file:
        for name, value in tensors.items():
            file.put(name, value)
        file.metadata = {"known": "[1]"}
    assert same(load_file(tmp_path / "f.safetensors"), tensors)
    with tensorfile.opened(tmp_path / "f.safetensors") as file:
        assert file.info("known") == [1]
    assert list(tmp_path.iterdir()) == [tmp_path / "f.safetensors"]


DTYPE_OF = {"twice": "float32", "dtype": "float64"}


@pytest.mark.parametrize("fault", ["twice", "dtype", "header", "caller"])
def test_appending_that_fails_leaves_nothing(tmp_path: Path, fault: str) -> None:
    with pytest.raises((ValueError, KeyboardInterrupt)), tensorfile.appending(tmp_path / "f", 0) as file:
        file.put("a", torch.ones(1))
        if fault == "caller":
            raise KeyboardInterrupt
        if fault == "header":
            file.metadata = {"long": "x" * 10**5}
        else:
            file.put("a" if fault == "twice" else "b", torch.ones(1, dtype=getattr(torch, DTYPE_OF[fault])))
    assert not list(tmp_path.iterdir())


def test_what_is_read_ahead_is_held_against_its_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `get` does for a GPU, in memory that need not be page-locked here, in one part and in several."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory, **more: empty(*shape, **more))
    tensors, path = tensors_of(torch.bfloat16, SHAPES | {"scalar": ()}), tmp_path / "f"
    for part in (2**24, 8):
        monkeypatch.setattr(checksums, "PART", part)
        tensorfile.save(path, tensors, {})
        with tensorfile.opened(path) as file:
            assert same({name: file._pinned(name) for name in tensors}, tensors)
        with path.open("r+b") as damaged:
            damaged.seek(-1, os.SEEK_END)
            damaged.write(b"\x7f")
        with tensorfile.opened(path) as file, pytest.raises(InputError, match="scalar does not match its checksum"):
            [file._pinned(name) for name in tensors]


def test_a_failing_disk_is_not_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the writing thread raises reaches the caller, at the latest when the file is closed."""

    def full(*args: object) -> int:
        raise OSError("the disk is full")

    monkeypatch.setattr(behind.os, "pwrite", full)
    with (
        pytest.raises(OSError, match="full"),
        tensorfile.writing(tmp_path / "f", {"a": (torch.float32, (2,))}, {}) as w,
    ):
        w.put("a", torch.ones(2))
    assert not list(tmp_path.iterdir())


def test_a_disk_that_takes_a_part_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, write = {"a": torch.arange(1000.0), "b": torch.ones(3)}, os.pwrite
    monkeypatch.setattr(behind.os, "pwrite", lambda file, data, offset: write(file, data[:300], offset))
    tensorfile.save(tmp_path / "f", whole, {})
    assert same(load_file(tmp_path / "f"), whole)
    tensorfile.verify(tmp_path / "f")


@pytest.mark.parametrize("wrong", [torch.ones(3), torch.ones(2, 1), torch.ones(2, dtype=torch.float64)])
def test_writer_refuses_what_was_not_declared(wrong: Tensor, tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="weight"),
        tensorfile.writing(tmp_path / "f", {"weight": (torch.float32, (2,))}, {}) as writer,
    ):
        writer.put("weight", wrong)
    assert not list(tmp_path.iterdir())


def test_writer_refuses_missing_tensors(tmp_path: Path) -> None:
    layout: tensorfile.Layout = {"a": (torch.float32, (2,)), "forgotten": (torch.float32, (2,))}
    with pytest.raises(ValueError, match="forgotten"), tensorfile.writing(tmp_path / "f", layout, {}) as writer:
        writer.put("a", torch.ones(2))
    assert not list(tmp_path.iterdir())


def test_failure_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    tensorfile.save(path, {"a": torch.ones(1)}, {})
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), tensorfile.writing(path, {"a": (torch.float32, (1,))}, {}):
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kept", [0, 4, 8, 20, 0.5, -1])
def test_truncated_file_is_refused_in_one_line(kept: float, tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    tensorfile.save(path, {"a": torch.ones(100), "b": torch.ones(3, dtype=torch.int8)}, {"k": "v"})
    raw = path.read_bytes()
    path.write_bytes(raw[: int(kept * len(raw)) if kept == 0.5 else int(kept)])
    with pytest.raises(InputError, match=r"f\.safetensors") as caught, tensorfile.opened(path):
        pass
    assert "\n" not in str(caught.value)


def test_other_broken_files_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is no safetensors file\n" * 9)
    for name in ("text", "absent", "."):
        with pytest.raises(InputError) as caught, tensorfile.opened(tmp_path / name):
            pass
        assert "\n" not in str(caught.value) and str(tmp_path / name) in str(caught.value)


def test_missing_tensor_and_metadata_are_named(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    tensorfile.save(path, {"a": torch.ones(1)}, {"known": "[1, 2]"})
    with tensorfile.opened(path) as file:
        assert file.info("known") == [1, 2]
        with pytest.raises(InputError, match=r"f\.safetensors.*missing_tensor"):
            file.get("missing_tensor")
        with pytest.raises(InputError, match=r"f\.safetensors.*reads"):
            file.info("reads")


def test_get_converts(tmp_path: Path) -> None:
    tensorfile.save(tmp_path / "f", {"a": torch.ones(2, dtype=torch.bfloat16)}, {})
    with tensorfile.opened(tmp_path / "f") as file:
        assert file.get("a", dtype=torch.float32).dtype == torch.float32
        assert file.get("a").dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_flipped_bit_is_found_when_its_tensor_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {"a": torch.ones(3, 5), "b": torch.arange(7, dtype=torch.int64)}
    tensorfile.save(path, tensors, {})
    tensorfile.verify(path)
    assert load_file(path)["b"].equal(tensors["b"]), "others read it too"
    data = bytearray(path.read_bytes())
    data[data.index(tensors[name].numpy().tobytes()) + 2] ^= 1
    path.write_bytes(data)
    with tensorfile.opened(path) as file:
        file.get({"a": "b", "b": "a"}[name])
        with pytest.raises(InputError, match=f"{name} does not match its checksum; rebuild it: snakemake .* --force"):
            file.get(name)
