"""The outside world's errors in one form, and how parts word that an option is out of range."""

import errno
from pathlib import Path

import polars as pl
import pytest
from safetensors.torch import load_file

from mmkd import MmkdError, load_recipe
from mmkd.errors import (
    DataError,
    RecipeError,
    at_least,
    cause,
    checked,
    one_of,
    outside,
    positive,
    refuse,
    whole,
    within,
    world_told,
)


def told(error: BaseException, *also: type[BaseException]) -> str:
    with (
        pytest.raises(DataError) as caught,
        outside(DataError, "x.csv", "cannot be read", remedy="save it again", also=also),
    ):
        raise error
    assert caught.value.__cause__ is error
    return str(caught.value)


def test_a_message_has_the_path_what_the_cause_and_the_remedy() -> None:
    error = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    assert told(error).startswith("x.csv: cannot be read (")
    assert told(error).endswith("; save it again")
    assert told(RecursionError()) == "x.csv: cannot be read (nested too deeply); save it again"
    assert told(KeyError("ids"), KeyError) == "x.csv: cannot be read ('ids'); save it again"


def test_a_place_that_cannot_be_used_has_its_own_remedy() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    assert told(full) == (
        "x.csv: cannot be read (No space left on device); free some space or give another place"
    )
    elsewhere = OSError(errno.EACCES, "Permission denied", "/there")
    assert told(elsewhere) == (
        "x.csv: cannot be read (Permission denied: /there); give a place you may use"
    )
    assert world_told(elsewhere) == "/there: Permission denied; give a place you may use"
    assert world_told(AttributeError("a fault of mmkd's own")) is None


def test_an_error_of_the_system_is_told_by_its_number_also_where_a_library_has_it_in_words() -> (
    None
):
    told = world_told(OSError("File too large (os error 27)"))  # polars'
    assert told == "File too large; allow larger files (ulimit -f), or give another place"


def test_memory_that_ran_out_is_no_damage() -> None:
    class OutOfMemoryError(RuntimeError):
        """As torch calls it."""

    for error in (MemoryError(), OutOfMemoryError("CUDA out of memory")):
        assert told(error, RuntimeError).startswith("x.csv: not enough memory; ")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, ZeroDivisionError])
def test_orders_and_faults_of_the_program_pass(error: type[BaseException]) -> None:
    with pytest.raises(error), outside(DataError, "x", "cannot be read", remedy="?"):
        raise error


def test_an_error_that_is_told_already_passes_as_it_is() -> None:
    with pytest.raises(RecipeError, match=r"^told$"), outside(DataError, "x", "y", remedy="z"):
        raise RecipeError("told")


def test_damaged_files_of_the_libraries_are_told(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"PAR1" + b"\x00" * 40 + b"PAR1")
    for read in (pl.read_parquet, load_file):
        with (
            pytest.raises(DataError, match=r"x: damaged \(.+\); mend it"),
            outside(DataError, path, "damaged", remedy="mend it"),
        ):
            read(path)
    assert cause(pl.exceptions.ComputeError("first\nsecond")) == "first"


def test_a_mistake_of_yaml_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("name: a\ndata: b: c\n")
    with pytest.raises(RecipeError, match="line 2, column 8"):
        load_recipe(str(path))
    path.write_text("name: a\nname: b\n")
    with pytest.raises(RecipeError, match="duplicate key name"):
        load_recipe(str(path))


def test_ranges_tell_numbers_outside_and_what_is_no_number() -> None:
    assert at_least(1, a=1, b=None, c=2.5) == []
    assert at_least(1, a=0, b="3", c=True) == [
        "a: got 0, wanted at least 1; raise it",
        "b: got '3', wanted at least 1; raise it",
        "c: got True, wanted at least 1; raise it",
    ]
    assert whole(1, a=3, b=2.5, c=0.5) == [
        "c: got 0.5, wanted at least 1; raise it",
        "b: got 2.5, wanted a whole number; round it",
    ]
    nan, infinite = float("nan"), float("inf")
    assert len(positive(a=0, b=-1, c=nan, d=infinite, e="x")) == 5
    assert positive(a=1e-9, b=None) == [] and within(0, 1, a=0, b=1, c=None) == []
    assert len(within(0, 1, a=-0.1, b=1.1, c=nan, d="x")) == 4
    assert one_of(("mean", "max"), pooling="men") == [
        "pooling: got 'men', wanted one of mean, max; did you mean 'mean'?"
    ]
    refuse([])
    with pytest.raises(ValueError, match=r"^one\ntwo$"):
        refuse(["one", "two"])
    with pytest.raises(DataError):
        refuse(["one"], DataError)
    assert issubclass(MmkdError, ValueError)


def test_a_checked_constructor_refuses_what_check_tells_before_it_starts() -> None:
    seen: list[dict[str, object]] = []

    class Part:
        @checked
        def __init__(self, name: str, *, layers: int = 2, rate: float = 0.5) -> None:
            assert layers >= 1, "started"
            self.name = name

        @staticmethod
        def check(**options: object) -> list[str]:
            seen.append(options)
            return at_least(1, layers=options.get("layers"))

    assert Part("a").name == "a"
    with pytest.raises(ValueError, match=r"^layers: got 0, wanted at least 1; raise it$"):
        Part(name="b", layers=0)
    with pytest.raises(TypeError, match="layer"):
        Part("c", layer=1)  # type: ignore[call-arg]
    assert seen == [
        {"name": "a", "layers": 2, "rate": 0.5},
        {"name": "b", "layers": 0, "rate": 0.5},
    ]
