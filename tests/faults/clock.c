/* Moves the time of day of a process by as many seconds as the file $CLOCK_OFFSET holds (a long), and
   what waits until a time of day back by as many. libfaketime 0.9.10 breaks Python's sleep, which
   waits on the monotonic clock. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static volatile long *shared;
__attribute__((constructor)) static void map(void) {
    int file = open(getenv("CLOCK_OFFSET"), O_RDONLY | O_CLOEXEC);
    void *at = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
    if (at != MAP_FAILED) shared = at;
    close(file);
}
static long offset(void) { return shared ? *shared : 0; }
static long call(long n, long a, long b, long c, long d, long e, long f) {
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall" : "=a"(result)
                     : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
static int of_day(clockid_t clock) {
    return clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    long code = call(SYS_clock_gettime, clock, (long)now, 0, 0, 0, 0);
    if (code < 0) { errno = -code; return -1; }
    if (of_day(clock)) now->tv_sec += offset();
    return 0;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec time;
    clock_gettime(CLOCK_REALTIME, &time);
    now->tv_sec = time.tv_sec; now->tv_usec = time.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
/* A time since 1970, as the kernel has it; one of the monotonic clock is far smaller. */
static const struct timespec *back(const struct timespec *until, struct timespec *room) {
    if (!until || until->tv_sec < 1000000000) return until;
    *room = *until;
    room->tv_sec -= offset();
    return room;
}
#define TIMED(name, parameters, ...) \
    int name parameters { \
        static int (*real) parameters; \
        struct timespec room; \
        if (!real) real = dlvsym(RTLD_NEXT, #name, "GLIBC_2.34"); \
        if (!real) real = dlvsym(RTLD_NEXT, #name, "GLIBC_2.30"); \
        if (!real) real = dlvsym(RTLD_NEXT, #name, "GLIBC_2.3.2"); \
        if (!real) real = dlsym(RTLD_NEXT, #name); \
        return real(__VA_ARGS__, back(until, &room)); \
    }
#define UNTIL const struct timespec *until
TIMED(pthread_cond_timedwait, (pthread_cond_t *c, pthread_mutex_t *m, UNTIL), c, m)
TIMED(pthread_cond_clockwait, (pthread_cond_t *c, pthread_mutex_t *m, clockid_t k, UNTIL), c, m, k)
TIMED(sem_timedwait, (sem_t *s, UNTIL), s)
TIMED(sem_clockwait, (sem_t *s, clockid_t k, UNTIL), s, k)
long syscall(long number, ...) {
    va_list list;
    long a[6];
    va_start(list, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
    va_end(list);
    struct timespec room;
    if (number == SYS_futex && (a[1] & FUTEX_CLOCK_REALTIME))
        a[3] = (long)back((const struct timespec *)a[3], &room);
    long code = call(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (code < 0 && code > -4096) { errno = -code; return -1; }
    return code;
}
