/* Preloaded into the server: writes down what it asks of the disk, and plays a failing one.
 *
 * Every write, truncation, sync, creation, rename and removal below DURABILITY_DIRECTORY is appended
 * to the file DURABILITY_TRACE with the time at which it was done. From that `powercut.py` builds
 * what a disk may hold if the power goes at a given moment. The page DURABILITY_CONTROL (struct
 * control, shared by all processes) says which calls fail, how long a sync takes and how far the
 * clock is off.
 *
 * A write is noted after it was done and before it is seen to be done; a sync covers what was noted
 * before it began, and counts from the moment it was noted as done. Where threads race, that errs
 * towards losing what was not synced. The -shm file is left out: SQLite builds it anew.
 */
#define _GNU_SOURCE
#undef _FORTIFY_SOURCE
/* Both names of each call, `open` and `open64`, are wanted: keep the headers from joining them. */
#undef _FILE_OFFSET_BITS
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* powercut.py holds the same layout and the same numbers. */
struct control {
    int32_t write_errno;  /* every write and truncation fails with it */
    int32_t grow_errno;   /* those that make a file longer do: a full disk */
    int32_t sync_errno;   /* a sync fails with it … */
    int32_t sync_faults;  /* … this many times; below zero: until told otherwise */
    int32_t open_errno;   /* opening for writing fails with it */
    int32_t sync_delay_us;
    int64_t clock_offset_seconds;
};

enum operation { OPEN = 1, WRITE, TRUNCATE, SYNC_BEGIN, SYNC_END, SYNC_FAILED, RENAME, UNLINK };

struct record {
    uint64_t at_ns;
    uint64_t file; /* the inode */
    uint64_t offset;
    uint32_t operation;
    uint32_t thread;
    uint32_t path_bytes;
    uint32_t content_bytes;
};

#define FILES 65536
static uint64_t watched[FILES]; /* the inode behind each descriptor that is watched, else 0 */
static int trace = -1;
static char directory[PATH_MAX];
static size_t directory_bytes;
static struct control calm;
static struct control *control = &calm;

/* The C library's own function, looked up once. */
#define REAL(type, name, ...)                                                      \
    (__extension__({                                                               \
        static type (*real)(__VA_ARGS__);                                          \
        if (real == NULL) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name);    \
        real;                                                                      \
    }))

static int fail(int number) {
    errno = number;
    return -1;
}

static uint64_t now_ns(void) {
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("DURABILITY_DIRECTORY");
    if (path == NULL || realpath(path, directory) == NULL) return;
    directory_bytes = strlen(directory);
    if ((path = getenv("DURABILITY_CONTROL")) != NULL) {
        int page = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
        void *shared = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, page, 0);
        if (shared != MAP_FAILED) control = shared;
        syscall(SYS_close, page);
    }
    if ((path = getenv("DURABILITY_TRACE")) != NULL) {
        int low = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_APPEND | O_CREAT, 0600);
        /* High, so that the server's own descriptors keep the numbers they would have. */
        trace = (int)syscall(SYS_fcntl, low, F_DUPFD_CLOEXEC, 900);
        syscall(SYS_close, low);
    }
}

/* One appending call per record: the kernel keeps those of several processes apart. */
static void note(enum operation operation, uint64_t file, int64_t offset, const char *path,
                 const void *content, size_t content_bytes) {
    if (trace < 0) return;
    int kept = errno;
    struct record record = {now_ns(), file, (uint64_t)offset, operation,
                            (uint32_t)syscall(SYS_gettid), (uint32_t)(path ? strlen(path) : 0),
                            (uint32_t)content_bytes};
    struct iovec parts[] = {{&record, sizeof record},
                            {(void *)path, record.path_bytes},
                            {(void *)content, content_bytes}};
    if (syscall(SYS_writev, trace, parts, 3) !=
        (ssize_t)(sizeof record + record.path_bytes + content_bytes))
        abort(); /* a trace with a hole would prove nothing */
    errno = kept;
}

static int is_watched_path(const char *path) {
    size_t bytes = strlen(path);
    if (directory_bytes == 0 || strncmp(path, directory, directory_bytes) != 0) return 0;
    if (path[directory_bytes] != '/' && path[directory_bytes] != 0) return 0;
    return bytes < 4 || strcmp(path + bytes - 4, "-shm") != 0;
}

static const char *absolute(const char *path, char *room) {
    if (path[0] == '/') return path;
    if (getcwd(room, PATH_MAX) == NULL) return path;
    size_t bytes = strlen(room);
    snprintf(room + bytes, PATH_MAX - bytes, "/%s", path);
    return room;
}

static uint64_t file_behind(int fd) {
    return fd >= 0 && fd < FILES ? watched[fd] : 0;
}

/* Opening */

static int fault_of_open(const char *path, int flags) {
    char room[PATH_MAX];
    int fault = control->open_errno;
    if (fault == 0 || (flags & O_ACCMODE) == O_RDONLY) return 0;
    return is_watched_path(absolute(path, room)) ? fault : 0;
}

static int opened(int fd, int flags) {
    if (fd < 0 || fd >= FILES || directory_bytes == 0) return fd;
    int kept = errno;
    char link[64], path[PATH_MAX];
    struct stat found;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t bytes = readlink(link, path, sizeof path - 1);
    watched[fd] = 0;
    if (bytes > 0) {
        path[bytes] = 0;
        if (is_watched_path(path) && fstat(fd, &found) == 0) {
            watched[fd] = found.st_ino;
            note(OPEN, found.st_ino, 0, path, NULL, 0);
            if (flags & O_TRUNC) note(TRUNCATE, found.st_ino, 0, NULL, NULL, 0);
        }
    }
    errno = kept;
    return fd;
}

#define MODE_OF(flags)                                   \
    mode_t mode = 0;                                     \
    if ((flags) & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) { \
        va_list rest;                                    \
        va_start(rest, flags);                           \
        mode = va_arg(rest, mode_t);                     \
        va_end(rest);                                    \
    }

#define DEFINE_OPEN(name)                                                          \
    int name(const char *path, int flags, ...) {                                   \
        MODE_OF(flags)                                                             \
        int fault = fault_of_open(path, flags);                                    \
        if (fault) return fail(fault);                                             \
        return opened(REAL(int, name, const char *, int, ...)(path, flags, mode), flags); \
    }
DEFINE_OPEN(open)
DEFINE_OPEN(open64)

#define DEFINE_OPENAT(name)                                                        \
    int name(int at, const char *path, int flags, ...) {                           \
        MODE_OF(flags)                                                             \
        int fault = fault_of_open(path, flags);                                    \
        if (fault) return fail(fault);                                             \
        return opened(REAL(int, name, int, const char *, int, ...)(at, path, flags, mode), flags); \
    }
DEFINE_OPENAT(openat)
DEFINE_OPENAT(openat64)

#define DEFINE_CREAT(name)                                                         \
    int name(const char *path, mode_t mode) {                                      \
        return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode);                     \
    }
DEFINE_CREAT(creat)
DEFINE_CREAT(creat64)

int close(int fd) {
    if (fd == trace && fd >= 0) return 0; /* who closes all there is must not end the trace */
    if (fd >= 0 && fd < FILES) watched[fd] = 0;
    return REAL(int, close, int)(fd);
}

/* Writing */

static int fault_of_length(int fd, int64_t end) {
    struct stat found;
    int fault = control->write_errno;
    if (fault) return fault;
    fault = control->grow_errno;
    return fault && fstat(fd, &found) == 0 && end > found.st_size ? fault : 0;
}

static int64_t position(int fd) {
    struct stat found;
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0 && (flags & O_APPEND) && fstat(fd, &found) == 0) return found.st_size;
    return lseek(fd, 0, SEEK_CUR);
}

ssize_t write(int fd, const void *content, size_t bytes) {
    uint64_t file = file_behind(fd);
    if (file == 0) return REAL(ssize_t, write, int, const void *, size_t)(fd, content, bytes);
    int64_t offset = position(fd);
    int fault = fault_of_length(fd, offset + (int64_t)bytes);
    if (fault) return fail(fault);
    ssize_t done = REAL(ssize_t, write, int, const void *, size_t)(fd, content, bytes);
    if (done > 0) note(WRITE, file, offset, NULL, content, (size_t)done);
    return done;
}

#define DEFINE_PWRITE(name, offset_type)                                           \
    ssize_t name(int fd, const void *content, size_t bytes, offset_type offset) {  \
        uint64_t file = file_behind(fd);                                           \
        int fault = file ? fault_of_length(fd, offset + (int64_t)bytes) : 0;       \
        if (fault) return fail(fault);                                             \
        ssize_t done = REAL(ssize_t, name, int, const void *, size_t, offset_type)(\
            fd, content, bytes, offset);                                           \
        if (file && done > 0) note(WRITE, file, offset, NULL, content, (size_t)done); \
        return done;                                                               \
    }
DEFINE_PWRITE(pwrite, off_t)
DEFINE_PWRITE(pwrite64, off64_t)

ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (file_behind(fd) == 0)
        return REAL(ssize_t, writev, int, const struct iovec *, int)(fd, parts, count);
    ssize_t sum = 0;
    for (int part = 0; part < count; part++) {
        ssize_t done = write(fd, parts[part].iov_base, parts[part].iov_len);
        if (done < 0) return sum ? sum : done;
        sum += done;
        if ((size_t)done < parts[part].iov_len) break;
    }
    return sum;
}

#define DEFINE_FTRUNCATE(name, offset_type)                                        \
    int name(int fd, offset_type length) {                                         \
        uint64_t file = file_behind(fd);                                           \
        int fault = file ? fault_of_length(fd, length) : 0;                        \
        if (fault) return fail(fault);                                             \
        int outcome = REAL(int, name, int, offset_type)(fd, length);               \
        if (file && outcome == 0) note(TRUNCATE, file, length, NULL, NULL, 0);     \
        return outcome;                                                            \
    }
DEFINE_FTRUNCATE(ftruncate, off_t)
DEFINE_FTRUNCATE(ftruncate64, off64_t)

/* Syncing */

static int fault_of_sync(void) {
    int fault = control->sync_errno;
    if (fault == 0) return 0;
    int32_t left = __atomic_load_n(&control->sync_faults, __ATOMIC_SEQ_CST);
    while (left > 0)
        if (__atomic_compare_exchange_n(&control->sync_faults, &left, left - 1, 0,
                                        __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            return fault;
    return left < 0 ? fault : 0;
}

#define DEFINE_SYNC(name)                                                          \
    int name(int fd) {                                                             \
        uint64_t file = file_behind(fd);                                           \
        if (file == 0) return REAL(int, name, int)(fd);                            \
        note(SYNC_BEGIN, file, 0, NULL, NULL, 0);                                  \
        if (control->sync_delay_us > 0) usleep((useconds_t)control->sync_delay_us);\
        int fault = fault_of_sync();                                               \
        int outcome = fault ? fail(fault) : REAL(int, name, int)(fd);              \
        note(outcome == 0 ? SYNC_END : SYNC_FAILED, file, 0, NULL, NULL, 0);       \
        return outcome;                                                            \
    }
DEFINE_SYNC(fsync)
DEFINE_SYNC(fdatasync)

/* Promises nothing about the disk's own cache or the file's length, so it counts for nothing. */
int sync_file_range(int fd, off64_t offset, off64_t bytes, unsigned flags) {
    return REAL(int, sync_file_range, int, off64_t, off64_t, unsigned)(fd, offset, bytes, flags);
}

/* Names */

int unlink(const char *path) {
    char room[PATH_MAX];
    const char *full = absolute(path, room);
    int outcome = REAL(int, unlink, const char *)(path);
    if (outcome == 0 && is_watched_path(full)) note(UNLINK, 0, 0, full, NULL, 0);
    return outcome;
}

int rename(const char *from, const char *to) {
    char from_room[PATH_MAX], to_room[PATH_MAX];
    const char *source = absolute(from, from_room), *target = absolute(to, to_room);
    int outcome = REAL(int, rename, const char *, const char *)(from, to);
    if (outcome == 0 && (is_watched_path(source) || is_watched_path(target)))
        note(RENAME, 0, 0, source, target, strlen(target));
    return outcome;
}

/* The clock */

int clock_gettime(clockid_t clock, struct timespec *now) {
    int outcome = (int)syscall(SYS_clock_gettime, clock, now);
    if (outcome == 0 && clock == CLOCK_REALTIME) now->tv_sec += control->clock_offset_seconds;
    return outcome;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int outcome = (int)syscall(SYS_gettimeofday, now, zone);
    if (outcome == 0) now->tv_sec += control->clock_offset_seconds;
    return outcome;
}

time_t time(time_t *now) {
    struct timespec present;
    clock_gettime(CLOCK_REALTIME, &present);
    if (now) *now = present.tv_sec;
    return present.tv_sec;
}
