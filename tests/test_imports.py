"""What is done before PyTorch is imported: the search for unreachable cycles rests, and threads share cores where others want them."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest

from sas.imports import BUSY, quick_imports, share_cores


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


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that it is put back afterwards, whatever the code under test sets
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(("load", "told"), [(0.0, None), (BUSY / 2, None), (BUSY, "1000"), (8.0, "1000")])
def test_threads_give_cores_back_on_a_busy_machine_alone(
    environment: pytest.MonkeyPatch, load: float, told: str | None
) -> None:
    environment.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    share_cores()
    assert os.environ.get("GOMP_SPINCOUNT") == told


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_the_user_says_stays(environment: pytest.MonkeyPatch, name: str) -> None:
    environment.setattr(os, "getloadavg", lambda: (8.0, 8.0, 8.0), raising=False)
    environment.setenv(name, "ACTIVE")
    share_cores()
    assert {key: os.environ.get(key) for key in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")} == {
        "OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": None, name: "ACTIVE",
    }  # fmt: skip


def test_a_machine_that_does_not_know_its_load(environment: pytest.MonkeyPatch) -> None:
    def unknown() -> tuple[float, float, float]:
        raise OSError

    environment.setattr(os, "getloadavg", unknown, raising=False)
    share_cores()
    environment.delattr(os, "getloadavg")
    share_cores()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_commands_do_it_before_pytorch_comes(environment: pytest.MonkeyPatch) -> None:
    code = (
        "import os, sys; os.getloadavg = lambda: (8.0, 8.0, 8.0); import sas.cli, sas.cli_options; sas.cli.run(sas.cli_options.Sample, ['--help']); "
        "print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "1000 False"
