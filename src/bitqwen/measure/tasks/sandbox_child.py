"""The inside of the sandbox: gives up what a program must not have, then runs it.

Started by :mod:`bitqwen.measure.tasks.sandbox` as a script, with nothing but the standard library. It
reads its settings from stdin and writes two lines to the pipe whose number is its argument: what it could
give up, as JSON, and how the program ended. The system calls have no names in Python, hence ctypes.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import struct
import sys
import sysconfig
from typing import Any

_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_CLONE_THREAD = 0x00010000

# Landlock's calls have one number everywhere.
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_VERSION = 1
_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_READ = _EXECUTE | _READ_FILE | _READ_DIR
# Rights that each version of Landlock knows: 1 has thirteen, 2 adds REFER, 3 TRUNCATE, 5 IOCTL_DEV.
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_TCP_RIGHTS = 3  # bind and connect, from version 4 on
_SCOPES = 3  # abstract sockets and signals outside, from version 6 on

# Numbers of the system calls refused: (x86-64, aarch64); None where an architecture has no such call.
_SOCKETS = {"socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "io_uring_setup": (425, 425)}
_PROCESSES = {
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "kill": (62, 129),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "reboot": (169, 142),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "setrlimit": (160, 164),
    "prlimit64": (302, 261),
}
_CLONE = (56, 220)
_CLONE3 = (435, 435)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_EPERM, _ENOSYS = 1, 38


def main() -> None:
    """Gives up, runs, reports."""
    report = int(sys.argv[1])
    settings = json.loads(sys.stdin.buffer.read())
    with open(settings["program"], "rb") as file:  # noqa: PTH123 - pathlib costs a third of the start
        source = file.read()
    _limit(settings)
    libc = ctypes.CDLL(None, use_errno=True)
    given_up = {"network": _leave_network(libc), "files": False, "processes": False}
    no_privileges = libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    if no_privileges:
        given_up["files"] = _leave_files(libc, settings["folder"])
        if _filter_calls(libc):
            given_up["network"] = given_up["processes"] = True
    _write(report, json.dumps(given_up))
    token = settings.pop("token")
    try:
        _run(source)
    except BaseException as error:  # SystemExit as well: a program that leaves early has not passed
        _write(report, "failed " + _one_line(error))
    else:
        _write(report, f"passed {token}")
    # Without what the program may have left for the interpreter's end.
    os._exit(0)


def _run(source: bytes) -> None:
    names: dict[str, Any] = {"__name__": "__program__", "__builtins__": __builtins__}
    exec(compile(source, "program.py", "exec"), names)


def _one_line(error: BaseException) -> str:
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException:  # its own __str__ may do anything
        text = type(error).__name__
    return " ".join(text.split())[:500]


def _write(report: int, line: str) -> None:
    os.write(report, (line + "\n").encode("utf-8", "replace"))


def _limit(settings: dict[str, Any]) -> None:
    for kind, most in (
        (resource.RLIMIT_AS, settings["memory"]),
        (resource.RLIMIT_FSIZE, settings["file_bytes"]),
        (resource.RLIMIT_NOFILE, settings["open_files"]),
        (resource.RLIMIT_CORE, 0),
    ):
        _lower(kind, most, most)
    # At the lower one SIGXCPU tells what happened; at the higher one there is no ignoring it.
    _lower(resource.RLIMIT_CPU, settings["cpu_seconds"], settings["cpu_seconds"] + 1)


def _lower(kind: int, soft: int, hard: int) -> None:
    _, now = resource.getrlimit(kind)
    if now != resource.RLIM_INFINITY:
        soft, hard = min(soft, now), min(hard, now)
    resource.setrlimit(kind, (soft, hard))


def _leave_network(libc: ctypes.CDLL) -> bool:
    """Moves into a network namespace without interfaces; who is not root needs one of users first."""
    return any(libc.unshare(flags) == 0 for flags in (_CLONE_NEWNET, _CLONE_NEWUSER | _CLONE_NEWNET))


def _leave_files(libc: ctypes.CDLL, folder: str) -> bool:
    """Landlock: everything in ``folder``, reading the interpreter, nothing else."""
    version = libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_VERSION)
    if version < 1:
        return False
    rights = _FILE_RIGHTS[max(known for known in _FILE_RIGHTS if known <= version)]
    attributes = struct.pack("=Q", rights)
    if version >= 4:
        attributes += struct.pack("=Q", _TCP_RIGHTS)
    if version >= 6:
        attributes += struct.pack("=Q", _SCOPES)
    rules = libc.syscall(_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if rules < 0:
        return False
    readable = {
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib")),
        *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache"),
        *("/usr/share/zoneinfo", "/etc/localtime", "/dev/urandom", "/dev/null"),
    }
    allowed = all(_allow(libc, rules, path, rights & _READ) for path in readable)
    allowed = allowed and _allow(libc, rules, folder, rights & ~_EXECUTE)
    restricted = libc.syscall(_LANDLOCK_RESTRICT_SELF, rules, 0) == 0
    os.close(rules)
    return allowed and restricted


def _allow(libc: ctypes.CDLL, rules: int, path: str, rights: int) -> bool:
    """Allows ``rights`` at and below ``path``; a path that is not there needs none."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return True
    if not os.path.isdir(path):  # noqa: PTH112
        rights &= _EXECUTE | _READ_FILE | _WRITE_FILE
    rule = struct.pack("=Qi", rights, place)
    added: bool = libc.syscall(_LANDLOCK_ADD_RULE, rules, _PATH_BENEATH, rule, 0) == 0
    os.close(place)
    return added


def _filter_calls(libc: ctypes.CDLL) -> bool:
    """Seccomp: refuses the calls above, and any clone that is not a thread."""
    if platform.machine() not in _MACHINES:
        return False
    column, machine = _MACHINES[platform.machine()]
    program = _bpf(column, machine)
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, and where they are.
    header = struct.pack("=H6xQ", len(program) // 8, ctypes.addressof(code))
    filter_ = ctypes.create_string_buffer(header, len(header))
    return bool(
        libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_void_p(ctypes.addressof(filter_)), 0, 0)
        == 0
    )


def _bpf(column: int, machine: int) -> bytes:
    """The filter in classic BPF: struct seccomp_data has the call at 0, the machine at 4, arguments at 16."""
    load, equal, at_least, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06

    def step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, value)

    steps = [
        step(load, 4),
        step(equal, machine, if_true=1),
        step(answer, _KILL),
        step(load, 0),
        # x86-64's other calling convention numbers its calls from here.
        step(at_least, 0x40000000, if_false=1),
        step(answer, _KILL),
    ]
    for numbers in (*_SOCKETS.values(), *_PROCESSES.values()):
        number = numbers[column]
        if number is not None:
            steps += [step(equal, number, if_false=1), step(answer, _REFUSE | _EPERM)]
    # Its flags are in memory, which no filter sees; libc falls back to clone.
    steps += [step(equal, _CLONE3[column], if_false=1), step(answer, _REFUSE | _ENOSYS)]
    steps += [
        step(equal, _CLONE[column], if_false=3),
        step(load, 16),
        step(any_bit, _CLONE_THREAD, if_true=1),
        step(answer, _REFUSE | _EPERM),
        step(answer, _ALLOW),
    ]
    return b"".join(steps)


if __name__ == "__main__":
    main()
