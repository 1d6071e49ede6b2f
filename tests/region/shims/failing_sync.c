/* Preloaded into a node: while the file KEYWARD_TEST_FAIL_SYNC exists, syncs of audit segments fail as those of a
 * dying disk do. Everything else goes its way. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fails(int fd) {
    const char *flag = getenv("KEYWARD_TEST_FAIL_SYNC");
    char link[64], path[4096];
    if (!flag || access(flag, F_OK) != 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strstr(path, "/audit/audit-") != NULL;
}

int fdatasync(int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    if (!fails(fd)) return real(fd);
    errno = EIO;
    return -1;
}
