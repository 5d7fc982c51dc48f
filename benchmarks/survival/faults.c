/* Lets the n-th call that changes something below a folder fail, fall short, or be the last one.

   Preloaded into a process. Nothing is counted until fault_arm; the counters lie in memory shared
   with children, so that a parent reads what a child did that was killed.

   Kinds: COUNT counts alone. FAIL fails once. FAIL_ON fails from there on; with ENOSPC, as on a
   full disk, only what takes room. SHORT writes half of what it is given, and then is FAIL_ON. KILL
   ends the process before the call. CUT does so like a power cut: what was written and not synced
   since is gone, while names stay, as on a file system that writes data late. */
#define _GNU_SOURCE
#undef _FORTIFY_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { COUNT, FAIL, FAIL_ON, SHORT, KILL, CUT };
enum call { OPEN, WRITE, FSYNC, TRUNCATE, ALLOCATE, RENAME, MKDIR, UNLINK, CALLS };
enum { GOES_ON = 0, FALLS_SHORT = -1 }; /* what `struck` returns beside error numbers */
enum { REMEMBERED = 1 << 16 };

static struct {
    char folder[PATH_MAX];
    atomic_long calls;
    signed char order[REMEMBERED]; /* which call each was */
    long at;
    int kind, error;
} *fault;

__attribute__((constructor)) static void begin(void) {
    fault = mmap(NULL, sizeof *fault, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

void fault_arm(const char *folder, long at, int kind, int error) {
    fault->at = at, fault->kind = kind, fault->error = error;
    fault->calls = 0;
    snprintf(fault->folder, sizeof fault->folder, "%s", folder);
}

long fault_calls(void) { return fault->calls; }
int fault_call(long n) { return n < 1 || n > REMEMBERED ? -1 : fault->order[n - 1]; }

#define REAL(name) ({ \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name); \
    real; })

/* --- what lies below the folder */

static int path_is_ours(const char *path) {
    size_t n = strlen(fault->folder);
    return n && !strncmp(path, fault->folder, n) && (path[n] == '/' || !path[n]);
}

static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, PATH_MAX - 1);
    path[n < 0 ? 0 : n] = 0;
    return n > 0;
}

static int is_ours(int fd) {
    int before = errno;
    char path[PATH_MAX];
    int ours = fault->folder[0] && path_of(fd, path) && path_is_ours(path);
    errno = before;
    return ours;
}

static int is_below(int folder, const char *path) {
    int before = errno;
    char whole[2 * PATH_MAX] = "";
    if (!fault->folder[0]) return 0;
    if (path[0] == '/') return path_is_ours(path);
    if (folder == AT_FDCWD ? !getcwd(whole, PATH_MAX) : !path_of(folder, whole)) whole[0] = 0;
    size_t n = strlen(whole);
    snprintf(whole + n, sizeof whole - n, "/%s", path);
    errno = before;
    return path_is_ours(whole);
}

/* --- what a power cut takes: all that was written since a file was last synced */

static struct { dev_t device; ino_t file; off_t size; int fd; } unsynced[256];
static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;

static int place_of(const struct stat *file) { /* where it is kept, or the first free place */
    int free = -1;
    for (int i = 0; i < 256; i++) {
        if (!unsynced[i].file && free < 0) free = i;
        if (unsynced[i].file == file->st_ino && unsynced[i].device == file->st_dev) return i;
    }
    return free;
}

static void will_write(int fd) {
    struct stat file;
    if (fault->kind != CUT || fstat(fd, &file) || !S_ISREG(file.st_mode)) return;
    pthread_mutex_lock(&held);
    int i = place_of(&file);
    if (i >= 0 && !unsynced[i].file) {
        unsynced[i].device = file.st_dev, unsynced[i].file = file.st_ino;
        unsynced[i].size = file.st_size, unsynced[i].fd = dup(fd);
    }
    pthread_mutex_unlock(&held);
}

static void was_synced(int fd) {
    struct stat file;
    if (fault->kind != CUT || fstat(fd, &file)) return;
    pthread_mutex_lock(&held);
    int i = place_of(&file);
    if (i >= 0 && unsynced[i].file) close(unsynced[i].fd), unsynced[i].file = 0;
    pthread_mutex_unlock(&held);
}

static void end(void) {
    pthread_mutex_lock(&held); /* for good: other threads write no more */
    for (int i = 0; fault->kind == CUT && i < 256; i++)
        if (unsynced[i].file) REAL(ftruncate)(unsynced[i].fd, unsynced[i].size);
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* --- the fault */

/* On a full disk names can still change, and files be removed; a rename or sync fails but once. */
static int takes_no_room(enum call call, int once) {
    return call == UNLINK || (!once && (call == RENAME || call == FSYNC));
}

static int struck(enum call call) {
    long n = atomic_fetch_add(&fault->calls, 1) + 1, at = fault->at;
    if (n <= REMEMBERED) fault->order[n - 1] = call;
    int kind = fault->kind, lasting = kind == FAIL_ON || kind == SHORT;
    if (kind == COUNT || n < at || (n > at && !lasting)) return GOES_ON;
    if (kind == KILL || kind == CUT) end();
    if (fault->error == ENOSPC && takes_no_room(call, n == at)) return GOES_ON;
    if (kind == SHORT && n == at && call == WRITE) return FALLS_SHORT;
    return fault->error;
}

#define STRIKE(ours, call, failed) \
    int fate = (ours) ? struck(call) : GOES_ON; \
    if (fate > 0) { errno = fate; return failed; }

/* --- the calls */

#define WRITES(name, parameters, given) \
ssize_t name parameters { \
    int ours = is_ours(fd); \
    STRIKE(ours, WRITE, -1) \
    if (fate == FALLS_SHORT) n = (n + 1) / 2; \
    if (ours) will_write(fd); \
    return REAL(name) given; \
}
WRITES(write, (int fd, const void *data, size_t n), (fd, data, n))
WRITES(pwrite, (int fd, const void *data, size_t n, off_t at), (fd, data, n, at))
WRITES(pwrite64, (int fd, const void *data, size_t n, off64_t at), (fd, data, n, at))
WRITES(writev, (int fd, const struct iovec *parts, int n), (fd, parts, n))
WRITES(pwritev, (int fd, const struct iovec *parts, int n, off_t at), (fd, parts, n, at))
WRITES(pwritev64, (int fd, const struct iovec *parts, int n, off64_t at), (fd, parts, n, at))

size_t fwrite(const void *data, size_t size, size_t n, FILE *stream) {
    STRIKE(is_ours(fileno(stream)), WRITE, 0)
    return REAL(fwrite)(data, size, fate == FALLS_SHORT ? (n + 1) / 2 : n, stream);
}

#define SYNCS(name) \
int name(int fd) { \
    int ours = is_ours(fd); \
    STRIKE(ours, FSYNC, -1) \
    int result = REAL(name)(fd); \
    if (ours && !result) was_synced(fd); \
    return result; \
}
SYNCS(fsync)
SYNCS(fdatasync)

#define SIZES(name, call, parameters, given, failed) \
int name parameters { \
    int ours = is_ours(fd); \
    STRIKE(ours, call, failed) \
    if (ours) will_write(fd); \
    return REAL(name) given; \
}
SIZES(ftruncate, TRUNCATE, (int fd, off_t size), (fd, size), -1)
SIZES(ftruncate64, TRUNCATE, (int fd, off64_t size), (fd, size), -1)
SIZES(fallocate, ALLOCATE, (int fd, int mode, off_t at, off_t n), (fd, mode, at, n), -1)
SIZES(fallocate64, ALLOCATE, (int fd, int mode, off64_t at, off64_t n), (fd, mode, at, n), -1)
SIZES(posix_fallocate, ALLOCATE, (int fd, off_t at, off_t n), (fd, at, n), fate)
SIZES(posix_fallocate64, ALLOCATE, (int fd, off64_t at, off64_t n), (fd, at, n), fate)

#define NAMES(name, call, below, parameters, given) \
int name parameters { \
    STRIKE(below, call, -1) \
    return REAL(name) given; \
}
NAMES(mkdir, MKDIR, is_below(AT_FDCWD, path), (const char *path, mode_t mode), (path, mode))
NAMES(mkdirat, MKDIR, is_below(at, path), (int at, const char *path, mode_t mode), (at, path, mode))
NAMES(rmdir, UNLINK, is_below(AT_FDCWD, path), (const char *path), (path))
NAMES(unlink, UNLINK, is_below(AT_FDCWD, path), (const char *path), (path))
NAMES(unlinkat, UNLINK, is_below(at, path), (int at, const char *path, int flags),
      (at, path, flags))
NAMES(rename, RENAME, is_below(AT_FDCWD, to), (const char *from, const char *to), (from, to))
NAMES(renameat, RENAME, is_below(at, to), (int of, const char *from, int at, const char *to),
      (of, from, at, to))
NAMES(renameat2, RENAME, is_below(at, to),
      (int of, const char *from, int at, const char *to, unsigned flags), (of, from, at, to, flags))

#define CHANGES(flags) ((flags) & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR))
#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list rest; \
        va_start(rest, flags), mode = va_arg(rest, mode_t), va_end(rest); \
    }
#define OPENS(name) \
int name(const char *path, int flags, ...) { \
    MODE(flags) \
    STRIKE(CHANGES(flags) && is_below(AT_FDCWD, path), OPEN, -1) \
    return REAL(name)(path, flags, mode); \
}
OPENS(open)
OPENS(open64)

#define OPENS_AT(name) \
int name(int at, const char *path, int flags, ...) { \
    MODE(flags) \
    STRIKE(CHANGES(flags) && is_below(at, path), OPEN, -1) \
    return REAL(name)(at, path, flags, mode); \
}
OPENS_AT(openat)
OPENS_AT(openat64)

#define OPENS_STREAM(name) \
FILE *name(const char *path, const char *mode) { \
    STRIKE(strpbrk(mode, "wa+") && is_below(AT_FDCWD, path), OPEN, NULL) \
    return REAL(name)(path, mode); \
}
OPENS_STREAM(fopen)
OPENS_STREAM(fopen64)
