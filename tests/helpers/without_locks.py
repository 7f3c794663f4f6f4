"""A directory whose file system locks nothing, as some NFS and Lustre mounts: the C library of a process is told so."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int refused(int file, int command) {
    const char *below = getenv("WITHOUT_LOCKS");
    char link[64], path[4096];
    if (!below || (command != F_SETLK && command != F_SETLKW)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    return length >= (ssize_t)strlen(below) && strncmp(path, below, strlen(below)) == 0;
}

static int call(const char *name, int file, int command, void *argument) {
    if (refused(file, command)) { errno = ENOLCK; return -1; }
    return ((int (*)(int, int, ...))dlsym(RTLD_NEXT, name))(file, command, argument);
}

#define AS(name) int name(int file, int command, ...) { \
    va_list rest; va_start(rest, command); void *argument = va_arg(rest, void *); va_end(rest); \
    return call(#name, file, command, argument); }
AS(fcntl)
AS(fcntl64)
"""


def without_locks(directory: Path, scratch: Path) -> dict[str, str]:
    """The environment of processes that can lock nothing below `directory`; it needs a C compiler."""
    source, library = scratch / "without_locks.c", scratch / "without_locks.so"
    source.write_text(SOURCE)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return os.environ | {"LD_PRELOAD": str(library), "WITHOUT_LOCKS": f"{directory.resolve()}/"}
