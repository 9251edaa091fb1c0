/* A disk with faults, for one process: preloaded, it stands between the program and the C library.
 *
 * FAULTY_DISK names a file of lines, read at each call, so that faults come and go while the program runs:
 *
 *     full DIRECTORY BYTES   files below may take up that many bytes together; what grows beyond fails with ENOSPC
 *     eio  WHERE             whatever writes fails with EIO
 *     hang WHERE             whatever writes does not return while the line is there
 *
 * WHERE is a directory, or #INODE of one file. Reading works: a sick disk's pages are in the kernel's memory.
 * Build: cc -shared -fPIC -O1 -o faulty_disk.so faulty_disk.c -ldl
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define CONTROL_MAX 4096

static int control(char *text) {
    const char *path = getenv("FAULTY_DISK");
    if (path == NULL) return 0;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    long got = syscall(SYS_read, fd, text, CONTROL_MAX - 1);
    syscall(SYS_close, fd);
    if (got <= 0) return 0;
    text[got] = '\0';
    return 1;
}

static int below(const char *path, const char *directory) {
    size_t length = strlen(directory);
    return strncmp(path, directory, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

static long long used(const char *directory) {
    long long bytes = 0;
    DIR *entries = opendir(directory);
    if (entries == NULL) return 0;
    for (struct dirent *each; (each = readdir(entries)) != NULL;) {
        char path[PATH_MAX];
        struct stat about;
        if (strcmp(each->d_name, ".") == 0 || strcmp(each->d_name, "..") == 0) continue;
        if (snprintf(path, sizeof path, "%s/%s", directory, each->d_name) >= (int)sizeof path) continue;
        if (lstat(path, &about) != 0) continue;
        bytes += S_ISDIR(about.st_mode) ? used(path) : (long long)about.st_blocks * 512;
    }
    closedir(entries);
    return bytes;
}

/* 0, or the errno with which a write that needs `growth` more bytes fails. Waits as long as the disk hangs. */
static int fault(const char *path, unsigned long inode, long long growth) {
    for (;;) {
        char text[CONTROL_MAX];
        int hangs = 0;
        if (!control(text)) return 0;
        for (char *rest = text, *line; (line = strsep(&rest, "\n")) != NULL;) {
            char mode[8], where[PATH_MAX];
            long long bytes = 0;
            if (sscanf(line, "%7s %4095s %lld", mode, where, &bytes) < 2) continue;
            if (where[0] == '#' ? inode != strtoul(where + 1, NULL, 10) : !below(path, where)) continue;
            if (strcmp(mode, "eio") == 0) return EIO;
            if (strcmp(mode, "full") == 0 && growth > 0 && used(where) + growth > bytes) return ENOSPC;
            if (strcmp(mode, "hang") == 0) hangs = 1;
        }
        if (!hangs) return 0;
        nanosleep(&(struct timespec){0, 20000000}, NULL);
    }
}

/* As `fault`, for an open file that is written up to `end`; -1: wherever it ends now. */
static int fault_of(int fd, long long end, long long count) {
    char link[64], path[PATH_MAX];
    struct stat about;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0 || path[0] != '/') return 0;
    path[length] = '\0';
    if (fstat(fd, &about) != 0 || !S_ISREG(about.st_mode)) return 0;
    long long growth = end < 0 ? count : end - (long long)about.st_blocks * 512;
    return fault(path, about.st_ino, growth);
}

/* As `fault`, for a change of a directory: of its disk, and not of any file in it. Paths are absolute here. */
static int fault_at(const char *path, int creates) {
    return fault(path, 0, creates ? 4096 : 0);
}

#define FAIL_IF(number)      \
    do {                     \
        int why = (number);  \
        if (why != 0) {      \
            errno = why;     \
            return -1;       \
        }                    \
    } while (0)

#define OPENS(name)                                                              \
    int name(const char *path, int flags, ...) {                                 \
        va_list more;                                                            \
        va_start(more, flags);                                                   \
        mode_t mode = (flags & O_CREAT) ? va_arg(more, mode_t) : 0;              \
        va_end(more);                                                            \
        if ((flags & O_CREAT) && access(path, F_OK) != 0) FAIL_IF(fault_at(path, 1)); \
        return REAL(name)(path, flags, mode);                                    \
    }
OPENS(open)
OPENS(open64)

ssize_t write(int fd, const void *data, size_t count) {
    FAIL_IF(fault_of(fd, -1, (long long)count));
    return REAL(write)(fd, data, count);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    long long bytes = 0;
    for (int each = 0; each < count; each++) bytes += (long long)parts[each].iov_len;
    FAIL_IF(fault_of(fd, -1, bytes));
    return REAL(writev)(fd, parts, count);
}

ssize_t pwrite(int fd, const void *data, size_t count, off_t offset) {
    FAIL_IF(fault_of(fd, offset + (long long)count, 0));
    return REAL(pwrite)(fd, data, count, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t count, off64_t offset) {
    FAIL_IF(fault_of(fd, offset + (long long)count, 0));
    return REAL(pwrite64)(fd, data, count, offset);
}

int fsync(int fd) {
    FAIL_IF(fault_of(fd, 0, 0));
    return REAL(fsync)(fd);
}

int fdatasync(int fd) {
    FAIL_IF(fault_of(fd, 0, 0));
    return REAL(fdatasync)(fd);
}

int ftruncate(int fd, off_t length) {
    FAIL_IF(fault_of(fd, 0, 0));
    return REAL(ftruncate)(fd, length);
}

int ftruncate64(int fd, off64_t length) {
    FAIL_IF(fault_of(fd, 0, 0));
    return REAL(ftruncate64)(fd, length);
}

int posix_fallocate(int fd, off_t offset, off_t length) {
    int why = fault_of(fd, offset + length, 0);
    return why != 0 ? why : REAL(posix_fallocate)(fd, offset, length);
}

int posix_fallocate64(int fd, off64_t offset, off64_t length) {
    int why = fault_of(fd, offset + length, 0);
    return why != 0 ? why : REAL(posix_fallocate64)(fd, offset, length);
}

int rename(const char *from, const char *to) {
    FAIL_IF(fault_at(from, 0));
    return REAL(rename)(from, to);
}

int unlink(const char *path) {
    FAIL_IF(fault_at(path, 0));
    return REAL(unlink)(path);
}
