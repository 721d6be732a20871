"""Loading the plugin library into TensorRT, and files that are not it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mtmamba.errors import MtmError
from mtmamba.runtime import plugin
from mtmamba.runtime.plugin import PluginLibrary, load_plugins
from mtmamba.runtime.trt import TensorRT

pytestmark = pytest.mark.trt


def compile_library(path: Path, code: str) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(path)]
    subprocess.run(command, input=code, text=True, check=True)
    return path


def test_loaded_and_registered(rtx: TensorRT, plugins: PluginLibrary) -> None:
    assert plugins.ops == {"SelectiveScan", "SelectiveScan2D"}
    assert len(plugins.hash) == 64
    creators = rtx.module.get_plugin_registry().all_creators
    found = [(c.name, c.plugin_version) for c in creators if c.plugin_namespace == "mtmamba"]
    assert sorted(found) == [("SelectiveScan", "1"), ("SelectiveScan2D", "1")]


def test_loading_again_is_free(rtx: TensorRT, plugins: PluginLibrary, tmp_path: Path) -> None:
    assert load_plugins(rtx) is plugins
    assert load_plugins(rtx, plugins.path) is plugins
    copy = shutil.copy(plugins.path, tmp_path / "copy.so")  # the same plugins elsewhere
    assert load_plugins(rtx, Path(copy)) is plugins


def test_missing(rtx: TensorRT, tmp_path: Path) -> None:
    with pytest.raises(MtmError, match="expected a plugin library file, found nothing there"):
        load_plugins(rtx, tmp_path / "none.so")


def test_not_a_library(rtx: TensorRT, tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("hello")
    with pytest.raises(MtmError, match=r"a file that cannot be loaded .*--plugin"):
        load_plugins(rtx, tmp_path / "text.so")


def test_foreign_library(rtx: TensorRT, tmp_path: Path) -> None:
    path = compile_library(tmp_path / "foreign.so", "int answer(void) { return 42; }")
    with pytest.raises(MtmError, match="expected the mtmamba plugin library, found one without getCreators"):
        load_plugins(rtx, path)
    path = compile_library(tmp_path / "others.so", "void *getCreators(int *n) { *n = 0; return 0; }")
    with pytest.raises(MtmError, match="found one without mtmambaPluginHash"):
        load_plugins(rtx, path)


FAKE = """
void *getCreators(int *n) { *n = 0; return 0; }
void setLoggerFinder(void *finder) {}
void mtmambaSetLogCallback(void *callback) {}
const char *mtmambaPluginHash(void) { return "another"; }
"""


def test_another_version_after_ours(rtx: TensorRT, plugins: PluginLibrary, tmp_path: Path) -> None:
    path = compile_library(tmp_path / "another.so", FAKE)
    with pytest.raises(MtmError, match=r"another plugin library .* is loaded in this process"):
        load_plugins(rtx, path)


def test_no_creators(rtx: TensorRT, tmp_path: Path) -> None:
    """In a process of its own: ours would be registered already here."""
    path = compile_library(tmp_path / "empty.so", FAKE)
    code = (
        "from pathlib import Path; from mtmamba.runtime.plugin import load_plugins; "
        f"from mtmamba.runtime.trt import resolve; load_plugins(resolve({rtx.flavour!r}), Path({str(path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "registered no plugin from it" in done.stderr.splitlines()[-1]


def test_plugin_speaks_through_our_log(rtx: TensorRT, plugins: PluginLibrary) -> None:
    """The plugin's own sentence reaches TensorRT's messages, also where TensorRT gives it no logger."""
    creator = rtx.module.get_plugin_registry().get_creator("SelectiveScan", "1", "mtmamba")
    field = rtx.module.PluginField("delta_softplus", b"\x07\0\0\0", rtx.module.PluginFieldType.INT32)
    with rtx.messages.quoting() as errors:
        made = creator.create_plugin("x", rtx.module.PluginFieldCollection([field]), rtx.module.TensorRTPhase.BUILD)
    assert made is None
    assert any("expected delta_softplus" in line for line in errors), errors


def test_levels() -> None:
    assert [plugin._level(i) for i in (-1, 0, 1, 2, 3, 4, 9)] == [10, 40, 40, 30, 20, 10, 10]
