/* A disk that fails, for a program that runs with this library in LD_PRELOAD: calls named in the file
   $QUANTRY_FAULT_FILE answer EIO (or what is said below) when they are about a file whose path holds $QUANTRY_FAULT_PATH.

     pwrite64 pread64 fdatasync fsync ftruncate64    nothing happens
     torn                                            pwrite64 writes half of it
     full                                            pwrite64 writes nothing and answers ENOSPC
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int is_about(int fd, const char* path) {
  char link[64];
  char target[PATH_MAX + 1];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t size = readlink(link, target, sizeof target - 1);
  if (size < 0) return 0;
  target[size] = '\0';
  return strstr(target, path) != NULL;
}

static int fails(const char* call, int fd) {
  const char* file = getenv("QUANTRY_FAULT_FILE");
  const char* path = getenv("QUANTRY_FAULT_PATH");
  char text[256];
  char word[40];
  if (file == NULL || path == NULL) return 0;
  const int faults = open(file, O_RDONLY | O_CLOEXEC);
  if (faults < 0) return 0;
  const ssize_t size = read(faults, text, sizeof text - 2);
  close(faults);
  if (size <= 0) return 0;
  text[size] = ' ';
  text[size + 1] = '\0';
  snprintf(word, sizeof word, "%s ", call);
  return strstr(text, word) != NULL && is_about(fd, path);
}

static int failure(int error) {
  errno = error;
  return -1;
}

static int io_error(void) { return failure(EIO); }

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t pwrite64(int fd, const void* data, size_t size, off64_t offset) {
  if (fails("torn", fd)) NEXT(pwrite64)(fd, data, size / 2, offset);
  if (fails("torn", fd) || fails("pwrite64", fd)) return io_error();
  if (fails("full", fd)) return failure(ENOSPC);
  return NEXT(pwrite64)(fd, data, size, offset);
}

ssize_t pread64(int fd, void* data, size_t size, off64_t offset) {
  return fails("pread64", fd) ? io_error() : NEXT(pread64)(fd, data, size, offset);
}

int fdatasync(int fd) { return fails("fdatasync", fd) ? io_error() : NEXT(fdatasync)(fd); }

int fsync(int fd) { return fails("fsync", fd) ? io_error() : NEXT(fsync)(fd); }

int ftruncate64(int fd, off64_t size) {
  return fails("ftruncate64", fd) ? io_error() : NEXT(ftruncate64)(fd, size);
}
