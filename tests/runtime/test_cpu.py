from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histoseg.cpu import count_cpus, explain_int8, iter_cpu_quotas, read_int8_instructions

PERIOD = 100_000


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def limit_v2(root: Path, quota: object, *, path: str = "/", cgroup: str = "0::/\n") -> Path:
    write(root / "proc/self/cgroup", cgroup)
    write(root / "sys/fs/cgroup" / path.lstrip("/") / "cpu.max", f"{quota} {PERIOD}\n")
    return root


def limit_v1(root: Path, quota: int, *, controllers: str = "cpu", path: str = "/") -> Path:
    write(root / "proc/self/cgroup", f"9:memory:/m\n2:{controllers}:{path}\n0::/\n")
    folder = root / "sys/fs/cgroup" / controllers
    write(folder / "cpu.cfs_quota_us", f"{quota}\n")
    write(folder / "cpu.cfs_period_us", f"{PERIOD}\n")
    return root


def test_cpus_are_those_this_process_may_use() -> None:
    assert 1 <= count_cpus() <= (os.cpu_count() or 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system sets no affinity")
def test_affinity_counts() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from histoseg.cpu import count_cpus; print(count_cpus())"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "1\n"


@given(quota=st.integers(1, 10_000_000), version=st.sampled_from([1, 2]))
def test_a_fraction_of_a_cpu_counts_as_one(tmp_path_factory, quota: int, version: int) -> None:
    root = (limit_v2 if version == 2 else limit_v1)(tmp_path_factory.mktemp("root"), quota)
    assert list(iter_cpu_quotas(root)) == [quota / PERIOD]
    unlimited = count_cpus(tmp_path_factory.mktemp("empty"))
    assert count_cpus(root) == min(unlimited, math.ceil(quota / PERIOD))


def test_the_tightest_cgroup_above_counts(tmp_path: Path) -> None:
    cgroup = "0::/system.slice/histoseg.service\n"
    limit_v2(tmp_path, 700_000, cgroup=cgroup)
    limit_v2(tmp_path, 300_000, path="/system.slice", cgroup=cgroup)
    limit_v2(tmp_path, "max", path="/system.slice/histoseg.service", cgroup=cgroup)
    assert sorted(iter_cpu_quotas(tmp_path)) == [3.0, 7.0]


def test_a_container_under_the_hosts_path_finds_its_own_quota(tmp_path: Path) -> None:
    assert list(iter_cpu_quotas(limit_v1(tmp_path, 150_000, path="/docker/0123abc"))) == [1.5]


def test_version_1_may_share_its_folder_with_accounting(tmp_path: Path) -> None:
    assert list(iter_cpu_quotas(limit_v1(tmp_path, 250_000, controllers="cpu,cpuacct"))) == [2.5]


@pytest.mark.parametrize("quota", ["max", "-1", "0", "x", ""])
def test_no_limit_is_no_limit(tmp_path: Path, quota: str) -> None:
    assert list(iter_cpu_quotas(limit_v2(tmp_path, quota))) == []


def test_minus_one_is_no_limit_in_version_1(tmp_path: Path) -> None:
    assert list(iter_cpu_quotas(limit_v1(tmp_path, -1))) == []


@pytest.mark.parametrize(
    ("line", "found", "fast"),
    [
        ("flags\t\t: fpu sse2 avx2 avx512f avx512_vnni", {"AVX2", "AVX512-VNNI"}, True),
        ("flags\t\t: fpu avx2 avx_vnni amx_tile amx_int8", {"AVX2", "AVX-VNNI", "AMX-int8"}, True),
        ("flags\t\t: fpu sse2 avx2 avx512f", {"AVX2"}, False),
        ("flags\t\t: fpu sse2", set(), False),
        ("Features\t: fp asimd asimddp i8mm", {"ARM dotprod", "ARM i8mm"}, True),
        ("Features\t: fp asimd", set(), False),
    ],
)
def test_int8_instructions_are_read_and_explained(
    tmp_path: Path, line: str, found: set[str], fast: bool
) -> None:
    write(tmp_path / "proc/cpuinfo", f"processor\t: 0\nmodel name\t: flags avx_vnni\n{line}\n\n")
    assert read_int8_instructions(tmp_path) == found
    said = explain_int8(read_int8_instructions(tmp_path))
    assert all(name in said for name in found)
    assert ("run fast" in said) == fast
    assert ("prefer fp32" in said) == (not fast)


def test_without_cpuinfo_they_are_unknown(tmp_path: Path) -> None:
    assert read_int8_instructions(tmp_path) is None
    assert "unknown" in explain_int8(None)
    write(tmp_path / "proc/cpuinfo", "processor\t: 0\n")
    assert read_int8_instructions(tmp_path) is None
