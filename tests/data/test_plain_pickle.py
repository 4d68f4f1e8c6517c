"""Pickles that hold only data: what is read, and what is refused by its name."""

import pickle

import numpy as np
import pytest

from hf_grounding.data.feature_readers.common import Fault
from hf_grounding.data.feature_readers.plain_pickle import loads_plain_pickle


class Payload:
    def __reduce__(self):
        return eval, ("1 + 1",)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_of_all_protocols_is_read(protocol):
    value = {
        "a": [1, -1, 300, 70_000, 2**40, -(2**63), True, False, None, 1.5, "é\n'", b"\xff\x00", ""],
        7: ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], {}, {"x"}, frozenset([1]), b""),
    }
    value["again"] = value["a"]
    assert loads_plain_pickle(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", range(6))
def test_numpy_arrays_and_numbers_are_read(protocol):
    arrays = [np.arange(6, dtype=">i4").reshape(2, 3), np.asfortranarray(np.eye(3)), np.array(["ab", "c"]), np.zeros(0)]
    loaded = loads_plain_pickle(pickle.dumps([*arrays, arrays[0], np.float32(1.5), np.int64(3)], protocol))
    for array, expected in zip(loaded, [*arrays, arrays[0]], strict=False):
        np.testing.assert_array_equal(array, expected)
    assert loaded[0] is loaded[4]
    assert loaded[5:] == [1.5, 3]


def test_python_2_pickles_are_read():
    assert loads_plain_pickle(b"\x80\x02}q\x00U\x03abcq\x01K\x05s.") == {"abc": 5}
    assert loads_plain_pickle(b"(dp0\nS'a\\xc3\\xa9'\np1\nL12L\ns.") == {"aé": 12}


@pytest.mark.parametrize(
    "data, message",
    [
        (pickle.dumps(Payload()), "'builtins.eval'; only plain data and numpy arrays are read, nothing is run"),
        (pickle.dumps(Payload(), 0), "'__builtin__.eval'"),
        (pickle.dumps(np.array([None], dtype=object)), "'dtype' in a way that plain data does not"),
        (pickle.dumps(ValueError("x")), "'builtins.ValueError'"),
        (b"(cposix\nsystem\n.", "'posix.system'"),
        (b"\x80\x02]r\xff\xff\xff\x7f.", None),  # a memo index for which pickle reserves 64 GB
        (b"X\xff\xff\xff\x7fabc.", "the pickle is cut short"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xffabc.", "the pickle is cut short"),
        (b"K\x01K\x02.", "ends in the middle of a value"),
        (b"(K\x01.", "ends in the middle of a value"),
        (b"Pabc\n.", "no plain data: operation 'PERSID'"),
        (b"\xff.", "no plain data: operation b'\\xff'"),
        (b"L" + b"9" * 5000 + b"\n.", "for a whole number"),
        (b"a.", "takes a value where there is none"),
        (b"h\x05.", "repeats a value that it does not have"),
        (b"", "cut short"),
    ],
)
def test_other_pickles_are_refused_by_name(data, message):
    if message is None:
        assert loads_plain_pickle(data) == []
        return
    with pytest.raises(Fault) as info:
        loads_plain_pickle(data)
    assert message in str(info.value)


def test_a_key_that_would_hash_for_ever_is_refused():
    value = ()
    for _ in range(100):
        value = (value, value)
    with pytest.raises(Fault, match="a key of type tuple"):
        loads_plain_pickle(b"}" + pickle.dumps(value)[:-1] + b"K\x01s.")
