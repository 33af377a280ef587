"""The search for unreachable cycles rests while much is imported, and goes on as it was."""

from __future__ import annotations

import gc

import pytest

from sas.imports import quick_imports


def test_it_rests_and_goes_on() -> None:
    assert gc.isenabled()
    with quick_imports():
        assert not gc.isenabled()
        with quick_imports():
            assert not gc.isenabled()
        assert not gc.isenabled()  # the inner one found it resting
    assert gc.isenabled()


def test_after_an_import_that_fails() -> None:
    with pytest.raises(ImportError), quick_imports():
        raise ImportError
    assert gc.isenabled()


def test_who_switched_it_off_finds_it_off() -> None:
    gc.disable()
    try:
        with quick_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
