"""What a process gives up for good: files (Landlock), system calls (seccomp), memory and time (limits). By ctypes.

Every return code is checked by an `if`: a lock that did not close is an `OSError`, also under `python -O`.
"""

import ctypes
import os
import platform
import resource
import signal
import struct

_LIBC = ctypes.CDLL(None, use_errno=True)

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_LANDLOCK_CREATE, _LANDLOCK_ADD_PATH, _LANDLOCK_RESTRICT = 444, 445, 446  # the same on every architecture


def _checked(result, what):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(what, number, *arguments):
    _LIBC.syscall.restype = ctypes.c_long
    return _checked(_LIBC.syscall(ctypes.c_long(number), *arguments), what)


def _prctl(what, option, *arguments):
    filled = [*map(ctypes.c_ulong, arguments)] + [ctypes.c_ulong(0)] * (4 - len(arguments))
    _checked(_LIBC.prctl(ctypes.c_int(option), *filled), what)


def hide():
    """No other process of this user may read this one's memory, descriptors or /proc entries. Children inherit it."""
    _prctl("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, 0)


def die_with_parent():
    """Be killed when the parent ends."""
    _prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, signal.SIGKILL)


def limit(memory, seconds):
    """At most `memory` bytes of address space and `seconds` of processor time; no processes, files or dumps."""
    for kind, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def landlock_version():
    """Version of the kernel's Landlock interface.

    Raises:
        OSError: there is none.
    """
    return _syscall("landlock", _LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1))


_READ_FILE, _READ_DIR = 1 << 2, 1 << 3


def restrict_files(readable):
    """Landlock: read what lies below the paths `readable`, and nothing else of the file system; write nowhere.

    From interface 4 on also no TCP, from 6 on no abstract sockets and no signals to processes outside.
    """
    version = landlock_version()
    rights = {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)  # how many rights on files this interface knows
    handled = struct.pack("QQQ", (1 << rights) - 1, 0b11, 0b11)[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = _syscall(
        "landlock_create_ruleset",
        _LANDLOCK_CREATE,
        ctypes.create_string_buffer(handled, len(handled)),
        ctypes.c_size_t(len(handled)),
        ctypes.c_uint32(0),
    )
    for path in readable:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        access = _READ_FILE | _READ_DIR if os.path.isdir(path) else _READ_FILE
        rule = ctypes.create_string_buffer(struct.pack("=Qi", access, descriptor), 12)
        _syscall("landlock_add_rule " + path, _LANDLOCK_ADD_PATH, rules, 1, rule, ctypes.c_uint32(0))
        os.close(descriptor)
    _prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)
    _syscall("landlock_restrict_self", _LANDLOCK_RESTRICT, rules, ctypes.c_uint32(0))
    os.close(rules)


# What pure computing in one thread needs, as numbers on (x86_64, aarch64); None: that architecture has no such call.
_ALLOWED = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "lseek": (8, 62), "pread64": (17, 67), "readv": (19, 65),
    "writev": (20, 66), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24), "poll": (7, None), "ppoll": (271, 73),
    "select": (23, None), "pselect6": (270, 72),
    "stat": (4, None), "fstat": (5, 80), "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291),
    "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None),
    "readlinkat": (267, 78), "getcwd": (79, 17), "getdents64": (217, 61),
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "mremap": (25, 216),
    "madvise": (28, 233), "futex": (202, 98), "set_robust_list": (273, 99), "rseq": (334, 293),
    "arch_prctl": (158, None),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132),
    "restart_syscall": (219, 128), "pause": (34, None), "alarm": (37, None), "setitimer": (38, 103),
    "getitimer": (36, 102),
    "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153), "getrusage": (98, 165),
    "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "getcpu": (309, 168), "getrandom": (318, 278),
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "getgroups": (115, 158), "getpgrp": (111, None), "getpgid": (121, 155),
    "getsid": (124, 156), "uname": (63, 160), "sysinfo": (99, 179), "getrlimit": (97, 163),
    "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip
_OPENAT, _FCNTL, _PRLIMIT, _CLONE3 = (257, 56), (72, 25), (302, 261), (435, 435)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_NOT_PLAIN_READING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | (os.O_TMPFILE & ~os.O_DIRECTORY)
_PERM, _NO_SYS = 1, 38

# Classic BPF: load a word, jumps, return. Jumps count the instructions they skip.
_LOAD, _EQUAL, _GREATER, _GREATER_EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF << 16, 5 << 16, 1 << 31


def allowed_calls():
    """The filter for `restrict_calls`.

    Raises:
        OSError: this architecture's calls are not known.
    """
    if platform.machine() not in _ARCHITECTURES:
        raise OSError(f"no list of system calls for the architecture {platform.machine()}")
    column, architecture = _ARCHITECTURES[platform.machine()]

    def do(code, value, yes=0, no=0):
        return struct.pack("HBBI", code, yes, no, value)

    def argument(number):
        return do(_LOAD, 16 + 8 * number)  # the low half: both architectures are little-endian

    program = [do(_LOAD, 4), do(_EQUAL, architecture, yes=1), do(_RETURN, _KILL), do(_LOAD, 0)]
    if column == 0:  # the x32 calls have numbers of their own
        program += [do(_GREATER_EQUAL, 0x40000000, no=1), do(_RETURN, _KILL)]
    for numbers in _ALLOWED.values():
        if numbers[column] is not None:
            program += [do(_EQUAL, numbers[column], no=1), do(_RETURN, _ALLOW)]
    allow, refuse = do(_RETURN, _ALLOW), do(_RETURN, _ERRNO | _PERM)
    # Files are opened for reading only.
    program += [do(_EQUAL, _OPENAT[column], no=4), argument(2), do(_ANY_BIT, _NOT_PLAIN_READING, yes=1), allow, refuse]
    # Descriptors may be copied and their flags read; F_SETOWN and its like could send signals to other processes.
    program += [do(_EQUAL, _FCNTL[column], no=5), argument(1)]
    program += [do(_GREATER, 3, no=1), do(_EQUAL, 1030, no=1), allow, refuse]
    # One's own limits, not those of another process of the same user.
    program += [do(_EQUAL, _PRLIMIT[column], no=4), argument(0), do(_EQUAL, 0, no=1), allow, refuse]
    program += [do(_EQUAL, _CLONE3[column], no=1), do(_RETURN, _ERRNO | _NO_SYS), refuse]
    return b"".join(program)


def restrict_calls(program):
    """seccomp: only what pure computing in one thread needs; all else fails with EPERM.

    No new process, thread or program; no socket; nothing opened for writing; no signals, nor limits of others.
    """
    code = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code)), 16)
    _prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)
    _prctl("PR_SET_SECCOMP", _PR_SET_SECCOMP, 2, ctypes.addressof(header))
