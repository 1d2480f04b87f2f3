"""Installs the filter that comes in on standard input, and makes the calls from 0 up to the number in the argument, each in a
process of its own and with all arguments -1. Says of each whether the filter lets it through."""

import ctypes
import os
import signal
import struct
import sys

RETURN, ERRNO, ENOSYS = 0x06, 0x00050000, 38
# The highest that a filter can return: no call fails with it by itself, as some do with ENOSYS.
REFUSED = 4095
PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_SET_NO_NEW_PRIVS = 22, 2, 38

program = sys.stdin.buffer.read()
steps = [list(step) for step in struct.iter_unpack("=HBBI", program)]
for step in steps:
    if step[0] == RETURN and step[3] == ERRNO | ENOSYS:
        step[3] = ERRNO | REFUSED
instructions = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_void_p)]


libc = ctypes.CDLL(None, use_errno=True)
filter_ = Program(len(steps), ctypes.addressof(instructions))
arguments = [ctypes.c_long(-1)] * 6
for number in range(int(sys.argv[1])):
    child = os.fork()
    if child == 0:
        # For a call that waits.
        signal.alarm(10)
        if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
            PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filter_), 0, 0
        ):
            os._exit(2)
        libc.syscall(ctypes.c_long(number), *arguments)
        os._exit(1 if ctypes.get_errno() == REFUSED else 0)
    status = os.waitpid(child, 0)[1]
    refused = os.WIFEXITED(status) and os.WEXITSTATUS(status)
    if refused == 2:
        sys.exit("the kernel does not take the filter")
    print("refused" if refused == 1 else "allowed")
