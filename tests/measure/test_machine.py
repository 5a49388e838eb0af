from __future__ import annotations

from pathlib import Path

from bitqwen.measure.machine import Cache, describe, machine


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def test_a_hybrid_processor_with_hyper_threads(tmp_path):
    cpu = "sys/devices/system/cpu"
    files = {
        "proc/cpuinfo": "model name\t: A CPU\nflags\t\t: fpu avx2 avx_vnni hypervisor",
        "proc/meminfo": "MemTotal:       1024 kB",
        f"{cpu}/online": "0-3",
        "sys/devices/cpu_core/cpus": "0-1",
        "sys/devices/cpu_atom/cpus": "2-3",
        "sys/devices/system/node/node0/cpulist": "0-3",
        "sys/fs/cgroup/cpu.max": "150000 100000",
    }
    for i in range(4):
        files[f"{cpu}/cpu{i}/topology/thread_siblings_list"] = "0-1" if i < 2 else str(i)
        shared = "0-1" if i < 2 else str(i)
        for index, size in enumerate(("48K", "2M")):
            folder = f"{cpu}/cpu{i}/cache/index{index}"
            files |= {
                f"{folder}/size": size,
                f"{folder}/level": str(index + 1),
                f"{folder}/type": "Data" if index == 0 else "Unified",
                f"{folder}/shared_cpu_list": shared,
            }
    write(tmp_path, files)
    found = machine(tmp_path)
    assert (found.cpu, found.isa, found.virtual) == ("A CPU", ["avx2", "avx_vnni"], True)
    assert (found.logical_cpus, found.physical_cores, found.quota, found.memory) == (4, 3, 1.5, 1 << 20)
    assert (found.performance_cpus, found.efficiency_cpus) == ([0, 1], [2, 3])
    assert found.numa_nodes == [[0, 1, 2, 3]]
    assert Cache(1, "data", 48 << 10, 1, 2) in found.caches
    assert Cache(2, "unified", 2 << 20, 2, 1) in found.caches


def test_arm_capacities_tell_fast_cores(tmp_path):
    cpu = "sys/devices/system/cpu"
    capacity = {f"{cpu}/cpu{i}/cpu_capacity": "1024" if i == 2 else "446" for i in range(3)}
    write(tmp_path, {f"{cpu}/online": "0-2"} | capacity)
    assert machine(tmp_path).performance_cpus == [2]
    assert machine(tmp_path).efficiency_cpus == [0, 1]


def test_a_system_that_tells_nothing(tmp_path):
    found = machine(tmp_path)
    assert found.caches == []
    assert found.physical_cores is None
    assert found.quota is None
    assert found.performance_cpus == found.efficiency_cpus == []
    assert found.memory > 0


def test_this_machine_in_short():
    about = describe()
    assert set(about) == {"date", "cpu", "cores", "isa", "memory_gib", "system"}
    assert about["cores"] >= 1
